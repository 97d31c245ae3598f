"""Convolutions, over one, two or three axes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, operator
from modelctl.graph.operators.windows import Pads, Windows, padded, symmetric

_CONV: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@operator("Conv")
def convolution(node: Node) -> Call:
    """Conv; also what every operator that has a convolution inside calls with float inputs."""
    windows, groups = Windows.of(node), node.integer("group", 1)
    explicit = windows.auto_pad in ("NOTSET", "", "VALID")
    pads = None if windows.auto_pad == "VALID" else windows.pads
    half = len(pads or ()) // 2
    simple = explicit and (not pads or pads[:half] == pads[half:])
    strides, gaps = windows.strides or 1, windows.dilations or 1
    plain_pads = pads[:half] if pads else 0

    def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.dim() - 2
        conv = _CONV[rank] if rank in _CONV else _refuse_rank(node, rank)
        if simple:
            return conv(x, weight, bias, strides, plain_pads, gaps, groups)
        x = padded(x, windows.padding(x.shape[2:], weight.shape[2:]))
        return conv(x, weight, bias, strides, 0, gaps, groups)

    return convolved


@operator("ConvTranspose")
def _transposed(node: Node) -> Call:
    windows, groups = Windows.of(node), node.integer("group", 1)
    wanted, extra = node.integers("output_shape"), node.integers("output_padding")

    def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.dim() - 2
        conv = _TRANSPOSED[rank] if rank in _TRANSPOSED else _refuse_rank(node, rank)
        strides, gaps, more = windows.steps(rank), windows.gaps(rank), extra or (0,) * rank
        pads = _cut(windows, x.shape[2:], weight.shape[2:], wanted, more)
        around = symmetric(pads)
        fits = all(one < max(step, gap) for one, step, gap in zip(more, strides, gaps, strict=True))
        if around is not None and min(around) >= 0 and fits:
            return conv(x, weight, bias, strides, around, more, groups, gaps)
        whole = conv(x, weight, None, strides, 0, 0, groups, gaps)
        y = padded(whole, tuple((-a, one - b) for (a, b), one in zip(pads, more, strict=True)))
        return y if bias is None else y + bias.view(-1, *(1,) * rank)

    return convolved


def _cut(
    windows: Windows, sizes: Sequence[int], kernel: Sequence[int], wanted: Sequence[int], extra: Sequence[int]
) -> Pads:
    """What is cut off before and after each axis of a whole transposed convolution (ONNX, ConvTranspose)."""
    rank = len(sizes)
    steps, gaps = windows.steps(rank), windows.gaps(rank)
    if not wanted:
        if windows.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return windows.padding(sizes, kernel)
        wanted = [size * step for size, step in zip(sizes, steps, strict=True)]
    found = []
    for size, width, step, gap, end, more in zip(sizes, kernel, steps, gaps, wanted, extra, strict=True):
        whole = step * (size - 1) + more + (width - 1) * gap + 1 - end
        small, large = whole // 2, whole - whole // 2
        found.append((small, large) if windows.auto_pad == "SAME_UPPER" else (large, small))
    return tuple(found)


@operator("ConvInteger", fixed=(2, 3))
def _integer(node: Node) -> Call:
    convolved = convolution(node)

    def call(x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None) -> Tensor:
        learns = x.is_floating_point()  # whole numbers that gradients pass through: see quantization.py
        wide = x.dtype if learns else torch.float64  # exact
        x, weight = x.to(wide), weight.to(wide)
        if x_zero is not None:
            x = x - x_zero.to(wide)
        if w_zero is not None:
            weight = weight - w_zero.to(wide).reshape(-1, *(1,) * (weight.dim() - 1))
        y: Tensor = convolved(x, weight)
        return y if learns else y.to(torch.int32)

    return call


@operator("DeformConv")
def _deformed(node: Node) -> Call:
    windows, groups, parts = Windows.of(node), node.integer("group", 1), node.integer("offset_group", 1)

    def call(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Any:
        if x.dim() != 4:
            raise node.refuse("runs on pictures (4 axes) only")
        batch, channels, *sizes = x.shape
        kernel, spread = weight.shape[2:], offset.shape[2:]
        points = kernel[0] * kernel[1]
        offset = offset.view(batch * parts, *kernel, 2, *spread)
        places = []
        for axis, (before, _) in enumerate(windows.padding(sizes, kernel)):
            starts = torch.arange(spread[axis], device=x.device) * windows.steps(2)[axis] - before
            taps = torch.arange(kernel[axis], device=x.device) * windows.gaps(2)[axis]
            shape = [kernel[0], 1, spread[0], 1] if axis == 0 else [1, kernel[1], 1, spread[1]]
            place = (taps.unsqueeze(1) + starts).view(shape) + offset[:, :, :, axis]
            places.append(2 * place / (sizes[axis] - 1) - 1 if sizes[axis] > 1 else place)
        grid = torch.stack((places[1], places[0]), -1).flatten(1, 3)
        seen = functional.grid_sample(
            x.reshape(batch * parts, channels // parts, *sizes), grid, "bilinear", "zeros", align_corners=True
        )
        seen = seen.view(batch * parts, channels // parts, points, *spread)
        if mask is not None:
            seen = seen * mask.reshape(batch * parts, 1, points, *spread)
        seen = seen.reshape(batch, groups, -1, spread[0] * spread[1])
        y = (weight.reshape(groups, weight.shape[0] // groups, -1) @ seen).reshape(batch, -1, *spread)
        return y if bias is None else y + bias.view(-1, 1, 1)

    return call


def _refuse_rank(node: Node, rank: int) -> Callable[..., Tensor]:
    raise node.refuse(f"runs over one to three axes in torch, not {rank}")
