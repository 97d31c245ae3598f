"""An artifact: a file (or several) and the manifest beside it, written together through one door or not at all.

`create` is that door: a step writes into a staging folder, every file is hashed, and files and manifest appear together
when the block ends well. `Origin` says what an artifact is made from; it is what the manifest remembers and what
`is_current` asks after.
"""

import contextlib
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from modelctl import __version__, digests, manifest, record
from modelctl.errors import ArtifactError, IntegrityError, UsageError
from modelctl.manifest import Encryption, FileEntry, Manifest, Record, Step, TensorSpec
from modelctl.options import StepOptions
from modelctl.staging import refuse_no_file, refuse_no_folder, stage

FORMATS = {
    ".onnx": "onnx",
    ".pt2": "pt2",
    ".pt": "checkpoint",
    ".pth": "checkpoint",
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".sealed": "sealed",
}


def model_name(path: Path) -> str:
    """The name of what a file holds: its own without known suffixes, `resnet-1.2.onnx.sealed` → `resnet-1.2`."""
    name = path.name
    while (suffix := Path(name).suffix) in FORMATS and name != suffix:
        name = name[: -len(suffix)]
    return name


def format_of(path: Path) -> str:
    """The format that a file's suffix names; ArtifactError for a suffix that we do not know."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ArtifactError(
            f"{path}: no format goes by the suffix {suffix or '(none)'!r}", f"one of {' '.join(FORMATS)}"
        )
    return FORMATS[suffix]


def manifest_path(path: Path) -> Path:
    """Where the manifest of an artifact's primary file lies."""
    return path.with_name(path.name + manifest.SUFFIX)


def signature_path(path: Path) -> Path:
    """Where the signature of an artifact's primary file lies."""
    return path.with_name(path.name + manifest.SIGNATURE_SUFFIX)


@dataclass(frozen=True)
class Artifact:
    """A file that can be opened, and what its manifest says of it; nothing here knows what is inside the bytes."""

    path: Path
    manifest: Manifest
    manifest_sha256: str | None  # None: a foreign file, which has no manifest on disk

    @classmethod
    def open(cls, path: Path) -> "Artifact":
        """The artifact at `path`; a file without a manifest is a foreign one, and the root of a lineage.

        ArtifactError when the file or its manifest is missing or malformed. Content is hashed by `load` and `verify`.
        """
        if not path.is_file():
            other = "is not a plain file" if path.exists() else "no such file"
            what = "is a folder, not a model file" if path.is_dir() else other
            raise ArtifactError(f"{path}: {what}")
        sidecar = manifest_path(path)
        if not os.path.lexists(sidecar):
            return cls(path, _foreign(path), None)
        if sidecar.is_symlink() or not sidecar.is_file():
            raise ArtifactError(f"{sidecar}: is not a plain file, so it is no manifest")
        data = _read_at_most(sidecar, manifest.LIMIT_BYTES + 1)
        described = manifest.parse(data, str(sidecar))
        if described.files[0].path != path.name:
            raise ArtifactError(f"{sidecar}: describes {described.files[0].path!r}, not {path.name!r}")
        return cls(path, described, digests.of_bytes(data))

    @property
    def name(self) -> str:
        """The name that it is served and stored under."""
        return self.manifest.name

    @property
    def digest(self) -> str:
        """See `Manifest.digest`."""
        return self.manifest.digest

    @property
    def size_bytes(self) -> int:
        """The size of all its files together."""
        return sum(entry.size for entry in self.manifest.files)

    def file(self, entry: FileEntry) -> Path:
        """Where one of its files lies."""
        return self.path.parent / entry.path

    def load(self) -> "Payload":
        """The bytes of all files, checked against the manifest as they were read; IntegrityError if they differ."""
        files: dict[str, bytes] = {}
        for entry in self.manifest.files:
            data = _read_entry(self.file(entry), entry.size)
            if data is None or digests.of_bytes(data) != entry.sha256:
                raise IntegrityError(f"{self.file(entry)}: the bytes are not the ones that its manifest describes")
            files[entry.path] = data
        return Payload(self.manifest, files)


@dataclass(frozen=True)
class Payload:
    """An artifact in memory: its manifest and the verified bytes of its files, the primary one first."""

    manifest: Manifest
    files: Mapping[str, bytes]
    signature: bytes | None = None  # the DSSE envelope that came with it, when it came sealed
    manifest_bytes: bytes | None = None  # the manifest as it stood, which the signature covers, when it came sealed

    @property
    def primary(self) -> bytes:
        """The bytes of the primary file."""
        return self.files[self.manifest.files[0].path]


def _read_at_most(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)


def _read_entry(path: Path, size: int) -> bytes | None:
    """A listed file's bytes, or None when it is not `size` bytes long; a pipe is never waited for."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                return None
            data = file.read(size + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: no such file, but the manifest lists it") from error
    return data if len(data) == size else None


def _foreign(path: Path) -> Manifest:
    if not path.name.isprintable():
        raise ArtifactError(f"{path}: its name holds characters that a manifest can't keep")
    entry = FileEntry(path=path.name, size=path.stat().st_size, sha256=digests.of_file(path))
    return Manifest(name=model_name(path), format=format_of(path), files=(entry,))


@dataclass(frozen=True)
class Origin:
    """What an artifact is made from: the step, its options, the parents, and what the step adds to what is remembered.

    `also` joins the remembered options: ids of keys, digests of code; nothing in it may change from run to run.
    `libraries` are the distributions whose versions the bytes depend on.
    """

    step: str
    options: StepOptions
    parents: tuple[Artifact, ...]
    also: Mapping[str, Any] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()

    @cached_property
    def made_by(self) -> Step:
        """The record of the making, as the manifest keeps it; choices aside, which are known only at the end."""
        return Step(
            step=self.step,
            version=__version__,
            # Through JSON, so that it equals what a manifest gives back: a tuple is a list there.
            options=msgspec.json.decode(msgspec.json.encode(record.options(self.options) | dict(self.also))),
            parents=tuple(parent.digest for parent in self.parents),
            seed=getattr(self.options, "seed", None),
            environment=_environment(self.libraries),
        )

    @cached_property
    def lineage(self) -> tuple[Record, ...]:
        """The records of all ancestors, each once, oldest first."""
        found: dict[str, Record] = {}
        for parent in self.parents:
            for ancestor in parent.manifest.history():
                found.setdefault(ancestor.digest, ancestor)
        return tuple(found.values())

    def made(self, standing: Manifest) -> bool:
        """Whether a manifest tells of this very origin: same step, options, parents and lineage, metrics aside."""
        made = standing.made_by
        if made is None or (made.step, made.options) != (self.step, self.made_by.options):
            return False
        if standing.encryption is not None and not made.parents:  # sealed in private: the parents are not told
            return [standing.encryption.digest] == [parent.digest for parent in self.parents]
        return made.parents == self.made_by.parents and _told(standing.lineage) == _told(self.lineage)

    def is_current(self, out: Path) -> bool:
        """Whether `out` stands, whole, as this origin would make it, so that nothing need be done."""
        try:
            standing = Artifact.open(out)
        except ArtifactError:
            return False
        if not self.made(standing.manifest) or standing.manifest.annotations != self.options.annotation_map():
            return False
        return all(
            standing.file(entry).is_file() and digests.of_file(standing.file(entry)) == entry.sha256
            for entry in standing.manifest.files
        )


def _environment(libraries: Sequence[str]) -> dict[str, str]:
    from importlib import metadata  # here, for it takes 10 ms that `--help` need not wait

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in libraries:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _told(records: Sequence[Record]) -> list[tuple[object, ...]]:
    """What of a lineage must be the same for two of them to tell the same."""
    steps = [one.made_by for one in records]
    return [
        (one.format, one.digest, step and (step.step, step.options, step.parents))
        for one, step in zip(records, steps, strict=True)
    ]


@dataclass
class Draft:
    """An artifact in the making: write `path` (and further files beside it), and say what is known of it."""

    path: Path
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    preprocess: tuple[dict[str, Any], ...] = ()
    postprocess: tuple[dict[str, Any], ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    encryption: Encryption | None = None
    private: bool = False  # tell neither history, nor signature, nor figures
    known: dict[str, tuple[int, str]] = field(default_factory=dict)  # size and digest of files hashed while written


@contextlib.contextmanager
def create(out: Path, origin: Origin) -> Iterator[Draft]:
    """The one door through which artifacts are written: yields a `Draft`, and commits it when the block ends well.

    The draft begins with the first parent's inputs, outputs and processing. UsageError before any work when `out` can't
    be the name of an artifact or may not be written, see `check_out`.
    """
    made_by = origin.made_by  # now: a file that changes while the step runs is remembered as the step found it
    with stage(out.parent, out.name, lambda: check_out(out, origin)) as staged:
        draft = Draft(staged.folder / out.name)
        if origin.parents:
            first = origin.parents[0].manifest
            draft.inputs, draft.outputs = first.inputs, first.outputs
            draft.preprocess, draft.postprocess = first.preprocess, first.postprocess
        yield draft
        made_by = msgspec.structs.replace(made_by, choices=draft.choices)
        made = _described(out, origin, made_by, draft, _hashed(staged.folder, out.name, draft.known))
        sidecar = staged.folder / (out.name + manifest.SUFFIX)
        sidecar.write_bytes(made.text().encode())
        manifest.parse(sidecar.read_bytes(), str(manifest_path(out)))  # what is written can be read
        names = [entry.path for entry in made.files]
        staged.commit(names, sidecar.name, stale=lambda: _replaced(out, origin, names))


def _described(out: Path, origin: Origin, made_by: Step, draft: Draft, files: tuple[FileEntry, ...]) -> Manifest:
    made = Manifest(
        name=model_name(out),
        format=format_of(out),
        files=files,
        made_by=msgspec.structs.replace(made_by, parents=()) if draft.private else made_by,
        annotations=origin.options.annotation_map(),
        encryption=draft.encryption,
    )
    if draft.private:
        return made
    return msgspec.structs.replace(
        made,
        inputs=draft.inputs,
        outputs=draft.outputs,
        preprocess=draft.preprocess,
        postprocess=draft.postprocess,
        metrics=draft.metrics,
        lineage=origin.lineage,
    )


def refuse_folder(out: Path) -> None:
    """UsageError where `out` is to be a file, but a folder stands."""
    if out.is_dir():
        raise UsageError(f"{out}: is a folder, not a file to write", f"-o {shlex.quote(str(out / 'model.onnx'))}")


def check_out(out: Path, origin: Origin) -> None:
    """Refuse, with a UsageError, an `out` that can't be written or that stands and would be lost.

    It must have the suffix of a format, a name that a manifest can keep, and a folder to lie in; it may be no link, no
    folder and no file of a parent; and what stands there must be of this very origin, unless the options `force` it.
    """
    refuse_folder(out)
    format_of(out)
    try:
        manifest.check_path(out.name, str(out))
    except ArtifactError as error:
        raise UsageError(
            f"{out}: no name for an artifact: hidden, or with a character that not every system has"
        ) from error
    refuse_no_folder(out)
    refuse_no_file(out)
    if not out.exists():
        return
    for parent in origin.parents:
        files = [parent.path, *(parent.file(entry) for entry in parent.manifest.files)]
        if any(file.exists() and file.samefile(out) for file in files):
            raise UsageError(
                f"{out}: is the input itself; a step leaves its input alone", "choose another name with -o"
            )
    if origin.options.force:
        return
    with contextlib.suppress(ArtifactError):
        if origin.made(Artifact.open(out).manifest):
            return
    raise UsageError(f"{out}: stands already, and this command would not make the same", "add --force to replace it")


def left_behind(out: Path) -> list[str]:
    """Names beside `out` that an older version of it put there and a newer one must not find: files, signature.

    A file whose bytes are not those of the old manifest is nothing that the older version put there.
    """
    names = [out.name + manifest.SIGNATURE_SUFFIX]
    with contextlib.suppress(ArtifactError):
        standing = Artifact.open(out)
        for entry in standing.manifest.files:
            file = standing.file(entry)
            ours = file == out or (file.is_file() and not file.is_symlink() and digests.of_file(file) == entry.sha256)
            if "/" not in entry.path and ours:
                names.append(entry.path)
    return names


def _replaced(out: Path, origin: Origin, names: Sequence[str]) -> list[str]:
    """`left_behind(out)`, after a last look whether what is to be replaced may be."""
    check_out(out, origin)
    stale = left_behind(out)
    for name in names:
        beside = out.with_name(name)
        if name != out.name and name not in stale and os.path.lexists(beside) and not origin.options.force:
            raise UsageError(f"{beside}: stands already, and is no file of {out.name}", "add --force to replace it")
    return stale


def _hashed(folder: Path, primary: str, known: Mapping[str, tuple[int, str]]) -> tuple[FileEntry, ...]:
    entries = []
    for name in sorted((file.name for file in folder.iterdir()), key=lambda name: (name != primary, name)):
        size, sha256 = known.get(name) or ((folder / name).stat().st_size, digests.of_file(folder / name))
        entries.append(FileEntry(path=name, size=size, sha256=sha256))
    if not entries or entries[0].path != primary:
        raise RuntimeError(f"a step ended well without having written {primary}")
    return tuple(entries)
