"""Learning rates over the steps of a training."""

import pytest
import torch

from modelctl.graph.schedules import optimizer_of, schedule_of
from modelctl.options import Optimizer, Schedule


def rates(kind: Schedule, steps: int, warmup: float | None = None, momentum: float = 0.9) -> list[float]:
    """The rate at each step, its largest 1."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = optimizer_of([weight], Optimizer.SGD, lr=1.0, decay=None, momentum=momentum)
    schedule = schedule_of(optimizer, kind, lr=1.0, steps=steps, warmup=warmup, momentum=momentum)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_rises_and_falls_as_its_name_says() -> None:
    assert rates(Schedule.CONSTANT, 3) == [1, 1, 1]
    assert rates(Schedule.LINEAR, 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(Schedule.COSINE, 4) == pytest.approx([1, 0.853553, 0.5, 0.1464466])
    assert rates(Schedule.CONSTANT, 4, warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    cycle = rates(Schedule.ONE_CYCLE, 10)
    assert cycle.index(max(cycle)) == 2
    assert cycle[-1] < 1e-4


@pytest.mark.parametrize("kind", list(Schedule))
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [None, 0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_every_length_and_warm_up_has_a_rate(kind: Schedule, steps: int, warmup: float | None, momentum: float) -> None:
    found = rates(kind, steps, warmup, momentum)
    assert all(0 <= one <= 1 + 1e-9 for one in found)
    assert any(one > 0 for one in found)
