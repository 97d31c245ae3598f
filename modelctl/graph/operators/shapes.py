"""Shapes read and changed, the numbers left as they are."""

import math

import torch

from modelctl.graph.operators.node import Call, Node, numbers_of, operator, plain

plain("Identity", lambda x: x)
plain("Size", lambda x: torch.tensor(x.numel()))


@operator("Shape")
def shape(node: Node) -> Call:
    """The dimensions from `start` up to `end`."""
    start, end = node.integer("start"), node.integer("end") if node.given("end") else None
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Reshape", host=(1,))
def reshape(node: Node) -> Call:
    """A 0 is the dimension that stands there (or really 0, with `allowzero`), a -1 what is left."""
    kept = not node.integer("allowzero")
    held = node.constant(1)
    if held is None:
        return lambda x, wanted: _reshaped(x, numbers_of(wanted), kept)
    dims = numbers_of(held)
    if kept and 0 in dims:
        return lambda x, _: _reshaped(x, dims, kept)
    return lambda x, _: x.reshape(dims)


def _reshaped(x: torch.Tensor, dims: list[int], kept: bool) -> torch.Tensor:
    if kept and 0 in dims:
        dims = [x.shape[place] if dim == 0 else dim for place, dim in enumerate(dims)]
    return x.reshape(dims)


@operator("Flatten")
def flatten(node: Node) -> Call:
    """Two dimensions: those before `axis`, and the others."""
    axis = node.integer("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze", host=(1,))
def squeeze(node: Node) -> Call:
    """Axes are an attribute up to opset 12, then an input; none are all that are 1."""
    if not node.has(1) and not node.given("axes"):
        return lambda x, *_: x.squeeze()
    held = node.constant(1)
    if node.has(1) and held is None:
        return lambda x, axes: x.squeeze(tuple(numbers_of(axes)))
    axes = node.integers("axes") if held is None else tuple(numbers_of(held))
    return lambda x, *_: x.squeeze(axes)


@operator("Unsqueeze", host=(1,))
def unsqueeze(node: Node) -> Call:
    """Axes count in the result; they are an attribute up to opset 12, then an input."""
    held = node.constant(1)
    if node.has(1) and held is None:
        return lambda x, axes: _unsqueezed(x, numbers_of(axes))
    axes = list(node.integers("axes")) if held is None else numbers_of(held)
    if len(axes) == 1:
        (axis,) = axes
        return lambda x, *_: x.unsqueeze(axis)
    return lambda x, *_: _unsqueezed(x, axes)


def _unsqueezed(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Expand", host=(1,))
def expand(node: Node) -> Call:
    """Broadcast against a shape, in both directions."""
    held = node.constant(1)
    if held is None:
        return lambda x, wanted: _expanded(x, numbers_of(wanted))
    dims = numbers_of(held)
    return lambda x, _: _expanded(x, dims)


def _expanded(x: torch.Tensor, dims: list[int]) -> torch.Tensor:
    rank = max(x.dim(), len(dims))
    shape = [1] * (rank - x.dim()) + list(x.shape)
    for place, size in enumerate(dims, rank - len(dims)):
        if shape[place] == 1:
            shape[place] = size
        elif size not in (1, shape[place]):
            raise ValueError(f"{list(x.shape)} can't be broadcast to {dims}")
    return x.expand(shape)


@operator("Transpose")
def transpose(node: Node) -> Call:
    """The axes in another order; without one, reversed."""
    if not node.given("perm"):
        return lambda x: x.permute(tuple(range(x.dim() - 1, -1, -1)))
    order = node.integers("perm")
    return lambda x: x.permute(order)


@operator("DepthToSpace")
def depth_to_space(node: Node) -> Call:
    """Channels laid out as blocks: depth first (DCR), or column and row first (CRD)."""
    side = node.integer("blocksize")
    if node.choice("mode", "DCR", "CRD") == "CRD":
        return lambda x: torch.pixel_shuffle(x, side)

    def run(x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        parts = x.reshape(batch, side, side, channels // side**2, height, width).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(batch, channels // side**2, height * side, width * side)

    return run


@operator("SpaceToDepth")
def space_to_depth(node: Node) -> Call:
    """Blocks laid out as channels: depth first (DCR), or column and row first (CRD)."""
    side = node.integer("blocksize")
    if node.choice("mode", "DCR", "CRD") == "CRD":
        return lambda x: torch.pixel_unshuffle(x, side)

    def run(x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        parts = x.reshape(batch, channels, height // side, side, width // side, side).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(batch, channels * side**2, height // side, width // side)

    return run
