"""How requests meet a model: inline within one turn of the event loop, or in a worker thread, several in one run.

A model that answers in less than half a millisecond is run on the loop itself, over all that arrived in the same turn:
handing so small a job to a thread costs more than the job. A slower one has a thread, which takes whatever queued up
while it was busy; no timer waits for more. Requests share a run only where warm-up has shown that rows of this model do
not depend on each other, and only when all but the number of rows is equal.

Everything here but `_work` happens on the event loop's thread, so nothing needs a lock.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np

from modelctl.errors import DataError
from modelctl.serve.metrics import Tally
from modelctl.serve.refusal import Refused

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]
Run = Callable[[Tensors], dict[str, Array]]

INLINE_S = 0.0005  # a model that takes longer than this has a thread
INLINE_BATCH_S = 0.005  # what runs on the loop may keep other requests waiting this long


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What warm-up found out: time and input elements of one small run, and whether rows can share a run."""

    run_s: float
    elements: int
    rows_are_independent: bool

    @property
    def inline_elements(self) -> int:
        """Input elements that a run on the event loop may have; 0: none may."""
        if self.run_s >= INLINE_S:
            return 0
        return int(max(self.elements, 1) * INLINE_BATCH_S / max(self.run_s, 1e-6))


@dataclass(slots=True, eq=False)
class Job:
    """One request's tensors on their way through a model."""

    feeds: Tensors
    answer: asyncio.Future[dict[str, Array]]
    deadline: float
    rows: int
    elements: int
    alike: object  # jobs of which this is equal can share a run; None: with no other
    arrived: float = field(default_factory=time.perf_counter)


Outcome = dict[str, Array] | Exception  # outputs, or why there are none


@dataclass(slots=True)
class _Ran:
    """What became of one run: an outcome for each job, when it began and how long it took."""

    jobs: list[Job]
    outcomes: list[Outcome]
    began: float
    took_s: float


class Runner:
    """Takes tensors, gives answers; bounded in how much may wait."""

    def __init__(self, run: Run, pace: Pace, tally: Tally, *, max_batch: int, max_queue: int) -> None:
        self._run = run
        self._pace = pace
        self._tally = tally
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: deque[Job] = deque()  # to be run on the loop, at the end of this turn
        self._queued: deque[Job] = deque()  # to be run by the thread
        self._hand: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._busy = False
        self._thread: threading.Thread | None = None

    def inline(self, elements: int) -> bool:
        """Whether a request of that many input elements is run on the event loop, and so answered within a turn."""
        return elements <= self._pace.inline_elements

    def submit(self, feeds: Tensors, timeout_s: float) -> Job:
        """Queue one request; `Refused` 429 when too many wait for the thread already. Its answer may be cancelled."""
        loop = self._loop or self._start()
        elements = sum(one.size for one in feeds.values())
        if not self.inline(elements) and len(self._queued) >= self._max_queue:
            raise Refused("too many requests are waiting", 429, headers=((b"retry-after", b"1"),))
        rows, alike = self._likeness(feeds)
        job = Job(feeds, loop.create_future(), time.perf_counter() + timeout_s, rows, elements, alike)
        self._tally.in_flight += 1
        job.answer.add_done_callback(self._landed)
        if self.inline(elements):
            if len(self._arrived) >= self._max_queue:
                self._turn()  # to make room: so small a job is done sooner than refused
            if not self._arrived:
                loop.call_soon(self._turn)
            self._arrived.append(job)
        else:
            self._queued.append(job)
            if not self._busy:
                self._feed()
        return job

    def close(self) -> None:
        """Let the thread end once what it has in hand is done."""
        self._hand.put(None)

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _landed(self, _answer: asyncio.Future[dict[str, Array]]) -> None:
        self._tally.in_flight -= 1

    def _likeness(self, feeds: Tensors) -> tuple[int, object]:
        if not self._pace.rows_are_independent:
            return 1, None
        rows = {one.shape[0] for one in feeds.values()}
        if len(rows) != 1:
            return 1, None  # the model itself will say what it thinks of that
        return rows.pop(), {name: one.shape[1:] for name, one in feeds.items()}

    def _turn(self) -> None:
        """Run, on the loop, what arrived in this turn; what does not fit into one run comes next turn."""
        jobs = self._take(self._arrived, self._pace.inline_elements)
        if jobs:
            self._finish(_ran(self._run, jobs))
        if self._arrived and self._loop:
            self._loop.call_soon(self._turn)

    def _feed(self) -> None:
        """Hand the thread its next run, if anything waits."""
        jobs = self._take(self._queued)
        self._busy = bool(jobs)
        if jobs:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="modelctl-model", daemon=True)
                self._thread.start()
            self._hand.put(jobs)

    def _take(self, waiting: deque[Job], elements: int | None = None) -> list[Job]:
        """The next jobs that can share a run, in the order of arrival; cancelled and late ones fall out."""
        taken: list[Job] = []
        rows = room = 0
        now = time.perf_counter()
        while waiting:
            job = waiting[0]
            if job.answer.done():
                waiting.popleft()
                continue
            if job.deadline <= now:
                waiting.popleft()
                job.answer.set_exception(late())
                continue
            if taken and (job.alike is None or job.alike != taken[0].alike or rows + job.rows > self._max_batch):
                break
            if taken and elements is not None and room + job.elements > elements:
                break
            taken.append(waiting.popleft())
            rows, room = rows + job.rows, room + job.elements
        return taken

    def _work(self) -> None:
        """The thread: one run after the other, each answer handed back to the loop."""
        while (jobs := self._hand.get()) is not None:
            ran = _ran(self._run, jobs)
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._returned, ran)
            except RuntimeError:  # the loop was closed under us: nobody waits any more
                return

    def _returned(self, ran: _Ran) -> None:
        self._feed()  # the thread first, so that it does not wait for the answers to be written
        self._finish(ran)

    def _finish(self, ran: _Ran) -> None:
        """Count a run and give each of its jobs the rows that are its own."""
        self._tally.compute_s.observe(ran.took_s)
        self._tally.batch_rows.observe(sum(job.rows for job in ran.jobs))
        for job, outcome in zip(ran.jobs, ran.outcomes, strict=True):
            self._tally.queue_s.observe(ran.began - job.arrived)
            if job.answer.done():
                continue
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)


def late() -> Refused:
    """What is answered when a deadline has passed."""
    return Refused("the answer took longer than this server lets a request wait", 504)


def _ran(run: Run, jobs: list[Job]) -> _Ran:
    """Run a model over jobs that can share a run."""
    began = time.perf_counter()
    outcomes = [_alone(run, jobs[0])] if len(jobs) == 1 else _together(run, jobs)
    return _Ran(jobs, outcomes, began, time.perf_counter() - began)


def _together(run: Run, jobs: list[Job]) -> list[Outcome]:
    """Rows in one run, split on the way out; each alone when that fails, so that none fails for another's input."""
    try:
        outputs = run({name: np.concatenate([job.feeds[name] for job in jobs]) for name in jobs[0].feeds})
    except DataError:
        return [_alone(run, job) for job in jobs]
    except Exception as error:  # noqa: BLE001 - it is raised again where the request is answered, as a bug
        return [error for _ in jobs]
    rows = sum(job.rows for job in jobs)
    if any(one.ndim == 0 or one.shape[0] != rows for one in outputs.values()):
        return [_alone(run, job) for job in jobs]
    outcomes: list[Outcome] = []
    first = 0
    for job in jobs:
        outcomes.append({name: one[first : first + job.rows] for name, one in outputs.items()})
        first += job.rows
    return outcomes


def _alone(run: Run, job: Job) -> Outcome:
    try:
        return run(job.feeds)
    except DataError as error:
        return Refused(error.message)
    except Exception as error:  # noqa: BLE001 - it is raised again where the request is answered, as a bug
        return error
