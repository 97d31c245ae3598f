"""What the positions along an axis belong to: a small algebra of axes, solved by unification.

An axis is a `Dim`. It is a leaf, whose positions are units that can be kept or removed one by one; or a product of
dims, as when two axes are flattened into one (the last factor counts fastest); or dims laid end to end, as by Concat.
Operators say which axes are one and the same (`unify`): a sum of two values has the channels of both. Where a leaf
meets a product or a concatenation, it becomes that; where two products or concatenations meet, each is cut at the
other's seams until their pieces correspond. So a fused projection of queries, keys and values (three times heads times
width), a flattened map in front of a dense layer and the halves of a split need no rules of their own.

What can't correspond is frozen, as is all that a leaf of positions, of an input or of an output meets: a leaf with a
reason keeps all its positions.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Reason(NamedTuple):
    """Why positions can't be removed, and the node that stands in the way ("" for none)."""

    text: str
    node: str = ""


UNLIKE = Reason("are divided in two ways that don't agree")


class Dim:
    """An axis of `size` positions; `reason` says why none of them can be removed, where that is so.

    After unification several dims may be one: `root` is the one that counts.
    """

    __slots__ = ("_same", "how", "parts", "reason", "size")

    def __init__(self, size: int, reason: Reason | None = None, how: str = "", parts: Sequence["Dim"] = ()) -> None:
        self.size = size
        self.reason = reason
        self.how = how  # "" a leaf, "x" a product, "+" a concatenation
        self.parts = list(parts)
        self._same: Dim | None = None

    def root(self) -> "Dim":
        """The dim that this one turned out to be."""
        found = self
        while found._same is not None:
            found = found._same
        if found is not self:
            self._same = found
        return found

    def become(self, other: "Dim") -> None:
        """Be `other` from now on."""
        mine, its = self.root(), other.root()
        if mine is not its:
            mine._same = its


def product(dims: Iterable[Dim]) -> Dim:
    """The axis that several are flattened into, the last one counting fastest."""
    factors = [factor for dim in dims for factor in factors_of(dim)]
    if len(factors) == 1:
        return factors[0]
    return Dim(math.prod(one.size for one in factors), how="x", parts=factors) if factors else Dim(1)


def concatenation(dims: Iterable[Dim]) -> Dim:
    """The axis on which several lie end to end."""
    parts = [part for dim in dims for part in segments_of(dim)]
    if len(parts) == 1:
        return parts[0]
    return Dim(sum(one.size for one in parts), how="+", parts=parts)


def factors_of(dim: Dim) -> list[Dim]:
    """The factors of a product, those of size 1 left out; a dim that is none is its only one."""
    dim = dim.root()
    if dim.how == "x":
        return [factor for part in dim.parts for factor in factors_of(part)]
    return [dim] if dim.size != 1 else []


def segments_of(dim: Dim) -> list[Dim]:
    """What lies end to end on an axis, empty parts left out."""
    dim = dim.root()
    if dim.how == "+":
        return [segment for part in dim.parts for segment in segments_of(part)]
    return [dim] if dim.size else []


def leaves_of(dim: Dim) -> Iterator[Dim]:
    """The leaves that a dim is made of."""
    dim = dim.root()
    if not dim.how:
        yield dim
    for part in dim.parts:
        yield from leaves_of(part)


def freeze(dim: Dim, reason: Reason) -> None:
    """Keep all positions of an axis, for a reason; the first one stands."""
    for leaf in leaves_of(dim):
        leaf.reason = leaf.reason or reason


def unify(first: Dim, second: Dim) -> None:
    """Make two axes one and the same; what of them can't correspond is frozen."""
    a, b = first.root(), second.root()
    if a is b:
        return
    if a.size != b.size:
        freeze(a, UNLIKE)
        freeze(b, UNLIKE)
    elif not a.how or not b.how:
        leaf, other = (a, b) if not a.how else (b, a)
        if leaf.reason:
            freeze(other, leaf.reason)
        leaf.become(other)
    elif _corresponds(a, b):
        a.become(b)
    else:
        freeze(a, UNLIKE)
        freeze(b, UNLIKE)


def _corresponds(a: Dim, b: Dim) -> bool:
    """Unify the pieces of two dims that are no leaves; false where their seams don't fit."""
    if a.how == b.how == "x":
        return _aligned(factors_of(a), factors_of(b))
    if a.how == b.how == "+":
        cuts = sorted({*_ends(a), *_ends(b)})
        sizes = [end - start for start, end in zip([0, *cuts], cuts, strict=False)]
        left, right = divided(a, sizes), divided(b, sizes)
        if left is None or right is None:
            return False
        for one, other in zip(left, right, strict=True):
            unify(one, other)
        return True
    ends, whole = (a, b) if a.how == "+" else (b, a)
    factors = factors_of(whole)
    for place in range(1, len(factors)):
        found = _factored(ends, math.prod(one.size for one in factors[place:]))
        if found is not None:
            unify(found[1], product(factors[place:]))
            unify(found[0], product(factors[:place]))
            return True
    return False


def _aligned(left: list[Dim], right: list[Dim]) -> bool:
    """Unify the factors of two products of one size, from the slowest on."""
    left, right = left[::-1], right[::-1]
    while left and right:
        a, b = left.pop(), right.pop()
        if a.size == b.size:
            unify(a, b)
            continue
        (large, more), (small, _) = ((a, left), (b, right)) if a.size > b.size else ((b, right), (a, left))
        found = _factored(large, large.size // small.size) if large.size % small.size == 0 else None
        if found is None:
            return False
        unify(found[0], small)
        more += factors_of(found[1])[::-1]
    return True


def _factored(dim: Dim, inner: int) -> tuple[Dim, Dim] | None:
    """A dim as a product of which the faster factor has `inner` positions; None if it is none."""
    dim = dim.root()
    if dim.size % inner:
        return None
    if inner == 1:
        return dim, Dim(1)
    if inner == dim.size:
        return Dim(1), dim
    if not dim.how:
        dim.how, dim.parts = "x", [Dim(dim.size // inner, dim.reason), Dim(inner, dim.reason)]
        return dim.parts[0], dim.parts[1]
    if dim.how == "x":
        return _regrouped(factors_of(dim), inner)
    pairs = [_factored(one, inner) for one in segments_of(dim)]
    found = [pair for pair in pairs if pair is not None]
    if len(found) < len(pairs):
        return None
    for _, one in found[1:]:
        unify(found[0][1], one)
    return concatenation(outer for outer, _ in found), found[0][1]


def _regrouped(factors: list[Dim], inner: int) -> tuple[Dim, Dim] | None:
    """The factors parted where the fast ones have `inner` positions together, one of them divided if need be."""
    fast: list[Dim] = []
    left = list(factors)
    while inner > 1:
        last = left.pop()
        if inner % last.size == 0:
            fast.insert(0, last)
            inner //= last.size
            continue
        parts = _factored(last, inner) if last.size % inner == 0 else None
        if parts is None:
            return None
        left.append(parts[0])
        fast.insert(0, parts[1])
        inner = 1
    return product(left), product(fast)


def divided(dim: Dim, sizes: Sequence[int]) -> list[Dim] | None:
    """A dim cut into pieces of these sizes, which sum up to its own; None where it can't be cut there."""
    dim = dim.root()
    if sum(sizes) != dim.size:
        return None
    if len(sizes) == 1:
        return [dim]
    if not dim.how:
        dim.how, dim.parts = "+", [Dim(size, dim.reason) for size in sizes]
        return list(dim.parts)
    if dim.how == "x":
        slow, *fast = factors_of(dim)
        block = math.prod(one.size for one in fast)
        rows = None if any(size % block for size in sizes) else divided(slow, [size // block for size in sizes])
        if rows is None:
            return None
        dim.how, dim.parts = "+", [product([row, *fast]) for row in rows]
        return list(dim.parts)
    return _gathered(segments_of(dim), sizes)


def _gathered(segments: list[Dim], sizes: Sequence[int]) -> list[Dim] | None:
    """Segments put together to pieces of these sizes, cut where a piece ends inside one."""
    waiting = segments[::-1]
    pieces = []
    for size in sizes:
        taken: list[Dim] = []
        while size:
            segment = waiting.pop()
            if segment.size > size:
                parts = divided(segment, [size, segment.size - size])
                if parts is None:
                    return None
                segment = parts[0]
                waiting.append(parts[1])
            taken.append(segment)
            size -= segment.size
        pieces.append(concatenation(taken) if taken else Dim(0))
    return pieces


def _ends(dim: Dim) -> list[int]:
    """Where the segments of a concatenation end."""
    return [int(one) for one in np.cumsum([segment.size for segment in segments_of(dim)])]


def mask(dim: Dim, kept: Mapping[Dim, Array]) -> Array:
    """Which positions of an axis stay, bool [size], where leaves in `kept` keep these and all others all."""
    dim = dim.root()
    if dim in kept:
        return kept[dim]
    if not dim.how:
        return np.ones(dim.size, bool)
    if dim.how == "+":
        return np.concatenate([mask(part, kept) for part in dim.parts])
    found = np.ones(1, bool)
    for part in dim.parts:
        found = (found[:, None] & mask(part, kept)[None]).reshape(-1)
    return found


def count(dim: Dim, kept: Mapping[Dim, Array]) -> int:
    """How many positions of an axis stay; no array of its length is made."""
    dim = dim.root()
    if dim in kept:
        return int(kept[dim].sum())
    if not dim.how:
        return dim.size
    parts = [count(part, kept) for part in dim.parts]
    return sum(parts) if dim.how == "+" else math.prod(parts)


def units(dim: Dim, leaf: Dim) -> Array | None:
    """Which unit of a leaf each position of an axis belongs to, int64 [size], -1 for none.

    None where a position belongs to two of its units.
    """
    dim = dim.root()
    if dim is leaf:
        return np.arange(dim.size)
    if not dim.how:
        return np.full(dim.size, -1)
    found = [units(part, leaf) for part in dim.parts]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    if dim.how == "+":
        return np.concatenate(known)
    if sum(bool((one >= 0).any()) for one in known) > 1:
        return None
    grid = np.full(1, -1)
    for one in known:
        grid = np.maximum(grid[:, None], one[None]).reshape(-1)
    return grid
