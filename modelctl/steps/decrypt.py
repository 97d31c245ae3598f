"""`decrypt`: a sealed artifact back to the plain one, manifest and signature as they were."""

import contextlib
import os
from pathlib import Path
from typing import IO

from modelctl import artifact, manifest
from modelctl.artifact import Artifact
from modelctl.crypto import envelope, keys
from modelctl.errors import ArtifactError, UsageError
from modelctl.manifest import FileEntry, Manifest
from modelctl.options import DecryptOptions
from modelctl.progress import Progress, silent
from modelctl.staging import Stage, stage


def decrypt(model: Artifact, out: Path, options: DecryptOptions, progress: Progress = silent) -> Artifact:
    """Write what is sealed in `model` to `out`: a folder, or a file of the very name that the sealed one had.

    The files appear when the last byte has been verified; whatever fails before leaves nothing of them. UsageError when
    `out` has another name or would be lost, KeyFileError when no key fits, IntegrityError for a changed byte.
    """
    folder, name = (out, None) if out.is_dir() else (out.parent, out.name)
    with stage(folder, model.path.name) as staged:
        write = _Writing(staged, name, options.force)
        inside = envelope.unseal(
            model, keys.opening(options), write.sink, threads=options.thread_count(), progress=progress
        )
        names = [entry.path for entry in inside.manifest.files]
        primary = folder / names[0]
        if inside.signature is not None:
            names.append(names[0] + manifest.SIGNATURE_SUFFIX)
            (staged.folder / names[-1]).write_bytes(inside.signature)
        sidecar = names[0] + manifest.SUFFIX
        (staged.folder / sidecar).write_bytes(inside.manifest_bytes)
        for file in names:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
        staged.commit(names, sidecar, stale=artifact.left_behind(primary))
    return Artifact.open(primary)


class _Writing:
    """Where the files of a sealed artifact take shape: refuses, before the first byte, what may not be written."""

    def __init__(self, staged: Stage, name: str | None, force: bool) -> None:
        self.staged, self.name, self.force = staged, name, force
        self._looked = False

    def sink(self, described: Manifest, entry: FileEntry) -> IO[bytes]:
        """A file in the stage for `entry`."""
        if not self._looked:
            self._refuse(described)
            self._looked = True
        file = self.staged.folder / entry.path
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("xb")

    def _refuse(self, described: Manifest) -> None:
        primary = described.files[0].path
        if self.name is not None and self.name != primary:
            raise UsageError(
                f"{self.staged.target / self.name}: what is sealed is called {primary}, and its signature covers the "
                "name",
                f"-o {self.staged.target / primary}",
            )
        sidecars = [primary + manifest.SUFFIX, primary + manifest.SIGNATURE_SUFFIX]
        for path in [*(entry.path for entry in described.files), *sidecars]:
            target = self.staged.target / path
            for parent in list(target.parents)[: path.count("/")]:
                if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
                    raise UsageError(f"{parent}: is not a plain folder, and {path} belongs into it")
            if target.is_symlink() or target.is_dir():
                raise UsageError(f"{target}: is a {'link' if target.is_symlink() else 'folder'}, not a file to write")
            if os.path.lexists(target) and not self.force and not self._same(described):
                raise UsageError(f"{target}: stands already and is another", "add --force to replace it")

    def _same(self, described: Manifest) -> bool:
        """Whether what stands is the very artifact that is being opened."""
        with contextlib.suppress(ArtifactError):
            return Artifact.open(self.staged.target / described.files[0].path).manifest == described
        return False
