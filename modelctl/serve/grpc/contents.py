"""Typed contents of tensors: an element each in the list of its datatype, as those write them who have no raw bytes."""

from typing import Any

import numpy as np

from modelctl.serve.grpc.plans import varint
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import Array, Datatype, from_bytes

FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_PACKED = {"fp32_contents": 6 << 3 | 2, "fp64_contents": 7 << 3 | 2}  # tags of lists


def from_contents(name: str, contents: Any, kind: Datatype, shape: tuple[int, ...]) -> Array:
    """The tensor of typed contents; `Refused` when they are of another datatype or number, or out of range."""
    field = FIELDS.get(kind.word)
    if field is None:
        raise Refused(f"input {name!r}: {kind.word} has no typed contents, send it as raw_input_contents")
    for other, _ in contents.ListFields():
        if other.name != field:
            raise Refused(f"input {name!r}: {kind.word} goes into {field}, not into {other.name}")
    found = _packed(contents, field)
    if found is not None:
        return from_bytes(name, found, kind, shape)
    return from_list(name, getattr(contents, field), kind, shape)


def _packed(contents: Any, field: str) -> memoryview | None:
    """The bytes of a list of numbers of fixed size: those that it is written as, behind a tag and their length."""
    tag = _PACKED.get(field)
    data: bytes = contents.SerializeToString() if tag is not None else b""
    if not data or data[0] != tag:
        return None
    place = 1
    while data[place] & 0x80:
        place += 1
    return memoryview(data)[place + 1 :]


def packed_into(into: Any, field: str, array: Array) -> bool:
    """Write numbers of fixed size into a list of a message at once; whether they are such, and the list takes them."""
    if field not in ("fp32_contents", "fp64_contents", "float_val", "double_val") or not array.size:
        return False
    raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    tag = into.DESCRIPTOR.fields_by_name[field].number << 3 | 2
    into.MergeFromString(bytes((tag,)) + varint(len(raw)) + raw)
    return True


def from_list(name: str, found: Any, kind: Datatype, shape: tuple[int, ...]) -> Array:
    """The tensor of a list of numbers, or of bytes; `Refused` when their number is wrong, or one is out of range."""
    count = int(np.prod(shape, dtype=object))
    if len(found) != count:
        raise Refused(f"input {name!r}: {len(found)} elements, shape {list(shape)} asks for {count}")
    if kind.word == "BYTES":
        return np.array(_texts(name, found), dtype=object).reshape(shape)
    wide = np.array(found, dtype="int64" if kind.dtype.kind == "i" else "uint64" if kind.dtype.kind == "u" else None)
    narrow: Array = wide.astype(kind.dtype)
    if kind.dtype.kind in "iu" and not (narrow == wide).all():
        raise Refused(f"input {name!r}: an element is out of {kind.word}'s range")
    return narrow.reshape(shape)


def _texts(name: str, found: Any) -> list[str]:
    try:
        return [one.decode() for one in found]
    except UnicodeDecodeError as error:
        raise Refused(f"input {name!r}: a BYTES element is not UTF-8") from error


def to_list(array: Array, kind: Datatype) -> list[Any]:
    """The elements of a tensor, in row-major order."""
    flat = array.reshape(-1)
    return [str(one).encode() for one in flat] if kind.word == "BYTES" else flat.tolist()
