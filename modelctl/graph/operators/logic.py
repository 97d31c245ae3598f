"""Comparisons, logic and bits."""

import torch

from modelctl.graph.operators.node import Call, Node, operator, plain
from modelctl.graph.operators.wide import widened

plain("Equal", widened(torch.eq))
plain("Less", widened(torch.lt))
plain("LessOrEqual", widened(torch.le))
plain("Greater", widened(torch.gt))
plain("GreaterOrEqual", widened(torch.ge))
plain("And", torch.logical_and)
plain("Or", torch.logical_or)
plain("Xor", torch.logical_xor)
plain("Not", torch.logical_not)
plain("BitwiseAnd", widened(torch.bitwise_and))
plain("BitwiseOr", widened(torch.bitwise_or))
plain("BitwiseXor", widened(torch.bitwise_xor))
plain("BitwiseNot", widened(torch.bitwise_not))
plain("Where", torch.where)


@operator("BitShift")
def bit_shift(node: Node) -> Call:
    """Unsigned numbers, shifted by as many places as another tensor says."""
    left = node.choice("direction", "LEFT", "RIGHT") == "LEFT"
    return widened(torch.bitwise_left_shift if left else torch.bitwise_right_shift)
