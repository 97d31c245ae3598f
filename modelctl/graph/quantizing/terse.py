"""The same graph in fewer bytes: what quantizing adds to a small net is mostly names, a tenth of its file.

Every pair comes with two nodes, a scale, a zero point and a value between, each called after the tensor that it stands
beside. Here the weights keep their names, and the rest of what was added is numbered. Zero points that are zero go
without saying (ONNX, DequantizeLinear) where onnxruntime computes in integers all the same: it does with every bias and
with the weights of convolutions, but not with those of a Gemm (onnxruntime 1.31).
"""

from collections.abc import Collection
from itertools import count

import onnx
from onnx import TensorProto, numpy_helper

from modelctl.graph.names import graphs_of, taken


def shorten(model: onnx.ModelProto, given: Collection[str]) -> None:
    """Say in fewer bytes, in place, what was added to a graph in which values and nodes were called as `given`.

    Among those are its inputs and outputs.
    """
    for graph in graphs_of(model.graph):
        _leave_zeros_out(graph)
    _number(model.graph, given)


def _leave_zeros_out(graph: onnx.GraphProto) -> None:
    held = {tensor.name: tensor for tensor in graph.initializer}
    readers = [(name, node.op_type) for node in graph.node for name in node.input]
    outputs = {one.name for one in graph.output}
    others = outputs | {name for name, kind in readers if kind != "Conv"}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in held:
            continue
        point = held.get(node.input[2])
        if point is None or point.external_data or numpy_helper.to_array(point).any():
            continue
        kind = held[node.input[0]].data_type
        if kind == TensorProto.INT32 or (kind == TensorProto.INT8 and node.output[0] not in others):
            del node.input[2:]
    used = outputs.union(*(node.input for part in graphs_of(graph) for node in part.node))
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _number(graph: onnx.GraphProto, given: Collection[str]) -> None:
    """Call values that were added by numbers, but for weights, and nodes that were added by nothing."""
    parts = [*graphs_of(graph)]
    kept = {tensor.name for part in parts for tensor in part.initializer if len(tensor.dims) > 1}
    among = taken(graph)
    numbers = (name for number in count() if (name := f"q{number}") not in among)
    called: dict[str, str] = {}

    def short(name: str) -> str:
        if not name or name in given or name in kept:
            return name
        if name not in called:
            called[name] = next(numbers)
        return called[name]

    for part in parts:
        for node in part.node:
            if node.name not in given:
                node.name = ""
            for names in (node.input, node.output):
                names[:] = [short(name) for name in names]
        for tensor in part.initializer:
            tensor.name = short(tensor.name)
        for value in (*part.input, *part.output):
            value.name = short(value.name)
