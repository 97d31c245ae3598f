"""Samples too many to be held: arrays that lie in files, of which those rows are read that are asked for.

A file with a name is opened for each reading, and must still be the one that was checked; an unnamed one stays open.
They are read, not mapped: pages of a map count as memory of the process, and it dies where a mapped file is cut short.
"""

import contextlib
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modelctl.errors import DataError

Array = np.ndarray[Any, Any]
HELD_BYTES = 64 << 20  # what is no larger is held in memory
PORTION_BYTES = 4 << 20  # what is gone through is read so much at a time


class Source(Protocol):
    """An array [N, …] of which rows can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of it, N first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows that come."""

    def at(self, rows: Array) -> Array:
        """The rows of these numbers, in their order; DataError where they can't be had."""


class Opened(Protocol):
    """A file that is read more than once."""

    def handle(self) -> contextlib.AbstractContextManager[int]:
        """Its descriptor, for as long as the block lasts."""


class Named:
    """A file with a name, as it is now; DataError when it is read and is another by then."""

    def __init__(self, path: Path) -> None:
        self._path, self._stamp = path, _stamp(path.stat())

    @contextlib.contextmanager
    def handle(self) -> Iterator[int]:
        """Its descriptor, for as long as the block lasts."""
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise DataError(f"{self._path}: is gone, and not all of it was read") from error
        try:
            if _stamp(os.fstat(handle)) != self._stamp:
                raise DataError(f"{self._path}: was changed while it was read")
            yield handle
        finally:
            os.close(handle)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Unnamed:
    """A new file in `folder` that has no name, and is gone when nobody holds it any more."""

    def __init__(self, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            self._handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._handle)

    def write(self, data: bytes | memoryview) -> None:
        """Append; OSError as the system has it."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._handle, left) :]

    @contextlib.contextmanager
    def handle(self) -> Iterator[int]:
        """Its descriptor, for as long as the block lasts."""
        yield self._handle


@dataclass(frozen=True)
class Stored:
    """An array that lies in a file from `offset` on, row after row; `what` it is called in messages."""

    file: Opened
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    what: str

    def at(self, rows: Array) -> Array:
        """The rows of these numbers, neighbours read together."""
        made = np.empty((len(rows), *self.shape[1:]), self.dtype)
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        if not made.size:
            return made
        into = made.reshape(-1).view(np.uint8).data
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        with self.file.handle() as handle:
            for first, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(rows)], strict=True):
                self._fill(handle, into[first * size : end * size], self.offset + int(rows[first]) * size)
        return made

    @property
    def nbytes(self) -> int:
        """How large all of it is."""
        return math.prod(self.shape) * self.dtype.itemsize

    def columns(self, first: int, end: int) -> Array:
        """All rows, from `first` to `end` along the last axis: [*shape[:-1], end - first]."""
        made = np.empty((*self.shape[:-1], end - first), self.dtype)
        into, size = made.reshape(-1).view(np.uint8).data, (end - first) * self.dtype.itemsize
        with self.file.handle() as handle:
            for row in range(len(into) // size):
                place = self.offset + (row * self.shape[-1] + first) * self.dtype.itemsize
                self._fill(handle, into[row * size : (row + 1) * size], place)
        return made

    def _fill(self, handle: int, into: memoryview, place: int) -> None:
        while into:
            count = os.preadv(handle, [into], place)
            if not count:
                raise DataError(f"{self.what}: was cut short while it was read")
            into, place = into[count:], place + count


@dataclass(frozen=True)
class Held:
    """An array in memory, among others that are not."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of it, N first."""
        shape: tuple[int, ...] = self.array.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its rows."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def at(self, rows: Array) -> Array:
        """The rows of these numbers."""
        found: Array = self.array[rows]
        return found


class Joined:
    """Arrays that are alike but for their lengths, one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def at(self, rows: Array) -> Array:
        """The rows of these numbers, counted through all parts."""
        made = np.empty((len(rows), *self.shape[1:]), self.dtype)
        places = np.searchsorted(self._ends, rows, side="right")
        for place in np.unique(places):
            taken = places == place
            part = self._parts[place]
            made[taken] = part.at(rows[taken] - (self._ends[place] - part.shape[0]))
        return made


@dataclass(frozen=True)
class Changed:
    """An array whose rows are made into others as they come: `change` gives `dtype`, and leaves the shape."""

    source: Source
    change: Callable[[Array], Array]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of it, N first."""
        return self.source.shape

    def at(self, rows: Array) -> Array:
        """The rows of these numbers, changed."""
        return self.change(self.source.at(rows))


class Rows(Mapping[str, Array]):
    """Rows of arrays by name. Whoever takes an array by its name reads all of its rows, each time."""

    def __init__(self, sources: Mapping[str, Source], numbers: Array | None = None) -> None:
        """`numbers` tell which rows are meant, and in what order; all if None."""
        self.sources = sources
        (count,) = {source.shape[0] for source in sources.values()}
        self._numbers = np.arange(count) if numbers is None else numbers

    @property
    def count(self) -> int:
        """How many rows each array has."""
        return len(self._numbers)

    @property
    def nbytes(self) -> int:
        """How large the arrays are together, once they are read."""
        each = sum(math.prod(one.shape[1:]) * one.dtype.itemsize for one in self.sources.values())
        return self.count * each

    def pick(self, rows: Any) -> Mapping[str, Array]:
        """The rows at a slice or an array of indices of these; read at once if they are no larger than `HELD_BYTES`."""
        found = Rows(self.sources, self._numbers[rows])
        return dict(found) if found.nbytes <= HELD_BYTES else found

    def through(self, changes: Mapping[str, tuple[Callable[[Array], Array], np.dtype[Any]]]) -> "Rows":
        """The same rows of those arrays that `changes` name, each changed as it comes, and the type it then has."""
        made = {name: Changed(self.sources[name], *change) for name, change in changes.items()}
        return Rows(made, self._numbers)

    def __getitem__(self, name: str) -> Array:
        return self.sources[name].at(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)
