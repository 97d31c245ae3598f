"""A connection that speaks HTTP/2 (RFC 9113): what becomes of it and its streams, from its greeting to its end.

`receiving` and `sending` are its two sides. What a peer may ask of us is bounded: streams at once, bytes of headers,
answers that it does not let us send, and what `control` counts. Who asks more is told so by GOAWAY.
"""

import asyncio
from typing import cast

from modelctl.serve.http2 import frames
from modelctl.serve.http2.answers import Answers
from modelctl.serve.http2.blocks import LIST_LIMIT_BYTES
from modelctl.serve.http2.control import Control
from modelctl.serve.http2.frames import Broken, Code
from modelctl.serve.http2.receiving import CONNECTION_WINDOW, FRAME_BYTES, STREAMS, Receiver
from modelctl.serve.http2.sending import Sender
from modelctl.serve.http2.streams import WINDOW, Stream
from modelctl.serve.wire import Wire, reset

LINGER_TURNS = 10  # calls of `end` that a peer has to close, once all is said
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
        self.wire = wire
        self.control = Control(self)
        self.streams: dict[int, Stream] = {}
        self._heard = 0  # how often
        self._pinged = -1  # what was heard when it was asked whether the peer is there
        self.closed = False
        self._silent = False  # the peer sends no more
        self._lingers = 0  # calls of `end` since we send no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer is there."""
        self.transport = cast(asyncio.Transport, transport)
        self.sender = Sender(self.transport, self.done)
        self.receiver = Receiver(self)
        visits = self.app.visits
        self.guest = None if visits is None else visits.guest(transport)
        self.wire.open.add(self)
        self.transport.write(_GREETING)

    def connection_lost(self, _: Exception | None) -> None:
        """The peer has left, or we have closed."""
        self.closed = True
        self.wire.open.discard(self)
        self._lose_all()

    def eof_received(self) -> bool:
        """The peer sends no more; it has left, unless an answer is due within this turn of the loop."""
        self.control.final = self._silent = True
        if self.transport.get_extra_info("sslcontext") is not None:
            return False  # TLS has no half of a connection
        requests = [one.request for one in self.streams.values()]
        return not self.closed and any(one is not None and one.job is not None and one.job.inline for one in requests)

    def pause_writing(self) -> None:
        """The peer does not read what it is sent."""
        self.sender.deaf = True

    def resume_writing(self) -> None:
        """The peer reads on."""
        self.sender.deaf = False
        self.sender.pump()
        self.receiver.resume()

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer."""
        self._heard += 1
        self.receiver.take(data)

    def was_reset(self, number: int) -> None:
        """The peer wants no answer any more."""
        stream = self.streams.get(number)
        if stream is None:
            self.receiver.gone_by(number)
            return
        self._forget(stream)
        stream.lost()
        self.control.count_reset()

    def reset_stream(self, number: int, code: Code) -> None:
        """End a stream that can't go on."""
        self.transport.write(frames.rst_stream(number, code))
        stream = self.streams.get(number)
        if stream is not None:
            self._forget(stream)
            stream.lost()
        self.control.count_reset()

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self.wire.open.discard(stream)
        self.sender.drop(stream.id)

    def done(self, number: int) -> None:
        """A stream's answer is sent."""
        stream = self.streams.pop(number)
        if not stream.ended:  # what is still to come of the request is of no interest
            self.wire.open.discard(stream)
            self.transport.write(frames.rst_stream(number, Code.NO_ERROR))
        if self.control.final:
            self.close_if_done()

    def owed(self) -> tuple[str, int] | None:
        """What the peer has yet to do before we can go on; None: it is our turn."""
        self.control.forgive()
        if unsent := self.transport.get_write_buffer_size():
            return "reading", unsent
        if self.sender.blocked:
            return "reading", self.sender.sent
        if self.receiver.amid:
            return "head", self._heard
        return ("pong" if self._pinged == self._heard else "idle"), self._heard

    def give_up(self, owed: str) -> None:
        """Ask whether the peer is still there, or close, as it has owed this for too long."""
        if owed == "idle" and self.streams:
            self._pinged = self._heard
            self.control.ask()
        elif owed == "idle":
            self.break_off(Broken(Code.NO_ERROR, "nothing was asked for long"))
        else:
            self.closed = True
            reset(self.transport)

    def end(self) -> None:
        """Close once what was accepted is answered; called again and again."""
        if self.closed:
            self._lingers += 1
            if self._lingers > LINGER_TURNS:
                self.transport.close()
            return
        self.control.end(self.receiver.settled)
        for stream in list(self.streams.values()):
            stream.end()

    def close_if_done(self) -> None:
        """Close, if the peer knows the end and all is answered."""
        if self.streams or self.closed:
            return
        if self._silent or not self.transport.can_write_eof():
            self._close()
        else:  # what it still sends would, unread, have the system take back what it has not read of us
            self.closed = True
            self.transport.write_eof()

    def break_off(self, broken: Broken) -> None:
        """End the connection, and say why."""
        if not self.closed:
            self._lose_all()
            self.transport.write(frames.goaway(self.receiver.last, broken.code, str(broken)))
            self._close()

    def _lose_all(self) -> None:
        for stream in list(self.streams.values()):
            self._forget(stream)
            stream.lost()

    def _close(self) -> None:
        self.closed = True
        self.transport.close()
