"""The frames of HTTP/2 (RFC 9113, 4 and 6): a head of 9 bytes, and what it announces.

    length:u24  type:u8  flags:u8  stream:u32 (its first bit means nothing)

Numbers are big-endian. Here is what a frame looks like; what one means to a connection stands in `receiving`.
"""

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
LARGEST_WINDOW = (1 << 31) - 1
SMALLEST_FRAME = 1 << 14  # that any peer takes
LARGEST_FRAME = (1 << 24) - 1
FIRST_WINDOW = (1 << 16) - 1  # where no setting says otherwise

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    1,
    2,
    3,
    4,
    5,
    6,
)

HEAD = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
_NUMBER = struct.Struct(">L")
_TWO_NUMBERS = struct.Struct(">LL")

head_at = HEAD.unpack_from  # upper 16 bits of the length, lower 8, type, flags, stream


class Code(IntEnum):
    """Why a stream or a connection ends (RFC 9113, 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class Broken(Exception):  # noqa: N818 - it says what became of the connection
    """A connection that can't go on: the peer has broken the protocol, or asked too much."""

    def __init__(self, code: Code, what: str) -> None:
        super().__init__(what)
        self.code = code


class Reset(Exception):  # noqa: N818 - it says what becomes of the stream
    """A stream that can't go on, on a connection that can."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    length = len(payload)
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*one) for one in values.items()))


def settings_in(payload: bytes) -> list[tuple[int, int]]:
    """The settings that a frame brings, in order; `Broken` where it holds no whole ones."""
    if len(payload) % _SETTING.size:
        raise Broken(Code.FRAME_SIZE_ERROR, "SETTINGS of another length")
    return list(_SETTING.iter_unpack(payload))


def number_in(payload: bytes) -> int:
    """The one number of a WINDOW_UPDATE or RST_STREAM frame."""
    if len(payload) != _NUMBER.size:
        raise Broken(Code.FRAME_SIZE_ERROR, "a frame of another length")
    number: int = _NUMBER.unpack(payload)[0]
    return number


def window_update(stream: int, size: int) -> bytes:
    """Leave to send `size` further bytes, on a stream or, for 0, on the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(size))


def rst_stream(stream: int, code: Code) -> bytes:
    """The end of a stream."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def goaway(last: int, code: Code, why: str = "") -> bytes:
    """The end of a connection: streams above `last` were not looked at."""
    return frame(GOAWAY, 0, 0, _TWO_NUMBERS.pack(last, code) + why.encode()[:120])


def unpadded(flags: int, payload: bytes) -> bytes:
    """What a frame brings without its padding."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Broken(Code.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]
