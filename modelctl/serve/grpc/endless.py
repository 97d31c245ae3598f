"""Calls of gRPC-Web that never end, over HTTP/1.1: their messages are sent as they come, a chunk each.

With its first message such a call takes its connection over, for good: nothing else is asked over it, and it is closed
when the call ends (`Connection: close`). Who does not keep connections gets no chunks, and reads until then.
"""

import asyncio
from collections import deque
from email.utils import formatdate

from modelctl.serve.connections import Connection
from modelctl.serve.grpc.calls import Call, framed
from modelctl.serve.grpc.web import WebLine
from modelctl.serve.http import Answer, Request
from modelctl.serve.jobs import late
from modelctl.serve.refusal import Refused
from modelctl.serve.wire import Wire, reset


class EndlessLine(WebLine, asyncio.Protocol):
    """The way back to the client, and from the first message on its connection, as the event loop talks to it."""

    transport: asyncio.Transport
    _wire: Wire | None = None  # of the connection, once it was taken over
    _timer: asyncio.TimerHandle | None = None

    def begin(self, messages: deque[bytes], call: Call) -> None:
        """Have the messages of the client answered; `Refused` 501 over HTTP/2, which has streams for that."""
        if _connection(self._request) is None:
            raise Refused("over HTTP/2 what never ends is told as application/grpc-web, not as text", 501)
        super().begin(messages, call)
        if call.timeout_s is not None and not self._over:
            self._timer = asyncio.get_running_loop().call_later(call.timeout_s, self._late)

    def push(self, message: bytes) -> None:
        """Send a message at once."""
        if self._wire is None:
            self._take_over()
        self._write(self._written(framed(message)))

    def _take_over(self) -> None:
        request, connection = self._request, _connection(self._request)
        assert connection is not None
        self.transport, self._wire = connection.transport, connection.hand_over(self)
        self._wire.open.add(self)
        fields = [(b"date", formatdate(usegmt=True).encode()), (b"content-type", self._kind), (b"connection", b"close")]
        if request.head.keep_alive:
            fields.append((b"transfer-encoding", b"chunked"))
        visit = request.visit
        if visit is not None:
            fields += visit.headers
            visit.send = self._last
        if visit is None or request.send != visit.leave:
            request.send = self._last
        self.transport.write(b"HTTP/1.1 200 OK\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % one for one in fields))

    def _write(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._request.head.keep_alive else data)

    def _last(self, request: Request, answer: Answer) -> None:
        """Send what the call ends with."""
        self._forget()
        self._write(answer.body)
        if request.head.keep_alive:
            self.transport.write(b"0\r\n\r\n")
        self.transport.close()

    def _late(self) -> None:
        self._app.refuse(self._inner, late())

    def _forget(self) -> None:
        self._app.release(self._request)
        if self._timer is not None:
            self._timer.cancel()

    def connection_lost(self, _: Exception | None) -> None:
        """The client has left, as is usual here, or we have closed."""
        assert self._wire is not None
        self._wire.open.discard(self)
        if not self._over:
            self._over = True
            self._forget()
            if self._inner.talk is not None:
                self._inner.talk.lost()
            if self._request.visit is not None:
                self._request.visit.gone()

    def owed(self) -> tuple[str, int] | None:
        """What the client has yet to do: read."""
        unsent = self.transport.get_write_buffer_size()
        return ("reading", unsent) if unsent else None

    def give_up(self, _: str) -> None:
        """Close, as the client has not read for too long."""
        reset(self.transport)

    def end(self) -> None:
        """The server ends."""
        if self._inner.talk is not None and not self._over:
            self._inner.talk.wind_down()


def _connection(request: Request) -> Connection | None:
    """The connection of HTTP/1.1 that a request came over: its way back is a method of that."""
    send = request.send if request.visit is None else request.visit.send
    found = getattr(send, "__self__", None)
    return found if isinstance(found, Connection) else None
