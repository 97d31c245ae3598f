"""onnxruntime's operators (domain com.microsoft) on weights and values of few bits, as its quantizers write them."""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from modelctl.graph.operators.microsoft import MICROSOFT
from modelctl.graph.operators.node import Call, Node, operator
from modelctl.graph.operators.products import product_of_integers
from modelctl.graph.operators.quantization import Grid, quantized_by_range, requantized
from modelctl.graph.operators.recurrent import recurrent

_UINT8 = onnx.TensorProto.UINT8


def _fused(*names: str, host: tuple[int, ...] = (), fixed: tuple[int, ...] = ()) -> Callable[[Any], Any]:
    return operator(*names, domain=MICROSOFT, host=host, fixed=fixed)


def unpacked(data: Tensor, bits: int) -> Tensor:
    """Bytes [..., n] as the numbers that are packed in them, lowest bits first: [..., n * 8 / bits]."""
    shifts = torch.arange(0, 8, bits, device=data.device, dtype=torch.uint8)
    return torch.bitwise_and(data.unsqueeze(-1) >> shifts, 2**bits - 1).flatten(-2)


@_fused("MatMulNBits", fixed=(2, 3))
def _few_bits(node: Node) -> Call:
    bits, block = node.integer("bits", 4), node.integer("block_size")
    columns, rows = node.integer("N"), node.integer("K")
    if node.has(4) or node.integer("weight_prepacked") or bits not in (2, 4, 8):
        raise node.refuse("has weights in an order or a number of bits that is not known here")

    def call(
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        zero: Tensor | None = None,
        _: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        blocks = -(-rows // block)
        numbers = unpacked(weight.view(columns, blocks, -1), bits).to(scale.dtype)
        at: Tensor | float = 2.0 ** (bits - 1)
        if zero is not None:
            whole = zero.view(columns, -1) if zero.is_floating_point() else unpacked(zero.view(columns, -1), bits)
            at = whole[:, :blocks].to(scale.dtype).unsqueeze(-1)
        dense = ((numbers - at) * scale.view(columns, blocks, 1)).flatten(1)[:, :rows]
        return functional.linear(x, dense.to(x.dtype), bias)

    return call


@_fused("GatherBlockQuantized", fixed=(2, 3))
def _few_bits_chosen(node: Node) -> Call:
    axis, along = node.integer("gather_axis"), node.integer("quantize_axis", 1)
    block, kind = node.integer("block_size", 128), node.kind(0)
    bits = node.integer("bits", 4) if kind == _UINT8 else 8

    def call(data: Tensor, places: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        rank = data.dim()
        at, line = axis % rank, along % rank
        size = data.shape[at]
        flat = places.reshape(-1).to(torch.int64)
        flat = torch.where(flat < 0, flat + size, flat)
        inside = (flat >= 0) & (flat < size)
        flat = flat.clamp(0, size - 1)
        numbers, scale = data.index_select(at, flat), scale.index_select(at, flat)
        if bits < 8:
            numbers = unpacked(numbers, bits)
        if zero is not None:
            zero = (
                (unpacked(zero, bits) if bits < 8 else zero).index_select(at, flat).narrow(line, 0, scale.shape[line])
            )
        elif kind == _UINT8:
            zero = torch.full_like(scale, 2.0 ** (bits - 1))
        dense = Grid(_UINT8, line, block or numbers.shape[line]).values(numbers, scale, zero)
        shape = [1] * rank
        shape[at] = -1
        dense = torch.where(inside.view(shape), dense, 0.0)
        return dense.reshape(*dense.shape[:at], *places.shape, *dense.shape[at + 1 :])

    return call


def _scaled_product(
    a: Tensor, b: Tensor, scale: Tensor, a_zero: Tensor | None, b_zero: Tensor | None, bias: Tensor | None
) -> Tensor:
    y = product_of_integers(a, b, a_zero, b_zero).to(scale.dtype) * scale
    return y if bias is None else y + bias


@_fused("MatMulIntegerToFloat", fixed=(2, 3, 4, 5))
def _integers_to_floats(_: Node) -> Call:
    def call(
        a: Tensor,
        b: Tensor,
        a_scale: Tensor,
        b_scale: Tensor,
        a_zero: Tensor | None = None,
        b_zero: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        return _scaled_product(a, b, a_scale * b_scale, a_zero, b_zero, bias)

    return call


@_fused("DynamicQuantizeMatMul", fixed=(2, 3))
def _dynamic_product(_: Node) -> Call:
    def call(a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        whole, scale, zero = quantized_by_range(a)
        return _scaled_product(whole, b, scale * b_scale, zero, b_zero, bias)

    return call


@_fused("DynamicQuantizeLSTM", host=(4,), fixed=(8, 9, 10, 11))
def _dynamic_lstm(node: Node) -> Call:
    """With the weights as they are stored; onnxruntime rounds the input and states of each step to 8 bits, too."""
    run = recurrent(node)

    def dense(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        shape = (len(weight), 1, -1)
        return ((weight.to(scale.dtype) - zero.view(shape).to(scale.dtype)) * scale.view(shape)).transpose(1, 2)

    def call(x: Tensor, w: Tensor, r: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        bias, lengths, hidden, cell, peep, w_scale, w_zero, r_scale, r_zero = rest
        if w_scale is None or w_zero is None or r_scale is None or r_zero is None:
            raise node.refuse("has no scales")
        w, r = dense(w, w_scale, w_zero), dense(r, r_scale, r_zero)
        return run(x, w, r, bias, lengths, (hidden, cell), peep)

    return call


@_fused("QGemm", fixed=(1, 2, 4, 5, 7, 8))
def _gemm(node: Node) -> Call:
    alpha, grid = node.number("alpha", 1.0), Grid(node.kind(8) or _UINT8)
    turn_a, turn_b = bool(node.integer("transA")), bool(node.integer("transB"))

    def call(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        c: Tensor | None = None,
        scale: Tensor | None = None,
        zero: Tensor | None = None,
    ) -> Tensor:
        y = product_of_integers(a.t() if turn_a else a, b.t() if turn_b else b, a_zero, b_zero)
        y = (y if c is None else y + c.to(y.dtype)).to(a_scale.dtype) * (alpha * a_scale * b_scale)
        return y if scale is None else requantized(y, grid, scale, zero)

    return call


def _of_floats(node: Node, count: int, function: Callable[..., Tensor]) -> Call:
    """A function of floats on `count` stored values, each with its scale and zero point, then the result's."""
    grid = Grid(node.kind(3 * count + 1) or _UINT8)

    def call(*given: Tensor | None) -> Tensor:
        inputs = [_floats(*given[3 * at : 3 * at + 3]) for at in range(count)]
        scale, zero = given[3 * count], given[3 * count + 1] if len(given) > 3 * count + 1 else None
        if scale is None:
            raise node.refuse("has no scale for what it gives")
        return requantized(function(*inputs), grid, scale, zero)

    return call


def _floats(numbers: Tensor | None, scale: Tensor | None, zero: Tensor | None) -> Tensor:
    if numbers is None or scale is None:
        raise ValueError("a value or its scale is left out")
    return Grid(_UINT8).values(numbers, scale, zero)


@_fused("QLinearAdd", fixed=(1, 2, 4, 5, 6, 7))
def _add(node: Node) -> Call:
    return _of_floats(node, 2, torch.add)


@_fused("QLinearMul", fixed=(1, 2, 4, 5, 6, 7))
def _multiply(node: Node) -> Call:
    return _of_floats(node, 2, torch.mul)


@_fused("QLinearSigmoid", fixed=(1, 2, 3, 4))
def _sigmoid(node: Node) -> Call:
    return _of_floats(node, 1, torch.sigmoid)


@_fused("QLinearLeakyRelu", fixed=(1, 2, 3, 4))
def _leaky_relu(node: Node) -> Call:
    alpha = node.number("alpha", 0.01)
    return _of_floats(node, 1, lambda x: functional.leaky_relu(x, alpha))


@_fused("QLinearGlobalAveragePool", fixed=(1, 2, 3, 4))
def _global_average(node: Node) -> Call:
    last = bool(node.integer("channels_last"))
    return _of_floats(node, 1, lambda x: x.mean([*range(1, x.dim() - 1)] if last else [*range(2, x.dim())], True))


@_fused("QLinearConcat")
def _concatenate(node: Node) -> Call:
    axis, grid = node.integer("axis"), Grid(node.kind(1) or _UINT8)

    def call(scale: Tensor, zero: Tensor, *given: Tensor) -> Tensor:
        parts = [_floats(*given[at : at + 3]) for at in range(0, len(given), 3)]
        return requantized(torch.cat(parts, axis), grid, scale, zero)

    return call
