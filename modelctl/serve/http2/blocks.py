"""Header blocks (RFC 7541): what requests begin with, read into a `Head`, and what answers begin with, written.

Clients send nearly the same block again and again. What a block meant is remembered for as long as the table that its
indices point into stays as it is: a block that adds to the table, or resizes it, is read anew each time, and whatever
was remembered before it is forgotten.

Answers use nothing but the static table and literals that are not indexed, so that a block is the same bytes on every
connection.
"""

import re
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from modelctl.serve.heads import CHUNKED, LENGTH_DIGITS, TOGETHER, Head, target
from modelctl.serve.http2.frames import Broken, Code, Reset
from modelctl.serve.refusal import Refused

LIST_LIMIT_BYTES = 32 << 10  # of a header list, as SETTINGS_MAX_HEADER_LIST_SIZE counts
BLOCK_LIMIT_BYTES = 16 << 10  # of its block, packed
REMEMBERED = 128
REMEMBERED_BYTES = 2048

Fields = list[tuple[bytes, bytes]]
Meaning = TypeVar("Meaning")

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_PSEUDO = (b":method", b":scheme", b":path", b":authority")
_OF_CONNECTIONS = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_STATUS = {200: b"\x88", 204: b"\x89", 206: b"\x8a", 304: b"\x8b", 400: b"\x8c", 404: b"\x8d", 500: b"\x8e"}


class _Table(HeaderTable):
    """A dynamic table that counts how often it was touched."""

    def __init__(self) -> None:
        super().__init__()
        self.touched = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.touched += 1
        super().add(name, value)

    def plain(self, block: bytes) -> Fields | None:
        """The fields of a block that has only small indices and short strings, as those have that come again and again.

        None, and the table is not touched, for any other one: the library reads it, or says what is wrong with it. It
        says so, too, when an index comes after a field that drives others out of the table.
        """
        found: Fields = []
        added: Fields = []
        room, place, size, total = self._maxsize - self._current_size, 0, len(block), 0
        while place < size:
            first = block[place]
            place += 1
            if 0x80 < first < 0xFF:
                field = self._entry(first & 0x7F, added, room)
            elif first & 0x3F == 0x3F or 0x20 <= first < 0x40 or first & 0x4F == 0x0F or first == 0x80:
                return None
            else:
                index = first & 0x3F if first & 0x40 else first & 0x0F
                named = self._entry(index, added, room) if index else None
                name, place = _short(block, place) if not index else (named and named[0], place)
                value, place = _short(block, place)
                field = None if name is None or value is None else (name, value)
            if field is None:
                return None
            found.append(field)
            total += len(field[0]) + len(field[1]) + 32
            if 0x40 <= first < 0x80:
                added.append(field)
                room -= len(field[0]) + len(field[1]) + 32
        if total > LIST_LIMIT_BYTES:
            return None
        for field in added:
            self.add(*field)
        return found

    def _entry(self, index: int, added: Fields, room: int) -> tuple[bytes, bytes] | None:
        """What an index stands for, behind fields that are about to be added."""
        if index <= self.STATIC_TABLE_LENGTH:
            return self.STATIC_TABLE[index - 1]
        index -= self.STATIC_TABLE_LENGTH + 1
        if room < 0:
            return None
        if index < len(added):
            return added[-1 - index]
        index -= len(added)
        return self.dynamic_entries[index] if index < len(self.dynamic_entries) else None


def _short(block: bytes, place: int) -> tuple[bytes | None, int]:
    """A string of fewer than 127 bytes, and the place behind it."""
    length = block[place] if place < len(block) else 0xFF
    end = place + 1 + (length & 0x7F)
    if length & 0x7F == 0x7F or end > len(block):
        return None, place
    data = block[place + 1 : end]
    if not length & 0x80:
        return data, end
    try:
        return decode_huffman(data), end
    except HPACKError:
        return None, place


class Blocks(Generic[Meaning]):
    """Reads the header blocks of one connection; `meaning` says what is made of a head, and is remembered with it."""

    def __init__(self, meaning: Callable[[Head], Meaning]) -> None:
        self._meaning = meaning
        self._decoder = Decoder(LIST_LIMIT_BYTES)
        self._table = self._decoder.header_table = _Table()
        self._known: dict[bytes, Meaning] = {}

    def read(self, block: bytes) -> Meaning:
        """What a request's block means; `Reset` when it is no request, `Broken` when it can't be read."""
        found = self._known.get(block)
        if found is not None:
            return found
        touched = self._table.touched
        fields = self.fields(block)
        found = self._meaning(head_of(fields))
        if self._table.touched == touched and not _resizes(block) and len(block) <= REMEMBERED_BYTES:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[block] = found
        return found

    def fields(self, block: bytes) -> Fields:
        """The fields of a block, in order; `Broken` when it can't be read, as what follows then can't be, either."""
        touched = self._table.touched
        quick = self._table.plain(block)
        if quick is not None:
            if self._table.touched != touched:
                self._known.clear()
            return quick
        try:
            found = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise Broken(Code.ENHANCE_YOUR_CALM, "the headers are too long") from error
        except (HPACKError, IndexError) as error:
            raise Broken(Code.COMPRESSION_ERROR, "a header block can't be read") from error
        if self._table.touched != touched or _resizes(block):
            self._known.clear()
        return found


def _resizes(block: bytes) -> bool:
    """Whether a block begins by resizing the table; it can nowhere else."""
    return block[:1] != b"" and block[0] & 0xE0 == 0x20


def head_of(fields: Fields) -> Head:
    """The head of a request (RFC 9113, 8.2 and 8.3); `Reset` when it is malformed."""
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    for name, value in fields:
        if name.startswith(b":"):
            if name not in _PSEUDO or name in pseudo or headers:
                raise Reset(Code.PROTOCOL_ERROR)
            pseudo[name] = value
        elif name == b"cookie" and name in headers:
            headers[name] += b"; " + value  # it may come in crumbs (RFC 9113, 8.2.3)
        elif name in TOGETHER and name in headers:
            headers[name] += b"," + value
        elif name in (b"content-length", b"host") and headers.get(name, value) != value:
            raise Reset(Code.PROTOCOL_ERROR)
        else:
            headers[name] = value
    check_fields(headers.items())
    check_fields((b"value", value) for value in pseudo.values())
    host = headers.setdefault(b"host", pseudo.get(b":authority", b""))
    if not host or pseudo.get(b":authority", host) != host or headers.get(b"te", b"trailers") != b"trailers":
        raise Reset(Code.PROTOCOL_ERROR)
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if not method.isalpha() or not pseudo.get(b":scheme") or not path.startswith(b"/") or b" " in path:
        raise Reset(Code.PROTOCOL_ERROR)
    length = headers.pop(b"content-length", None)
    if length is not None and (not length.isdigit() or len(length) > LENGTH_DIGITS):
        raise Reset(Code.PROTOCOL_ERROR)
    try:
        where, query = target(path)
    except Refused as refused:
        raise Reset(Code.PROTOCOL_ERROR) from refused
    size = CHUNKED if length is None else int(length)
    return Head(method.decode("ascii"), where, query, headers, size, keep_alive=True, expects=False)


def check_fields(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """`Reset` unless these may stand in a message: names in lower case, values of one line, none of a connection."""
    for name, value in fields:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or name in _OF_CONNECTIONS:
            raise Reset(Code.PROTOCOL_ERROR)


def status_block(status: int, *fields: tuple[bytes, bytes]) -> bytes:
    """The block that an answer begins with."""
    return (_STATUS.get(status) or b"\x08" + _text(b"%d" % status)) + fields_block(*fields)


def fields_block(*fields: tuple[bytes, bytes]) -> bytes:
    """A block of further fields, each a literal that is not indexed."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(data: bytes) -> bytes:
    """A string literal (RFC 7541, 5.1 and 5.2), as it is."""
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    size -= 127
    digits = bytearray((127,))
    while size >= 128:
        digits.append(size & 127 | 128)
        size >>= 7
    digits.append(size)
    return bytes(digits) + data
