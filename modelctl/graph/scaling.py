"""Weights brought to an absolute sum of one, w/‖w‖₁, while the graph goes on computing the same.

A weight divided by its norm s makes the value behind it 1/s times what it was. That factor is carried along with the
values: a bias is divided too, positively homogeneous operators (Relu, pools, reshapes …) hand it on, products multiply
it, a batch normalization takes it up for good (γ·s and μ/s, so that its ε is not touched). Where a value has to be what
it was (a Sigmoid, branches of different factors that meet, an output of the graph, a factor near the end of the type's
range) one Mul gives it back.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.errors import ArtifactError
from modelctl.graph.closeness import step_of
from modelctl.graph.weights import FLOATS, nodes_of

OLDEST_OPSET = 7  # before, Mul and Add did not broadcast as they do now
# How small and how large a carried factor may become: values have to keep their digits, and stay finite.
_RANGES: dict[int, tuple[float, float]] = {
    TensorProto.FLOAT16: (2.0**-10, 2.0**2),
    TensorProto.BFLOAT16: (2.0**-40, 2.0**40),
    TensorProto.FLOAT: (2.0**-40, 2.0**40),
    TensorProto.DOUBLE: (2.0**-400, 2.0**400),
}
_DEFAULT_DOMAINS = ("", "ai.onnx")
# Where these take what is a weight if it is constant, and the ways that a weight may have gone through.
_WEIGHTED = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}
_BIASED = ("Conv", "ConvTranspose", "Gemm")  # their third input
_STILL = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"})
# Operators whose answer to c·x is c times that to x, for c > 0: of their first input;
_FIRST = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Abs", "Neg", "Div", "Dropout", "Resize"),
        *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"),
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"),
        *("Flatten", "Expand", "Tile", "Slice", "Split", "Gather", "GatherElements", "GatherND"),
        *("DepthToSpace", "SpaceToDepth", *_STILL),
    }
)
# of these inputs together (of all: None), where bounds and paddings are numbers like the others;
_TOGETHER = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat", "Clip")),
    "Where": (1, 2),
    "Pad": (0, 2),
}
_NUMBERS = frozenset({"min", "max", "value"})  # what older ones of those have as attributes
# and of each of their inputs by itself.
_EACH = frozenset({"Mul", "Einsum", *_WEIGHTED})

_Readers = Sequence[tuple[onnx.NodeProto, int]]


class GivenBack(StrEnum):
    """Where a weight's factor went: on into the next layer, into a Mul of its own, or nowhere, the weight as it was."""

    NEXT = "next"
    MUL = "mul"
    LEFT = "left"


@dataclass(frozen=True)
class Scaled:
    """What became of a weight of that absolute sum; `reason` says why it was left, or who has the factor."""

    weight: str
    norm: float
    given_back: GivenBack
    reason: str = ""


@dataclass(frozen=True)
class _Scale:
    """A value is `factor` times what it was; `of`: the weights whose factors no later layer has taken in yet."""

    factor: float
    dtype: int
    of: frozenset[str] = frozenset()


def l1_scale(model: onnx.ModelProto, name: str) -> list[Scaled]:
    """Divide, in place, each float weight of rank ≥ 2 of a convolution, Gemm or MatMul by its absolute sum.

    Tells what became of each; the function stays the same within rounding. Left as they are: weights that are also read
    where no factor is carried, zeros, and those whose numbers would lose digits (float16). ArtifactError if the nodes
    of the model called `name` are not in the order in which they run.
    """
    made = {output for node in model.graph.node for output in node.output if output}
    for node in model.graph.node:
        if made.intersection(node.input):
            raise ArtifactError(f"{name}: its nodes are not in the order in which they run")
        made.difference_update(node.output)
    return _Scaling(model).run()


class _Scaling:
    """One pass over the nodes, in their order, with the factor of every value met so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._opset = next((one.version for one in model.opset_import if one.domain in _DEFAULT_DOMAINS), 0)
        self._graph = model.graph
        inputs = {one.name for one in self._graph.input}
        self._held = {one.name: one for one in self._graph.initializer if one.name not in inputs}
        self._nodes: list[onnx.NodeProto] = []
        self._scales: dict[str, _Scale] = {}
        self._found: dict[str, Scaled] = {}
        self._brought: dict[tuple[str, float], str] = {}
        everywhere = list(nodes_of(self._graph))
        self._uses = Counter(value for node in everywhere for value in node.input)
        self._uses.update(one.name for one in self._graph.output)
        here = Counter(value for node in self._graph.node for value in node.input)
        # What the graph gives, and what its subgraphs read, keeps its name and its value.
        self._fixed = {value for value, uses in self._uses.items() if uses != here[value]}
        self._still = set(self._held)  # constants, and what is only turned of them
        self._taken = {*self._uses, *self._held, *inputs} | {one for node in everywhere for one in node.output}

    def run(self) -> list[Scaled]:
        """Scale the weights, then go through the nodes."""
        users: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self._graph.node:
            for place, value in enumerate(node.input):
                users.setdefault(value, []).append((node, place))
        for tensor in list(self._held.values()):
            readers = _readers(tensor.name, users)
            if tensor.data_type in FLOATS and len(tensor.dims) > 1 and any(_is_weight(*one) for one in readers):
                self._found[tensor.name] = self._scale(tensor, readers)
        for node in list(self._graph.node):
            made = onnx.NodeProto()
            made.CopyFrom(node)
            self._visit(made)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        return list(self._found.values())

    def _scale(self, tensor: TensorProto, readers: _Readers) -> Scaled:
        """Divide a weight by its norm, unless there is a reason to leave it."""
        array = numpy_helper.to_array(tensor)
        norm = float(np.abs(array.astype(np.float64)).sum())
        reason = self._reason(tensor, array, norm, readers)
        if reason:
            return Scaled(tensor.name, norm, GivenBack.LEFT, reason)
        tensor.CopyFrom(numpy_helper.from_array((array / np.float64(norm)).astype(array.dtype), tensor.name))
        self._scales[tensor.name] = _Scale(1 / norm, tensor.data_type, frozenset({tensor.name}))
        return Scaled(tensor.name, norm, GivenBack.NEXT)

    def _reason(self, tensor: TensorProto, array: Array, norm: float, readers: _Readers) -> str:
        """Why a weight can't be scaled; "" if it can."""
        if self._opset < OLDEST_OPSET:
            return f"opset {self._opset} is older than {OLDEST_OPSET}"
        if not 0 < norm < math.inf:
            return "holds nothing but zeros" if norm == 0 else "holds NaN or infinity"
        if tensor.name in self._fixed:
            return "is an output of the graph, or read in a subgraph"
        for node, place in readers:
            if self._fixed.intersection(node.output) and node.op_type in _STILL:
                return "is an output of the graph, or read in a subgraph"
            if not (_is_weight(node, place) or (place == 0 and _is_first(node))):
                return f"is read by {node.op_type}{f' ({node.name})' if node.name else ''} too"
            if (bias := _bias_of(node)) in self._held and not self._fits(bias, 1 / norm):
                return "would make its bias overflow"
        low, high = _RANGES[tensor.data_type]
        if not low <= 1 / norm <= high:
            return f"its absolute sum {norm:g} is out of the range of its type"
        exact = array.astype(np.float64) / norm
        lost = float(np.linalg.norm(exact - exact.astype(array.dtype).astype(np.float64)))
        if lost > step_of(array.dtype) * float(np.linalg.norm(exact)):
            return "would lose digits, its numbers being too small for its type"
        return ""

    def _visit(self, node: onnx.NodeProto) -> None:
        """Take a node over, with what has to come before and after it."""
        if node.op_type in _STILL and node.input and node.input[0] in self._still:
            self._still.update(node.output)
        scale = self._scale_of(node) if any(value in self._scales for value in node.input) else None
        self._nodes.append(node)
        if scale is None or scale.factor == 1:
            return
        for place, value in enumerate(node.output):
            if value in self._fixed:
                node.output[place] = self._fresh(value)
                self._scales[node.output[place]] = scale
                self._mul(node.output[place], 1.0, scale.dtype, value)
            elif value:
                self._scales[value] = scale

    def _scale_of(self, node: onnx.NodeProto) -> _Scale | None:
        """The scale of a node's outputs, its inputs and constants brought to where they fit together; None for none."""
        kind = node.op_type if node.domain in _DEFAULT_DOMAINS else ""
        if _is_first(node):
            self._bring(node, range(1, len(node.input)))
            return self._scales.get(node.input[0])
        if kind in _EACH:
            return self._product(node)
        if kind in _TOGETHER and not any(one.name in _NUMBERS and one.f for one in node.attribute):
            return self._together(node, _TOGETHER[kind])
        if kind == "BatchNormalization" and self._normalized(node):
            return None
        self._bring(node, range(len(node.input)))
        return None

    def _product(self, node: onnx.NodeProto) -> _Scale | None:
        """The product of the factors; a bias goes along. One that is out of range is given back before."""
        bias = _bias_of(node)
        places = [place for place, value in enumerate(node.input) if value and not (bias and place == 2)]
        dtype = next(one.dtype for value in node.input if (one := self._scales.get(value)) is not None)
        low, high = _RANGES[dtype]

        def scales() -> list[_Scale]:
            return [self._scales[value] for place in places if (value := node.input[place]) in self._scales]

        factor = math.prod(one.factor for one in scales())
        if not low <= factor <= high or (bias in self._held and not self._fits(bias, factor)):
            self._bring(node, [place for place in places if node.input[place] not in self._still])
            factor = math.prod(one.factor for one in scales())
        of = _all_of(scales())
        still = [value for place in places if (value := node.input[place]) in self._still]
        if still and node.op_type in _WEIGHTED:
            own = _all_of([self._scales[value] for value in still if value in self._scales])
            self._pass_on(of - own, still[0])
            of = own
        if bias:
            node.input[2] = self._at(bias, factor, dtype)
        return _Scale(factor, dtype, of)

    def _together(self, node: onnx.NodeProto, places: Sequence[int] | None) -> _Scale | None:
        """Bring all inputs to one factor: to none if one of them has none, else to the first one's."""
        wanted = [place for place in places or range(len(node.input)) if place < len(node.input) and node.input[place]]
        self._bring(node, [place for place in range(len(node.input)) if place not in wanted])
        plain = [node.input[place] for place in wanted if self._is_plain(node.input[place])]
        moving = [node.input[place] for place in wanted if not self._is_plain(node.input[place])]
        scales = [self._scales[value] for value in moving if value in self._scales]
        target = scales[0].factor if scales and len(scales) == len(moving) else 1.0
        if not scales or not all(self._fits(value, target) for value in plain):
            target = 1.0
        for place in wanted if scales else ():
            node.input[place] = self._at(node.input[place], target, scales[0].dtype)
        kept = [self._scales[value] for place in wanted if (value := node.input[place]) in self._scales]
        return _Scale(target, scales[0].dtype, _all_of(kept)) if target != 1 else None

    def _normalized(self, node: onnx.NodeProto) -> bool:
        """Let a batch normalization take the factor up; False where it can't."""
        scale = self._scales.get(node.input[0])
        training = any(one.name == "training_mode" and one.i for one in node.attribute)
        if scale is None or training or len(node.output) != 1 or len(node.input) != 5:
            return False
        gamma, _, mean, _ = node.input[1:]
        if not (self._is_plain(gamma) and self._is_plain(mean)):
            return False
        if not (self._fits(gamma, 1 / scale.factor) and self._fits(mean, scale.factor)):
            return False
        node.input[1] = self._at(gamma, 1 / scale.factor, scale.dtype)
        node.input[3] = self._at(mean, scale.factor, scale.dtype)
        self._pass_on(scale.of, gamma)
        return True

    def _pass_on(self, weights: Collection[str], taker: str) -> None:
        """Note that a later layer's weight has taken these weights' factors; a Mul elsewhere is told first."""
        for name in weights:
            if self._found[name].given_back is not GivenBack.MUL:
                self._found[name] = replace(self._found[name], reason=f"went on to {taker}")

    def _bring(self, node: onnx.NodeProto, places: Iterable[int]) -> None:
        """Let a node have these inputs as they were."""
        for place in places:
            scale = self._scales.get(node.input[place])
            if scale is not None:
                node.input[place] = self._at(node.input[place], 1.0, scale.dtype)

    def _at(self, value: str, factor: float, dtype: int) -> str:
        """The name under which a value is to be had at a factor: as it is, by another constant, or by a Mul."""
        scale = self._scales.get(value)
        if factor == (scale.factor if scale else 1.0):
            return value
        if (value, factor) not in self._brought:
            if self._is_plain(value):
                self._brought[value, factor] = self._constant(value, factor)
            else:
                self._brought[value, factor] = self._mul(value, factor, dtype, self._fresh(value))
        return self._brought[value, factor]

    def _mul(self, value: str, factor: float, dtype: int, into: str) -> str:
        scale = self._scales.get(value, _Scale(1.0, dtype))
        constant = self._fresh(f"{into}_scale")
        number = np.array(factor / scale.factor).astype(helper.tensor_dtype_to_np_dtype(dtype))
        self._graph.initializer.append(numpy_helper.from_array(number, constant))
        self._nodes.append(helper.make_node("Mul", [value, constant], [into], self._fresh(f"{into}_mul")))
        if factor != 1:
            self._scales[into] = _Scale(factor, dtype)
        for name in scale.of:
            self._found[name] = replace(self._found[name], given_back=GivenBack.MUL, reason=f"is given back to {into}")
        return into

    def _constant(self, name: str, factor: float) -> str:
        """A constant times a factor: itself where nobody else reads it, else another one."""
        tensor = self._held[name]
        array = numpy_helper.to_array(tensor)
        scaled = (array.astype(np.float64) * factor).astype(array.dtype)
        if self._uses[name] == 1:
            tensor.CopyFrom(numpy_helper.from_array(scaled, name))
            return name
        other = self._fresh(name)
        self._graph.initializer.append(numpy_helper.from_array(scaled, other))
        return other

    def _is_plain(self, value: str) -> bool:
        """Whether a value is a constant that is not scaled."""
        return value in self._held and value not in self._scales

    def _fits(self, name: str, factor: float) -> bool:
        array = numpy_helper.to_array(self._held[name])
        with np.errstate(over="ignore"):
            return bool(np.isfinite((array.astype(np.float64) * factor).astype(array.dtype)).all())

    def _fresh(self, like: str) -> str:
        number = 0
        while (name := f"{like}_l1{number or ''}") in self._taken:
            number += 1
        self._taken.add(name)
        return name


def _is_weight(node: onnx.NodeProto, place: int) -> bool:
    return node.domain in _DEFAULT_DOMAINS and place in _WEIGHTED.get(node.op_type, ())


def _is_first(node: onnx.NodeProto) -> bool:
    """Whether a node hands the factor of its first input on to what it gives."""
    if node.domain not in _DEFAULT_DOMAINS or node.op_type not in _FIRST:
        return False
    if node.op_type == "Dropout" and len(node.input) > 2:
        return False
    cropped = any(one.s == b"tf_crop_and_resize" for one in node.attribute)  # puts a number in where nothing is
    return not cropped and (len(node.output) == 1 or node.op_type == "Split")


def _bias_of(node: onnx.NodeProto) -> str:
    return node.input[2] if node.op_type in _BIASED and len(node.input) > 2 else ""


def _all_of(scales: Sequence[_Scale]) -> frozenset[str]:
    return frozenset[str]().union(*(one.of for one in scales))


def _readers(value: str, users: Mapping[str, _Readers]) -> list[tuple[onnx.NodeProto, int]]:
    """The nodes, and the places in them, that read a weight, turned or as it is, and those that turn it."""
    found: list[tuple[onnx.NodeProto, int]] = []
    waiting, seen = [value], {value}
    while waiting:
        for node, place in users.get(waiting.pop(), ()):
            found.append((node, place))
            if node.op_type in _STILL and place == 0:
                waiting += [one for one in node.output if one not in seen]
                seen.update(node.output)
    return found
