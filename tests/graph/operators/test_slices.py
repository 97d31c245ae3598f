"""Slices to the end of an axis, however that is spelled."""

import pytest
import torch
from onnx import helper

from modelctl.graph.operators import OPERATORS, Node


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1])
def test_the_end_of_an_axis_is_no_cause_for_a_warning(end: int) -> None:
    constants = {"starts": torch.tensor([1]), "ends": torch.tensor([end]), "axes": torch.tensor([0])}
    node = Node(helper.make_node("Slice", ["x", *constants], ["y"]), 17, constants=constants)
    assert OPERATORS["", "Slice"].make(node)(torch.arange(4)).tolist() == [1, 2, 3]
