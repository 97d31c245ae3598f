"""One client's connection: bytes in, requests to the application, answers out in the order of the requests.

A request that lies in one piece in what was received, as nearly all do, is cut out of it and handed on. Any other is
collected: heads up to 64 KiB, bodies up to the limit, by Content-Length or in chunks. While a request is being answered
nothing more is taken from its client; while the client does not read, none is answered. Of what a client owes (the
rest of a head or a body, reading an answer) a sweep over all connections keeps the time, so that no request needs a
timer.
"""

import asyncio
from typing import cast

from modelctl.serve.chunks import Chunks
from modelctl.serve.heads import CHUNKED, HEAD_LIMIT_BYTES, Head, not_http
from modelctl.serve.http import Answer, Request
from modelctl.serve.refusal import Refused
from modelctl.serve.wire import Wire, reset

AHEAD_BYTES = 256 << 10  # of further requests that a client may have sent before its answer is out
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PREFACE_HEAD = b"PRI * HTTP/2.0\r\n\r\n"  # begins HTTP/2 with prior knowledge (RFC 9113, 3.4)
NO_HEAD = Head("GET", "/", b"", {}, 0, False, False)  # stands for one that could not be read


class _Body:
    """A body that comes in pieces; once `refused` it is read over, so that its client gets to read the answer."""

    def __init__(self, head: Head) -> None:
        self.left = head.length
        self.chunks = Chunks() if head.length == CHUNKED else None
        self.pieces: list[bytes] = []
        self.size = 0
        self.refused = False

    def take(self, data: bytes, place: int) -> tuple[list[bytes], int]:
        """Its pieces in `data` from `place` on, and the place up to which it is understood."""
        if self.chunks is not None:
            return self.chunks.take(data, place)
        piece = data[place : place + self.left]
        self.left -= len(piece)
        return [piece], place + len(piece)

    @property
    def ended(self) -> bool:
        """Whether all of it was taken."""
        return not self.left if self.chunks is None else self.chunks.ended


class Connection(asyncio.Protocol):
    """A connection, as the event loop talks to it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._app = wire.app
        self._buffer = b""  # received, and not yet understood
        self._request: Request | None = None  # the one whose body is read, or that is being answered
        self._body: _Body | None = None
        self._busy = False  # in `_advance`, which goes on by itself after an answer
        self._deaf = False  # the client does not read
        self._held = False  # we read no further
        self._ends = False  # after the answer that is due
        self._closed = False
        self._served = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self.transport = cast(asyncio.Transport, transport)
        self._wire.open.add(self)
        visits = self._app.visits
        self._guest = None if visits is None else visits.guest(transport)

    def connection_lost(self, _: Exception | None) -> None:
        """The client has left, or we have closed."""
        self._wire.open.discard(self)
        if self._request is not None:
            self._app.gone(self._request)
            self._request = None

    def eof_received(self) -> bool:
        """The client sends no more; it has left, unless its answer is due within this turn of the loop."""
        request = self._request
        self._ends = True
        if self.transport.get_extra_info("sslcontext") is not None:
            return False  # TLS has no half of a connection
        return request is not None and request.job is not None and request.job.inline

    def pause_writing(self) -> None:
        """The client does not read what it is sent."""
        self._deaf = True

    def resume_writing(self) -> None:
        """The client reads on."""
        self._deaf = False
        if self._buffer and not self._busy:
            self._advance(b"")

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._deaf or (self._request is not None and self._body is None):
            self._buffer += data
            if len(self._buffer) > AHEAD_BYTES and not self._held:
                self._held = True
                self.transport.pause_reading()
        else:
            self._advance(data)

    def owed(self) -> tuple[str, int] | None:
        """What the client has yet to do before we can go on; None: it is our turn."""
        if unsent := self.transport.get_write_buffer_size():
            return "reading", unsent
        if self._body is not None:
            return "body", self._served
        if self._request is not None:
            return None
        return ("head" if self._buffer or not self._served else "idle"), self._served

    def give_up(self, owed: str) -> None:
        """Close, as the client has owed this for too long."""
        if owed == "body" and self._request is not None:
            self._ends = True
            self._app.refuse(self._request, Refused("the body came too slowly", 408))
        else:
            self._closed = True
            reset(self.transport)

    def end(self) -> None:
        """Close once what was accepted is answered."""
        self._ends = True
        if self._request is None and not self._buffer:
            self._close()

    def _close(self) -> None:
        self._closed = True
        self.transport.close()

    def _advance(self, data: bytes) -> None:
        """Take one request after the other out of what was received, until more has to come or one has to wait."""
        if self._buffer:
            data = self._buffer + data
        self._busy = True
        place, size = 0, len(data)
        try:
            while place < size and not self._closed and not self._deaf:
                if self._body is not None:
                    after = self._collect(self._body, data, place)
                elif self._request is None:
                    after = self._begin(data, place)
                else:
                    break
                if after == place:
                    break
                place = after
        except Refused as refused:
            if not self._served and self._request is None and data.startswith(PREFACE_HEAD):
                self._speak_http2(data)
                return
            self._ends, self._body, place = True, None, size
            request = self._request = self._request or Request(NO_HEAD, b"", self._send)
            if self._guest is not None and request.visit is None:
                self._guest.note(request)
            self._app.refuse(request, refused)
        self._busy = False
        self._buffer = data[place:] if place < size else b""
        if self._held and not self._closed and len(self._buffer) <= AHEAD_BYTES:
            self._held = False
            self.transport.resume_reading()

    def hand_over(self, other: asyncio.Protocol) -> Wire:
        """Leave the connection to another protocol from now on; what it shares with the others."""
        self._wire.open.discard(self)
        self.transport.set_protocol(other)
        return self._wire

    def _speak_http2(self, data: bytes) -> None:
        """Leave the connection to HTTP/2: its preface was taken for a head, which can't be read."""
        from modelctl.serve.http2.connection import Http2

        other = Http2(self._wire)
        self.hand_over(other)
        other.connection_made(self.transport)
        other.data_received(data)

    def _begin(self, data: bytes, place: int) -> int:
        """The request that begins at `place`; the place behind it, or where its body goes on; `place` if none does."""
        end = data.find(b"\r\n\r\n", place, place + HEAD_LIMIT_BYTES) + 4
        if end == 3:
            return self._no_head(data, place)
        if data.startswith(b"\r\n", place):  # an empty line before a request is read over (RFC 9112, 2.2)
            return place + 2
        head = self._wire.heads.read(data[place:end])
        whole = head.length != CHUNKED and end + head.length <= len(data)
        after = end + head.length if whole else end
        request = self._request = Request(head, data[end:after], self._send)
        if not whole:
            self._body = _Body(head)
        try:
            if self._guest is not None and self._guest.enter(request):
                return after
            if head.length:
                self._app.admit(head)
        except Refused as refused:
            if self._body is not None:
                self._body.refused = True
            self._app.refuse(request, refused)
            return after
        if whole:
            self._app.handle(request)
        elif head.expects and end == len(data):
            self.transport.write(CONTINUE)
        return after

    def _no_head(self, data: bytes, place: int) -> int:
        """What begins at `place` is no head yet; `Refused` when it can't become one, or grows too long."""
        if data.startswith(b"\r\n", place):
            return place + 2
        if len(data) - place >= HEAD_LIMIT_BYTES:
            raise Refused("the headers are too long", 431)
        if not (data[place : place + 1].isalpha() or data[place:] == b"\r") or b"\n\n" in data[place:]:
            raise not_http("malformed")
        return place

    def _collect(self, body: _Body, data: bytes, place: int) -> int:
        """Add to a body under way; the place up to which `data` is understood."""
        pieces, place = body.take(data, place)
        request = self._request
        if request is not None and not body.refused:
            try:
                for piece in pieces:
                    body.size += len(piece)
                    body.pieces.append(piece)
                    self._app.hold(request, len(piece))
                if body.size > self._app.limit_bytes:
                    raise self._app.too_large()
            except Refused as refused:
                body.refused = True
                body.pieces.clear()
                self._app.refuse(request, refused)
        if body.ended:
            self._body = None
            if request is not None and not body.refused:
                request.body = b"".join(body.pieces)
                self._app.handle(request)
        return place

    def _send(self, request: Request, answer: Answer) -> None:
        if request is not self._request:
            return  # its client has left
        closes = self._ends or not request.head.keep_alive or not self._app.ready
        start = self._wire.start(request, answer, closes)
        body = answer.body if request.head.method != "HEAD" else b""
        self.transport.write(b"%b%d\r\n\r\n%b" % (start, len(answer.body), body))
        self._request = None
        self._served += 1
        if request.held_bytes:
            self._app.release(request)
        if closes:
            self._close()
        elif self._buffer and not self._busy:
            self._advance(b"")
