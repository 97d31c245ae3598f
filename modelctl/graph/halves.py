"""Weights and values in half the bits: float16 or bfloat16.

`computing` writes a graph whose inner values are halves, too; casts keep the types of its inputs and outputs. How fast
that is depends on where it runs: a CPU has few kernels for float16, and onnxruntime puts casts around what has none;
for bfloat16 it has kernels there that move values about, and none that add or multiply. `stored` only halves the file:
in front of what reads a weight stands a Cast, which onnxruntime folds when it loads the file, so that it runs as fast
as before.

bfloat16 has float32's range and 8 bits of precision; float16 has 11, and ends at 65504.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers import float16

from modelctl.data.samples import Array
from modelctl.errors import ArtifactError, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import clean, names, providers, weights
from modelctl.graph.chatter import hushed
from modelctl.graph.fusing import STUMBLES, told
from modelctl.graph.session import Session

MIN_NUMBERS = 256  # below that a node costs more than is saved
OLDEST_OPSET_OF_BFLOAT16 = 13  # of Cast
_WIDE = (TensorProto.FLOAT, TensorProto.DOUBLE)
_LARGEST = float.fromhex("0x1.fep127")  # of bfloat16: a mask's lowest float32 must not become infinite
_OPERATOR = re.compile(r"(?:operator \(|implementation for )(\w+)")  # of those that onnxruntime refuses


class Half(StrEnum):
    """A type of 16 bits."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def element(self) -> int:
        """Its number in onnx.proto."""
        return TensorProto.FLOAT16 if self is Half.FLOAT16 else TensorProto.BFLOAT16

    def of(self, values: Array) -> Array:
        """The nearest halves; infinite where that is too large."""
        with np.errstate(over="ignore"):
            found: Array = values.astype(helper.tensor_dtype_to_np_dtype(self.element))
        return found


@dataclass(frozen=True, kw_only=True)
class Halved:
    """What was done with a weight; `error`: the largest, by its largest number; `reason`: why it was left."""

    weight: str
    bytes_before: int
    bytes_after: int
    error: float = 0.0
    reason: str = ""


def computing(
    model: onnx.ModelProto, name: str, kind: str = Half.FLOAT16, provider: str = providers.CPU
) -> onnx.ModelProto:
    """`model`, called `name`, with weights and values in halves; inputs and outputs keep their types, by casts.

    Nodes with weights that are too large for float16 stay in float. UnsupportedError for a model that can't be written
    so, and, for bfloat16, where onnxruntime can't run it on `provider`.
    """
    half = Half(kind)
    copy = _copied(model, name, half)
    if half is Half.BFLOAT16 and _holds_float16(copy):
        raise UnsupportedError(f"{name}: holds float16 already, and can't be written in bfloat16 too")
    try:
        with hushed():
            narrow = float16.convert_float_to_float16(copy, keep_io_types=True, node_block_list=_too_wide(copy))
            _merge_casts(narrow.graph)
            clean.put_in_order(narrow.graph)  # the casts of outputs' and inputs' types stand at its end
            del narrow.graph.value_info[:]  # which say float still of what is made between two casts
            written: onnx.ModelProto = ir.serde.serialize_model(ir.serde.deserialize_model(narrow))
    except STUMBLES as error:
        raise UnsupportedError(f"{name}: can't be written in {half}: {told(error)}") from error
    if half is Half.BFLOAT16:
        _retype(written, {one.name: one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT})
        _prove(written, name, provider)
    return written


def stored(model: onnx.ModelProto, name: str, kind: str = Half.FLOAT16) -> tuple[onnx.ModelProto, list[Halved]]:
    """A copy of `model`, called `name`, whose weights are stored in halves; and what was done with each of them.

    Left are small ones, and those that would become infinite, that are inputs or outputs, or that belong to what is
    quantized already. UnsupportedError where that leaves all, or where the opset is too old and can't be raised.
    """
    half = Half(kind)
    copy = _copied(model, name, half)
    quantized = {value for node in weights.nodes_of(copy.graph) if _is_quantizing(node) for value in node.input}
    taken = names.taken(copy.graph)
    done = [one for graph in names.graphs_of(copy.graph) for one in _store(graph, half, quantized, taken)]
    if all(one.reason for one in done):
        why = f": {done[0].weight!r} {done[0].reason}" if done else ""
        raise UnsupportedError(f"{name}: holds no weights that could be stored in {half}{why}")
    return copy, done


def _store(graph: onnx.GraphProto, half: Half, quantized: set[str], taken: set[str]) -> list[Halved]:
    """Put halves in the place of weights, and in front of all nodes the casts that give the weights back."""
    public = {one.name for one in (*graph.input, *graph.output)}
    done: list[Halved] = []
    casts: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type not in _WIDE or math.prod(tensor.dims) < MIN_NUMBERS:
            continue
        weight, kind, values = tensor.name, tensor.data_type, numpy_helper.to_array(tensor)
        halves, finite = half.of(values), np.isfinite(values)
        reason = ""
        if weight in public:
            reason = "is an input or output of the graph"
        elif weight in quantized:
            reason = "belongs to what is quantized already"
        elif not np.isfinite(halves[finite]).all():
            reason = f"is too large for {half}"
        if reason:
            done.append(Halved(weight=weight, bytes_before=values.nbytes, bytes_after=values.nbytes, reason=reason))
            continue
        error = _error(values[finite], halves[finite])
        done.append(Halved(weight=weight, bytes_before=values.nbytes, bytes_after=halves.nbytes, error=error))
        inner = names.fresh(f"{weight}_{half}", taken)
        tensor.CopyFrom(numpy_helper.from_array(halves, inner))
        casts.append(helper.make_node("Cast", [inner], [weight], names.fresh(f"{weight}_widen", taken), to=kind))
    casts += graph.node
    del graph.node[:]
    graph.node.extend(casts)
    return done


def _error(values: Array, halves: Array) -> float:
    """The largest difference between finite numbers and their halves, as a share of the largest number."""
    largest = float(np.abs(values).max(initial=0))
    return float(np.abs(values - halves.astype(values.dtype)).max(initial=0)) / largest if largest else 0.0


def _copied(model: onnx.ModelProto, name: str, half: Half) -> onnx.ModelProto:
    """A copy, of an opset whose Cast knows the type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = next((one.version for one in copy.opset_import if one.domain in ("", "ai.onnx")), OLDEST_OPSET_OF_BFLOAT16)
    if half is Half.FLOAT16 or opset >= OLDEST_OPSET_OF_BFLOAT16:
        return copy
    return clean.raised(copy, OLDEST_OPSET_OF_BFLOAT16, name)


def _merge_casts(graph: onnx.GraphProto) -> None:
    """Keep one, in place, of the casts of one name that the converter writes for all who read a weight in float."""
    seen: set[str] = set()
    for place in reversed(range(len(graph.node))):
        node = graph.node[place]
        if node.op_type == "Cast" and node.output[0] in seen:
            del graph.node[place]
        seen.update(node.output)


def _too_wide(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes with weights too large for float16, given to them where they have none."""
    wide = {
        tensor.name
        for tensor in weights.prunable(model)
        if tensor.data_type == TensorProto.FLOAT and _overflows(numpy_helper.to_array(tensor))
    }
    found = [node for node in model.graph.node if wide & set(node.input)]
    taken = names.taken(model.graph) if found else set()
    for node in found:
        node.name = node.name or names.fresh(f"{node.output[0]}_wide", taken)
    return [node.name for node in found]


def _overflows(values: Array) -> bool:
    return bool((np.isinf(Half.FLOAT16.of(values)) & np.isfinite(values)).any())


def _is_quantizing(node: onnx.NodeProto) -> bool:
    """Whether a node takes quantized numbers, and their scales."""
    return any(part in node.op_type.lower() for part in ("quant", "qlinear", "nbits", "integertofloat", "qordered"))


def _holds_float16(model: onnx.ModelProto) -> bool:
    kind = TensorProto.FLOAT16
    for graph in names.graphs_of(model.graph):
        values = [one.type.tensor_type.elem_type for one in (*graph.input, *graph.output, *graph.value_info)]
        if kind in values or any(one.data_type == kind for one in graph.initializer):
            return True
        if any(one.t.data_type == kind or _is_type(one, kind) for node in graph.node for one in node.attribute):
            return True
    return False


def _is_type(attribute: onnx.AttributeProto, kind: int) -> bool:
    """Whether an attribute is the element type `kind`."""
    return attribute.name in ("to", "dtype") and attribute.type == onnx.AttributeProto.INT and attribute.i == kind


def _retype(model: onnx.ModelProto, floats: Mapping[str, onnx.TensorProto]) -> None:
    """Write bfloat16 in place of float16, rounded once where the float form is known by its name."""
    for graph in names.graphs_of(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.BFLOAT16
        for tensor in graph.initializer:
            _retype_tensor(tensor, floats.get(tensor.name, tensor))
        for node in graph.node:
            for attribute in node.attribute:
                _retype_tensor(attribute.t, attribute.t)
                if _is_type(attribute, TensorProto.FLOAT16):
                    attribute.i = TensorProto.BFLOAT16


def _retype_tensor(tensor: onnx.TensorProto, source: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        values = numpy_helper.to_array(source)
        near = np.where(np.isfinite(values), values.clip(-_LARGEST, _LARGEST), values)
        tensor.CopyFrom(numpy_helper.from_array(Half.BFLOAT16.of(near), tensor.name))


def _prove(model: onnx.ModelProto, name: str, provider: str) -> None:
    """UnsupportedError unless onnxruntime has the kernels."""
    try:
        Session(onnx_format.undescribed({Path(name).name: model.SerializeToString()}), provider=provider)
    except (UnsupportedError, ArtifactError) as error:
        operator = _OPERATOR.search(error.message)
        said = f"it has no {operator[1]} for that" if operator else error.message.partition(": ")[2]
        raise UnsupportedError(f"{name}: onnxruntime can't compute it in bfloat16 on {provider}: {said}") from error
