"""Pages of other origins, and what browsers are told of them (the Fetch standard, "CORS protocol").

Closed unless origins are named. Keys are sent in headers, never in cookies, so credentials are not allowed.
"""

from modelctl.serve.heads import Head
from modelctl.serve.http import Answer
from modelctl.serve.refusal import Refused

Pairs = tuple[tuple[bytes, bytes], ...]

METHODS = b"GET, HEAD, POST"
SENT = (
    b"authorization, content-type, grpc-timeout, inference-header-content-length, traceparent, tracestate, x-api-key, "
    b"x-grpc-web, x-user-agent"
)
SEEN = (
    b"grpc-message, grpc-status, grpc-status-details-bin, inference-header-content-length, modelctl-model, "
    b"retry-after, server-timing, traceparent, www-authenticate"
)
REMEMBER_S = b"600"


class Origins:
    """Whose pages may ask."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._known = {one.encode(): self._headers(one.encode()) for one in origins}
        self._everybody = self._headers(b"*")

    def _headers(self, origin: bytes) -> Pairs:
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", SEEN),
            *(() if origin == b"*" else ((b"vary", b"origin"),)),
        )

    def welcomes(self, origin: bytes) -> bool:
        """Whether pages of that origin may ask."""
        return self._any or origin in self._known

    def headers(self, head: Head) -> Pairs:
        """What an answer says of the origin of the page that asks."""
        origin = head.headers.get(b"origin")
        if self._any:
            return self._everybody if origin is not None else ()
        return self._known.get(origin, ((b"vary", b"origin"),)) if origin is not None else ((b"vary", b"origin"),)

    def preflight(self, head: Head) -> Answer | None:
        """The answer to a browser that asks whether a page may; None: it is no such question. `Refused` 403."""
        headers = head.headers
        if head.method != "OPTIONS" or head.length or b"access-control-request-method" not in headers:
            return None
        origin = headers.get(b"origin", b"")
        if not self.welcomes(origin):
            raise Refused("pages of this origin may not ask", 403)
        more = (
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", SENT),
            (b"access-control-max-age", REMEMBER_S),
        )
        return Answer(b"", b"text/plain", headers=more)  # 200: a 204 may not have a Content-Length
