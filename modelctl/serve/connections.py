"""One client's connection: uvicorn's, with bounds on what a client may send before it is a request, and for how long.

uvicorn has a timeout for idle connections but none for a request line or headers that trickle in, and no bound on their
size. Both are kept here, without a timer for each request: headers are counted as they arrive, and a sweep looks at all
connections now and then.
"""

import asyncio
from collections.abc import Collection
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_LIMIT_BYTES = 64 << 10
SWEEP_S = 1.0

_BODY = b'{"error":"the headers are too long"}'
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Connection(HttpToolsProtocol):
    """A connection that gives up on headers above 64 KiB."""

    unread = 0  # bytes of a request whose headers are not complete; far below 0 when none is under way

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the headers have grown too long."""
        super().data_received(data)
        self.unread += len(data)
        if self.unread > HEADERS_LIMIT_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Headers are complete: what follows is a body, which has its own limit."""
        super().on_headers_complete()
        self.unread = -(1 << 62)

    def on_message_begin(self) -> None:
        """A new request begins."""
        super().on_message_begin()
        self.unread = 0


async def sweep(connections: Collection[Any], limit_s: float) -> None:
    """Close, again and again, connections that for `limit_s` seconds or so have owed the headers of a request."""
    loop = asyncio.get_running_loop()
    since: dict[Any, float] = {}
    while True:
        await asyncio.sleep(min(SWEEP_S, limit_s))
        now = loop.time()
        since = {one: since.get(one, now) for one in connections if one.unread >= 0 and _has_nothing_to_do(one)}
        for one, first in since.items():
            if now - first >= limit_s:
                one.transport.close()


def _has_nothing_to_do(one: Any) -> bool:
    return one.cycle is None or one.cycle.response_complete
