"""Which integers a graph takes: how far the indices may reach that are made of its inputs.

An integer input that ends as the indices of a `Gather` (an embedding) or of a `OneHot` may hold as many values as there
are rows to pick from. It is followed there through what moves numbers without changing them, and through additions and
subtractions of constants.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

Range = tuple[int, int]  # the least and the largest number, both allowed
_Shifts = Mapping[str, Range]  # the inputs that a value is made of: what was added to each, at least and at most
_Constants = dict[str, onnx.TensorProto]

# Every element of the output is an element of the first input.
_MOVING = (
    *("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Tile"),
    *("Slice", "Split", "Gather", "GatherElements", "GatherND"),
)
_KEEPING_SHAPE = ("Identity", "Cast", "DequantizeLinear")


def integer_ranges(model: onnx.ModelProto) -> dict[str, Range]:
    """The range of each integer input that is known to have one, by its name, beginning at 0 where nothing is added.

    An input that is looked up in several places takes what all of them take; one of which nothing is left is not told.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    bounds = {name: np.iinfo(helper.tensor_dtype_to_np_dtype(kind)) for name, kind in types.items() if _counts(kind)}
    found: dict[str, Range] = {}
    _follow(model.graph, {name: {name: (0, 0)} for name in bounds}, {}, found)
    held = {
        name: (max(low, int(bounds[name].min)), min(high, int(bounds[name].max))) for name, (low, high) in found.items()
    }
    return {name: (low, high) for name, (low, high) in sorted(held.items()) if low <= high}


def _counts(kind: int) -> bool:
    """Whether an element type is one of integers."""
    return kind not in (0, onnx.TensorProto.STRING) and helper.tensor_dtype_to_np_dtype(kind).kind in "iu"


def _follow(graph: onnx.GraphProto, outer: Mapping[str, _Shifts], known: _Constants, found: dict[str, Range]) -> None:
    """Read the nodes of a graph; `outer` and `known` are the values and constants around it."""
    made = dict(outer)
    constants = known | {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for name, (least, most) in made.get(_indices(node), {}).items():
            size = _rows(node, constants)
            if size is not None:
                low, high = found.get(name, (-least, size - 1 - most))
                found[name] = (max(low, -least), min(high, size - 1 - most))
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _follow(inner, made, constants, found)
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
        elif node.op_type in _KEEPING_SHAPE and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
        made |= dict.fromkeys(node.output, _made(node, made, constants))


def _indices(node: onnx.NodeProto) -> str:
    """The name of the value that a node takes as indices; empty when it takes none."""
    place = {"OneHot": 0, "Gather": 1, "GatherElements": 1}.get(node.op_type, len(node.input))
    return node.input[place] if place < len(node.input) else ""


def _rows(node: onnx.NodeProto, constants: _Constants) -> int | None:
    """How many rows a node with indices picks from; None where they are not constant."""
    held = constants.get(node.input[1 if node.op_type == "OneHot" else 0])
    if held is None:
        return None
    if node.op_type == "OneHot":
        return int(numpy_helper.to_array(held).reshape(-1)[0])
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    return int(held.dims[axis]) if -len(held.dims) <= axis < len(held.dims) else None


def _made(node: onnx.NodeProto, made: Mapping[str, _Shifts], constants: _Constants) -> _Shifts:
    """The inputs that a node's outputs are made of."""
    if node.op_type in _MOVING and node.input:
        return made.get(node.input[0], {})
    if node.op_type in ("Concat", "Where"):
        return _joined([made.get(name, {}) for name in node.input[node.op_type == "Where" :]])
    if node.op_type in ("Add", "Sub") and len(node.input) == 2:
        left, right = node.input
        if node.op_type == "Add" and left in constants:
            left, right = right, left
        low, high = _extremes(constants.get(right))
        if node.op_type == "Sub":
            low, high = -high, -low
        return {name: (least + low, most + high) for name, (least, most) in made.get(left, {}).items() if low <= high}
    return {}


def _joined(parts: list[_Shifts]) -> _Shifts:
    joined: dict[str, Range] = {}
    for part in parts:
        for name, (least, most) in part.items():
            low, high = joined.get(name, (least, most))
            joined[name] = (min(low, least), max(high, most))
    return joined


def _extremes(tensor: onnx.TensorProto | None) -> Range:
    """The least and the largest number of a constant of integers; (1, 0) where it is none."""
    if tensor is None or not _counts(tensor.data_type):
        return 1, 0
    values = numpy_helper.to_array(tensor)
    return (int(values.min()), int(values.max())) if values.size else (1, 0)
