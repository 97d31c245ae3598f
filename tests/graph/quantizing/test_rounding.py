"""What rounding computes in a graph that learns, and which gradients it lets through."""

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from modelctl.graph.operators import OPERATORS, Node
from modelctl.graph.quantizing import rounding


def call_of(kind: str, **attributes: Any) -> Any:
    node = helper.make_node(kind, ["x"], ["y"], domain=rounding.DOMAIN, **attributes)
    return OPERATORS[rounding.DOMAIN, kind].make(Node(node, 18))


def test_a_value_is_what_quantizing_it_gives_and_passes_gradients_where_it_was_not_clipped() -> None:
    x = torch.tensor([-5.0, -1.0, 0.0, 0.04, 0.06, 24.0, 30.0], requires_grad=True)
    change = torch.tensor(0.0, requires_grad=True)
    y = call_of(rounding.ACTIVATION, began=0.1, zero=10.0)(x, change)
    assert y.tolist() == pytest.approx([-1.0, -1.0, 0.0, 0.0, 0.1, 24.0, 24.5])
    torch.autograd.backward(y.sum())
    assert x.grad is not None and change.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert change.grad.item() == pytest.approx(-1.0 - 0.04 + 0.04 + 24.5, abs=1e-4)  # clipped: y; rounded: y - x


def test_a_scale_learns_to_cover_what_is_there() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    errors = []
    for began in (0.001, 0.5):  # far too small a range, and far too large
        change = torch.tensor(0.0, requires_grad=True)
        optimizer = torch.optim.Adam([change], 0.2)
        for _ in range(100):
            y = call_of(rounding.ACTIVATION, began=began, zero=128.0)(x, change)
            loss = ((y - x) ** 2).mean()
            errors.append(loss.item())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    assert errors[0] > 0.5 and errors[100] > 1e-2
    assert errors[99] < 1e-3 and errors[-1] < 1e-3


def test_a_range_does_not_reach_beyond_the_clip_that_it_stands_for() -> None:
    rounded = call_of(rounding.ACTIVATION, began=0.1, zero=0.0, most=6.0)
    found = rounded(torch.tensor([3.0, 7.0]), torch.tensor(1.0))
    assert found[1].item() == pytest.approx(6.0)
    assert found[0].item() == pytest.approx(3.0, abs=6 / 255)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_has_as_many_levels_as_its_bits_allow_and_its_largest_number_is_exact(bits: int, axis: int) -> None:
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(bits), requires_grad=True)
    y = call_of(rounding.WEIGHT, axis=axis, limit=rounding.limit_of(bits))(w)
    torch.autograd.backward(y.sum())
    assert w.grad is not None and torch.all(w.grad == 1)
    for row, rounded in zip(w.detach().movedim(axis, 0), y.detach().movedim(axis, 0), strict=True):
        step = row.abs().max() / (2 ** (bits - 1) - 1)
        whole = (rounded / step).numpy()
        assert np.abs(whole - np.rint(whole)).max() < 1e-3
        assert np.abs(whole).max() == pytest.approx(2 ** (bits - 1) - 1)
        assert (rounded - row).abs().max() <= step / 2 * 1.001


def test_a_weight_of_zeros_stays_zero() -> None:
    y = call_of(rounding.WEIGHT, axis=0, limit=7)(torch.zeros(2, 3, requires_grad=True))
    assert torch.all(y == 0)


def test_the_share_of_a_weights_range_learns_too() -> None:
    w = torch.tensor([[1.0, 0.2, -0.3], [0.5, 0.5, 0.1]], requires_grad=True)
    share = torch.zeros(2, requires_grad=True)
    y = call_of(rounding.WEIGHT, axis=0, limit=1)(w, torch.log(torch.tensor([0.5, 1.0])) + share)
    assert y.tolist()[0] == pytest.approx([0.5, 0.0, -0.5])
    torch.autograd.backward(y.sum())
    assert w.grad is not None and w.grad.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert share.grad is not None
    assert share.grad.tolist() == pytest.approx([0.5 - 0.2 - 0.2, -0.1])
