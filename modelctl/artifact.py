"""An artifact: a file (or several) and the manifest beside it, opened, read and checked; how one is made: `making`."""

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelctl import digests, manifest
from modelctl.errors import ArtifactError, IntegrityError
from modelctl.manifest import FileEntry, Manifest
from modelctl.reading import never_waiting

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
        data = manifest.FILE.data(sidecar)
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


def _read_entry(path: Path, size: int) -> bytes | None:
    """A listed file's bytes, or None when it is not `size` bytes long; a pipe is never waited for."""
    try:
        with open(path, "rb", opener=never_waiting) as file:
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
    found, size = format_of(path), path.stat().st_size
    if not size:
        raise ArtifactError(f"{path}: is empty")
    entry = FileEntry(path=path.name, size=size, sha256=digests.of_file(path))
    return Manifest(name=model_name(path), format=found, files=(entry,))


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
