"""The gradients of every operator with floats in it are right, numerically; the cases stand in `tests/gradients/`."""

from typing import Any

import pytest
import torch
from gradients import CASES, EXCEPTIONS
from gradients.case import Case
from node_tests import KNOWN

from modelctl.graph.trainable import TrainableGraph


def name(domain: str, op: str) -> str:
    return f"{domain}:{op}" if domain else op


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{name(case.domain, case.op)}-{case.opset}")
def test_gradients_are_right(case: Case) -> None:
    graph = TrainableGraph(case.model(), case.op).train(case.training)

    def run(*inputs: torch.Tensor) -> Any:
        if case.seeded:
            torch.manual_seed(0)
        flat = [one for found in graph(*inputs) for one in (found if isinstance(found, list) else [found])]
        return tuple(one for one in flat if one.dtype == torch.float64 and one.requires_grad)

    values = case.values()
    assert run(*values), "no output depends on the inputs"
    assert torch.autograd.gradcheck(run, values, check_undefined_grad=False)


def test_no_operator_is_left_without_a_check() -> None:
    checked = {name(case.domain, case.op) for case in CASES}
    claimed = {name(*key) for key in KNOWN}
    assert not checked & EXCEPTIONS.keys(), "an exception that is checked after all"
    assert not EXCEPTIONS.keys() - claimed, "an exception that is not claimed"
    assert not claimed - checked - EXCEPTIONS.keys(), "neither checked nor an exception"
