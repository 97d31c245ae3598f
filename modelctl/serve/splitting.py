"""Several versions of a model behind one name: each gets its share of the requests, or sees them without being heard.

A share (`--route`) is drawn for each request, so clients and keys are not kept apart; the answer names who gave it. A
shadow (`--shadow`) is asked what the version that answers was asked; its outputs go to nobody, and how often they
disagree is counted. It costs its time, and is left out when it is behind.
"""

import random
from bisect import bisect
from collections.abc import Mapping
from functools import partial
from itertools import accumulate

import numpy as np

from modelctl.serve.jobs import Outcome, Tensors, Unread
from modelctl.serve.metrics import DISAGREED, SHADOWED
from modelctl.serve.models import Model, Models
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import Array

CLOSE = 0.01  # relative to the spread of an output: numbers that differ by less agree


class Split:
    """Draws versions of a model by their shares."""

    def __init__(self, models: Models, name: str, shares: Mapping[str, float]) -> None:
        there = models.versions(name)
        drawn = {version: share for version, share in shares.items() if version in there and share > 0}
        self.models = [models.get(name, version) for version in drawn] or [models.get(name)]
        self._below = list(accumulate(drawn.values())) or [1.0]

    def draw(self) -> Model:
        """The model for one request."""
        if len(self.models) == 1:
            return self.models[0]
        return self.models[bisect(self._below, random.random() * self._below[-1], hi=len(self._below) - 1)]


class Shadow:
    """A model that is asked what another one is asked."""

    def __init__(self, model: Model, timeout_s: float) -> None:
        self.model = model
        self._timeout_s = timeout_s

    def follow(self, feeds: Tensors | Unread) -> "Comparison | None":
        """Ask it, too; what to tell of the answer that it is compared with, if it has time."""
        comparison = Comparison(self.model)
        try:
            self.model.runner.submit(feeds, self._timeout_s, partial(comparison.told, 1))
        except Refused as refused:
            self.model.tally.failed(refused.kind)
            return None
        return comparison


class Comparison:
    """Two answers to one request, counted when both are there."""

    def __init__(self, shadow: Model) -> None:
        self._shadow = shadow
        self._outcomes: dict[int, Outcome] = {}

    def told(self, which: int, outcome: Outcome) -> None:
        """The outcome of the model that answers (0), or of its shadow (1)."""
        self._outcomes[which] = outcome
        if len(self._outcomes) == 2:
            cells = self._shadow.tally.cells
            cells[SHADOWED] += 1
            cells[DISAGREED] += not agree(self._outcomes[0], self._outcomes[1])


def agree(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes say the same: scores the same class, numbers nearly the same, all else exactly."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        return isinstance(one, Exception) and isinstance(other, Exception)
    return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)


def _alike(one: Array, other: Array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f" or not one.size:
        return bool((one == other).all())
    if one.ndim > 1 and one.shape[-1] > 1:
        return bool((one.argmax(axis=-1) == other.argmax(axis=-1)).all())
    finite = one[np.isfinite(one)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    tolerance = CLOSE * max(spread, float(np.abs(finite).max(initial=0.0)))
    return bool(np.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True))
