"""How often each caller asks: counted by all workers together, in memory that they share.

A caller has one number, the time at which its bucket would be full again (GCRA, the generic cell rate algorithm, ITU-T
I.371): a request moves it on by the time between two requests, and is refused when that takes it further ahead of now
than the burst allows. A bucket that is full is as good as none, so its place is given to others.
"""

import contextlib
import mmap
import time
from typing import Any

from modelctl.serve.access.callers import Caller
from modelctl.serve.turns import Turns

PLACES = 1 << 16
TRIED = 16  # places in which a caller's number may stand


class Rates:
    """The buckets of all callers."""

    def __init__(self, workers: int = 1) -> None:
        self._turns = Turns(PLACES * 16)
        self._turn = self._turns if workers > 1 else contextlib.nullcontext()
        memory = memoryview(mmap.mmap(self._turns.handle, PLACES * 16))
        self._numbers: Any = memory[: PLACES * 8].cast("Q")
        self._full: Any = memory[PLACES * 8 :].cast("d")  # when buckets are full, on the clock that all workers share

    def take(self, caller: Caller, now: float | None = None) -> float:
        """Count a request; 0, or the seconds until there may be another one, if it comes too early."""
        now = time.monotonic() if now is None else now
        with self._turn:
            place = self._place(caller.number)
            full = max(self._full[place], now)
            wait = full - now - (caller.burst - 1) * caller.step_s
            if wait > 1e-9:
                return float(wait)
            self._full[place] = full + caller.step_s
        return 0.0

    def _place(self, number: int) -> int:
        """Where a caller's bucket is; a new one takes the place of that which is, or will be, full the soonest."""
        first = number % PLACES
        if self._numbers[first] == number:
            return first
        places = [(first + step) % PLACES for step in range(TRIED)]
        for place in places:
            if self._numbers[place] == number:
                return place
            if not self._numbers[place]:
                break
        place = min(places, key=lambda one: self._full[one])
        self._numbers[place] = number
        self._full[place] = 0.0
        return place
