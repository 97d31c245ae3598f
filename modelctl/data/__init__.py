"""Where samples come from: one reader a file, chosen by what the reference points at, and how they are split.

A reference is `path#split=train|test,limit=N`. A folder is read as IDX files, which come split; anything else must be
an `.npz`, which is split 80/10/10 by the seed. Nothing is read before it is asked for, and nothing twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from modelctl import digests
from modelctl.data import idx, npz
from modelctl.data.samples import Samples, checked
from modelctl.errors import DataError
from modelctl.manifest import TensorSpec
from modelctl.record import DataRef

__all__ = ["Data", "Samples", "open_data"]

HELD_OUT = 0.1


@dataclass(frozen=True, eq=False)
class Data:
    """Samples that fit a model, in three parts that share none: to learn from, to choose by, to report on.

    Where the reference names a split, that split is dealt out 80/10/10 by the seed, and `scored` is all of it.
    Otherwise an IDX folder's test files are the test part and a tenth of its training files is held out as validation,
    a single file is dealt out 80/10/10, and `scored` is the test part. `#limit=N` keeps the first N of each part.
    `columns` are read beside the inputs.
    """

    name: str
    sha256: str
    ref: DataRef
    inputs: tuple[TensorSpec, ...]
    seed: int
    columns: tuple[str, ...] = ()
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
        if self.ref.split is None and self._is_folder:
            return self._ready(self._whole("test"))
        return self._parts[2]

    @cached_property
    def _parts(self) -> tuple[Samples, ...]:
        if self.ref.split is not None:
            return self._dealt(self.scored, HELD_OUT, HELD_OUT)
        if self._is_folder:
            return tuple(map(self._ready, self._dealt(self._whole("train"), HELD_OUT)))
        return tuple(map(self._ready, self._dealt(self._file(), HELD_OUT, HELD_OUT)))

    def _dealt(self, found: Samples, *shares: float) -> tuple[Samples, ...]:
        if len(found) <= len(shares):
            raise DataError(f"{self.name}: {len(found)} samples can't be split in {len(shares) + 1} parts")
        return found.shares(self.seed, *shares)

    def _whole(self, split: str) -> Samples:
        """All samples of `train` or `test`, as the file holds them."""
        if self._is_folder:
            if split not in self._read:
                self._read[split] = idx.read(self.ref.path, split, self._only_input)
            return self._read[split]
        train, _, test = self._dealt(self._file(), HELD_OUT, HELD_OUT)
        return {"train": train, "test": test}[split]

    def _file(self) -> Samples:
        if "" not in self._read:
            self._read[""] = npz.read(self.ref.path, [spec.name for spec in self.inputs], self.columns)
        return self._read[""]

    def _ready(self, found: Samples) -> Samples:
        """Few enough, and as the model takes them."""
        found = found.first(self.ref.limit)
        return checked(idx.scaled(found) if self._is_folder else found, self.inputs, self.name)

    @property
    def _is_folder(self) -> bool:
        return self.ref.path.is_dir()

    @property
    def _only_input(self) -> str:
        if len(self.inputs) != 1:
            raise DataError(f"{self.name}: holds images alone, and the model takes {len(self.inputs)} inputs")
        return self.inputs[0].name


def open_data(text: str, inputs: Sequence[TensorSpec], seed: int, columns: Sequence[str] = ()) -> Data:
    """The data that a `--data` value means, for a model with these inputs; DataError if there are none to be read.

    Its digest is that of exactly the files that the reference selects.
    """
    ref = DataRef.parse(text)
    if not inputs:
        raise DataError(f"{ref.path}: the model takes no inputs that samples could be fed to")
    if columns and ref.path.is_dir():
        raise DataError(f"{ref.path}: has no column {columns[0]!r}: a folder of IDX files holds images and labels only")
    return Data(str(ref.path), digests.of_files(_files(ref)), ref, tuple(inputs), seed, tuple(columns))


def _files(ref: DataRef) -> list[tuple[str, str]]:
    path = ref.path
    if path.is_dir():
        splits = [ref.split] if ref.split else list(idx.SPLITS)
        return [(file.name, digests.of_file(file)) for split in splits for file in idx.files(path, split)]
    if path.suffix.lower() != ".npz":
        raise DataError(f"{path}: no reader for {path.suffix or 'a file without a suffix'}", "--data samples.npz")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    return [(path.name, digests.of_file(path))]
