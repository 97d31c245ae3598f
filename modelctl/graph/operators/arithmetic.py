"""Arithmetic: sums, products, powers, remainders, extremes of several tensors."""

import functools
import operator as python

import torch

from modelctl.graph.operators.node import Call, Node, operator, plain
from modelctl.graph.operators.wide import widened

plain("Add", widened(torch.add))
plain("Sub", widened(torch.sub))
plain("Mul", widened(torch.mul))
plain("Neg", torch.neg)
plain("Abs", widened(torch.abs))
plain("Sign", widened(torch.sign))
plain("Reciprocal", torch.reciprocal)


def _quotient(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if one.is_floating_point():
        return torch.div(one, other)
    return torch.div(one, other, rounding_mode="trunc")


plain("Div", widened(_quotient))


@operator("Mod")
def mod(node: Node) -> Call:
    """The remainder with the sign of the divisor, or with `fmod` of the dividend."""
    return widened(torch.fmod if node.integer("fmod") else torch.remainder)


@operator("Pow")
def power(node: Node) -> Call:
    """A power is of the type of its base."""
    held = node.constant(1)
    if held is not None and held.dim() == 0:
        exponent = held.item()
        return lambda x, _: torch.pow(x, exponent).to(x.dtype)
    return widened(lambda x, y: torch.pow(x, y).to(x.dtype))


_PAIRS: dict[str, Call] = {"Sum": torch.add, "Min": torch.minimum, "Max": torch.maximum}


@operator("Sum", "Min", "Max", "Mean")
def over_several(node: Node) -> Call:
    """Any number of tensors, broadcast against each other."""
    if node.inputs == 1:
        return lambda x: x
    if node.proto.op_type == "Mean":
        return lambda *inputs: functools.reduce(python.add, inputs) / len(inputs)
    pair = widened(_PAIRS[node.proto.op_type])
    if node.inputs == 2:
        return pair
    return lambda *inputs: functools.reduce(pair, inputs)


@operator("Clip", host=(1, 2))
def clip(node: Node) -> Call:
    """Bounds were attributes up to opset 10."""
    if node.opset < 11:
        low = node.number("min") if node.given("min") else None
        high = node.number("max") if node.given("max") else None
        return _clamped(low, high)
    bounds = [node.constant(place) for place in (1, 2)]
    if all(held is not None or not node.has(place) for place, held in enumerate(bounds, 1)):
        return _clamped(*(None if held is None else held.item() for held in bounds))

    def run(x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None) -> torch.Tensor:
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    return widened(run)


def _clamped(low: float | None, high: float | None) -> Call:
    if low is None and high is None:
        return lambda x, *_: x
    return lambda x, *_: torch.clamp(x, low, high)
