"""Samples from an `.npz` file: a zip of `.npy` arrays, one for each input of the model, `y` the labels, any columns.

Layout: NumPy's own (numpy.lib.format, "A Simple File Format for NumPy Arrays"). The file is read as one that anyone may
have made: no pickles, no member larger than its header promises, none larger than `LIMIT_BYTES` together.
"""

import errno
import math
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from modelctl.data.samples import LABELS, Array, Samples
from modelctl.errors import DataError

ONLY = "x"
LIMIT_BYTES = 8 << 30
LIMIT_HEADER_BYTES = 10_000
LIMIT_MEMBERS = 1000

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    OverflowError,
    RuntimeError,  # zipfile: an encrypted member
)


def read(path: Path, names: Sequence[str], columns: Sequence[str] = ()) -> Samples:
    """The arrays called `names` (or `x`, where there is one name) and the labels `y`, as they stand; DataError.

    `columns` are read beside them: strings, integers or booleans, one for each sample.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()[:LIMIT_MEMBERS]}
            places = _places(path, names, members)
            _check_columns(path, columns, set(members) - set(places.values()))
            wanted = {*places.values(), *columns, LABELS} & set(members)
            total = sum(members[name].file_size for name in wanted)
            if total > LIMIT_BYTES:
                raise DataError(f"{path}: {total} bytes unpacked, at most {LIMIT_BYTES} are read")
            arrays = {}
            for name in sorted(wanted):
                with archive.open(members[name]) as file:
                    arrays[name] = _array(file, members[name].file_size, f"{path}: array {name!r}")
    except _BROKEN as error:
        raise DataError(f"{path}: not a sound .npz file: {error or type(error).__name__}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # zipfile looks where a damaged directory says that a member lies: before the file's beginning.
        raise DataError(f"{path}: not a sound .npz file: a member lies outside of it") from error
    told = {name: _column(arrays[name], f"{path}: column {name!r}") for name in columns}
    found = Samples({name: arrays[place] for name, place in places.items()}, arrays.get(LABELS), told)
    _check_lengths(found, path)
    return found


def _check_columns(path: Path, columns: Sequence[str], held: set[str]) -> None:
    for name in columns:
        if name not in held:
            known = ", ".join(sorted(held)[:8]) or "none"
            raise DataError(f"{path}: has no column {name!r}; its columns: {known}")


def _column(array: Array, what: str) -> Array:
    """`array` [N] or [N, 1] as [N]; bytes as the text that they are."""
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


def _places(path: Path, names: Sequence[str], members: dict[str, zipfile.ZipInfo]) -> dict[str, str]:
    """Which array each input is taken from."""
    places = {name: name for name in names}
    if len(names) == 1 and names[0] not in members:
        places = {names[0]: ONLY}
    for name, place in places.items():
        if place not in members:
            held = ", ".join(sorted(members)[:8]) or "nothing"
            alternative = f" or {ONLY!r}" if len(names) == 1 and name != ONLY else ""
            raise DataError(f"{path}: expected an array {name!r}{alternative}, found {held}")
    return places


def _array(file: IO[bytes], size: int, what: str) -> Array:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise DataError(f"{what}: .npy version {version[0]}.{version[1]} is not read here")
    shape, fortran, dtype = _HEADERS[version](file, max_header_size=LIMIT_HEADER_BYTES)
    if dtype.hasobject or dtype.names or dtype.subdtype or dtype.itemsize == 0:
        raise DataError(f"{what}: holds {dtype}, and only plain numbers are read")
    if any(not isinstance(length, int) or length < 0 for length in shape):
        raise DataError(f"{what}: its header promises the shape {shape}")
    promised = math.prod(shape) * dtype.itemsize
    if promised != size - file.tell():
        raise DataError(f"{what}: its header promises {promised} bytes, it holds {size - file.tell()}")
    data = file.read(promised)
    if len(data) != promised or file.read(1):
        raise DataError(f"{what}: its header promises {promised} bytes, it holds another number")
    array = np.frombuffer(data, dtype.newbyteorder("=") if dtype.isnative else dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _check_lengths(found: Samples, path: Path) -> None:
    arrays = dict(found.inputs) | found.columns | ({LABELS: found.labels} if found.labels is not None else {})
    if any(array.ndim == 0 for array in arrays.values()):
        raise DataError(f"{path}: expected arrays whose first axis counts samples, found a single number")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} of {name!r}" for name, length in lengths.items())
        raise DataError(f"{path}: inputs and labels differ in number: {told}")
    if 0 in lengths.values():
        raise DataError(f"{path}: holds no samples")
