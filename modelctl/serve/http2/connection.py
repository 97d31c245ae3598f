"""A connection that speaks HTTP/2 (RFC 9113): frames in, streams led to the application, answers out as windows allow.

What a peer may ask of us is bounded: streams at once, bytes of headers, frames that bring nothing (PING, SETTINGS,
empty DATA) and streams that are reset, both counted from one sweep to the next. Who asks more is told so by GOAWAY. A
header block and the first bytes of a frame are held until the rest has come, bodies as HTTP/1.1's are.

At the end of the server the peer is told twice: first that the end is near (GOAWAY of the largest stream), then, once
it has had the time to hear that (it answers a PING), which stream was the last one. None that it began before is lost.
"""

import asyncio
from typing import cast

from modelctl.serve.connections import AHEAD_BYTES, Wire
from modelctl.serve.grpc.streams import stream_of
from modelctl.serve.http2 import frames
from modelctl.serve.http2.answers import Answers
from modelctl.serve.http2.blocks import BLOCK_LIMIT_BYTES, LIST_LIMIT_BYTES, Blocks, check_fields
from modelctl.serve.http2.frames import LARGEST_WINDOW, Broken, Code, Reset
from modelctl.serve.http2.sending import Sender
from modelctl.serve.http2.streams import WINDOW, Stream

STREAMS = 256  # at once
FRAME_BYTES = 1 << 16  # of a frame that we take
CONNECTION_WINDOW = 1 << 24  # bytes that may be under way over all streams
IDLE_FRAMES = 1000  # from one sweep to the next, of those that bring nothing
RESETS = 500  # from one sweep to the next
CONTINUATIONS = 16  # of one header block
UNSENT_BYTES = 1 << 26  # of answers that wait for the peer's leave, before it is refused further ones
FAREWELL = b"farewell"
FAREWELL_TURNS = 50  # calls of `end` that the peer has to hear of the end

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
        self._buffer = b""  # received, and not yet understood
        self._greeted = self._settled = False  # the preface is there; the settings behind it are
        self._block: tuple[int, int, list[bytes]] | None = None  # a header block that goes on: stream, flags, pieces
        self._streams: dict[int, Stream] = {}
        self._last = 0  # the largest stream that the peer has begun
        self._receivable = CONNECTION_WINDOW
        self._heard = self._idle_frames = self._resets = 0
        self._held = False  # we read no further
        self._pinged = -1  # what was heard when it was asked whether the peer is there
        self._ending = 0  # calls of `end`
        self._final = False  # the peer knows which stream was the last
        self._closed = False

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
        self._final = True
        if self.transport.get_extra_info("sslcontext") is not None:
            return False  # TLS has no half of a connection
        requests = [one.request for one in self._streams.values()]
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
                    if kind == frames.DATA:
                        self._data(flags, number, data[begins:ends])
                    elif kind == frames.HEADERS:
                        self._headers(flags, number, data[begins:ends])
                    else:
                        self._control(kind, flags, number, data[begins:ends])
                except Reset as reset:
                    self._reset(number, reset.code)
        except Broken as broken:
            self._break(broken)
        self._buffer = data[place:] if place < size and not self._closed else b""
        if self._held and not self._closed and len(self._buffer) <= AHEAD_BYTES:
            self._held = False
            self.transport.resume_reading()

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
            if self._receivable < 0:
                raise Broken(Code.FLOW_CONTROL_ERROR, "more data than there is leave for")
            self.transport.write(frames.window_update(0, CONNECTION_WINDOW - self._receivable))
            self._receivable = CONNECTION_WINDOW
        stream = self._streams.get(number)
        if stream is None:
            self._gone_by(number)
            return
        if stream.ended:
            raise Reset(Code.STREAM_CLOSED)
        stream.receivable -= size
        stream.credit += size
        if stream.receivable < 0:
            raise Reset(Code.FLOW_CONTROL_ERROR)
        if flags & frames.PADDED:
            payload = frames.unpadded(flags, payload)
        if flags & frames.END_STREAM:
            self._ended(stream)
        elif not payload:
            self._count_idle()
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

    def _begin(self, flags: int, number: int, block: bytes) -> None:
        """A header block is complete: a request begins, or ends with trailers."""
        if len(block) > BLOCK_LIMIT_BYTES:
            raise Broken(Code.ENHANCE_YOUR_CALM, "the headers are too long")
        if number <= self._last or not number & 1:
            self._trailers(flags, number, block)
            return
        self._last = number
        make = self._blocks.read(block)
        if self._final:
            return  # the peer knows that we do not look at it
        if len(self._streams) >= STREAMS:
            raise Reset(Code.REFUSED_STREAM)
        stream = make(self, number)
        self._streams[number] = stream
        if flags & frames.END_STREAM:
            stream.ended = True
            stream.take(b"")
        else:
            self._wire.open.add(stream)
            stream.begin()

    def _trailers(self, flags: int, number: int, block: bytes) -> None:
        fields = self._blocks.fields(block)  # even where nobody wants them: they may change the table
        stream = self._streams.get(number)
        if stream is None:
            self._gone_by(number)
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

    def _gone_by(self, number: int) -> None:
        """A frame came for a stream that is over; `Broken` if there never was one."""
        if number > self._last or not number & 1:
            raise Broken(Code.PROTOCOL_ERROR, "a frame for no stream")
        self._count_idle()

    def _count_idle(self) -> None:
        self._idle_frames += 1
        if self._idle_frames > IDLE_FRAMES:
            raise Broken(Code.ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Any frame but DATA and HEADERS."""
        if kind == frames.WINDOW_UPDATE:
            self._widen(number, frames.number_in(payload) & LARGEST_WINDOW)
        elif kind == frames.RST_STREAM:
            frames.number_in(payload)
            self._was_reset(number)
        elif kind == frames.CONTINUATION:
            self._continue(flags, payload)
        elif kind == frames.PUSH_PROMISE:
            raise Broken(Code.PROTOCOL_ERROR, "a client can't push")
        else:
            self._count_idle()
            if kind == frames.SETTINGS:
                self._set(flags, number, payload)
            elif kind == frames.PING:
                self._ping(flags, number, payload)
            elif kind == frames.GOAWAY and number:
                raise Broken(Code.PROTOCOL_ERROR, "GOAWAY on a stream")

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

    def _set(self, flags: int, number: int, payload: bytes) -> None:
        """Settings of the peer, or that it knows ours."""
        if number or (flags & frames.ACK and payload):
            raise Broken(Code.FRAME_SIZE_ERROR if payload and not number else Code.PROTOCOL_ERROR, "settings astray")
        if flags & frames.ACK:
            return
        for name, value in frames.settings_in(payload):
            if name == frames.ENABLE_PUSH and value > 1:
                raise Broken(Code.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            if name == frames.MAX_FRAME_SIZE:
                if not frames.SMALLEST_FRAME <= value <= frames.LARGEST_FRAME:
                    raise Broken(Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of bounds")
                self.sender.frame_bytes = value
            elif name == frames.INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise Broken(Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE out of bounds")
                for stream in self._streams.values():
                    stream.window += value - self.sender.first_window
                    if stream.window > LARGEST_WINDOW:
                        raise Broken(Code.FLOW_CONTROL_ERROR, "a window is too wide")
                self.sender.first_window = value
        self.transport.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.sender.pump()

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise Broken(Code.PROTOCOL_ERROR if number else Code.FRAME_SIZE_ERROR, "PING astray")
        if not flags & frames.ACK:
            self.transport.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == FAREWELL and self._ending:
            self._farewell()

    def _widen(self, number: int, size: int) -> None:
        """Leave to send more."""
        stream = self._streams.get(number)
        if stream is not None or not number:
            self.sender.widen(stream, size)
        elif number > self._last or not number & 1:
            raise Broken(Code.PROTOCOL_ERROR, "a frame for no stream")

    def _was_reset(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            self._gone_by(number)
            return
        self._forget(stream)
        stream.lost()
        self._count_reset()

    def _reset(self, number: int, code: Code) -> None:
        """End a stream that can't go on."""
        self.transport.write(frames.rst_stream(number, code))
        stream = self._streams.get(number)
        if stream is not None:
            self._forget(stream)
            stream.lost()
        self._count_reset()

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > RESETS:
            raise Broken(Code.ENHANCE_YOUR_CALM, "too many streams are reset")

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
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
        stream = self._streams.pop(number)
        if not stream.ended:  # what is still to come of the request is of no interest
            self._wire.open.discard(stream)
            self.transport.write(frames.rst_stream(number, Code.NO_ERROR))
        if self._final and not self._streams:
            self._close()

    def owed(self) -> tuple[str, int] | None:
        """What the peer has yet to do before we can go on; None: it is our turn."""
        self._idle_frames = self._resets = 0
        if unsent := self.transport.get_write_buffer_size():
            return "reading", unsent
        if self.sender.blocked:
            return "reading", self.sender.sent
        if self._buffer or self._block is not None or not self._settled:
            return "head", self._heard
        return ("pong" if self._pinged == self._heard else "idle"), self._heard

    def give_up(self, owed: str) -> None:
        """Ask whether the peer is still there, or close, as it has owed this for too long."""
        if owed == "idle" and self._streams:
            self._pinged = self._heard
            self.transport.write(frames.frame(frames.PING, 0, 0, b"are you?"))
        elif owed == "idle":
            self._break(Broken(Code.NO_ERROR, "nothing was asked for long"))
        else:
            self._closed = True
            self.transport.abort()

    def end(self) -> None:
        """Close once what was accepted is answered; called again and again."""
        self._ending += 1
        if self._ending == 1 and self._settled:
            self.transport.write(frames.goaway(LARGEST_WINDOW, Code.NO_ERROR, "the server ends"))
            self.transport.write(frames.frame(frames.PING, 0, 0, FAREWELL))
        elif (self._ending >= FAREWELL_TURNS or not self._settled) and not self._final:
            self._farewell()
        for stream in list(self._streams.values()):
            stream.end()

    def _farewell(self) -> None:
        """Tell the peer which stream was the last that we look at."""
        self._final = True
        self.transport.write(frames.goaway(self._last, Code.NO_ERROR))
        if not self._streams:
            self._close()

    def _break(self, broken: Broken) -> None:
        """End the connection, and say why."""
        if not self._closed:
            self._lose_all()
            self.transport.write(frames.goaway(self._last, broken.code, str(broken)))
            self._close()

    def _lose_all(self) -> None:
        for stream in list(self._streams.values()):
            self._forget(stream)
            stream.lost()

    def _close(self) -> None:
        self._closed = True
        self.transport.close()
