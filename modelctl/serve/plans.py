"""What was understood of a request once need not be understood again.

A client asks the same question with other numbers: around the numbers, its requests are the same, byte for byte. So
what `openinference.read` made of those bytes is remembered, and of the next such request only the numbers are read: raw
ones where they lie, JSON's by simdjson into a buffer, those of all requests that share a run at once. Whatever is not
exactly like a request that was read before, or not plainly right, goes the long way, which has the words for what is
wrong.

The same holds for answers: around the numbers, they differ by nothing but the shapes of outputs.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import simdjson

from modelctl.serve.http import Answer
from modelctl.serve.jobs import Unread
from modelctl.serve.models import Model
from modelctl.serve.tensors import DATATYPES, Array, Datatype, datatype_of

HEADER_LENGTH = b"inference-header-content-length"
BINARY = b"application/octet-stream"
KEY_BYTES = 2048  # longer surroundings are not remembered
REMEMBERED = 128  # plans a model, answers a plan
ONE_THREAD = 4096
MARK = "modelctl: the numbers"

Read = Callable[[bytes], dict[str, Array]]  # the tensors of a request in JSON, or `Refused`

_parser: Any = simdjson.Parser()
_TYPES = {"FP64": "d", "FP32": "d", "FP16": "d", "INT64": "i"}  # what simdjson's numbers become
_SQUARES = {word: float(np.finfo(DATATYPES[word].dtype).max) ** 2 for word in ("FP32", "FP16")}
_ELEMENTS = {"d": np.dtype("float64"), "i": np.dtype("int64")}


@dataclass(slots=True)
class Asked:
    """What an inference request says around its numbers, and what answers look like by their outputs' shapes."""

    id: str | None
    outputs: dict[str, bool]  # the outputs wanted, in order: whether as binary data
    looks: "dict[object, _Look]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Look:
    """An answer around its numbers."""

    parts: list[bytes]  # one more than outputs in JSON; the head of a binary answer
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class _Raw:
    """A request of raw tensors: where each lies in the body, behind the JSON."""

    asked: Asked
    size: int
    places: list[tuple[str, np.dtype[Any], int, int, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A request of one tensor in JSON; `again` reads such a request the long way."""

    asked: Asked
    name: str
    kind: Datatype
    shape: tuple[int, ...]
    count: int
    again: Read


class Text(Unread):
    """The numbers of a request in JSON like one before."""

    __slots__ = ("_body", "_numbers", "_plan")

    def __init__(self, plan: _Numbers, numbers: bytes, body: bytes) -> None:
        super().__init__(plan.shape, plan.count)
        self._plan = plan
        self._numbers = numbers
        self._body = body

    def read(self) -> dict[str, Array]:
        """The tensor by its name; `Refused` says what is wrong with it."""
        return self.read_with(()) or self._plan.again(self._body)

    def read_with(self, others: "Sequence[Text]") -> dict[str, Array] | None:
        """Its rows and behind them those of others, for the same model; None when one of them is not plainly right."""
        plan = self._plan
        found = _found([self, *others], plan.kind)
        return None if found is None else {plan.name: found.reshape(-1, *plan.shape[1:])}


def _found(texts: "list[Text]", kind: Datatype) -> Array | None:
    """The numbers of all texts in one row; None when one of them is not plainly right.

    Each text begins with a bracket and has no closing one before its end. So if they are lists of a list, and all that
    is in them is numbers, none of them holds a list within, or part of another.
    """
    letter = _TYPES[kind.word]
    try:
        lists = _parser.parse(b"[%b]" % b",".join([one._numbers for one in texts]))
        row = np.frombuffer(lists.as_buffer(of_type=letter), _ELEMENTS[letter])
        if [len(one) for one in lists] != [one.elements for one in texts]:
            return None
    except (ValueError, TypeError, RuntimeError):
        return None
    return _fitted(row, kind)


class Plans:
    """The requests that a model was asked, by what surrounds their numbers; `again` reads one in JSON the long way."""

    def __init__(self, model: Model, again: Read) -> None:
        self._model = model
        self._again = again
        self._lengths: dict[bytes, int] = {}  # of a request's JSON, by the header that tells it
        self._raw: dict[bytes, _Raw] = {}
        self._numbers: dict[tuple[bytes, bytes], _Numbers] = {}

    def recall(self, body: bytes, header_length: bytes | None) -> tuple[Asked, dict[str, Array] | Text] | None:
        """What a request says, and its tensors, if one like it was remembered."""
        if header_length is None:
            return self._recall_numbers(body)
        plan = self._raw.get(body[: self._lengths.get(header_length, 0)])
        if plan is None or plan.size != len(body):
            return None
        feeds: dict[str, Array] = {}
        for name, dtype, place, count, shape in plan.places:
            if place % dtype.itemsize:  # kernels load whole words, which a copy is fit for
                data = body[place : place + count * dtype.itemsize]
                feeds[name] = np.frombuffer(data, dtype, count).reshape(shape)
            else:
                feeds[name] = np.frombuffer(body, dtype, count, place).reshape(shape)
        return plan.asked, feeds

    def remember(self, body: bytes, header_length: bytes | None, asked: Asked, feeds: dict[str, Array]) -> None:
        """Keep what was understood of a request that `openinference.read` has found right."""
        if len(self._raw) + len(self._numbers) >= REMEMBERED:
            self._raw.clear()
            self._lengths.clear()
            self._numbers.clear()
        kinds = {name: _kind(self._model, name) for name in feeds}
        if header_length is None:
            self._remember_numbers(body, asked, feeds, kinds)
        elif int(header_length) <= KEY_BYTES:
            self._remember_raw(body, header_length, asked, feeds, kinds)

    def _recall_numbers(self, body: bytes) -> tuple[Asked, Text] | None:
        cut = _cut(body)
        if cut is None:
            return None
        before, numbers, behind = cut
        plan = self._numbers.get((before, behind))
        return None if plan is None else (plan.asked, Text(plan, numbers, body))

    def _remember_numbers(self, body: bytes, asked: Asked, feeds: dict[str, Array], kinds: dict[str, Datatype]) -> None:
        cut = _cut(body)
        if cut is None or len(feeds) != 1:
            return
        ((name, kind),) = kinds.items()
        before, _, behind = cut
        try:
            document = orjson.loads(b'%b"%b"%b' % (before, MARK.encode(), behind))
        except orjson.JSONDecodeError:
            return  # the list that was cut out was none by itself
        (given,) = document["inputs"]
        shape = feeds[name].shape
        fits = given.get("data") == MARK and kind.word in _TYPES and max(len(before), len(behind)) <= KEY_BYTES
        if fits and shape:
            self._numbers[before, behind] = _Numbers(asked, name, kind, shape, math.prod(shape), self._again)

    def _remember_raw(
        self, body: bytes, header: bytes, asked: Asked, feeds: dict[str, Array], kinds: dict[str, Datatype]
    ) -> None:
        head = body[: int(header)]
        if any(kind.word in ("BYTES", "BOOL") for kind in kinds.values()):
            return  # of these the very bytes have to be looked at
        if any("data" in one for one in orjson.loads(head)["inputs"]):
            return
        places = []
        place = len(head)
        for name, array in feeds.items():
            places.append((name, array.dtype, place, array.size, array.shape))
            place += array.nbytes
        self._lengths[header] = len(head)
        self._raw[head] = _Raw(asked, len(body), places)


def _kind(model: Model, name: str) -> Datatype:
    kind = datatype_of(model.inputs[name].dtype)
    assert kind is not None  # a model with another dtype is not taken in
    return kind


def _cut(body: bytes) -> tuple[bytes, bytes, bytes] | None:
    """A body before the first list that is called data, that list, and what comes behind it."""
    begins = body.find(b"[", body.find(b'"data"', 0, KEY_BYTES) + 6, KEY_BYTES)
    ends = body.find(b"]", begins) + 1
    if begins < 6 or not ends:
        return None
    return body[:begins], body[begins:ends], body[ends:]


def _fitted(found: Array, kind: Datatype) -> Array | None:
    """Numbers in their own datatype; None when one may be out of its range."""
    if found.dtype == kind.dtype:
        return found
    # A sum of squares below the square of the largest number: none of them is larger.
    if not _squares(found) < _SQUARES[kind.word]:
        return None
    return found.astype(kind.dtype)


def _squares(found: Array) -> float:
    """The sum of squares, or what is no less than the largest of them; BLAS would wake its threads for a long sum."""
    if len(found) <= ONE_THREAD:
        return float(np.vdot(found, found))  # `dot` would warn of an overflow
    return float(max(found.max(), -found.min())) ** 2


def recall_answer(asked: Asked, outputs: dict[str, Array]) -> Answer | None:
    """The answer with these outputs, if what surrounds their numbers was remembered."""
    look = asked.looks.get(_shapes(outputs))
    if look is None:
        return None
    if look.headers:
        blobs = [outputs[name].tobytes() for name in asked.outputs]
        return Answer(b"".join([look.parts[0], *blobs]), BINARY, 200, look.headers)
    if len(look.parts) == 2:  # one output, as most models have
        (name,) = asked.outputs
        return Answer(look.parts[0] + _numbers(outputs[name]) + look.parts[1])
    pieces = [look.parts[0]]
    for name, part in zip(asked.outputs, look.parts[1:], strict=True):
        pieces += (_numbers(outputs[name]), part)
    return Answer(b"".join(pieces))


def _numbers(output: Array) -> bytes:
    return orjson.dumps(output.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)


def remember_answer(asked: Asked, outputs: dict[str, Array], model: Model, answer: Answer) -> None:
    """Keep what surrounds the numbers of an answer."""
    words = {model.outputs[name].dtype for name in asked.outputs}
    binary = set(asked.outputs.values())
    if words & {"string", "bfloat16"} or len(binary) != 1 or len(asked.looks) >= REMEMBERED:
        return
    if binary == {True}:
        if sys.byteorder == "little":
            ((_, length),) = answer.headers
            asked.looks[_shapes(outputs)] = _Look([answer.body[: int(length)]], answer.headers)
        return
    document = orjson.loads(answer.body)
    for one in document["outputs"]:
        one["data"] = MARK
    parts = orjson.dumps(document).split(b'"%b"' % MARK.encode())
    if len(parts) == len(asked.outputs) + 1:
        asked.looks[_shapes(outputs)] = _Look(parts)


def _shapes(outputs: dict[str, Array]) -> object:
    """The shapes of all outputs; that of the only one, where a model has one."""
    if len(outputs) == 1:
        (one,) = outputs.values()
        return one.shape
    return tuple([one.shape for one in outputs.values()])
