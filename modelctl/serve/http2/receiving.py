"""What a connection receives: frames, of which requests come, each led to its stream, as far as we have given leave.

A request in two frames that came together, as nearly all are, is taken at once. A header block and the first bytes of
a frame are held until the rest has come, bodies as HTTP/1.1's are.
"""

from typing import TYPE_CHECKING

from modelctl.serve.connections import AHEAD_BYTES
from modelctl.serve.grpc.streams import stream_of
from modelctl.serve.http2 import frames
from modelctl.serve.http2.blocks import BLOCK_LIMIT_BYTES, Blocks, check_fields
from modelctl.serve.http2.frames import LARGEST_WINDOW, Broken, Code, Reset
from modelctl.serve.http2.streams import WINDOW, Stream

if TYPE_CHECKING:
    from modelctl.serve.http2.connection import Http2

STREAMS = 256  # at once
FRAME_BYTES = 1 << 16  # of a frame that we take
CONNECTION_WINDOW = 1 << 24  # bytes that may be under way over all streams
CONTINUATIONS = 16  # of one header block
UNSENT_BYTES = 1 << 26  # of answers that wait for the peer's leave, before it is refused further ones


class Receiver:
    """The receiving side of a connection, which is told of streams to be reset, and of what it breaks on."""

    def __init__(self, connection: "Http2") -> None:
        self._connection = connection
        self._transport = connection.transport
        self._sender = connection.sender
        self._control = connection.control
        self._streams = connection.streams
        self._open = connection.wire.open
        self._blocks = Blocks(stream_of)
        self._buffer = b""  # received, and not yet understood
        self._greeted = False  # the preface is there
        self.settled = False  # and so are the settings behind it
        self._block: tuple[int, int, list[bytes]] | None = None  # a header block that goes on: stream, flags, pieces
        self._receivable = CONNECTION_WINDOW
        self._held = False  # we read no further
        self.last = 0  # the largest stream that the peer has begun

    @property
    def amid(self) -> bool:
        """Whether something has begun to come, and its end has not."""
        return bool(self._buffer) or self._block is not None or not self.settled

    def resume(self) -> None:
        """Go on with what came while the peer did not read."""
        if self._buffer:
            self.take(b"")

    def take(self, data: bytes) -> None:
        """Take one frame after the other out of what was received; none while the peer does not read."""
        if self._buffer:
            data = self._buffer + data
        connection = self._connection
        place, size = 0, len(data)
        try:
            if not self._greeted:
                place = self._greet(data)
            while size - place >= 9 and self._greeted and not self._sender.deaf and not connection.closed:
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
                    if not self.settled or self._block is not None:
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
                    connection.reset_stream(number, reset.code)
        except Broken as broken:
            connection.break_off(broken)
        self._buffer = data[place:] if place < size and not connection.closed else b""
        if (len(self._buffer) > AHEAD_BYTES) is not self._held and not connection.closed:
            self._held = not self._held
            if self._held:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

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
        if not self.settled:
            self.settled = True
            if kind != frames.SETTINGS:
                raise Broken(Code.PROTOCOL_ERROR, "settings do not come first")
        elif self._block is not None and (kind != frames.CONTINUATION or number != self._block[0]):
            raise Broken(Code.PROTOCOL_ERROR, "a header block does not go on")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receivable -= size
        if self._receivable < CONNECTION_WINDOW >> 1:
            self._give_back_all()
        stream = self._streams.get(number)
        if stream is None:
            self.gone_by(number)
        elif stream.ended:
            raise Reset(Code.STREAM_CLOSED)
        elif flags == frames.END_STREAM and not stream.size and size <= stream.receivable:
            stream.ended = True
            self._open.discard(stream)
            stream.whole(payload)
        else:
            self._piece(stream, flags, payload)

    def _give_back_all(self) -> None:
        """Give leave for as much as was taken in on all streams."""
        if self._receivable < 0:
            raise Broken(Code.FLOW_CONTROL_ERROR, "more data than there is leave for")
        self._transport.write(frames.window_update(0, CONNECTION_WINDOW - self._receivable))
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
        if len(self._streams) >= STREAMS or (self._sender.blocked and self._sender.unsent > UNSENT_BYTES):
            raise Reset(Code.REFUSED_STREAM)
        stream = make(self._connection, number)
        self._streams[number] = stream
        if flags & frames.END_STREAM:
            stream.ended = True
            stream.whole(body)
        else:
            self._open.add(stream)
            stream.begin()

    def _trailers(self, flags: int, number: int, block: bytes) -> None:
        fields = self._blocks.fields(block)  # even where nobody wants them: they may change the table
        stream = self._streams.get(number)
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
        self._open.discard(stream)

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

    def give_back(self, stream: Stream) -> None:
        """Give a stream leave for as much as was taken in of it."""
        if stream.credit >= WINDOW >> 1:
            self._transport.write(frames.window_update(stream.id, stream.credit))
            stream.receivable += stream.credit
            stream.credit = 0
