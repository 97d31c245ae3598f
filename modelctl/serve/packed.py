"""MessagePack, as `/predict` takes and gives it: the same documents as in JSON, bytes as they are.

A short body may hold as many values as it has bytes; a longer one is gone through first, and may hold `MOST_VALUES`:
an empty map takes one byte there and sixty-four here.
"""

from typing import Any

import msgpack
import numpy as np

from modelctl.serve.refusal import Refused, told

MSGPACK = b"application/msgpack"
NAMES = frozenset({MSGPACK, b"application/x-msgpack", b"application/vnd.msgpack"})
SHORT_BYTES = 1 << 20
MOST_VALUES = 1 << 18

# The bytes of a value's head and what follows it, by its first byte (msgpack's spec.md, "Formats"): fixed payloads, and
# for what has a length the bytes that tell it.
_PAYLOADS = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_COUNTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def parse(body: bytes) -> Any:
    """What a body says; 400 when it is not MessagePack, holds extensions, or more values than are read."""
    if len(body) > SHORT_BYTES:
        _check_values(body)
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=True, ext_hook=_refuse)
    except Refused:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise Refused(f"not MessagePack: {' '.join(str(error).split())[:120] or type(error).__name__}") from error


def dumps(document: Any) -> bytes:
    """A document with arrays and numpy's numbers in it."""
    packed: bytes = msgpack.packb(document, default=_plain)
    return packed


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value)} is nothing that is packed")


def _refuse(code: int, _: bytes) -> Any:
    raise Refused(f"not MessagePack that is read here: it holds an extension, {told(code)}")


def _check_values(body: bytes) -> None:
    """`Refused` when there are more values than are read; what is not sound is left to be told by who reads it."""
    place = values = 0
    size = len(body)
    while place < size:
        first = body[place]
        values += 1
        if values > MOST_VALUES:
            raise Refused(f"the body holds more than {MOST_VALUES} values; send tensors as binary data to /v2")
        place += 1
        if 0xA0 <= first <= 0xBF:
            place += first & 0x1F
        elif first in _PAYLOADS:
            place += _PAYLOADS[first]
        elif first in _LENGTHS:
            wide = _LENGTHS[first]
            place += wide + int.from_bytes(body[place : place + wide], "big")
        elif first in _COUNTS:
            place += _COUNTS[first][0]
