"""The weights of a graph: which initializers they are, how many numbers they hold, and how many of those are zero.

Sources: the operators' own specifications (onnx/docs/Operators.md; onnxruntime docs/ContribOperators.md for those of
`com.microsoft`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper

from modelctl.data.samples import Array
from modelctl.formats import onnx as onnx_format
from modelctl.graph.blocks import parted

Read = Callable[[onnx.TensorProto], Array]

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Where an operator takes a quantized tensor, its scale, its zero point.
_QUANTIZED = {
    "DequantizeLinear": ((0, 1, 2),),
    "QuantizeLinear": ((0, 1, 2),),
    "QLinearConv": ((0, 1, 2), (3, 4, 5), (8, -1, -1)),
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    "MatMulInteger": ((0, -1, 2), (1, -1, 3)),
    "ConvInteger": ((0, -1, 2), (1, -1, 3)),
    "DynamicQuantizeMatMul": ((1, 2, 3),),
    "MatMulIntegerToFloat": ((1, 3, 5),),
    "DynamicQuantizeLSTM": ((1, 8, 9), (2, 10, 11)),
    "GatherBlockQuantized": ((0, 2, 3),),
}
# Those that take several numbers in a byte, and how many inputs to look among for them.
_PACKED = {"MatMulNBits": 2, "GatherBlockQuantized": 1}
# What a weight may be stored in that a Cast unpacks.
_FEW_BITS = frozenset(
    {
        *(TensorProto.INT16, TensorProto.INT8, TensorProto.UINT8),
        *(TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2),
    }
)
_OUTPUT_SCALES = {"QLinearConv": (6, 7), "QLinearMatMul": (6, 7)}

# What multiplies with a weight or looks up in it, and what a weight may go through on its way there.
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Gather", "LSTM", "GRU", "RNN", "Attention"}
)
_PASSING = frozenset({"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Weights:
    """How many numbers a graph's weights hold, and which share of those in tensors of rank ≥ 2 is zero."""

    parameters: int
    sparsity: float


def count(model: onnx.ModelProto, files: Mapping[str, bytes] | None = None) -> Weights:
    """Count float weights and quantized ones; scales, zero points, shapes and indices are not weights.

    Weights outside of the model lie in `files`, as `formats.onnx.outline` leaves them.
    """
    read = partial(onnx_format.array_of, files=files or {})
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = list(nodes_of(model.graph))
    points, described = _quantized(nodes, held)
    readers = {name: node for node in nodes for name in node.input[: _PACKED.get(node.op_type, 0)]}
    parameters = ranked = zeros = 0
    for name, tensor in held.items():
        if name in described or not (tensor.data_type in FLOATS or name in points):
            continue
        point = held.get(points.get(name, ""))
        apart = _apart(readers[name], tensor, point, read) if name in readers and name in points else None
        if apart is not None:
            parameters, ranked = parameters + apart.size, ranked + apart.size
            zeros += int(np.count_nonzero(apart))
            continue
        size = math.prod(list(tensor.dims))
        parameters += size
        if len(tensor.dims) < 2 or size == 0:
            continue
        ranked += size
        zeros += _zeros(tensor, point, read)
    return Weights(parameters, zeros / ranked if ranked else 0.0)


def prunable(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The float initializers of rank ≥ 2 that a node multiplies with or looks up in, in the graph's order."""
    used: set[str] = set()
    for node in reversed(list(nodes_of(model.graph))):
        if node.op_type in _WEIGHTED or (node.op_type in _PASSING and node.output[0] in used):
            used.update(node.input)
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type in FLOATS and len(tensor.dims) >= 2 and 0 not in tensor.dims and tensor.name in used
    ]


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether any part of the graph is quantized already: its weights, or what it computes with."""
    nodes = list(nodes_of(model.graph))
    points, _ = _quantized(nodes, {tensor.name: tensor for tensor in model.graph.initializer})
    return bool(points) or any(node.op_type == "DynamicQuantizeLinear" for node in nodes)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from nodes_of(inner)


def _quantized(nodes: list[onnx.NodeProto], held: dict[str, onnx.TensorProto]) -> tuple[dict[str, str], set[str]]:
    """The zero point's name ("" for none) by that of each quantized tensor, and the names of scales and zero points.

    A weight of 16 bits or fewer that is unpacked by Cast and Mul (`weight_only`), or by Cast alone, is one too.
    """
    points: dict[str, str] = {}
    described: set[str] = set()
    unpacked: set[str] = set()
    for node in nodes:

        def at(place: int, node: onnx.NodeProto = node) -> str:
            return node.input[place] if 0 <= place < len(node.input) else ""

        for value, scale, point in _QUANTIZED.get(node.op_type, ()):
            points[at(value)] = at(point)
            described |= {at(scale), at(point)}
        described |= {at(place) for place in _OUTPUT_SCALES.get(node.op_type, ())}
        stored = held.get(at(0)) if node.op_type == "Cast" else None
        if stored is not None and stored.data_type in _FEW_BITS and len(stored.dims) > 1:
            points[at(0)] = ""
            unpacked.add(node.output[0])
        if node.op_type == "Mul" and at(0) in unpacked:
            described.add(at(1))
        if node.op_type in ("MatMulInteger", "ConvInteger"):  # their scale goes into a Mul that follows
            described.add(at(1).removesuffix("_quantized") + "_scale")
        if node.op_type == "MatMulNBits":
            points[at(1)] = at(3)
            described |= {at(2), at(3)}
    points.pop("", None)
    return points, described - {""}


def _apart(node: onnx.NodeProto, tensor: onnx.TensorProto, point: onnx.TensorProto | None, read: Read) -> Array | None:
    """Which numbers are zero in a weight that a node takes packed into bytes, [rows, K]; None if it is none such."""
    told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    bits, block = told.get("bits", 4), told.get("block_size", 128)
    if tensor.data_type != TensorProto.UINT8 or bits not in (2, 4, 8) or block < 1:
        return None
    stored = read(tensor)
    rows, length = len(stored), told.get("K", stored.shape[-1] * 8 // bits)
    numbers = parted(stored.reshape(rows, -1), bits)[:, :length]
    if point is None:
        found: Array = numbers == 1 << (bits - 1)
        return found
    if point.data_type != TensorProto.UINT8 or math.prod(list(point.dims)) % rows:
        return None
    zero = parted(read(point).reshape(rows, -1), bits).repeat(block, 1)[:, :length]
    return numbers == zero if zero.shape == numbers.shape else None


def _zeros(tensor: onnx.TensorProto, point: onnx.TensorProto | None, read: Read) -> int:
    """How many numbers of a weight stand for zero: those equal to the zero point of their tensor or channel."""
    values = read(tensor)
    if point is None:
        return int(np.count_nonzero(values == 0))
    zero = read(point)
    if zero.size == 1:
        return int(np.count_nonzero(values == zero.reshape(())))
    if not zero.any():
        return int(np.count_nonzero(values == 0))
    fitting = [axis for axis, length in enumerate(values.shape) if length == zero.size]
    if zero.ndim != 1 or not fitting:
        return 0  # blocks of several bits: not told apart here
    shape = [1] * values.ndim
    shape[fitting[0]] = zero.size
    return int(np.count_nonzero(values == zero.reshape(shape)))
