"""What attention gives a query that may look at nothing: zeros, as in torch.

onnxscript writes attention under a boolean mask as

    weights = Softmax(scores + Where(mask, 0, lowest));  Where(IsNaN(weights), 0, weights)

where a row that is masked altogether comes out even, while torch gives it zeros (`_safe_softmax`). A sequence that is
padded on the left has such rows.
"""

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

LOWEST = -6e4  # float16's is -65504, and the others' are lower


def mask_whole_rows(model: onnx.ModelProto) -> int:
    """Let the mask itself choose what is zero, in place, wherever the pattern above stands; return how often it did."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    changed = 0
    for node in model.graph.node:
        mask = _mask_of(node, makers, constants)
        if mask is not None:
            zero, weights = node.input[1], node.input[2]
            node.input[:] = [mask, weights, zero]
            changed += 1
    return changed


def _mask_of(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> str | None:
    """The mask of the attention whose last node before the values this is; None if it is another one."""
    if node.op_type != "Where":
        return None
    test, weights = makers.get(node.input[0]), makers.get(node.input[2])
    if test is None or weights is None or (test.op_type, weights.op_type) != ("IsNaN", "Softmax"):
        return None
    total = makers.get(weights.input[0])
    if test.input[0] != node.input[2] or total is None or total.op_type != "Add":
        return None
    added = makers.get(total.input[1])
    if added is None or added.op_type != "Where":
        return None
    kept, lost = (_number(constants.get(name)) for name in added.input[1:])
    return added.input[0] if kept == 0 and lost is not None and lost <= LOWEST else None


def _number(tensor: onnx.TensorProto | None) -> float | None:
    """A constant's only number; None where there are none or several."""
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor).reshape(-1)
    return float(values[0]) if values.size == 1 else None
