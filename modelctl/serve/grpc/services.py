"""The services that are offered over gRPC."""

from collections.abc import Iterable
from functools import partial

from modelctl.serve.grpc import examples, health, inference, reflection, streaming, tensorflow
from modelctl.serve.grpc.calls import METHOD
from modelctl.serve.http import App, Route


def routes(app: App) -> Iterable[Route]:
    """The methods of all services."""
    for service in (inference, health, reflection, tensorflow, examples):
        yield from service.routes(app)
    yield Route(METHOD, f"/{inference.SERVICE}/ModelStreamInfer", partial(streaming.begin, app))
