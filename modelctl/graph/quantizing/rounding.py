"""Rounding that is learned through: what storing numbers in few bits does to them, as operators of a graph that learns.

They are of a domain of their own and never reach a file: `fakes` puts them into a graph and takes them out again.
Numbers go through rounded and clipped, gradients as if they had not been rounded, and not at all where they were
clipped (the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432). Scales learn too, by the gradient of
LSQ (Esser et al. 2020, arXiv:1902.08153, equation 3): with y for x, dy/ds is (y - x)/s where x is rounded and y/s where
it is clipped. What is learned is the logarithm of how far a scale is from where it began, so that no step can make it
negative, and a step does as much to a small scale as to a large one.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelctl.graph.operators.node import Call, Node, operator

DOMAIN = "modelctl.learning"
ACTIVATION, WEIGHT = "RoundedActivation", "RoundedWeight"
LARGEST = 255  # of an activation, stored in uint8
SMALLEST_SCALE = 1e-12  # of a channel whose weights are all zero


@dataclass(frozen=True)
class Grid:
    """How a value is stored in uint8: the scale that it began with, the zero point, and how far its range may reach."""

    began: float
    zero: float
    most: float

    @classmethod
    def of(cls, node: Node) -> "Grid":
        """What the attributes of a node say."""
        return cls(node.number("began"), node.number("zero"), node.number("most", math.inf))

    def scale(self, change: Tensor) -> Tensor:
        """The scale, once its logarithm has changed by as much."""
        return (self.began * change.exp()).clamp_max(self.most / max(LARGEST - self.zero, 1.0))


@operator(ACTIVATION, domain=DOMAIN)
def _activation(node: Node) -> Call:
    """Inputs: x, and the logarithm that its scale has changed by; attributes: those of `Grid`."""
    grid = Grid.of(node)

    def call(x: Tensor, change: Tensor) -> Tensor:
        found: Tensor = _Activation.apply(x, change, grid)  # type: ignore[no-untyped-call]
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
    def forward(ctx: Any, x: Tensor, change: Tensor, grid: Grid) -> Tensor:
        scale = grid.scale(change)
        # Rounded before the zero point is added, a number is the same as after it: that is a whole one.
        y = torch.div(x, scale).round_().clamp_(-grid.zero, LARGEST - grid.zero).mul_(scale)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, y, scale)
            ctx.grid = grid
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        low, high = -(ctx.grid.zero + 0.5) * float(scale), (LARGEST + 0.5 - ctx.grid.zero) * float(scale)
        passed = torch.ops.aten.hardtanh_backward(gradients[0], x, low, high)  # where it is not clipped
        change = None
        if ctx.needs_input_grad[1]:
            change = torch.mul(gradients[0], y).addcmul_(passed, x, value=-1).sum()
        return passed, change, None


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
