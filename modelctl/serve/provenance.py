"""Where a model comes from, for who asks it: its manifest, as it was read and checked.

    GET /v2/models/NAME[/versions/V]/manifest

It holds the records of all ancestors down to the trained checkpoint. Of a model that came sealed it is the one inside,
but for what `encrypt --private` keeps to itself.
"""

from collections.abc import Iterable

from modelctl.serve.http import Answer, App, Handler, Request, Route
from modelctl.serve.models import Model


def routes(app: App) -> Iterable[Route]:
    """The routes of the manifests."""
    for name in app.models.names():
        model = app.models.get(name)
        yield Route("GET", f"/v2/models/{name}/manifest", _manifest(model), model)
        for version in app.models.versions(name):
            model = app.models.get(name, version)
            yield Route("GET", f"/v2/models/{name}/versions/{version}/manifest", _manifest(model), model)


def _manifest(model: Model) -> Handler:
    def tell(_: Request) -> Answer:
        return Answer(model.manifest.text().encode())

    return tell
