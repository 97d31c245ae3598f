"""What the person who runs the server asks: `/metrics`."""

from collections.abc import Iterable

from modelctl.serve.http import Answer, App, Request, Route
from modelctl.serve.metrics import CONTENT_TYPE


def routes(app: App) -> Iterable[Route]:
    """The routes of operation."""

    def metrics(_: Request) -> Answer:
        return Answer(app.metrics(), CONTENT_TYPE)

    return [Route("GET", "/metrics", metrics)]
