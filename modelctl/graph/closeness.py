"""How close two answers are, and how close they must be.

A number may be off by

    atol + rtol · spread + 2 ulp(largest)

where `spread` is the root mean square over an output's elements of their standard deviation over samples, and `largest`
the largest number in it. Integers and booleans must be equal.

Answers are looked at one at a time and let go: what is kept of an output are running figures of each of its elements
(the mean and the sum of squares after Welford, "Note on a method for calculating corrected sums of squares", 1962).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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

    def allowed(self, step: float, spread: float, largest: float) -> float:
        """By how much a number may be off, of a type with that step (see `step_of`); 0 for integers and booleans."""
        return self.atol + max(self.rtol, 4 * step) * spread + 2 * step * largest if step else 0.0


class Differs(CheckFailed):
    """Two answers are not the same; `feeds` is what both were asked."""

    def __init__(self, message: str, feeds: Arrays) -> None:
        super().__init__(message)
        self.feeds = feeds


@dataclass(frozen=True)
class Answered:
    """What both functions answered to the same inputs; `label` tells the setting of the sizes, of one or more draws."""

    label: str
    feeds: Arrays
    reference: Arrays
    candidate: Arrays


@dataclass
class _Seen:
    """What has been seen of one output, over all groups."""

    difference: float = 0.0
    allowed: float = 0.0
    varies: bool = False
    finite: bool = False
    agreed: int = 0
    answers: int = 0


class Judge:
    """Compares numbers, group by group, and gives the verdict at the end."""

    def __init__(self, name: str, tolerance: Tolerance) -> None:
        self.name = name
        self.tolerance = tolerance
        self.seen: dict[str, _Seen] = {}
        self.samples = 0

    def add(self, answers: Iterable[Answered]) -> None:
        """A group: answers at the same sizes, the batch aside, by setting; Differs when a number is too far off."""
        spreads: dict[str, _Spread] = {}
        apart: dict[str, list[tuple[float, Answered]]] = {}
        for one in answers:
            asked = Answered(one.label, one.feeds, {}, {})  # the answers themselves are not kept
            for key, wanted in one.reference.items():
                rows, other = (_rows(array, one.feeds) for array in (wanted, one.candidate[key]))
                spreads.setdefault(key, _Spread(step_of(wanted.dtype))).add(rows, one.label)
                apart.setdefault(key, []).append((_apart(rows, other), asked))
                self._count_agreed(self.seen.setdefault(key, _Seen()), wanted, one.candidate[key])
            self.samples += max((len(array) for array in one.feeds.values() if array.ndim), default=1)
        for key, spread in spreads.items():
            self._judge(key, spread, apart[key])

    def _judge(self, key: str, spread: "_Spread", apart: list[tuple[float, Answered]]) -> None:
        seen = self.seen[key]
        seen.finite |= spread.finite
        seen.varies |= spread.varies
        allowed = self.tolerance.allowed(spread.step, spread.deviation, spread.largest)
        for difference, asked in apart:
            if difference > allowed:
                raise Differs(
                    f"{self.name}: not the same model: output {key!r} at {asked.label} differs by {difference:.3g}, "
                    f"allowed is {allowed:.3g}",
                    asked.feeds,
                )
            if difference >= seen.difference:
                seen.difference, seen.allowed = difference, allowed

    def _count_agreed(self, seen: _Seen, wanted: Array, found: Array) -> None:
        if wanted.size and step_of(wanted.dtype) and wanted.ndim == 2 and wanted.shape[1] > 1:
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


@dataclass
class _Moments:
    """Running figures of samples of one shape, element by element."""

    count: int
    mean: Array
    squares: Array  # the sum of the squares of the distances from the mean
    least: Array
    most: Array

    @classmethod
    def of(cls, first: Array) -> "_Moments":
        return cls(1, first.copy(), np.zeros_like(first), first.copy(), first.copy())

    def add(self, row: Array) -> None:
        """One more sample (Welford)."""
        self.count += 1
        delta = row - self.mean
        self.mean += delta / self.count
        self.squares += delta * (row - self.mean)
        np.minimum(self.least, row, out=self.least)
        np.maximum(self.most, row, out=self.most)

    @property
    def apart(self) -> float:
        """By how much an element differs from sample to sample at most."""
        return float((self.most - self.least).max()) if self.mean.size else 0.0


@dataclass
class _Whole:
    """Running figures of all numbers together, whatever their places."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, row: Array) -> None:
        """The numbers of one more sample, joined as in Chan, Golub, LeVeque (1979)."""
        if not row.size:
            return
        count, mean = self.count + row.size, float(row.mean())
        delta = mean - self.mean
        self.squares += float(((row - mean) ** 2).sum()) + delta**2 * self.count * row.size / count
        self.mean += delta * row.size / count
        self.count = count
        self.least, self.most = min(self.least, float(row.min())), max(self.most, float(row.max()))


@dataclass
class _Spread:
    """How far one output's numbers lie apart in a group, gathered draw by draw; what is not finite counts as 0."""

    step: float
    finite: bool = False
    whole: _Whole = field(default_factory=_Whole)
    shapes: dict[tuple[int, ...], _Moments] = field(default_factory=dict)
    first: tuple[str, Array] | None = None  # of the draws of the setting at hand
    between_draws: float | None = None  # by how much draws of one setting differ at most

    def add(self, rows: Array, label: str) -> None:
        """One draw's answer, as [samples, …]."""
        self.finite |= not rows.size
        for row in rows:
            values = np.asarray(row, np.float64)
            good = np.isfinite(values)
            self.finite |= bool(good.any())
            values = np.where(good, values, 0.0)
            self.whole.add(values)
            if values.shape in self.shapes:
                self.shapes[values.shape].add(values)
            else:
                self.shapes[values.shape] = _Moments.of(values)
        if self.first is None or self.first[0] != label:
            self.first = (label, rows)
        elif self.first[1].shape == rows.shape:
            self.between_draws = max(self.between_draws or 0.0, _apart(self.first[1], rows))

    @property
    def largest(self) -> float:
        return max(abs(self.whole.least), abs(self.whole.most)) if self.whole.count else 0.0

    @property
    def deviation(self) -> float:
        """The root mean square of the elements' standard deviations, or that of all numbers where shapes differ."""
        if len(self.shapes) != 1:
            return math.sqrt(self.whole.squares / self.whole.count) if self.whole.count else 0.0
        (only,) = self.shapes.values()
        return math.sqrt(float(only.squares.mean()) / only.count) if only.squares.size else 0.0

    @property
    def varies(self) -> bool:
        """Whether samples differ by more than rounding."""
        if len(self.shapes) == 1:
            (only,) = self.shapes.values()
            apart = only.apart
        elif self.between_draws is not None:
            # Samples lie along another axis, or there are more or fewer elements from one size to the next.
            apart = self.between_draws
        else:
            apart = self.whole.most - self.whole.least if self.whole.count else 0.0
        return apart > 4 * self.step * self.largest


def _rows(answer: Array, feeds: Arrays) -> Array:
    """An answer with samples along the first axis: as it is if there is one a sample, else as a single one."""
    counts = {len(array) for array in feeds.values() if array.ndim}
    return answer if answer.ndim and len(answer) in counts else answer[np.newaxis]


def _apart(wanted: Array, found: Array) -> float:
    """The largest difference between two answers of one shape where both are finite; integers that differ, by 1."""
    largest = 0.0
    for one, other in zip(wanted, found, strict=True):
        if not one.size:
            continue
        left, right = np.asarray(one, np.float64), np.asarray(other, np.float64)
        good = np.isfinite(left) & np.isfinite(right)
        apart = np.subtract(left, right, where=good, out=np.zeros(left.shape))
        largest = max(largest, float(np.abs(apart).max()))
    if not step_of(wanted.dtype) and not np.array_equal(wanted, found):
        largest = max(largest, 1.0)  # large integers that are one as floats
    return largest
