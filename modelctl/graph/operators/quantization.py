"""Numbers stored in few bits: q = round(x / scale) + zero, between the ends of a type, and x = (q - zero) * scale.

Where a graph learns, a quantized value is a float that holds a whole number, so that a gradient passes: rounding lets
it through, and what lies outside the type's ends stops it (the straight-through estimator, Bengio et al. 2013). What is
computed with integers (MatMulInteger, a choice, a shape) takes those floats for them.

A scale and its zero point are one number, one for each place of an axis, or one for each block along it.
"""

from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import Tensor

from modelctl.graph.operators.casting import to_kind
from modelctl.graph.operators.convolution import convolution
from modelctl.graph.operators.node import DTYPES, HELD, Call, Node, operator
from modelctl.graph.operators.products import product_of_integers

_UINT8 = onnx.TensorProto.UINT8
_ENDS: dict[int, tuple[int, int]] = {
    onnx.TensorProto.INT4: (-8, 7),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT2: (-2, 1),
    onnx.TensorProto.UINT2: (0, 3),
    **{
        kind: (torch.iinfo(DTYPES[kind]).min, torch.iinfo(DTYPES[kind]).max)
        for kind in (_UINT8, onnx.TensorProto.INT8, onnx.TensorProto.UINT16, onnx.TensorProto.INT16)
    },
    onnx.TensorProto.INT32: (-(2**31), 2**31 - 1),
}
_KINDS = _ENDS.keys() | {
    onnx.TensorProto.FLOAT8E4M3FN,
    onnx.TensorProto.FLOAT8E5M2,
    onnx.TensorProto.FLOAT8E4M3FNUZ,
    onnx.TensorProto.FLOAT8E5M2FNUZ,
    onnx.TensorProto.FLOAT4E2M1,
}


@dataclass(frozen=True)
class Grid:
    """How numbers are stored: element type (of onnx.proto), and axis and block of the scales.

    `saturates`: whether a float8 that is too large becomes the largest.
    """

    kind: int
    axis: int = 1
    block: int = 0
    saturates: bool = True

    def numbers(self, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Floats as the numbers that are stored for them, still as floats; gradients pass."""
        scale, zero = self.along(scale, x), None if zero is None else self.along(zero, x).to(scale.dtype)
        found: Tensor = _Stored.apply(x.to(scale.dtype), scale, zero, self)  # type: ignore[no-untyped-call]
        return found

    def values(self, numbers: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """What the stored numbers stand for, in the type of the scale."""
        scale = self.along(scale, numbers)
        wide = numbers.to(scale.dtype)
        return (wide if zero is None else wide - self.along(zero, numbers).to(scale.dtype)) * scale

    def along(self, given: Tensor, x: Tensor) -> Tensor:
        """Scales or zero points in a shape that goes with `x`."""
        if given.dtype == torch.float8_e8m0fnu:
            given = given.to(torch.float32)
        if given.numel() == 1:
            return given.reshape(())
        if given.dim() == 1 and not self.block:
            shape = [1] * x.dim()
            shape[self.axis] = -1
            return given.view(shape)
        size = x.shape[self.axis]
        block = min(self.block, size) or -(-size // given.shape[self.axis])
        if -(-size // block) != given.shape[self.axis]:
            raise ValueError("the scales are not one for each block")
        return given.repeat_interleave(block, self.axis).narrow(self.axis, 0, size)

    def fits(self, scale: Tensor, x: Tensor) -> bool:
        """Whether these are scales for `x`."""
        if scale.numel() == 1:
            return True
        if not -x.dim() <= self.axis < x.dim() or self.block < 0:
            return False
        size = x.shape[self.axis]
        if not self.block:
            return scale.shape == (size,)
        wanted = list(x.shape)
        wanted[self.axis] = -(-size // self.block)
        return list(scale.shape) == wanted

    def stored(self, found: Tensor) -> Tensor:
        """Whole numbers in the type that they are stored in."""
        return found.to(HELD.get(self.kind) or DTYPES[self.kind])


class _Stored(torch.autograd.Function):
    """Numbers as they are stored; the gradient as if they were not rounded, zero behind the ends."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
        ratio = x / scale
        if grid.kind in _ENDS:
            low, high = map(float, _ENDS[grid.kind])
            numbers = torch.round(ratio)
            numbers = numbers if zero is None else numbers + zero
            found = numbers.clamp(low, high)
        else:
            numbers = ratio if zero is None else ratio + zero
            found = to_kind(grid.kind, saturate=grid.saturates)(numbers).to(x.dtype)
            most = torch.finfo(DTYPES[grid.kind]).max if grid.kind in DTYPES else 6.0
            low, high = -most, most
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((numbers >= low) & (numbers <= high), scale)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale = ctx.saved_tensors
        return torch.where(inside, gradients[0], 0.0) / scale, None, None, None


def _learns(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


@operator("QuantizeLinear", fixed=(1, 2))
def _quantize(node: Node) -> Call:
    kind = node.integer("output_dtype") or node.kind(2) or _UINT8
    grid = Grid(kind, node.integer("axis", 1), node.integer("block_size"), bool(node.integer("saturate", 1)))
    precision = node.dtype("precision")
    if kind not in _KINDS:
        raise node.refuse(f"stores numbers as element type {kind}, which torch can't compute with")

    def quantized(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        found = grid.numbers(x, scale if precision is None else scale.to(precision), zero)
        return found if _learns(found) else grid.stored(found)

    return quantized


@operator("DequantizeLinear", fixed=(1, 2))
def _dequantize(node: Node) -> Call:
    grid = Grid(_UINT8, node.integer("axis", 1), node.integer("block_size"))
    wanted = node.dtype("output_dtype")

    def values(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        return grid.values(x, scale if wanted is None else scale.to(wanted), zero)

    return values


@dataclass(frozen=True)
class Stored:
    """A weight that is stored in few bits: its grid, the names of its scale and zero point, and these, which stay.

    What is learned is a float; the graph computes with what would be stored for it.
    """

    grid: Grid
    names: tuple[str, ...]
    scale: Tensor = field(compare=False)
    zero: Tensor | None = field(compare=False)

    def values(self, numbers: Tensor) -> Tensor:
        """What the stored numbers stand for."""
        return self.grid.values(numbers, self.scale, self.zero)

    def numbers(self, learned: Tensor, before: Tensor) -> Tensor:
        """What is stored for a learned float; the numbers from `before` stay wherever it has not changed.

        An int32 has more digits than the float that is made of it.
        """
        learned = learned.detach().to("cpu")
        made = self.grid.stored(self.grid.numbers(learned.to(self.scale.dtype), self.scale, self.zero))
        return torch.where(learned == self.values(before).to(learned.dtype), before, made)

    def call(self, learned: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """DequantizeLinear of what would be stored; scale and zero point are the same, where the graph runs."""
        return self.grid.values(self.grid.numbers(learned, scale, zero), scale, zero)


def stored_weight(node: Node) -> Stored | None:
    """How the first input is stored that a DequantizeLinear node reads; None if this is another node or can't learn."""
    if node.proto.op_type != "DequantizeLinear" or node.proto.domain not in ("", "ai.onnx"):
        return None
    numbers, scale, zero, kind = node.constant(0), node.constant(1), node.constant(2), node.kind(0)
    if numbers is None or numbers.numel() < 2 or scale is None:
        return None
    if (node.has(2) and zero is None) or not bool((scale.to(torch.float32) > 0).all()):
        return None
    grid = Grid(kind, node.integer("axis", 1), node.integer("block_size"))
    if kind not in _KINDS or not grid.fits(scale, numbers) or (zero is not None and zero.shape != scale.shape):
        return None
    return Stored(grid, tuple(node.proto.input[1:]), scale.to(node.dtype("output_dtype") or scale.dtype), zero)


@operator("DynamicQuantizeLinear")
def _quantize_by_range(_: Node) -> Call:
    return quantized_by_range


def quantized_by_range(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 over the range of the input, zero in it; scale and zero point take no gradient."""
    with torch.no_grad():
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, 1.0, scale).to(x.dtype)
        zero = torch.round((-low / scale).clamp(0, 255))
    grid = Grid(_UINT8)
    found = grid.numbers(x, scale, zero)
    return found if _learns(found) else grid.stored(found), scale, grid.stored(zero)


@operator("QLinearMatMul", fixed=(1, 2, 4, 5, 6, 7))
def _product(node: Node) -> Call:
    grid = Grid(node.kind(7) or _UINT8)

    def call(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        scale: Tensor,
        zero: Tensor,
    ) -> Tensor:
        y = product_of_integers(a, b, a_zero, b_zero).to(scale.dtype)
        a_scale = a_scale.unsqueeze(-1) if a_scale.dim() == 1 and a_scale.numel() > 1 else a_scale
        return requantized(y * (a_scale * b_scale), grid, scale, zero)

    return call


@operator("QLinearConv", fixed=(1, 2, 4, 5, 6, 7))
def _convolution(node: Node) -> Call:
    grid, convolved = Grid(node.kind(7) or _UINT8), convolution(node)

    def call(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor,
        w: Tensor,
        w_scale: Tensor,
        w_zero: Tensor,
        scale: Tensor,
        zero: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        wide = x.dtype if x.is_floating_point() else torch.float64  # exact
        rows = (-1, *(1,) * (w.dim() - 1))
        w = w.to(wide) - w_zero.to(wide).reshape(rows)
        y: Tensor = convolved(x.to(wide) - x_zero.to(wide), w, None if bias is None else bias.to(wide))
        factor = (x_scale * w_scale).reshape(rows[:-1])
        return requantized(y.to(scale.dtype) * factor, grid, scale, zero)

    return call


def requantized(y: Tensor, grid: Grid, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Floats in a type of few bits; still as floats, where gradients pass."""
    found = grid.numbers(y, scale, zero)
    return found if _learns(found) else grid.stored(found)
