"""Samples from a folder of pictures, for a model that declares how a picture becomes its input.

The folder has a folder for each class; or `train` and `test`, which have those. Classes are counted in the order of
their names, or as the model's own labels are where each folder bears the name of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Classes:
    """The folders of classes in the folder at `path`, in the order of their names, and the pictures in each."""

    path: Path
    files: Mapping[str, tuple[Path, ...]]

    @property
    def pictures(self) -> list[Path]:
        """The pictures of all classes, in the order of their names."""
        return [file for files in self.files.values() for file in files]


def found(path: Path) -> dict[str, Classes]:
    """The pictures in a folder, `train` and `test` apart where they come so, else under no name; empty if none are."""
    whole = _listed(path)
    splits = {name: _listed(path / name) for name in SPLITS if name in whole.files}
    if whole.pictures or not any(one.pictures for one in splits.values()):
        return {"": whole} if whole.pictures else {}
    return splits if len(whole.files) == len(SPLITS) == len(splits) else {"": whole}


def _listed(path: Path) -> Classes:
    folders = sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
    return Classes(path, {folder.name: tuple(sorted(filter(_is_picture, folder.iterdir()))) for folder in folders})


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")


def read(given: Classes, before: Before | None, labels: Sequence[str]) -> Samples:
    """The pictures of a folder as what the model takes, their classes as labels; DataError."""
    if before is None or before.kinds != ["image"]:
        raise DataError(
            f"{given.path}: holds pictures, and the model declares no picture as its input",
            "modelctl export model.onnx --preprocess image:28x28 -o declared.onnx",
        )
    files, classes = given.pictures, _classes(given, labels)
    entry = before.entries[0]
    gathering = Gathering(str(given.path), [entry.input], ())
    for first in range(0, len(files), TOGETHER):
        together = files[first : first + TOGETHER]
        gathering.add(before.feeds([PICTURE.data(one) for one in together], [str(one) for one in together]))
    named = np.array([classes[one.parent.name] for one in files], np.int64)
    return replace(gathering.samples(), labels=named)


def _classes(given: Classes, labels: Sequence[str]) -> dict[str, int]:
    names = list(given.files)
    if labels and set(names) <= set(labels):
        return {name: labels.index(name) for name in names}
    if labels and len(names) != len(labels):
        other = next(name for name in names if name not in labels)
        raise DataError(f"{given.path}: the folder {other!r} is none of the model's labels: {', '.join(labels[:8])}")
    return {name: place for place, name in enumerate(names)}
