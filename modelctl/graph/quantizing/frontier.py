"""The picture of a search: how fast each candidate is, what it loses, and how small it is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelctl.graph.drawing import document, dot, frame, line, log_place, log_ticks, moved, ring, text

Row = Mapping[str, Any]

KIND = "quantize"
WIDTH, HEIGHT, MARGIN, HEAD, FOOT = 640, 400, 80, 70, 110
MOST_LETTERS = 60  # of a name
LARGEST = 14  # radius of a file as large as the float one
LINE = 18  # between two entries of the legend
LEAST_ERROR = 1e-4


def drawn(name: str, rows: Sequence[Row]) -> str:
    """Every candidate that was timed (rows as `Tried.facts` gives them): speed to the right, error upwards.

    The area of a dot is its file's size. A ring lies around what was chosen; what does not keep the budget is grey.
    """
    timed = [row for row in rows if row["speed"]]
    parts = [text(MARGIN, 24, _short(name), 15, anchor="start")]
    parts += moved(MARGIN, HEAD, _panel(timed))
    parts += moved(MARGIN, HEAD + HEIGHT + 60, _legend(timed))
    height = HEAD + HEIGHT + FOOT + LINE * len(timed)
    return document(KIND, f"{name}: what was tried", WIDTH + 2 * MARGIN, height, parts)


def _panel(rows: Sequence[Row]) -> Iterator[str]:
    yield text(WIDTH / 2, -18, "relative error of the answers, by speed beside the float model", 13, "grey")
    across = log_ticks(min([0.9, *(row["speed"] for row in rows)]), max([1.1, *(row["speed"] for row in rows)]))
    up = log_ticks(min([1e-2, *map(_error, rows)]), max([1e-1, *map(_error, rows)]))
    for tick in across:
        x = WIDTH * log_place(tick, across)
        yield line(x, 0, x, HEIGHT, "grey" if tick == 1 else "faint")
        yield text(x, HEIGHT + 16, f"×{tick:g}", 11, "grey")
    for tick in up:
        y = HEIGHT * (1 - log_place(tick, up))
        yield line(0, y, WIDTH, y, "faint")
        yield text(-8, y + 4, f"{tick:g}", 11, "grey", "end")
    yield frame(0, 0, WIDTH, HEIGHT, "grey")
    for number, row in sorted(enumerate(rows, 1), key=lambda one: one[1]["size_ratio"]):
        x, y = WIDTH * log_place(row["speed"], across), HEIGHT * (1 - log_place(_error(row), up))
        yield dot(x, y, _role(row), LARGEST / math.sqrt(max(row["size_ratio"], 0.25)))
        if row["verdict"] == "chosen":
            yield ring(x, y, "ink", LARGEST)
        yield text(x + 10, y - 8, str(number), 11, "ink", "start")


def _legend(rows: Sequence[Row]) -> Iterator[str]:
    """What each number is."""
    for number, row in enumerate(rows, 1):
        y = LINE * (number - 1)
        lost = f"{row['drop_pp']:+.2f} points lost" if row["drop_pp"] is not None else f"{row['agreement']:.4f} alike"
        told = f"{number}  {row['candidate']}: ×{row['speed']:.2f}, ÷{row['size_ratio']:.2f}, {lost} ({row['verdict']})"
        yield dot(6, y - 4, _role(row), 4)
        yield text(18, y, told, 12, "ink" if row["verdict"] == "chosen" else "grey", "start")


def _role(row: Row) -> str:
    return "series-0" if row["verdict"] in ("chosen", "keeps all") else "grey"


def _error(row: Row) -> float:
    return max(float(row["error"] or 0), LEAST_ERROR)


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
