"""The shape of every value of a graph at given sizes of its free dimensions, and the numbers that shapes are made of.

One pass, node by node: ONNX's own shape inference for a single node, given what is known of its inputs, and ONNX's
reference implementation for the integers that a graph computes from shapes. Nothing large is computed.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference.ops import load_op

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

LARGEST_KNOWN = 4096  # elements of a tensor whose numbers are followed
FREE = 64  # the size of a free dimension that is not the first one
MAIN = frozenset({"", "ai.onnx"})
MICROSOFT = "com.microsoft"

_FOLLOWED = frozenset(
    {"Abs", "Add", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather", "Greater"}
    | {"Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Pow", "Range", "ReduceMax", "ReduceMin"}
    | {"ReduceProd", "ReduceSum", "Reshape", "ScatterND", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose"}
    | {"Unsqueeze", "Where"}
)
# Operators whose first output is like their first input, which ONNX does not infer for a single node.
_LIKE = frozenset(
    {"BiasGelu", "FastGelu", "Gelu", "GroupNormalization", "LRN", "LpNormalization", "MeanVarianceNormalization"}
    | {"MultiHeadAttention", "QuickGelu", "RMSNormalization"}
    | {"SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)


class Shapes:
    """What is known of a graph's values: `shape` by name, and `numbers` of small ones; a value may be in neither."""

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, int] | None = None, batch: int = 1) -> None:
        """Infer at these sizes of free dimensions by name.

        Others are FREE, but for the one whose name begins with "batch", or else an input's first, which is `batch`.
        """
        self.shape: dict[str, Shape] = {}
        self.numbers: dict[str, Array] = {}
        self._types: dict[str, int] = {}
        self._opsets = list(model.opset_import)
        self._ir_version = model.ir_version
        held = {tensor.name for tensor in model.graph.initializer}
        for tensor in model.graph.initializer:
            self._enter(tensor.name, tensor.data_type, tuple(tensor.dims))
            if tensor.data_type in _NUMBERS and math.prod(tensor.dims) <= LARGEST_KNOWN:
                self.numbers[tensor.name] = numpy_helper.to_array(tensor)
        for value in model.graph.input:
            if value.name not in held and value.type.HasField("tensor_type"):
                dims = value.type.tensor_type.shape.dim
                told = sizes or {}
                at = next((at for at, dim in enumerate(dims) if dim.dim_param.startswith("batch")), 0)
                shape = tuple(_size(dim, batch if axis == at else FREE, told) for axis, dim in enumerate(dims))
                self._enter(value.name, value.type.tensor_type.elem_type, shape)
        for node in model.graph.node:
            self._infer(node)

    def _enter(self, name: str, kind: int, shape: Shape) -> None:
        self.shape[name], self._types[name] = shape, kind

    def _infer(self, node: onnx.NodeProto) -> None:
        given = [name for name in node.input if name]
        if any(name not in self._types for name in given):
            return
        if node.domain in MAIN:
            self._infer_standard(node, given)
        shapes = [self.shape[name] for name in given]
        if node.output[0] in self.shape or not given:
            return
        if node.op_type in _LIKE:
            self._enter(node.output[0], self._types[given[0]], shapes[0])
        elif node.op_type == "FusedMatMul":
            self._enter(node.output[0], self._types[given[0]], _multiplied(node, *shapes[:2]))
        elif node.op_type == "Attention" and node.domain == MICROSOFT and len(shapes) > 1:
            self._enter(node.output[0], self._types[given[0]], (*shapes[0][:-1], shapes[1][-1] // 3))

    def _infer_standard(self, node: onnx.NodeProto, given: list[str]) -> None:
        version = next((one.version for one in self._opsets if one.domain in MAIN), 1)
        try:
            schema = onnx.defs.get_schema(node.op_type, version, "")
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: helper.make_tensor_type_proto(self._types[name], self.shape[name]) for name in given},
                {name: numpy_helper.from_array(self.numbers[name], name) for name in given if name in self.numbers},
                opset_imports=self._opsets,
                ir_version=self._ir_version,
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
            return
        numbers = self.computed(node, self.shape, self.numbers)
        for place, name in enumerate(node.output):
            if numbers is not None and name:
                self.numbers[name] = numbers[place]
                self._enter(name, found[name].tensor_type.elem_type, numbers[place].shape)
                continue
            tensor = found[name].tensor_type if name in found else None
            if tensor is None or not tensor.HasField("shape"):
                continue
            if all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self._enter(name, tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim))

    def computed(
        self, node: onnx.NodeProto, shape: Mapping[str, Shape], numbers: Mapping[str, Array]
    ) -> list[Array] | None:
        """What a node computes from shapes and small constants; None if it is not of that kind or too large."""
        if node.domain not in MAIN:
            return None
        if node.op_type == "Shape":
            start = next((one.i for one in node.attribute if one.name == "start"), 0)
            end = next((one.i for one in node.attribute if one.name == "end"), None)
            return [np.array(shape[node.input[0]][start:end], np.int64)]
        if node.op_type == "Size":
            return [np.array(math.prod(shape[node.input[0]]), np.int64)]
        if node.op_type not in _FOLLOWED or any(name and name not in numbers for name in node.input):
            return None
        if _length(node.op_type, [numbers[name] for name in node.input if name]) > LARGEST_KNOWN:
            return None
        version = next((one.version for one in self._opsets if one.domain in MAIN), 1)
        parameters = {"log": _quiet, "opsets": {"": version}, "verbose": 0, "new_ops": None}
        with np.errstate(all="ignore"):
            found = load_op("", node.op_type, version)(node, parameters).run(
                *(numbers[name] if name else None for name in node.input)
            )
        arrays = [np.asarray(one) for one in found]
        return arrays if all(one.size <= LARGEST_KNOWN for one in arrays) else None


_NUMBERS = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT, TensorProto.DOUBLE})


def _length(operator: str, given: list[Array]) -> float:
    """How many numbers an operator would make whose result can be far larger than what it is given."""
    if operator in ("Expand", "ConstantOfShape"):
        return float(math.prod(given[-1].reshape(-1).tolist()))
    if operator == "Range":
        start, limit, step = (float(one) for one in given)
        return abs(limit - start) / abs(step) if step else math.inf
    return 0


def _size(dim: onnx.TensorShapeProto.Dimension, free: int, sizes: Mapping[str, int]) -> int:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return dim.dim_value
    return sizes.get(dim.dim_param, free)


def _multiplied(node: onnx.NodeProto, left: Shape, right: Shape) -> Shape:
    turned = {one.name: one.i for one in node.attribute}
    rows = left[-1 if turned.get("transA") else -2]
    columns = right[-2 if turned.get("transB") else -1]
    return (*np.broadcast_shapes(left[:-2], right[:-2]), rows, columns)


def _quiet(*_: object) -> None:
    pass
