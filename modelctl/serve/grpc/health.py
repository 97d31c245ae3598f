"""`grpc.health.v1.Health`: whether the server, one of its services or one of its models answers."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from modelctl.serve.grpc.calls import CONTENT_TYPE, METHOD, CallRequest, Line
from modelctl.serve.grpc.messages import SERVICES, message, parsed
from modelctl.serve.http import Answer, App, Request, Route
from modelctl.serve.refusal import Refused, told

SERVICE = "grpc.health.v1.Health"
LOOK_S = 0.25  # how often it is looked whether a watched status is another

Asked: Any = message("grpc.health.v1.HealthCheckRequest")
Status: Any = message("grpc.health.v1.HealthCheckResponse")


def routes(app: App) -> Iterable[Route]:
    """The methods of the service."""
    yield Route(METHOD, f"/{SERVICE}/Check", partial(_check, app))
    yield Route(METHOD, f"/{SERVICE}/Watch", partial(_watch, app))


def _status(app: App, request: Request, name: str) -> Any:
    if name and name not in SERVICES and (name not in app.models.names() or not _knows(request, name)):
        return Status(status="SERVICE_UNKNOWN")
    return Status(status="SERVING" if app.ready else "NOT_SERVING")


def _knows(request: Request, name: str) -> bool:
    return request.visit is None or request.visit.knows(name)


def _check(app: App, request: Request) -> Answer:
    name = parsed(Asked, request.body).service
    found = _status(app, request, name)
    if found.status == Status.SERVICE_UNKNOWN:
        raise Refused(f"no service or model {told(name)}", 404)
    return Answer(found.SerializeToString(), CONTENT_TYPE)


def _watch(app: App, request: Request) -> None:
    assert isinstance(request, CallRequest)
    assert request.line is not None
    request.talk = _Watch(app, request, request.line)


class _Watch:
    """Tells one client of a status whenever it is another."""

    full = False

    def __init__(self, app: App, request: CallRequest, line: Line) -> None:
        self._app = app
        self._request = request
        self._line = line
        self._name: str | None = None
        self._told = b""
        self._timer: asyncio.TimerHandle | None = None

    def heard(self, data: bytes) -> None:
        if self._name is not None:
            self._app.refuse(self._request, Refused("a watch is of one service"))
            return
        try:
            self._name = parsed(Asked, data).service
        except Refused as refused:
            self._app.refuse(self._request, refused)
            return
        self._look(self._name)

    def _look(self, name: str) -> None:
        found = _status(self._app, self._request, name).SerializeToString() or b"\x08\x00"
        if found != self._told:
            self._told = found
            self._line.push(found)
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look, name)

    def ended(self) -> None:
        if self._name is None:
            self._app.refuse(self._request, Refused("the call has not exactly one message, whole"))

    def lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def wind_down(self) -> None:
        if self._name is not None and self._timer is not None:
            self._timer.cancel()
            self._look(self._name)
        self._app.refuse(self._request, Refused("the server ends", 503))
