"""Bodies that come in chunks (RFC 9112, 7.1): `SIZE-IN-HEX[;extension] CRLF bytes CRLF`…, ended by a chunk of size 0.

Chunk extensions and trailers are read over, within bounds. Every line must end in CRLF, and a size is one to eight hex
digits with nothing before or behind: leniency here is how requests are smuggled.
"""

import re

from modelctl.serve.heads import not_http

LINE_LIMIT_BYTES = 1024
TRAILERS_LIMIT_BYTES = 8192

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Chunks:
    """Takes a chunked body apart as it comes."""

    def __init__(self) -> None:
        self.ended = False
        self._left = 0  # bytes that the present chunk still has to give
        self._within = False  # a chunk, or between its bytes and their CRLF
        self._trailers = -1  # bytes of trailers so far; below 0: they have not begun

    def take(self, data: bytes, place: int) -> tuple[list[bytes], int]:
        """The pieces of the body in `data` from `place` on, and the place up to which it is understood.

        `Refused` 400 when it is no chunked body.
        """
        pieces: list[bytes] = []
        while not self.ended and place < len(data):
            if self._left:
                pieces.append(data[place : place + self._left])
                place += len(pieces[-1])
                self._left -= len(pieces[-1])
            elif self._within:
                if not b"\r\n".startswith(data[place : place + 2]):
                    raise not_http("a chunk does not end where its size says")
                if len(data) < place + 2:
                    break
                self._within = False
                place += 2
            else:
                end = data.find(b"\r\n", place, place + LINE_LIMIT_BYTES)
                if end < 0:
                    if len(data) - place >= LINE_LIMIT_BYTES:
                        raise not_http("a chunk's line is too long")
                    break
                self._line(data[place:end])
                place = end + 2
        return pieces, place

    def _line(self, line: bytes) -> None:
        """The size of a chunk, or a trailer."""
        if self._trailers >= 0:
            self._trailers += len(line) + 2
            if not line:
                self.ended = True
            elif self._trailers > TRAILERS_LIMIT_BYTES or not _TRAILER.fullmatch(line):
                raise not_http("a trailer is malformed, or all are too long")
            return
        found = _SIZE.fullmatch(line)
        if found is None:
            raise not_http("a chunk's size is not a number")
        self._left = int(found[1], 16)
        self._within = self._left > 0
        if not self._left:
            self._trailers = 0
