"""The parity gate: do two ways to run a model give the same answers, at every size that they should?

Both are functions from arrays by name to arrays by name. They are run on the same fresh random inputs (several seeds,
distinct tensors), at batch sizes 1, 3 and 8 where the batch is free, at a few values of every other free dimension, and
on the user's samples where there are any. Names, order, shapes and element types must match, NaN and infinities must
stand in the same places, and numbers must be close (`graph.closeness` says how close). An output that is the same for
all samples proves nothing; it is called vacuous and refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modelctl.errors import CheckFailed, DataError, UnsupportedError
from modelctl.graph.closeness import Array, Arrays, Judge, Setting, Tolerance, step_of
from modelctl.graph.signature import DTYPES, batch_dimension, free_dimensions
from modelctl.manifest import TensorSpec
from modelctl.progress import Progress, silent

__all__ = ["Function", "Tolerance", "check", "draw", "find_sizes"]

Function = Callable[[Arrays], Mapping[str, Array]]

BATCHES = (1, 3, 8)
SEEDS = 3
LIMIT_SAMPLES = 256
PROBED_BATCH = 3
# Sizes at which a model with free dimensions beside the batch is first tried: short sequences, then whole images.
PROBED = (8, 16, 32, 64, 224)


def draw(inputs: Sequence[TensorSpec], sizes: Mapping[str, int], seed: Sequence[int]) -> dict[str, Array]:
    """Random inputs: normal floats (uniform from 0 to 1 for every third seed), integers and booleans of 0 and 1."""
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
            drawn[spec.name] = np.asarray(random.integers(0, 2, shape), dtype)
    return drawn


def find_sizes(reference: Function, inputs: Sequence[TensorSpec], seed: int = 0) -> dict[str, int]:
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
            reference(draw(inputs, sizes, (seed, 0)))
        except DataError as error:
            refusal = refusal or error
        else:
            return sizes
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
    samples: Mapping[str, Array] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Hold `candidate` (called `name` in messages) against `reference`: what was measured, or CheckFailed.

    `sizes` are those of `find_sizes`; `samples`, by input name and [N, …], are run as well, eight at a time.
    """
    batch = batch_dimension(inputs)
    groups: dict[tuple[tuple[str, int], ...], list[Setting]] = {}
    planned = list(_settings(reference, inputs, sizes, batch, seed))
    for done, setting in enumerate(planned):
        progress.advance("checking parity", done, len(planned), "settings")
        group = tuple((dim, size) for dim, size in setting.items() if dim != batch)
        groups.setdefault(group, []).append(_run(reference, candidate, inputs, setting, seed, name))
    if samples is not None:
        groups[(("data", 0),)] = list(_run_samples(reference, candidate, samples, inputs, name))
    judged = Judge(name, tolerance)
    for settings in groups.values():
        judged.add(settings)
    facts = judged.verdict() | {"seeds": SEEDS}
    facts["batches"] = sorted({setting[batch] for setting in planned}) if batch is not None else []
    others = [dim for dim in free_dimensions(inputs) if dim != batch]
    if others:
        facts["sizes"] = {dim: sorted({setting[dim] for setting in planned}) for dim in others}
    return facts


def _settings(
    reference: Function, inputs: Sequence[TensorSpec], sizes: Mapping[str, int], batch: str | None, seed: int
) -> Iterator[dict[str, int]]:
    """Every batch size, then each other free dimension at a few more values that the reference takes."""
    for size in BATCHES if batch is not None else (0,):
        yield {**sizes, batch: size} if batch is not None else dict(sizes)
    for dim in (one for one in free_dimensions(inputs) if one != batch):
        base = sizes[dim]
        taken = 0
        for size in (1, base + 1, 2 * base, max(2, base // 2 + 1)):
            setting = {**sizes, dim: size}
            try:
                reference(draw(inputs, setting, (seed, 0)))
            except DataError:
                continue
            taken += 1
            yield setting
        if not taken:
            raise CheckFailed(
                f"{dim} is no free dimension: the source runs at {base} only", f"write {base} in place of {dim}"
            )


def _run(
    reference: Function,
    candidate: Function,
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int,
    name: str,
) -> Setting:
    label = ", ".join(f"{dim} {size}" for dim, size in sizes.items()) or "the sizes given"
    feeds: list[Arrays] = [draw(inputs, sizes, (seed, *sizes.values(), index)) for index in range(SEEDS)]
    return _answers(reference, candidate, feeds, label, name)


def _run_samples(
    reference: Function, candidate: Function, samples: Mapping[str, Array], inputs: Sequence[TensorSpec], name: str
) -> Iterator[Setting]:
    """The user's samples, as many at a time as the model takes, at most `LIMIT_SAMPLES`."""
    count = min(LIMIT_SAMPLES, *(len(array) for array in samples.values()))
    fixed = next((spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)), None)
    size = fixed if batch_dimension(inputs) is None and isinstance(fixed, int) else BATCHES[-1]
    for start in range(0, count - count % size or count, size):
        feeds = [{key: array[start : start + size] for key, array in samples.items()}]
        yield _answers(reference, candidate, list(feeds), f"samples {start} to {start + size - 1}", name)


def _answers(reference: Function, candidate: Function, feeds: Sequence[Arrays], label: str, name: str) -> Setting:
    try:
        wanted = [reference(feed) for feed in feeds]
    except DataError as error:
        raise CheckFailed(f"{name}: the source itself can't run at {label}: {error.message}") from error
    try:
        found = [candidate(feed) for feed in feeds]
    except DataError as error:
        raise CheckFailed(f"{name}: not the same model: at {label} it can't run: {error.message}") from error
    for one, other in zip(wanted, found, strict=True):
        _check_form(one, other, label, name)
    return Setting(label, list(feeds), wanted, found)


def _check_form(wanted: Mapping[str, Array], found: Mapping[str, Array], label: str, name: str) -> None:
    """Names, order, element types, shapes, and where NaN and infinities stand."""
    if list(wanted) != list(found):
        raise CheckFailed(f"{name}: gives the outputs {', '.join(found)}, the source gives {', '.join(wanted)}")
    for key, one in wanted.items():
        other = found[key]
        where = f"{name}: not the same model: output {key!r} at {label}"
        if one.dtype != other.dtype:
            raise CheckFailed(f"{where} is {other.dtype}, the source gives {one.dtype}")
        if one.shape != other.shape:
            raise CheckFailed(f"{where} has shape {list(other.shape)}, the source gives {list(one.shape)}")
        if not step_of(one.dtype):
            continue
        for word, test in (("NaN", np.isnan), ("infinity", np.isposinf), ("minus infinity", np.isneginf)):
            if not np.array_equal(test(one), test(other)):
                raise CheckFailed(f"{where} has {word} in other places than the source")
