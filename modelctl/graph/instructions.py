"""A graph read into instructions: what each node calls, what is learned, what is known beforehand and where it lies.

What is the same in every run is computed once. What comes from `Shape` stays on the CPU wherever the graph runs, until
an operator on the device needs it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch

from modelctl.errors import DataError, UnsupportedError
from modelctl.graph.operators import OPERATORS
from modelctl.graph.operators.node import DTYPES, Mode, Node, Operator, to_torch
from modelctl.graph.operators.quantization import Stored, stored_weight

LARGEST_WEIGHT = 1e4  # what is larger, or infinite, is a mask
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Where", "Min", "Max", "Sum", "Mean", "Mod"})
_ON_HOST = frozenset({"Shape", "Size"})
DEFAULT_DOMAINS = ("", "ai.onnx")
_NOTHING = 0  # the slot of an input that is left out


@dataclass(frozen=True)
class Instruction:
    """One node of the graph: its call, the slots of its inputs and outputs, and those that are free afterwards.

    `lifted` are the inputs that lie on the CPU and are needed on the device.
    """

    call: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    free: tuple[int, ...]
    lifted: tuple[int, ...]
    node: onnx.NodeProto


UNFIT = (RuntimeError, IndexError, ValueError, ArithmeticError)  # what torch raises for sizes that don't fit


def unfit(name: str, node: onnx.NodeProto, error: Exception) -> DataError:
    """The error for values that an operator of the graph `name` can't be computed with."""
    told = " ".join(str(error).split())[:300]
    called = f" ({node.name})" if node.name else ""
    return DataError(f"{name}: {node.op_type}{called} failed on this input: {told}")


class Build:
    """What a graph becomes: what is learned, what is known beforehand and where it lies, and the instructions."""

    def __init__(
        self,
        name: str,
        opsets: Mapping[str, int],
        mode: Mode,
        model: onnx.ModelProto,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self._name, self._opsets, self._mode = name, opsets, mode
        self._kinds = _kinds(model)
        nodes = onnx.GraphProto(node=model.graph.node).node  # else one node would hold the memory of the whole model
        operators = [self._operator(node) for node in nodes]
        weights = _weights(model, operators)
        self.learned: dict[str, torch.Tensor] = {}
        self._known: dict[str, torch.Tensor] = {}
        for tensor in model.graph.initializer:
            numbers = to_torch(tensor, files)
            learns = tensor.name in weights and _is_small(numbers)
            (self.learned if learns else self._known)[tensor.name] = numbers
        self.stored = self._stored(model)
        self.learned |= {value: one.values(self._known.pop(value)) for value, one in self.stored.items()}
        left = self._fold(nodes, operators)
        self.slots: dict[str, int] = {}
        self.host_slots: dict[str, int] = {}
        self.on_device: dict[str, torch.Tensor] = {}
        self.on_host: dict[str, torch.Tensor] = {}
        self.size = 1
        for value in (*(one.name for one in model.graph.input), *self.learned):
            self._slot(value)
        self.instructions = self._instructions(left, [one.name for one in model.graph.output])

    def _operator(self, node: onnx.NodeProto) -> Operator:
        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        found = OPERATORS.get((domain, node.op_type))
        if found is None:
            called = f"{domain}:{node.op_type}" if domain else node.op_type
            placed = f" ({node.name})" if node.name else ""
            raise UnsupportedError(
                f"{self._name}: the operator {called}{placed} can be run, not trained",
                "export the model without it, or train it where it comes from",
            )
        return found

    def _read(self, node: onnx.NodeProto) -> Node:
        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        return Node(node, self._opsets.get(domain, 1), self._mode, self._known, self._kinds)

    def _stored(self, model: onnx.ModelProto) -> dict[str, Stored]:
        """The weights that are stored as integers and read by DequantizeLinear alone, everywhere the same way."""
        found: dict[str, Stored | None] = dict.fromkeys((one.name for one in model.graph.output), None)
        for node in model.graph.node:
            for place, value in enumerate(node.input):
                if value in self._known:
                    one = stored_weight(self._read(node)) if place == 0 else None
                    found[value] = one if found.get(value, one) == one else None
        learned = {value: one for value, one in found.items() if one is not None}
        return {value: one for value, one in learned.items() if _is_small(one.values(self._known[value]))}

    def _made(self, node: onnx.NodeProto, known: Operator) -> Callable[..., Any]:
        try:
            return known.make(self._read(node))
        except UNFIT as error:
            raise unfit(self._name, node, error) from error

    def _fold(
        self, nodes: Iterable[onnx.NodeProto], operators: Iterable[Operator]
    ) -> list[tuple[onnx.NodeProto, Operator, Callable[..., Any]]]:
        """Compute what is the same in every run; the nodes that are left, with their calls."""
        left = []
        for node, known in zip(nodes, operators, strict=True):
            stored = self.stored.get(node.input[0]) if node.input else None
            call: Callable[..., Any] = stored.call if stored is not None else self._made(node, known)
            if not node.input or any(one and one not in self._known for one in node.input):
                left.append((node, known, call))
                continue
            try:
                with torch.no_grad():
                    found = call(*(self._known.get(one) for one in node.input))
            except UNFIT as error:
                raise unfit(self._name, node, error) from error
            if isinstance(found, list):  # a sequence is made anew in every run: only tensors are kept beforehand
                left.append((node, known, call))
                continue
            for value, tensor in zip(node.output, found if isinstance(found, tuple) else (found,), strict=False):
                self._known[value] = tensor
        return left

    def _instructions(
        self, nodes: Sequence[tuple[onnx.NodeProto, Operator, Callable[..., Any]]], outputs: Sequence[str]
    ) -> list[Instruction]:
        on_host: set[str] = set()  # values that are computed there
        steps = []
        for node, known, call in nodes:
            sources = [one for one in node.input if one and one not in self._known]
            here = bool(sources) and all(one in on_host for one in sources)
            if here or node.op_type in _ON_HOST:
                on_host.update(node.output)
            inputs = tuple(
                self._source(value, here or place in known.host) if value else _NOTHING
                for place, value in enumerate(node.input)
            )
            lifted = tuple(
                place
                for place, value in enumerate(node.input)
                if value in on_host and not here and place not in known.host
            )
            steps.append((call, inputs, tuple(self._slot(value) for value in node.output), lifted, node))
        kept = {self._source(value, on_host=False) for value in outputs}
        return _with_ends(steps, kept | {self.slots[value] for value in (*self.learned, *self.on_device)})

    def _source(self, value: str, on_host: bool) -> int:
        """The slot where an instruction finds a value, which is put there if it is known beforehand."""
        if value not in self._known:
            return self.slots[value]
        if not on_host:
            self.on_device[value] = self._known[value]
            return self._slot(value)
        self.on_host[value] = self._known[value]
        if value not in self.host_slots:
            self.host_slots[value] = self.size
            self.size += 1
        return self.host_slots[value]

    def _slot(self, value: str) -> int:
        if value not in self.slots:
            self.slots[value] = self.size
            self.size += 1
        return self.slots[value]


def _with_ends(steps: Sequence[tuple[Any, ...]], kept: set[int]) -> list[Instruction]:
    """The instructions, each with the slots that no later one reads and that nobody asks for."""
    seen = set(kept)
    found = []
    for call, inputs, outputs, lifted, node in reversed(steps):
        ending = {*inputs, *outputs} - seen - {_NOTHING}
        seen |= ending
        found.append(Instruction(call, inputs, outputs, tuple(sorted(ending)), lifted, node))
    return found[::-1]


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of values, as far as the graph tells them."""
    graph = model.graph
    told = {one.name: one.type.tensor_type.elem_type for one in (*graph.input, *graph.value_info, *graph.output)}
    return told | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _weights(model: onnx.ModelProto, operators: Sequence[Operator]) -> set[str]:
    """The initializers that are weights, if their numbers are."""
    floats = {tensor.name: tensor for tensor in model.graph.initializer if DTYPES.get(tensor.data_type) in _FLOATS}
    found = set()
    for node, known in zip(model.graph.node, operators, strict=True):
        for place, value in enumerate(node.input):
            if value not in floats or place in known.fixed:
                continue
            if node.op_type not in _ARITHMETIC or math.prod(floats[value].dims) > 1:
                found.add(value)
    return found


def _is_small(values: torch.Tensor) -> bool:
    if not values.numel():
        return False
    least, most = values.aminmax()
    return bool(least > -LARGEST_WEIGHT) and bool(most < LARGEST_WEIGHT)  # false for NaN too
