"""Samples from a folder of pictures, for a model that declares how a picture becomes its input.

The folder has a folder for each class; or `train` and `test`, which have those. Classes are counted in the order of
their names, or as the model's own labels are where each folder bears the name of one.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from modelctl.data.samples import Samples
from modelctl.data.spool import Gathering
from modelctl.errors import DataError
from modelctl.processing.before import Before
from modelctl.reading import Small

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
SPLITS = ("train", "test")
TOGETHER = 64  # made tensors at once
PICTURE = Small("a picture", 64 << 20, DataError)


def is_folder(path: Path) -> bool:
    """Whether a folder has folders with pictures in them, and no files of samples."""
    return path.is_dir() and any(_is_class(one) for place in _places(path) for one in _folders(place))


def comes_split(path: Path) -> bool:
    """Whether the classes lie in `train` and `test`."""
    return {one.name for one in _folders(path)} == set(SPLITS) and not any(map(_is_class, _folders(path)))


def _places(path: Path) -> list[Path]:
    return [path, *(path / name for name in SPLITS if (path / name).is_dir())]


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))


def _is_class(folder: Path) -> bool:
    return any(one.suffix.lower() in SUFFIXES for one in folder.iterdir())


def files(path: Path) -> list[Path]:
    """The pictures of all classes in a folder, in the order of their names."""
    return [
        file
        for folder in _folders(path)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
    ]


def read(path: Path, before: Before | None, labels: Sequence[str]) -> Samples:
    """The pictures of a folder as what the model takes, their classes as labels; DataError."""
    if before is None or before.kinds != ["image"]:
        raise DataError(
            f"{path}: holds pictures, and the model declares no picture as its input",
            "modelctl export model.onnx --preprocess image:28x28 -o declared.onnx",
        )
    found = files(path)
    classes = _classes(path, labels)
    entry = before.entries[0]
    gathering = Gathering(str(path), [entry.input], ())
    for first in range(0, len(found), TOGETHER):
        together = found[first : first + TOGETHER]
        gathering.add(before.feeds([PICTURE.data(one) for one in together], [str(one) for one in together]))
    named = np.array([classes[one.parent.name] for one in found], np.int64)
    return replace(gathering.samples(), labels=named)


def _classes(path: Path, labels: Sequence[str]) -> dict[str, int]:
    names = [one.name for one in _folders(path)]
    if labels and set(names) <= set(labels):
        return {name: labels.index(name) for name in names}
    if labels and len(names) != len(labels):
        other = next(name for name in names if name not in labels)
        raise DataError(f"{path}: the folder {other!r} is none of the model's labels: {', '.join(labels[:8])}")
    return {name: place for place, name in enumerate(names)}
