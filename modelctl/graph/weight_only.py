"""Weights stored in 8 bits and computed with in float: int8 initializer → Cast → Mul by the scale → where it was used.

onnxruntime folds Cast and Mul of constants when it loads a model, so that such a model runs as fast as the float one.
(A DequantizeLinear would be left in place, for integer kernels to be found, and be run every time: ×0.60 on a small
net.) A tool that folds constants into a file would undo the saving.

The scale is symmetric, max|w| / 127, one for each output channel where there is one, as in onnxruntime.quantization.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.graph import weights
from modelctl.options import QuantizeOptions

MIN_NUMBERS = 256  # below that a scale and two nodes cost more than is saved
LEVELS = 127
TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN")


def quantize(model: onnx.ModelProto, options: QuantizeOptions, per_channel: bool) -> onnx.ModelProto:
    """A copy of `model` whose weights are stored in int8, where all that use one are of the types to quantize."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    wanted = set(options.op_types or TYPES)
    public = {one.name for one in (*graph.input, *graph.output)}
    unpacking: list[onnx.NodeProto] = []
    for tensor in weights.prunable(copy):
        users = [node for node in weights.nodes_of(graph) if tensor.name in node.input]
        if any(node.op_type not in wanted or node.name in options.excludes for node in users):
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < MIN_NUMBERS or tensor.name in public or not np.isfinite(values).all():
            continue
        packed, scale = pack(values, _axis(users[0], values.ndim) if per_channel else None)
        unpacking += _unpacking(tensor, scale, graph)
        tensor.CopyFrom(numpy_helper.from_array(packed, tensor.name + "_int8"))
    nodes = [*unpacking, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def pack(values: Array, axis: int | None) -> tuple[Array, Array]:
    """int8 of the same shape, and the scale that gives the values back: 1 long in every axis but `axis`."""
    values = values.astype(np.float32)
    others = tuple(one for one in range(values.ndim) if one != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / LEVELS
    scale[scale == 0] = 1
    return np.clip(np.rint(values / scale), -LEVELS, LEVELS).astype(np.int8), scale.astype(np.float32)


def _axis(user: onnx.NodeProto, rank: int) -> int | None:
    """Along which axis of the weight the user's output channels lie."""
    transposed = any(one.name == "transB" and one.i for one in user.attribute)
    match user.op_type:
        case "Conv" | "Gather":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if transposed else 1
        case "MatMul":
            return rank - 1
    return None


def _unpacking(tensor: onnx.TensorProto, scale: Array, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that give `tensor` back under its name, in its type, from its int8 form; its scale joins the graph."""
    name, kind = tensor.name, tensor.data_type
    stored = scale.astype(helper.tensor_dtype_to_np_dtype(kind))
    graph.initializer.append(numpy_helper.from_array(stored, name + "_scale"))
    return [
        helper.make_node("Cast", [name + "_int8"], [name + "_float"], name=name + "_unpack", to=kind),
        helper.make_node("Mul", [name + "_float", name + "_scale"], [name], name=name + "_rescale"),
    ]
