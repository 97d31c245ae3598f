"""Making a graph clean and the same each time: folded but trainable, free dimensions named, nothing of its author.

Folding is onnxscript's: constants, then its rewrite rules without those that fuse batch norm into what stands before
it, so that the normalization layers stay and the graph can be trained further.
"""

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_ir as ir
import onnxscript.rewriter as rewriter
from onnx import version_converter
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter.rules.common import _fuse_batchnorm

from modelctl.errors import ArtifactError, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import names
from modelctl.manifest import TensorSpec

BATCH = "batch"
FIRST_IR_WITH_HIDDEN_WEIGHTS = 4  # before, every initializer had to be an input too
MERGED_NUMBERS = 1024  # in a tensor that is worth comparing with others
DOMAINS = (
    *("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "com.microsoft"),
    *("com.microsoft.nchwc", "com.ms.internal.nhwc"),
)


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with constants folded and needless nodes gone, normalization layers left as they are."""
    graph = ir.serde.deserialize_model(model)
    kept = {id(rule) for rule in _fuse_batchnorm.rules}
    rules = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if id(rule) not in kept]
    passes.InlinePass()(graph)
    for _ in range(2):
        fold_constants(graph)
        rewriter.rewrite(graph, rules)
    tidy(graph)
    return ir.serde.serialize_model(graph)


def tidy(graph: ir.Model) -> None:
    """Leave out, in place, what no one reads; constants become initializers, equal shapes and equal nodes one."""
    for one in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        _MergeConstants(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.RemoveUnusedOpsetsPass(),
    ):
        one(graph)


def put_in_order(graph: onnx.GraphProto) -> None:
    """Put nodes after those that make what they take, in place; those that are so already stay in their order."""
    maker = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    needs = [
        {maker[name] for one in (node, *names.inner_nodes(node)) for name in one.input if name in maker}
        for node in graph.node
    ]
    readers: dict[int, list[int]] = {}
    for place, needed in enumerate(needs):
        for one in needed:
            readers.setdefault(one, []).append(place)
    left = [len(needed) for needed in needs]
    ready = [place for place, count in enumerate(left) if not count]
    ordered = []
    while ready:  # a heap: of those that could come next, the one that stood first
        place = heapq.heappop(ready)
        ordered.append(graph.node[place])
        for reader in readers.get(place, ()):
            left[reader] -= 1
            if not left[reader]:
                heapq.heappush(ready, reader)
    if len(ordered) < len(needs):
        raise ValueError("nodes take what they make themselves")
    kept = onnx.GraphProto()
    kept.node.extend(ordered)
    del graph.node[:]
    graph.node.extend(kept.node)


class _MergeConstants(ir.passes.InPlacePass):
    """Keep one of several equal shapes, axes and single numbers.

    onnx_ir's own pass also merges small weights, and a net's first weights are equal: ones, zeros. What is one tensor
    stays one in every training to come.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        kept: dict[tuple[object, ...], ir.Value] = {}
        merged = False
        for value in tuple(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or value.is_graph_input() or value.is_graph_output():
                continue
            if tensor.size > MERGED_NUMBERS or tensor.dtype.is_string():
                continue
            if tensor.size > 1 and tensor.dtype.is_floating_point():
                continue
            first = kept.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
            if first is not value:
                value.replace_all_uses_with(first)
                del model.graph.initializers[value.name or ""]
                merged = True
        return ir.passes.PassResult(model, merged)


def strip(model: onnx.ModelProto) -> None:
    """Take out, in place, all that tells of the author: docstrings, metadata, stack traces, inner shapes."""
    model.ClearField("doc_string")
    del model.metadata_props[:]
    del model.training_info[:]
    for function in model.functions:
        function.ClearField("doc_string")
        del function.metadata_props[:]
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    del graph.value_info[:]
    values: list[onnx.ValueInfoProto | onnx.TensorProto] = [*graph.input, *graph.output, *graph.initializer]
    values += [part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices)]
    for value in values:
        value.ClearField("doc_string")
        del value.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                tensor.ClearField("doc_string")
                del tensor.metadata_props[:]
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _strip_graph(graph)


def adopt(model: onnx.ModelProto, name: str) -> None:
    """Make a model of someone else fit to be read, in place: inputs that are weights gone, every free dimension named.

    A free dimension without a name is called batch on the first axis, `<input>_<axis>` elsewhere. The operator set
    stays as it is. UnsupportedError for operators that onnxruntime has not.
    """
    _refuse_custom(model, name)
    hide_weights(model)
    for value in model.graph.input:
        _name_unnamed(value)
    batches = [value.type.tensor_type.shape.dim[:1] for value in model.graph.input]
    if any(dim.dim_param == BATCH for dims in batches for dim in dims):
        for value in model.graph.output:
            for dim in value.type.tensor_type.shape.dim[:1]:
                if _is_unnamed(dim):
                    dim.dim_param = BATCH


def hide_weights(model: onnx.ModelProto) -> None:
    """Make weights that are inputs too, as old exporters wrote them, weights alone, in place.

    Whoever runs a model might give others in their place, so that nothing that is made of them can be folded.
    """
    held = {tensor.name for tensor in model.graph.initializer} | {
        tensor.values.name for tensor in model.graph.sparse_initializer
    }
    kept = [value for value in model.graph.input if value.name not in held]
    if len(kept) != len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.ir_version = max(model.ir_version, FIRST_IR_WITH_HIDDEN_WEIGHTS)


def _name_unnamed(value: onnx.ValueInfoProto) -> None:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if _is_unnamed(dim):
            dim.dim_param = BATCH if axis == 0 else f"{value.name}_{axis}"


def _is_unnamed(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether a dimension is free without a name; some exporters write -1 for that."""
    return not dim.dim_param and (not dim.HasField("dim_value") or dim.dim_value < 0)


def _refuse_custom(model: onnx.ModelProto, name: str) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
                operator = f"{node.domain}:{node.op_type}"
                raise UnsupportedError(f"{name}: uses the custom operator {operator}, which onnxruntime has not")
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs


def raised(model: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    """The same model in a later operator set, by ONNX's own version converter; the model itself if it is in that one.

    UnsupportedError where it can't be had: an earlier one, an operator that has changed its meaning.
    """
    current = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), opset)
    if current == opset:
        return model
    if current > opset:
        raise UnsupportedError(f"{name}: is of opset {current}, and can't be lowered to {opset}", f"--opset {current}")
    foreign = sorted({one.domain for one in model.opset_import} - {"", "ai.onnx"})
    if foreign or model.functions or onnx_format.is_large(model):
        what = f"uses {foreign[0]}" if foreign else "has functions of its own" if model.functions else "is too large"
        raise UnsupportedError(f"{name}: {what}, and can't be raised to opset {opset}", "export it without --opset")
    try:
        made = version_converter.convert_version(model, opset)
    except (RuntimeError, version_converter.ConvertError) as error:
        told = " ".join(str(error).split())[:200]
        what = f"{name}: is of opset {current}, and can't be raised to {opset}: {told}"
        raise UnsupportedError(what, "export it without --opset") from error
    made.ir_version = max(made.ir_version, model.ir_version, FIRST_IR_WITH_HIDDEN_WEIGHTS)
    return made


def check(model: onnx.ModelProto, name: str) -> None:
    """ArtifactError unless the model is what the ONNX specification asks for, shapes and types included."""
    if onnx_format.is_large(model):
        return  # the checker reads a single protobuf, and onnxruntime has its own checks
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        told = " ".join(str(error).split())
        raise ArtifactError(f"{name}: not a sound ONNX model: {told[:300]}") from error


def name_dimensions(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Call the free dimensions, in place, by the names that `inputs` give them; return those that are not free.

    Dimensions of outputs that are made of them are named by the same expression (`2*length`).
    """
    names: dict[str, str] = {}
    fixed: list[str] = []
    given = {one.name: one for one in model.graph.input}
    for spec in inputs:
        for found, wanted in zip(given[spec.name].type.tensor_type.shape.dim, spec.shape, strict=True):
            if not isinstance(wanted, str):
                continue
            if found.HasField("dim_value"):
                fixed.append(wanted)
            else:
                names[found.dim_param] = wanted
                found.dim_param = wanted
    for output in model.graph.output:
        for size in output.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = _renamed(size.dim_param, names)
    return tuple(dict.fromkeys(fixed))


def _renamed(expression: str, names: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), expression)
