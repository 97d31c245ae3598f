"""The HTTP side: a table of routes, requests led to their handlers, answers and errors.

No framework stands between the server and the model: for a small model, routing and validation by one cost more than
the answer, and so does a coroutine for each request. A handler is a plain function that gives its answer at once, or
None and calls `Request.reply` later, on the event loop. A protocol is a module with `routes(app) -> Iterable[Route]`,
and is listed in `PROTOCOLS`.

Errors are `{"error": "<one line>"}`. What went wrong inside the server is told on stderr, never to a client. Every
answer that a model gave, or would have given, carries `Modelctl-Model: name@sha256:<digest>`.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

import orjson

from modelctl.options import ServeOptions
from modelctl.serve import metrics
from modelctl.serve.heads import CHUNKED, Head
from modelctl.serve.jobs import Done, Job, Outcome, Tensors, Unread
from modelctl.serve.metrics import REQUESTS, Tally
from modelctl.serve.models import Model, Models
from modelctl.serve.refusal import Refused, told
from modelctl.serve.shelf import Shelf
from modelctl.serve.splitting import Comparison, Shadow, Split
from modelctl.serve.tensors import Array, check_agreement

if TYPE_CHECKING:
    from modelctl.serve.visits import Visit, Visits

logger = logging.getLogger("modelctl.serve")

PROTOCOLS = (
    "openinference",
    "repository",
    "predict",
    "tensorflow",
    "operations",
    "provenance",
    "openapi",
    "page.assets",
    "page.told",
)
CALLS = "grpc.services"  # is loaded when first called for
METHOD_PATH = re.compile(r"/\w+(\.\w+)+/\w+")  # of gRPC: /package.Service/Method
JSON = b"application/json"
HELD_BODIES = 8  # bodies in memory may take as much as so many of the largest size


class Answer(NamedTuple):
    """What is sent back: the body, its type, the status, and further headers."""

    body: bytes
    content_type: bytes = JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Request:
    """One request; `model` is the one that answers, as soon as it is known."""

    __slots__ = ("body", "head", "held_bytes", "job", "model", "send", "visit")

    def __init__(self, head: Head, body: bytes, send: "Callable[[Request, Answer], None]") -> None:
        self.head = head
        self.body = body
        self.send = send
        self.model: Model | None = None
        self.job: Job | None = None  # its tensors on their way through the model
        self.held_bytes = 0  # what its body counts against what all bodies may take
        self.visit: Visit | None = None  # where somebody wants to know who asks

    def reply(self, answer: Answer) -> None:
        """Send the answer; once."""
        self.send(self, answer)

    def refused(self, error: Refused) -> Answer:
        """The answer to a request that failed."""
        return Answer(orjson.dumps({"error": error.message}), JSON, error.status, error.headers)


Handler = Callable[[Request], Answer | None]
Outputs = dict[str, Array]


@dataclass(frozen=True)
class Route:
    """What is done at a path, for one method; `model` is the one that answers, if it is settled by the path."""

    method: str
    path: str
    handler: Handler
    model: Model | None = None


class Changes(Protocol):
    """Who has models loaded and unloaded."""

    shelf: Shelf

    def ask(self, kind: str, name: str, done: Callable[[Refused | None], None]) -> None:
        """Have a change made; `done` is called when it is, or can't be."""


class App:
    """What a set of models answers; `ready` is whether it asks for work."""

    def __init__(self, models: Models, options: ServeOptions, changes: Changes | None = None) -> None:
        self.models = models
        self.changes = changes
        self.ready = True
        self._protocols: tuple[str, ...] = PROTOCOLS
        self.visits: Visits | None = None
        self.unrouted = models.board.tally(models.worker, 0)
        self.limit_bytes = int(options.max_body_mb * 1_000_000)
        self.timeout_s = options.timeout_s
        self._held_bytes = 0
        self._options = options
        self._shadows: dict[str, Shadow] = {}
        self._routes: dict[str, dict[str, Route]] = {}
        self.reroute()

    def reroute(self) -> None:
        """Lead requests to the models that there are now."""
        routes: dict[str, dict[str, Route]] = {}
        for name in self._protocols:
            for route in import_module(f"modelctl.serve.{name}").routes(self):
                routes.setdefault(route.path, {})[route.method] = route
        self._routes = routes
        self._shadows = {
            name: Shadow(self.models.get(name, version), self.timeout_s)
            for name, version in self._options.shadowed().items()
            if name in self.models.names() and version in self.models.versions(name)
        }

    @property
    def routes(self) -> Mapping[str, Mapping[str, Route]]:
        """What there is, by path and method."""
        return self._routes

    def shared(self, name: str, handler_of: Callable[[Model], Handler]) -> tuple[Handler, Model | None]:
        """The handler for requests to a name, and the model if it is settled: the last version, or one by its share."""
        shares = self._options.shares().get(name)
        if shares is None:
            model = self.models.get(name)
            return handler_of(model), model
        split = Split(self.models, name, shares)
        handlers = {id(model): handler_of(model) for model in split.models}

        def drawn(request: Request) -> Answer | None:
            request.model = split.draw()
            return handlers[id(request.model)](request)

        return drawn, None

    def handle(self, request: Request) -> None:
        """Answer a request whose body is read, now or when its model has."""
        try:
            head = request.head
            methods = self._routes.get(head.path)
            route = (methods and methods.get(head.method)) or self._unusual(head, methods)
            request.model = route.model
            answer = route.handler(request)
        except Exception as error:  # noqa: BLE001 - a bug is told on stderr, and the server goes on
            answer = self._failure(request, error)
        if answer is not None:
            request.send(request, answer)

    def refuse(self, request: Request, refused: Refused) -> None:
        """Answer a request that goes no further."""
        request.reply(self._failure(request, refused))

    def gone(self, request: Request) -> None:
        """The client of a request has left before it had its answer: it is not computed if it need not be."""
        self._tally(request.model).failed("client_gone")
        if request.job is not None:
            request.job.cancel()
        if request.visit is not None:
            request.visit.gone()
        self.release(request)

    def admit(self, head: Head) -> None:
        """`Refused` unless the body that a head announces will be read: 413 when it is too long, 415 when encoded."""
        if head.headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refused("a body with a Content-Encoding is not read", 415)
        if head.length != CHUNKED and head.length > self.limit_bytes:
            raise self.too_large()

    def too_large(self) -> Refused:
        """The refusal of a body that is too long."""
        return Refused(f"the body is larger than {self.limit_bytes} bytes", 413)

    def hold(self, request: Request, size: int) -> None:
        """Count part of a body that comes in pieces against what all bodies may take together; `Refused` 429."""
        self._held_bytes += size
        request.held_bytes += size
        if self._held_bytes > HELD_BODIES * self.limit_bytes:
            raise Refused("too many large bodies at once", 429, headers=((b"retry-after", b"1"),))

    def release(self, request: Request) -> None:
        """Count a body no longer."""
        self._held_bytes -= request.held_bytes
        request.held_bytes = 0

    def run(
        self,
        model: Model,
        feeds: Tensors | Unread,
        request: Request,
        write: Callable[[Outputs], Answer],
        timeout_s: float | None = None,
    ) -> None:
        """Ask a model, and answer with what `write` makes of its outputs; `Refused` 429, or what it has against them.

        Who waits too long is answered 504, and an error of the model is answered as what it is. `timeout_s` is what
        the client wants to wait, which may be less than the server lets it.
        """
        if request.visit is not None:
            request.visit.asks(model)
        if not isinstance(feeds, Unread) and len(feeds) > 1:
            check_agreement(feeds, model.inputs)
        model.tally.cells[REQUESTS] += 1
        done: Done = partial(self._computed, request, write)
        shadow = self._shadows.get(model.name)
        if shadow is not None and shadow.model is not model and (comparison := shadow.follow(feeds)) is not None:
            done = partial(_both, comparison, done)
        limit_s = self.timeout_s if timeout_s is None else min(timeout_s, self.timeout_s)
        request.job = model.runner.submit(feeds, limit_s, done, self.timeout_s)

    def _computed(self, request: Request, write: Callable[[Outputs], Answer], outcome: Outcome) -> None:
        request.job = None
        if isinstance(outcome, Exception):
            answer = self._failure(request, outcome)
        else:
            try:
                answer = write(outcome)
            except Exception as error:  # noqa: BLE001 - as in `handle`
                answer = self._failure(request, error)
        request.send(request, answer)

    def metrics(self) -> bytes:
        """The text of `/metrics`."""
        models = [(model.labels, self.models.board.total(model.row)) for model in self.models]
        return metrics.exposition(models, self.models.board.total(0), self.ready)

    def _tally(self, model: Model | None) -> Tally:
        return self.unrouted if model is None else model.tally

    def _failure(self, request: Request, error: Exception) -> Answer:
        """The answer to a request that failed, counted; a bug is told on stderr and to no client."""
        if not isinstance(error, Refused):
            logger.error("internal error at %s %s", request.head.method, told(request.head.path), exc_info=error)
            error = Refused("internal error", 500)
        if request.visit is not None:
            error = request.visit.failed(error)
        self._tally(request.model).failed(error.kind)
        return request.refused(error)

    def _unusual(self, head: Head, methods: dict[str, Route] | None) -> Route:
        """The route of a HEAD request, or of the first call; `Refused` 404 or 405 where there is none."""
        if self._protocols is PROTOCOLS and METHOD_PATH.fullmatch(head.path):
            self._protocols = (*PROTOCOLS, CALLS)
            self.reroute()
            methods = self._routes.get(head.path, {})
            if head.method in methods:
                return methods[head.method]
        if head.method == "GRPC":
            raise Refused(f"no method {told(head.path)}; grpc.reflection.v1 tells which there are", 501, "not_found")
        if methods is None:
            raise self._missing(head.path)
        if head.method == "HEAD" and "GET" in methods:
            return methods["GET"]
        if "GRPC" in methods:
            from modelctl.serve.grpc import web

            if head.method == "POST":
                return Route("POST", head.path, partial(web.ask, self))
            methods = {"POST": methods["GRPC"]}
        allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
        raise Refused(f"{head.path} takes {allowed}", 405, headers=((b"allow", allowed.encode()),))

    def _missing(self, path: str) -> Refused:
        """Why there is nothing at a path: the model, its version, or the path itself."""
        parts = path.split("/")
        try:
            if parts[1:3] in (["v2", "models"], ["v1", "models"]) and len(parts) > 3:
                if parts[1] == "v1":
                    parts[-1] = parts[-1].partition(":")[0]
                self.models.get(parts[3], parts[5] if parts[4:5] in (["versions"], ["labels"]) and parts[5:] else None)
            elif parts[:4] == ["", "v2", "repository", "models"] and len(parts) > 4 and self.changes is not None:
                self.changes.shelf.ledger.places(parts[4])
            elif parts[:2] == ["", "predict"] and len(parts) > 2:
                self.models.get(parts[2], parts[4] if parts[3:4] == ["versions"] and parts[4:] else None)
        except Refused as refused:
            return refused
        return Refused(f"nothing at {told(path)}; see /openapi.json", 404)


def _both(comparison: Comparison, done: Done, outcome: Outcome) -> None:
    done(outcome)
    comparison.told(0, outcome)
