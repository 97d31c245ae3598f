"""How fast models are: run times in milliseconds, and two models timed in turns so that the machine's noise cancels.

Two models are run in short blocks, A B, B A, A B, …; each pair of neighbouring blocks gives one ratio. The 95 %
interval of the median ratio is that of order statistics (W. J. Conover, Practical Nonparametric Statistics, 3rd ed.,
3.2), which asks nothing of how the ratios are distributed. Where a model happens to lie in memory is worth a percent
or more for as long as it lies there, so both are loaded anew for each of three rounds, in turns too, and the interval
reaches from the lowest end of the rounds' to the highest.
"""

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from modelctl.errors import DataError
from modelctl.graph.session import Session, Tensors
from modelctl.graph.signature import readings
from modelctl.manifest import TensorSpec

SLOWER_BELOW = 0.97  # a model timed against itself loses in most runs by less
SECONDS = 0.5
ROUNDS = 3
MIN_PAIRS, MAX_PAIRS = 9, 100
MAX_BLOCK_RUNS = 50
MAX_RUNS_ALONE = 5000
WARM_UP_RUNS = 3
# Of a free axis that is not the batch, where there are no samples to take it from: the first that a model can run.
FREE_LENGTHS = (16, 32, 64, 224, 8, 1)


@dataclass(frozen=True)
class Speedup:
    """How much faster the second of two models is: the median ratio of their times, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_slower(self) -> bool:
        """Whether the second is surely the slower one, and by more than a model that is timed against itself."""
        return self.value < SLOWER_BELOW and self.high < 1

    def facts(self) -> dict[str, float]:
        """As it is written into metrics and reports."""
        return {"value": round(self.value, 3), "low": round(self.low, 3), "high": round(self.high, 3)}


def alone(model: Session, feeds: Tensors, seconds: float = SECONDS) -> dict[str, float]:
    """`{p50_ms, p95_ms, p99_ms}` of running one batch again and again for about `seconds`."""
    _warm(model, feeds)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_PAIRS or (time.perf_counter() < end and len(times) < MAX_RUNS_ALONE):
        times.append(_timed(model, feeds))
    return percentiles(times)


Loaded = Callable[[], Session]


def in_turns(
    first: Loaded, second: Loaded, first_feeds: Tensors, second_feeds: Tensors, seconds: float = SECONDS
) -> tuple[dict[str, float], dict[str, float], Speedup]:
    """The percentiles of both models, and the second's speed relative to the first, in about `seconds` for each.

    A result that says "slower", surely or not, is taken again for three times as long before it is believed; one that
    is still not sure, once more.
    """
    found = _rounds(first, second, (first_feeds, second_feeds), seconds)
    for sure in (False, True):
        if found[2].value >= SLOWER_BELOW or (sure and found[2].is_slower):
            break
        found = _rounds(first, second, (first_feeds, second_feeds), 3 * seconds)
    return found


def _rounds(
    first: Loaded, second: Loaded, feeds: tuple[Tensors, Tensors], seconds: float
) -> tuple[dict[str, float], dict[str, float], Speedup]:
    times: tuple[list[float], list[float]] = ([], [])
    found = []
    for turn in range(ROUNDS):
        if turn % 2 == 0:
            old, new = first(), second()
        else:
            new, old = second(), first()
        found.append(_in_turns((old, feeds[0]), (new, feeds[1]), seconds / ROUNDS, times))
    ratio = float(np.median([one.value for one in found]))
    widest = Speedup(ratio, min(one.low for one in found), max(one.high for one in found))
    return percentiles(times[0]), percentiles(times[1]), widest


def _in_turns(
    first: tuple[Session, Tensors],
    second: tuple[Session, Tensors],
    seconds: float,
    times: tuple[list[float], list[float]],
) -> Speedup:
    """One round, its run times appended to `times`."""
    sides = (first, second)
    pace = [min(_warm(*side) for _ in range(2)) for side in sides]
    # Both sides' blocks last about as long, so that neither is more likely to be interrupted within a block.
    block_s = seconds / MAX_PAIRS
    runs = [max(1, min(MAX_BLOCK_RUNS, round(block_s / one))) for one in pace]
    ratios: list[float] = []
    end = time.perf_counter() + 2 * seconds
    while len(ratios) < MIN_PAIRS or (time.perf_counter() < end and len(ratios) < MAX_PAIRS):
        blocks = [0.0, 0.0]
        for side in (0, 1) if len(ratios) % 2 == 0 else (1, 0):
            block = [_timed(*sides[side]) for _ in range(runs[side])]
            times[side].extend(block)
            blocks[side] = float(np.median(block))
        ratios.append(blocks[0] / blocks[1])
    return median_interval(ratios)


def median_interval(values: Sequence[float]) -> Speedup:
    """The median, and the narrowest symmetric pair of order statistics that holds the true one in 95 % of cases."""
    ranked = sorted(values)
    count = len(ranked)
    outside = 0  # how many values to leave out at each end
    tail = 1.0  # the number of ways in which at most `outside` of the values lie below the true median
    while tail + math.comb(count, outside + 1) <= 0.025 * 2**count:
        outside += 1
        tail += math.comb(count, outside)
    return Speedup(float(np.median(ranked)), ranked[outside], ranked[-1 - outside])


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """`{p50_ms, p95_ms, p99_ms}` of times in seconds."""
    found = np.percentile(np.array(times) * 1e3, [50, 95, 99])
    return {f"p{share}_ms": round(float(one), 4) for share, one in zip((50, 95, 99), found, strict=True)}


def _warm(model: Session, feeds: Tensors) -> float:
    """Run until caches are warm; the last run's seconds."""
    for _ in range(WARM_UP_RUNS - 1):
        model.run(feeds)
    return _timed(model, feeds)


def _timed(model: Session, feeds: Tensors) -> float:
    started = time.perf_counter()
    model.run(feeds)
    return max(time.perf_counter() - started, 1e-9)


def random_feeds(inputs: Sequence[TensorSpec], batch: int, seed: int, length: int = FREE_LENGTHS[0]) -> dict[str, Any]:
    """Inputs to time a model on where there are no samples: floats are normal, integers 0 or 1 (a token everywhere).

    The first axes are `batch` long where they are free, and whatever is called as they are; other free ones `length`.
    """
    random = np.random.default_rng(seed)
    batches = {spec.shape[0] for spec in inputs if spec.shape}
    feeds = {}
    for spec in inputs:
        sizes = [size if isinstance(size, int) else batch if size in batches else length for size in spec.shape]
        if spec.dtype.startswith("float"):
            feeds[spec.name] = random.standard_normal(sizes).astype(spec.dtype)
        else:
            feeds[spec.name] = random.integers(0, 2, sizes).astype(spec.dtype)
    return feeds


def runnable_feeds(model: Session, batch: int, seed: int) -> dict[str, Any]:
    """`random_feeds` of the first of the inputs' `readings` and of `FREE_LENGTHS` that the model runs.

    Its first DataError if it runs none.
    """
    refusals = []
    for inputs in readings(model.inputs):
        free = any(isinstance(size, str) for spec in inputs for size in spec.shape[1:])
        for length in FREE_LENGTHS if free else FREE_LENGTHS[:1]:
            feeds = random_feeds(inputs, batch, seed, length)
            try:
                model.run(feeds)
            except DataError as error:
                refusals.append(error)
            else:
                return feeds
    raise refusals[0]


@cache
def cpu_name() -> str:
    """What the machine calls its processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names[0] if names else platform.processor()) or platform.machine()
