"""`multipart/form-data` taken apart (RFC 7578, RFC 2046 5.1): names, file names, contents; nothing is kept on disk."""

import re
from typing import NamedTuple

from modelctl.serve.refusal import Refused

MOST_PARTS = 1024
MOST_HEAD_BYTES = 4096
_BOUNDARY = re.compile(rb'(?i)(?:^|;)\s*boundary\s*=\s*(?:"([^"\r\n]{1,70})"|([^;,\s"]{1,70}))')

# Of a Content-Disposition. RFC 7578 4.2 knows no `filename*`, so that nothing need be decoded.
_PARAMETER = re.compile(r';\s*(name|filename)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))', re.IGNORECASE)


class Part(NamedTuple):
    """One field of a form."""

    name: str
    filename: str | None
    content: bytes

    @property
    def text(self) -> str:
        """A field that was typed; `Refused` when it is not UTF-8."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            raise Refused(f"the field {self.name[:60]!r} is not UTF-8 text") from error


def parts(body: bytes, content_type: bytes) -> list[Part]:
    """The fields of a body, in their order; `Refused` says what is wrong with it."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise Refused("multipart/form-data names no boundary")
    mark = b"--" + (found[1] or found[2])
    pieces = (b"\r\n" + body).split(b"\r\n" + mark, MOST_PARTS + 1)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise Refused(
            f"the form is not sound: its boundary is missing, it is cut short, or has more than {MOST_PARTS} parts"
        )
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    """What lies between two boundaries: the rest of a line, headers, an empty line, the content."""
    start = piece.find(b"\r\n")
    end = piece.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES)
    if start < 0 or end < 0 or piece[:start].strip(b" \t"):
        raise Refused("the form is not sound: a part has no headers, or too long ones")
    found: dict[str, str] = {}
    for line in piece[start + 2 : end].decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition" and value.strip().lower().startswith("form-data"):
            found = {one[1].lower(): _unquoted(one) for one in _PARAMETER.finditer(value)}
    if "name" not in found:
        raise Refused("the form is not sound: a part has no name")
    return Part(found["name"], found.get("filename"), piece[end + 4 :])


def _unquoted(parameter: re.Match[str]) -> str:
    quoted, bare = parameter[2], parameter[3]
    return re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
