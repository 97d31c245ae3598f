"""Normalization by statistics: of the batch, of an instance, a group, a layer, of neighbours.

Where a graph learns, batch normalization takes the batch's statistics and moves the running ones towards them, as torch
does it (the variance moved to is the unbiased one). What a node of `training_mode` gives is ONNX's, unbiased never.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, operator


@operator("BatchNormalization", fixed=(3, 4))
def _batch(node: Node) -> Call:
    epsilon, momentum = node.number("epsilon", 1e-5), node.number("momentum", 0.9)
    if node.opset < 9 and not node.integer("spatial", 1):
        return _each_feature(epsilon)
    if node.integer("training_mode") or (node.opset < 14 and node.gives(1)):
        return _batch_that_tells(epsilon, momentum)
    stored = node.constant(3) is not None and node.constant(4) is not None

    def normalized(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        learns = node.mode.training and stored
        return torch.batch_norm(
            x, scale, shift, mean, variance, learns, 1 - momentum, epsilon, torch.backends.cudnn.enabled
        )

    return normalized


def _batch_that_tells(epsilon: float, momentum: float) -> Call:
    """Batch normalization whose statistics are outputs: those given, moved towards the batch's."""

    def normalized(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        others = [0, *range(2, x.dim())]
        found, spread = x.mean(others), x.var(others, correction=0)
        y = torch.batch_norm(x, scale, shift, None, None, True, 0.0, epsilon, torch.backends.cudnn.enabled)
        moved = [
            (old * momentum + new * (1 - momentum)).to(old.dtype) for old, new in ((mean, found), (variance, spread))
        ]
        return y, *moved, found, spread  # the last two were outputs before opset 14

    return normalized


def _each_feature(epsilon: float) -> Call:
    """Batch normalization before opset 9 that keeps statistics for each place, too."""
    return lambda x, scale, shift, mean, variance: (x - mean) * torch.rsqrt(variance + epsilon) * scale + shift


@operator("InstanceNormalization")
def _instance(node: Node) -> Call:
    epsilon = node.number("epsilon", 1e-5)
    return lambda x, scale, shift: torch.group_norm(x, x.shape[1], scale, shift, epsilon)


@operator("GroupNormalization")
def _group(node: Node) -> Call:
    groups, epsilon = node.integer("num_groups"), node.number("epsilon", 1e-5)

    def normalized(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if node.opset < 21:  # a number for each group, not each channel
            repeats = x.shape[1] // groups
            scale, shift = scale.repeat_interleave(repeats), shift.repeat_interleave(repeats)
        return torch.group_norm(x, groups, scale, shift, epsilon)

    return normalized


@operator("LayerNormalization")
def _layer(node: Node) -> Call:
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)
    wide = node.dtype("stash_type") or torch.float32
    tells = node.gives(1) or node.gives(2)

    def normalized(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Any:
        sizes = x.shape[axis:]
        if not tells and scale.shape == sizes and (shift is None or shift.shape == sizes):
            return torch.layer_norm(x, sizes, scale, shift, epsilon)
        dims = list(range(axis % x.dim(), x.dim()))
        within = x.to(torch.promote_types(wide, x.dtype))
        mean = within.mean(dims, keepdim=True)
        rest = within - mean
        inverse = torch.rsqrt((rest * rest).mean(dims, keepdim=True) + epsilon)
        y = (rest * inverse).to(x.dtype) * scale
        y = y if shift is None else y + shift
        return (y, mean.to(wide), inverse.to(wide)) if tells else y

    return normalized


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def root_mean_square(node: Node) -> Call:
    """RMSNormalization; also onnxruntime's operator of the same meaning, which gives the inverse root too."""
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)
    wide = node.dtype("stash_type") or torch.float32
    tells = node.gives(1)

    def normalized(x: Tensor, scale: Tensor) -> Any:
        dims = list(range(axis % x.dim(), x.dim()))
        within = x.to(torch.promote_types(wide, x.dtype))
        inverse = torch.rsqrt((within * within).mean(dims, keepdim=True) + epsilon)
        y = (within * inverse).to(x.dtype) * scale
        return (y, inverse) if tells else y

    return normalized


@operator("LpNormalization")
def _by_length(node: Node) -> Call:
    axis, power = node.integer("axis", -1), node.integer("p", 2)

    def normalized(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, power, axis, keepdim=True)
        return x / torch.where(length == 0, 1.0, length).to(x.dtype)

    return normalized


@operator("LRN")
def _by_neighbours(node: Node) -> Call:
    size, bias = node.integer("size"), node.number("bias", 1.0)
    alpha, beta = node.number("alpha", 1e-4), node.number("beta", 0.75)

    def normalized(x: Tensor) -> Tensor:
        around = [0, 0] * (x.dim() - 2) + [(size - 1) // 2, size // 2]
        squares = functional.pad(x * x, around).unfold(1, size, 1).sum(-1)
        return x / (bias + alpha / size * squares) ** beta

    return normalized


@operator("MeanVarianceNormalization")
def _mean_variance(node: Node) -> Call:
    axes = node.integers("axes", (0, 2, 3))

    def normalized(x: Tensor) -> Tensor:
        rest = x - x.mean(axes, keepdim=True)
        return rest / ((rest * rest).mean(axes, keepdim=True).sqrt() + 1e-9)

    return normalized
