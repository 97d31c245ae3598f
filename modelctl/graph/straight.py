"""A graph without detours, computing the same: what training and cutting it need, which read one list of nodes.

Functions are unfolded, an `If` whose condition is constant gives way to the branch that is taken, weights that lie in
`Constant` nodes or as sparse initializers become plain initializers. Any other control flow is refused by name.
"""

from collections import Counter
from collections.abc import Container
from itertools import chain, count

import numpy as np
import onnx
import onnx_ir as ir
from onnx import inliner, numpy_helper
from onnxscript.optimizer import fold_constants

from modelctl.errors import UnsupportedError
from modelctl.graph.chatter import hushed
from modelctl.graph.weights import nodes_of

RUNNING = (3, 4)  # of a BatchNormalization's inputs: mean and variance
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_CONSTANTS = {
    "value_float": onnx.TensorProto.FLOAT,
    "value_floats": onnx.TensorProto.FLOAT,
    "value_int": onnx.TensorProto.INT64,
    "value_ints": onnx.TensorProto.INT64,
}


def straight(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model itself where it has no detours, else a straight copy; UnsupportedError for a loop or a real choice."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    if any(node.op_type in CONTROL_FLOW for node in model.graph.node):
        model = _resolved(model)
    for node in nodes_of(model.graph):
        if node.op_type in CONTROL_FLOW and node.domain in ("", "ai.onnx"):
            called = f" ({node.name})" if node.name else ""
            raise UnsupportedError(
                f"{name}: {node.op_type}{called} decides while it runs what is computed, which can't be trained",
                "export the model with the branch that is taken written out",
            )
    if model.graph.sparse_initializer or any(node.op_type == "Constant" for node in model.graph.node):
        model = _lifted(model)
    return _untied(model)


def _untied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a copy in which every BatchNormalization has running statistics of its own.

    Of a net that has learned nothing yet they are equal, zeros and ones, and optimizers make them one tensor.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    shared = [
        (place, of)
        for place, node in enumerate(model.graph.node)
        for of in RUNNING
        if node.op_type == "BatchNormalization" and node.input[of] in held and uses[node.input[of]] > 1
    ]
    if not shared:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for place, of in shared:
        node = made.graph.node[place]
        own = made.graph.initializer.add()
        own.CopyFrom(held[node.input[of]])
        own.name = _fresh(f"{node.input[0]}.running_{'mean' if of == RUNNING[0] else 'var'}", held)
        held[own.name] = own
        node.input[of] = own.name
    return made


def _fresh(name: str, taken: Container[str]) -> str:
    return next(one for one in chain([name], (f"{name}_{place}" for place in count())) if one not in taken)


def _resolved(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(model)
    with hushed():
        fold_constants(graph, onnx_shape_inference=True)
    return ir.serde.serialize_model(graph)


def _lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose constants and sparse initializers are plain initializers."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse, sparse.values.name))
    del graph.sparse_initializer[:]
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        tensor = _constant(node) if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
        if tensor is None:
            graph.node.append(node)
        else:
            graph.initializer.append(tensor)
    return made


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a Constant node holds, under the name of its output; None for strings."""
    (held,) = node.attribute
    if held.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(held.t)
        tensor.name = node.output[0]
        return tensor
    if held.name == "sparse_value":
        return _dense(held.sparse_tensor, node.output[0])
    if held.name not in _CONSTANTS:
        return None
    value = onnx.helper.get_attribute_value(held)
    dims = [] if held.name in ("value_float", "value_int") else [len(value)]
    return onnx.helper.make_tensor(node.output[0], _CONSTANTS[held.name], dims, value if dims else [value])


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """A sparse tensor (indices into the flat array, or a row of coordinates each) with its zeros."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return numpy_helper.from_array(dense, name)
