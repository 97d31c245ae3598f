"""Activations, softmax and dropout."""

import torch
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, operator, plain

_SELU = (1.67326319217681884765625, 1.05070102214813232421875)

plain("Relu", torch.relu)
plain("Sigmoid", torch.sigmoid)
plain("HardSwish", functional.hardswish)
plain("Softplus", functional.softplus)
plain("Softsign", functional.softsign)
plain("Mish", functional.mish)


@operator("LeakyRelu")
def leaky_relu(node: Node) -> Call:
    """A slope below zero."""
    alpha = node.number("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(_: Node) -> Call:
    """A learned slope below zero, broadcast; one number a channel is the case that torch does in one go."""

    def run(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        by_channel = slope.dim() == x.dim() - 1 > 0 and slope.shape[0] == x.shape[1] == slope.numel()
        if by_channel and x.is_floating_point():
            return functional.prelu(x, slope.reshape(-1))
        return torch.where(x < 0, x * slope, x)

    return run


@operator("Elu")
def elu(node: Node) -> Call:
    """An exponential below zero."""
    alpha = node.number("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@operator("Selu")
def selu(node: Node) -> Call:
    """An exponential below zero, scaled."""
    alpha, gamma = node.number("alpha", _SELU[0]), node.number("gamma", _SELU[1])
    return lambda x: gamma * functional.elu(x, alpha)


@operator("Celu")
def celu(node: Node) -> Call:
    """An exponential below zero whose slope is continuous."""
    alpha = node.number("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


@operator("HardSigmoid")
def hard_sigmoid(node: Node) -> Call:
    """A straight line between 0 and 1."""
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return functional.hardsigmoid
    return lambda x: torch.clamp(x * alpha + beta, 0, 1)


@operator("Gelu")
def gelu(node: Node) -> Call:
    """By the error function, or its approximation by tanh."""
    approximate = node.choice("approximate", "none", "tanh")
    return lambda x: functional.gelu(x, approximate=approximate)


@operator("Swish")
def swish(node: Node) -> Call:
    """x sigmoid(alpha x)."""
    alpha = node.number("alpha", 1.0)
    return functional.silu if alpha == 1 else lambda x: x * torch.sigmoid(alpha * x)


@operator("SwiGLU")
def swiglu(node: Node) -> Call:
    """The first input's swish times the second."""
    gate = swish(node)
    return lambda x, linear: gate(x) * linear


@operator("ThresholdedRelu")
def thresholded_relu(node: Node) -> Call:
    """Zero up to a threshold."""
    alpha = node.number("alpha", 1.0)
    return lambda x: functional.threshold(x, alpha, 0.0)


@operator("Shrink")
def shrink(node: Node) -> Call:
    """Zero around zero, and what is beyond drawn towards it."""
    bias, bound = node.number("bias"), node.number("lambd", 0.5)

    def run(x: torch.Tensor) -> torch.Tensor:
        beyond = torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, 0.0))
        return beyond.to(x.dtype)

    return run


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: Node) -> Call:
    """Along one axis; up to opset 12, over all dimensions from that axis on."""
    call = _SOFTMAXES[node.proto.op_type]
    axis = node.integer("axis", -1 if node.opset >= 13 else 1)
    if node.opset >= 13 or axis == -1:
        return lambda x: call(x, axis)
    return lambda x: call(x.flatten(axis), -1).reshape(x.shape)


def _hardmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


_SOFTMAXES: dict[str, Call] = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax, "Hardmax": _hardmax}


@operator("Dropout", host=(1, 2))
def dropout(node: Node) -> Call:
    """Drops while the graph learns, or where the graph itself says that it does."""
    mode, masked = node.mode, node.gives(1)
    mask_type = torch.bool if node.opset >= 10 else None
    fixed = node.number("ratio", 0.5)

    def run(x: torch.Tensor, ratio: torch.Tensor | None = None, training: torch.Tensor | None = None) -> object:
        share = fixed if ratio is None else float(ratio)
        if share and (mode.training or (training is not None and bool(training))):
            kept = functional.dropout(torch.ones_like(x), share)
            return (x * kept, (kept != 0).to(mask_type or x.dtype)) if masked else x * kept
        return (x, torch.ones_like(x, dtype=mask_type)) if masked else x

    return run
