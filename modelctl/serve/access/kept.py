"""Files that are read anew when they change; what can't be read is told of, and the old stays."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from modelctl.errors import ModelctlError

logger = logging.getLogger("modelctl.serve")

LOOK_S = 1.0
T = TypeVar("T")
Mark = tuple[tuple[int, int, int] | None, ...]


class Kept(Generic[T]):
    """What some files say; `read` makes it of them and raises what is wrong with them."""

    def __init__(self, paths: Sequence[Path | None], read: Callable[[], T]) -> None:
        self._paths = [path for path in paths if path is not None]
        self._read = read
        self.tells = True  # of what can't be read
        self._known = self._seen = self._mark()
        self.value = read()

    def look(self, *, at_once: bool = False) -> None:
        """Read the files anew if they have changed, and, unless `at_once`, are as they were at the last look.

        So a file that is still being written is not read half.
        """
        now = self._mark()
        if now != self._known and (at_once or now == self._seen):
            self._known = now
            try:
                self.value = self._read()
            except (ModelctlError, OSError) as error:
                if self.tells:
                    logger.warning("%s; what was read before stays", error)
        self._seen = now

    def _mark(self) -> Mark:
        return tuple(map(_mark, self._paths))


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - follows links, as reading does
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
