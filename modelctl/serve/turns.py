"""One process at a time: a lock among workers that the system releases when its holder dies."""

import fcntl
import os
import tempfile
from types import TracebackType


class Turns:
    """A lock on a file without a name, which workers inherit; within a process it does not tell threads apart."""

    def __init__(self, size: int = 1) -> None:
        if hasattr(os, "memfd_create"):
            self.handle = os.memfd_create("modelctl")
        else:  # macOS
            with tempfile.TemporaryFile() as file:
                self.handle = os.dup(file.fileno())
        os.ftruncate(self.handle, size)

    def __enter__(self) -> None:
        fcntl.lockf(self.handle, fcntl.LOCK_EX, 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.lockf(self.handle, fcntl.LOCK_UN, 1)
