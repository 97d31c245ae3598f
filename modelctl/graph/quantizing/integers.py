"""Graphs that compute in 8-bit integers, by onnxruntime.quantization: what it is given, and what it trips over.

`static` writes QuantizeLinear/DequantizeLinear pairs in ranges that are known, `dynamic` finds ranges while running.
Activations are uint8 and weights int8: on x86 that pair has the fast kernels (int8 activations ran at ×1.67 where uint8
ran at ×2.06). The graph's outputs stay in float: eight bits there cost agreement and bring nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto
from onnx.shape_inference import InferenceError
from onnxruntime.quantization import CalibrationMethod, QuantizationMode, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from modelctl.errors import UnsupportedError
from modelctl.graph.chatter import hushed
from modelctl.graph.histograms import Range
from modelctl.graph.prepare import pool_before_relu
from modelctl.graph.quantizing.recipe import Recipe
from modelctl.graph.session import LOAD_ERRORS

Shapes = Sequence[onnx.ValueInfoProto]

INFERRED = ("onnx.infer", "onnxruntime.quant")  # by this entry onnxruntime.quantization knows that shapes are there
MATRICES = ("MatMul", "Gemm")
SMALL_BYTES = 1024  # what is smaller may be a shape, which inference wants to see

# What onnxruntime.quantization was seen to raise on sound graphs: it checks little, and stumbles where it did not look.
_STUMBLES = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError, NotImplementedError,
    InferenceError, onnx.checker.ValidationError, *LOAD_ERRORS,
)  # fmt: skip


def shapes(model: onnx.ModelProto) -> Shapes:
    """The type and shape of every value inside `model`, as far as they can be told without its weights."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.name = model.graph.name
    for field in ("node", "input", "output"):
        getattr(bare.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= SMALL_BYTES:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return list(onnx.shape_inference.infer_shapes(bare).graph.value_info)


def static(model: onnx.ModelProto, known: Shapes, ranges: Mapping[str, Range], recipe: Recipe) -> onnx.ModelProto:
    """A copy of `model`, its `shapes` being known, with int8 weights and uint8 activations in these ranges.

    UnsupportedError if it can't be made. A node that touches an activation without a range stays in float.
    """
    copy = _copied(model, known)
    pool_before_relu(copy, recipe.floats)
    held = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with _stumbles_named():
        quantizer = QDQQuantizer(
            copy,
            recipe.per_channel,
            recipe.weight_bits == 7,
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, held),
            [],
            [*recipe.floats, *_unranged(copy, ranges, recipe)],
            list(recipe.types),
            {"OpTypesToExcludeOutputQuantization": list(MATRICES)} if recipe.gives_float else {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return _tidied(quantizer.model.model)


def dynamic(model: onnx.ModelProto, known: Shapes, recipe: Recipe) -> onnx.ModelProto:
    """A copy of `model`, its `shapes` being known, with int8 weights, activations quantized while it runs.

    UnsupportedError if it can't be.
    """
    copy = _copied(model, known)
    with _stumbles_named():
        quantizer = ONNXQuantizer(
            copy,
            recipe.per_channel,
            recipe.weight_bits == 7,
            QuantizationMode.IntegerOps,
            False,
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            [],
            list(recipe.floats),
            list(recipe.types),
            {"MatMulConstBOnly": True},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return _tidied(quantizer.model.model)


def _copied(model: onnx.ModelProto, known: Shapes) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(known)
    copy.metadata_props.add(key=INFERRED[0], value=INFERRED[1])
    return copy


def _unranged(model: onnx.ModelProto, ranges: Mapping[str, Range], recipe: Recipe) -> list[str]:
    """The names of the nodes to quantize that touch a float activation whose range is not known."""
    kinds = {one.name: one.type.tensor_type.elem_type for one in (*model.graph.value_info, *model.graph.input)}
    held = {tensor.name for tensor in model.graph.initializer}
    outputs = {one.name for one in model.graph.output}  # those may stay in float

    def touches(node: onnx.NodeProto) -> bool:
        values = {*node.input, *node.output} - held - outputs - {""}
        return any(kinds.get(name, TensorProto.FLOAT) == TensorProto.FLOAT and name not in ranges for name in values)

    return [node.name for node in model.graph.node if node.op_type in recipe.types and touches(node)]


@contextlib.contextmanager
def _stumbles_named() -> Iterator[None]:
    """Keep what onnxruntime.quantization says to itself, and name what it stumbles over."""
    try:
        with hushed():
            yield
    except _STUMBLES as error:
        raise UnsupportedError(f"onnxruntime.quantization stumbles: {_told(error)}") from error


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what no one reads any more: pairs at the outputs, unused tensors, notes, stale shapes."""
    _float_outputs(model.graph)
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:], model.metadata_props[:]
    graph.initializer.extend(sorted(kept, key=lambda tensor: tensor.name))
    called: set[str] = set()
    for place, node in enumerate(graph.node):
        node.doc_string = ""
        if node.name in called:  # in a graph that held such pairs before
            node.name = f"{node.name}_{place}"
        called.add(node.name)
    for tensor in graph.initializer:
        tensor.doc_string = ""
    return model


def _float_outputs(graph: onnx.GraphProto) -> None:
    """Take away QuantizeLinear, DequantizeLinear in front of an output, so that what they took in is the output."""
    maker = {name: node for node in graph.node for name in node.output}
    for out in graph.output:
        last = maker.get(out.name)
        first = maker.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        if last is None or first is None or first.op_type != "QuantizeLinear" or first.input[0] not in maker:
            continue
        if sum(name in (first.output[0], out.name) for node in graph.node for name in node.input) != 1:
            continue
        inner = first.input[0]
        graph.node.remove(first)
        graph.node.remove(last)
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == inner:
                        names[place] = out.name
