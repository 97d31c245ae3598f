"""What was understood of a ModelInfer message once need not be understood again, as in `modelctl.serve.plans`.

Around its numbers, a client's messages are the same, byte for byte, but for the id:

    model_name model_version [id] parameters inputs outputs | raw contents, each behind its tag and length

That is the order of the fields' numbers, in which every known library writes them. A message that is written in another
one is read the long way, and so is whatever is not exactly like a message that was read before. Answers have the same
order, and the id stands in them as the very bytes that asked.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelctl.serve.models import Model
from modelctl.serve.tensors import Array

KEY_BYTES = 2048  # longer surroundings are not remembered
REMEMBERED = 128  # plans a model, sizes, answers a plan

_NAME, _VERSION, _ID, _RAW_INPUT, _RAW_OUTPUT = b"\x0a", b"\x12", b"\x1a", b"\x3a", b"\x32"  # tags of the fields


@dataclass(slots=True)
class Asked:
    """What an inference request says, and what answers to such requests look like by their outputs' shapes."""

    id: str
    feeds: dict[str, Array]
    outputs: tuple[str, ...]
    raw: bool  # contents are raw bytes
    id_field: bytes | None = None  # as it came; None: not known
    looks: "dict[object, _Look]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Look:
    """An answer around its id and its numbers."""

    front: bytes
    behind: bytes
    tags: tuple[bytes, ...]  # before each output's bytes


@dataclass(frozen=True, slots=True)
class _Plan:
    """A message: where each tensor lies in its bytes behind the head, and what stands before those but the first."""

    asked: Asked
    front: bytes
    begins: int  # the length of that
    size: int
    places: tuple[tuple[str, np.dtype[Any], int, int, int, tuple[int, ...], bytes], ...]


class Plans:
    """The messages that a model was asked, by what surrounds their numbers."""

    def __init__(self) -> None:
        self._cuts: dict[
            int, tuple[int, int, int]
        ] = {}  # by a message's size: begin and end of its id, end of its head
        self._plans: dict[bytes, _Plan] = {}  # by what stands between the id and the numbers

    def recall(self, body: bytes) -> Asked | None:
        """What a message says, if one like it was remembered."""
        size = len(body)
        cut = self._cuts.get(size)
        if cut is None:
            return None
        begins, ends, head = cut
        plan = self._plans.get(body[ends:head])
        if plan is None or plan.size != size - head or begins != plan.begins or not body.startswith(plan.front):
            return None
        who = b""
        if begins != ends:
            who = body[begins:ends]
            if who[:1] != _ID or who[1] != len(who) - 2 or not who.isascii():
                return None
        feeds: dict[str, Array] = {}
        for name, dtype, place, count, size, shape, tag in plan.places:
            first = head + place
            if tag and body[first - len(tag) : first] != tag:
                return None
            if first % dtype.itemsize:  # kernels load whole words, which a copy is fit for
                feeds[name] = np.frombuffer(body[first : first + size], dtype, count).reshape(shape)
            else:
                feeds[name] = np.frombuffer(body, dtype, count, first).reshape(shape)
        asked = plan.asked
        return Asked(who[2:].decode(), feeds, asked.outputs, True, who, asked.looks)

    def remember(self, body: bytes, given: Any, asked: Asked, model: Model) -> None:
        """Keep what was understood of a message that was found right."""
        if any(model.inputs[name].dtype in ("string", "bool") for name in asked.feeds) or not given.raw_input_contents:
            return  # of these the very bytes have to be looked at
        tags = [_RAW_INPUT + varint(len(one)) for one in given.raw_input_contents]
        raws = b"".join(part for pair in zip(tags, given.raw_input_contents, strict=True) for part in pair)
        begins = len(front_of(body))
        who = _ID + varint(len(given.id.encode())) + given.id.encode() if given.id else b""
        ends, head = begins + len(who), len(body) - len(raws) + len(tags[0])
        if not body.endswith(raws) or body[begins:ends] != who or head > KEY_BYTES or len(who) > 127:
            return
        if len(self._plans) >= REMEMBERED or len(self._cuts) >= REMEMBERED:
            self._plans.clear()
            self._cuts.clear()
        places = []
        place = 0
        for index, (name, array) in enumerate(asked.feeds.items()):
            tag = tags[index] if index else b""
            place += len(tag)
            places.append((name, array.dtype, place, array.size, array.nbytes, array.shape, tag))
            place += array.nbytes
        asked.id_field = who
        plain = Asked("", {}, asked.outputs, True, b"", asked.looks)
        self._cuts[len(body)] = begins, ends, head
        self._plans[body[ends:head]] = _Plan(plain, body[:begins], begins, place, tuple(places))


def named(name: str, version: str = "") -> bytes:
    """How a message begins that names this model."""
    words = [(_NAME, name.encode()), (_VERSION, version.encode())]
    return b"".join(tag + varint(len(word)) + word for tag, word in words if word)


def front_of(body: bytes) -> bytes:
    """How a message begins: its model_name and, if it has one, its model_version; b"" where that is not plain."""
    if body[:1] != _NAME or len(body) < 2 or body[1] > 127:
        return b""
    end = 2 + body[1]
    if body[end : end + 1] == _VERSION and len(body) > end + 1 and body[end + 1] <= 127:
        end += 2 + body[end + 1]
    return body[:end]


def recall_answer(asked: Asked, outputs: dict[str, Array]) -> bytes | None:
    """The answer with these outputs, if what surrounds their numbers was remembered."""
    if asked.id_field is None:
        return None
    look = asked.looks.get(_shapes(outputs))
    if look is None:
        return None
    if len(look.tags) == 1:
        return b"".join((look.front, asked.id_field, look.behind, look.tags[0], outputs[asked.outputs[0]].tobytes()))
    pieces = [look.front, asked.id_field, look.behind]
    for name, tag in zip(asked.outputs, look.tags, strict=True):
        pieces += (tag, outputs[name].tobytes())
    return b"".join(pieces)


def remember_answer(asked: Asked, outputs: dict[str, Array], model: Model, body: bytes) -> None:
    """Keep what surrounds the numbers of an answer."""
    if asked.id_field is None or len(asked.looks) >= REMEMBERED:
        return
    if any(model.outputs[name].dtype == "string" for name in asked.outputs):
        return
    raws = [outputs[name].tobytes() for name in asked.outputs]
    tags = tuple(_RAW_OUTPUT + varint(len(raw)) for raw in raws)
    end = b"".join(part for pair in zip(tags, raws, strict=True) for part in pair)
    front = named(model.name, model.version) + asked.id_field
    if body.startswith(front) and body.endswith(end):
        behind = body[len(front) : len(body) - len(end)]
        asked.looks[_shapes(outputs)] = _Look(named(model.name, model.version), behind, tags)


def _shapes(outputs: dict[str, Array]) -> object:
    return tuple([one.shape for one in outputs.values()])


def varint(number: int) -> bytes:
    """A number as protobuf writes lengths."""
    digits = bytearray()
    while number >= 128:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)
