"""Training that outlives a kill: its whole state in one file, which appears at once or not at all.

`checkpoint.pt` is a zip of tensors as torch writes it, and is read back by `torch.load(weights_only=True)`, which
builds tensors, numbers, strings, lists and dicts and runs nothing. It holds `{layout, fingerprint, state}`. The
fingerprint tells what the state belongs to: model, samples, options, libraries, threads.
"""

import os
import pickle
import shlex
import time
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modelctl.errors import ArtifactError, UsageError
from modelctl.staging import refuse_no_file, refuse_no_folder, sync

LAYOUT = "modelctl/checkpoint/v1"
NAME = "checkpoint.pt"
EVERY_S = 60.0  # between two within one epoch; at the end of an epoch one is always written
UNREADABLE = (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError)


@dataclass
class Checkpoint:
    """Where the state of a training is kept, and whose it is; `anew`: ignore what belongs to another training."""

    folder: Path
    fingerprint: str
    anew: bool = False
    every_s: float = EVERY_S
    _saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder}: is no folder to keep checkpoints in", "--checkpoint checkpoints")
        refuse_no_folder(self.folder)
        refuse_no_file(self.file)

    @property
    def file(self) -> Path:
        """Where it lies."""
        return self.folder / NAME

    def load(self) -> dict[str, Any] | None:
        """The state as it was saved last; None where there is none.

        UsageError when it belongs to another training, ArtifactError when the file can't be read.
        """
        if not self.file.is_file():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch has much to say of what it did not write
                found = torch.load(self.file, map_location="cpu", weights_only=True)
            layout, fingerprint, state = found["layout"], found["fingerprint"], found["state"]
        except UNREADABLE as error:
            raise self.unreadable() from error
        if layout == LAYOUT and fingerprint == self.fingerprint and isinstance(state, dict):
            return state
        if self.anew:
            return None
        raise UsageError(
            f"{self.file}: belongs to a training of another model, or with other samples, options or threads",
            "add --force to begin anew",
        )

    def unreadable(self) -> ArtifactError:
        """The error for a file that is no checkpoint, to be raised."""
        return ArtifactError(f"{self.file}: is not a checkpoint that can be read", f"rm {shlex.quote(str(self.file))}")

    def is_due(self) -> bool:
        """Whether the last one is older than it should be."""
        return time.monotonic() - self._saved_at >= self.every_s

    def save(self, state: dict[str, Any]) -> None:
        """Put a newer state in place of the last one."""
        self.folder.mkdir(exist_ok=True)
        draft = self.folder / f".{NAME}.tmp-{os.getpid()}"
        try:
            torch.save({"layout": LAYOUT, "fingerprint": self.fingerprint, "state": state}, draft)
            sync(draft)
            draft.replace(self.file)
            sync(self.folder)
        finally:
            draft.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Take it away, and the folder too if nothing else lies in it."""
        for left in (self.file, *self.folder.glob(f".{NAME}.tmp-*")):
            left.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
