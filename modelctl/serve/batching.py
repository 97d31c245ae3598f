"""How requests meet a model: inline within one turn of the event loop, or in a worker thread, several in one run.

A model that answers in less than half a millisecond is run on the loop itself, over all that arrived in the same turn:
handing so small a job to a thread costs more than the job. A slower one has a thread, which takes whatever queued up
while it was busy; no timer waits for more, unless `max_delay_s` asks for one. Requests share a run only where warm-up
has shown that rows of this model do not depend on each other, and only when all but the number of rows is equal.

Everything here but `_work` happens on the event loop's thread, so nothing needs a lock.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from modelctl.errors import DataError
from modelctl.serve.breaker import FAILURES, Breaker
from modelctl.serve.jobs import Done, Job, Outcome, Tensors, Unread, late
from modelctl.serve.metrics import Tally
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import Array

Run = Callable[[Tensors], dict[str, Array]]

INLINE_S = 0.0005  # a model that takes longer than this has a thread
HANGING = 0.5  # a run hangs that takes this share of the time that a request may wait
INLINE_BATCH_S = 0.005  # what runs on the loop may keep other requests waiting this long


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What warm-up found out: time and input elements of one small run, and whether rows can share a run.

    `free` is the size that dimensions had which are free and not the number of rows; 0: no size was found to suit.
    """

    run_s: float
    elements: int
    rows_are_independent: bool
    free: int = 0

    @property
    def inline_elements(self) -> int:
        """Input elements that a run on the event loop may have; 0: none may."""
        if self.run_s >= INLINE_S:
            return 0
        return int(max(self.elements, 1) * INLINE_BATCH_S / max(self.run_s, 1e-6))


@dataclass(slots=True)
class _Ran:
    """What became of one run: an outcome for each job, when it began and how long it took."""

    jobs: list[Job]
    outcomes: list[Outcome]
    began: float
    took_s: float


class Runner:
    """Takes tensors, gives answers; bounded in how much may wait."""

    def __init__(
        self,
        run: Run,
        pace: Pace,
        tally: Tally,
        breaker: Breaker,
        *,
        max_batch: int,
        max_queue: int,
        max_delay_s: float = 0.0,
    ) -> None:
        self._run = run
        self._breaker = breaker
        self._pace = pace
        self._tally = tally
        self.ran: _Ran | None = None  # the run whose answers are being given
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_delay_s = max_delay_s
        self._inline_elements = pace.inline_elements
        self._independent = pace.rows_are_independent
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: deque[Job] = deque()  # to be run on the loop, at the end of this turn
        self._queued: deque[Job] = deque()  # to be run by the thread
        self._hand: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._busy = False
        self._fed = 0.0  # when the thread was given what it has in hand
        self._waits: asyncio.TimerHandle | None = None  # for more to share a run with
        self._thread: threading.Thread | None = None

    def submit(self, feeds: Tensors | Unread, timeout_s: float, done: Done, limit_s: float | None = None) -> Job:
        """Queue one request, whose outcome `done` is given on the loop.

        `limit_s` is what the server lets a request wait, where its client waits for no more than `timeout_s`.
        `Refused` 429 when too many wait already, 503 while the model is not asked because it keeps failing; what is
        unread is read here, and may be refused, where a thread is to run it.
        """
        self._breaker.admit()
        loop = self._loop or self._start()
        rows, alike, elements = _likeness(feeds)
        inline = elements <= self._inline_elements
        if not inline and len(self._queued) >= self._max_queue:
            raise Refused("too many requests are waiting", 429, headers=((b"retry-after", b"1"),))
        if not inline and isinstance(feeds, Unread):
            feeds = feeds.read()
        job = Job(feeds, elements, inline, self._tally, done)
        if self._independent:
            job.rows, job.alike = rows, alike
        if inline:
            if len(self._arrived) >= self._max_queue:
                self._turn()  # to make room: so small a job is done sooner than refused
            self._arrived.append(job)
            if len(self._arrived) == 1:
                self._due(loop, self._turn)
        else:
            job.timer = loop.call_later(timeout_s, self._late, job, timeout_s if limit_s is None else limit_s)
            self._queued.append(job)
            if not self._busy:
                self._gather(loop)
        return job

    @property
    def idle(self) -> bool:
        """Whether there is nothing to be run, and nothing that runs."""
        return not (self._busy or self._arrived or self._queued)

    def close(self, wait_s: float = 0.0) -> bool:
        """Let the thread end once what it has in hand is done; whether that is so within a while."""
        self._hand.put(None)
        if self._thread is not None and wait_s:
            self._thread.join(wait_s)
        return self._thread is None or not self._thread.is_alive()

    def _late(self, job: Job, limit_s: float) -> None:
        """A job has waited long enough; if the thread has been at one run for nearly the limit, the model hangs."""
        if self._busy and time.perf_counter() - self._fed >= limit_s * HANGING:
            self._breaker.failed(FAILURES)
        job.settle(late())

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _due(self, loop: asyncio.AbstractEventLoop, turn: Callable[[], None]) -> None:
        """Have `turn` called at the end of this turn of the loop, or when the first job has waited for company."""
        if self._max_delay_s:
            loop.call_later(self._max_delay_s, turn)
        else:
            loop.call_soon(turn)

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Feed the thread, which is idle, at once or when the first job has waited for company."""
        if not self._max_delay_s or sum(job.rows for job in self._queued) >= self._max_batch:
            self._feed()
        elif self._waits is None:
            self._waits = loop.call_later(self._max_delay_s, self._feed)

    def _turn(self) -> None:
        """Run, on the loop, what arrived in this turn; what does not fit into one run comes next turn."""
        jobs = self._take(self._arrived, self._inline_elements)
        if self._arrived and self._loop:
            self._loop.call_soon(self._turn)
        if jobs:
            self._finish(_ran(self._run, jobs))

    def _feed(self) -> None:
        """Hand the thread its next run, if anything waits."""
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None
        jobs = self._take(self._queued)
        self._busy = bool(jobs)
        self._fed = time.perf_counter()
        if jobs:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="modelctl-model", daemon=True)
                self._thread.start()
            self._hand.put(jobs)

    def _take(self, waiting: deque[Job], elements: int | None = None) -> list[Job]:
        """The next jobs that can share a run, in the order of arrival; those that are over fall out."""
        taken: list[Job] = []
        rows = room = 0
        while waiting:
            job = waiting[0]
            if job.over:
                waiting.popleft()
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
        if isinstance(ran.outcomes[0], dict):
            self._breaker.succeeded()
        elif not isinstance(ran.outcomes[0], Refused):
            self._breaker.failed()
        self._tally.queue_s.observe(*[ran.began - job.arrived for job in ran.jobs])
        self.ran = ran
        for job, outcome in zip(ran.jobs, ran.outcomes, strict=True):
            job.settle(outcome)
        self.ran = None


def _likeness(feeds: Tensors | Unread) -> tuple[int, object, int]:
    """A request's rows, what others must have in common with it to share its run (None: none may), and its elements."""
    if isinstance(feeds, Unread):
        return feeds.shape[0], feeds.shape[1:], feeds.elements
    if len(feeds) == 1:
        (one,) = feeds.values()
        shape = one.shape
        return shape[0] if shape else 1, shape[1:] if shape else None, one.size
    elements = sum(one.size for one in feeds.values())
    rows = {one.shape[0] if one.shape else 1 for one in feeds.values()}
    if len(rows) != 1:  # the model itself will say what it thinks of that
        return 1, None, elements
    return rows.pop(), {name: one.shape[1:] for name, one in feeds.items()}, elements


def _ran(run: Run, jobs: list[Job]) -> _Ran:
    """Run a model over jobs that can share a run; each alone when that fails, so that none fails for another's."""
    outcomes: list[Outcome]
    began = time.perf_counter()
    try:
        feeds = _joined([job.feeds for job in jobs])
        began = time.perf_counter()
        shared = None if feeds is None else _split(run(feeds), jobs)
        outcomes = _apart(run, jobs) if shared is None else shared
    except (Refused, DataError) as error:
        refused = error if isinstance(error, Refused) else Refused(error.message)
        outcomes = [refused] if len(jobs) == 1 else _apart(run, jobs)
    except Exception as error:  # noqa: BLE001 - it is answered, and told, as a bug
        outcomes = [error for _ in jobs]
    return _Ran(jobs, outcomes, began, time.perf_counter() - began)


def _apart(run: Run, jobs: list[Job]) -> list[Outcome]:
    return [_ran(run, [job]).outcomes[0] for job in jobs]


def _joined(feeds: list[Tensors | Unread]) -> Tensors | None:
    """The rows of all requests; `Refused`, or None, when one of them is wrong or may be."""
    first, others = feeds[0], feeds[1:]
    if isinstance(first, Unread):
        unread = [one for one in others if isinstance(one, Unread)]
        if len(unread) == len(others):
            return first.read_with(unread) if others else first.read()
    read = [one.read() if isinstance(one, Unread) else one for one in feeds]
    return {name: np.concatenate([one[name] for one in read]) for name in read[0]} if others else read[0]


def _split(outputs: dict[str, Array], jobs: list[Job]) -> list[Outcome] | None:
    """To each job its rows; None when that many are not there."""
    if len(jobs) == 1:
        return [outputs]
    rows = sum(job.rows for job in jobs)
    if any(one.ndim == 0 or one.shape[0] != rows for one in outputs.values()):
        return None
    outcomes: list[Outcome] = []
    first = 0
    for job in jobs:
        outcomes.append({name: one[first : first + job.rows] for name, one in outputs.items()})
        first += job.rows
    return outcomes
