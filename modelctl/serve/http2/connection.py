"""A connection that speaks HTTP/2 (RFC 9113): frames in, streams led to the application, answers out as windows allow.

What a peer may ask of us is bounded: streams at once, bytes of headers, answers that it does not let us send, and what
`control` counts. Who asks more is told so by GOAWAY. A header block and the first bytes of a frame are held until the
rest has come, bodies as HTTP/1.1's are.
"""

import asyncio
from typing import cast

from modelctl.serve.connections import AHEAD_BYTES, Wire, reset
from modelctl.serve.grpc.streams import stream_of
from modelctl.serve.http2 import frames
from modelctl.serve.http2.answers import Answers
from modelctl.serve.http2.blocks import BLOCK_LIMIT_BYTES, LIST_LIMIT_BYTES, Blocks, check_fields
from modelctl.serve.http2.control import Control
from modelctl.serve.http2.frames import LARGEST_WINDOW, Broken, Code, Reset
from modelctl.serve.http2.sending import Sender
from modelctl.serve.http2.streams import WINDOW, Stream

STREAMS = 256  # at once
FRAME_BYTES = 1 << 16  # of a frame that we take
CONNECTION_WINDOW = 1 << 24  # bytes that may be under way over all streams
LINGER_TURNS = 10  # calls of `end` that a peer has to close, once all is said
CONTINUATIONS = 16  # of one header block
UNSENT_BYTES = 1 << 26  # of answers that wait for the peer's leave, before it is refused further ones
_SETTINGS = {
    frames.MAX_CONCURRENT_STREAMS: STREAMS,
    frames.INITIAL_WINDOW_SIZE: WINDOW,
    frames.MAX_FRAME_SIZE: FRAME_BYTES,
    frames.MAX_HEADER_LIST_SIZE: LIST_LIMIT_BYTES,
}
_GREETING = frames.settings(_SETTINGS) + frames.window_update(0, CONNECTION_WINDOW - frames.FIRST_WINDOW)


class Http2(asyncio.Protocol):
    """A connection, as the event loop talks to it."""

    def __init__(self, wire: Wire) -> None:
        self.app = wire.app
        self.answers = Answers(wire)
        self._wire = wire
        self._blocks = Blocks(stream_of)
        self._control = Control(self)
        self._buffer = b""  # received, and not yet understood
        self._greeted = self._settled = False  # the preface is there; the settings behind it are
        self._block: tuple[int, int, list[bytes]] | None = None  # a header block that goes on: stream, flags, pieces
        self.streams: dict[int, Stream] = {}
        self.last = 0  # the largest stream that the peer has begun
        self._receivable = CONNECTION_WINDOW
        self._heard = 0  # how often
        self._held = False  # we read no further
        self._pinged = -1  # what was heard when it was asked whether the peer is there
        self._closed = False
        self._silent = False  # the peer sends no more
        self._lingers = 0  # calls of `end` since we send no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer is there."""
        self.transport = cast(asyncio.Transport, transport)
        self.sender = Sender(self.transport, self.done)
        visits = self.app.visits
        self.guest = None if visits is None else visits.guest(transport)
        self._wire.open.add(self)
        self.transport.write(_GREETING)

    def connection_lost(self, _: Exception | None) -> None:
        """The peer has left, or we have closed."""
        self._closed = True
        self._wire.open.discard(self)
        self._lose_all()

    def eof_received(self) -> bool:
        """The peer sends no more; it has left, unless an answer is due within this turn of the loop."""
        self._control.final = self._silent = True
        if self.transport.get_extra_info("sslcontext") is not None:
            return False  # TLS has no half of a connection
        requests = [one.request for one in self.streams.values()]
        return not self._closed and any(one is not None and one.job is not None and one.job.inline for one in requests)

    def pause_writing(self) -> None:
        """The peer does not read what it is sent."""
        self.sender.deaf = True

    def resume_writing(self) -> None:
        """The peer reads on."""
        self.sender.deaf = False
        self.sender.pump()
        if self._buffer:
            self._advance(b"")

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer."""
        self._heard += 1
        if self.sender.deaf and not self._closed:
            self._buffer += data
            if len(self._buffer) > AHEAD_BYTES and not self._held:
                self._held = True
                self.transport.pause_reading()
        else:
            self._advance(data)

    def _advance(self, data: bytes) -> None:
        """Take one frame after the other out of what was received."""
        if self._buffer:
            data = self._buffer + data
        place, size = 0, len(data)
        try:
            if not self._greeted:
                place = self._greet(data)
            while size - place >= 9 and self._greeted and not self.sender.deaf and not self._closed:
                high, low, kind, flags, number = frames.head_at(data, place)
                begins = place + 9
                ends = begins + (high << 8 | low)
                if ends - begins > FRAME_BYTES:
                    raise Broken(Code.FRAME_SIZE_ERROR, "a frame is too long")
                if ends > size:
                    break
                place = ends
                number &= LARGEST_WINDOW  # its first bit means nothing
                try:
                    if not self._settled or self._block is not None:
                        self._expected(kind, number)
                    if kind == frames.HEADERS and flags == frames.END_HEADERS:
                        place = self._request(number, data, begins, ends)
                    elif kind == frames.DATA:
                        self._data(flags, number, data[begins:ends])
                    elif kind == frames.HEADERS:
                        self._headers(flags, number, data[begins:ends])
                    elif kind == frames.CONTINUATION:
                        self._continue(flags, data[begins:ends])
                    else:
                        self._control.take(kind, flags, number, data[begins:ends])
                except Reset as reset:
                    self._reset(number, reset.code)
        except Broken as broken:
            self._break(broken)
        self._buffer = data[place:] if place < size and not self._closed else b""
        if self._held and not self._closed and len(self._buffer) <= AHEAD_BYTES:
            self._held = False
            self.transport.resume_reading()

    def _request(self, number: int, data: bytes, begins: int, ends: int) -> int:
        """A request begins; the place behind it, if all of its body is in the next frame, as nearly always it is."""
        if number > self.last and len(data) - ends >= frames.HEAD_BYTES:
            high, low, kind, flags, other = frames.head_at(data, ends)
            place = ends + frames.HEAD_BYTES
            size: int = high << 8 | low
            if kind == frames.DATA and flags == frames.END_STREAM and other == number and size <= len(data) - place:
                if size > FRAME_BYTES:
                    raise Broken(Code.FRAME_SIZE_ERROR, "a frame is too long")
                self._receivable -= size
                if self._receivable < CONNECTION_WINDOW >> 1:
                    self._give_back_all()
                self._begin(flags, number, data[begins:ends], data[place : place + size])
                return place + size
        self._begin(frames.END_HEADERS, number, data[begins:ends])
        return ends

    def _greet(self, data: bytes) -> int:
        if not data.startswith(frames.PREFACE[: len(data)]):
            raise Broken(Code.PROTOCOL_ERROR, "this is not how HTTP/2 begins")
        self._greeted = len(data) >= len(frames.PREFACE)
        return len(frames.PREFACE) if self._greeted else 0

    def _expected(self, kind: int, number: int) -> None:
        """The first frame is one of settings, and nothing comes within a header block."""
        if not self._settled:
            self._settled = True
            if kind != frames.SETTINGS:
                raise Broken(Code.PROTOCOL_ERROR, "settings do not come first")
        elif self._block is not None and (kind != frames.CONTINUATION or number != self._block[0]):
            raise Broken(Code.PROTOCOL_ERROR, "a header block does not go on")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receivable -= size
        if self._receivable < CONNECTION_WINDOW >> 1:
            self._give_back_all()
        stream = self.streams.get(number)
        if stream is None:
            self.gone_by(number)
        elif stream.ended:
            raise Reset(Code.STREAM_CLOSED)
        elif flags == frames.END_STREAM and not stream.size and size <= stream.receivable:
            stream.ended = True
            self._wire.open.discard(stream)
            stream.whole(payload)
        else:
            self._piece(stream, flags, payload)

    def _give_back_all(self) -> None:
        """Give leave for as much as was taken in on all streams."""
        if self._receivable < 0:
            raise Broken(Code.FLOW_CONTROL_ERROR, "more data than there is leave for")
        self.transport.write(frames.window_update(0, CONNECTION_WINDOW - self._receivable))
        self._receivable = CONNECTION_WINDOW

    def _piece(self, stream: Stream, flags: int, payload: bytes) -> None:
        """Some of a body."""
        size = len(payload)
        stream.receivable -= size
        stream.credit += size
        if stream.receivable < 0:
            raise Reset(Code.FLOW_CONTROL_ERROR)
        if flags & frames.PADDED:
            payload = frames.unpadded(flags, payload)
        if flags & frames.END_STREAM:
            self._ended(stream)
        elif not payload:
            self._control.count_idle()
        stream.take(payload)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & (frames.PADDED | frames.WITH_PRIORITY):
            payload = frames.unpadded(flags, payload)
            if flags & frames.WITH_PRIORITY:
                if len(payload) < 5:
                    raise Broken(Code.FRAME_SIZE_ERROR, "a priority is cut off")
                payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._begin(flags, number, payload)
        else:
            self._block = number, flags, [payload]

    def _begin(self, flags: int, number: int, block: bytes, body: bytes = b"") -> None:
        """A header block is complete: a request begins, with END_STREAM one that is whole, or ends with trailers."""
        if len(block) > BLOCK_LIMIT_BYTES:
            raise Broken(Code.ENHANCE_YOUR_CALM, "the headers are too long")
        if number <= self.last or not number & 1:
            self._trailers(flags, number, block)
            return
        self.last = number
        make = self._blocks.read(block)
        if self._control.final:
            return  # the peer knows that we do not look at it
        if len(self.streams) >= STREAMS or (self.sender.blocked and self.sender.unsent > UNSENT_BYTES):
            raise Reset(Code.REFUSED_STREAM)
        stream = make(self, number)
        self.streams[number] = stream
        if flags & frames.END_STREAM:
            stream.ended = True
            stream.whole(body)
        else:
            self._wire.open.add(stream)
            stream.begin()

    def _trailers(self, flags: int, number: int, block: bytes) -> None:
        fields = self._blocks.fields(block)  # even where nobody wants them: they may change the table
        stream = self.streams.get(number)
        if stream is None:
            self.gone_by(number)
        elif stream.ended or not flags & frames.END_STREAM:
            raise Reset(Code.PROTOCOL_ERROR)
        else:
            check_fields(fields)
            self._ended(stream)
            stream.take(b"")

    def _ended(self, stream: Stream) -> None:
        """All of a request has come."""
        stream.ended = True
        self._wire.open.discard(stream)

    def gone_by(self, number: int, counts: bool = True) -> None:
        """A frame came for a stream that is over; `Broken` if there never was one."""
        if number > self.last or not number & 1:
            raise Broken(Code.PROTOCOL_ERROR, "a frame for no stream")
        if counts:
            self._control.count_idle()

    def _continue(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise Broken(Code.PROTOCOL_ERROR, "CONTINUATION of nothing")
        number, first_flags, pieces = self._block
        pieces.append(payload)
        if len(pieces) > CONTINUATIONS or sum(map(len, pieces)) > BLOCK_LIMIT_BYTES:
            raise Broken(Code.ENHANCE_YOUR_CALM, "the headers are too long")
        if flags & frames.END_HEADERS:
            self._block = None
            self._begin(first_flags, number, b"".join(pieces))

    def was_reset(self, number: int) -> None:
        """The peer wants no answer any more."""
        stream = self.streams.get(number)
        if stream is None:
            self.gone_by(number)
            return
        self._forget(stream)
        stream.lost()
        self._control.count_reset()

    def _reset(self, number: int, code: Code) -> None:
        """End a stream that can't go on."""
        self.transport.write(frames.rst_stream(number, code))
        stream = self.streams.get(number)
        if stream is not None:
            self._forget(stream)
            stream.lost()
        self._control.count_reset()

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self._wire.open.discard(stream)
        self.sender.drop(stream.id)

    def give_back(self, stream: Stream) -> None:
        """Give a stream leave for as much as was taken in of it."""
        if stream.credit >= WINDOW >> 1:
            self.transport.write(frames.window_update(stream.id, stream.credit))
            stream.receivable += stream.credit
            stream.credit = 0

    def done(self, number: int) -> None:
        """A stream's answer is sent."""
        stream = self.streams.pop(number)
        if not stream.ended:  # what is still to come of the request is of no interest
            self._wire.open.discard(stream)
            self.transport.write(frames.rst_stream(number, Code.NO_ERROR))
        if self._control.final:
            self.close_if_done()

    def owed(self) -> tuple[str, int] | None:
        """What the peer has yet to do before we can go on; None: it is our turn."""
        self._control.forgive()
        if unsent := self.transport.get_write_buffer_size():
            return "reading", unsent
        if self.sender.blocked:
            return "reading", self.sender.sent
        if self._buffer or self._block is not None or not self._settled:
            return "head", self._heard
        return ("pong" if self._pinged == self._heard else "idle"), self._heard

    def give_up(self, owed: str) -> None:
        """Ask whether the peer is still there, or close, as it has owed this for too long."""
        if owed == "idle" and self.streams:
            self._pinged = self._heard
            self._control.ask()
        elif owed == "idle":
            self._break(Broken(Code.NO_ERROR, "nothing was asked for long"))
        else:
            self._closed = True
            reset(self.transport)

    def end(self) -> None:
        """Close once what was accepted is answered; called again and again."""
        if self._closed:
            self._lingers += 1
            if self._lingers > LINGER_TURNS:
                self.transport.close()
            return
        self._control.end(self._settled)
        for stream in list(self.streams.values()):
            stream.end()

    def close_if_done(self) -> None:
        """Close, if the peer knows the end and all is answered."""
        if self.streams or self._closed:
            return
        if self._silent or not self.transport.can_write_eof():
            self._close()
        else:  # what it still sends would, unread, have the system take back what it has not read of us
            self._closed = True
            self.transport.write_eof()

    def _break(self, broken: Broken) -> None:
        """End the connection, and say why."""
        if not self._closed:
            self._lose_all()
            self.transport.write(frames.goaway(self.last, broken.code, str(broken)))
            self._close()

    def _lose_all(self) -> None:
        for stream in list(self.streams.values()):
            self._forget(stream)
            stream.lost()

    def _close(self) -> None:
        self._closed = True
        self.transport.close()
