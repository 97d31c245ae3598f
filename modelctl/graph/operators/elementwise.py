"""Functions of single numbers: exponentials, trigonometry, rounding, and what asks whether a number is one."""

import torch

from modelctl.graph.operators.node import Call, Node, operator, plain

_PLAIN: dict[str, Call] = {
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Tanh": torch.tanh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Floor": torch.floor,
    "Round": torch.round,
    "IsNaN": torch.isnan,
}
for _name, _call in _PLAIN.items():
    plain(_name, _call)


@operator("IsInf")
def is_infinite(node: Node) -> Call:
    """Either infinity, or only one of them."""
    above, below = node.integer("detect_positive", 1), node.integer("detect_negative", 1)
    if above and below:
        return torch.isinf
    if above:
        return torch.isposinf
    return torch.isneginf if below else lambda x: torch.zeros_like(x, dtype=torch.bool)
