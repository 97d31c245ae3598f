"""Parts taken out and put in: slices, gathers, scatters."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, numbers_of, operator

FAR = 2**61  # beyond the end of any axis


@operator("Slice", host=(1, 2, 3, 4))
def cut(node: Node) -> Call:
    """Starts, ends, axes and steps, attributes up to opset 9 and then inputs; a negative step runs backwards."""
    if node.opset < 10:
        return _cutting(node.integers("starts"), node.integers("ends"), node.integers("axes"), ())
    held = [node.constant(place) for place in (1, 2, 3, 4)]
    if all(one is not None or not node.has(place) for place, one in enumerate(held, 1)):
        return _cutting(*_bounds(*held))
    return lambda x, *bounds: _cutting(*_bounds(*bounds))(x)


def _bounds(*tensors: torch.Tensor | None) -> list[list[int]]:
    """Starts, ends, axes and steps as numbers, those that are left out as empty lists."""
    return [[] if one is None else numbers_of(one) for one in (*tensors, None, None)[:4]]


def _cutting(starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]) -> Call:
    axes, steps = axes or range(len(starts)), steps or [1] * len(starts)
    if min(steps, default=1) < 0:
        return lambda x, *_: _backwards(x, zip(axes, starts, ends, steps, strict=True))
    parts = [slice(*map(_near, one)) for one in zip(starts, ends, steps, strict=True)]
    if axes and max(axes) < 0:
        index = (..., *_index(-min(axes), axes, parts))
        return lambda x, *_: x[index]
    return lambda x, *_: x[_index(x.dim(), axes, parts)]


def _near(bound: int) -> int:
    """A bound that torch takes without a warning; INT64_MAX stands for the end."""
    return max(-FAR, min(bound, FAR))


def _index(rank: int, axes: Sequence[int], parts: Sequence[slice]) -> tuple[slice, ...]:
    found = [slice(None)] * rank
    for axis, part in zip(axes, parts, strict=True):
        found[axis] = part
    return tuple(found)


def _backwards(x: torch.Tensor, parts: Iterable[tuple[int, int, int, int]]) -> torch.Tensor:
    """Slices with negative steps among them, which torch has not: cut forwards, then turned round."""
    for axis, start, stop, step in parts:
        reach = range(*slice(start, stop, step).indices(x.shape[axis]))
        forwards = reach if step > 0 else reach[::-1]
        part = slice(forwards.start, max(forwards.start, forwards.stop), forwards.step)
        x = x[_index(x.dim(), (axis,), (part,))]
        x = x if step > 0 else x.flip(axis)
    return x


def _wrapped(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Indices below zero count from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def gather(node: Node) -> Call:
    """Slices along an axis; a table of rows is looked up as an embedding, whose gradient torch computes fastest."""
    axis = node.integer("axis")
    held = node.constant(1)
    if held is not None and held.dim() == 0:
        place = int(held)
        return lambda x, _: x.select(axis, place)

    def run(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        indices = _wrapped(indices, x.shape[axis])
        if axis == 0 and x.dim() == 2 and x.is_floating_point():
            return functional.embedding(indices, x)
        found = x.index_select(axis, indices.reshape(-1))
        if indices.dim() == 1:
            return found
        before = x.shape[: axis % x.dim()]
        return found.reshape(*before, *indices.shape, *x.shape[len(before) + 1 :])

    return run


@operator("GatherElements")
def gather_elements(node: Node) -> Call:
    """One number for each index, along an axis."""
    axis = node.integer("axis")
    return lambda x, indices: torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(node: Node) -> Call:
    """Slices at coordinates, after the batch dimensions that both share."""
    batch = node.integer("batch_dims")

    def run(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        rank = indices.dim() - 1
        grids = [
            torch.arange(x.shape[place], device=x.device).reshape([-1 if at == place else 1 for at in range(rank)])
            for place in range(batch)
        ]
        return x[(*grids, *indices.unbind(-1))]

    return run


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Scatter", "ScatterElements")
def scatter_elements(node: Node) -> Call:
    """One number put at each index along an axis, or joined with what lies there."""
    axis, reduction = node.integer("axis"), node.choice("reduction", "none", *_REDUCTIONS)
    put = _putting(reduction)
    return lambda x, indices, updates: put(x, axis, _wrapped(indices, x.shape[axis]), updates)


def _putting(reduction: str) -> Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor], torch.Tensor]:
    if reduction == "none":
        return torch.scatter
    joined = _REDUCTIONS[reduction]
    return lambda x, axis, places, updates: x.scatter_reduce(axis, places, updates, joined, include_self=True)


@operator("ScatterND")
def scatter_nd(node: Node) -> Call:
    """Slices put at coordinates, or joined with what lies there."""
    reduction = node.choice("reduction", "none", *_REDUCTIONS)
    if reduction in ("none", "add"):
        accumulate = reduction == "add"
        return lambda x, indices, updates: x.index_put(tuple(indices.unbind(-1)), updates, accumulate)
    put = _putting(reduction)

    def run(x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        deep = indices.shape[-1]
        rows = torch.zeros_like(indices[..., 0])
        for place, at in enumerate(indices.unbind(-1)):
            rows = rows * x.shape[place] + _wrapped(at, x.shape[place])
        flat = x.reshape(x.shape[:deep].numel(), -1)
        updates = updates.reshape(rows.numel(), -1)
        return put(flat, 0, rows.reshape(-1, 1).expand_as(updates), updates).reshape(x.shape)

    return run


@operator("TensorScatter")
def tensor_scatter(node: Node) -> Call:
    """A cache with an update written from an index on, one index for each of the batch, or round its end."""
    axis, circular = node.integer("axis", -2), node.choice("mode", "linear", "circular") == "circular"

    def run(cache: torch.Tensor, update: torch.Tensor, starts: torch.Tensor | None = None) -> torch.Tensor:
        places = torch.arange(update.shape[axis], device=cache.device).unsqueeze(0)
        if starts is not None:
            places = places + starts.reshape(-1, 1)
        if circular:
            places = places % cache.shape[axis]
        across = [1] * cache.dim()
        across[0], across[axis] = places.shape
        return cache.scatter(axis, places.reshape(across).expand_as(update), update)

    return run
