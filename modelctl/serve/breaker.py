"""A model that keeps failing is not asked for a while: its clients are told at once, and the others have the machine.

Closed, until FAILURES runs in a row fail by the model's own fault, or one takes longer than a request may wait; then
open, which is 503, for PAUSE_S seconds; then one request is let through, and what becomes of it closes or opens again.
A request that the model has something against is no failure. The state lies in memory that all workers share.
"""

import math
import time
from array import array
from typing import Any

from modelctl.serve.refusal import Refused

FAILURES = 5
PAUSE_S = 2.0
_FAILED, _OPEN_UNTIL = 0, 1
CELLS = 2


class Breaker:
    """Whether a model is asked."""

    __slots__ = ("_cells",)

    def __init__(self, cells: Any = None) -> None:
        self._cells = memoryview(array("d", [0.0] * CELLS)) if cells is None else cells

    @property
    def open(self) -> bool:
        """Whether requests are refused now."""
        return bool(self._cells[_OPEN_UNTIL] > time.monotonic())

    def admit(self) -> None:
        """Let a request through, or the one that tries whether the model is well again; `Refused` 503 when open."""
        until = self._cells[_OPEN_UNTIL]
        if not until:
            return
        left = until - time.monotonic()
        if left > 0:
            wait = b"%d" % math.ceil(left)
            raise Refused("the model has failed too often, come later", 503, "broken", ((b"retry-after", wait),))
        self._cells[_OPEN_UNTIL] = time.monotonic() + PAUSE_S

    def succeeded(self) -> None:
        """The model has answered."""
        if self._cells[_FAILED] or self._cells[_OPEN_UNTIL]:
            self._cells[_FAILED] = self._cells[_OPEN_UNTIL] = 0.0

    def failed(self, times: int = 1) -> None:
        """The model has failed."""
        self._cells[_FAILED] += times
        if self._cells[_FAILED] >= FAILURES:
            self._cells[_OPEN_UNTIL] = time.monotonic() + PAUSE_S
