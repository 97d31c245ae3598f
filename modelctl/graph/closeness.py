"""How close two answers are, and how close they must be.

A number may be off by

    atol + rtol · spread + 2 ulp(largest)

where `spread` is the root mean square over an output's elements of their standard deviation over samples, and `largest`
the largest number in it. Integers and booleans must be equal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from modelctl.errors import CheckFailed

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far apart two answers may be: relative to the spread of the output, and absolute."""

    rtol: float = 1e-4
    atol: float = 1e-6
    allow_vacuous: bool = False


@dataclass
class Setting:
    """One setting of the sizes: what both functions answered there, draw after draw."""

    label: str
    feeds: list[Arrays]
    reference: list[Mapping[str, Array]]
    candidate: list[Mapping[str, Array]]


@dataclass
class _Seen:
    """What has been seen of one output."""

    difference: float = 0.0
    allowed: float = 0.0
    varies: bool = False
    finite: bool = False
    agreed: int = 0
    answers: int = 0


class Judge:
    """Compares numbers, setting by setting, and gives the verdict at the end."""

    def __init__(self, name: str, tolerance: Tolerance) -> None:
        self.name = name
        self.tolerance = tolerance
        self.seen: dict[str, _Seen] = {}
        self.samples = 0

    def add(self, settings: Sequence[Setting]) -> None:
        """Settings of the same sizes, the batch aside; CheckFailed when a number is too far off."""
        for key in settings[0].reference[0]:
            seen = self.seen.setdefault(key, _Seen())
            allowed = self._allowed([_draws(key, one) for one in settings], seen)
            for one in settings:
                for wanted, found in zip(one.reference, one.candidate, strict=True):
                    self._compare(key, wanted[key], found[key], allowed, one.label, seen)
        self.samples += sum(_count(feeds) for one in settings for feeds in one.feeds)

    def _allowed(self, draws: list[list[Array]], seen: _Seen) -> float:
        """How far off an output may be; and note whether it varies and whether there is a number in it."""
        rows = [row for setting in draws for row in setting]
        step = step_of(rows[0].dtype)
        values, apart = _spread_out(draws)
        good = np.isfinite(values)
        seen.finite |= bool(good.any()) or not values.size
        if not good.any():
            return 0.0
        values = np.where(good, values, 0.0)
        largest = float(np.abs(values).max())
        # What differs by no more than rounding does not vary.
        seen.varies |= apart > 4 * step * largest
        if not step:
            return 0.0
        spread = float(np.sqrt(values.var(axis=0).mean()))
        return self.tolerance.atol + max(self.tolerance.rtol, 4 * step) * spread + 2 * step * largest

    def _compare(self, key: str, wanted: Array, found: Array, allowed: float, label: str, seen: _Seen) -> None:
        if not wanted.size:
            return
        good = np.isfinite(wanted)
        apart = np.abs(wanted.astype(np.float64) - found.astype(np.float64), where=good, out=np.zeros(wanted.shape))
        difference = float(apart.max())
        if not step_of(wanted.dtype) and not np.array_equal(wanted, found):
            difference = max(difference, 1.0)  # large integers that are one as floats
        if difference > allowed:
            raise CheckFailed(
                f"{self.name}: not the same model: output {key!r} at {label} differs by {difference:.3g}, "
                f"allowed is {allowed:.3g}"
            )
        if difference >= seen.difference:
            seen.difference, seen.allowed = difference, allowed
        if step_of(wanted.dtype) and wanted.ndim == 2 and wanted.shape[1] > 1:
            seen.agreed += int((wanted.argmax(1) == found.argmax(1)).sum())
            seen.answers += len(wanted)

    def verdict(self) -> dict[str, Any]:
        """What was measured; CheckFailed when an output held no number, or proves nothing."""
        for key, seen in self.seen.items():
            if not seen.finite:
                raise CheckFailed(f"{self.name}: output {key!r} is never a number, on any input: NaN or infinity")
        vacuous = [key for key, seen in self.seen.items() if not seen.varies]
        if vacuous and not self.tolerance.allow_vacuous:
            raise CheckFailed(
                f"{self.name}: output {vacuous[0]!r} does not depend on the input, so that equality proves nothing",
                "add --data samples.npz, or --allow-vacuous",
            )
        worst = max(self.seen.values(), key=lambda seen: seen.difference / (seen.allowed or 1.0))
        facts: dict[str, Any] = {
            "max_difference": worst.difference,
            "allowed": worst.allowed,
            "samples": self.samples,
        }
        classes = [seen for seen in self.seen.values() if seen.answers]
        if classes:
            facts["top1_agreement"] = sum(one.agreed for one in classes) / sum(one.answers for one in classes)
        if vacuous:
            facts["vacuous"] = vacuous
        return facts


def step_of(dtype: np.dtype[Any]) -> float:
    """The step from 1 to the next number of a float type; 0 for integers and booleans."""
    finfo: Any = ml_dtypes.finfo
    return float(finfo(dtype).eps) if dtype.kind == "f" or dtype == ml_dtypes.bfloat16 else 0.0


def _count(feeds: Arrays) -> int:
    return max((len(array) for array in feeds.values() if array.ndim), default=1)


def _draws(key: str, setting: Setting) -> list[Array]:
    """An output's answers with samples along the first axis: as they are if there is one a sample, else as one each."""
    found = []
    for answer, feeds in zip(setting.reference, setting.feeds, strict=True):
        counts = {len(array) for array in feeds.values() if array.ndim}
        one = answer[key]
        found.append(one if one.ndim and len(one) in counts else one[np.newaxis])
    return found


def _spread_out(draws: list[list[Array]]) -> tuple[Array, float]:
    """All answers as [samples, elements], and by how much an element differs from sample to sample at most."""
    rows = [row for setting in draws for row in setting]
    if len({row.shape[1:] for row in rows}) == 1:
        values = np.concatenate([row.reshape(len(row), math.prod(row.shape[1:])) for row in rows]).astype(np.float64)
        return values, _apart(values)
    # Samples lie along another axis, or there are more or fewer elements from one size to the next.
    values = np.concatenate([row.reshape(-1, 1) for row in rows]).astype(np.float64)
    alike = [np.stack(setting).astype(np.float64) for setting in draws if len({row.shape for row in setting}) == 1]
    return values, max((_apart(one) for one in alike if len(one) > 1), default=_apart(values))


def _apart(values: Array) -> float:
    if not values.size:
        return 0.0
    return float(np.ptp(np.where(np.isfinite(values), values, 0.0), axis=0).max())
