"""Fewer nodes that compute the same: constants and batch norms folded, operators that belong together fused.

A rewrite is a function from a model to another one, and says nothing of how right it is: the step that applies it asks
`graph.parity`. Folding never lets weights grow: what is stored in few bits (int8 under a Cast and a Mul, a
QuantizeLinear pair) stays so. Fused operators are of onnxruntime's domain com.microsoft where ONNX has none, and only
such as `graph.trainable` and `graph.channels` know. A bias within a Gelu, which would stop a graph from being cut
further, is left to onnxruntime, which fuses it when it loads a file. A sum is not put into the LayerNormalization
behind it: on a CPU the two are faster apart (a small vision transformer ran at ×0.89 with SkipLayerNormalization).

Most rules are onnxscript's (`onnxscript.rewriter`); attention is our own (`graph.multihead`).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnx.shape_inference import InferenceError
from onnx_ir.passes import PassError
from onnx_ir.passes import common as passes
from onnxscript import rewriter
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter.ort_fusions.erfgelu import fuse_erfgelu
from onnxscript.rewriter.ort_fusions.fused_matmul_rule_sets import fused_matmul_rule_sets
from onnxscript.rewriter.ort_fusions.gelu import fuse_gelu
from onnxscript.rewriter.rules.fusion import _layer_norm

from modelctl.errors import UnsupportedError
from modelctl.graph import clean, multihead, weights
from modelctl.graph.chatter import hushed

SLACK_BYTES = 64  # by which a folded constant may be larger than what it was made of: a node takes as much
FEW_NUMBERS = 1024  # may be folded where it is not known how many come out
LAYER_NORM_OPSET = 17
ROUNDS = 2  # a rule may make room for another
_ONNX = ("", "ai.onnx")
_SPREADING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize", "EyeLike"})
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
FUSED = frozenset({"LayerNormalization", "Gelu", "FastGelu", "MultiHeadAttention", "FusedMatMul"})

# What the rewriter was seen to raise on graphs that are sound, but not as its rules expect them.
STUMBLES = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError, NotImplementedError,
    InferenceError, PassError,
)  # fmt: skip

Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants, dead code, nodes that do nothing, and batch norms into the convolutions and products before them."""
    with _graph(model) as graph:
        passes.InlinePass()(graph)
        _infer(graph)
        for _ in range(ROUNDS):
            fold_constants(graph, onnx_shape_inference=True, should_fold=_worth_folding)
            rewriter.rewrite(graph, rewriter._DEFAULT_REWRITE_RULES)
        return _written(graph, model)


def _layer_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """LayerNormalization for what older exporters wrote in nine nodes."""
    with _graph(model) as graph:
        if graph.opset_imports.get("", 0) < LAYER_NORM_OPSET:
            return model
        _infer(graph)
        _layer_norm.fuse_layer_normalization(graph)
        return _written(graph, model)


def _gelus(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gelu and FastGelu for the formulas with Erf and Tanh."""
    with _graph(model) as graph:
        fuse_erfgelu(graph)
        fuse_gelu(graph)
        return _written(graph, model)


def _attentions(model: onnx.ModelProto) -> onnx.ModelProto:
    """MultiHeadAttention for products, softmax and transposes."""
    with _graph(model) as graph:
        _infer(graph)
    multihead.fuse(graph)  # our own: what it stumbles over is a bug
    return _written(graph, model)


def _products(model: onnx.ModelProto) -> onnx.ModelProto:
    """FusedMatMul for a product and the transposes and scales around it."""
    with _graph(model) as graph:
        _infer(graph)
        rewriter.rewrite(graph, fused_matmul_rule_sets())
        return _written(graph, model)


FUSIONS: Mapping[str, Rewrite] = {
    "attention": _attentions,
    "layer-norm": _layer_norms,
    "gelu": _gelus,
    "matmul": _products,
}


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each kind a model has, those of subgraphs too; Constants, which compute nothing, aside."""
    return Counter(node.op_type for node in weights.nodes_of(model.graph) if node.op_type != "Constant")


def newly_fused(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """How many nodes of each fused kind there are now, and were not before."""
    return {kind: after[kind] - before[kind] for kind in sorted(FUSED) if after[kind] > before[kind]}


@contextmanager
def _graph(model: onnx.ModelProto) -> Iterator[ir.Model]:
    """The model as onnx_ir reads it; UnsupportedError for what the rewriter stumbles over."""
    try:
        with hushed():
            yield ir.serde.deserialize_model(model)
    except STUMBLES as error:
        raise UnsupportedError(f"the rewriter stumbles: {told(error)}") from error


def told(error: Exception) -> str:
    """What a library said, in one line."""
    said = str(error).strip().splitlines()
    return said[0][:200] if said else type(error).__name__


def _infer(graph: ir.Model) -> None:
    passes.ShapeInferencePass()(graph)


def _written(graph: ir.Model, before: onnx.ModelProto) -> onnx.ModelProto:
    """The rewritten graph, tidy; dimensions of inputs and outputs are called as they were."""
    clean.tidy(graph)
    made = ir.serde.serialize_model(graph)
    for values, kept in ((made.graph.input, before.graph.input), (made.graph.output, before.graph.output)):
        for value, old in zip(values, kept, strict=True):
            value.type.CopyFrom(old.type)
    return made


def _worth_folding(node: ir.Node) -> bool | None:
    """Whether what a node makes of constants may be stored in their place: not if that takes more bytes."""
    if node.domain not in _ONNX or node.op_type in _QUANTIZING:
        return False
    constants = {id(one): one for one in node.inputs if one is not None}.values()
    held = [one.const_value for one in constants if one.const_value is not None]
    sizes = [_bytes_of(one) for one in node.outputs]
    known = [one for one in sizes if one is not None]
    if len(known) < len(sizes):
        few = sum(one.size for one in held) <= FEW_NUMBERS
        return None if few and node.op_type not in _SPREADING else False
    return sum(known) <= sum(_freed_by(node, one) for one in constants) + SLACK_BYTES


def _freed_by(node: ir.Node, value: ir.Value) -> float:
    """What of a constant is no longer needed once `node` is folded: its share, where all that reads it can be folded.

    So are the gates of a recurrent layer cut out of one weight, and put together in another order.
    """
    readers = list(value.consumers())
    if value.const_value is None or value.is_graph_output():
        return 0
    if len(readers) > 1:
        if any(one is None or one.const_value is None for reader in readers for one in reader.inputs):
            return 0
        sizes = {id(reader): [_bytes_of(one) for one in reader.outputs] for reader in readers}
        if any(one is None for each in sizes.values() for one in each):
            return 0
        total = sum(one for each in sizes.values() for one in each if one is not None)
        mine = sum(one for one in sizes[id(node)] if one is not None)
        return value.const_value.nbytes * mine / max(total, 1)
    return value.const_value.nbytes


def _bytes_of(value: ir.Value) -> int | None:
    """What a value takes; None where its shape is not known."""
    if value.shape is None or value.dtype is None or value.dtype.is_string():
        return None
    sizes = [one if isinstance(one, int) else None for one in value.shape]
    if any(one is None for one in sizes):
        return None
    return math.ceil(math.prod(one for one in sizes if one is not None) * value.dtype.itemsize)
