"""The HTTP side: an ASGI application with a table of routes, bodies read within limits, answers and errors written.

No framework stands between the server and the model: for a small model, routing and validation by one cost more than
the answer. A protocol is a module with `routes(app) -> Iterable[Route]`, and is listed in `PROTOCOLS`.

Errors are `{"error": "<one line>"}`. What went wrong inside the server is told on stderr, never to a client. Every
answer that a model gave, or would have given, carries `Modelctl-Model: name@sha256:<digest>`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import orjson

from modelctl.options import ServeOptions
from modelctl.serve import metrics
from modelctl.serve.batching import Array, Job, Tensors, late
from modelctl.serve.metrics import Tally
from modelctl.serve.models import Model, Models
from modelctl.serve.refusal import Refused, told
from modelctl.serve.tensors import check_agreement

logger = logging.getLogger("modelctl.serve")

PROTOCOLS = ("openinference", "predict", "operations")
JSON = b"application/json"
HELD_BODIES = 8  # bodies in memory may take as much as so many of the largest size

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Mapping[bytes, bytes]


class Answer(NamedTuple):
    """What is sent back: the body, its type, the status, and further headers."""

    body: bytes
    content_type: bytes = JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class Request:
    """One request; `model` is the one that answers, as soon as it is known, and `body` what has been read of it."""

    headers: Headers
    query: bytes
    receive: Receive
    model: Model | None
    body: bytes = b""


Handler = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """What is done at a path, for one method; `model` is the one that answers, if it is settled by the path."""

    method: str
    path: str
    handler: Handler
    model: Model | None = None


class ClientGone(Exception):  # noqa: N818 - nothing failed: nobody is there to be answered
    """The client closed the connection before it had its answer."""


class App:
    """The ASGI application over a set of models; `ready` is whether it asks for work."""

    def __init__(self, models: Models, options: ServeOptions) -> None:
        self.models = models
        self.ready = True
        self.unrouted = Tally()
        self._limit_bytes = int(options.max_body_mb * 1_000_000)
        self._timeout_s = options.timeout_s
        self._held_bytes = 0
        self._routes: dict[str, dict[str, Route]] = {}
        for name in PROTOCOLS:
            for route in import_module(f"modelctl.serve.{name}").routes(self):
                self._routes.setdefault(route.path, {})[route.method] = route

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(dict(scope["headers"]), scope["query_string"], receive, None)
        try:
            route = self._routed(scope)
            request.model = route.model
            if route.method == "POST":
                request.body = await self._body(request.headers, receive)
            answer = await route.handler(request)
        except Refused as refused:
            answer = self._refusal(refused, request.model)
        except ClientGone:
            self._tally(request.model).failed("client_gone")
            return
        except Exception:  # a bug is told on stderr, and the server goes on
            logger.exception("internal error at %s %s", scope["method"], told(scope["path"]))
            answer = self._refusal(Refused("internal error", 500), request.model)
        finally:
            self._held_bytes -= len(request.body)
        await self._send(answer, request.model, send)

    def _tally(self, model: Model | None) -> Tally:
        return self.unrouted if model is None else model.tally

    async def _send(self, answer: Answer, model: Model | None, send: Send) -> None:
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            *answer.headers,
        ]
        if model is not None:
            headers.append(model.header)
        if not self.ready:  # the server is about to end: let this connection be the first to
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _routed(self, scope: MutableMapping[str, Any]) -> Route:
        methods = self._routes.get(scope["path"])
        if methods is None:
            raise self._missing(scope["path"])
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            raise Refused(f"{scope['path']} takes {allowed}", 405, headers=((b"allow", allowed.encode()),))
        return route

    def _missing(self, path: str) -> Refused:
        """Why there is nothing at a path: the model, its version, or the path itself."""
        parts = path.split("/")
        try:
            if parts[:3] == ["", "v2", "models"] and len(parts) > 3:
                self.models.get(parts[3], parts[5] if parts[4:5] == ["versions"] and len(parts) > 5 else None)
            elif parts[:2] == ["", "predict"] and len(parts) == 3:
                self.models.get(parts[2])
        except Refused as refused:
            return refused
        return Refused(f"nothing at {told(path)}; see /v2, /v2/models/NAME, /predict, /metrics", 404)

    def _refusal(self, refused: Refused, model: Model | None) -> Answer:
        self._tally(model).failed(refused.kind)
        return Answer(orjson.dumps({"error": refused.message}), JSON, refused.status, refused.headers)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The body of a request; 413 when it is too long, 408 when it comes too slowly, 415 when it is encoded.

        It counts as held from here on, until its request has been answered.
        """
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refused("a body with a Content-Encoding is not read", 415)
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._limit_bytes:
            raise self._too_large()
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if len(body) > self._limit_bytes:
                raise self._too_large()
            self._held_bytes += len(body)
            return body
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._long_body(body, receive)
        except TimeoutError:
            close = ((b"connection", b"close"),)
            raise Refused("the body came too slowly", 408, headers=close) from None

    async def _long_body(self, first: bytes, receive: Receive) -> bytes:
        """A body that comes in pieces, held against what all bodies may take together."""
        pieces = [first]
        size = len(first)
        self._held_bytes += size
        try:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece: bytes = message.get("body", b"")
                more = bool(message.get("more_body"))
                pieces.append(piece)
                size += len(piece)
                self._held_bytes += len(piece)
                if size > self._limit_bytes:
                    raise self._too_large()
                if self._held_bytes > HELD_BODIES * self._limit_bytes:
                    raise Refused("too many large bodies at once", 429, headers=((b"retry-after", b"1"),))
            return b"".join(pieces)
        except BaseException:
            self._held_bytes -= size
            raise

    def _too_large(self) -> Refused:
        # The connection stays open, and the rest of the body is thrown away as it comes: a client that is still sending
        # would see a closed connection, and not why.
        return Refused(f"the body is larger than {self._limit_bytes} bytes", 413)

    async def run(self, model: Model, feeds: Tensors, request: Request) -> dict[str, Array]:
        """A model's outputs for its inputs; `Refused` 429, 504 or what the model has against them."""
        if len(feeds) > 1:
            check_agreement(feeds, model.inputs)
        model.tally.requests += 1
        job = model.runner.submit(feeds, self._timeout_s)
        if model.runner.inline(job.elements):
            return await job.answer
        return await self._waited(job, request.receive)

    async def _waited(self, job: Job, receive: Receive) -> dict[str, Array]:
        """The answer of a model that has a thread; a client that goes away takes its job out of the queue."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((job.answer, gone), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if job.answer.done():
                return job.answer.result()
            raise ClientGone if gone.done() else late()
        finally:
            job.answer.cancel()
            gone.cancel()

    def metrics(self) -> bytes:
        """The text of `/metrics`."""
        return metrics.exposition([(model.labels, model.tally) for model in self.models], self.unrouted, self.ready)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
