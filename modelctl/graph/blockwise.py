"""Weights of products and lookups in 4 or 8 bits, in blocks, computed with as they are stored.

MatMul, and Gemm with a constant weight, become MatMulNBits; Gather along the first axis of a table becomes
GatherBlockQuantized (both `com.microsoft`; `blocks` tells the layout). A weight is packed once for all its readers, or
not at all where one of them can't take it so: then the float form would stay beside it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelctl.artifact import Payload
from modelctl.data.samples import Array
from modelctl.errors import UsageError
from modelctl.graph import names, weights
from modelctl.graph.blocks import (
    BITS,
    BLOCKS,
    Coded,
    Coding,
    Decision,
    called,
    decisions,
    for_lookup,
    for_product,
    plainly,
)
from modelctl.graph.correction import corrected, relative_error
from modelctl.graph.sources import groups
from modelctl.graph.watching import Batches, moments

MICROSOFT = "com.microsoft"
TYPES = ("MatMul", "Gemm", "Gather")
KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16)
LIMIT_BYTES = 256 << 20

Moments = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How weights are to be packed, and which."""

    bits: int = 4
    """Bits a number: 4 or 8."""
    block: int | None = None
    """Numbers that share a scale, 32, 64 or 128; None: what gives the smallest file within `max_error`."""
    symmetric: bool | None = None
    """Without zero points; None: what gives the smallest file within `max_error`."""
    max_error: float | None = None
    """The largest relative error of a product (of the table itself for a lookup), as a share of its size in the root
    mean square; a weight with a larger one stays in float."""
    accuracy_level: int = 0
    """MatMulNBits's: 0 computes in float, 4 rounds activations to 8 bits for speed."""
    types: Collection[str] = TYPES
    exclude: Collection[str] = ()
    """Names of nodes whose weights stay as they are."""
    by_size: bool = True
    """Correct the weights of the largest inputs first: in nets of every kind tried that left the smaller error."""

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.block not in (None, *BLOCKS):
            raise UsageError(f"weights are packed in {BITS} bits and blocks of {BLOCKS}")


@dataclass(eq=False)
class _Job:
    """A weight and the nodes that read it, all in the same way: as [K, N], or turned; in a product or in a lookup."""

    tensor: onnx.TensorProto
    turned: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    @property
    def is_lookup(self) -> bool:
        return self.nodes[0].op_type == "Gather"

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        first, second = self.tensor.dims
        return (second, first) if self.turned else (first, second)

    @property
    def rows(self) -> int:
        """K."""
        return self.shape[0]

    @property
    def sources(self) -> tuple[str, ...]:
        """The values that the weight is multiplied with."""
        return () if self.is_lookup else tuple(dict.fromkeys(node.input[0] for node in self.nodes))

    def values(self) -> Array:
        array = numpy_helper.to_array(self.tensor)
        return array.T if self.turned else array

    def told(self, **facts: Any) -> list[Decision]:
        """A decision for each node."""
        return decisions(self.nodes, Decision(node="", kind="", weight=self.tensor.name, **facts))


def pack(model: onnx.ModelProto, packing: Packing, learned: Moments | None = None) -> list[Decision]:
    """Pack, in place, the weights of `model`, and tell of each node that has one what was done.

    `learned`: second moments XᵀX [K, K] by the name of a product's input; where they are known, errors are corrected
    (`correction`) and measured on the product.
    """
    jobs, left = _plan(model, packing)
    order = _order(model)
    return sorted([*left, *_carry_out(model, jobs, packing, learned or {})], key=lambda one: order[one.node])


def pack_learning(
    model: onnx.ModelProto,
    packing: Packing,
    like: Payload,
    batches: Batches,
    threads: int = 1,
    limit_bytes: int = LIMIT_BYTES,
) -> list[Decision]:
    """As `pack`, with moments of what `batches` bring to the products, `like` telling what the model is called.

    Moments take at most `limit_bytes` at a time (those of one weight, if they take more): when there are more, the
    samples are run again for the next ones, with all that is packed before them. DataError for samples that don't fit.
    """
    jobs, decisions = _plan(model, packing)
    order = _order(model)
    for group in groups(jobs, limit_bytes):
        values = sorted({value for job in group for value in job.sources})
        learned = moments(model, like, values, batches(), threads) if values else {}
        decisions += _carry_out(model, group, packing, learned)
    return sorted(decisions, key=lambda one: order[one.node])


def packable(model: onnx.ModelProto, packing: Packing) -> set[str]:
    """The names of the weights that `pack` would pack, as far as that can be told before."""
    return {job.tensor.name for job in _plan(model, packing)[0]}


def _order(model: onnx.ModelProto) -> dict[str, int]:
    return {called(node): place for place, node in enumerate(model.graph.node)}


def _carry_out(model: onnx.ModelProto, jobs: list[_Job], packing: Packing, learned: Moments) -> list[Decision]:
    decisions = [one for job in jobs for one in _packed(model.graph, job, packing, learned)]
    if any(one.coding for one in decisions) and not any(one.domain == MICROSOFT for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return decisions


def _plan(model: onnx.ModelProto, packing: Packing) -> tuple[list[_Job], list[Decision]]:
    """The weights that can be packed, in the order in which they are first read, and why others can't be."""
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    public = {one.name for one in (*graph.input, *graph.output)}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    inner = {name for node in graph.node for part in names.subgraphs(node) for name in _named_in(part)}
    jobs: list[_Job] = []
    left: list[Decision] = []
    for name in dict.fromkeys(_weight_of(node, held) for node in graph.node if node.op_type in TYPES):
        if not name:
            continue
        job = _Job(held[name], _is_turned(readers[name][0]), readers[name])
        reason = "is read in a subgraph" if name in inner else _why_not(job, held, public, packing)
        if reason:
            readable = [node for node in job.nodes if node.op_type in TYPES and _weight_of(node, held) == name]
            left += _Job(job.tensor, job.turned, readable).told(reason=reason)
        else:
            jobs.append(job)
    return jobs, left


def _named_in(graph: onnx.GraphProto) -> Iterator[str]:
    """All that the nodes of a subgraph read, and what it hands out."""
    for node in weights.nodes_of(graph):
        yield from node.input
        for part in names.subgraphs(node):
            yield from (one.name for one in part.output)
    yield from (one.name for one in graph.output)


def _weight_of(node: onnx.NodeProto, held: Mapping[str, onnx.TensorProto]) -> str:
    """The name of the float matrix that a node multiplies with or looks up in; "" for none."""
    place = 0 if node.op_type == "Gather" else 1
    name = node.input[place] if node.domain in ("", "ai.onnx") and len(node.input) > place else ""
    tensor = held.get(name)
    return name if tensor is not None and tensor.data_type in weights.FLOATS and len(tensor.dims) == 2 else ""


def _is_turned(node: onnx.NodeProto) -> bool:
    """Whether a node reads its weight as [N, K]."""
    return node.op_type == "Gather" or bool(_attribute(node, "transB", 0))


def _why_not(job: _Job, held: Mapping[str, onnx.TensorProto], public: Collection[str], packing: Packing) -> str:
    """Why a weight can't be packed; "" if it can."""
    name, (rows, columns) = job.tensor.name, job.shape
    if name in public:
        return "is an input or output of the graph"
    if job.tensor.data_type not in KINDS:
        return "is of a type that has no kernel"
    for node in job.nodes:
        if _weight_of(node, held) != name or list(node.input).count(name) > 1:
            return f"is read by {node.op_type} too"
        if node.name in packing.exclude or node.op_type not in packing.types:
            return "is excluded" if len(job.nodes) == 1 else f"is read by {called(node)}, which is excluded"
        if (node.op_type == "Gather") != job.is_lookup or _is_turned(node) != job.turned:
            return "is read in two ways"
        trouble = _trouble(node, held)
        if trouble:
            return trouble
    if job.is_lookup and rows * packing.bits % 8:
        return "has rows of an odd length"
    kept = rows * columns * np.dtype(helper.tensor_dtype_to_np_dtype(job.tensor.data_type)).itemsize
    if not rows or not columns or min(_size(job, one) for one in _codings(packing)) >= kept:
        return "would not be smaller"
    return "" if np.isfinite(job.values()).all() else "holds NaN or infinity"


def _trouble(node: onnx.NodeProto, held: Mapping[str, onnx.TensorProto]) -> str:
    """What keeps a node from being replaced; "" for nothing."""
    if node.op_type == "Gather":
        return "is looked up along another axis" if _attribute(node, "axis", 0) not in (0, -2) else ""
    if node.input[0] in held:
        return "is multiplied with a constant"
    if node.op_type == "MatMul":
        return ""
    if _attribute(node, "transA", 0):
        return "multiplies what is turned first"
    added = node.input[2] if len(node.input) > 2 else ""
    if _attribute(node, "alpha", 1.0) != 1 or (added and _attribute(node, "beta", 1.0) != 1):
        return "has a factor beside it"
    return ""


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _codings(packing: Packing) -> list[Coding]:
    blocks = BLOCKS if packing.block is None else (packing.block,)
    signs = (True, False) if packing.symmetric is None else (packing.symmetric,)
    return [Coding(packing.bits, block, symmetric) for block in blocks for symmetric in signs]


def _size(job: _Job, coding: Coding) -> int:
    rows, columns = job.shape
    scale_bytes = np.dtype(helper.tensor_dtype_to_np_dtype(job.tensor.data_type)).itemsize
    return coding.size_bytes(rows, columns, scale_bytes, filled=not job.is_lookup)


def _packed(graph: onnx.GraphProto, job: _Job, packing: Packing, learned: Moments) -> list[Decision]:
    """Pack one weight in the smallest form within the error, or leave it."""
    array = job.values()
    values = np.ascontiguousarray(array, np.float32)  # [K, N] row by row, which rounding goes along
    known = bool(job.sources) and all(value in learned for value in job.sources)
    hessian = np.sum([learned[value] for value in job.sources], 0) if known else None
    found, error = None, 0.0
    for coding in sorted(_codings(packing), key=lambda one: (_size(job, one), one.block)):
        if hessian is None:
            found = plainly(values, coding, array.dtype)
        else:
            found = corrected(values, hessian, coding, array.dtype, packing.by_size)
        error = relative_error(values, found.values(), hessian)
        if packing.max_error is None or error <= packing.max_error:
            break
        found = None
    before = array.nbytes
    if found is None:
        reason = f"has an error of {error:.3g}, above {packing.max_error}"
        return job.told(error=error, bytes_before=before, bytes_after=before, reason=reason)
    facts = {"coding": found.coding, "error": error, "corrected": known, "bytes_before": before}
    told = job.told(**facts, bytes_after=_size(job, found.coding))
    _rewrite(graph, job, found, packing)
    return told


def _rewrite(graph: onnx.GraphProto, job: _Job, coded: Coded, packing: Packing) -> None:
    """Put the packed form in place of a weight, and the operators that take it in place of its readers."""
    taken = names.taken(graph)
    old = job.tensor.name
    stored, scale, zero = (for_lookup if job.is_lookup else for_product)(coded)
    parts = [names.fresh(f"{old}_{what}", taken) for what in (f"q{coded.coding.bits}", "scales", "zeros")]
    job.tensor.CopyFrom(numpy_helper.from_array(stored, parts[0]))
    graph.initializer.append(numpy_helper.from_array(scale, parts[1]))
    if zero is None:
        parts.pop()
    else:
        graph.initializer.append(numpy_helper.from_array(zero, parts[2]))
    shared = {"bits": coded.coding.bits, "block_size": coded.coding.block}
    for node in job.nodes:
        if job.is_lookup:
            inputs = [parts[0], node.input[1], *parts[1:]]
            _become(node, "GatherBlockQuantized", inputs, shared | {"gather_axis": 0, "quantize_axis": 1})
            continue
        rows, columns = coded.numbers.shape
        sizes = shared | {"K": rows, "N": columns}
        if packing.accuracy_level:
            sizes["accuracy_level"] = packing.accuracy_level
        added = node.input[2] if len(node.input) > 2 else ""
        _become(node, "MatMulNBits", [node.input[0], *parts], sizes)
        if added:
            _add(graph, node, added, taken)


def _become(node: onnx.NodeProto, kind: str, inputs: list[str], attributes: dict[str, int]) -> None:
    """Make a node another operator, its name and outputs kept."""
    node.op_type, node.domain = kind, MICROSOFT
    del node.input[:], node.attribute[:]
    node.input.extend(inputs)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))


def _add(graph: onnx.GraphProto, node: onnx.NodeProto, added: str, taken: set[str]) -> None:
    """Let an Add follow a node, under the node's output name."""
    given = node.output[0]
    node.output[0] = names.fresh(f"{given}_product", taken)
    name = f"{node.name}_add" if node.name else ""
    place = next(at for at, one in enumerate(graph.node) if one.output[:1] == node.output[:1])
    graph.node.insert(place + 1, helper.make_node("Add", [node.output[0], added], [given], name))
