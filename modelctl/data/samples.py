"""Samples in memory: arrays by the name of the model's input, labels beside them, the first axis counting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from modelctl.errors import DataError
from modelctl.manifest import TensorSpec

Array = np.ndarray[Any, Any]
LABELS = "y"


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs by name, each [N, …], and their labels: int64 classes [N], float targets [N, …], or None.

    `columns` are what else is known of each sample, by name: strings, integers or booleans [N].
    """

    inputs: dict[str, Array]
    labels: Array | None = None
    columns: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def pick(self, rows: Any) -> "Samples":
        """The samples at `rows`: a slice, or an array of indices."""
        labels = None if self.labels is None else self.labels[rows]
        inputs, columns = ({name: array[rows] for name, array in held.items()} for held in (self.inputs, self.columns))
        return Samples(inputs, labels, columns)

    def first(self, count: int | None) -> "Samples":
        """The first `count` of them; all if None or if there are no more."""
        return self if count is None or count >= len(self) else self.pick(slice(count))

    def batches(self, size: int) -> Iterator["Samples"]:
        """All samples in order, `size` at a time, the last batch as large as what is left."""
        for start in range(0, len(self), size):
            yield self.pick(slice(start, start + size))

    def filled_batches(self, size: int) -> Iterator["Samples"]:
        """All samples in order, `size` at a time, the last batch filled up with the first samples again."""
        for start in range(0, len(self), size):
            yield self.pick(np.arange(start, start + size) % len(self))

    def take(self, count: int, seed: int) -> "Samples":
        """`count` of them drawn by `seed` without repetition; all, in order, if there are no more."""
        if count >= len(self):
            return self
        return self.pick(np.random.default_rng(seed).permutation(len(self))[:count])

    def shares(self, seed: int, *parts: float) -> tuple["Samples", ...]:
        """These samples dealt out by `seed`: what remains first, then each of `parts`, at least one sample of each."""
        counts = [max(1, round(share * len(self))) for share in parts]
        order = np.random.default_rng(seed).permutation(len(self))
        cuts = np.cumsum([len(self) - sum(counts), *counts])[:-1]
        return tuple(self.pick(rows) for rows in np.split(order, cuts))


def checked(found: Samples, inputs: Sequence[TensorSpec], where: str) -> Samples:
    """`found`, called `where`, cast to what the model takes; DataError says what was expected and what was found."""
    labels = None if found.labels is None else _labels(found.labels, where)
    fitted = {spec.name: _fitted(found.inputs[spec.name], spec, where) for spec in inputs}
    return Samples(fitted, labels, found.columns)


def _fitted(array: Array, spec: TensorSpec, where: str) -> Array:
    wanted = _dtype(spec, where)
    rest = spec.shape[1:]
    fits = array.ndim == len(spec.shape) and all(
        isinstance(size, str) or size == real for size, real in zip(rest, array.shape[1:], strict=True)
    )
    if not spec.shape or not fits or _kind(array.dtype) != _kind(wanted):
        expected = (
            f"{spec.dtype}[{','.join(map(str, ('N', *rest)))}]" if spec.shape else f"{spec.dtype}[], no batch axis"
        )
        got = f"{array.dtype}[{','.join(map(str, ('N', *array.shape[1:])))}]"
        raise DataError(f"{where}: input {spec.name!r}: expected {expected}, found {got}")
    if _kind(wanted) == "integer" and array.size and not np.can_cast(array.dtype, wanted):
        bounds = np.iinfo(wanted)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise DataError(f"{where}: input {spec.name!r}: holds numbers that {spec.dtype} can't hold")
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=wanted)
    if _kind(wanted) == "float" and not np.isfinite(cast).all():
        raise DataError(f"{where}: input {spec.name!r}: holds NaN, infinity or numbers that {spec.dtype} can't hold")
    return cast


def _dtype(spec: TensorSpec, where: str) -> np.dtype[Any]:
    try:
        wanted = np.dtype(getattr(ml_dtypes, spec.dtype, spec.dtype))
    except TypeError as error:
        raise DataError(
            f"{where}: input {spec.name!r}: the model takes {spec.dtype}, which is not read here"
        ) from error
    if _kind(wanted) == "other":
        raise DataError(f"{where}: input {spec.name!r}: the model takes {spec.dtype}, which is not read here")
    return wanted


def _kind(dtype: np.dtype[Any]) -> str:
    """What may be cast into one another: floats, integers, booleans."""
    if dtype.kind == "f" or dtype == ml_dtypes.bfloat16:
        return "float"
    return {"i": "integer", "u": "integer", "b": "boolean"}.get(dtype.kind, "other")


def _labels(labels: Array, where: str) -> Array:
    """Classes as int64 [N], targets as float64 [N, …]."""
    kind = _kind(labels.dtype)
    if kind == "float":
        if not np.isfinite(labels).all():
            raise DataError(f"{where}: labels {LABELS!r}: hold NaN or infinity")
        return labels.astype(np.float64)
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if kind == "other" or flat.ndim != 1:
        got = f"{labels.dtype}[{','.join(map(str, ('N', *labels.shape[1:])))}]"
        raise DataError(f"{where}: labels {LABELS!r}: expected classes int64[N] or targets float[N,…], found {got}")
    if flat.size and flat.dtype.kind == "u" and flat.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where}: labels {LABELS!r}: hold numbers that int64 can't hold")
    return flat.astype(np.int64)
