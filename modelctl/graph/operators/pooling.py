"""Pooling: the largest, the mean or the norm of what a window sees, or of all."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, operator, plain
from modelctl.graph.operators.windows import Windows, padded, symmetric

_MAX: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    1: functional.max_pool1d_with_indices,
    2: functional.max_pool2d_with_indices,
    3: functional.max_pool3d_with_indices,
}
_LARGEST: dict[int, Callable[..., Tensor]] = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
_MEAN: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_SUM: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operator("MaxPool")
def _max_pool(node: Node) -> Call:
    windows, rank = Windows.of(node), _rank(node)
    by_columns = bool(node.integer("storage_order"))
    steps, gaps, kernel = windows.steps(rank), windows.gaps(rank), windows.kernel

    def pooled(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        kind = x.dtype
        if not x.is_floating_point():
            x = x.to(torch.float32)
        sizes = x.shape[2:]
        pads = windows.rounded_up(sizes, kernel, windows.padding(sizes, kernel))
        around = symmetric(pads)
        if around is None or any(2 * one > width for one, width in zip(around, kernel, strict=True)):
            x, around = padded(x, pads, -math.inf), (0,) * rank
        if not node.gives(1):
            return _LARGEST[rank](x, kernel, steps, around, gaps).to(kind)
        y, places = _MAX[rank](x, kernel, steps, around, gaps)
        moved = tuple(before for before, _ in pads) if around == (0,) * rank else (0,) * rank
        return y.to(kind), _flat(places, x.shape[2:], moved, sizes, by_columns)

    return pooled


def _flat(places: Tensor, seen: Sequence[int], moved: Sequence[int], sizes: Sequence[int], by_columns: bool) -> Tensor:
    """Where each number stands in the flat input of all planes, from where it stands in its padded plane."""
    along = []
    for size, before in zip(reversed(seen), reversed(moved), strict=True):
        along.append(places % size - before)
        places = torch.div(places, size, rounding_mode="floor")
    flat, stride = torch.zeros_like(places), 1
    for at, size in zip(reversed(along) if by_columns else along, sizes if by_columns else sizes[::-1], strict=True):
        flat, stride = flat + at * stride, stride * size
    batch, channels = places.shape[:2]
    plane = torch.arange(batch * channels, device=places.device).view(batch, channels, *(1,) * len(sizes))
    return flat + plane * stride


@operator("AveragePool")
def _average_pool(node: Node) -> Call:
    windows, rank = Windows.of(node), _rank(node)
    counts_pad = bool(node.integer("count_include_pad"))
    kernel, steps = windows.kernel, windows.steps(rank)
    dense = all(gap == 1 for gap in windows.gaps(rank))

    def pooled(x: Tensor) -> Tensor:
        pads = windows.padding(x.shape[2:], kernel)
        around = symmetric(pads)
        if dense and around is not None and all(2 * one <= width for one, width in zip(around, kernel, strict=True)):
            return _MEAN[rank](x, kernel, steps, around, windows.ceil, counts_pad)
        outer = windows.rounded_up(x.shape[2:], kernel, pads)
        ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        inner = ones if not counts_pad else padded(ones, pads, 1.0)
        rest = tuple((0, b[1] - a[1]) for a, b in zip(pads, outer, strict=True)) if counts_pad else outer
        return _sums(padded(x, outer), windows) / _sums(padded(inner, rest), windows)

    return pooled


@operator("LpPool")
def _lp_pool(node: Node) -> Call:
    windows, power = Windows.of(node), node.integer("p", 2)

    def pooled(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        pads = windows.rounded_up(sizes, windows.kernel, windows.padding(sizes, windows.kernel))
        return _root(_sums(padded(x.abs().pow(power), pads), windows), power)

    return pooled


def _sums(x: Tensor, windows: Windows) -> Tensor:
    """The sum of what each window sees."""
    rank = len(windows.kernel)
    ones = torch.ones(1, 1, *windows.kernel, dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    y = _SUM[rank](flat, ones, None, windows.steps(rank), 0, windows.gaps(rank))
    return y.reshape(*x.shape[:2], *y.shape[2:])


def _root(sums: Tensor, power: int) -> Tensor:
    """The root of sums of powers, with gradient zero where all is zero."""
    zero = sums == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, sums).pow(1 / power)).to(sums.dtype)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


plain("GlobalAveragePool", lambda x: x.mean(_spatial(x), keepdim=True) if x.dim() > 2 else x)
plain("GlobalMaxPool", lambda x: x.amax(_spatial(x), keepdim=True) if x.dim() > 2 else x)


@operator("GlobalLpPool")
def _global_lp_pool(node: Node) -> Call:
    power = node.integer("p", 2)
    return lambda x: _root(x.abs().pow(power).sum(_spatial(x), keepdim=True), power)


@operator("MaxUnpool", host=(2,))
def _max_unpool(node: Node) -> Call:
    windows = Windows.of(node)
    rank = len(windows.kernel)

    def unpooled(x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
        pads = windows.padding(x.shape[2:], windows.kernel)
        sizes = [
            (size - 1) * step + width - sum(around)
            for size, step, width, around in zip(x.shape[2:], windows.steps(rank), windows.kernel, pads, strict=True)
        ]
        whole = [*x.shape[:2], *sizes]
        y = x.new_zeros(math.prod(whole)).scatter(0, places.reshape(-1), x.reshape(-1)).view(whole)
        if shape is None:
            return y
        return padded(y, tuple((0, wanted - size) for wanted, size in zip(shape.tolist()[2:], sizes, strict=True)))

    return unpooled


def _rank(node: Node) -> int:
    rank = len(node.integers("kernel_shape"))
    if rank not in _MAX:
        raise node.refuse(f"runs over one to three axes in torch, not {rank}")
    return rank
