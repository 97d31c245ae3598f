"""Tensors on the wire: the Open Inference Protocol's datatypes, as JSON values and as raw bytes.

JSON: `data` is a flat list in row-major order, or nested lists of exactly the tensor's shape. Raw bytes: little-endian,
row-major, no padding; BOOL is one byte of 0 or 1; a BYTES element is its length as u32 little-endian and its bytes.
Sources: Open Inference Protocol, REST ("Tensor Data Types", "Tensor Data"); Triton's binary tensor data extension.

What JSON can't say: BF16 travels as bytes only. An output that is NaN or infinite is written as `null` in JSON and
exactly in bytes; `null` in an input is refused. A number that does not fit its datatype is refused, not rounded to
infinity or wrapped.

Nothing is allocated by what a request claims: an element is made only for one that was sent.
"""

import math
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import ml_dtypes
import numpy as np
import orjson

from modelctl.manifest import TensorSpec
from modelctl.serve.refusal import Refused, told

Array = np.ndarray[Any, Any]

MAX_RANK = 32
MOST_EMPTY = 1 << 24  # the other dimensions of an empty tensor together: nothing sent stands behind them


@dataclass(frozen=True)
class Datatype:
    """One of the protocol's datatypes: its word, numpy's type of an element, and how JSON numbers are packed."""

    word: str
    dtype: np.dtype[Any]
    packed: str  # the `array` typecode that JSON numbers go through; "" for what is not a number in JSON


_FLOATS = {"FP16": ("float16", "d"), "FP32": ("float32", "d"), "FP64": ("float64", "d")}
_INTEGERS = {
    f"{word}{bits}": (f"{word.lower()}{bits}", code)
    for word, codes in (("UINT", "BHIQ"), ("INT", "bhiq"))
    for bits, code in zip((8, 16, 32, 64), codes, strict=True)
}
DATATYPES = {
    **{word: Datatype(word, np.dtype(name), code) for word, (name, code) in {**_FLOATS, **_INTEGERS}.items()},
    "BF16": Datatype("BF16", np.dtype(ml_dtypes.bfloat16), ""),
    "BOOL": Datatype("BOOL", np.dtype(bool), ""),
    "BYTES": Datatype("BYTES", np.dtype(object), ""),
}
_BY_DTYPE = {str(one.dtype): one for one in DATATYPES.values()} | {"string": DATATYPES["BYTES"]}


def datatype_of(dtype: str) -> Datatype | None:
    """The datatype of a manifest's dtype word (`float32`, `string`); None if there is none (float8, int4)."""
    return _BY_DTYPE.get(dtype)


def parse_json(body: bytes) -> Any:
    """What a body says in JSON; 400 when it is none, is not UTF-8, or is nested too deep."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(f"not JSON: {str(error)[:120]}") from error


def wire_shape(spec: TensorSpec) -> list[int]:
    """A shape as the protocol tells it: -1 for a free dimension."""
    return [size if isinstance(size, int) else -1 for size in spec.shape]


def check_shape(name: str, shape: Any, spec: TensorSpec) -> tuple[int, ...]:
    """The shape that a request gives for an input, if it is one that the model takes."""
    if type(shape) is not list or len(shape) > MAX_RANK or not all(type(size) is int for size in shape):
        raise Refused(f"input {name!r}: shape {told(shape)} is not a list of integers")
    if any(size < 0 or size >= 2**31 for size in shape):
        raise Refused(f"input {name!r}: shape {told(shape)} has a dimension below 0 or above 2^31")
    if 0 in shape and math.prod(size for size in shape if size) > MOST_EMPTY:
        raise Refused(f"input {name!r}: shape {told(shape)} is too large for a tensor without elements")
    if len(shape) != len(spec.shape) or any(
        type(wanted) is int and size != wanted for size, wanted in zip(shape, spec.shape, strict=True)
    ):
        raise Refused(f"input {name!r}: shape {told(shape)}, the model takes {told(wire_shape(spec))}")
    return tuple(shape)


def check_agreement(feeds: Mapping[str, Array], specs: Mapping[str, TensorSpec]) -> None:
    """A free dimension that several inputs name is of one size in all of them; `Refused` says where it is not.

    onnxruntime would broadcast them to each other. A dimension called `dim0` and so on has no name in the model.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, tensor in feeds.items():
        for size, free in zip(tensor.shape, specs[name].shape, strict=True):
            if type(free) is not str or free.removeprefix("dim").isdigit():
                continue
            known, where = sizes.setdefault(free, (size, name))
            if known != size:
                raise Refused(f"{told(free)} is {known} in input {where!r}, but {size} in input {name!r}")


def from_json(name: str, data: Any, kind: Datatype, shape: tuple[int, ...] | None) -> Array:
    """The tensor of a JSON value: nested lists, or a flat one for a known `shape`; the lists' own shape if None."""
    flat, nested = _flatten(name, data)
    if shape is None:
        shape = nested
    elif len(nested) != 1 and nested != (shape if flat else shape[: len(nested)]):  # lists end where a dimension is 0
        raise Refused(f"input {name!r}: data is nested as {told(list(nested))}, shape says {told(list(shape))}")
    if len(flat) != math.prod(shape):
        raise Refused(f"input {name!r}: {len(flat)} elements, shape {told(list(shape))} asks for {math.prod(shape)}")
    return _packed(name, flat, kind).reshape(shape)


def _flatten(name: str, data: Any) -> tuple[Sequence[Any], tuple[int, ...]]:
    """The elements of nested lists in row-major order, and the shape of the nest; a ragged one is refused."""
    if type(data) is not list:
        return [data], ()
    shape = [len(data)]
    while data and type(data[0]) is list:
        if len(shape) == MAX_RANK:
            raise Refused(f"input {name!r}: data is nested deeper than {MAX_RANK}")
        width = len(data[0])
        if any(type(one) is not list or len(one) != width for one in data):
            raise Refused(f"input {name!r}: data is ragged: its lists are not all of one length")
        shape.append(width)
        data = list(chain.from_iterable(data))
    return data, tuple(shape)


def _packed(name: str, flat: Sequence[Any], kind: Datatype) -> Array:
    """A flat tensor of JSON elements, each of the right kind; `array` refuses what is not, or is out of range."""
    if kind.packed:
        try:
            packed: Array = np.frombuffer(array(kind.packed, flat), dtype=kind.packed)
        except TypeError as error:
            raise Refused(f"input {name!r}: an element is not a {kind.word} number") from error
        except OverflowError as error:
            raise Refused(f"input {name!r}: an element is out of {kind.word}'s range") from error
        return _narrowed(name, packed, kind)
    if kind.word == "BOOL":
        if not all(type(one) is bool for one in flat):
            raise Refused(f"input {name!r}: an element is not true or false")
        return np.array(flat, dtype=bool)
    if kind.word == "BYTES":
        if not all(type(one) is str for one in flat):
            raise Refused(f"input {name!r}: an element is not a string")
        return np.array(flat, dtype=object)
    raise Refused(f"input {name!r}: {kind.word} has no form in JSON, send it as binary data")


def _narrowed(name: str, packed: Array, kind: Datatype) -> Array:
    if packed.dtype == kind.dtype or kind.dtype.kind != "f":
        return packed
    with np.errstate(over="ignore"):
        narrow = packed.astype(kind.dtype)
    if not np.isfinite(narrow).all():
        raise Refused(f"input {name!r}: an element is out of {kind.word}'s range")
    return narrow


def to_json(array: Array, kind: Datatype) -> Any:
    """A tensor's elements, flat, as orjson writes them (NaN and infinities as null)."""
    if kind.word == "BF16":
        raise Refused("BF16 has no form in JSON, ask for this output as binary data")
    flat = array.reshape(-1)
    return flat.tolist() if kind.word == "BYTES" else np.ascontiguousarray(flat)


def to_nested_json(array: Array, kind: Datatype) -> Any:
    """A tensor as nested lists of its own shape, as orjson writes them (NaN and infinities as null)."""
    if kind.word == "BF16":
        array = array.astype(np.float32)
    # orjson writes arrays, but none without dimensions, nor strings.
    return array.tolist() if kind.word == "BYTES" or not array.ndim else np.ascontiguousarray(array)


def from_bytes(name: str, data: memoryview, kind: Datatype, shape: tuple[int, ...]) -> Array:
    """The tensor of raw bytes, not copied where it need not be; refused unless they are exactly those of `shape`."""
    if kind.word == "BYTES":
        return _strings(name, data, math.prod(shape)).reshape(shape)
    wanted = math.prod(shape) * kind.dtype.itemsize
    if len(data) != wanted:
        raise Refused(f"input {name!r}: {len(data)} bytes of data, shape {told(list(shape))} asks for {wanted}")
    if kind.word == "BOOL":
        raw: Array = np.frombuffer(data, dtype=np.uint8)
        if raw.size and raw.max() > 1:
            raise Refused(f"input {name!r}: a BOOL byte is neither 0 nor 1")
        return raw.view(bool).reshape(shape)
    tensor: Array = np.frombuffer(data, dtype=kind.dtype.newbyteorder("<"))
    # A copy when what came before it in the body left it at an odd place: kernels load whole words.
    return np.require(tensor, dtype=kind.dtype, requirements="A").reshape(shape)


def _strings(name: str, data: memoryview, count: int) -> Array:
    found: list[str] = []
    place = 0
    while place < len(data):
        if len(found) == count or place + 4 > len(data):
            raise Refused(f"input {name!r}: BYTES data does not end where its shape says")
        (size,) = struct.unpack_from("<I", data, place)
        place += 4 + size
        if place > len(data):
            raise Refused(f"input {name!r}: BYTES element {len(found)} reaches past the end of the data")
        try:
            found.append(str(data[place - size : place], "utf-8"))
        except UnicodeDecodeError as error:
            raise Refused(f"input {name!r}: BYTES element {len(found)} is not UTF-8") from error
    if len(found) != count:
        raise Refused(f"input {name!r}: {len(found)} BYTES elements, its shape asks for {count}")
    return np.array(found, dtype=object)


def to_bytes(array: Array, kind: Datatype) -> bytes:
    """A tensor as raw bytes."""
    if kind.word == "BYTES":
        encoded = [str(one).encode() for one in array.reshape(-1)]
        return b"".join(part for one in encoded for part in (struct.pack("<I", len(one)), one))
    return array.astype(kind.dtype.newbyteorder("<"), copy=False).tobytes()
