"""The head of a request, HTTP/1.1 (RFC 9112): read by llhttp, then held to what leaves no two ways to read it.

Where one message ends and the next begins must be beyond doubt, or a proxy before us and we would disagree about it
(request smuggling). So a head is what stands before the first empty line, and is refused when llhttp thinks otherwise,
when it has a bare CR or LF, a NUL, a folded line, more or less than one Host, both Content-Length and
Transfer-Encoding, one of them twice, or a coding that is not `chunked`.

A client that keeps its connection sends the same head again and again: what a head's very bytes meant is remembered.
"""

from typing import Any, NamedTuple
from urllib.parse import unquote

import httptools

from modelctl.serve.refusal import Refused

HEAD_LIMIT_BYTES = 64 << 10
REMEMBERED_BYTES = 2048  # a longer head is read anew each time
REMEMBERED = 512
CHUNKED = -1
LENGTH_DIGITS = 15
TOGETHER = (b"authorization", b"x-api-key", b"traceparent", b"tracestate")  # none of several must count alone

Headers = dict[bytes, bytes]


class Head(NamedTuple):
    """What a head says; `length` of the body in bytes, or CHUNKED; other headers by lower-case name, the last one."""

    method: str
    path: str
    query: bytes
    headers: Headers
    length: int
    keep_alive: bool
    expects: bool  # waits for "100 Continue" before it sends its body


class Heads:
    """Reads heads, and remembers those that it read: as they are, and but for the number of their Content-Length."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._but_length: dict[tuple[bytes, bytes], Head] = {}

    def read(self, data: bytes) -> Head:
        """What these bytes, up to and with the empty line, say; `Refused` 400 when they are no head of a request."""
        found = self._known.get(data)
        if found is None:
            found = self._read(data)
            if len(data) <= REMEMBERED_BYTES:
                _remember(self._known, data, found)
        return found

    def _read(self, data: bytes) -> Head:
        begins = max(data.find(b"\r\nContent-Length: "), data.find(b"\r\ncontent-length: ")) + 18
        ends = data.find(b"\r\n", begins)
        length = data[begins:ends]
        if begins < 18 or not length.isdigit() or len(length) > LENGTH_DIGITS or len(data) > REMEMBERED_BYTES:
            return _read(data)
        # A line that begins so is that header, and there is no other one: that would have been refused.
        around = data[:begins], data[ends:]
        found = self._but_length.get(around)
        if found is None:
            found = _read(data)
            _remember(self._but_length, around, found)
        return found._replace(length=int(length))


def _remember(known: dict[Any, Head], key: object, head: Head) -> None:
    if len(known) >= REMEMBERED:
        known.clear()
    known[key] = head


class _Collected:
    """What llhttp calls back with."""

    def __init__(self) -> None:
        self.messages = 0
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.more = False  # something came after what llhttp took for the end of the head

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_body(self, _: bytes) -> None:
        self.more = True


def not_http(what: str) -> Refused:
    """The refusal of what is no HTTP request that we can be sure of."""
    return Refused(f"not an HTTP request: {what}", kind="not_http")


def _read(data: bytes) -> Head:
    lines = data.count(b"\r\n")
    if data.count(b"\n") != lines or data.count(b"\r") != lines or b"\0" in data:
        raise not_http("a bare CR or LF, or a NUL, in the head")
    if b"\r\n " in data or b"\r\n\t" in data:
        raise not_http("a folded header line")
    if data.count(b" ", 0, data.find(b"\r\n")) != 2:
        raise not_http("its first line is not METHOD TARGET VERSION")
    collected = _Collected()
    parser: Any = httptools.HttpRequestParser(collected)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # we offer no other protocol, so it goes on as HTTP/1.1 (RFC 9110, 7.8)
    except httptools.HttpParserError as error:
        raise not_http(str(error)[:80].lower() or "malformed") from error
    if not collected.complete or collected.more or collected.messages != 1:
        raise not_http("the head does not end where its empty line is")
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise not_http("its version is not 1.1 or 1.0")
    path, query = target(collected.url)
    named: dict[bytes, list[bytes]] = {}
    for name, value in collected.headers:
        named.setdefault(name, []).append(value)
    if len(named.get(b"host", ())) != 1 and (version == "1.1" or b"host" in named):
        raise not_http("it has no Host, or several")
    return Head(
        method=parser.get_method().decode("latin-1"),
        path=path,
        query=query,
        headers={
            name: b",".join(values) if name in TOGETHER else values[-1]
            for name, values in named.items()
            if name != b"content-length"
        },
        length=_length(named, version),
        keep_alive=version == "1.1" and parser.should_keep_alive() and not _closes(named),
        expects=named.get(b"expect", [b""])[-1].lower() == b"100-continue",
    )


def _closes(named: dict[bytes, list[bytes]]) -> bool:
    words = b",".join(named.get(b"connection", ())).lower().split(b",")
    return b"close" in [word.strip() for word in words]


def _length(named: dict[bytes, list[bytes]], version: str) -> int:
    lengths, codings = named.get(b"content-length", []), named.get(b"transfer-encoding", [])
    if lengths and codings:
        raise not_http("it has both Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or len(codings) > 1:
        raise not_http("Content-Length or Transfer-Encoding is given twice")
    if codings:
        if version != "1.1" or codings[0].strip().lower() != b"chunked":
            raise not_http("its Transfer-Encoding is not chunked")
        return CHUNKED
    if not lengths:
        return 0
    if not lengths[0].isdigit() or len(lengths[0]) > LENGTH_DIGITS:
        raise not_http("its Content-Length is not a number of bytes")
    return int(lengths[0])


def target(url: bytes) -> tuple[str, bytes]:
    """Path, percent-decoded, and query of a request's target."""
    try:
        parsed = httptools.parse_url(url)
        path: bytes = parsed.path or b"/"
        return unquote(path.decode("ascii"), errors="strict"), parsed.query or b""
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError) as error:
        raise not_http("its target is no URL") from error
