"""One client's connection: uvicorn's, with bounds on what a client may send before it is a request, and for how long.

uvicorn has a timeout for idle connections but none for headers or a body that trickle in, nor for an answer that is
never read, and no bound on the size of headers. They are kept here, without a timer for each request: headers are
counted as they arrive, and a sweep looks at all connections now and then.
"""

import asyncio
from collections.abc import Collection

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_LIMIT_BYTES = 64 << 10
SWEEP_S = 1.0


class Connection(HttpToolsProtocol):
    """A connection that gives up on headers above 64 KiB, and answers what is no HTTP as it answers everything."""

    unread = 0  # bytes of a request whose headers are not complete; far below 0 when none is under way

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the headers have grown too long."""
        super().data_received(data)
        self.unread += len(data)
        if self.unread > HEADERS_LIMIT_BYTES and not self.transport.is_closing():
            self._refuse(b"431 Request Header Fields Too Large", b"the headers are too long")

    def on_headers_complete(self) -> None:
        """Headers are complete: what follows is a body, which has its own limit."""
        super().on_headers_complete()
        self.unread = -(1 << 62)

    def on_message_begin(self) -> None:
        """A new request begins."""
        super().on_message_begin()
        self.unread = 0

    def send_400_response(self, _msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(b"400 Bad Request", b"not an HTTP request")

    def _refuse(self, status: bytes, message: bytes) -> None:
        body = b'{"error":"%s"}' % message
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()

    def owed(self) -> object:
        """What the client has yet to do before we can go on: read, or send headers or a body; None: nothing."""
        if unsent := self.transport.get_write_buffer_size():
            return "reading", unsent
        if self.cycle is None or self.cycle.response_complete:
            return "headers" if self.unread >= 0 else None
        return ("body", self.cycle) if self.cycle.more_body else None


async def sweep(connections: Collection[Connection], limit_s: float) -> None:
    """Close, again and again, connections whose client has owed the same for more than `limit_s` seconds."""
    loop = asyncio.get_running_loop()
    since: dict[Connection, tuple[object, float]] = {}
    while True:
        await asyncio.sleep(min(SWEEP_S, limit_s))
        now = loop.time()
        owing = {one: owed for one in connections if (owed := one.owed()) is not None}
        since = {
            one: since[one] if one in since and since[one][0] == owed else (owed, now) for one, owed in owing.items()
        }
        for one, (_, first) in since.items():
            if now - first > limit_s:
                one.transport.abort()
