"""A float graph made to learn what rounding does to it, and the same graph written in integers when it has learned.

`put` enters the operators of `rounding` where a plan says; they compute in floats what the written graph will compute
in integers. `written` takes them out again, for pairs of QuantizeLinear and DequantizeLinear, weights as integers, and
int32 biases in the scales that came out.

A weight of four bits or fewer is stored as INT4, of two as INT2, and cast to int8 in front of its DequantizeLinear:
onnxruntime computes that once, when it loads the model, and finds its integer kernels then. A DequantizeLinear that
reads INT4 itself would be left, and run every time, before a convolution of floats.
"""

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.graph import normalization
from modelctl.graph.histograms import Range
from modelctl.graph.operators.node import Node
from modelctl.graph.quantizing import rounding
from modelctl.graph.quantizing.placing import Plan

OPSETS = {2: 25, 3: 21, 4: 21}  # where weights of so many bits can be stored in fewer than eight; INT2 came with 25
IR_VERSIONS = {2: 13, 3: 10, 4: 10}
LEARNED_BELOW = 4  # bits: with few levels it pays to clip the largest weights, with 16 it does not
MOST_BIAS = 2.0**30  # so that sums of products have room beside it
_TYPES = {TensorProto.INT4: ml_dtypes.int4, TensorProto.INT2: ml_dtypes.int2, TensorProto.INT8: np.int8}
_BITS = {TensorProto.INT4: 4, TensorProto.INT2: 2, TensorProto.INT8: 8}
_SHY = 1 - 1e-6  # a range ends before the clip does, so that nothing is left for it to do


def put(model: onnx.ModelProto, plan: Plan, ranges: Mapping[str, Range], bits: int) -> onnx.ModelProto:
    """A copy that rounds, as a graph to be trained: values from uint8 ranges, weights to `bits` bits by channel."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    nodes = {node.name: node for node in graph.node}
    held = {tensor.name: tensor for tensor in graph.initializer}
    front = []
    for weight, axis in dict.fromkeys((one.weight, one.axis) for one in plan.weighted):
        front.append(_weight_node(graph, held[weight], axis, bits))
    for one in plan.weighted:
        nodes[one.node].input[1] = rounded(one.weight)
    for value in dict.fromkeys(plan.ranges.values()):
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), _change(value)))
    after = {value: _value_node(graph, value, plan, ranges[root]) for value, root in plan.ranges.items()}
    given = {one.name for one in graph.input}
    order = [*front, *(after[value] for value in plan.ranges if value in given)]
    for node in graph.node:
        order.append(node)
        order += [after[value] for value in plan.ranges if value in node.output or rough(value) in node.output]
    _set_nodes(graph, order)
    made.opset_import.append(helper.make_opsetid(rounding.DOMAIN, 1))
    return made


def rounded(value: str) -> str:
    """What the rounded copy of a value is called."""
    return f"{value}_rounded"


def rough(value: str) -> str:
    """What an output of the graph is called before it is rounded."""
    return f"{value}_unrounded"


def _weight_node(graph: onnx.GraphProto, weight: onnx.TensorProto, axis: int, bits: int) -> onnx.NodeProto:
    limit, inputs = rounding.limit_of(bits), [weight.name]
    if bits < LEARNED_BELOW:
        inputs.append(f"{weight.name}_share")
        shares = best_shares(numpy_helper.to_array(weight), axis, limit)
        graph.initializer.append(numpy_helper.from_array(np.log(shares), inputs[1]))
    return helper.make_node(
        rounding.WEIGHT, inputs, [rounded(weight.name)], domain=rounding.DOMAIN, axis=axis, limit=limit
    )


def best_shares(weight: Array, axis: int, limit: int) -> Array:
    """The share of each channel's largest number at which a symmetric range has the least squared error, float32."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), rounding.SMALLEST_SCALE)
    tried = np.linspace(1, 0.3, 36)
    errors = []
    for share in tried:
        scale = share * largest / limit
        errors.append(((np.clip(np.rint(rows / scale), -limit, limit) * scale - rows) ** 2).sum(axis=1))
    best: Array = tried[np.argmin(errors, axis=0)].astype(np.float32)
    return best


def _value_node(graph: onnx.GraphProto, value: str, plan: Plan, found: Range) -> onnx.NodeProto:
    """What rounds a value, in its range or in that of the value it was moved from; its readers are told to read it."""
    source, target, root = value, rounded(value), plan.ranges[value]
    if value in plan.whole and value in {one.name for one in graph.output}:
        source, target = rough(value), value
        for node in graph.node:
            node.output[:] = [source if name == value else name for name in node.output]
    else:
        for node in graph.node:
            if value in plan.whole or node.name in plan.readers[value]:
                node.input[:] = [target if name == value else name for name in node.input]
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    made = helper.make_node(rounding.ACTIVATION, [source, _change(root)], [target], domain=rounding.DOMAIN)
    if root in plan.bounds:
        low, high = 0.0, min(high, plan.bounds[root] * _SHY)
        made.attribute.append(helper.make_attribute("most", plan.bounds[root] * _SHY))
    scale = (high - low) / rounding.LARGEST or 1.0
    made.attribute.append(helper.make_attribute("began", scale))
    made.attribute.append(helper.make_attribute("zero", min(float(round(-low / scale)), float(rounding.LARGEST))))
    return made


def _change(root: str) -> str:
    """What the learned change of a value's scale is called."""
    return f"{root}_change"


def written(trained: onnx.ModelProto, plan: Plan, bits: int) -> tuple[onnx.ModelProto, int]:
    """A trained graph that computes in integers what it rounded, and how many bits each of its weights takes.

    The normalizations of `normalization.insert` are folded in. The graph given is used up.
    """
    writer = _Writer(trained, plan, bits)
    return writer.write(), writer.stored_bits


class _Writer:
    def __init__(self, model: onnx.ModelProto, plan: Plan, bits: int) -> None:
        self._model, self._graph, self._plan = model, model.graph, plan
        self._limit = rounding.limit_of(bits)
        opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
        packed = TensorProto.INT2 if bits == 2 else TensorProto.INT4
        self._kind = packed if opset >= OPSETS.get(bits, opset + 1) else TensorProto.INT8
        self.stored_bits = _BITS[self._kind]

    def write(self) -> onnx.ModelProto:
        peaks = self._take_out_weights()
        normalization.fold(self._model)
        scales = self._take_out_values()
        nodes = {node.name: node for node in self._graph.node}
        front = []
        for weight, peak in peaks.items():
            users = [one for one in self._plan.weighted if one.weight == weight]
            values, axis = self._array(weight), users[0].axis
            others = tuple(one for one in range(values.ndim) if one != axis)
            scale = np.abs(values).max(axis=others).astype(np.float64) / np.maximum(peak, 1)
            scale = np.maximum(scale, rounding.SMALLEST_SCALE)
            biased = [nodes[one.node] for one in users if len(nodes[one.node].input) > 2 and nodes[one.node].input[2]]
            for node in biased:
                scale = np.maximum(scale, np.abs(self._array(node.input[2])) / scales[node.input[0]] / MOST_BIAS)
            scale = scale.astype(np.float32)
            front += self._weight(weight, values, scale, axis)
            front += [self._bias(node, scale * np.float32(scales[node.input[0]])) for node in biased]
            for one in users:
                nodes[one.node].input[1] = _dequantized(weight)
        _set_nodes(self._graph, [*front, *self._graph.node])
        return self._tidied()

    def _take_out_weights(self) -> dict[str, Array]:
        """Put into each weight what its numbers stand for; the largest number of each channel, by weight."""
        peaks = {}
        readers = {one.node: one.weight for one in self._plan.weighted}
        kept = []
        for node in self._graph.node:
            if node.name in readers:
                node.input[1] = readers[node.name]
            if node.domain != rounding.DOMAIN or node.op_type != rounding.WEIGHT:
                kept.append(node)
                continue
            axis, limit = (next(one.i for one in node.attribute if one.name == name) for name in ("axis", "limit"))
            w = torch.from_numpy(self._array(node.input[0]).copy())
            share = torch.from_numpy(self._array(node.input[1]).copy()) if len(node.input) > 1 else None
            scale = rounding.weight_scale(w, share, axis, limit)
            whole = rounding.numbers(w, scale, axis, limit)
            peaks[node.input[0]] = whole.abs().amax([one for one in range(w.dim()) if one != axis]).numpy()
            self._put(node.input[0], (whole * rounding.along(scale, axis, w.dim())).numpy())
        _set_nodes(self._graph, kept)
        return peaks

    def _take_out_values(self) -> dict[str, float]:
        """Store each rounded value as uint8 and read it back; its scale, by the rounded value's name."""
        scales, kept = {}, []
        for node in self._graph.node:
            if node.domain != rounding.DOMAIN:
                kept.append(node)
                continue
            grid = rounding.Grid.of(Node(node, 1))
            scale = grid.scale(torch.from_numpy(self._array(node.input[1]).copy()))
            root = node.input[1].removesuffix(_change(""))
            names = [f"{root}_scale", f"{root}_zero_point"]
            self._put(names[0], scale.numpy())
            self._put(names[1], np.array(grid.zero, np.uint8))
            stored = f"{node.output[0]}_quantized"
            kept.append(helper.make_node("QuantizeLinear", [node.input[0], *names], [stored]))
            kept.append(helper.make_node("DequantizeLinear", [stored, *names], [node.output[0]]))
            scales[node.output[0]] = float(scale)
        _set_nodes(self._graph, kept)
        return scales

    def _weight(self, weight: str, values: Array, scale: Array, axis: int) -> list[onnx.NodeProto]:
        """What reads a weight's numbers; they are stored in its place."""
        shape = [-1 if one == axis else 1 for one in range(values.ndim)]
        whole = np.clip(np.rint(values / scale.reshape(shape)), -self._limit, self._limit)
        stored, names = f"{weight}_quantized", [f"{weight}_scale", f"{weight}_zero_point"]
        self._put(stored, whole.astype(_TYPES[self._kind]))
        self._put(names[0], scale)
        self._put(names[1], np.zeros(scale.shape, np.int8))
        nodes = []
        if self._kind != TensorProto.INT8:
            nodes.append(helper.make_node("Cast", [stored], [f"{weight}_int8"], to=TensorProto.INT8))
            stored = f"{weight}_int8"
        read = helper.make_node("DequantizeLinear", [stored, *names], [_dequantized(weight)], axis=axis)
        return [*nodes, read]

    def _bias(self, node: onnx.NodeProto, scale: Array) -> onnx.NodeProto:
        """What reads the node's bias, stored in int32 as integer kernels add it: in the scale of their sums."""
        values = self._array(node.input[2]).astype(np.float64)
        made = f"{node.name}_bias"
        self._put(f"{made}_quantized", np.rint(values / scale).astype(np.int32))
        self._put(f"{made}_scale", scale)
        node.input[2] = _dequantized(made)
        inputs = [f"{made}_quantized", f"{made}_scale"]
        return helper.make_node("DequantizeLinear", inputs, [_dequantized(made)], axis=0)

    def _array(self, name: str) -> Array:
        found: Array = numpy_helper.to_array(next(one for one in self._graph.initializer if one.name == name))
        return found

    def _put(self, name: str, values: Array) -> None:
        """Hold an array under this name, in place of another one if there is one."""
        made = numpy_helper.from_array(values, name)
        for tensor in self._graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(made)
                return
        self._graph.initializer.append(made)

    def _tidied(self) -> onnx.ModelProto:
        used = {name for node in self._graph.node for name in node.input} | {one.name for one in self._graph.output}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:], self._graph.value_info[:]
        self._graph.initializer.extend(kept)
        opsets = [one for one in self._model.opset_import if one.domain != rounding.DOMAIN]
        del self._model.opset_import[:]
        self._model.opset_import.extend(opsets)
        return self._model


def _dequantized(name: str) -> str:
    return f"{name}_dequantized"


def _set_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
