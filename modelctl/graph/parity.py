"""The parity gate: do two ways to run a model give the same answers, at every size that they should?

Both are functions from arrays by name to arrays by name. They are run on the same fresh random inputs (several seeds,
distinct tensors), at batch sizes 1, 3 and 8 where the batch is free, at a few values of every other free dimension, and
on the user's samples where there are any. Names, order, shapes and element types must match, NaN and infinities must
stand in the same places, and numbers must be close (`graph.closeness` says how close). An output that is the same for
all samples proves nothing; it is called vacuous and refused. Answers are judged one at a time, so that large ones cost
the memory of one batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from modelctl.data.samples import Samples
from modelctl.errors import CheckFailed, DataError, UnsupportedError
from modelctl.graph.closeness import Answered, Array, Arrays, Differs, Judge, Tolerance, step_of
from modelctl.graph.signature import DTYPES, batch_dimension, free_dimensions, readings
from modelctl.manifest import TensorSpec
from modelctl.progress import Progress, silent

__all__ = ["Function", "Tolerance", "check", "draw", "find_inputs", "find_sizes"]

Function = Callable[[Arrays], Mapping[str, Array]]

BATCHES = (1, 3, 8)
SEEDS = 3
LIMIT_SAMPLES = 256
PROBED_BATCH = 3
# Sizes at which a model with free dimensions beside the batch is first tried: short sequences, then whole images.
PROBED = (8, 16, 32, 64, 224)


def draw(
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: Sequence[int],
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Array]:
    """Random inputs: normal floats (uniform from 0 to 1 for every third seed), booleans, integers.

    Integers are 0 and 1, or of the whole range that `ranges` tells of an input, both its ends among them.
    """
    random = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
        if spec.dtype not in DTYPES:
            raise UnsupportedError(f"input {spec.name!r} is {spec.dtype}, of which no samples can be drawn")
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            values = random.random(shape) if seed[-1] % 3 == 2 else random.standard_normal(shape)
            drawn[spec.name] = np.asarray(values, dtype)
        else:
            low, high = (ranges or {}).get(spec.name, (0, 1))
            numbers = np.asarray(random.integers(low, high, shape, endpoint=True))
            if numbers.size and (low, high) != (0, 1) and seed[-1] < 2:
                numbers.flat[0] = (low, high)[seed[-1]]
            drawn[spec.name] = np.asarray(numbers, dtype)
    return drawn


def find_sizes(
    reference: Function,
    inputs: Sequence[TensorSpec],
    seed: int = 0,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, int]:
    """Sizes of the free dimensions at which `reference` runs, all distinct where it lets them be.

    DataError, as `reference` raised it last, when it runs at none that are tried.
    """
    batch = batch_dimension(inputs)
    others = [name for name in free_dimensions(inputs) if name != batch]
    tried = [{name: size * (index + 1) for index, name in enumerate(others)} for size in PROBED]
    if len(others) > 1:
        tried += [dict.fromkeys(others, size) for size in PROBED]
    refusal: DataError | None = None
    for sizes in tried if others else [{}]:
        if batch is not None:
            sizes = {batch: PROBED_BATCH, **sizes}
        try:
            reference(draw(inputs, sizes, (seed, 0), ranges))
        except DataError as error:
            refusal = refusal or error
        else:
            return sizes
    assert refusal is not None
    raise refusal


def find_inputs(
    reference: Function,
    inputs: Sequence[TensorSpec],
    seed: int = 0,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[tuple[TensorSpec, ...], dict[str, int]]:
    """The first of `signature.readings` at which `reference` runs, and its `find_sizes`; DataError as there."""
    refusal: DataError | None = None
    for read in readings(inputs):
        try:
            return read, find_sizes(reference, read, seed, ranges)
        except DataError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def check(
    reference: Function,
    candidate: Function,
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    tolerance: Tolerance,
    *,
    name: str,
    seed: int = 0,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    samples: Mapping[str, Array] | None = None,
    explain: Callable[[Arrays], str | None] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Hold `candidate` (called `name` in messages) against `reference`: what was measured, or CheckFailed.

    `sizes` are those of `find_sizes`; `ranges` the numbers that integer inputs may hold; `samples`, by input name and
    [N, …], are run as well, eight at a time. `explain` is asked about inputs to which the answers differ.
    """
    trial = _Trial(reference, candidate, tuple(inputs), seed, name, ranges or {})
    judged = Judge(name, tolerance)
    planned = list(trial.settings(sizes))
    told = enumerate(planned)

    def heard(group: Iterable[tuple[int, dict[str, int]]]) -> Iterator[Answered]:
        for done, setting in group:
            progress.advance("checking parity", done, len(planned), "settings")
            yield from trial.run(setting)

    try:
        for _, group in groupby(told, lambda one: {**one[1], trial.batch: 0}):
            judged.add(heard(group))
        if samples is not None:
            judged.add(trial.run_samples(samples))
    except Differs as differs:
        reason = explain(differs.feeds) if explain is not None else None
        raise CheckFailed(differs.message + (f"; {reason}" if reason else "")) from differs
    return judged.verdict() | {"seeds": SEEDS} | trial.tried(planned)


@dataclass(frozen=True)
class _Trial:
    """Two ways to run a model, and what they are asked."""

    reference: Function
    candidate: Function
    inputs: tuple[TensorSpec, ...]
    seed: int
    name: str
    ranges: Mapping[str, tuple[int, int]]

    @property
    def batch(self) -> str | None:
        return batch_dimension(self.inputs)

    @property
    def others(self) -> list[str]:
        """The free dimensions beside the batch."""
        return [name for name in free_dimensions(self.inputs) if name != self.batch]

    def settings(self, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Every batch size, then each other free dimension at a few more values that the reference takes."""
        for size in BATCHES if self.batch is not None else (0,):
            yield {**sizes, self.batch: size} if self.batch is not None else dict(sizes)
        for dim in self.others:
            base = sizes[dim]
            taken = 0
            for size in (1, base + 1, 2 * base, max(2, base // 2 + 1)):
                setting = {**sizes, dim: size}
                try:
                    self.reference(draw(self.inputs, setting, (self.seed, 0), self.ranges))
                except DataError:
                    continue
                taken += 1
                yield setting
            if not taken:
                raise CheckFailed(
                    f"{dim} is no free dimension: the source runs at {base} only", f"write {base} in place of {dim}"
                )

    def run(self, sizes: Mapping[str, int]) -> Iterator[Answered]:
        """A few draws at these sizes."""
        label = ", ".join(f"{dim} {size}" for dim, size in sizes.items()) or "the sizes given"
        for index in range(SEEDS):
            seed = (self.seed, *sizes.values(), index)
            yield self._answered(draw(self.inputs, sizes, seed, self.ranges), label)

    def run_samples(self, samples: Mapping[str, Array]) -> Iterator[Answered]:
        """The user's samples, as many at a time as the model takes, at most `LIMIT_SAMPLES`."""
        given = Samples(samples).first(LIMIT_SAMPLES)
        fixed = next((spec.shape[0] for spec in self.inputs if spec.shape and isinstance(spec.shape[0], int)), None)
        size = fixed if self.batch is None and isinstance(fixed, int) else BATCHES[-1]
        whole = given.first(len(given) - len(given) % size or len(given))
        for start, batch in zip(range(0, len(whole), size), whole.batches(size), strict=True):
            yield self._answered(batch.inputs, f"samples {start} to {start + size - 1}")

    def tried(self, planned: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """The sizes and ranges that were gone through."""
        facts: dict[str, Any] = {"batches": []}
        if self.batch is not None:
            facts["batches"] = sorted({setting[self.batch] for setting in planned})
        if self.others:
            facts["sizes"] = {dim: sorted({setting[dim] for setting in planned}) for dim in self.others}
        if self.ranges:
            facts["ranges"] = {name: list(bounds) for name, bounds in self.ranges.items()}
        return facts

    def _answered(self, feeds: Arrays, label: str) -> Answered:
        try:
            wanted = self.reference(feeds)
        except DataError as error:
            raise CheckFailed(f"{self.name}: the source itself can't run at {label}: {error.message}") from error
        try:
            found = self.candidate(feeds)
        except DataError as error:
            what = f"{self.name}: not the same model: at {label} it can't run: {error.message}"
            raise Differs(what, feeds) from error
        trouble = _other_form(wanted, found, label)
        if trouble:
            raise Differs(f"{self.name}: {trouble}", feeds)
        return Answered(label, feeds, wanted, found)


def _other_form(wanted: Arrays, found: Arrays, label: str) -> str | None:
    """How names, order, element types, shapes, or the places of NaN and infinities differ; None if they do not."""
    if list(wanted) != list(found):
        return f"gives the outputs {', '.join(found)}, the source gives {', '.join(wanted)}"
    for key, one in wanted.items():
        other = found[key]
        where = f"not the same model: output {key!r} at {label}"
        if one.dtype != other.dtype:
            return f"{where} is {other.dtype}, the source gives {one.dtype}"
        if one.shape != other.shape:
            return f"{where} has shape {list(other.shape)}, the source gives {list(one.shape)}"
        if not step_of(one.dtype):
            continue
        for word, test in (("NaN", np.isnan), ("infinity", np.isposinf), ("minus infinity", np.isneginf)):
            if not np.array_equal(test(one), test(other)):
                return f"{where} has {word} in other places than the source"
    return None
