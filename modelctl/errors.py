"""The errors that a user can cause or cure; everything else is a bug and keeps its traceback.

    ModelctlError             2   could not: bad flag, missing file, unreachable store, missing extra
    ├── UsageError                the command line or the pipeline file asks for something that makes no sense
    ├── ArtifactError             a model file or its manifest is missing or malformed
    ├── DataError                 samples or labels are missing, malformed or do not fit the model
    ├── KeyFileError              a key or passphrase is missing, malformed, unsafe or the wrong one
    ├── UnsupportedError          a sound request, but not one this step can carry out
    ├── StoreError                a store can't be reached, read or written
    └── CheckFailed           1   ran to the end, and the answer is no: parity, a gate, verify
        └── IntegrityError        the bytes are not the ones the manifest or the seal promises

A message names the file first, then the trouble; lower case, no period. A hint is a line one can type.
"""

from typing import Any


class ModelctlError(Exception):
    """What went wrong (`message`), what to type next (`hint`), and the exit status of the process."""

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ModelctlError):
    """The command line, the environment or the pipeline file asks for something that makes no sense."""


class ArtifactError(ModelctlError):
    """A model file or its manifest is missing or malformed."""


class DataError(ModelctlError):
    """Samples or labels are missing, malformed, or do not fit the model."""


class KeyFileError(ModelctlError):
    """A key or passphrase is missing, malformed, readable by others, or not the one that opens this file."""


class UnsupportedError(ModelctlError):
    """A sound request, but not one that this step can carry out."""


class StoreError(ModelctlError):
    """A store can't be reached, read or written, or is not a store."""


class CheckFailed(ModelctlError):  # noqa: N818 - the name says what happened: a check ran and said no
    """A check ran to its end and the answer is no; `facts` is what it measured, to be shown beside the refusal."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None, facts: dict[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.facts = facts


class IntegrityError(CheckFailed):
    """The bytes are not the ones that a manifest, a signature or a seal promises."""


def missing_extra(what: str, extra: str) -> UnsupportedError:
    """The error for a command whose optional library is not installed."""
    return UnsupportedError(f"{what}, which is not installed", f"pip install 'modelctl[{extra}]'")
