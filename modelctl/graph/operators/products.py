"""Sums of products: matrices, and whatever an equation says."""

import torch
from torch import Tensor

from modelctl.graph.operators.node import Call, Node, operator


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, of whole numbers too wherever they lie."""
    if a.is_floating_point() or a.is_complex():
        return torch.matmul(a, b)
    return torch.matmul(a.to(torch.float64), b.to(torch.float64)).to(a.dtype)


@operator("MatMul")
def _product(_: Node) -> Call:
    return product


@operator("Gemm")
def gemm(node: Node) -> Call:
    """alpha A B + beta C, A and B transposed or not."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    turn_a, turn_b = bool(node.integer("transA")), bool(node.integer("transB"))

    def call(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = (a.t() if turn_a else a), (b.t() if turn_b else b)
        if not a.is_floating_point():
            y = (alpha * product(a, b)).to(a.dtype)
            return y if c is None else y + (beta * c).to(a.dtype)
        if c is not None:
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        return a @ b if alpha == 1 else alpha * (a @ b)

    return call


@operator("Einsum")
def _einsum(node: Node) -> Call:
    equation = node.text("equation").replace(" ", "")
    return lambda *given: torch.einsum(equation, *given)


@operator("MatMulInteger", fixed=(2, 3))
def _integers(_: Node) -> Call:
    return product_of_integers


def product_of_integers(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """The product of integers less their zero points (one, or one for each row of `a` and column of `b`), int32.

    Where `a` or `b` holds whole numbers as floats, for gradients to pass (see quantization.py), so does the result.
    """
    learns = a.is_floating_point() or b.is_floating_point()
    wide = torch.promote_types(a.dtype, b.dtype) if learns else torch.float64  # exact
    a, b = a.to(wide), b.to(wide)
    if a_zero is not None:
        a = a - (a_zero.to(wide).unsqueeze(-1) if a_zero.dim() == 1 and a_zero.numel() > 1 else a_zero.to(wide))
    if b_zero is not None:
        b = b - (b_zero.to(wide).unsqueeze(-2) if b_zero.dim() > 1 and b_zero.shape[-2:-1] != (1,) else b_zero.to(wide))
    y = torch.matmul(a, b)
    return y if learns else y.to(torch.int32)
