"""One request and its answer on a connection of HTTP/2: a body that comes in frames, and what is to be sent in return.

A stream knows what it may still receive and send (flow control, RFC 9113, 5.2); the connection does the sending.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from modelctl.serve.heads import CHUNKED, Head
from modelctl.serve.http import Answer, Request
from modelctl.serve.http2.frames import Code, Reset
from modelctl.serve.refusal import Refused

if TYPE_CHECKING:
    from modelctl.serve.http2.connection import Http2

WINDOW = 1 << 20  # bytes that a client may send on a stream before it is told to go on


class Stream:
    """A request that is answered when all of it has come."""

    __slots__ = (
        "call",
        "connection",
        "credit",
        "ended",
        "head",
        "id",
        "out",
        "over",
        "pieces",
        "receivable",
        "request",
        "size",
        "tail",
        "window",
    )

    def __init__(self, head: Head, call: Any, connection: "Http2", number: int) -> None:
        self.head = head
        self.call = call  # what else a subclass knows of the head
        self.connection = connection
        self.id = number
        self.request: Request | None = None  # being collected or answered
        self.receivable = WINDOW
        self.credit = 0  # received, and not yet given back to the window
        self.window = connection.sender.first_window  # bytes that it may send
        self.size = 0
        self.pieces: list[bytes] = []
        self.ended = False  # the request is all there
        self.over = False  # the answer is on its way, or nobody waits for it
        self.out: deque[bytes | memoryview] | None = None  # of the answer, waiting for leave to be sent
        self.tail: bytes | None = None  # the block of its trailers; b"" if it has none, None as long as more will come

    def begin(self) -> None:
        """Its head is here, and a body will follow."""
        self.request = request = self._request()
        try:
            self.enter(request)
            self.connection.app.admit(self.head)
        except Refused as refused:
            self.connection.app.refuse(request, refused)

    def enter(self, request: Request) -> None:
        """Meet a request, where somebody wants to know who asks; `Refused` when it may not."""
        if self.connection.guest is not None:
            self.connection.guest.enter(request)

    def whole(self, data: bytes) -> None:
        """All of the body, in one piece."""
        self.size = len(data)
        self.complete(data)

    def take(self, data: bytes) -> None:
        """A piece of the body; with `ended`, the last one."""
        self.size += len(data)
        request, app = self.request, self.connection.app
        if self.over or request is None:
            return
        self.pieces.append(data)
        try:
            app.hold(request, len(data))
            if self.size > app.limit_bytes:
                raise app.too_large()
        except Refused as refused:
            self.pieces.clear()
            app.refuse(request, refused)
            return
        if self.ended:
            self.complete(b"".join(self.pieces))
            self.pieces.clear()
        else:
            self.connection.receiver.give_back(self)

    def complete(self, body: bytes) -> None:
        """All of the request is there."""
        if self.over:
            return
        if self.head.length not in (CHUNKED, self.size):
            raise Reset(Code.PROTOCOL_ERROR)
        if self.request is None:
            self.begin()
        if self.request is not None and not self.over:
            self.request.body = body
            self.connection.app.handle(self.request)

    def _request(self) -> Request:
        return Request(self.head, b"", self.send)

    def send(self, request: Request, answer: Answer) -> None:
        """Send the answer, unless nobody waits for it any more."""
        if self.over:
            return
        self.over = True
        self.request = None  # whose way back leads here: together they would live until the collector comes
        connection = self.connection
        if request.held_bytes:
            connection.app.release(request)
        body = answer.body if self.head.method != "HEAD" else b""
        connection.sender.answer(self, connection.answers.block(request, answer), body, b"")

    def lost(self) -> None:
        """Nobody waits for the answer any more: it is not computed if it need not be."""
        if not self.over:
            self.over = True
            if self.request is not None:
                self.connection.app.gone(self.request)
                self.request = None
        self.out = None

    def drained(self) -> None:
        """All that was to be sent so far has been."""

    @property
    def transport(self) -> asyncio.Transport:
        """The transport of its connection."""
        return self.connection.transport

    def owed(self) -> tuple[str, int] | None:
        """What the client has yet to do: send the body."""
        return None if self.over else ("body", 0)

    def give_up(self, _: str) -> None:
        """Answer, as the body has not come for too long."""
        if self.request is not None and not self.over:
            self.connection.app.refuse(self.request, Refused("the body came too slowly", 408))

    def end(self) -> None:
        """The server ends; what was accepted is answered."""
