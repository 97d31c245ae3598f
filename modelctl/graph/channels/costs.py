"""What a graph costs: multiply-accumulates for one sample, and parameters, as a whole and node by node.

A multiply-accumulate is one product that is added to a sum. Counted are those of convolutions, matrix products,
recurrent layers and attention; not what costs one operation a number (normalization, activation, pooling).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from modelctl.errors import UnsupportedError
from modelctl.graph.channels.shapes import Shapes
from modelctl.graph.straight import straight
from modelctl.graph.weights import FLOATS, count

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "FusedConv", "QLinearConv"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "FusedGemm"})
_PRODUCTS_OF_BYTES = frozenset({"MatMulIntegerToFloat", "DynamicQuantizeMatMul"})
_ATTENTION = frozenset({"Attention", "MultiHeadAttention"})


@dataclass(frozen=True)
class Cost:
    """What one node costs: multiply-accumulates for a sample, and the parameters that no node before it has read."""

    node: str
    operator: str
    macs: int
    parameters: int


def macs(model: onnx.ModelProto, sizes: Mapping[str, int] | None = None) -> int:
    """Multiply-accumulates for one sample; `sizes` of free dimensions by name, 64 where none is given.

    UnsupportedError where the shape of something that multiplies can't be inferred.
    """
    return sum(one.macs for one in costs(model, sizes))


def parameters(model: onnx.ModelProto) -> int:
    """How many numbers the weights hold."""
    return count(model).parameters


def costs(model: onnx.ModelProto, sizes: Mapping[str, int] | None = None) -> list[Cost]:
    """The cost of each node, in the graph's order; UnsupportedError as for `macs`."""
    model = straight(model, "model")
    shapes = Shapes(model, sizes)
    left = {one.name: math.prod(one.dims) for one in model.graph.initializer if one.data_type in FLOATS}
    return [
        Cost(
            node.name or node.output[0], node.op_type, _macs(node, shapes), sum(left.pop(one, 0) for one in node.input)
        )
        for node in model.graph.node
    ]


def _macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    operator = node.op_type
    known = _CONVOLUTIONS | _PRODUCTS | _PRODUCTS_OF_BYTES | _ATTENTION | set(_GATES) | {"Einsum", "MatMulNBits"}
    if operator not in known:
        return 0
    given = [shapes.shape.get(name, ()) if name else () for name in node.input]
    if len(given) < 2:  # an Einsum of one thing sums, and multiplies nothing
        return 0
    out = shapes.shape.get(node.output[0]) or shapes.shape.get(node.output[-1], ())
    if () in (given[0], given[1], out) or (operator in _GATES and not given[2]):
        called = f" ({node.name})" if node.name else ""
        raise UnsupportedError(f"{operator}{called}: its shape can't be inferred, so its cost is not known")
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if operator in _CONVOLUTIONS:
        kernel = given[3] if operator == "QLinearConv" else given[1]
        places = given[0] if operator == "ConvTranspose" else out
        return math.prod(places) * math.prod(kernel[1:])
    if operator in _PRODUCTS or operator in _PRODUCTS_OF_BYTES:
        return math.prod(out) * given[0][0 if attributes.get("transA") else -1]
    if operator == "MatMulNBits":
        return math.prod(out) * int(attributes["K"])
    if operator == "Einsum":
        letters = attributes["equation"].decode().replace(" ", "").split("->")[0].split(",")
        sizes = {
            letter: size
            for term, shape in zip(letters, given, strict=False)
            for letter, size in zip(term, shape, strict=False)
        }
        return math.prod(sizes.values())
    if operator in _GATES:
        hidden = int(attributes.get("hidden_size", given[2][-1]))
        steps = given[0][0] * given[0][1]
        directions = 2 if attributes.get("direction") == b"bidirectional" else 1
        return steps * directions * _GATES[operator] * hidden * (given[0][2] + hidden)
    return _attention_macs(node, given, attributes)


def _attention_macs(node: onnx.NodeProto, given: list[tuple[int, ...]], attributes: Mapping[str, int]) -> int:
    """Scores and weighted sums; com.microsoft's Attention projects first."""
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        batch, length, width = given[0]
        third = given[1][1] // 3
        return batch * length * width * given[1][1] + 2 * batch * length * length * third
    query, key, value = given[0], given[1], given[2] if len(given) > 2 and given[2] else given[1]
    if len(query) == 4:
        heads = query[1]
        return query[0] * heads * query[2] * key[2] * (query[3] + value[3])
    heads = int(attributes.get("q_num_heads", attributes.get("num_heads", 1)))
    few = int(attributes.get("kv_num_heads", heads))
    return query[0] * query[1] * key[1] * (query[2] + value[2] // few * heads)
