"""What a peer says of the connection itself: settings, pings, more leave to send, and how its end is told.

Frames that bring nothing (PING, SETTINGS, empty DATA, what comes for streams that are over) and streams that are reset
are counted from one sweep to the next; who sends too many is not served any longer.

At the end of the server the peer is told twice: first that the end is near (GOAWAY of the largest stream), then, once
it has had the time to hear that (it answers a PING), which stream was the last one. None that it began before is lost.
"""

from typing import TYPE_CHECKING

from modelctl.serve.http2 import frames
from modelctl.serve.http2.frames import LARGEST_WINDOW, Broken, Code

if TYPE_CHECKING:
    from modelctl.serve.http2.connection import Http2

IDLE_FRAMES = 1000  # from one sweep to the next, of those that bring nothing
RESETS = 500  # from one sweep to the next
FAREWELL = b"farewell"
ARE_YOU = b"are you?"
FAREWELL_TURNS = 50  # calls of `end` that the peer has to hear of the end


class Control:
    """Takes the frames of a connection that belong to no stream, or not to what a stream says."""

    def __init__(self, connection: "Http2") -> None:
        self._connection = connection
        self._idle_frames = self._resets = 0
        self._ending = 0  # calls of `end`
        self.final = False  # the peer knows which stream was the last

    def take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """A frame of another kind than DATA, HEADERS and CONTINUATION."""
        connection = self._connection
        if kind == frames.WINDOW_UPDATE:
            size = frames.number_in(payload) & LARGEST_WINDOW
            stream = connection.streams.get(number)
            if stream is not None or not number:
                connection.sender.widen(stream, size)
            else:
                connection.receiver.gone_by(number, counts=False)
        elif kind == frames.RST_STREAM:
            frames.number_in(payload)
            connection.was_reset(number)
        elif kind == frames.PUSH_PROMISE:
            raise Broken(Code.PROTOCOL_ERROR, "a client can't push")
        else:
            self.count_idle()
            if kind == frames.SETTINGS:
                self._set(flags, number, payload)
            elif kind == frames.PING:
                self._ping(flags, number, payload)
            elif kind == frames.GOAWAY and number:
                raise Broken(Code.PROTOCOL_ERROR, "GOAWAY on a stream")

    def count_idle(self) -> None:
        """Count a frame that brings nothing."""
        self._idle_frames += 1
        if self._idle_frames > IDLE_FRAMES:
            raise Broken(Code.ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def count_reset(self) -> None:
        """Count a stream that was reset, by either side."""
        self._resets += 1
        if self._resets > RESETS:
            raise Broken(Code.ENHANCE_YOUR_CALM, "too many streams are reset")

    def forgive(self) -> None:
        """Count anew."""
        self._idle_frames = self._resets = 0

    def _set(self, flags: int, number: int, payload: bytes) -> None:
        """Settings of the peer, or that it knows ours."""
        if number or (flags & frames.ACK and payload):
            raise Broken(Code.FRAME_SIZE_ERROR if payload and not number else Code.PROTOCOL_ERROR, "settings astray")
        if flags & frames.ACK:
            return
        sender = self._connection.sender
        for name, value in frames.settings_in(payload):
            if name == frames.ENABLE_PUSH and value > 1:
                raise Broken(Code.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            if name == frames.MAX_FRAME_SIZE:
                if not frames.SMALLEST_FRAME <= value <= frames.LARGEST_FRAME:
                    raise Broken(Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of bounds")
                sender.frame_bytes = value
            elif name == frames.INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise Broken(Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE out of bounds")
                for stream in self._connection.streams.values():
                    stream.window += value - sender.first_window
                    if stream.window > LARGEST_WINDOW:
                        raise Broken(Code.FLOW_CONTROL_ERROR, "a window is too wide")
                sender.first_window = value
        self._connection.transport.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        sender.pump()

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise Broken(Code.PROTOCOL_ERROR if number else Code.FRAME_SIZE_ERROR, "PING astray")
        if not flags & frames.ACK:
            self._connection.transport.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == FAREWELL and self._ending and not self.final:
            self.farewell()

    def ask(self) -> None:
        """Ask whether the peer is still there."""
        self._connection.transport.write(frames.frame(frames.PING, 0, 0, ARE_YOU))

    def end(self, settled: bool) -> None:
        """The server ends; called again and again. A peer that is not `settled` has not begun anything."""
        self._ending += 1
        if self._ending == 1 and settled:
            self._connection.transport.write(frames.goaway(LARGEST_WINDOW, Code.NO_ERROR, "the server ends"))
            self._connection.transport.write(frames.frame(frames.PING, 0, 0, FAREWELL))
        elif (self._ending >= FAREWELL_TURNS or not settled) and not self.final:
            self.farewell()

    def farewell(self) -> None:
        """Tell the peer which stream was the last that we look at."""
        self.final = True
        self._connection.transport.write(frames.goaway(self._connection.receiver.last, Code.NO_ERROR))
        self._connection.close_if_done()
