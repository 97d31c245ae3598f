"""What the server counts, as Prometheus reads it.

The text is Prometheus' text-based exposition format, version 0.0.4 (prometheus.io, "Exposition formats"): HELP and TYPE
lines, then one sample a line; a histogram's buckets are cumulative and end with `+Inf`, beside its `_sum` and `_count`.
"""

import mmap
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from modelctl.serve import breaker
from modelctl.serve.refusal import KINDS_OF_ERROR as KINDS

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

SECONDS = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


# A tally's cells: these, one for each kind of error, three histograms, a breaker.
REQUESTS, IN_FLIGHT, SHADOWED, DISAGREED, UNLOGGED, UNTRACED, ERRORS = range(7)
_QUEUE = ERRORS + len(KINDS)
_COMPUTE = _QUEUE + len(SECONDS) + 2
_ROWS = _COMPUTE + len(SECONDS) + 2
_BREAKER = _ROWS + len(ROWS) + 2
CELLS = _BREAKER + breaker.CELLS
MODELS = 256  # of which a board has room for tallies
_PLACE_OF = {kind: ERRORS + place for place, kind in enumerate(KINDS)}

Numbers = Any  # a mutable sequence of floats: a memoryview, whose type does not say so


class Histogram:
    """How often a value fell between which bounds; the last of the cells is what all of them add up to."""

    __slots__ = ("bounds", "cells")

    def __init__(self, bounds: Sequence[float], cells: Numbers) -> None:
        self.bounds = bounds
        self.cells = cells

    def observe(self, *values: float) -> None:
        """Count values."""
        cells, bounds = self.cells, self.bounds
        for value in values:
            cells[bisect_left(bounds, value)] += 1
        cells[-1] += sum(values)

    @property
    def counts(self) -> list[int]:
        """How many values fell below each bound and above the one before; the last: above all."""
        return [int(one) for one in self.cells[:-1]]


class Tally:
    """The counts of one model in one worker; all of them are touched on the event loop's thread only."""

    __slots__ = ("batch_rows", "cells", "compute_s", "queue_s")

    def __init__(self, cells: Numbers = None) -> None:
        self.cells = cells = memoryview(array("d", [0.0] * CELLS)) if cells is None else cells
        self.queue_s = Histogram(SECONDS, cells[_QUEUE:_COMPUTE])
        self.compute_s = Histogram(SECONDS, cells[_COMPUTE:_ROWS])
        self.batch_rows = Histogram(ROWS, cells[_ROWS:_BREAKER])

    def failed(self, kind: str) -> None:
        """Count a request that was answered with an error."""
        self.cells[_PLACE_OF[kind]] += 1

    @property
    def requests(self) -> int:
        """Requests that were received."""
        return int(self.cells[REQUESTS])

    @property
    def in_flight(self) -> int:
        """Requests that wait or are being computed."""
        return int(self.cells[IN_FLIGHT])

    @property
    def broken(self) -> bool:
        """Whether the model is not asked, as it has failed too often."""
        return breaker.Breaker(self.cells[_BREAKER:]).open

    @property
    def errors(self) -> dict[str, int]:
        """Requests that were answered with an error, by its kind; kinds that occurred."""
        return {kind: int(self.cells[place]) for kind, place in _PLACE_OF.items() if self.cells[place]}


class Board:
    """The tallies of all workers, in memory that those share who are forked: each writes its own, any can add them up.

    Row 0 is for requests that reach no model; the other rows are given to models.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._memory = mmap.mmap(-1, workers * MODELS * CELLS * 8)
        self._cells: Numbers = memoryview(self._memory).cast("d")

    def tally(self, worker: int, row: int) -> Tally:
        """What one worker counts of one model."""
        return Tally(self._row(worker, row))

    def breaker(self, row: int) -> breaker.Breaker:
        """The breaker of a model, the same for all workers: it lies with what the first of them counts."""
        return breaker.Breaker(self._row(0, row)[_BREAKER:])

    def total(self, row: int) -> Tally:
        """What all workers have counted of a model so far."""
        rows = [self._row(worker, row) for worker in range(self._workers)]
        return Tally(memoryview(array("d", map(sum, zip(*rows, strict=True)))))

    def clear(self, row: int) -> None:
        """Make a row ready for another model."""
        for worker in range(self._workers):
            self._row(worker, row)[:] = memoryview(array("d", [0.0] * CELLS))

    def lost(self, worker: int) -> None:
        """A worker was lost, and with it what it had in flight."""
        for row in range(MODELS):
            self._row(worker, row)[IN_FLIGHT] = 0.0

    def _row(self, worker: int, row: int) -> Numbers:
        first = (worker * MODELS + row) * CELLS
        return self._cells[first : first + CELLS]


Labelled = tuple[dict[str, str], Tally]


def exposition(models: Iterable[Labelled], unrouted: Tally, ready: bool) -> bytes:
    """The text of `/metrics`: each model's counts under its labels, and those of requests that reached no model."""
    models = [*models]
    everything = [*models, ({"model": "", "version": "", "digest": ""}, unrouted)]
    lines = _family("modelctl_ready", "gauge", "Whether the server takes requests.")
    lines.append(f"modelctl_ready {int(ready)}")
    lines += _family("modelctl_requests_total", "counter", "Inference requests that were received.")
    lines += [f"modelctl_requests_total{_labels(who)} {tally.requests}" for who, tally in everything]
    lines += _family("modelctl_request_errors_total", "counter", "Requests that were answered with an error, by kind.")
    lines += [
        f"modelctl_request_errors_total{_labels(who | {'kind': kind})} {count}"
        for who, tally in everything
        for kind, count in sorted(tally.errors.items())
    ]
    lines += _family("modelctl_requests_in_flight", "gauge", "Requests that wait for a model or are being computed.")
    lines += [f"modelctl_requests_in_flight{_labels(who)} {tally.in_flight}" for who, tally in models]
    for name, what, cell in (
        ("modelctl_shadow_requests_total", "Requests that were shown to a model as a shadow.", SHADOWED),
        ("modelctl_shadow_disagreements_total", "Those to which it would have said something else.", DISAGREED),
    ):
        lines += _family(name, "counter", what)
        lines += [f"{name}{_labels(who)} {int(tally.cells[cell])}" for who, tally in models]
    for name, what, cell in (
        ("modelctl_log_lines_lost_total", "Lines of --log-requests that could not be written.", UNLOGGED),
        ("modelctl_spans_lost_total", "Spans that could not be sent to the collector.", UNTRACED),
    ):
        lines += [*_family(name, "counter", what), f"{name} {int(unrouted.cells[cell])}"]
    lines += _family("modelctl_breaker_open", "gauge", "Whether a model is not asked, as it has failed too often.")
    lines += [f"modelctl_breaker_open{_labels(who)} {int(tally.broken)}" for who, tally in models]
    for name, what, pick in (
        ("modelctl_queue_seconds", "Time a request waited for its model.", "queue_s"),
        ("modelctl_compute_seconds", "Time that one run of a model took.", "compute_s"),
        ("modelctl_batch_rows", "Rows that one run of a model computed.", "batch_rows"),
    ):
        lines += _family(name, "histogram", what)
        for who, tally in models:
            lines += _histogram(name, who, getattr(tally, pick))
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]


def _histogram(name: str, who: dict[str, str], one: Histogram) -> list[str]:
    lines, below = [], 0
    for bound, count in zip([*(f"{bound:g}" for bound in one.bounds), "+Inf"], one.counts, strict=True):
        below += count
        lines.append(f"{name}_bucket{_labels(who | {'le': bound})} {below}")
    return [*lines, f"{name}_sum{_labels(who)} {one.cells[-1]!r}", f"{name}_count{_labels(who)} {below}"]


def _labels(labels: dict[str, str]) -> str:
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
