"""Fixed point: weights as round(w · 2^p), inputs as round(x · 255); the formulas that modelctl was founded on.

The integers are stored under what gives w' = round(w · 2^p) · 2^-p back (`unpacking`): exactly, as 2^-p only moves the
point. p is the largest with which all numbers of a tensor fit, so that a tensor with one large number has few steps for
the others: nothing is done about that here. An input goes through QuantizeLinear and DequantizeLinear with the scale
1/255 and the zero point 0, and so has to lie between 0 and 1. What lies halfway goes to the even number, as in numpy
and in ONNX.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from modelctl.data.samples import Array
from modelctl.errors import DataError, UnsupportedError
from modelctl.graph import clean, names, unpacking, weights
from modelctl.graph.session import Tensors
from modelctl.graph.unpacking import MIN_NUMBERS, TYPES, Step
from modelctl.graph.watching import Batches

INTEGERS = {8: np.int8, 16: np.int16}
STEPS = 255  # between the smallest and the largest input
MOST = 126  # of p: 2^-126 is the smallest normal float32
OLDEST_OPSET = 13
_FLOAT = TensorProto.FLOAT


@dataclass(frozen=True, kw_only=True)
class Point:
    """What was done with a weight, or with an input, which has no p.

    `error`: the largest difference that it made; `reason`: why nothing was done.
    """

    tensor: str
    p: int | None = None
    error: float = 0.0
    bytes_before: int = 0
    bytes_after: int = 0
    reason: str = ""


def quantize(
    model: onnx.ModelProto,
    name: str,
    *,
    bits: int = 8,
    p: int | None = None,
    types: Collection[str] = TYPES,
    excluded: Collection[str] = (),
    batches: Batches | None = None,
) -> tuple[onnx.ModelProto, list[Point]]:
    """A copy of `model`, called `name`, in fixed point, and what was done with each weight and each float input.

    Weights and biases of nodes of `types` become integers of `bits` (8 or 16) bits, with a `p` for each, or the one
    that is given; those too small to gain are rounded, and stay floats. Inputs are counted in 255ths when `batches`
    show that they lie between 0 and 1. UnsupportedError for a p with which a weight does not fit; DataError for inputs
    outside 0 to 1.
    """
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), OLDEST_OPSET)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy = clean.raised(copy, OLDEST_OPSET, name) if opset < OLDEST_OPSET else copy
    points: list[Point] = []
    tensors = []
    for tensor, reason in _tensors(copy, types, excluded):
        if reason:
            points.append(Point(tensor=tensor.name, reason=reason))
        else:
            tensors.append(tensor)
    if p is not None:
        _check(name, tensors, bits, p)
    points = [*(_fix(copy.graph, tensor, bits, p) for tensor in tensors), *points]
    return copy, [*points, *_count(copy.graph, name, batches)]


def largest_p(values: Array, bits: int) -> int:
    """The largest p with which round(w · 2^p) of all values fits in `bits` bits with a sign; 0 for zeros alone."""
    ends = np.array([values.min(initial=0), values.max(initial=0)], np.float64)
    if not ends.any():
        return 0
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    p = min(bits - int(np.frexp(ends)[1][np.abs(ends).argmax()]), MOST)
    while not low <= np.rint(np.ldexp(ends[0], p)) or not np.rint(np.ldexp(ends[1], p)) <= high:
        p -= 1
    return p


def fixed(values: Array, bits: int, p: int) -> Array:
    """round(w · 2^p), which has to fit in `bits` bits."""
    found: Array = np.rint(np.ldexp(values.astype(np.float64), p)).astype(INTEGERS[bits])
    return found


def counted(values: Array) -> Array:
    """round(x · 255) / 255 as QuantizeLinear and DequantizeLinear compute it, in float32."""
    scale = np.float32(1 / STEPS)
    found: Array = np.rint(values.astype(np.float32) / scale).clip(0, STEPS) * scale
    return found


def _tensors(
    model: onnx.ModelProto, types: Collection[str], excluded: Collection[str]
) -> Iterator[tuple[onnx.TensorProto, str]]:
    """Weights, and what else the nodes that multiply with them add; and why one is left."""
    public = {one.name for one in (*model.graph.input, *model.graph.output)}
    nodes = list(weights.nodes_of(model.graph))
    wanted = {tensor.name for tensor in weights.prunable(model)}
    wanted |= {name for node in nodes if node.op_type in TYPES and node.op_type != "Gather" for name in node.input[1:]}
    for tensor in list(model.graph.initializer):
        if tensor.name not in wanted or tensor.data_type not in weights.FLOATS or 0 in tensor.dims:
            continue
        users = [node for node in nodes if tensor.name in node.input]
        yield tensor, unpacking.why_not(tensor, users, public, types, excluded)


def _check(name: str, tensors: list[onnx.TensorProto], bits: int, p: int) -> None:
    """UnsupportedError unless all weights fit with this p."""
    largest = {tensor.name: largest_p(numpy_helper.to_array(tensor), bits) for tensor in tensors}
    worst = min(largest, key=lambda one: largest[one], default="")
    if worst and largest[worst] < p:
        hint = f"--fraction-bits {largest[worst]}" if largest[worst] >= 0 else "leave --fraction-bits out"
        raise UnsupportedError(f"{name}: round(w·2^{p}) of {worst!r} takes more than {bits} bits", hint)


def _fix(graph: onnx.GraphProto, tensor: onnx.TensorProto, bits: int, given: int | None) -> Point:
    name, values = tensor.name, numpy_helper.to_array(tensor)
    if values.dtype.itemsize * 8 <= bits:
        return Point(tensor=name, reason=f"has {bits} bits already")
    p = largest_p(values, bits) if given is None else given
    stored, scale = fixed(values, bits, p), np.ldexp(np.float64(1), -p)
    error = float(np.abs(stored * scale - values.astype(np.float64)).max())
    if values.size < MIN_NUMBERS:
        tensor.CopyFrom(numpy_helper.from_array((stored * scale).astype(values.dtype), name))
        return Point(tensor=name, p=p, error=error, bytes_before=values.nbytes, bytes_after=values.nbytes)
    rows = stored if values.ndim > 1 else stored.reshape(1, -1)  # what has one axis is no weight to `weights.count`
    size = unpacking.write(graph, tensor, rows, np.full((1,) * rows.ndim, scale))
    return Point(tensor=name, p=p, error=error, bytes_before=values.nbytes, bytes_after=size)


def _count(graph: onnx.GraphProto, name: str, batches: Batches | None) -> list[Point]:
    """Count the float inputs in 255ths, where samples show that they can be."""
    held = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in held and one.type.tensor_type.elem_type in weights.FLOATS]
    if batches is None:
        return [Point(tensor=one.name, reason="no samples show that it lies between 0 and 1") for one in inputs]
    errors = _errors(name, [one.name for one in inputs], batches()) if inputs else {}
    for one in inputs:
        _round(graph, one.name, one.type.tensor_type.elem_type)
    return [Point(tensor=one, error=error) for one, error in errors.items()]


def _errors(name: str, inputs: list[str], batches: Iterable[Tensors]) -> dict[str, float]:
    """By how much each input is rounded at most; DataError where it leaves 0 to 1."""
    errors = dict.fromkeys(inputs, 0.0)
    for feeds in batches:
        for one in inputs:
            values = feeds[one].astype(np.float32)
            low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
            if not (low >= 0 and high <= 1):
                what = (
                    f"takes values from {low:.4g} to {high:.4g}" if np.isfinite([low, high]).all() else "is not finite"
                )
                hint = "scale the samples to 0…1, and the model to them"
                raise DataError(f"{name}: {one!r} {what} in the samples, and fixed-point counts from 0 to 1", hint)
            errors[one] = max(errors[one], float(np.abs(counted(values) - values).max(initial=0)))
    return errors


def _round(graph: onnx.GraphProto, name: str, kind: int) -> None:
    """Put QuantizeLinear and DequantizeLinear between an input and all that read it; casts where it is no float."""
    taken = names.taken(graph)
    scale, zero = names.fresh(f"{name}_scale", taken), names.fresh(f"{name}_zero", taken)
    graph.initializer.append(numpy_helper.from_array(np.array(1 / STEPS, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.uint8), zero))
    steps: list[Step] = [("QuantizeLinear", [scale, zero], {}), ("DequantizeLinear", [scale, zero], {})]
    if kind != _FLOAT:
        steps = [("Cast", [], {"to": _FLOAT}), *steps, ("Cast", [], {"to": kind})]
    rounded = names.fresh(f"{name}_counted", taken)
    for node in weights.nodes_of(graph):
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = rounded
    unpacking.put_in_front(graph, name, steps, taken, rounded)
