"""The files of the page, sent as quickly as a browser can take them.

    GET /   /docs                 HTML; asked for anew each time, and answered 304 when nothing has changed
    GET /page/FILE                styles, scripts, the icon; as FILE?DIGEST, which the HTML asks for, kept for a year

All are read and zipped once. The Content-Security-Policy allows what comes from this server and no other, and no script
or style within the HTML.
"""

import gzip
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from modelctl.serve.http import Answer, App, Handler, Request, Route

FOLDER = Path(__file__).parent
HTML = {"/": "page.html", "/docs": "docs.html"}
TYPES = {".css": b"text/css; charset=utf-8", ".js": b"text/javascript; charset=utf-8", ".svg": b"image/svg+xml"}
FILES = tuple(sorted(one.name for one in FOLDER.iterdir() if one.suffix in TYPES))
PATHS = (*HTML, *(f"/page/{name}" for name in FILES))  # open to everybody: a browser brings no key here
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFETY = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
FOR_A_YEAR = b"max-age=31536000, immutable"

Pairs = tuple[tuple[bytes, bytes], ...]


class _File(NamedTuple):
    """A file as it is sent: its type, its bytes, the same zipped, what they are known by."""

    content_type: bytes
    plain: bytes
    zipped: bytes
    digest: bytes
    headers: Pairs


def routes(app: App) -> Iterable[Route]:  # noqa: ARG001 - as every protocol
    """The routes of the files."""
    for path, name in HTML.items():
        yield Route("GET", path, _sent(_html(name)))
    for name in FILES:
        yield Route("GET", f"/page/{name}", _sent(_file(name)))


@cache
def _file(name: str) -> _File:
    return _made(_exact(name), TYPES[Path(name).suffix], ())


@cache
def _html(name: str) -> _File:
    return _made(_exact(name), b"text/html; charset=utf-8", ((b"content-security-policy", POLICY),))


def _exact(name: str) -> bytes:
    """A file in which the names of other files are followed by the digests of those."""

    def exact(found: re.Match[str]) -> str:
        known = found[2] in FILES
        return f"{found[1]}{found[2]}?{_file(found[2]).digest.decode()}{found[3]}" if known else found[0]

    return re.sub(r"""(["'](?:/page|\.)/)([a-z]+\.[a-z]+)(["'])""", exact, (FOLDER / name).read_text("utf-8")).encode()


def _made(plain: bytes, content_type: bytes, headers: Pairs) -> _File:
    digest = hashlib.sha256(plain).hexdigest()[:16].encode()
    return _File(content_type, plain, gzip.compress(plain, 9, mtime=0), digest, headers)


def _sent(file: _File) -> Handler:
    """What sends a file: zipped to who takes that, and only said to be the same to who has it."""
    ready: dict[tuple[bool, bool], Answer] = {}
    for zipped in (False, True):
        for kept in (False, True):
            tag = b'"%b%b"' % (file.digest, b"-gzip" if zipped else b"")
            headers = ((b"etag", tag), (b"cache-control", FOR_A_YEAR if kept else b"no-cache"), *SAFETY, *file.headers)
            headers += ((b"vary", b"accept-encoding"), *([(b"content-encoding", b"gzip")] if zipped else []))
            ready[zipped, kept] = Answer(file.zipped if zipped else file.plain, file.content_type, 200, headers)

    def send(request: Request) -> Answer:
        headers = request.head.headers
        answer = ready[b"gzip" in headers.get(b"accept-encoding", b""), request.head.query == file.digest]
        known = headers.get(b"if-none-match")
        if known is not None and file.digest in known:
            request.head = request.head._replace(
                method="HEAD"
            )  # the same head as for 200, and no body (RFC 9110, 15.4.5)
            return answer._replace(status=304)
        return answer

    return send
