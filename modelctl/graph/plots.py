"""Pictures of what was measured, as plain SVG 1.1: the same figures give the same bytes, and nothing else is loaded.

A picture is light in itself, whatever page it lies on. Its sizes are in user units, pixels where it is not scaled.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from modelctl.data.samples import Array

Row = Mapping[str, Any]

HEAD_OF_EVAL = '<svg xmlns="http://www.w3.org/2000/svg" id="modelctl-eval"'  # how each picture of `report` begins

PANEL, MARGIN, HEAD, FOOT = 440, 70, 70, 90  # of a panel its side, and what lies around it
MOST_NUMBERED = 20  # classes; with more of them a cell is too small for its number
MOST_TICKS = 20
MOST_LABELLED = 10  # batches
MOST_LETTERS = 50  # of a name
PAPER, INK, GREY, FAINT = "#ffffff", "#1b1f24", "#59636e", "#d8dee4"
FULL = (11, 92, 173)  # the colour of a cell that holds all of its row, and of a model's times


def report(name: str, confusion: Array | None, latencies: Sequence[Row]) -> str:
    """The picture of `eval`: the confusion matrix [classes, classes], where there is one, and the latency by batch.

    `latencies` are rows as `measure` gives them: `batch`, `p50_ms`, `p95_ms`, `p99_ms`, `samples_per_s`, and of a
    baseline `before_p50_ms`, or `before` with a `p50_ms` in it.
    """
    name = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
    panels = ([_matrix(confusion)] if confusion is not None else []) + [_latency(latencies)]
    step = PANEL + 2 * MARGIN
    width, height = step * len(panels), HEAD + PANEL + FOOT
    drawn = "\n".join(
        line
        for at, panel in enumerate(panels)
        for line in (f'<g transform="translate({at * step + MARGIN} {HEAD})">', *panel, "</g>")
    )
    return (
        f'{HEAD_OF_EVAL} viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img">\n<title>{_plain(name)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>\n'
        f"{_text(MARGIN, 24, name, 15, anchor='start')}\n{drawn}\n</svg>\n"
    )


def _matrix(confusion: Array) -> Iterator[str]:
    """Rows are labels, columns what was answered; a cell is as dark as its share of the row, its number the count."""
    count = len(confusion)
    cell = PANEL / count
    totals = confusion.sum(axis=1)
    yield _text(PANEL / 2, -18, "confusion: label by row, answer by column", 13, GREY)
    for row in range(count):
        for column in range(count):
            held = int(confusion[row, column])
            share = held / int(totals[row]) if held else 0.0
            if held:
                yield _rect(column * cell, row * cell, cell, cell, _shade(share))
            if held and count <= MOST_NUMBERED:
                number = str(held) if held < 10_000 else _short(held)
                size = min(14, 0.45 * cell, 1.4 * cell / len(number))
                middle = (row + 0.5) * cell + 0.35 * size
                yield _text((column + 0.5) * cell, middle, number, size, PAPER if share > 0.55 else INK)
    yield f'<rect width="{PANEL}" height="{PANEL}" fill="none" stroke="{GREY}"/>'
    for one in range(0, count, math.ceil(count / MOST_TICKS)):
        yield _text(-8, (one + 0.5) * cell + 4, str(one), 11, GREY, "end")
        yield _text((one + 0.5) * cell, PANEL + 16, str(one), 11, GREY)


def _latency(rows: Sequence[Row]) -> Iterator[str]:
    """For each batch a line from the median to the 99th percentile, on a logarithmic axis; a ring for the baseline."""
    before = [one.get("before_p50_ms", one.get("before", {}).get("p50_ms")) for one in rows]
    times = [float(one[key]) for one in rows for key in ("p50_ms", "p99_ms")] + [one for one in before if one]
    ticks = _ticks(min(times), max(times))
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def place(milliseconds: float) -> float:
        return PANEL * (1 - (math.log(max(milliseconds, ticks[0])) - low) / (high - low))

    told = "latency in ms: dot p50, bar p95, line to p99" + ("; ring: baseline p50" if any(before) else "")
    yield _text(PANEL / 2, -18, told, 13, GREY)
    for tick in ticks:
        yield _line(0, place(tick), PANEL, place(tick), FAINT)
        yield _text(-8, place(tick) + 4, f"{tick:g}", 11, GREY, "end")
    colour = _shade(1)
    step = math.ceil(len(rows) / MOST_LABELLED)
    for at, (row, old) in enumerate(zip(rows, before, strict=True)):
        x = PANEL * (at + 0.5) / len(rows)
        p50, p95, p99 = (place(float(row[f"p{share}_ms"])) for share in (50, 95, 99))
        yield _line(x, p50, x, p99, colour, 2)
        yield _line(x - 6, p95, x + 6, p95, colour, 2)
        yield f'<circle cx="{x:.1f}" cy="{p50:.1f}" r="5" fill="{colour}"/>'
        if old:
            aside, y = x - 14, place(old)
            yield f'<circle cx="{aside:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{GREY}" stroke-width="2"/>'
        if at % step == 0:
            yield _text(x + 10, p50 + 4, f"{row['p50_ms']:.3g}", 11, INK, "start")
            yield _text(x, PANEL + 16, str(row["batch"]), 11, GREY)
            yield _text(x, PANEL + 32, f"{_short(row['samples_per_s'])}/s", 11, GREY)
    yield _text(PANEL / 2, PANEL + 54, "samples in a batch, and how many a second", 13, GREY)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from at most `low` to at least `high`, two at least."""
    low, high = max(low, 1e-4), max(high, 1e-4)
    first = math.floor(math.log10(low))
    every = [float(f"{digit}e{power}") for power in range(first, first + 20) for digit in (1, 2, 5)]
    begin = max(at for at, one in enumerate(every) if one <= low)
    end = min(at for at, one in enumerate(every) if one >= high and at > begin)
    return every[begin : end + 1]


def _short(number: float) -> str:
    """Three figures, thousands as k, millions as M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"


def _shade(share: float) -> str:
    """From paper to the full colour."""
    return "#" + "".join(f"{round(255 + (one - 255) * share):02x}" for one in FULL)


def _text(x: float, y: float, text: str, size: float, fill: str = INK, anchor: str = "middle") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}"'
    return f'<text {place} fill="{fill}" text-anchor="{anchor}">{_plain(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{fill}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{stroke}" stroke-width="{width:g}"/>'


def _plain(text: str) -> str:
    """Text that is sound XML, whatever a file is called."""
    return escape("".join(one if one.isprintable() else " " for one in text))
