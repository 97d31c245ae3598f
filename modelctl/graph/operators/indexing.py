"""Parts taken out and put in: slices, gathers, scatters."""

from collections.abc import Callable

import torch
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, numbers_of, operator


@operator("Slice", host=(1, 2, 3, 4))
def cut(node: Node) -> Call:
    """Starts, ends, axes and steps, attributes up to opset 9 and then inputs; a negative step runs backwards."""
    if node.opset < 10:
        return _slicer(node.integers("starts"), node.integers("ends"), node.integers("axes") or None, None)
    held = [node.constant(place) for place in (1, 2, 3, 4)]
    if all(one is not None or not node.has(place) for place, one in enumerate(held, 1)):
        starts, ends, axes, steps = (None if one is None else numbers_of(one) for one in held)
        return _slicer(starts or (), ends or (), axes, steps)
    return lambda x, *bounds: _slicer(*(None if one is None else numbers_of(one) for one in bounds))(x)


def _slicer(starts: object, ends: object, axes: object = None, steps: object = None) -> Call:
    begins, stops = tuple(starts), tuple(ends)  # type: ignore[call-overload]
    places = tuple(range(len(begins)) if axes is None else axes)  # type: ignore[call-overload]
    by = (1,) * len(begins) if steps is None else tuple(steps)  # type: ignore[call-overload]
    if min(by, default=1) < 0:
        return lambda x, *_: _backwards(x, zip(places, begins, stops, by, strict=True))
    parts = [slice(*one) for one in zip(begins, stops, by, strict=True)]
    if places and max(places) < 0:
        index = [slice(None)] * -min(places)
        for place, part in zip(places, parts, strict=True):
            index[place] = part
        whole = (..., *index)
        return lambda x, *_: x[whole]

    def run(x: torch.Tensor, *_: object) -> torch.Tensor:
        index = [slice(None)] * x.dim()
        for place, part in zip(places, parts, strict=True):
            index[place] = part
        return x[tuple(index)]

    return run


def _backwards(x: torch.Tensor, parts: object) -> torch.Tensor:
    for axis, start, stop, step in parts:  # type: ignore[attr-defined]
        reach = range(*slice(start, stop, step).indices(x.shape[axis]))
        if step > 0 or not reach:
            x = x.narrow(axis, 0, 0) if not reach else _stepped(x, axis, reach)
        else:
            x = _stepped(x, axis, reach[::-1]).flip(axis)
    return x


def _stepped(x: torch.Tensor, axis: int, reach: range) -> torch.Tensor:
    index = [slice(None)] * x.dim()
    index[axis] = slice(reach.start, reach.stop, reach.step)
    return x[tuple(index)]


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
    axis, reduction = node.integer("axis"), node.text("reduction", "none")
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
    reduction = node.text("reduction", "none")
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
    axis, circular = node.integer("axis", -2), node.text("mode", "linear") == "circular"

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
