"""Rows of cells to tensors: numbers scaled, categories as an index or one number for each value.

A row is a mapping by the columns' names, or the cells in the columns' order. An empty cell (null, or nothing between
two commas) is what `missing` says, or refused; so is a name that no column has, which would else be a typo unseen.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from modelctl import chains
from modelctl.errors import DataError
from modelctl.manifest import TensorSpec

Array = np.ndarray[Any, Any]
MOST_CELLS = 1 << 24  # of one tensor
MOST_TYPED = 1 << 21  # cells of a text


class Rows:
    """How rows of cells become rows of one input of a model."""

    def __init__(self, entry: chains.Table, spec: TensorSpec) -> None:
        self.entry = entry
        self.names = tuple(one.name for one in entry.columns)
        self._spec = spec
        self._dtype = np.dtype(getattr(ml_dtypes, spec.dtype, spec.dtype))
        self._known = frozenset(self.names)
        self._places = {
            one.name: {value: place for place, value in enumerate(one.values)}
            for one in entry.columns
            if isinstance(one, chains.Category)
        }

    def tensor(self, rows: Sequence[Any], others: frozenset[str] = frozenset()) -> Array:
        """[N, K] of rows as JSON has them, or [N] where the model takes that; `others` are names that are not ours."""
        if len(rows) * self.entry.width > MOST_CELLS:
            raise DataError(f"{len(rows)} rows of {self.entry.width} numbers are more than is read at once")
        made = np.zeros((len(rows), self.entry.width), np.float64)
        cells = [self._cells(row, others) for row in rows]
        place = 0
        for index, column in enumerate(self.entry.columns):
            held = [row[index] for row in cells]
            if isinstance(column, chains.Number):
                made[:, place] = _numbers(column, held)
            elif column.encode == "index":
                made[:, place] = self._indices(column, held)
            else:
                found = self._indices(column, held)
                made[np.flatnonzero(found >= 0), place + found[found >= 0]] = 1
            place += column.width
        return _cast(made[:, 0] if len(self._spec.shape) == 1 else made, self._dtype, self._spec)

    def _cells(self, row: Any, others: frozenset[str]) -> Sequence[Any]:
        """The cells of a row in the columns' order."""
        if isinstance(row, Mapping):
            unknown = row.keys() - self._known - others
            if unknown:
                raise DataError(f"no column {min(map(str, unknown))!r:.60}; there are: {_listed(self.names)}")
            return [row.get(name) for name in self.names]
        if not isinstance(row, list | tuple):
            raise DataError(f"a row is an object or a list of its {len(self.names)} cells: {_listed(self.names)}")
        if len(row) != len(self.names):
            raise DataError(f"a row has {len(row)} cells, the columns are {len(self.names)}: {_listed(self.names)}")
        return row

    def _indices(self, column: chains.Category, cells: Sequence[Any]) -> Array:
        """The index of each cell's value, −1 for one of the others."""
        places, found = self._places[column.name], np.empty(len(cells), np.int64)
        for row, cell in enumerate(cells):
            text = column.missing if cell is None or cell == "" else _text(cell)
            place = places.get(text) if text is not None else None
            if place is None:
                if text is None and (cell is None or cell == ""):
                    raise DataError(f"column {column.name!r} is missing")
                if not column.others:
                    raise DataError(f"column {column.name!r}: {cell!r:.60} is none of {_listed(column.values)}")
                place = -1
            found[row] = place
        return found


def _text(cell: Any) -> str | None:
    """A category as text: a truth as JSON spells it, a whole number by its digits."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return str(cell) if isinstance(cell, int) else None


def _numbers(column: chains.Number, cells: Sequence[Any]) -> Array:
    """The scaled numbers of a column."""
    found = np.empty(len(cells), np.float64)
    for row, cell in enumerate(cells):
        if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
            if column.missing is None:
                raise DataError(f"column {column.name!r} is missing")
            cell = column.missing
        if isinstance(cell, bool) or not isinstance(cell, int | float) or not abs(cell) < 1e300:
            raise DataError(f"column {column.name!r}: {cell!r:.60} is not a number")
        found[row] = cell
    if column.min is not None and column.max is not None:
        return (found - column.min) / (column.max - column.min)
    return (found - column.mean) / column.std


def _cast(made: Array, dtype: np.dtype[Any], spec: TensorSpec) -> Array:
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        # Powers of two, which a float64 holds: the largest int64 itself it does not.
        if made.size and ((made != np.rint(made)).any() or made.min() < bounds.min or made.max() >= 2.0 ** (
            bounds.bits - (dtype.kind == "i"))):  # fmt: skip
            raise DataError(f"a cell is no whole number that {spec.name}, {spec.dtype}, can hold")
        return made.astype(dtype)
    with np.errstate(over="ignore"):
        cast = made.astype(dtype)
    if not np.isfinite(cast).all():
        raise DataError(f"a cell is a number that {spec.name}, {spec.dtype}, can't hold")
    return cast


def of_csv(text: str, tables: Sequence[chains.Table], header: bool | None = None) -> list[dict[str, Any]]:
    """The rows of a `text/csv` body (RFC 4180) for these tables, by the names of their columns.

    Its first line names the columns; without `header` being told, where it has all of their names. Otherwise its cells
    are the columns' in their order. DataError for what is no such table.
    """
    columns = {one.name: one for table in tables for one in table.columns}
    lines = _lines(text)
    first = next(lines, None)
    if first is None:
        raise DataError("the .csv body holds no rows")
    names = [cell.strip() for cell in first]
    if header is None:
        header = set(columns) <= set(names)
    if header and len(set(names)) != len(names):
        raise DataError("the .csv body's first line names a column twice")
    rows: list[dict[str, Any]] = []
    for row in _rest(first, lines, header):
        rows.append(_row(row, names if header else list(columns), columns))
        if len(rows) * len(row) > MOST_TYPED:
            raise DataError(f"the .csv body has more than {MOST_TYPED} cells")
    if not rows:
        raise DataError("the .csv body holds no rows")
    return rows


def _rest(first: list[str], lines: Iterator[list[str]], header: bool) -> Iterator[list[str]]:
    if not header:
        yield first
    yield from lines


def _row(row: Sequence[str], names: Sequence[str], columns: Mapping[str, Any]) -> dict[str, Any]:
    if len(row) != len(names):
        raise DataError(f"a row of the .csv body has {len(row)} cells, not {len(names)}: {_listed(list(names))}")
    return {name: number(cell) if isinstance(columns.get(name), chains.Number) else cell
            for name, cell in zip(names, row, strict=True)}  # fmt: skip


def number(cell: str) -> float | str | None:
    """A cell of text as the number that it spells; itself where it spells none, and will be refused as that."""
    if not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def _lines(text: str) -> Iterator[list[str]]:
    try:
        yield from filter(None, csv.reader(text.splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise DataError(f"the .csv body is not sound: {error}") from error


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(names[:8])
    return (told if len(names) <= 8 else f"{told}, …")[:200]
