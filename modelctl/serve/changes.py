"""What is served, as it changes: a ledger of the sources, each with the row of the board that its model counts on.

A change loads the sources of one name anew, or unloads them. First every worker prepares it beside what it serves
(reads, checks, warms up), and only when all have done so it is carried out; a bad one is refused, and the old model
stays. The ledger is kept in one place: by the parent of several workers, or by the only one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from modelctl.errors import ModelctlError, UsageError
from modelctl.serve.metrics import MODELS, Board
from modelctl.serve.refusal import Refused, told
from modelctl.serve.sources import mark

LOAD, UNLOAD = "load", "unload"
WATCH_S = 1.0  # how often sources are looked at


@dataclass(frozen=True)
class Change:
    """Sources by their place on the command line, and the rows for their models; no rows: they are unloaded."""

    places: tuple[int, ...]
    rows: tuple[int, ...]


class Ledger:
    """The sources, the names of their models, and the rows of those that are loaded."""

    def __init__(self, sources: Sequence[str], board: Board) -> None:
        if len(sources) >= MODELS:
            raise UsageError(f"{len(sources)} models are more than one server has room for, which is {MODELS - 1}")
        self.sources = tuple(sources)
        self.names = [""] * len(sources)
        self.rows: list[int | None] = list(range(1, len(sources) + 1))
        self._board = board
        self._free = deque(range(len(sources) + 1, MODELS))

    def loaded(self) -> dict[int, tuple[str, int]]:
        """Source and row of each place that has a model."""
        return {place: (self.sources[place], row) for place, row in enumerate(self.rows) if row is not None}

    def places(self, name: str) -> tuple[int, ...]:
        """The places of a name's sources; `Refused` 404 when there are none."""
        found = tuple(place for place, known in enumerate(self.names) if known == name)
        if not found:
            known = ", ".join(dict.fromkeys(self.names))
            raise Refused(f"no model {told(name)} was given to this server; given: {known}", 404)
        return found

    def begin(self, kind: str, name: str) -> Change:
        """The change that loads or unloads the models of a name; `Refused` 404 when there are none."""
        places = self.places(name)
        if kind == UNLOAD:
            return Change(places, ())
        if len(self._free) < len(places):
            raise Refused("there is no room for another model", 503)
        rows = tuple(self._free.popleft() for _ in places)
        for row in rows:
            self._board.clear(row)
        return Change(places, rows)

    def settle(self, change: Change, done: bool) -> None:
        """Note that a change was carried out, or was not."""
        if not done:
            self._free.extend(change.rows)
            return
        for index, place in enumerate(change.places):
            row = self.rows[place]
            if row is not None:
                self._free.append(row)
            self.rows[place] = change.rows[index] if change.rows else None


class Watch:
    """Notices that a source stands for something else than it did."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = sources
        self._marks = [_mark(source) for source in sources]

    def changed(self) -> list[int]:
        """The places of sources that have changed since they were looked at last; one that is away has not."""
        found = []
        for place, source in enumerate(self._sources):
            now = _mark(source)
            if now is not None and now != self._marks[place]:
                self._marks[place] = now
                found.append(place)
        return found


def _mark(source: str) -> str | None:
    try:
        return mark(source)
    except (ModelctlError, OSError):
        return None
