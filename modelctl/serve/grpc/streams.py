"""Calls on a connection of HTTP/2: one message for another, or many for many."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from modelctl.serve.grpc.calls import (
    CONTENT_TYPE,
    METHOD,
    PREFIX_BYTES,
    STREAMED,
    WEB,
    WEB_TEXT,
    Call,
    CallRequest,
    call_of,
    framed,
    kind_of,
    only_message,
    trailers_frame,
    unpacked,
)
from modelctl.serve.heads import Head
from modelctl.serve.http import Answer, Request
from modelctl.serve.http2.blocks import fields_block, status_block
from modelctl.serve.http2.frames import Code, Reset
from modelctl.serve.http2.streams import Stream
from modelctl.serve.jobs import late
from modelctl.serve.models import Model
from modelctl.serve.refusal import Refused

if TYPE_CHECKING:
    from modelctl.serve.http2.connection import Http2

OPENING = status_block(200, (b"content-type", CONTENT_TYPE))
WELL = (b"grpc-status", b"0")
REMEMBERED = 1024

_WELL = fields_block(WELL)
_tails: dict[str, bytes] = {}


def stream_of(head: Head) -> "Callable[[Http2, int], Stream]":
    """What makes the stream of a request with this head."""
    if head.method == METHOD:
        raise Reset(Code.PROTOCOL_ERROR)  # our own word for calls
    kind = kind_of(head)
    web = kind.startswith(WEB)
    if head.method != "POST" or not kind.startswith(CONTENT_TYPE) or (web and not _streams(head, kind)):
        return partial(Stray if head.path in STREAMED else Stream, head, None)
    head = head._replace(method=METHOD)
    if web:
        return partial(WebStream, head, call_of(head))
    return partial(MessageStream if head.path in STREAMED else CallStream, head, call_of(head))


def _streams(head: Head, kind: bytes) -> bool:
    """Whether a call of gRPC-Web is one whose messages come one after the other, which HTTP/2 can do for it, too."""
    return head.path in STREAMED and not kind.startswith(WEB_TEXT)


def tail_of(model: Model | None, more: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """The block of trailers of a call that went well."""
    if more:
        return fields_block(WELL, *more, *([model.header] if model is not None else []))
    if model is None:
        return _WELL
    found = _tails.get(model.told)
    if found is None:
        if len(_tails) >= REMEMBERED:
            _tails.clear()
        found = _tails[model.told] = fields_block(WELL, model.header)
    return found


class Stray(Stream):
    """A request that is no call, for what only calls can do; its client may wait for an answer before it goes on."""

    __slots__ = ()

    def begin(self) -> None:
        """Answer at once."""
        super().begin()
        if self.request is not None and not self.over:
            self.connection.app.handle(self.request)


class CallStream(Stream):
    """A call of one message, answered by one."""

    __slots__ = ()

    def begin(self) -> None:
        """Its head is here, and a message will follow."""
        call: Call = self.call
        self.request = request = CallRequest(self.head, b"", self.send)
        if call.timeout_s is not None:
            request.deadline = call.deadline()
        if call.refused is not None or self.connection.guest is not None:
            try:
                self.enter(request)
                if call.refused is not None:
                    raise call.refused
            except Refused as refused:
                self.connection.app.refuse(request, refused)

    def complete(self, body: bytes) -> None:
        """The message is there."""
        if self.request is None and not self.over:
            self.begin()
        if self.over:
            return
        app, request = self.connection.app, self.request
        assert request is not None
        if body[:1] == b"\0" and int.from_bytes(body[1:PREFIX_BYTES], "big") == len(body) - PREFIX_BYTES:
            request.body = body[PREFIX_BYTES:]
        else:
            try:
                request.body = only_message(body, self.call, app.limit_bytes)
            except Refused as refused:
                app.refuse(request, refused)
                return
        app.handle(request)

    def send(self, request: Request, answer: Answer) -> None:
        """Send the answer, unless nobody waits for it any more."""
        if self.over:
            return
        self.over = True
        self.request = None
        if request.held_bytes:
            self.connection.app.release(request)
        if answer.status == 200:
            self.connection.sender.message(self, OPENING, answer.body, tail_of(request.model, answer.headers))
        else:
            self.connection.sender.answer(self, _failed(request, answer), b"", b"")


def _failed(request: Request, answer: Answer) -> bytes:
    """The one block that a call is answered with which has failed before it had an answer."""
    model = request.model
    fields = answer.headers if model is None else (*answer.headers, model.header)
    return status_block(200, (b"content-type", CONTENT_TYPE), *fields)


class MessageStream(Stream):
    """A call in which messages come one after the other, either way."""

    __slots__ = ("begun", "delivering", "inbox", "needed", "timer")

    opening = OPENING
    request: CallRequest | None

    def begin(self) -> None:
        """Its head is here; messages will follow."""
        self.inbox: deque[bytes] = deque()
        self.needed = PREFIX_BYTES
        self.begun = self.delivering = False
        self.timer: asyncio.TimerHandle | None = None
        self.request = request = CallRequest(self.head, b"", self.send)
        request.deadline, request.line = self.call.deadline(), self
        app = self.connection.app
        try:
            self.enter(request)
            if self.call.refused is not None:
                raise self.call.refused
        except Refused as refused:
            app.refuse(request, refused)
            return
        app.handle(request)
        if self.call.timeout_s is not None and not self.over:
            self.timer = asyncio.get_running_loop().call_later(self.call.timeout_s, self._late)

    def whole(self, data: bytes) -> None:
        """All that there is left of messages."""
        self.take(data)

    def take(self, data: bytes) -> None:
        """Some bytes of messages; with `ended`, the last ones."""
        if self.request is None and not self.over:
            self.begin()
        request, app = self.request, self.connection.app
        if self.over or request is None:
            return
        try:
            app.hold(request, len(data))
            self._cut(data)
            if self.ended and self.pieces:
                raise Refused("the last message is cut off")
        except Refused as refused:
            app.refuse(request, refused)
            return
        self.resume()

    def _cut(self, data: bytes) -> None:
        """Add to the messages that have come."""
        if data:
            self.pieces.append(data)
            self.size += len(data)
        while self.size >= self.needed:
            data = b"".join(self.pieces)
            length = int.from_bytes(data[1:PREFIX_BYTES], "big")
            limit = self.connection.app.limit_bytes
            if length > limit:
                raise self.connection.app.too_large()
            end = PREFIX_BYTES + length
            if len(data) >= end:
                self.inbox.append(unpacked(data[0], data[PREFIX_BYTES:end], self.call, limit))
                data, end = data[end:], PREFIX_BYTES
            self.pieces, self.size, self.needed = [data] if data else [], len(data), end

    def resume(self) -> None:
        """Hand on what has come, as long as it is wanted."""
        request = self.request
        if self.over or self.delivering or request is None or request.talk is None:
            return
        self.delivering = True
        while self.inbox and not self.out and not request.talk.full and not self.over:
            request.talk.heard(self.inbox.popleft())
        self.delivering = False
        if not self.inbox and not self.over:
            if not self.pieces:
                self.connection.app.release(request)
            if self.ended:
                request.talk.ended()
            else:
                self.connection.receiver.give_back(self)

    def drained(self) -> None:
        """All that was to be sent so far has been."""
        asyncio.get_running_loop().call_soon(self.resume)

    def push(self, message: bytes) -> None:
        """Send a message."""
        if not self.over:
            if not self.begun:
                self.begun = True
                self.connection.sender.begin(self, self.opening)
            self.connection.sender.push(self, framed(message))

    def close(self) -> None:
        """End the call; all was well."""
        if self.request is not None:
            self.send(self.request, Answer(b"", CONTENT_TYPE))

    def send(self, request: Request, answer: Answer) -> None:
        """End the call, well or not, unless it has ended."""
        if self.over:
            return
        self.over = True
        self._forget()
        model = request.model
        more = (model.header,) if model is not None else ()
        if answer.status == 200:
            self.close_with((WELL, *answer.headers, *more))
        else:
            self.close_with((*answer.headers, *more))

    def close_with(self, trailers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Send what the call ends with."""
        sender = self.connection.sender
        if not self.begun:
            block = status_block(200, (b"content-type", CONTENT_TYPE), *trailers)
            sender.answer(self, block, b"", b"")
        else:
            sender.finish(self, fields_block(*trailers))

    def _forget(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.inbox.clear()
        request, self.request = self.request, None
        if request is not None:
            self.connection.app.release(request)
            talk, request.talk, request.line = request.talk, None, None
            if talk is not None:
                talk.lost()

    def _late(self) -> None:
        if self.request is not None and not self.over:
            self.connection.app.refuse(self.request, late())

    def lost(self) -> None:
        """The client has ended the call."""
        if not self.over:
            self.over = True
            self._forget()
        self.out = None

    def owed(self) -> tuple[str, int] | None:
        """What the client has yet to do: send the rest of a message."""
        return ("body", self.needed) if self.pieces and not self.over else None

    def end(self) -> None:
        """The server ends."""
        if self.request is not None and self.request.talk is not None and not self.over:
            self.request.talk.wind_down()


class WebStream(MessageStream):
    """Such a call of gRPC-Web: its trailers are the last frame of its body."""

    __slots__ = ()

    opening = status_block(200, (b"content-type", WEB + b"+proto"))

    def close_with(self, trailers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Send what the call ends with."""
        sender = self.connection.sender
        if not self.begun:
            sender.begin(self, self.opening)
        sender.finish(self, b"", trailers_frame(trailers))
