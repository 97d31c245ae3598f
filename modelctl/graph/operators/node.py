"""What an operator's torch meaning is made of: one node of a graph, read once, and the table of all operators.

A family is a module of functions, each decorated with the operators that it means (`plain` enters those without
attributes):

    @operator("Softmax")
    def softmax(node: Node) -> Call:
        axis = node.integer("axis", -1 if node.opset >= 13 else 1)
        return lambda x: torch.softmax(x, axis)

The function is called once, when a graph is built, and reads attributes, operator set version and constants; what it
returns is called with the node's inputs, as tensors, every time the graph runs. An input that is left out is None; a
sequence is a list of tensors. Several outputs are a tuple. Nothing that is returned may be changed in place later, nor
may an input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch

from modelctl.errors import UnsupportedError
from modelctl.formats import onnx as onnx_format

Call = Callable[..., Any]
Maker = Callable[["Node"], Call]

OLDEST_OPSET = 7


@dataclass(frozen=True)
class Operator:
    """What makes an operator's call, and which of its inputs are not learned.

    `host`: inputs read as Python numbers (shapes, axes, scales), which therefore stay on the CPU wherever the graph
    runs. `fixed`: other inputs that are no weights, such as running statistics and the bounds of a clip.
    """

    make: Maker
    host: frozenset[int]
    fixed: frozenset[int]


OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(
    *names: str, domain: str = "", host: tuple[int, ...] = (), fixed: tuple[int, ...] = ()
) -> Callable[[Maker], Maker]:
    """Enter a function as the meaning of the named operators."""

    def enter(make: Maker) -> Maker:
        for name in names:
            OPERATORS[domain, name] = Operator(make, frozenset(host), frozenset(host + fixed))
        return make

    return enter


def plain(name: str, call: Call, *, domain: str = "", host: tuple[int, ...] = (), fixed: tuple[int, ...] = ()) -> None:
    """Enter `call` itself as the meaning of an operator that has no attributes."""
    operator(name, domain=domain, host=host, fixed=fixed)(lambda _: call)


@dataclass
class Mode:
    """What may change between two runs of the same graph: whether it learns."""

    training: bool = False


@dataclass(frozen=True)
class Node:
    """A node as an operator reads it: attributes, operator set version, and inputs that are known beforehand."""

    proto: onnx.NodeProto
    opset: int
    mode: Mode = field(default_factory=Mode)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """How many inputs the node names, those left out in between counted."""
        return len(self.proto.input)

    @property
    def outputs(self) -> int:
        """How many outputs the node names."""
        return len(self.proto.output)

    def has(self, place: int) -> bool:
        """Whether the input at `place` is given."""
        return place < len(self.proto.input) and bool(self.proto.input[place])

    def gives(self, place: int) -> bool:
        """Whether the output at `place` is wanted."""
        return place < len(self.proto.output) and bool(self.proto.output[place])

    def constant(self, place: int) -> torch.Tensor | None:
        """The input at `place` if it is the same in every run and is not learned, else None."""
        return self.constants.get(self.proto.input[place]) if self.has(place) else None

    def kind(self, place: int) -> int:
        """The element type (of onnx.proto) of the input at `place`; 0 where the graph does not tell."""
        return self.kinds.get(self.proto.input[place], 0) if self.has(place) else 0

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute that is a whole number."""
        found = self._attribute(name)
        return default if found is None else found.i

    def integers(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """An attribute that is a list of whole numbers."""
        found = self._attribute(name)
        return default if found is None else tuple(found.ints)

    def number(self, name: str, default: float = 0.0) -> float:
        """An attribute that is a number."""
        found = self._attribute(name)
        return default if found is None else found.f

    def numbers(self, name: str, default: tuple[float, ...] = ()) -> tuple[float, ...]:
        """An attribute that is a list of numbers."""
        found = self._attribute(name)
        return default if found is None else tuple(found.floats)

    def text(self, name: str, default: str = "") -> str:
        """An attribute that is a string."""
        found = self._attribute(name)
        return default if found is None else found.s.decode()

    def choice(self, name: str, first: str, *others: str) -> str:
        """An attribute that is one of a few words, `first` if it is not given; UnsupportedError for another word."""
        found = self.text(name, first)
        if found not in (first, *others):
            raise self.refuse(f"{name} is {found!r}, not one of {', '.join((first, *others))}")
        return found

    def dtype(self, name: str) -> torch.dtype | None:
        """An attribute that is an element type, None if not given; UnsupportedError for one that torch has not."""
        kind = self.integer(name)
        if kind and kind not in DTYPES:
            known = kind in onnx.TensorProto.DataType.values()
            told = onnx.TensorProto.DataType.Name(kind).lower() if known else f"an unknown type, {kind}"
            raise self.refuse(f"{name} is {told}, which torch can't compute with")
        return DTYPES[kind] if kind else None

    def texts(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """An attribute that is a list of strings."""
        found = self._attribute(name)
        return default if found is None else tuple(one.decode() for one in found.strings)

    def tensor(self, name: str) -> torch.Tensor | None:
        """An attribute that is a tensor; None if it is not given."""
        found = self._attribute(name)
        return None if found is None else to_torch(found.t)

    def given(self, name: str) -> bool:
        """Whether an attribute is there."""
        return self._attribute(name) is not None

    def refuse(self, what: str, hint: str | None = None) -> UnsupportedError:
        """The error for a use of the operator that can't be run in torch, to be raised."""
        called = f" ({self.proto.name})" if self.proto.name else ""
        return UnsupportedError(f"{self.proto.op_type}{called}: {what}", hint)

    def _attribute(self, name: str) -> onnx.AttributeProto | None:
        return next((one for one in self.proto.attribute if one.name == name), None)


def to_torch(tensor: onnx.TensorProto, files: Mapping[str, bytes] | None = None) -> torch.Tensor:
    """A stored tensor as torch's, in memory of its own; UnsupportedError for a type that torch has not.

    `files` are those that hold the data of external tensors.
    """
    array = onnx_format.array_of(tensor, files or {})
    if tensor.data_type in HELD:
        return torch.tensor(array.astype("f4" if array.dtype.kind == "V" else "i4"), dtype=HELD[tensor.data_type])
    wanted = DTYPES.get(tensor.data_type)
    if wanted is None:
        told = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        raise UnsupportedError(f"{tensor.name or 'a constant'}: is {told}, which torch can't compute with")
    if array.dtype.kind == "V" or array.dtype.name not in _NUMPY_SHARES:  # ml_dtypes': the same bits, unnamed
        bits = {1: torch.uint8, 2: torch.int16}[array.dtype.itemsize]
        as_bits = array.view("u1" if array.dtype.itemsize == 1 else "i2")
        return torch.tensor(as_bits, dtype=bits).view(wanted).reshape(array.shape)
    return torch.tensor(array, dtype=wanted)


# Element types of onnx.proto that torch computes with.
DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    onnx.TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    onnx.TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    onnx.TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    onnx.TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
    onnx.TensorProto.COMPLEX64: torch.complex64,
    onnx.TensorProto.COMPLEX128: torch.complex128,
}
# Element types that torch has not, and the smallest one that holds their numbers and computes.
HELD: dict[int, torch.dtype] = {
    onnx.TensorProto.INT4: torch.int8,
    onnx.TensorProto.UINT4: torch.uint8,
    onnx.TensorProto.INT2: torch.int8,
    onnx.TensorProto.UINT2: torch.uint8,
    onnx.TensorProto.FLOAT4E2M1: torch.float32,
}
_NUMPY_SHARES = frozenset(
    {"bool", "float16", "float32", "float64", "complex64", "complex128"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def numbers_of(tensor: torch.Tensor) -> list[int]:
    """A tensor of rank 0 or 1 as whole numbers."""
    found = tensor.tolist()
    return list(found) if isinstance(found, list) else [found]
