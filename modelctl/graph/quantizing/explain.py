"""What became of each node of a graph that was quantized, and why: the rows that `--explain` shows."""

from collections.abc import Mapping
from typing import Any

import onnx

from modelctl.graph import weights
from modelctl.graph.sensitivity import Harm

_INTEGER = {"MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLSTM"}
_PACKED = {"MatMulNBits", "GatherBlockQuantized"}
_TURNED = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"})


def decisions(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    reasons: Mapping[str, str],
    harms: Mapping[str, Harm],
    float_us: Mapping[str, float],
    integer_us: Mapping[str, float],
) -> list[dict[str, Any]]:
    """A row for each node of `before` that holds weights or was left in float for a reason, in the graph's order.

    `{node, op_type, decision, why, noise_db, float_us, integer_us}`: `noise_db` is the power of the noise in the node's
    output that quantizing it makes, relative to the output's variance; None where that, or a time, is not known.
    """
    held = {tensor.name for tensor in weights.prunable(before)}
    rows = []
    for node in before.graph.node:
        if not (held & set(node.input) or node.name in reasons):
            continue
        harm = harms.get(node.name)
        rows.append(
            {
                "node": node.name,
                "op_type": node.op_type,
                "decision": _became(node, after),
                "why": reasons.get(node.name, ""),
                "noise_db": round(-harm.sqnr_db, 1) if harm is not None and abs(harm.sqnr_db) < 1e4 else None,
                "float_us": float_us.get(node.name),
                "integer_us": integer_us.get(node.name),
            }
        )
    return rows


def _became(node: onnx.NodeProto, after: onnx.ModelProto) -> str:
    """In what a node of the float graph is computed now."""
    makers = {name: one for one in after.graph.node for name in one.output}
    held = {tensor.name: tensor for tensor in after.graph.initializer}
    found = next((one for one in after.graph.node if one.name in (node.name, f"{node.name}_quant")), None)
    found = found or makers.get(node.output[0])
    if found is None:
        return "fused"
    if found.op_type in _PACKED:
        return f"{next((one.i for one in found.attribute if one.name == 'bits'), 4)} bits in blocks"
    if found.op_type in _INTEGER:
        return "int8, ranges found while running"
    for name in found.input[:3]:
        while name in makers and makers[name].op_type in _TURNED:
            name = makers[name].input[0]
        source = makers.get(name)
        tensor = stored(source, makers, held)
        if source is not None and tensor is not None:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            return kind if source.op_type == "DequantizeLinear" else f"float, stored in {kind}"
    return "float"


def stored(
    node: onnx.NodeProto | None, makers: Mapping[str, onnx.NodeProto], held: Mapping[str, onnx.TensorProto]
) -> onnx.TensorProto | None:
    """The stored tensor that a node, or one before it, unpacks a weight from; None if it does not."""
    while node is not None and node.op_type in ("Mul", "Cast", "DequantizeLinear", *_TURNED):
        if node.input[0] in held:
            tensor = held[node.input[0]]
            return tensor if len(tensor.dims) > 1 else None
        node = makers.get(node.input[0])
    return None
