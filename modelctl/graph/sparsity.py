"""Setting weights to zero: which ones, as masks that a fine-tuning can hold on to, and what that changes.

By share, threshold or number it is the exact projection onto tensors with few nonzeros: argmin ‖W' − W‖_F subject to
‖W'‖₀ ≤ K keeps the K numbers of largest magnitude as they are and zeroes the rest (hard thresholding; T. Blumensath,
M. E. Davies, "Iterative thresholding for sparse approximations", 2008). N:M is the same within each M neighbours (A.
Mishra et al., "Accelerating sparse deep neural networks", 2021, arXiv:2104.08378). Of equal magnitudes the one that
comes first is kept, so that the answer is always the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.graph.weights import nodes_of

Masks = dict[str, Array]  # by a tensor's name, in its shape: True where a weight is kept

# Where an operator takes a weight, and the axis of it that is summed over.
_SUMMED = {
    "Conv": {1: 1},
    "ConvTranspose": {1: 0},
    "MatMul": {0: -1, 1: -2},
    "LSTM": {1: 2, 2: 2},
    "GRU": {1: 2, 2: 2},
    "RNN": {1: 2, 2: 2},
    "Attention": {1: 0},  # of com.microsoft: input and weight [input size, 3 · hidden size]
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is kept: exactly one of the four is given.

    `sparsity` is the share to zero, 0 to 1; `threshold` the smallest magnitude kept; `keep` a number of weights;
    `pattern` the most that are kept of so many neighbours, (2, 4). `each`: meant for each tensor by itself, not for all
    together; a pattern always is.
    """

    sparsity: float | None = None
    threshold: float | None = None
    keep: int | None = None
    pattern: tuple[int, int] | None = None
    each: bool = False

    def kept(self, magnitudes: Array) -> Array:
        """Which numbers of a flat array of magnitudes are kept: a boolean for each."""
        size = len(magnitudes)
        if self.threshold is not None:
            above: Array = magnitudes >= self.threshold
            return above
        if self.keep is not None:
            return largest(magnitudes, min(self.keep, size))
        return largest(magnitudes, size - round((self.sparsity or 0.0) * size))


def largest(magnitudes: Array, count: int) -> Array:
    """Exactly `count` of a flat array, the largest, of equal ones the earliest: a boolean for each."""
    kept = np.zeros(len(magnitudes), bool)
    if count == 0:
        return kept
    edge = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    kept[magnitudes > edge] = True
    equal = np.flatnonzero(magnitudes == edge)
    kept[equal[: count - int(kept.sum())]] = True
    return kept


def neighbours(magnitudes: Array, axis: int, kept: int, of: int) -> Array:
    """The `kept` largest of every `of` neighbours along an axis, a boolean for each; what is left at its end stays.

    Kernels of convolutions are grouped along their input channels at each position of the kernel by itself, which is
    how hardware with 2:4 products reads them (NHWC, the channels innermost).
    """
    rows = np.moveaxis(magnitudes, axis, -1)
    whole = rows.shape[-1] // of * of
    found = np.ones(rows.shape, bool)
    groups = rows[..., :whole].reshape(*rows.shape[:-1], -1, of)
    order = np.argsort(-groups, axis=-1, kind="stable")
    inside = np.zeros(groups.shape, bool)
    np.put_along_axis(inside, order[..., :kept], values=True, axis=-1)
    found[..., :whole] = inside.reshape(*rows.shape[:-1], whole)
    return np.moveaxis(found, -1, axis)


def masks(tensors: Sequence[onnx.TensorProto], rule: Rule, axes: Mapping[str, int] | None = None) -> Masks:
    """What `rule` keeps of these tensors. For a pattern `axes` are those of `summed_axes`; others are kept whole."""
    if not tensors:
        return {}
    sizes = {one.name: np.abs(_numbers(one)) for one in tensors}
    if rule.pattern is not None:
        kept, of = rule.pattern
        known = axes or {}
        return {
            name: neighbours(size, known[name], kept, of) if name in known else np.ones(size.shape, bool)
            for name, size in sizes.items()
        }
    if rule.each:
        return {name: rule.kept(size.ravel()).reshape(size.shape) for name, size in sizes.items()}
    ends = np.cumsum([size.size for size in sizes.values()])[:-1]
    split = np.split(rule.kept(np.concatenate([size.ravel() for size in sizes.values()])), ends)
    return {name: kept.reshape(sizes[name].shape) for name, kept in zip(sizes, split, strict=True)}


def apply(tensors: Iterable[onnx.TensorProto], held: Masks) -> dict[str, float]:
    """Zero, in place, what the masks don't keep: `{weights, kept, change_norm, relative_change}` over all of them.

    The norm is Frobenius', and the relative one is its share of the tensors' own before. Every zero is +0.0 afterwards:
    what was learned under a mask may be −0.0, which a packed file would have to keep as a number.
    """
    lost = total = 0.0
    for tensor in tensors:
        mask = held.get(tensor.name)
        if mask is None:
            continue
        values, squares = numpy_helper.to_array(tensor), _numbers(tensor).astype(np.float64) ** 2
        lost += float(np.sum(squares[~mask]))
        total += float(np.sum(squares))
        pruned = np.where(mask & (values != 0), values, np.zeros((), values.dtype))
        tensor.CopyFrom(numpy_helper.from_array(pruned, tensor.name))
    return {
        "weights": sum(mask.size for mask in held.values()),
        "kept": sum(int(mask.sum()) for mask in held.values()),
        "change_norm": math.sqrt(lost),
        "relative_change": math.sqrt(lost / total) if total else 0.0,
    }


def share_at(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """The share to zero after `step` of `steps` rounds: s_f + (s_i − s_f)(1 − t/n)³, fast first and then slower.

    M. Zhu, S. Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878, equation 1.
    """
    left = 1 - min(max(step / steps, 0.0), 1.0)
    return final + (initial - final) * left**3


def summed_axes(model: onnx.ModelProto) -> dict[str, int]:
    """The axis, counted from 0, along which the products with each weight are summed up.

    Not told are lookup tables, which sum nothing, and weights whose users don't agree. A weight may be transposed, or
    cast, on its way.
    """
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    nodes = list(nodes_of(model.graph))
    maker = {output: node for node in nodes for output in node.output}
    found: dict[str, set[int]] = {}
    for node in nodes:
        for place, axis in _summed(node).items():
            if place < len(node.input):
                name, at = _traced(node.input[place], axis, maker, ranks)
                if name in ranks and 0 <= at < ranks[name]:
                    found.setdefault(name, set()).add(at)
    return {name: next(iter(axes)) for name, axes in found.items() if len(axes) == 1}


def _summed(node: onnx.NodeProto) -> dict[int, int]:
    if node.op_type == "Gemm":
        turned = {one.name: one.i for one in node.attribute}
        return {0: 0 if turned.get("transA") else 1, 1: 1 if turned.get("transB") else 0}
    if node.op_type == "Einsum":
        equation = next(helper.get_attribute_value(one) for one in node.attribute if one.name == "equation").decode()
        terms, _, out = equation.replace(" ", "").partition("->")
        gone = [[at for at, letter in enumerate(term) if letter not in out] for term in terms.split(",")]
        return {place: at[0] for place, at in enumerate(gone) if len(at) == 1 and out and "." not in terms}
    return _SUMMED.get(node.op_type, {})


def _traced(value: str, axis: int, maker: Mapping[str, onnx.NodeProto], ranks: Mapping[str, int]) -> tuple[str, int]:
    """The initializer that a value is made of by casts and transpositions, and the axis in it; -1 where it is lost."""
    turns = []
    for _ in maker:  # a graph may run in circles until someone has checked it
        node = maker.get(value)
        if node is None or node.op_type not in ("Transpose", "Identity", "Cast"):
            break
        if node.op_type == "Transpose":
            turns.append([list(one.ints) for one in node.attribute if one.name == "perm"])
        value = node.input[0]
    rank = ranks.get(value, 0)
    axis += rank if axis < 0 else 0
    for turn in turns:
        order = turn[0] if turn else list(reversed(range(rank)))
        axis = order[axis] if 0 <= axis < len(order) else -1
    return value, axis


def _numbers(tensor: onnx.TensorProto) -> Array:
    """The numbers of a tensor in float32, or float64 where they are that."""
    array = numpy_helper.to_array(tensor)
    return array if array.dtype == np.float64 else array.astype(np.float32)
