"""What two models answer beside the output that is scored: how far apart each of their other outputs is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelctl.data.samples import Array, Samples
from modelctl.errors import CheckFailed, DataError
from modelctl.graph.closeness import step_of
from modelctl.graph.session import Session

MOST_SAMPLES = 256
BATCH = 32


def apart(before: Session, after: Session, samples: Samples, scored: str | None) -> list[dict[str, Any]]:
    """A row for each output but the one called `scored`: `{output, max_error, relative_error}`, as `scores.agreement`.

    The first 256 samples are run, a batch at a time, and nothing is kept of them. Outputs that are no numbers are left
    out. DataError where shapes differ; CheckFailed where `after` has NaN or infinity and `before` has not.
    """
    names = [one.name for one in before.outputs]
    others = [name for name in names if name != (scored or names[0])]
    if not others or names != [one.name for one in after.outputs]:
        return []
    found = {name: _Apart() for name in others}
    for batch in _batches(before, after, samples.first(MOST_SAMPLES)):
        was, now = before.run(batch.inputs), after.run(batch.inputs)
        for name in others:
            found[name].add(was[name], now[name], f"{after.name}: output {name!r}")
    return [{"output": name, **one.facts()} for name, one in found.items() if one.count]


def _batches(before: Session, after: Session, samples: Samples) -> Iterator[Samples]:
    """All samples, in batches of the size that both models take; none where they take different ones."""
    fixed = {one.inputs[0].shape[0] for one in (before, after) if isinstance(one.inputs[0].shape[0], int)}
    if len(fixed) > 1:
        return iter(())
    return samples.filled_batches(int(fixed.pop())) if fixed else samples.batches(BATCH)


@dataclass
class _Apart:
    """Running figures of one output."""

    count: int = 0
    largest: float = 0.0
    squares: float = 0.0  # of the differences
    total: float = 0.0  # of the answers before
    power: float = 0.0

    def add(self, was: Array, now: Array, what: str) -> None:
        if was.shape != now.shape:
            raise DataError(f"{what}: the two models answer differently: {list(was.shape)} and {list(now.shape)}")
        if not (was.dtype.kind in "iub" or step_of(was.dtype)):
            return
        old, new = was.astype(np.float64), now.astype(np.float64)
        good = np.isfinite(old)
        if not np.isfinite(new[good]).all():
            raise CheckFailed(f"{what}: answers NaN or infinity where the model before does not")
        old = old[good]
        difference = new[good] - old
        self.count += old.size
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.squares += float((difference**2).sum())
        self.total += float(old.sum())
        self.power += float((old**2).sum())

    def facts(self) -> dict[str, float]:
        mean = self.total / self.count
        spread = math.sqrt(max(self.power / self.count - mean**2, 0.0)) or 1.0
        return {"max_error": self.largest, "relative_error": math.sqrt(self.squares / self.count) / spread}
