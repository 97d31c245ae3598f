"""What is done with each request where somebody wants to know who comes: let in or refused, logged, traced.

`App.visits` is None where nobody does, and a request then costs no more than before. Else each connection has a
`Guest`, which is told of a request as soon as its head is read; from then on the request carries its `Visit`, through
which its answer leaves. A connection calls `Guest.enter`, and `App.run` calls `Visit.asks`; where a model is named but
not asked, `Visit.check` is to be called.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from modelctl.options import ServeOptions
from modelctl.serve.http import Answer, App, Request
from modelctl.serve.metrics import UNLOGGED, UNTRACED
from modelctl.serve.models import Model
from modelctl.serve.refusal import Refused

if TYPE_CHECKING:
    import ssl

    from modelctl.serve.access.callers import Caller
    from modelctl.serve.access.cors import Origins, Pairs
    from modelctl.serve.access.gate import Gate
    from modelctl.serve.access.kept import Kept
    from modelctl.serve.request_log import RequestLog
    from modelctl.serve.tracing import Context, Tracer

LOOK_S = 1.0  # how often files are looked at


class Visits:
    """All that the options ask for; made before workers are forked, which share the rates' memory and the log."""

    def __init__(self, options: ServeOptions) -> None:
        self.gate: Gate | None = None
        self.origins: Origins | None = None
        self.log: RequestLog | None = None
        self.tracer: Tracer | None = None
        self.context: Callable[[Mapping[bytes, bytes]], Context | None] | None = None  # of a request's headers
        self.payload_bytes = options.log_payloads
        self._kept: dict[str, Kept[Any]] = {}
        if options.asks_who or options.tls_cert is not None:
            from modelctl.serve.access import gate, rates

            self._kept = gate.kept(options)
            self.gate = gate.gate(options, self._kept, rates.Rates(options.workers))
        if options.cors_origins:
            from modelctl.serve.access import cors

            self.origins = cors.Origins(options.cors_origins)
        if options.log_requests is not None:
            from modelctl.serve import request_log

            self.log = request_log.RequestLog(options.log_requests)
        if (url := options.collector) is not None:
            from modelctl.serve import tracing

            self.tracer = tracing.Tracer(url, options.trace_share)
        self.sees_off = not (self.log is None and self.tracer is None and self.origins is None)
        if self.log is not None or self.tracer is not None:
            from modelctl.serve import tracing

            self.context = partial(tracing.context, tracer=self.tracer)

    def begin(self, app: App) -> None:
        """Watch over the requests of an application, on the running event loop."""
        cells = app.unrouted.cells
        for one in self._kept.values():
            one.tells = app.models.worker == 0  # of several workers that read the same
            one.look(at_once=True)  # the process that forked this one may have read them long ago
        app.visits = self
        self._app = app  # whose routes change
        self._looking = asyncio.get_running_loop().create_task(self._look())
        if self.log is not None:
            self.log.begin(partial(_count, cells, UNLOGGED))
        if self.tracer is not None:
            self.tracer.begin(partial(_count, cells, UNTRACED))

    def end(self) -> None:
        """Write and send what is still in hand; not for long."""
        self._looking.cancel()
        if self.log is not None:
            self.log.end()
        if self.tracer is not None:
            self.tracer.end()

    def renew(self) -> None:
        """Read all files anew, and open the log anew."""
        for one in self._kept.values():
            one.look(at_once=True)
        if self.log is not None:
            self.log.reopen()

    async def _look(self) -> None:
        while self._kept:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self._look_at_all)

    def _look_at_all(self) -> None:
        for one in self._kept.values():
            one.look()

    @property
    def routes(self) -> "Mapping[str, object]":
        """The paths that there are."""
        return self._app.routes

    @property
    def tls(self) -> "ssl.SSLContext | None":
        """What the next connection is encrypted by, if any is."""
        kept = self._kept.get("tls")
        return None if kept is None else kept.value

    def guest(self, transport: asyncio.BaseTransport) -> "Guest":
        """The client of a new connection."""
        return Guest(self, transport)

    def left(self, visit: "Visit", status: int, size: int, answer: Answer | None) -> None:
        """Tell of a request that is over."""
        if self.log is None and visit.context is None:
            return
        took = visit.times()
        if self.log is not None:
            self.log.write(visit, status, size, took, answer if self.payload_bytes else None, self.payload_bytes)
        if self.tracer is not None and visit.context is not None and visit.context.sampled:
            self.tracer.record(visit, status, size, took)


class Guest:
    """A client, as long as its connection lasts."""

    __slots__ = ("names", "remote", "scheme", "visits")

    def __init__(self, visits: Visits, transport: asyncio.BaseTransport) -> None:
        self.visits = visits
        address = transport.get_extra_info("peername")
        self.remote = str(address[0]) if isinstance(address, tuple) else ""
        self.scheme = "http"
        self.names: tuple[str, ...] = ()
        if visits.tls is not None:
            from modelctl.serve.access.tls import names_of

            self.scheme = "https"
            self.names = names_of(transport.get_extra_info("peercert") or {})

    def enter(self, request: Request) -> bool:
        """Meet a request whose head was read; true: it has its answer already. `Refused` 400, 401, 403 or 429."""
        visits, head = self.visits, request.head
        visit = Visit(self, request)
        if visits.origins is not None:
            visit.headers += visits.origins.headers(head)
            if (answer := visits.origins.preflight(head)) is not None:
                request.reply(answer)
                return True
        if visits.gate is not None and not visits.gate.open(head.path):
            visit.caller = visits.gate.who(head.headers, self.names)
            visits.gate.admit(visit.caller, head)
        return False

    def note(self, request: Request) -> None:
        """Meet a request that could not be read, only to tell of it."""
        Visit(self, request)


class Visit:
    """A request from its head on to its answer."""

    __slots__ = (
        "arrived",
        "began",
        "caller",
        "context",
        "guest",
        "headers",
        "kind",
        "over",
        "request",
        "send",
        "visits",
    )

    def __init__(self, guest: Guest, request: Request) -> None:
        self.began = time.perf_counter()
        self.guest = guest
        self.visits = guest.visits
        self.request = request
        self.send: Callable[[Request, Answer], None] = request.send
        self.caller: Caller | None = None
        self.headers: Pairs = ()
        self.kind = ""  # of the error that was answered
        self.arrived = 0.0  # at the model
        self.over = False
        self.context: Context | None = None
        if self.visits.context is not None:
            self.context = self.visits.context(request.head.headers)
            if self.context is not None:
                self.headers = (self.context.header,)
        request.visit = self
        if self.visits.sees_off:
            request.send = self.leave

    def asks(self, model: Model) -> None:
        """The model is known, and about to be asked; `Refused` 403."""
        self.arrived = time.perf_counter()
        self.check(model.name)

    def check(self, name: str) -> None:
        """`Refused` 403 unless the caller may have to do with the model of that name."""
        if self.caller is not None and not self.caller.asks(name):
            raise self._not_this_model(self.caller)

    def _not_this_model(self, caller: "Caller") -> Refused:
        from modelctl.serve.access import gate

        return gate.forbidden(caller, gate.THIS_MODEL)

    @property
    def routed(self) -> bool:
        """Whether there is anything at the path that was asked for."""
        return self.request.head.path in self.visits.routes

    def knows(self, name: str) -> bool:
        """Whether the caller is told that there is a model of that name."""
        return self.caller is None or self.caller.asks(name)

    def welcomes(self, origin: bytes) -> bool:
        """Whether pages of that origin may ask."""
        return self.visits.origins is not None and self.visits.origins.welcomes(origin)

    def failed(self, error: Refused) -> Refused:
        """What is told of a refusal: neither which models there are nor what they take to whom may not know of them."""
        caller, model = self.caller, self.request.model
        if caller is not None and caller.limited:
            if (error.status == 404 and self.routed) or (model is not None and not caller.asks(model.name)):
                error = self._not_this_model(caller)
            elif error.status == 404:
                error = Refused("nothing is there, or nothing that may be asked with this key", 404, error.kind)
        self.kind = error.kind
        return error

    def leave(self, request: Request, answer: Answer) -> None:
        """Send the answer, and tell of it."""
        if self.headers:
            body, kind, status, headers = answer
            answer = Answer(body, kind, status, headers + self.headers)
        self.send(request, answer)
        if not self.over:
            self.over = True
            self.visits.left(self, answer.status, len(answer.body), answer)

    def gone(self) -> None:
        """The client has left before it had its answer."""
        if not self.over:
            self.over, self.kind = True, "client_gone"
            self.visits.left(self, 499, 0, None)

    def times(self) -> "tuple[float, float, float]":
        """Seconds in all, waiting for the model, and in its run; -1 for what there was not."""
        now = time.perf_counter()
        model = self.request.model
        ran = model.runner.ran if model is not None and self.arrived else None
        if ran is None:
            return now - self.began, -1.0, -1.0
        return now - self.began, ran.began - self.arrived, ran.took_s


def _count(cells: Any, cell: int, lost: int) -> None:
    cells[cell] += lost


def warnings(options: ServeOptions) -> list[str]:
    """What is to be said of files that others can read."""
    found = []
    if options.api_keys is not None and options.api_keys.exists():
        from modelctl.serve.access import keys

        found.append(keys.warning(options.api_keys))
    if options.tls_key is not None and options.tls_key.exists() and options.tls_key.stat().st_mode & 0o004:
        found.append(f"{options.tls_key}: other users may read this private key")
    return [one for one in found if one is not None]
