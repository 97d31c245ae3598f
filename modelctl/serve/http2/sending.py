"""What a connection sends: answers as far as its peer gives leave (flow control, RFC 9113, 5.2), each stream in turn.

An answer that fits into the windows, as nearly all do, is written at once and in one piece. What does not fit waits
with its stream until the peer widens a window.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from modelctl.serve.http2 import frames
from modelctl.serve.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, LARGEST_WINDOW, Broken, Code, Reset

CHUNK_BYTES = 1 << 16  # of one answer, before it is another one's turn

LAST = END_HEADERS | END_STREAM
SMALL = 255  # bytes of a block whose length is one byte

_head = frames.HEAD.pack
_message_head = struct.Struct(">HBBBLBL").pack


class Outlet(Protocol):
    """What sending knows of a stream."""

    id: int
    window: int  # bytes that may be sent on it
    out: deque[bytes | memoryview] | None  # waiting for leave to be sent
    tail: bytes | None  # the block of its trailers; b"" if it has none, None as long as more will come

    def drained(self) -> None:
        """All that was to be sent so far has been."""


class Sender:
    """The sending side of a connection; `done` is told of each stream that has been sent whole."""

    def __init__(self, transport: asyncio.Transport, done: Callable[[int], None]) -> None:
        self._transport = transport
        self._done = done
        self._window = frames.FIRST_WINDOW  # on all streams together
        self.first_window = frames.FIRST_WINDOW  # on a new one
        self.frame_bytes = frames.SMALLEST_FRAME  # of a frame that the peer takes
        self._blocked: dict[int, Outlet] = {}
        self.sent = 0  # bytes of answers that had to wait
        self.deaf = False  # the peer does not read

    @property
    def blocked(self) -> bool:
        """Whether the peer has to give leave before we can go on."""
        return bool(self._blocked)

    @property
    def unsent(self) -> int:
        """Bytes that wait for leave."""
        return sum(sum(map(len, one.out)) for one in self._blocked.values() if one.out)

    def answer(self, stream: Outlet, block: bytes, body: bytes, tail: bytes) -> None:
        """Send a whole answer: the block it begins with, the body, and a block of trailers unless that is empty."""
        number, size, length = stream.id, len(body), len(block)
        if size and size > min(stream.window, self._window, self.frame_bytes):
            self.begin(stream, block)
            stream.tail = tail
            self.push(stream, body)
            return
        self._window -= size
        last = END_HEADERS if size or tail else LAST
        pieces = [_head(length >> 8, length & 0xFF, HEADERS, last, number), block]
        if size:
            pieces += (_head(size >> 8, size & 0xFF, DATA, 0 if tail else END_STREAM, number), body)
        if tail:
            pieces.append(frames.frame(HEADERS, LAST, number, tail))
        self._transport.write(b"".join(pieces))
        self._done(number)

    def message(self, stream: Outlet, block: bytes, message: bytes, tail: bytes) -> None:
        """Send a whole answer that is one message of gRPC, behind its prefix of a flag and its length."""
        number, length = stream.id, len(message)
        size = length + 5
        if size > stream.window or size > self._window or size > self.frame_bytes or len(tail) > SMALL:
            self.answer(stream, block, b"\0%b%b" % (length.to_bytes(4, "big"), message), tail)
            return
        self._window -= size
        start = _head(0, len(block), HEADERS, END_HEADERS, number)
        middle = _message_head(size >> 8, size & 0xFF, DATA, 0, number, 0, length)
        end = _head(0, len(tail), HEADERS, LAST, number)
        self._transport.write(b"".join((start, block, middle, message, end, tail)))
        self._done(number)

    def begin(self, stream: Outlet, block: bytes) -> None:
        """Send what an answer begins with; `push` and `finish` send the rest."""
        stream.out = deque()
        self._transport.write(frames.frame(HEADERS, END_HEADERS, stream.id, block))

    def push(self, stream: Outlet, body: bytes) -> None:
        """Send a further piece of an answer."""
        if stream.out is None:
            return
        size = len(body)
        if 0 < size <= min(stream.window, self._window, self.frame_bytes) and not stream.out and stream.tail is None:
            stream.window -= size
            self._window -= size
            self._transport.write(_head(size >> 8, size & 0xFF, DATA, 0, stream.id) + body)
            return
        if body:
            stream.out.append(body)
        self._blocked[stream.id] = stream
        self.pump()

    def finish(self, stream: Outlet, tail: bytes, last: bytes = b"") -> None:
        """End an answer with a `last` piece of it, or with trailers, once all of it is sent."""
        stream.tail = tail
        self.push(stream, last)

    def drop(self, number: int) -> None:
        """Send no more on a stream."""
        self._blocked.pop(number, None)

    def widen(self, stream: Outlet | None, size: int) -> None:
        """The peer gives leave for further bytes: on a stream, or on all together."""
        before = self._window if stream is None else stream.window
        if not size or before + size > LARGEST_WINDOW:
            code = Code.FLOW_CONTROL_ERROR if size else Code.PROTOCOL_ERROR
            raise Broken(code, "a window update out of bounds") if stream is None else Reset(code)
        if stream is None:
            self._window += size
        else:
            stream.window += size
        if self._blocked:
            self.pump()

    def pump(self) -> None:
        """Send what there is leave for, each stream in turn."""
        turn = True
        while turn and self._blocked and not self.deaf:
            turn = False
            for number, stream in list(self._blocked.items()):
                if self._some(stream):
                    turn = True
                if not stream.out:
                    self._blocked.pop(number, None)
                    if stream.tail is not None:
                        self._finished(stream, stream.tail)
                    else:
                        stream.drained()

    def _some(self, stream: Outlet) -> bool:
        """Send some of a stream; whether there was leave for any."""
        out = stream.out
        if not out:
            return False
        leave = min(stream.window, self._window, CHUNK_BYTES)
        if leave <= 0:
            return False
        pieces: list[bytes | memoryview] = []
        while out and leave > 0:
            first = out[0]
            size = min(len(first), leave, self.frame_bytes)
            if size == len(first):
                out.popleft()
            else:
                out[0] = memoryview(first)[size:]
            ends = END_STREAM if not out and stream.tail == b"" else 0
            pieces += (_head(size >> 8, size & 0xFF, DATA, ends, stream.id), first[:size])
            leave -= size
            stream.window -= size
            self._window -= size
            self.sent += size
        self._transport.write(b"".join(pieces))
        return True

    def _finished(self, stream: Outlet, tail: bytes) -> None:
        stream.out = None
        if tail:
            self._transport.write(frames.frame(HEADERS, LAST, stream.id, tail))
        self._done(stream.id)
