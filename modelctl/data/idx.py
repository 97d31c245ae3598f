"""Samples from a folder of IDX files, as MNIST and Fashion-MNIST are handed out, gzipped or not.

Layout of an IDX file (yann.lecun.com/exdb/mnist, "the IDX file format"): two zero bytes, the element type (8: unsigned
byte), the number of axes, the length of each axis as big-endian uint32, then the elements, the last axis fastest. A
folder holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same two for `t10k`.

Images too many to be held (`rows.HELD_BYTES`) are read from where they lie, gzipped ones unpacked once into a temporary
file.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from modelctl.data import rows
from modelctl.data.rows import Array, Named, Rows, Stored
from modelctl.data.samples import Samples
from modelctl.data.spool import LIMIT_BYTES, Spool
from modelctl.errors import DataError

SPLITS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 8
_DEFLATE_RATIO = 1032  # deflate can't unpack to more than this many times its input


def files(folder: Path, split: str) -> tuple[Path, Path]:
    """The files of images and of labels of `train` or `test`; DataError if one is missing."""
    prefix = SPLITS[split]
    return _find(folder, f"{prefix}-images", 3), _find(folder, f"{prefix}-labels", 1)


def read(folder: Path, split: str, name: str) -> Samples:
    """All of a split as it stands: images uint8 [N, 1, H, W] under `name`, labels uint8 [N]; see `scaled`."""
    image_file, label_file = files(folder, split)
    images, labels = _array(image_file, 3), _array(label_file, 1)
    if images.shape[0] != labels.shape[0]:
        told = f"{images.shape[0]} images in {image_file.name}, {labels.shape[0]} labels in {label_file.name}"
        raise DataError(f"{folder}: {told}")
    found = labels if isinstance(labels, np.ndarray) else labels.at(np.arange(labels.shape[0]))
    if isinstance(images, Stored):
        return Samples(Rows({name: images}), found)
    return Samples({name: images}, found)


def scaled(found: Samples) -> Samples:
    """`found` with its bytes 0…255 as float32 0…1."""
    return found.changed(_as_shares, np.dtype(np.float32))


def _as_shares(image: Array) -> Array:
    shares: Array = image.astype(np.float32) / 255
    return shares


def _find(folder: Path, stem: str, axes: int) -> Path:
    names = [f"{stem}{dot}idx{axes}-ubyte{packed}" for packed in ("", ".gz") for dot in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: no {names[0]} here, gzipped or not")


def _array(path: Path, axes: int) -> Array | Stored:
    """The elements of a file; of images with an axis for channels, [N, 1, H, W]."""
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            shape = _header(file, path, axes, path.stat().st_size * (_DEFLATE_RATIO if packed else 1))
            kept = _kept(file, path, shape, packed) if math.prod(shape) > rows.HELD_BYTES else _held(file, path, shape)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file: {error}") from error
    return kept


def _header(file: "IO[bytes] | gzip.GzipFile", path: Path, axes: int, most: int) -> tuple[int, ...]:
    """The shape that the header promises, which is no more than `most` bytes could hold."""
    header = file.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, _UNSIGNED_BYTE, axes)):
        raise DataError(f"{path}: not an IDX file of unsigned bytes with {axes} axes")
    count, *rest = struct.unpack(f">{axes}I", header[4:])
    shape = (count, 1, *rest) if rest else (count,)
    if math.prod(shape) == 0:
        raise DataError(f"{path}: holds no samples")
    if math.prod(shape) > min(most, LIMIT_BYTES):
        raise _lies(path, shape, "fewer")
    return shape


def _held(file: "IO[bytes] | gzip.GzipFile", path: Path, shape: tuple[int, ...]) -> Array:
    """The elements, in memory, no more of them unpacked than the header promises."""
    promised = math.prod(shape)
    data = file.read(promised)
    if len(data) != promised or file.read(1):
        raise _lies(path, shape, "more" if len(data) == promised else "fewer")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _kept(file: "IO[bytes] | gzip.GzipFile", path: Path, shape: tuple[int, ...], packed: bool) -> Stored:
    """The elements, to be read from their file, or from the one that they are unpacked into."""
    dtype, promised = np.dtype(np.uint8), math.prod(shape)
    if not packed:
        start, size = file.tell(), path.stat().st_size
        if size - start != promised:
            raise _lies(path, shape, "more" if size - start > promised else "fewer")
        return Stored(Named(path), start, shape, dtype, str(path))
    spool = Spool(str(path), promised)
    while portion := file.read(min(rows.PORTION_BYTES, promised - spool.size)):
        spool.write(portion)
    if spool.size != promised or file.read(1):
        raise _lies(path, shape, "more" if spool.size == promised else "fewer")
    return spool.stored(shape, dtype)


def _lies(path: Path, shape: tuple[int, ...], what: str) -> DataError:
    shown = "×".join(map(str, (shape[0], *shape[2:])))
    return DataError(f"{path}: its header promises {shown} bytes, it holds {what}")
