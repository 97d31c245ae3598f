"""Samples from a folder of IDX files, as MNIST and Fashion-MNIST are handed out, gzipped or not.

Layout of an IDX file (yann.lecun.com/exdb/mnist, "the IDX file format"): two zero bytes, the element type (8: unsigned
byte), the number of axes, the length of each axis as big-endian uint32, then the elements, the last axis fastest. A
folder holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same two for `t10k`.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from modelctl.data.samples import Array, Samples
from modelctl.errors import DataError

SPLITS = {"train": "train", "test": "t10k"}
LIMIT_BYTES = 8 << 30
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
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {len(images)} images in {image_file.name}, {len(labels)} labels in {label_file.name}"
        )
    return Samples({name: images[:, np.newaxis]}, labels)


def scaled(found: Samples) -> Samples:
    """`found` with its bytes 0…255 as float32 0…1."""
    return Samples({name: image.astype(np.float32) / 255 for name, image in found.inputs.items()}, found.labels)


def _find(folder: Path, stem: str, axes: int) -> Path:
    names = [f"{stem}{dot}idx{axes}-ubyte{packed}" for packed in ("", ".gz") for dot in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: no {names[0]} here, gzipped or not")


def _array(path: Path, axes: int) -> Array:
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            return _read(file, path, axes, path.stat().st_size * (_DEFLATE_RATIO if packed else 1))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file: {error}") from error


def _read(file: "IO[bytes] | gzip.GzipFile", path: Path, axes: int, most: int) -> Array:
    """The elements, no more of them unpacked than the header promises, and no more promised than `most` could hold."""
    header = file.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, _UNSIGNED_BYTE, axes)):
        raise DataError(f"{path}: not an IDX file of unsigned bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", header[4:])
    promised = math.prod(shape)
    if promised == 0:
        raise DataError(f"{path}: holds no samples")
    data = file.read(promised) if promised <= min(most, LIMIT_BYTES) else b""
    if len(data) != promised or file.read(1):
        shown = "×".join(map(str, shape))
        raise DataError(
            f"{path}: its header promises {shown} bytes, it holds {'more' if data[promised - 1 :] else 'fewer'}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
