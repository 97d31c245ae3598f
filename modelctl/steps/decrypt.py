"""`decrypt`: a sealed artifact back to the plain one, manifest and signature as they were."""

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import IO

from modelctl import arrival, artifact
from modelctl.artifact import Artifact, format_of
from modelctl.crypto import envelope, keys
from modelctl.crypto.contents import Inside
from modelctl.crypto.signing import SIGNATURE
from modelctl.errors import ArtifactError, UnsupportedError, UsageError
from modelctl.manifest import FileEntry, Manifest
from modelctl.options import DecryptOptions
from modelctl.progress import Progress, silent
from modelctl.staging import Stage, stage

MOST_UNNAMED = 256  # each holds a handle, and a process is granted only so many


def decrypt(model: Artifact, out: Path, options: DecryptOptions, progress: Progress = silent) -> Artifact:
    """Write what is sealed in `model` to `out`: a folder, or a file of the very name that the sealed one had.

    The files appear when the last byte has been verified; whatever fails before leaves nothing of them. UsageError when
    `out` has another name or would be lost, UnsupportedError for what is not sealed, KeyFileError when no key fits,
    ArtifactError for what can't be laid out, IntegrityError for a changed byte.
    """
    _refuse_unsealed(model)
    folder, name = (out, None) if out.is_dir() else (out.parent, out.name)
    opening = keys.opening(options)
    with stage(folder, name or model.name) as staged, contextlib.ExitStack() as held:
        writing = _Writing(model.path, staged, held, name, options.force)
        inside = envelope.unseal(model, opening, writing.sink, threads=options.thread_count(), progress=progress)
        writing.appear()
        stale = partial(writing.replaced, inside)
        arrival.settle(staged, inside.manifest, inside.manifest_bytes, inside.signature, stale)
    return Artifact.open(folder / inside.manifest.files[0].path)


def content(model: Artifact, options: DecryptOptions, progress: Progress = silent) -> bytes:
    """The bytes of the one file that is sealed in `model`, verified, in memory only; errors as `decrypt` raises them.

    UnsupportedError when several are sealed in it: one of them alone is no model.
    """
    _refuse_unsealed(model)
    payload = envelope.open_sealed(model, keys.opening(options), threads=options.thread_count(), progress=progress)
    if len(payload.files) > 1:
        raise UnsupportedError(f"{model.path}: holds {len(payload.files)} files, which one stream can't", "-o .")
    return payload.primary


def _refuse_unsealed(model: Artifact) -> None:
    if format_of(model.path) != "sealed":
        raise UnsupportedError(f"{model.path}: is not sealed")


class _Writing:
    """Where the files of a sealed artifact take shape: without a name, where the system can, until all is verified.

    A file without a name is gone with its process, even one that is killed and sweeps nothing up after itself.
    """

    def __init__(self, source: Path, staged: Stage, held: contextlib.ExitStack, name: str | None, force: bool) -> None:
        self.source, self.staged, self.held, self.name, self.force = source, staged, held, name, force
        self._unnamed: dict[Path, int] = {}
        self._looked = False

    def sink(self, described: Manifest, entry: FileEntry) -> IO[bytes]:
        """A place to write for `entry`; before the first one, refuses what may not be written."""
        if not self._looked:
            self._refuse(described)
            self._looked = True
        path = self.staged.folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _unnamed_in(path.parent) if len(self._unnamed) < MOST_UNNAMED else None
        if handle is None:
            return path.open("xb")
        self.held.callback(os.close, handle)
        self._unnamed[path] = handle
        return os.fdopen(os.dup(handle), "wb")

    def appear(self) -> None:
        """Give the files their names in the stage."""
        for path, handle in self._unnamed.items():
            # With a folder's handle given, link(2) becomes linkat(2), which follows the link that /proc shows.
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)

    def replaced(self, inside: Inside) -> list[str]:
        """What an older version left in the way, after a last look whether that may be replaced."""
        self._refuse(inside.manifest)
        primary = self.staged.target / inside.manifest.files[0].path
        signature = artifact.signature_path(primary)
        if signature.is_file() and not self.force and SIGNATURE.data(signature) != inside.signature:
            raise UsageError(
                f"{signature}: holds signatures that are not in the sealed file", "add --force to replace it"
            )
        return artifact.left_behind(primary)

    def _refuse(self, described: Manifest) -> None:
        target = self.staged.target
        paths = arrival.paths_of(described, signed=True, name=str(self.source))
        if self.name not in (None, paths[0]):
            raise UsageError(
                f"{target / str(self.name)}: what is sealed is called {paths[0]}, a name that its signature covers",
                f"-o {target / paths[0]}",
            )
        for path in paths:
            if (target / path).exists() and self.source.samefile(target / path):
                raise UsageError(f"{target / path}: is the input itself; a step leaves its input alone")
        arrival.refuse(target, paths, replace=self.force or self._stands(described))

    def _stands(self, described: Manifest) -> bool:
        """Whether what stands is the very artifact that is being opened."""
        with contextlib.suppress(ArtifactError):
            return Artifact.open(self.staged.target / described.files[0].path).manifest == described
        return False


def _unnamed_in(folder: Path) -> int | None:
    """A handle on a file without a name, None where the system or the file system has none such."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:
        return None
