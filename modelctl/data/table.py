"""Samples from a table, `.csv` or `.parquet`: each row a sample, one column the label, the others what the model takes.

A `.csv` file is UTF-8 text as RFC 4180 has it, its first line the names of the columns, numbers as Python reads them.
Columns named as the model's inputs are these, each [N] or [N, 1]. For a model of one input [N, K] of another name the
columns in their order are its K numbers, but for the label, and for those by which samples are grouped unless it takes
them to make K. Labels are classes where all of them are whole numbers. Where the table has all the columns that a model
declares to take raw, its cells go through what is declared.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from modelctl.data.samples import LABELS, Array, Samples
from modelctl.data.spool import Gathering
from modelctl.errors import DataError, missing_extra
from modelctl.manifest import TensorSpec
from modelctl.processing.before import Before
from modelctl.processing.tables import number

SUFFIXES = (".csv", ".parquet")
ROWS = 4096  # read together
LIMIT_LINE = 16 << 20  # characters

Portion = Mapping[str, Sequence[Any]]


def read(
    path: Path,
    inputs: Sequence[TensorSpec],
    columns: Sequence[str] = (),
    target: str | None = None,
    before: Before | None = None,
) -> Samples:
    """The table's rows for a model of these inputs, through `before` where they have its columns; DataError.

    `target` names the column of labels, by default `y` where there is one; `columns` are read beside them.
    """
    known, portions = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    for name in (*columns, *([target] if target else [])):
        if name not in known:
            raise DataError(f"{path}: has no column {name!r}; its columns: {', '.join(known[:8])}")
    label = target or (LABELS if LABELS in known else None)
    raw = before if before is not None and before.columns and before.columns <= set(known) else None
    taken = {} if raw is not None else _taken(path, inputs, columns, label, known)
    gathering, labels = Gathering(str(path), [spec.name for spec in inputs], columns), []
    for portion in portions:
        row = gathering.count + 1
        batch = _raw(path, raw, portion, row) if raw is not None else {
            spec.name: _input(path, spec, {name: portion[name] for name in taken[spec.name]}, row) for spec in inputs
        }  # fmt: skip
        gathering.add(batch | {name: np.array(list(map(str, portion[name]))) for name in columns})
        if label is not None:
            labels.append(_label(path, label, portion[label], row))
    return replace(gathering.samples(), labels=np.concatenate(labels) if labels else None)


def _raw(path: Path, before: Before, portion: Portion, row: int) -> dict[str, Array]:
    """The inputs out of raw cells; the first row is number `row`."""
    names = sorted(before.columns)
    numbers = before.numbers
    rows = [
        {name: number(cell) if name in numbers and isinstance(cell, str) else cell
         for name, cell in zip(names, cells, strict=True)}
        for cells in zip(*(portion[name] for name in names), strict=True)
    ]  # fmt: skip
    return before.feeds(rows, [f"{path}: row {place}" for place in range(row, row + len(rows))])


def _taken(
    path: Path, inputs: Sequence[TensorSpec], columns: Sequence[str], label: str | None, known: Sequence[str]
) -> dict[str, list[str]]:
    """The columns that each input is made of."""
    others = [name for name in known if name != label]
    if all(spec.name in others for spec in inputs):
        return {spec.name: [spec.name] for spec in inputs}
    if len(inputs) > 1:
        missing = next(spec.name for spec in inputs if spec.name not in others)
        raise DataError(f"{path}: has no column {missing!r}; its columns: {', '.join(known[:8])}")
    (spec,) = inputs
    if len(spec.shape) != 2:
        shape = ",".join(map(str, spec.shape))
        raise DataError(f"{path}: a row holds K numbers, and the model takes {spec.name}:{spec.dtype}[{shape}]")
    apart = [name for name in others if name not in columns]
    return {spec.name: others if len(others) == spec.shape[1] else apart}


def _input(path: Path, spec: TensorSpec, held: Portion, row: int) -> Array:
    """[N] or [N, K], from the columns that an input is made of; the first row is number `row`."""
    kind: type[int] | type[float] = int if spec.dtype.startswith(("int", "uint")) else float
    made = [_numbers(path, name, cells, kind, row) for name, cells in held.items()]
    return made[0] if len(spec.shape) == 1 else np.stack(made, axis=1)


def _numbers(path: Path, name: str, cells: Sequence[Any], kind: type[int] | type[float], row: int) -> Array:
    dtype = np.int64 if kind is int else np.float64
    try:
        return np.array(list(map(kind, cells)), dtype)
    except (ValueError, TypeError, OverflowError):
        for place, cell in enumerate(cells, row):
            if not _is_number(cell, kind):
                wanted = "whole numbers" if kind is int else "numbers"
                raise DataError(
                    f"{path}: row {place}: column {name!r} holds {cell!r:.40}, and {wanted} are read"
                ) from None
        raise


def _is_number(cell: Any, kind: type[int] | type[float]) -> bool:
    try:
        np.array(kind(cell), np.int64 if kind is int else np.float64)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _label(path: Path, name: str, cells: Sequence[Any], row: int) -> Array:
    """Classes, if all are whole numbers, else targets."""
    whole = all(_is_number(cell, int) and not isinstance(cell, float) for cell in cells)
    return _numbers(path, name, cells, int if whole else float, row)


def _csv(path: Path) -> tuple[list[str], Iterator[Portion]]:
    """The names of the columns, and the rows, some at a time."""
    rows = _lines(path)
    known = [name.strip() for name in next(rows, [])]
    if not known or not all(known) or len(set(known)) != len(known):
        raise DataError(f"{path}: its first line must name the columns, each otherwise: {', '.join(known[:8])}")
    return known, _portions(path, known, rows)


def _portions(path: Path, known: Sequence[str], rows: Iterator[list[str]]) -> Iterator[Portion]:
    held: list[list[str]] = []
    for count, row in enumerate(rows, 1):
        if len(row) != len(known):
            raise DataError(f"{path}: row {count} has {len(row)} cells, its first line names {len(known)} columns")
        held.append(row)
        if len(held) == ROWS:
            yield dict(zip(known, zip(*held, strict=True), strict=True))
            held.clear()
    if held:
        yield dict(zip(known, zip(*held, strict=True), strict=True))


def _lines(path: Path) -> Iterator[list[str]]:
    """The cells of each line that is not empty, the first one's among them."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from filter(None, csv.reader(_short(file, path), strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a sound .csv file: {error}") from error


def _short(file: IO[str], path: Path) -> Iterator[str]:
    while line := file.readline(LIMIT_LINE):
        if len(line) == LIMIT_LINE:
            raise DataError(f"{path}: holds a line of more than {LIMIT_LINE} characters")
        yield line


def _parquet(path: Path) -> tuple[list[str], Iterator[Portion]]:
    """The names of the columns, and the rows, some at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra(f"{path}: .parquet is read with pyarrow", "parquet") from error
    try:
        file = parquet.ParquetFile(path)
        known = list(file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a sound .parquet file: {error}") from error

    def portions() -> Iterator[Portion]:
        try:
            for batch in file.iter_batches(ROWS):
                yield batch.to_pydict()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a sound .parquet file: {error}") from error

    return known, portions()
