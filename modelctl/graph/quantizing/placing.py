"""Where a graph is to be rounded so that onnxruntime computes it with integers: which weights, and which values.

A convolution or a sum has an integer kernel where its inputs and its output are stored in few bits, the Relu or Clip
that follows included; a product where its inputs are. What hands numbers on as they are (a pool, a reshape) keeps the
range of what it was given, so that it costs nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

MOVING = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
_ATTENDING = frozenset({"LayerNormalization", "Softmax", "Attention", "MultiHeadAttention", "SkipLayerNormalization"})


@dataclass(frozen=True)
class Weighted:
    """A node that multiplies with a weight: its name, the weight's and the bias's (or ""), the weight's output axis."""

    node: str
    weight: str
    bias: str
    axis: int


@dataclass
class Plan:
    """What is rounded.

    `ranges` tells for each rounded value which value's range it has; `whole` are those whose every reader gets the
    rounded number, of the others only `readers` do, nodes by name. `bounds` are the upper ends of clips at zero and
    there, whose values may not be stored beyond it.
    """

    weighted: list[Weighted] = field(default_factory=list)
    ranges: dict[str, str] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    readers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    bounds: dict[str, float] = field(default_factory=dict)


def plan(model: onnx.ModelProto, excluded: Collection[str] = ()) -> Plan:
    """What of a float graph is rounded, whose nodes all have names of their own; nodes `excluded` by name stay.

    All convolutions, Gemms and MatMuls with a constant weight, and the sums of a convolutional net: along the residuals
    of a transformer they lose more than they gain.
    """
    return _Planner(model, excluded).plan()


class _Planner:
    def __init__(self, model: onnx.ModelProto, excluded: Collection[str]) -> None:
        graph = self._graph = model.graph
        self._excluded = frozenset(excluded)
        self._held = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {one.name for one in graph.output}
        self._maker = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        told = shape_inference.infer_shapes(model).graph
        self._kinds = {one.name: one.type.tensor_type.elem_type for one in (*told.input, *told.value_info)}
        self._found = Plan()

    def plan(self) -> Plan:
        found = self._found
        found.weighted = self._weighted()
        nodes = {node.name: node for node in self._graph.node}
        chosen = [nodes[one.node] for one in found.weighted]
        sums = self._sums() if any(node.op_type == "Conv" for node in chosen) else []
        for node in (*(one for one in chosen if one.op_type == "Conv"), *sums):
            self._give(node)
        for node in chosen:
            self._take(node.input[0], node.name)
        for node in sums:
            for value in node.input:
                self._take(value, node.name)
        return found

    def _weighted(self) -> list[Weighted]:
        """The nodes that can be computed with an integer weight that no other kind of node uses."""
        found = [one for node in self._graph.node if (one := self._product(node)) is not None]
        uses = Counter(one.weight for one in found)
        axes = {one.weight: one.axis for one in found}
        alone = [
            weight
            for weight, count in uses.items()
            if count == len(self._readers[weight])
            and weight not in self._outputs
            and {one.axis for one in found if one.weight == weight} == {axes[weight]}
        ]
        return [one for one in found if one.weight in alone]

    def _product(self, node: onnx.NodeProto) -> Weighted | None:
        if node.name in self._excluded or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            return None
        told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        weight, bias = self._held.get(node.input[1]), node.input[2] if len(node.input) > 2 else ""
        if weight is None or weight.data_type != TensorProto.FLOAT or node.input[0] in self._held:
            return None
        rank = len(weight.dims)
        match node.op_type:
            case "Conv" if rank > 2:
                axis = 0
            case "MatMul" if rank == 2:
                axis = 1
            case "Gemm" if not told.get("transA") and told.get("alpha", 1.0) == 1 and told.get("beta", 1.0) == 1:
                axis = 0 if told.get("transB") else 1
            case _:
                return None
        if bias and (bias not in self._held or list(self._held[bias].dims) != [weight.dims[axis]]):
            return None
        return Weighted(node.name, weight.name, bias, axis)

    def _sums(self) -> list[onnx.NodeProto]:
        if any(node.op_type in _ATTENDING for node in self._graph.node):
            return []
        return [
            node
            for node in self._graph.node
            if node.op_type == "Add"
            and node.name not in self._excluded
            and not set(node.input) & self._held.keys()
            and self._rectified(node) not in self._outputs
            and all(self._kinds.get(name) == TensorProto.FLOAT for name in node.input)
        ]

    def _rectified(self, node: onnx.NodeProto) -> str:
        """What comes out of a node once the Relu or Clip after it has seen it, where nothing else reads it."""
        value = str(node.output[0])
        readers = self._readers[value]
        if value in self._outputs or len(readers) != 1:
            return value
        last = readers[0]
        if last.op_type == "Relu" or (last.op_type == "Clip" and self._bound(last) is not None):
            return str(last.output[0])
        return value

    def _bound(self, clip: onnx.NodeProto) -> float | None:
        """The upper end of a clip between 0 and a constant."""
        ends = [self._held.get(name) for name in clip.input[1:]]
        if len(ends) != 2 or any(one is None for one in ends):
            return None
        low, high = (float(numpy_helper.to_array(one)) for one in ends if one is not None)
        return high if low == 0 < high else None

    def _give(self, node: onnx.NodeProto) -> None:
        """Round what comes out of a node."""
        value = self._rectified(node)
        self._found.ranges[value] = value
        self._found.whole.add(value)
        last = self._maker[value]
        if last.op_type == "Clip" and (bound := self._bound(last)) is not None:
            self._found.bounds[value] = bound

    def _take(self, value: str, reader: str) -> None:
        """Round what goes into a node, on the way to which it may have been moved."""
        way = [value]
        while (maker := self._maker.get(way[-1])) is not None and maker.op_type in MOVING:
            way.append(maker.input[0])
        if way[-1] in self._found.whole:
            for moved in way[:-1]:
                if moved not in self._outputs:
                    self._found.ranges[moved] = self._found.ranges[way[-1]]
                    self._found.whole.add(moved)
        if value not in self._found.ranges:
            self._found.ranges[value] = value
        if value not in self._found.whole:
            self._found.readers[value].add(reader)
