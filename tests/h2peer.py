"""The client's side of HTTP/2, frame by frame, and a connection of the server that it talks to without a socket."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from hpack import Decoder, Encoder
from wires import Pipe

from modelctl.options import ServeOptions
from modelctl.serve.grpc.calls import framed
from modelctl.serve.http import Answer, App, Request
from modelctl.serve.http2 import frames
from modelctl.serve.http2.connection import Http2
from modelctl.serve.http2.frames import Code
from modelctl.serve.metrics import Board
from modelctl.serve.models import Models
from modelctl.serve.wire import Wire

START = frames.PREFACE + frames.settings({})
END_STREAM, END_HEADERS = frames.END_STREAM, frames.END_HEADERS
POST = [(":method", "POST"), (":scheme", "http"), (":path", "/echo"), (":authority", "x")]
GET = [(":method", "GET"), *POST[1:]]
CALL = [*POST[:2], (":path", "/a.B/C"), (":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc")]

Fields = list[tuple[str, str]]


class Echo(App):
    """Answers with what it understood; keeps what it is told to keep."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Models(Board()), ServeOptions(max_body_mb=0.1, **options))
        self.seen: list[tuple[str, str, bytes]] = []
        self.kept: list[Request] = []
        self.left: list[Request] = []
        self.keeps = False

    def handle(self, request: Request) -> None:
        self.seen.append((request.head.method, request.head.path, request.body))
        if self.keeps:
            self.kept.append(request)
        else:
            request.reply(Answer(request.body))

    def gone(self, request: Request) -> None:
        self.left.append(request)
        super().gone(request)


@dataclass
class Reply:
    """What came back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: Code | None = None


class Peer:
    """A client, and the connection that it has."""

    def __init__(self, app: App | None = None, start: bytes = START) -> None:
        self.app = cast(Echo, app or Echo())
        self.pipe = Pipe()
        self.wire = Wire(self.app)
        self.server = Http2(self.wire)
        self.server.connection_made(cast(asyncio.Transport, self.pipe))
        self.encoder = Encoder()
        self._decoder = Decoder()
        self._read = 0
        self.replies: dict[int, Reply] = {}
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.feed(start)

    def feed(self, *pieces: bytes) -> "Peer":
        """Let bytes arrive."""
        for piece in pieces:
            if piece and not self.pipe.closed:
                self.server.data_received(piece)
        return self

    def block(self, fields: Fields) -> bytes:
        """A header block, indexed as clients do."""
        return self.encoder.encode(fields)

    def headers(self, number: int, fields: Fields, flags: int = END_HEADERS) -> bytes:
        """A HEADERS frame."""
        return frames.frame(frames.HEADERS, flags, number, self.block(fields))

    def ask(self, number: int, fields: Fields = POST, body: bytes = b"") -> "Peer":
        """Send a whole request."""
        self.feed(self.headers(number, fields))
        pieces = [body[place : place + frames.SMALLEST_FRAME] for place in range(0, len(body), frames.SMALLEST_FRAME)]
        for piece in pieces[:-1]:
            self.feed(frames.frame(frames.DATA, 0, number, piece))
        return self.feed(frames.frame(frames.DATA, END_STREAM, number, pieces[-1] if pieces else b""))

    def read(self) -> list[tuple[int, int, int, bytes]]:
        """The frames that have come since they were read last: type, flags, stream, payload."""
        found = []
        data = self.pipe.sent
        while self._read < len(data):
            high, low, kind, flags, number = frames.head_at(data, self._read)
            begins = self._read + 9
            self._read = begins + (high << 8 | low)
            assert self._read <= len(data), "half a frame was sent"
            found.append((kind, flags, number, data[begins : self._read]))
            self._note(*found[-1])
        self.frames += found
        return found

    def _note(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if not number:
            return
        reply = self.replies.setdefault(number, Reply())
        assert reply.reset is None, "a stream goes on after its reset"
        if kind == frames.RST_STREAM:
            reply.reset = Code(frames.number_in(payload))
        elif kind == frames.DATA:
            assert reply.headers and not reply.ended
            reply.body += payload
        elif kind == frames.HEADERS:
            assert not reply.ended and flags & END_HEADERS
            fields = {str(name): str(value) for name, value in self._decoder.decode(payload)}
            assert all(name == name.lower() for name in fields)
            if reply.headers:
                reply.trailers = fields
            else:
                reply.headers = fields
        if kind in (frames.DATA, frames.HEADERS) and flags & END_STREAM:
            reply.ended = True

    def reply(self, number: int) -> Reply:
        """What came back on a stream so far."""
        self.read()
        return self.replies.get(number, Reply())

    @property
    def goaway(self) -> Code | None:
        """Why the server has closed, if it has."""
        self.read()
        told = [payload for kind, _, _, payload in self.frames if kind == frames.GOAWAY]
        return Code(int.from_bytes(told[-1][4:8], "big")) if told else None


class Caller(Peer):
    """A client of a real server."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.pipe = Pipe()
        self.encoder, self._decoder = Encoder(), Decoder()
        self._read = 0
        self.replies, self.frames = {}, []
        self.last = -1
        self.feed(START)

    def feed(self, *pieces: bytes) -> "Peer":
        """Send bytes."""
        self.socket.sendall(b"".join(pieces))
        return self

    def read(self) -> list[tuple[int, int, int, bytes]]:
        """The frames that have come, the last of them whole."""
        data = self.pipe.sent
        place = self._read
        while len(data) - place >= 9:
            size = 9 + int.from_bytes(data[place : place + 3], "big")
            if len(data) - place < size:
                break
            place += size
        self.pipe.sent = data[:place]
        found = super().read()
        self.pipe.sent = data
        for kind, flags, _, payload in found:
            if kind == frames.PING and not flags & frames.ACK:
                self.feed(frames.frame(frames.PING, frames.ACK, 0, payload))
        return found

    def close(self) -> None:
        """Leave."""
        self.socket.close()

    def wait(self, holds: Callable[[], object]) -> None:
        """Take in what comes until something is so."""
        while not holds():
            data = self.socket.recv(1 << 16)
            assert data, "the server has closed"
            self.pipe.sent += data
            self.read()

    def begin(self, path: str, *messages: bytes, flags: int = END_STREAM, **more: Any) -> int:
        """Begin a call and send messages; its stream."""
        self.last += 2
        fields = [*POST[:2], (":path", path), (":authority", "x"), ("te", "trailers")]
        fields += [("content-type", "application/grpc"), *((name.replace("_", "-"), one) for name, one in more.items())]
        self.feed(self.headers(self.last, fields))
        self.send(self.last, *messages, flags=flags)
        return self.last

    def send(self, number: int, *messages: bytes, flags: int = 0) -> None:
        """Send messages of a call."""
        body = b"".join(framed(one) for one in messages)
        for place in range(0, len(body), 1 << 14):
            self.feed(frames.frame(frames.DATA, 0, number, body[place : place + (1 << 14)]))
        if flags:
            self.feed(frames.frame(frames.DATA, flags, number))

    def call(self, path: str, message: bytes, **more: Any) -> tuple[bytes, dict[str, str]]:
        """The message and the trailers that a call is answered with."""
        number = self.begin(path, message, **more)
        self.wait(lambda: self.replies.get(number, Reply()).ended)
        return self.told(number)

    def told(self, number: int) -> tuple[bytes, dict[str, str]]:
        """The message and the trailers of a call that is over."""
        found = self.replies[number]
        assert found.headers[":status"] == "200"
        assert found.headers["content-type"] == "application/grpc"
        return found.body[5:], found.trailers or found.headers
