"""The picture of `eval`: which classes are taken for which, and how long a batch takes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelctl.data.samples import Array
from modelctl.graph.drawing import (
    SERIES,
    document,
    dot,
    frame,
    line,
    log_place,
    log_ticks,
    moved,
    rect,
    ring,
    short,
    text,
)

Row = Mapping[str, Any]

KIND = "eval"

PANEL, MARGIN, HEAD, FOOT = 440, 70, 70, 100  # of a panel its side, and what lies around it
MOST_NUMBERED = 20  # classes; with more of them a cell is too small for its number
MOST_TICKS = 20
MOST_LABELLED = 10  # batches
MOST_LETTERS = 50  # of a name
ROOM, ROOM_BESIDE_RING = 56, 70  # between two marks, for the number at one of them


def report(name: str, confusion: Array | None, latencies: Sequence[Row]) -> str:
    """The confusion matrix [classes, classes], where there is one, and the latency by batch and threads.

    `latencies` are rows as `measure` gives them: `batch`, `threads`, `p50_ms`, `p95_ms`, `p99_ms`, `samples_per_s`, and
    of a baseline `before_p50_ms`, or `before` with a `p50_ms` in it.
    """
    name = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
    panels = ([_matrix(confusion)] if confusion is not None else []) + [_latency(latencies)]
    step = PANEL + 2 * MARGIN
    parts = [text(MARGIN, 24, name, 15, anchor="start")]
    for at, panel in enumerate(panels):
        parts += moved(at * step + MARGIN, HEAD, panel)
    return document(KIND, name, step * len(panels), HEAD + PANEL + FOOT, parts)


def _matrix(confusion: Array) -> Iterator[str]:
    """Rows are labels, columns what was answered; a cell's number is its count.

    It is as dark as the root of its share of the row: in a good model the mistakes are few, and are what is looked for.
    """
    count = len(confusion)
    cell = PANEL / count
    totals = confusion.sum(axis=1)
    yield text(PANEL / 2, -18, "confusion: label by row, answer by column", 13, "grey")
    for row in range(count):
        for column in range(count):
            held = int(confusion[row, column])
            depth = math.sqrt(held / int(totals[row])) if held else 0.0
            if held:
                yield rect(column * cell, row * cell, cell, cell, "cell", depth)
            if held and count <= MOST_NUMBERED:
                number = str(held) if held < 10_000 else short(held)
                size = min(14, 0.45 * cell, 1.4 * cell / len(number))
                middle = (row + 0.5) * cell + 0.35 * size
                role = "on-cell" if depth > 0.7 else "ink"
                yield text((column + 0.5) * cell, middle, number, size, role, rim=False)
    yield frame(0, 0, PANEL, PANEL, "grey")
    for one in range(0, count, math.ceil(count / MOST_TICKS)):
        yield text(-8, (one + 0.5) * cell + 4, str(one), 11, "grey", "end")
        yield text((one + 0.5) * cell, PANEL + 16, str(one), 11, "grey")


def _latency(rows: Sequence[Row]) -> Iterator[str]:
    """For each batch, side by side for each number of threads, a line from the median to the 99th percentile."""
    batches, threads = (sorted({int(row[key]) for row in rows}) for key in ("batch", "threads"))
    times = [float(row[key]) for row in rows for key in ("p50_ms", "p99_ms")]
    before = [one for one in map(_before, rows) if one]
    ticks = log_ticks(0.95 * min(times + before), 1.05 * max(times + before))
    yield text(PANEL / 2, -18, "latency in ms: dot p50, bar p95, line to p99", 13, "grey")
    for tick in ticks:
        yield line(0, _height(tick, ticks), PANEL, _height(tick, ticks), "faint")
        yield text(-8, _height(tick, ticks) + 4, f"{tick:g}", 11, "grey", "end")
    column = PANEL / len(batches)
    step = column / (len(threads) + 0.6) if len(threads) > 1 else column
    numbered = step >= (ROOM_BESIDE_RING if before else ROOM)
    for row in rows:
        side = threads.index(int(row["threads"]))
        x = column * (batches.index(int(row["batch"])) + 0.5) + step * (side - (len(threads) - 1) / 2)
        yield from _mark(x, row, ticks, SERIES[side % len(SERIES)], numbered)
    yield from _batches(batches, rows, column)
    yield from _legend(threads, bool(before))


def _mark(x: float, row: Row, ticks: Sequence[float], role: str, numbered: bool) -> Iterator[str]:
    p50, p95, p99 = (_height(float(row[f"p{share}_ms"]), ticks) for share in (50, 95, 99))
    yield line(x, p50, x, p99, role, 2)
    yield line(x - 6, p95, x + 6, p95, role, 2)
    yield dot(x, p50, role)
    old = _before(row)
    if old:
        yield ring(x - 14, _height(old, ticks), "grey")
    if numbered:
        yield text(x + 10, p50 + 4, f"{row['p50_ms']:.3g}", 11, "ink", "start")


def _batches(batches: Sequence[int], rows: Sequence[Row], column: float) -> Iterator[str]:
    """Below each batch its size, and the most samples a second."""
    for at in range(0, len(batches), math.ceil(len(batches) / MOST_LABELLED)):
        x = column * (at + 0.5)
        most = max(float(row["samples_per_s"]) for row in rows if row["batch"] == batches[at])
        yield text(x, PANEL + 16, str(batches[at]), 11, "grey")
        yield text(x, PANEL + 32, f"{short(most)}/s", 11, "grey")
    yield text(PANEL / 2, PANEL + 54, "samples in a batch, and how many a second", 13, "grey")


def _legend(threads: Sequence[int], with_baseline: bool) -> Iterator[str]:
    """Which colour is which number of threads, and what a ring is."""
    entries = [(SERIES[at % len(SERIES)], f"{one} thread{'s' if one > 1 else ''}") for at, one in enumerate(threads)]
    entries = entries if len(entries) > 1 else []
    entries += [("grey", "baseline p50")] if with_baseline else []
    widths = [24 + 6.5 * len(words) for _, words in entries]
    x = PANEL / 2 - sum(widths) / 2 + 8
    for (role, words), width in zip(entries, widths, strict=True):
        yield ring(x, PANEL + 76, role, 4) if role == "grey" else dot(x, PANEL + 76, role, 4)
        yield text(x + 9, PANEL + 80, words, 11, "grey", "start")
        x += width


def _height(milliseconds: float, ticks: Sequence[float]) -> float:
    return PANEL * (1 - log_place(milliseconds, ticks))


def _before(row: Row) -> float | None:
    found: float | None = row.get("before_p50_ms", row.get("before", {}).get("p50_ms"))
    return found
