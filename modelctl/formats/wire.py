"""The wire format of protobuf, as far as large weights need it: left out before a model is parsed, put in as it is
written, so that a protobuf message, which copies what it holds, never holds them.

A message is a row of fields: a key (number · 8 + wire type, a varint), then a varint, 4 or 8 bytes, or a length and as
many bytes (protobuf.dev/programming-guides/encoding). The numbers of fields are those of onnx/onnx.proto.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5  # wire types
_GRAPH = 7  # of ModelProto
_INITIALIZER = 5  # of GraphProto
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_OUTSIDE = 1  # TensorProto.EXTERNAL


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: where its key begins, and where its content, a number or bytes, begins and ends."""

    number: int
    kind: int
    begin: int
    start: int
    end: int


def fields(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of the message that lies there; ValueError where it is none, or ends amid a field."""
    end = len(data) if end is None else end
    while start < end:
        begin = start
        key, start = _varint(data, begin)
        kind = key & 7
        if kind == _SIZED:
            size, start = _varint(data, start)
        elif kind == _VARINT:
            size = _varint(data, start)[1] - start
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("a wire type that has no length")
        if start + size > end:
            raise ValueError("a field that is cut short")
        yield Field(key >> 3, kind, begin, start, start + size)
        start += size


def without_weights(data: bytes, name: str, least: int) -> bytes:
    """The bytes of a model called `name` without the `raw_data` of its graph's initializers, from `least` bytes on.

    Each of these says in its place, as an external tensor does, where in the file `name` its data lie. What is no model
    comes back as it is.
    """

    def tensor(start: int, end: int) -> bytes:
        raw: Field | None = None
        for one in fields(data, start, end):
            if one.number == _EXTERNAL_DATA or (one.number == _RAW_DATA and (raw or one.kind != _SIZED)):
                return data[start:end]  # nothing that is usual, and protobuf's to make something of
            raw = one if one.number == _RAW_DATA else raw
        if raw is None or raw.end - raw.start < least:
            return data[start:end]
        place = {"location": name, "offset": str(raw.start), "length": str(raw.end - raw.start)}
        told = [_sized(_KEY, key.encode()) + _sized(_VALUE, value.encode()) for key, value in place.items()]
        outside = _number(_DATA_LOCATION << 3 | _VARINT) + _number(_OUTSIDE)
        around = data[start : raw.begin] + data[raw.end : end]
        return around + b"".join(_sized(_EXTERNAL_DATA, one) for one in told) + outside

    def graph(start: int, end: int) -> bytes:
        return _changed(data, start, end, _INITIALIZER, tensor)

    try:
        return _changed(data, 0, len(data), _GRAPH, graph)
    except ValueError:
        return data


def with_weights(data: bytes, sizes: Mapping[int, int]) -> Iterator[bytes | int]:
    """The bytes of a model in pieces, into which weights are put: a number stands for the data of that initializer.

    `sizes` tells, by the initializer's place in the graph, how many bytes they are; in `data` they are empty.
    """
    (graph,) = [one for one in fields(data) if one.number == _GRAPH]
    tensors = [one for one in fields(data, graph.start, graph.end) if one.number == _INITIALIZER]
    pieces: list[bytes | int] = []
    done = graph.start
    for place, size in sizes.items():
        tensor = tensors[place]
        (raw,) = [one for one in fields(data, tensor.start, tensor.end) if one.number == _RAW_DATA]
        before = data[tensor.start : raw.begin] + _key(_RAW_DATA, size)
        after = data[raw.end : tensor.end]
        whole = _key(_INITIALIZER, len(before) + size + len(after))
        pieces += [data[done : tensor.begin] + whole + before, place, after]
        done = tensor.end
    pieces.append(data[done : graph.end])
    length = sum(sizes[one] if isinstance(one, int) else len(one) for one in pieces)
    yield data[: graph.begin] + _key(_GRAPH, length)
    yield from pieces
    yield data[graph.end :]


def _changed(data: bytes, start: int, end: int, number: int, change: Callable[[int, int], bytes]) -> bytes:
    """A message in which every message that is its field `number` is another one."""
    made, kept = bytearray(), start
    for one in fields(data, start, end):
        if one.number == number and one.kind == _SIZED:
            made += data[kept : one.begin]
            made += _sized(number, change(one.start, one.end))
            kept = one.end
    made += data[kept:end]
    return bytes(made)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number there, and where it ends; ValueError where it does not."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number without an end")


def _number(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _key(number: int, size: int) -> bytes:
    return _number(number << 3 | _SIZED) + _number(size)


def _sized(number: int, content: bytes) -> bytes:
    return _key(number, len(content)) + content
