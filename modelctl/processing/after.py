"""A model's outputs to answers, by what its manifest declares in `postprocess`.

An answer has one prediction for each row. It is what the last entry of an output makes of the row: a list of numbers,
`{"index", "label"?, "score"}`, or a list of such; where entries name several outputs, an object by their names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelctl import chains
from modelctl.errors import DataError

Array = np.ndarray[Any, Any]


class After:
    """What is done after a model."""

    def __init__(self, entries: Sequence[chains.Postprocess]) -> None:
        self.entries = tuple(entries)
        self.outputs = tuple(dict.fromkeys(one.output for one in entries))
        self.masks = frozenset(one.mask for one in entries if isinstance(one, chains.Pool) and one.mask is not None)

    def predictions(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> list[Any]:
        """One prediction for each row of the outputs [N, …]; `feeds` are what the model was given.

        Numbers are numpy's float32 and float64; a NaN comes last among scores. DataError where an output has other axes
        than an entry takes.
        """
        made = {name: self._made(name, outputs[name], feeds) for name in self.outputs}
        if len(made) == 1:
            return next(iter(made.values()))
        if len({len(one) for one in made.values()}) != 1:
            raise DataError("the outputs differ in their number of rows")
        return [dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)]

    def _made(self, name: str, array: Array, feeds: Mapping[str, Array]) -> list[Any]:
        held: Array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
        for entry in self.entries:
            if entry.output != name:
                continue
            if isinstance(entry, chains.Argmax | chains.TopK | chains.Threshold):
                return _named(entry, held)
            held = _numbers(entry, held, feeds)
        if held.ndim == 0:
            raise DataError(f"output {name!r} has no rows")
        return list(held)


def labels_of(after: After | None) -> tuple[str, ...]:
    """The labels of a model's classes, where it declares some."""
    entries = () if after is None else after.entries
    named = (one.labels for one in entries if isinstance(one, chains.Argmax | chains.TopK | chains.Threshold))
    return next(filter(None, named), ())


def _numbers(entry: chains.Softmax | chains.Sigmoid | chains.Pool | chains.Normalize, x: Array, feeds: Any) -> Array:
    """What an entry makes of numbers that is still numbers."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        match entry:
            case chains.Softmax():
                _check_axes(entry.output, x, 1)
                powers = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
                shares: Array = powers / powers.sum(axis=-1, keepdims=True)
                return shares
            case chains.Sigmoid():
                half: Array = np.tanh(x * 0.5)  # σ(x) = (1 + tanh(x/2)) / 2, which overflows nowhere
                return (half * 0.5 + 0.5).astype(x.dtype)
            case chains.Normalize():
                _check_axes(entry.output, x, 1)
                length = np.linalg.norm(x, axis=-1, keepdims=True)
                unit: Array = np.divide(x, length, out=np.zeros_like(x), where=length != 0)
                return unit
        return _pooled(entry, x, feeds)


def _pooled(entry: chains.Pool, x: Array, feeds: Mapping[str, Array]) -> Array:
    """[N, tokens, K] → [N, K]."""
    if x.ndim != 3 or not x.shape[1]:
        raise DataError(f"output {entry.output!r} has the shape {list(x.shape)}, and pool takes [N, tokens, K]")
    if entry.how == "first":
        first: Array = x[:, 0]
        return first
    mask = np.ones(x.shape[:2], bool) if entry.mask is None else feeds[entry.mask] != 0
    if mask.shape != x.shape[:2]:
        raise DataError(f"input {entry.mask!r} is no mask of output {entry.output!r}: {list(mask.shape)}")
    if entry.how == "max":
        largest: Array = np.where(mask[..., None], x, -np.inf).max(axis=1).astype(x.dtype)
        return largest
    kept = np.where(mask[..., None], x, 0)
    mean: Array = (kept.sum(axis=1) / np.maximum(mask.sum(axis=1), 1)[:, None]).astype(x.dtype)
    return mean


def _named(entry: chains.Argmax | chains.TopK | chains.Threshold, x: Array) -> list[Any]:
    """What an entry makes of scores, over the last axis, nested as the axes before it."""
    if isinstance(entry, chains.Threshold) and (x.ndim == 1 or (x.ndim == 2 and x.shape[-1] == 1)):
        return [_told(entry.labels, int(score >= entry.at), score) for score in x.reshape(-1)]
    _check_axes(entry.output, x, 2)
    flat = x.reshape(-1, x.shape[-1])
    if isinstance(entry, chains.Threshold):
        rows = [np.flatnonzero(row >= entry.at) for row in flat]
    elif isinstance(entry, chains.TopK):
        rows = list(_largest(flat, entry.k))
    else:
        rows = list(_largest(flat, 1))
    made: list[Any] = [
        [_told(entry.labels, place, row[place]) for place in places.tolist()]
        for row, places in zip(flat, rows, strict=True)
    ]
    if isinstance(entry, chains.Argmax):
        made = [one[0] for one in made]
    return _nested(made, x.shape[:-1])


def _largest(scores: Array, count: int) -> Array:
    """The places [N, count] of the largest of each row, the largest first, of equals the first; NaN comes last."""
    if count == 1:
        first: Array = np.argmax(np.where(np.isnan(scores), -np.inf, scores), axis=1)[:, None]
        return first
    order: Array = np.argsort(-scores, axis=1, kind="stable")  # which puts NaN last
    return order[:, :count]


def _told(labels: Sequence[str], place: int, score: Any) -> dict[str, Any]:
    if place < len(labels):
        return {"index": place, "label": labels[place], "score": score}
    return {"index": place, "score": score}


def _nested(rows: list[Any], shape: Sequence[int]) -> list[Any]:
    for size in reversed(shape[1:]):
        rows = [rows[first : first + size] for first in range(0, len(rows), size)] if size else [[]]
    return rows


def _check_axes(name: str, x: Array, least: int) -> None:
    if x.ndim < least or not x.shape[-1]:
        raise DataError(f"output {name!r} has the shape {list(x.shape)}, and scores are expected in its last axis")
