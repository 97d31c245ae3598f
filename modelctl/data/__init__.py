"""Where samples come from: one reader a file, chosen by what the reference points at, and how they are split.

A reference is `path#split=train|test,limit=N,target=column`. A folder holds IDX files, which come split, or shards,
`.npz` files that are one set in the order of their names, or a folder of pictures for each class (`pictures.py`). All
else is split 80/10/10 by the seed: an `.npz`, shards, a table (`.csv`, `.parquet`), pictures that do not come split, or
what a function `module:function` of the user's project gives. Files are not read before it is asked for, and nothing is
read twice into memory; inputs that are too large for it stay in files (`rows.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from modelctl import digests
from modelctl.data import idx, npz, pictures, stream, table
from modelctl.data.samples import Samples, checked
from modelctl.errors import DataError
from modelctl.manifest import TensorSpec
from modelctl.processing.after import labels_of
from modelctl.processing.declared import Declared
from modelctl.record import DataRef

__all__ = ["Data", "Samples", "open_data"]

HELD_OUT = 0.1


@dataclass(frozen=True)
class Held:
    """What a reference points at holds, looked at once, when it is opened: no folder is listed a second time."""

    is_idx: bool = False
    shards: Sequence[Path] = ()
    classes: Mapping[str, pictures.Classes] = field(default_factory=dict)  # by split, "" where pictures come in none

    @property
    def comes_split(self) -> bool:
        """Whether `train` and `test` lie apart."""
        return self.is_idx or (bool(self.classes) and "" not in self.classes)

    @classmethod
    def of(cls, ref: DataRef) -> "Held":
        """Shards, in the order of their names; else pictures; any other folder is taken for one in MNIST's layout."""
        if ref.is_code or not ref.path.is_dir():
            return cls()
        files = [file for file in ref.path.iterdir() if file.is_file() and not file.name.startswith(".")]
        if any("-ubyte" in file.name for file in files):
            return cls(is_idx=True)
        shards = sorted(file for file in files if file.suffix.lower() == ".npz")
        found = {} if shards else pictures.found(ref.path)
        return cls(is_idx=not (shards or found), shards=shards, classes=found)


@dataclass(frozen=True, eq=False)
class Data:
    """Samples that fit a model, in three parts that share none: to learn from, to choose by, to report on.

    Where the reference names a split, that split is dealt out 80/10/10 by the seed, and `scored` is all of it.
    Otherwise an IDX folder's test files are the test part and a tenth of its training files is held out as validation,
    anything else is dealt out 80/10/10, and `scored` is the test part. `#limit=N` keeps the first N of each part; of
    what a function gives no more than N are asked for in all. `columns` are read beside the inputs.

    The order is that of the seed, the same each time, so that who stopped after k samples goes on with those after.
    """

    name: str
    sha256: str
    ref: DataRef
    inputs: tuple[TensorSpec, ...]
    seed: int
    columns: tuple[str, ...] = ()
    declared: Declared | None = None
    held: Held = field(default=Held(), repr=False)
    _read: dict[str, Samples] = field(default_factory=dict, repr=False)

    @cached_property
    def scored(self) -> Samples:
        """What `eval` scores: all of the split that is named, else the test part."""
        return self.test if self.ref.split is None else self._ready(self._whole(self.ref.split))

    @property
    def train(self) -> Samples:
        """To learn from, and to calibrate on."""
        return self._parts[0]

    @property
    def validation(self) -> Samples:
        """To choose by: no figure that is reported comes from here."""
        return self._parts[1]

    @cached_property
    def test(self) -> Samples:
        """To report on: nothing was learned or chosen by these."""
        if self.ref.split is None and self.held.comes_split:
            return self._ready(self._whole("test"))
        return self._parts[2]

    @cached_property
    def _parts(self) -> tuple[Samples, ...]:
        if self.ref.split is not None:
            return self._dealt(self.scored, HELD_OUT, HELD_OUT)
        if self.held.comes_split:
            return tuple(map(self._ready, self._dealt(self._whole("train"), HELD_OUT)))
        return tuple(map(self._ready, self._dealt(self._file(), HELD_OUT, HELD_OUT)))

    def _dealt(self, found: Samples, *shares: float) -> tuple[Samples, ...]:
        if len(found) <= len(shares):
            raise DataError(f"{self.name}: {len(found)} samples can't be split in {len(shares) + 1} parts")
        return found.shares(self.seed, *shares)

    def _whole(self, split: str) -> Samples:
        """All samples of `train` or `test`, as the file holds them."""
        if self.held.comes_split:
            if split not in self._read:
                self._read[split] = self._split_of_folder(split)
            return self._read[split]
        train, _, test = self._dealt(self._file(), HELD_OUT, HELD_OUT)
        return {"train": train, "test": test}[split]

    def _split_of_folder(self, split: str) -> Samples:
        if self.held.is_idx:
            return idx.read(self.ref.path, split, self._only_input)
        return self._pictures(split)

    def _pictures(self, split: str) -> Samples:
        found = self.held.classes[split]
        if self.columns:
            raise DataError(
                f"{found.path}: has no column {self.columns[0]!r}: it holds pictures and their classes only"
            )
        after = None if self.declared is None else self.declared.after
        return pictures.read(found, None if self.declared is None else self.declared.before, labels_of(after))

    def _file(self) -> Samples:
        if "" not in self._read:
            names, path = [spec.name for spec in self.inputs], self.ref.path
            before = None if self.declared is None else self.declared.before
            if self.held.classes:
                self._read[""] = self._pictures("")
            elif self.held.shards:
                self._read[""] = npz.read_shards(self.held.shards, names, self.columns)
            elif path.suffix.lower() in table.SUFFIXES:
                self._read[""] = table.read(path, self.inputs, self.columns, self.ref.target, before)
            else:
                self._read[""] = npz.read(path, names, self.columns)
        return self._read[""]

    def _ready(self, found: Samples) -> Samples:
        """Few enough, and as the model takes them."""
        found = found.first(self.ref.limit)
        return checked(idx.scaled(found) if self.held.is_idx else found, self.inputs, self.name)

    @property
    def _only_input(self) -> str:
        if len(self.inputs) != 1:
            raise DataError(f"{self.name}: holds images alone, and the model takes {len(self.inputs)} inputs")
        return self.inputs[0].name


def open_data(
    text: str,
    inputs: Sequence[TensorSpec],
    seed: int,
    columns: Sequence[str] = (),
    declared: Declared | None = None,
) -> Data:
    """The data that a `--data` value means, for a model with these inputs; DataError if there are none to be read.

    What is raw goes through what the model `declared`: a folder of pictures, a table of cells.
    Its digest is that of exactly the files that the reference selects; of a function, which is called here, that of the
    samples that it gives.
    """
    ref = DataRef.parse(text)
    held = Held.of(ref)
    if not inputs:
        raise DataError(f"{ref.path}: the model takes no inputs that samples could be fed to")
    if columns and held.is_idx:
        raise DataError(f"{ref.path}: has no column {columns[0]!r}: a folder of IDX files holds images and labels only")
    if ref.target is not None and (ref.is_code or ref.path.suffix.lower() not in table.SUFFIXES):
        raise DataError(f"{ref.path}: #target= names a column of a table, .csv or .parquet; labels are 'y' here")
    if ref.is_code:
        found, sha256 = stream.read(str(ref.path), [spec.name for spec in inputs], columns, ref.limit)
        return Data(str(ref.path), sha256, ref, tuple(inputs), seed, tuple(columns), None, held, {"": found})
    sha256 = digests.of_files(_files(ref, held))
    return Data(str(ref.path), sha256, ref, tuple(inputs), seed, tuple(columns), declared, held)


def _files(ref: DataRef, held: Held) -> list[tuple[str, str]]:
    path = ref.path
    if held.is_idx:
        splits = [ref.split] if ref.split else list(idx.SPLITS)
        return [(file.name, digests.of_file(file)) for split in splits for file in idx.files(path, split)]
    if held.classes:
        chosen = [held.classes[ref.split]] if ref.split and held.comes_split else held.classes.values()
        files = [file for one in chosen for file in one.pictures]
        return [(file.relative_to(path).as_posix(), digests.of_file(file)) for file in files]
    if held.shards:
        return [(file.name, digests.of_file(file)) for file in held.shards]
    if path.suffix.lower() not in (".npz", *table.SUFFIXES):
        raise DataError(f"{path}: no reader for {path.suffix or 'a file without a suffix'}", "--data samples.npz")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    return [(path.name, digests.of_file(path))]
