"""What all connections share, whatever they speak, and the sweep that ends those whose clients keep it waiting."""

import asyncio
import socket
import struct
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from modelctl.serve.heads import Heads
from modelctl.serve.http import Answer, App, Request

SWEEP_S = 1.0
IDLE_S = 75.0  # how long a connection may be kept without a request
RESET = struct.pack("ii", 1, 0)  # linger for no time: what is unsent goes, and the client is told so
REMEMBERED = 256

_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Watched(Protocol):
    """What the sweep looks at: a connection, or a stream of one, whose client may owe something."""

    @property
    def transport(self) -> asyncio.Transport:
        """Of the connection."""

    def owed(self) -> tuple[str, int] | None:
        """What the client has yet to do before we can go on; None: it is our turn."""

    def give_up(self, owed: str) -> None:
        """The client has owed this for too long."""

    def end(self) -> None:
        """The server ends: close once what was accepted is answered."""


class Wire:
    """What all connections of a server share: the application, heads read before, beginnings of answers, the date."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.heads = Heads()
        self.open: set[Watched] = set()
        self._starts: dict[object, bytes] = {}
        self.tick()

    def tick(self) -> None:
        """Tell the time anew (RFC 9110, 6.6.1)."""
        self.date = formatdate(time.time(), usegmt=True).encode()
        self._starts.clear()

    def start(self, request: Request, answer: Answer, closes: bool) -> bytes:
        """The head of an answer up to the number of its Content-Length."""
        model = request.model
        key = (answer.status, answer.content_type, answer.headers, model and model.told, closes)
        found = self._starts.get(key)
        if found is None:
            headers = [(b"date", self.date), (b"content-type", answer.content_type), *answer.headers]
            headers += [model.header] if model is not None else []
            headers += [(b"connection", b"close")] if closes else []
            status = f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, '')}\r\n".encode()
            found = status + b"".join(b"%b: %b\r\n" % header for header in headers) + b"content-length: "
            if len(self._starts) >= REMEMBERED:
                self._starts.clear()
            self._starts[key] = found
        return found


def reset(transport: asyncio.Transport) -> None:
    """End a connection at once: what its client does not read would else stay in the system's memory."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()


async def sweep(wire: Wire, limit_s: float) -> None:
    """Close, again and again, connections whose client has owed the same for more than `limit_s` seconds."""
    loop = asyncio.get_running_loop()
    since: dict[Watched, tuple[tuple[str, int], float]] = {}
    while True:
        await asyncio.sleep(min(SWEEP_S, limit_s))
        wire.tick()
        now = loop.time()
        owing = {one: owed for one in wire.open if (owed := one.owed()) is not None}
        since = {
            one: since[one] if one in since and since[one][0] == owed else (owed, now) for one, owed in owing.items()
        }
        for one, (owed, first) in since.items():
            if now - first > (max(IDLE_S, limit_s) if owed[0] == "idle" else limit_s):
                one.give_up(owed[0])
