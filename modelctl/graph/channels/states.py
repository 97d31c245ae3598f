"""Initial states that are zero, which recurrent layers assume anyway.

Exporters make them once for all layers, and so tie together the hidden sizes of layers that have nothing else in
common. Without them each layer is as wide as it wants to be.
"""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_STATES = (5, 6)
# What gives nothing but zeros where its first input holds nothing else.
_MOVING = frozenset(
    {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


def without_zero_states(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself where no recurrent layer is given zeros to begin with, else a copy in which none is."""
    makers = {name: node for node in model.graph.node for name in node.output}
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [
        (at, place)
        for at, node in enumerate(model.graph.node)
        if node.op_type in _RECURRENT
        for place in _STATES
        if place < len(node.input) and node.input[place] and _is_zero(node.input[place], makers, held)
    ]
    if not found:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for at, place in found:
        made.graph.node[at].input[place] = ""
    drop_unread(made.graph)
    return made


def drop_unread(graph: onnx.GraphProto) -> None:
    """Take out, in place, nodes that no output needs, and the initializers that only they read."""
    before = {name for node in graph.node for name in node.input}
    needed = {value.name for value in graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(name for name in node.output if name):
            needed.update(node.input)
            alive.append(node)
    gone = {tensor.name for tensor in graph.initializer if tensor.name in before - needed}
    tensors = [tensor for tensor in graph.initializer if tensor.name not in gone]
    inputs = [value for value in graph.input if value.name not in gone]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(alive[::-1])
    graph.initializer.extend(tensors)
    graph.input.extend(inputs)


def _is_zero(name: str, makers: dict[str, onnx.NodeProto], held: dict[str, TensorProto]) -> bool:
    if name in held:
        return not np.any(numpy_helper.to_array(held[name]))
    node = makers.get(name)
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        return not any(np.any(numpy_helper.to_array(one.t)) for one in node.attribute)
    if node.op_type == "Concat":
        return all(_is_zero(one, makers, held) for one in node.input)
    return node.op_type in _MOVING and _is_zero(node.input[0], makers, held)
