"""How a step says how far along it is, and what it found on the way, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """The listener that a step is given; the command line shows it, a Python user may ignore it."""

    def advance(self, what: str, done: int, total: int | None = None, unit: str = "") -> None:
        """`done` of `total` (None: unknown) `unit`s of the work named `what` are finished."""

    def note(self, text: str) -> None:
        """Something that the user should know although it stops nothing: one line, lower case, no period."""


class _Silent:
    def advance(self, what: str, done: int, total: int | None = None, unit: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass


silent: Progress = _Silent()
