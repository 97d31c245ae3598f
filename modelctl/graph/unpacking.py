"""Weights stored in 4 or 8 bits and computed with in float: initializer → Cast → Mul by the scale → where it was used.

onnxruntime folds what it can compute from constants when it loads a model, so that such a model runs as fast as the
float one. (A DequantizeLinear would be left in place, for integer kernels to be found, and be run every time: ×0.60 on
a small net.) A tool that folds constants into a file would undo the saving.

Eight bits have a symmetric scale, max|w| / 127, one for each output channel where there is one, as in
onnxruntime.quantization. Four bits (ONNX's INT4, two in a byte, which Cast takes from opset 21 on) have one for each
block of the numbers that are summed up (`blocks`), and are stored as [outer, blocks, block, inner]: a Reshape follows.
Where samples are there, rounding to four bits is corrected (`correction`), for convolutions too.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelctl.artifact import Payload
from modelctl.data.samples import Array
from modelctl.graph import names, weights
from modelctl.graph.blocks import Coded, Coding, Decision, decisions, plainly
from modelctl.graph.correction import corrected, relative_error
from modelctl.graph.sources import Source, groups, learn, patches
from modelctl.graph.watching import Batches

MIN_NUMBERS = 256  # below that a scale and two nodes cost more than is saved
LEVELS = 127
BLOCK = 32
OPSET_OF_4_BITS = 21
IR_OF_4_BITS = 10
TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN")
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

Step = tuple[str, Sequence[str], Mapping[str, Any]]  # an operator, its other inputs, its attributes


@dataclass(eq=False)
class _Job:
    """A weight, all nodes that read it, and it as [outer, K, inner]: K numbers go into each sum."""

    tensor: onnx.TensorProto
    nodes: list[onnx.NodeProto]
    view: tuple[int, int, int]
    sources: tuple[Source, ...] = field(default=())
    """What tells what the weight is multiplied with; none where samples can't tell."""

    @property
    def rows(self) -> int:
        """K."""
        return self.view[1]

    def told(self, **facts: Any) -> list[Decision]:
        """A decision for each node."""
        return decisions(self.nodes, Decision(node="", kind="", weight=self.tensor.name, **facts))


def store(
    model: onnx.ModelProto,
    bits: int,
    like: Payload,
    *,
    types: Collection[str] = TYPES,
    excluded: Collection[str] = (),
    per_channel: bool = True,
    block: int = BLOCK,
    max_error: float | None = None,
    batches: Batches | None = None,
    threads: int = 1,
    limit_bytes: int,
) -> list[Decision]:
    """Store, in place, the weights of `model` in `bits` bits, and tell of each node that has one what was done.

    A weight stays where a node of another type than `types`, or one of the names `excluded`, reads it, and where its
    error (of the weight itself, or of what is computed with it on samples) would be above `max_error`. Samples are used
    for four bits only; what is learned of them takes at most `limit_bytes` at a time. DataError for samples that don't
    fit.
    """
    jobs, told = _plan(model, types, excluded)
    if bits == 8:
        for job in jobs:
            told += _store_8(model.graph, job, per_channel, max_error)
        return told
    model.ir_version = max(model.ir_version, IR_OF_4_BITS)
    for group in groups(jobs, limit_bytes):
        wanted = {source for job in group for source in job.sources} if batches else set()
        learned = learn(model, like, wanted, batches(), threads) if batches and wanted else {}
        for job in group:
            told += _store_4(model.graph, job, block, max_error, learned)
    return told


def storable(
    model: onnx.ModelProto, types: Collection[str] = TYPES, excluded: Collection[str] = ()
) -> list[onnx.TensorProto]:
    """The weights that `store` would store."""
    return [job.tensor for job in _plan(model, types, excluded)[0]]


def pack(values: Array, axis: int | None) -> tuple[Array, Array]:
    """int8 of the same shape, and the scale that gives the values back: 1 long in every axis but `axis`."""
    values = values.astype(np.float32)
    others = tuple(one for one in range(values.ndim) if one != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / LEVELS
    scale[scale == 0] = 1
    return np.clip(np.rint(values / scale), -LEVELS, LEVELS).astype(np.int8), scale.astype(np.float32)


def write(graph: onnx.GraphProto, tensor: onnx.TensorProto, stored: Array, scale: Array) -> int:
    """Put integers in the place of a weight, and in front of all nodes those that give it back; the bytes of both.

    `stored` has the weight's shape, or another one of the same size, and `scale` is broadcast to it.
    """
    name, kind, dims, taken = tensor.name, tensor.data_type, list(tensor.dims), names.taken(graph)
    # Halves are multiplied as floats: onnxruntime's CPU has no product of bfloat16.
    wide = TensorProto.FLOAT if kind in _HALVES else kind
    tensor.CopyFrom(numpy_helper.from_array(stored, names.fresh(f"{name}_{stored.dtype.name}", taken)))
    factor = numpy_helper.from_array(
        scale.astype(helper.tensor_dtype_to_np_dtype(wide)), names.fresh(f"{name}_scale", taken)
    )
    graph.initializer.append(factor)
    steps: list[Step] = [("Cast", [], {"to": wide}), ("Mul", [factor.name], {})]
    if stored.shape != tuple(dims):
        shape = numpy_helper.from_array(np.array(dims, np.int64), names.fresh(f"{name}_shape", taken))
        graph.initializer.append(shape)
        steps.append(("Reshape", [shape.name], {}))
    if wide != kind:
        steps.append(("Cast", [], {"to": kind}))
    put_in_front(graph, tensor.name, steps, taken, name)
    return len(tensor.raw_data) + len(factor.raw_data)


def put_in_front(graph: onnx.GraphProto, value: str, steps: Sequence[Step], taken: set[str], last: str) -> None:
    """Put nodes in front of all others: the first takes `value`, the next what that one makes, and so on to `last`."""
    nodes = []
    for place, (operator, others, attributes) in enumerate(steps):
        out = last if place == len(steps) - 1 else names.fresh(f"{last}_{operator.lower()}", taken)
        called = names.fresh(f"{out}_node", taken)
        nodes.append(helper.make_node(operator, [value, *others], [out], called, **attributes))
        value = out
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)


def _plan(
    model: onnx.ModelProto, types: Collection[str], excluded: Collection[str]
) -> tuple[list[_Job], list[Decision]]:
    """The weights that can be stored, and why others can't be."""
    public = {one.name for one in (*model.graph.input, *model.graph.output)}
    constant = {one.name for one in model.graph.initializer}
    nodes = list(weights.nodes_of(model.graph))
    jobs: list[_Job] = []
    left: list[Decision] = []
    for tensor in weights.prunable(model):
        users = [node for node in nodes if tensor.name in node.input]
        job = _Job(tensor, users, _view(users[0], tensor))
        reason = why_not(tensor, users, public, types, excluded)
        if not reason and math.prod(tensor.dims) < MIN_NUMBERS:
            reason = "is too small to gain"
        if reason:
            left += job.told(reason=reason)
            continue
        above = sum(tensor.name in node.input for node in model.graph.node)  # the rest is in subgraphs, not seen
        if above == len(users) and all(_view(node, tensor) == job.view for node in users):
            sources = [_source(node, tensor, constant) for node in users]
            job.sources = tuple(one for one in sources if one) if all(sources) else ()
        jobs.append(job)
    return jobs, left


def why_not(
    tensor: onnx.TensorProto,
    users: list[onnx.NodeProto],
    public: Collection[str],
    types: Collection[str],
    excluded: Collection[str],
) -> str:
    """Why a weight that these nodes read stays in float; "" if it needn't. `public`: the graph's inputs and outputs."""
    if tensor.name in public:
        return "is an input or output of the graph"
    for node in users:
        if node.op_type not in types:
            return f"is read by {node.op_type}" if node.op_type not in TYPES else "is excluded"
        if node.name in excluded:
            return "is excluded" if len(users) == 1 else f"is read by {node.name}, which is excluded"
    return "" if np.isfinite(numpy_helper.to_array(tensor)).all() else "holds NaN or infinity"


def _view(user: onnx.NodeProto, tensor: onnx.TensorProto) -> tuple[int, int, int]:
    """A weight's shape as [outer, K, inner] for a node that reads it."""
    dims = list(tensor.dims)
    last, rest = dims[-1], math.prod(dims[:-1])
    match user.op_type:
        case "Conv" | "Gather":
            return dims[0], math.prod(dims[1:]), 1
        case "ConvTranspose":
            return 1, dims[0], math.prod(dims[1:])
        case "Gemm" | "MatMul":
            first = user.input[0] == tensor.name
            if first == _is_set(user, "transA" if first else "transB"):
                return math.prod(dims[:-2]), dims[-2], last
    return rest, last, 1


def _is_set(node: onnx.NodeProto, flag: str) -> bool:
    return any(one.name == flag and one.i for one in node.attribute)


def _axis(user: onnx.NodeProto, rank: int) -> int | None:
    """Along which axis of the weight the user's output channels lie."""
    match user.op_type:
        case "Conv" | "Gather":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if _is_set(user, "transB") else 1
        case "MatMul":
            return rank - 1
    return None


def _source(node: onnx.NodeProto, tensor: onnx.TensorProto, constant: Collection[str]) -> Source | None:
    """What of a graph's values tells what a node multiplies a weight with; None for what does not."""
    if node.input[0] in constant or len(node.input) < 2 or node.input[1] != tensor.name or node.input[0] == tensor.name:
        return None
    match node.op_type:
        case "MatMul" | "Gemm" if len(tensor.dims) == 2 and not _is_set(node, "transA"):
            return Source(node.input[0])
        case "Conv":
            rows = patches(node, list(tensor.dims))
            return None if rows is None else Source(node.input[0], rows)
    return None


def _store_8(graph: onnx.GraphProto, job: _Job, per_channel: bool, max_error: float | None) -> list[Decision]:
    values = numpy_helper.to_array(job.tensor)
    stored, scale = pack(values, _axis(job.nodes[0], values.ndim) if per_channel else None)
    error = relative_error(values.astype(np.float32), stored * scale, None)
    if max_error is not None and error > max_error:
        return _refused(job, values, error, max_error)
    length = values.size // scale.size
    told = job.told(
        coding=Coding(8, length, True),
        error=error,
        bytes_before=values.nbytes,
        bytes_after=stored.nbytes + scale.nbytes,
    )
    write(graph, job.tensor, stored, scale)
    return told


def _store_4(
    graph: onnx.GraphProto, job: _Job, block: int, max_error: float | None, learned: Mapping[Source, Array]
) -> list[Decision]:
    values = numpy_helper.to_array(job.tensor)
    outer, rows, inner = job.view
    matrix = values.astype(np.float32).reshape(job.view).transpose(1, 0, 2).reshape(rows, -1)
    coding = Coding(4, fitting(rows, block), True)
    known = bool(job.sources) and all(one in learned for one in job.sources)
    hessian = np.sum([learned[one] for one in job.sources], 0) if known else None
    kind = np.dtype(np.float32)
    found = plainly(matrix, coding, kind) if hessian is None else corrected(matrix, hessian, coding, kind, by_size=True)
    error = relative_error(matrix, found.values(), hessian)
    if max_error is not None and error > max_error:
        return _refused(job, values, error, max_error)
    stored, scale = _parts(found, (outer, inner))
    size = math.ceil(values.size / 2) + scale.nbytes
    told = job.told(coding=coding, error=error, corrected=known, bytes_before=values.nbytes, bytes_after=size)
    write(graph, job.tensor, stored, scale)
    return told


def _refused(job: _Job, values: Array, error: float, most: float) -> list[Decision]:
    reason = f"has an error of {error:.3g}, above {most}"
    return job.told(error=error, bytes_before=values.nbytes, bytes_after=values.nbytes, reason=reason)


def _parts(coded: Coded, around: tuple[int, int]) -> tuple[Array, Array]:
    """Numbers int4 [outer, blocks, block, inner], and scales [outer, blocks, 1, inner]."""
    blocks = len(coded.scale)
    numbers = coded.numbers.astype(np.int8) - np.int8(coded.coding.middle)
    stored = numbers.reshape(blocks, -1, *around).transpose(2, 0, 1, 3)
    scale = coded.scale.reshape(blocks, 1, *around).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(stored).astype(ml_dtypes.int4), np.ascontiguousarray(scale)


def fitting(length: int, block: int) -> int:
    """The divisor of a length that is nearest to a block, between half and twice of it; the length if there is none."""
    near = [one for one in range(max(1, block // 2), 2 * block + 1) if length % one == 0]
    return min(near, key=lambda one: (abs(math.log(one / block)), one), default=length)
