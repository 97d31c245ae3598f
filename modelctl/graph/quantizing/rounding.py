"""Rounding that is learned through: what storing numbers in few bits does to them, as operators of a graph that learns.

They are of a domain of their own and never reach a file: `fakes` puts them into a graph and takes them out again.
Numbers go through rounded and clipped, gradients as if they had not been rounded, and not at all where they were
clipped (the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432). Scales learn too, by the gradient of
LSQ (Esser et al. 2020, arXiv:1902.08153, equation 3): with y for x, dy/ds is (y - x)/s where x is rounded and y/s where
it is clipped. What is learned is the logarithm of how far a scale is from where it began, so that no step can make it
negative, and a step does as much to a small scale as to a large one.
"""

from typing import Any

import torch
from torch import Tensor

from modelctl.graph.operators.node import Call, Node, operator

DOMAIN = "modelctl.learning"
ACTIVATION, WEIGHT = "RoundedActivation", "RoundedWeight"
LARGEST = 255  # of an activation, stored in uint8
SMALLEST_SCALE = 1e-12  # of a channel whose weights are all zero


@operator(ACTIVATION, domain=DOMAIN, fixed=(1, 2))
def _activation(node: Node) -> Call:
    """Inputs: x, the scale that it began with, the zero point as a float, the logarithm that the scale has changed by.

    The range does not reach beyond the attribute `most`, if that is given.
    """
    most = node.number("most") if node.given("most") else None

    def call(x: Tensor, began: Tensor, zero: Tensor, change: Tensor) -> Tensor:
        found: Tensor = _Activation.apply(x, began, zero, change, most)  # type: ignore[no-untyped-call]
        return found

    return call


@operator(WEIGHT, domain=DOMAIN)
def _weight(node: Node) -> Call:
    """Inputs: w, and the logarithm of the share of its largest numbers that the range reaches to, by channel."""
    axis, limit = node.integer("axis"), node.integer("limit")

    def call(w: Tensor, share: Tensor | None = None) -> Tensor:
        found: Tensor = _Weight.apply(w, share, axis, limit)  # type: ignore[no-untyped-call]
        return found

    return call


def activation_scale(began: Tensor, zero: Tensor, change: Tensor, most: float | None) -> Tensor:
    """The scale as it is now."""
    scale = began * change.exp()
    return scale if most is None else scale.minimum(most / (LARGEST - zero))


def limit_of(bits: int) -> int:
    """The largest number of a weight in so many bits, whose range is symmetric."""
    return int(2 ** (bits - 1) - 1)


def weight_scale(w: Tensor, share: Tensor | None, axis: int, limit: int) -> Tensor:
    """The scale of each channel along `axis`: as large as the largest weight needs, or a share of that."""
    largest = w.detach().abs().amax([one for one in range(w.dim()) if one != axis])
    scale = (largest / limit).clamp_min(SMALLEST_SCALE)
    return scale if share is None else scale * share.detach().exp()


def numbers(w: Tensor, scale: Tensor, axis: int, limit: int) -> Tensor:
    """The whole numbers that are stored for a weight, as floats."""
    return torch.round(w / along(scale, axis, w.dim())).clamp_(-limit, limit)


def along(scale: Tensor, axis: int, rank: int) -> Tensor:
    """What there is one of for each channel, in a shape that goes with the weight."""
    return scale.view([-1 if one == axis else 1 for one in range(rank)])


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, began: Tensor, zero: Tensor, change: Tensor, most: float | None) -> Tensor:
        scale = activation_scale(began, zero, change, most)
        y = torch.div(x, scale).round_().add_(zero).clamp_(0, LARGEST).sub_(zero).mul_(scale)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, y, scale, zero)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, zero = ctx.saved_tensors
        inside = (x >= -(zero + 0.5) * scale) & (x <= (LARGEST + 0.5 - zero) * scale)
        passed = torch.where(inside, gradients[0], 0.0)
        change = (torch.where(inside, y - x, y) * gradients[0]).sum() if ctx.needs_input_grad[3] else None
        return passed, None, None, change, None


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, share: Tensor | None, axis: int, limit: int) -> Tensor:
        scale = weight_scale(w, share, axis, limit)
        y = numbers(w, scale, axis, limit).mul_(along(scale, axis, w.dim()))
        ctx.save_for_backward(w, y, scale)
        ctx.axis, ctx.limit = axis, limit
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        w, y, scale = ctx.saved_tensors
        inside = w.abs() <= along(scale, ctx.axis, w.dim()) * (ctx.limit + 0.5)
        passed = torch.where(inside, gradients[0], 0.0)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None
        others = [one for one in range(w.dim()) if one != ctx.axis]
        return passed, (torch.where(inside, y - w, y) * gradients[0]).sum(others), None, None
