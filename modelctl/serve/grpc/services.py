"""The services that are offered over gRPC."""

from collections.abc import Iterable

from modelctl.serve.grpc import inference
from modelctl.serve.http import App, Route


def routes(app: App) -> Iterable[Route]:
    """The methods of all services."""
    yield from inference.routes(app)
