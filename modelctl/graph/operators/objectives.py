"""Losses as operators, and the determinant."""

import torch
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, operator, plain


def _determinant(x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.det(x.float() if x.itemsize < 4 else x)  # not there in half precision
    return found.to(x.dtype)


plain("Det", _determinant)


@operator("NegativeLogLikelihoodLoss", fixed=(2,))
def negative_log_likelihood(node: Node) -> Call:
    """Of log probabilities (N, C, …) and classes (N, …), weighted by class."""
    ignored, reduction = node.integer("ignore_index", -100), node.choice("reduction", "mean", "sum", "none")

    def run(x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        return functional.nll_loss(x, target.to(torch.int64), weight, ignore_index=ignored, reduction=reduction)

    return run


@operator("SoftmaxCrossEntropyLoss", fixed=(2,))
def softmax_cross_entropy(node: Node) -> Call:
    """The same of scores, and if wanted their log probabilities."""
    loss, both = negative_log_likelihood(node), node.gives(1)

    def run(x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> object:
        log_probability = torch.log_softmax(x, 1)
        found = loss(log_probability, target, weight)
        return (found, log_probability) if both else found

    return run
