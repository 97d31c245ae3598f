"""The cases of the gradients' check again: in half precision, and on a device that is not the CPU."""

from typing import Any

import onnx
import pytest
import torch
from gradients import CASES
from gradients.case import Case

from modelctl.errors import DataError
from modelctl.graph.trainable import TrainableGraph

HALVES: dict[int, torch.dtype] = {onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.BFLOAT16: torch.bfloat16}
# Their answers' sizes depend on the numbers, which a device without memory does not have.
BY_VALUE = frozenset({"Unique", "Compress"})


def answers(case: Case, kind: int, dtype: torch.dtype) -> list[Any]:
    """What a case answers in an element type, sequences as their tensors."""
    graph = TrainableGraph(case.model(kind), case.op).train(case.training)
    torch.manual_seed(0)
    with torch.no_grad():
        found = graph(*(one.detach().to(dtype) for one in case.values()))
    return flat(found)


def flat(found: Any) -> list[torch.Tensor]:
    """The tensors of an answer, those of its sequences too."""
    return [one for value in found for one in (value if isinstance(value, list) else [value]) if one is not None]


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.opset}")
def test_half_precision_stays_near(case: Case, kind: int) -> None:
    wanted = answers(case, onnx.TensorProto.FLOAT, torch.float32)
    near = 4 * torch.finfo(HALVES[kind]).eps
    for got, answer in zip(answers(case, kind, HALVES[kind]), wanted, strict=True):
        if answer.dtype == torch.float32:
            assert got.dtype in (HALVES[kind], torch.float64)  # what Cast makes
        largest = max(1.0, answer.abs().max().item()) if answer.numel() else 1.0
        torch.testing.assert_close(got.float(), answer.float(), rtol=near, atol=near * largest)


@pytest.mark.parametrize("case", [case for case in CASES if case.op not in BY_VALUE], ids=lambda case: case.op)
def test_what_is_made_on_the_way_lies_on_the_device(case: Case) -> None:
    # "meta" has shapes and no numbers; as any device, it refuses to compute with what lies on another one.
    graph = TrainableGraph(case.model(), case.op).train(case.training).to("meta")
    try:
        found = graph(*(one.detach().to("meta") for one in case.values()))
    except DataError as error:
        assert "no data" in error.message  # reads numbers from the device, as lengths of sequences
    else:
        assert all(one.device.type == "meta" for one in flat(found))
