"""Samples: arrays by the name of the model's input, labels beside them, the first axis counting.

What is little is held in memory. Inputs that are more lie in files (`rows.py`): whoever goes through `batches`,
`first`, `take` or `pick` reads what these give and no more; whoever takes an array of `inputs` by its name reads all.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from modelctl.data.rows import Array as Array
from modelctl.data.rows import Rows, Source
from modelctl.errors import DataError
from modelctl.manifest import TensorSpec

LABELS = "y"


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs by name, each [N, …], and their labels: int64 classes [N], float targets [N, …], or None.

    `columns` are what else is known of each sample, by name: strings, integers or booleans [N].
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    columns: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.inputs.count if isinstance(self.inputs, Rows) else len(next(iter(self.inputs.values())))

    @property
    def is_held(self) -> bool:
        """Whether all of it is in memory."""
        return not isinstance(self.inputs, Rows)

    def pick(self, rows: Any) -> "Samples":
        """The samples at `rows`: a slice, or an array of indices."""
        labels = None if self.labels is None else self.labels[rows]
        held = self.inputs
        inputs = held.pick(rows) if isinstance(held, Rows) else {name: array[rows] for name, array in held.items()}
        return Samples(inputs, labels, {name: array[rows] for name, array in self.columns.items()})

    def first(self, count: int | None) -> "Samples":
        """The first `count` of them; all if None or if there are no more."""
        return self if count is None or count >= len(self) else self.pick(slice(count))

    def batches(self, size: int, start: int = 0) -> Iterator["Samples"]:
        """All samples from `start` on, in order, `size` at a time, the last batch as large as what is left."""
        for first in range(start, len(self), size):
            yield self.pick(slice(first, first + size))._in_memory()

    def filled_batches(self, size: int, start: int = 0) -> Iterator["Samples"]:
        """As `batches`, the last batch filled up with the first samples again."""
        for first in range(start, len(self), size):
            yield self.pick(np.arange(first, first + size) % len(self))._in_memory()

    def take(self, count: int, seed: int, start: int = 0) -> "Samples":
        """`count` of them drawn by `seed` without repetition, after `start` that were drawn before; all if no more.

        All, from the first on, are in their own order. What is drawn after `start` is what a larger draw adds.
        """
        if not start and count >= len(self):
            return self
        return self.pick(np.random.default_rng(seed).permutation(len(self))[start : start + count])

    def shares(self, seed: int, *parts: float) -> tuple["Samples", ...]:
        """These samples dealt out by `seed`: what remains first, then each of `parts`, at least one sample of each."""
        counts = [max(1, round(share * len(self))) for share in parts]
        order = np.random.default_rng(seed).permutation(len(self))
        cuts = np.cumsum([len(self) - sum(counts), *counts])[:-1]
        return tuple(self.pick(rows) for rows in np.split(order, cuts))

    def changed(self, change: Callable[[Array], Array], dtype: np.dtype[Any] | None = None) -> "Samples":
        """The samples with what `change` makes of each input: rows of the same shape, of `dtype` if that is told."""
        held = self.inputs
        if isinstance(held, Rows):
            return replace(
                self, inputs=held.through({name: (change, dtype or held.sources[name].dtype) for name in held})
            )
        return replace(self, inputs={name: change(array) for name, array in held.items()})

    def _in_memory(self) -> "Samples":
        return self if self.is_held else Samples(dict(self.inputs), self.labels, self.columns)


def checked(found: Samples, inputs: Sequence[TensorSpec], where: str) -> Samples:
    """`found`, called `where`, cast to what the model takes; DataError says what was expected and what was found.

    Shapes and types are checked at once. Numbers are too where they are held in memory; else as they are read.
    """
    labels = None if found.labels is None else _labels(found.labels, where)
    held = found.inputs
    sources: Mapping[str, Source | Array] = held.sources if isinstance(held, Rows) else held
    wanted = {spec.name: _fitting(sources[spec.name], spec, where) for spec in inputs}
    casts = {
        name: (partial(_cast, wanted=dtype, what=f"{where}: input {name!r}"), dtype) for name, dtype in wanted.items()
    }
    if isinstance(held, Rows):
        return Samples(held.through(casts), labels, found.columns)
    return Samples({name: cast(held[name]) for name, (cast, _) in casts.items()}, labels, found.columns)


def _fitting(array: Source | Array, spec: TensorSpec, where: str) -> np.dtype[Any]:
    """The type that the model takes, if shape and type of the array let it be cast to that."""
    wanted = _dtype(spec, where)
    rest = spec.shape[1:]
    fits = len(array.shape) == len(spec.shape) and all(
        isinstance(size, str) or size == real for size, real in zip(rest, array.shape[1:], strict=True)
    )
    if not spec.shape or not fits or _kind(array.dtype) != _kind(wanted):
        expected = (
            f"{spec.dtype}[{','.join(map(str, ('N', *rest)))}]" if spec.shape else f"{spec.dtype}[], no batch axis"
        )
        got = f"{array.dtype}[{','.join(map(str, ('N', *array.shape[1:])))}]"
        raise DataError(f"{where}: input {spec.name!r}: expected {expected}, found {got}")
    return wanted


def _cast(array: Array, wanted: np.dtype[Any], what: str) -> Array:
    """The array in the type that the model takes; DataError where its numbers don't go into that."""
    if _kind(wanted) == "integer" and array.size and not np.can_cast(array.dtype, wanted):
        bounds = np.iinfo(wanted)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise DataError(f"{what}: holds numbers that {wanted} can't hold")
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=wanted)
    if _kind(wanted) == "float" and not np.isfinite(cast).all():
        raise DataError(f"{what}: holds NaN, infinity or numbers that {wanted} can't hold")
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


def column_of(array: Array, what: str) -> Array:
    """`array` [N] or [N, 1] as a column [N]; bytes as the text that they are. DataError for what is no column."""
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "USiub":
        raise DataError(f"{what}: expected strings or integers [N], found {array.dtype}{list(array.shape)}")
    if flat.dtype.kind not in "US":
        return flat
    if flat.dtype.kind == "U":
        codes = np.ascontiguousarray(flat).view(np.dtype(np.uint32).newbyteorder(flat.dtype.byteorder))
        if codes.size and codes.max() > sys.maxunicode:
            raise DataError(f"{what}: holds what is not text")
    texts = (one.decode(errors="replace") if isinstance(one, bytes) else one for one in flat.tolist())
    return np.array(list(texts), object)


def check_lengths(shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """DataError unless the arrays of these shapes, by name, hold as many samples each, and at least one."""
    if any(len(shape) == 0 for shape in shapes.values()):
        raise DataError(f"{where}: expected arrays whose first axis counts samples, found a single number")
    lengths = {name: shape[0] for name, shape in shapes.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} of {name!r}" for name, length in lengths.items())
        raise DataError(f"{where}: inputs and labels differ in number: {told}")
    if 0 in lengths.values():
        raise DataError(f"{where}: holds no samples")
