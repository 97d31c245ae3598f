"""One request's tensors on their way through a model, and what comes of them."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from modelctl.serve.metrics import IN_FLIGHT, Tally
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import Array

Tensors = Mapping[str, Array]
Outcome = dict[str, Array] | Exception  # outputs, or why there are none
Done = Callable[[Outcome], None]


class Unread:
    """The only tensor of a request, of which no more than the shape is known until its run begins.

    Text is read faster for all requests of a run at once than for one after the other.
    """

    __slots__ = ("elements", "shape")

    def __init__(self, shape: tuple[int, ...], elements: int) -> None:
        self.shape = shape
        self.elements = elements

    def read(self) -> dict[str, Array]:
        """The tensor by its name; `Refused` when it is not what the model takes."""
        raise NotImplementedError

    def read_with(self, others: Sequence[Self]) -> dict[str, Array] | None:
        """Its rows and behind them those of others, for the same model; None when one of them may be wrong."""
        raise NotImplementedError


class Job:
    """A request at a model; `done` is called once, unless it is cancelled before."""

    __slots__ = ("alike", "arrived", "done", "elements", "feeds", "inline", "over", "rows", "tally", "timer")

    def __init__(self, feeds: Tensors | Unread, elements: int, inline: bool, tally: Tally, done: Done) -> None:
        self.feeds = feeds
        self.elements = elements
        self.inline = inline  # run on the event loop, and so over within a turn
        self.tally = tally
        self.done = done
        self.rows = 1
        self.alike: object = None  # jobs of which this is equal can share a run; None: with no other
        self.over = False
        self.timer: asyncio.TimerHandle | None = None
        self.arrived = time.perf_counter()
        tally.cells[IN_FLIGHT] += 1

    def settle(self, outcome: Outcome) -> None:
        """Give the answer to who asked, unless there is one already."""
        if not self.over:
            self.cancel()
            self.done(outcome)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if not self.over:
            self.over = True
            self.tally.cells[IN_FLIGHT] -= 1
            if self.timer is not None:
                self.timer.cancel()


def late() -> Refused:
    """What is answered when a deadline has passed."""
    return Refused("the answer took longer than this server lets a request wait", 504)
