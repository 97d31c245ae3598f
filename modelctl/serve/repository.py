"""The model repository extension of the Open Inference Protocol (Triton's): what there is, load and unload.

    POST /v2/repository/index                  every source: name, version, state READY or UNAVAILABLE
    POST /v2/repository/models/NAME/load       read the sources of that name anew, and serve what they stand for now
    POST /v2/repository/models/NAME/unload     serve that name no more

Only what was named when the server was started can be loaded: a request can't bring a path or a ref of its own.
"""

from collections.abc import Iterable

import orjson

from modelctl.serve.changes import LOAD, UNLOAD
from modelctl.serve.http import Answer, App, Handler, Request, Route
from modelctl.serve.refusal import Refused


def routes(app: App) -> Iterable[Route]:
    """The routes of the repository."""
    yield Route("POST", "/v2/repository/index", _index(app))
    if app.changes is not None:
        for name in dict.fromkeys(app.changes.shelf.ledger.names):
            for kind in (LOAD, UNLOAD):
                yield Route("POST", f"/v2/repository/models/{name}/{kind}", _change(app, kind, name))


def _index(app: App) -> Handler:
    def tell(request: Request) -> Answer:
        return Answer(orjson.dumps(index(app, request)))

    return tell


def index(app: App, request: Request) -> list[dict[str, str]]:
    """Every source that who asks may know of: its name, version, state and what is the matter with it."""
    found = [{"name": one.name, "version": one.version, "state": "READY", "reason": ""} for one in app.models]
    if app.changes is not None:
        ledger = app.changes.shelf.ledger
        gone = [name for name, row in zip(ledger.names, ledger.rows, strict=True) if row is None]
        found += [{"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"} for name in gone]
    if (visit := request.visit) is not None:
        found = [one for one in found if visit.knows(one["name"])]
    return found


def _change(app: App, kind: str, name: str) -> Handler:
    def change(request: Request) -> None:
        def done(refused: Refused | None) -> None:
            if refused is None:
                request.reply(Answer(b"{}"))
            else:
                app.refuse(request, refused)

        assert app.changes is not None
        _check_origin(request)
        app.changes.ask(kind, name, done)

    return change


def _check_origin(request: Request) -> None:
    """`Refused` 403 for a page of somebody else: a browser sends its POST without asking us whether it may."""
    origin = request.head.headers.get(b"origin")
    if origin is None or origin.partition(b"://")[2] == request.head.headers.get(b"host"):
        return
    if request.visit is None or not request.visit.welcomes(origin):
        raise Refused("a page of another origin may not load and unload models", 403)
