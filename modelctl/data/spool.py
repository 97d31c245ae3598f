"""Samples on their way through an unnamed temporary file: unpacked, or as they stream by, to be read in any order.

The file lies in `$TMPDIR`, else in `/var/tmp`, which is a disk where `/tmp` may be memory. It has no name, so that
nothing is left behind however a run ends.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelctl import digests
from modelctl.data import rows
from modelctl.data.rows import Array, Rows, Stored, Unnamed
from modelctl.data.samples import LABELS, Samples, column_of
from modelctl.errors import DataError

LIMIT_BYTES = 64 << 30
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Spool:
    """A temporary file that is written from its start to its end, of samples called `what`."""

    def __init__(self, what: str, needed: int = 0) -> None:
        """DataError when the disk has no room for the bytes that are known to be `needed`."""
        self._what, self.folder, self.size = what, _folder(), 0
        if needed > shutil.disk_usage(self.folder).free:
            raise self._no_room(needed)
        self._file = Unnamed(self.folder)

    def write(self, data: bytes | memoryview) -> None:
        """Append; DataError when the disk is full."""
        try:
            self._file.write(data)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise self._no_room(self.size + len(data)) from error
        self.size += len(data)

    def write_array(self, array: Array) -> None:
        """Append the numbers of an array."""
        self.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def stored(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Stored:
        """What was written, as an array."""
        return Stored(self._file, 0, shape, dtype, self._what)

    def _no_room(self, size: int) -> DataError:
        return DataError(
            f"{self._what}: no room in {self.folder} to lay {size} bytes out", "export TMPDIR=/a/larger/disk"
        )


def _folder() -> Path:
    lasting = Path("/var/tmp")
    if "TMPDIR" not in os.environ and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())


class Gathering:
    """Batches of arrays by name that become samples: inputs in temporary files, labels and columns in memory.

    `names` are those of the model's inputs. A batch that has other arrays, types or shapes than the first is a
    DataError, as are more than `limit_bytes`.
    """

    def __init__(self, what: str, names: Sequence[str], columns: Sequence[str], limit_bytes: int | None = None) -> None:
        self._what, self._names, self._columns, self._limit_bytes = what, names, columns, limit_bytes
        self._spools: dict[str, Spool] = {}
        self._forms: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._digests: dict[str, Any] = {}
        self._apart: dict[str, list[Array]] = {}
        self.count = self._bytes = 0

    def add(self, batch: Mapping[str, Array]) -> None:
        """Append the samples of a batch, which has the inputs, the columns, and labels or none."""
        if not self.count:
            self._begin(batch)
        where = f"{self._what}: samples from {self.count} on"
        if batch.keys() != self._forms.keys():
            raise DataError(f"{where}: hold {_listed(batch)}, those before held {_listed(self._forms)}")
        for name, array in batch.items():
            dtype, shape = self._forms[name]
            fits = array.dtype.kind == dtype.kind if name in self._columns else array.dtype == dtype
            if not fits or array.shape[1:] != shape:
                told = f"{array.dtype}{list(array.shape[1:])} each, those before {dtype}{list(shape)}"
                raise DataError(f"{where}: {name!r} is {told}", "let the samples have one type and length")
        for name, array in batch.items():
            self._bytes += array.nbytes
            if self._limit_bytes is not None and self._bytes > self._limit_bytes:
                raise DataError(
                    f"{self._what}: gave more than {self._limit_bytes} bytes, and did not end", "#limit=10000"
                )
            whole = np.ascontiguousarray(array)
            if name in self._spools:
                self._spools[name].write_array(whole)
            else:
                self._apart.setdefault(name, []).append(whole.copy())
            self._digests[name].update(_digested(whole, name in self._columns))
        self.count += len(next(iter(batch.values())))

    def _begin(self, batch: Mapping[str, Array]) -> None:
        for name, array in batch.items():
            self._forms[name] = (array.dtype, array.shape[1:])
            told = array.dtype.kind if name in self._columns else f"{array.dtype.str} {array.dtype}"
            self._digests[name] = hashlib.sha256(f"{told} {array.shape[1:]} ".encode())
            if name in self._names:
                self._spools[name] = Spool(self._what)

    def samples(self) -> Samples:
        """All that was added; in memory if it is little. DataError if it is nothing."""
        if not self.count:
            raise DataError(f"{self._what}: holds no samples")
        sources = {
            name: self._spools[name].stored((self.count, *self._forms[name][1]), self._forms[name][0])
            for name in self._names
        }
        found = Rows(sources)
        apart = {name: np.concatenate(parts) for name, parts in self._apart.items()}
        labels = apart.pop(LABELS, None)
        columns = {name: column_of(array, f"{self._what}: column {name!r}") for name, array in apart.items()}
        return Samples(dict(found) if found.nbytes <= rows.HELD_BYTES else found, labels, columns)

    def digest(self) -> str:
        """Of what was added, however it was cut into batches."""
        return digests.of_lines((name, self._digests[name].hexdigest()) for name in sorted(self._digests))


def _digested(array: Array, is_column: bool) -> bytes | memoryview:
    """What tells an array apart; text by itself, as numpy keeps it as wide as the longest of a batch."""
    if is_column:
        return "".join(f"{len(text)}:{text}" for text in map(str, array.tolist())).encode(errors="surrogatepass")
    return array.reshape(-1).view(np.uint8).data


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
