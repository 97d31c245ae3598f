"""Batch normalization put back into a graph that has lost it, so that it can be trained, and folded away again.

An exported or quantized net often carries its normalization inside its convolutions, and training it on is fragile:
rates that a normalized net learns well at make it diverge. So every convolution without one gets a normalization that
does nothing: its scale and shift undo the very statistics that it divides by. After the training it is folded in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.graph.trainable import TrainableGraph

EPSILON = 1e-5
_MARK = "_before_norm"
_PARTS = ("scale", "shift", "mean", "var")


def insert(model: onnx.ModelProto, name: str, batch: Sequence[torch.Tensor]) -> onnx.ModelProto:
    """A copy with a normalization after each convolution that has none, fitted to `batch` of the model's inputs.

    Left out are convolutions whose kernel is shared, or whose answer is the model's.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    chosen = _bare(made.graph)
    if not chosen:
        return made
    with torch.no_grad():
        answers = TrainableGraph(model, name).eval().values(batch, [node.output[0] for node in chosen])
    places = {node.output[0]: place for place, node in enumerate(made.graph.node)}
    nodes = list(made.graph.node)
    for node in reversed(chosen):
        value = node.output[0]
        found = answers[value].double()
        axes = [axis for axis in range(found.dim()) if axis != 1]
        mean, var = found.mean(axes).numpy(), found.var(axes, correction=0).numpy()
        held = dict(zip(_PARTS, (np.sqrt(var + EPSILON), mean, mean, var), strict=True))
        kind = answers[value].numpy().dtype
        made.graph.initializer.extend(
            numpy_helper.from_array(array.astype(kind), f"{value}_{part}") for part, array in held.items()
        )
        names = [f"{value}_{part}" for part in _PARTS]
        node.output[0] = value + _MARK
        norm = helper.make_node(
            "BatchNormalization", [value + _MARK, *names], [value], f"{value}_norm", epsilon=EPSILON
        )
        nodes.insert(places[value] + 1, norm)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(copies)
    return made


def fold(model: onnx.ModelProto) -> None:
    """Take out, in place, the normalizations that `insert` has put in; the graph computes the same."""
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    makers = {value: node for node in graph.node for value in node.output}
    gone = []
    for norm in graph.node:
        if norm.op_type != "BatchNormalization" or norm.input[0] != norm.output[0] + _MARK:
            continue
        node = makers[norm.input[0]]
        scale, shift, mean, var = (numpy_helper.to_array(held[one]).astype(np.float64) for one in norm.input[1:5])
        factor = scale / np.sqrt(var + EPSILON)
        kernel = held[node.input[1]]
        weights = numpy_helper.to_array(kernel)
        shape = [-1 if axis == _out_axis(node) else 1 for axis in range(weights.ndim)]
        bias = numpy_helper.to_array(held[node.input[2]]) if len(node.input) > 2 and node.input[2] else 0.0
        _put(kernel, weights * factor.reshape(shape), weights.dtype)
        added = (bias - mean) * factor + shift
        if isinstance(bias, float):
            del node.input[2:]
            node.input.append(f"{norm.output[0]}_bias")
            graph.initializer.append(numpy_helper.from_array(added.astype(weights.dtype), node.input[2]))
        else:
            _put(held[node.input[2]], added, weights.dtype)
        node.output[0] = norm.output[0]
        gone.append(norm)
    unused = {one for norm in gone for one in norm.input[1:5]}
    for norm in gone:
        graph.node.remove(norm)
    for tensor in [tensor for tensor in graph.initializer if tensor.name in unused]:
        graph.initializer.remove(tensor)


def _bare(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The convolutions that could have a normalization of their own and have none."""
    held = {tensor.name for tensor in graph.initializer}
    uses = Counter(value for node in graph.node for value in node.input)
    readers: Mapping[str, list[str]] = {
        value: [node.op_type for node in graph.node if value in node.input]
        for node in graph.node
        for value in node.output
    }
    outputs = {one.name for one in graph.output}
    return [
        node
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose")
        and node.input[1] in held
        and all(uses[one] == 1 and one in held for one in node.input[1:] if one)
        and (node.op_type == "Conv" or _groups(node) == 1)
        and node.output[0] not in outputs
        and readers[node.output[0]] != ["BatchNormalization"]
    ]


def _groups(node: onnx.NodeProto) -> int:
    return next((one.i for one in node.attribute if one.name == "group"), 1)


def _out_axis(node: onnx.NodeProto) -> int:
    """The axis of a kernel that counts what comes out."""
    return 0 if node.op_type == "Conv" else 1


def _put(tensor: onnx.TensorProto, values: Array, dtype: np.dtype[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
