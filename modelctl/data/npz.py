"""Samples from `.npz` files: zips of `.npy` arrays, one for each input of the model, `y` the labels, any columns.

Layout: NumPy's own (numpy.lib.format, "A Simple File Format for NumPy Arrays"). The file is read as one that anyone may
have made: no pickles, no member larger than its header promises, none larger than `LIMIT_BYTES` together once unpacked.

Inputs too large to be held (`rows.HELD_BYTES`) are read from where they lie, if they are stored as they are
(`np.savez`), and else unpacked once into a temporary file. Either way all of a member is gone through first, so that a
damaged one is found before work begins.
"""

import errno
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from modelctl.data import rows
from modelctl.data.rows import Array, Held, Joined, Named, Rows, Source, Stored
from modelctl.data.samples import LABELS, Samples, check_lengths, column_of
from modelctl.data.spool import LIMIT_BYTES, Spool
from modelctl.errors import DataError

ONLY = "x"
LIMIT_HELD_BYTES = 8 << 30
LIMIT_HEADER_BYTES = 10_000
LIMIT_MEMBERS = 1000

_LOCAL = struct.Struct("<26xHH")  # a member's local header: how long the name and the extra field after it are
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
            apart = {name for name in (*columns, LABELS) if name in members}
            _check_size(path, [members[one] for one in places.values()], [members[one] for one in apart])
            large = sum(members[name].file_size for name in set(places.values())) > rows.HELD_BYTES
            arrays, sources = {}, {}
            for name in sorted({*places.values(), *apart}):
                what = f"{path}: array {name!r}"
                if name in apart or not large:
                    with archive.open(members[name]) as file:
                        arrays[name] = _array(file, members[name].file_size, what)
                if name in places.values() and large:
                    sources[name] = _source(archive, members[name], path, what)
    except _BROKEN as error:
        raise DataError(f"{path}: not a sound .npz file: {error or type(error).__name__}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # zipfile looks where a damaged directory says that a member lies: before the file's beginning.
        raise DataError(f"{path}: not a sound .npz file: a member lies outside of it") from error
    told = {name: column_of(arrays[name], f"{path}: column {name!r}") for name in columns}
    shapes = {name: (sources if large else arrays)[place].shape for name, place in places.items()}
    shapes |= {name: column.shape for name, column in told.items()}
    labels = arrays.get(LABELS)
    check_lengths(shapes if labels is None else shapes | {LABELS: labels.shape}, str(path))
    inputs = (
        Rows({name: sources[place] for name, place in places.items()})
        if large
        else {name: arrays[place] for name, place in places.items()}
    )
    return Samples(inputs, labels, told)


def read_shards(paths: Sequence[Path], names: Sequence[str], columns: Sequence[str] = ()) -> Samples:
    """The samples of several files, in their order, as of one; DataError also when the files are not alike."""
    parts = [read(path, names, columns) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        _check_alike(paths[0], parts[0], path, part)
    if all(part.is_held for part in parts) and sum(map(_nbytes, parts)) <= rows.HELD_BYTES:
        inputs: Mapping[str, Array] = {name: np.concatenate([part.inputs[name] for part in parts]) for name in names}
    else:
        inputs = Rows({name: Joined([_part(part, name) for part in parts]) for name in names})
    labels = [part.labels for part in parts if part.labels is not None]
    told = {name: np.concatenate([part.columns[name] for part in parts]) for name in columns}
    return Samples(inputs, np.concatenate(labels) if labels else None, told)


def _check_alike(first: Path, begun: Samples, path: Path, part: Samples) -> None:
    forms = [
        {name: (array.dtype, tuple(array.shape[1:])) for name, array in _arrays(one).items()} for one in (begun, part)
    ]
    for name in sorted(forms[0].keys() | forms[1].keys()):
        was, now = (_told(form.get(name)) for form in forms)
        if was != now:
            raise DataError(f"{path}: array {name!r} is {now}, in {first.name} {was}")


def _told(form: tuple[np.dtype[Any], tuple[int, ...]] | None) -> str:
    return "not there" if form is None else f"{form[0]}[{','.join(map(str, ('N', *form[1])))}]"


def _arrays(part: Samples) -> dict[str, Array | Source]:
    found: dict[str, Array | Source] = {**(part.inputs.sources if isinstance(part.inputs, Rows) else part.inputs)}
    return found if part.labels is None else found | {LABELS: part.labels}


def _nbytes(part: Samples) -> int:
    return sum(array.nbytes for array in part.inputs.values())


def _part(part: Samples, name: str) -> Source:
    return part.inputs.sources[name] if isinstance(part.inputs, Rows) else Held(part.inputs[name])


def _check_size(path: Path, inputs: Sequence[zipfile.ZipInfo], apart: Sequence[zipfile.ZipInfo]) -> None:
    total = sum(one.file_size for one in (*inputs, *apart) if one.compress_type != zipfile.ZIP_STORED)
    if total > LIMIT_BYTES:
        raise DataError(f"{path}: {total} bytes unpacked, at most {LIMIT_BYTES} are read")
    held = sum(one.file_size for one in apart)
    if held > LIMIT_HELD_BYTES:
        raise DataError(f"{path}: {held} bytes of labels and columns, at most {LIMIT_HELD_BYTES} are held")


def _check_columns(path: Path, columns: Sequence[str], held: set[str]) -> None:
    for name in columns:
        if name not in held:
            known = ", ".join(sorted(held)[:8]) or "none"
            raise DataError(f"{path}: has no column {name!r}; its columns: {known}")


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
    """The array in a member of `size` bytes, in memory."""
    shape, fortran, dtype = _header(file, size, what)
    promised = math.prod(shape) * dtype.itemsize
    data = file.read(promised)
    if len(data) != promised or file.read(1):
        raise DataError(f"{what}: its header promises {promised} bytes, it holds another number")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], size: int, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of the array in a member of `size` bytes, which then follows."""
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
    return shape, fortran, dtype.newbyteorder("=") if dtype.isnative else dtype


def _source(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, what: str) -> Source:
    """The array in a member, to be read from the file that it lies in or has been unpacked into."""
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file, member.file_size, what)
        stored = Stored(Named(path), 0, shape, dtype, what)
        if member.compress_type == zipfile.ZIP_STORED:
            stored = replace(stored, offset=_start(path, member) + file.tell())
            while file.read(rows.PORTION_BYTES):  # zipfile compares the checksum at the end
                pass
        else:
            spool = Spool(what, stored.nbytes)
            while portion := file.read(rows.PORTION_BYTES):
                spool.write(portion)
            stored = spool.stored(shape, dtype)
    return _turned(stored) if fortran and len(shape) > 1 else stored


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the data of a member begin: after its local header, which zipfile has found to be one."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL.size)
    if len(header) != _LOCAL.size:
        raise zipfile.BadZipFile("a member is cut short")
    name, extra = _LOCAL.unpack(header)
    start: int = member.header_offset + _LOCAL.size + name + extra
    if member.compress_size != member.file_size or start + member.file_size > path.stat().st_size:
        raise zipfile.BadZipFile("a member that is stored as it is has two sizes")
    return start


def _turned(columns_first: Stored) -> Stored:
    """An array that lies column after column, laid out row after row."""
    count, *rest = columns_first.shape
    spool = Spool(columns_first.what, columns_first.nbytes)
    turned = replace(columns_first, shape=(*reversed(rest), count))
    size = max(1, rows.PORTION_BYTES // max(1, math.prod(rest) * columns_first.dtype.itemsize))
    for first in range(0, count, size):
        spool.write_array(turned.columns(first, min(first + size, count)).T)
    return spool.stored(columns_first.shape, columns_first.dtype)
