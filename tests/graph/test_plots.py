import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

from modelctl.graph import plots

SVG = "{http://www.w3.org/2000/svg}"


def row(batch: int, p50: float, **more: Any) -> dict[str, Any]:
    times = {"p50_ms": p50, "p95_ms": 2 * p50, "p99_ms": 3 * p50}
    return {"batch": batch, "threads": 1, **times, "samples_per_s": 1e3 * batch / p50, **more}


def texts(drawn: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def within(drawn: str) -> bool:
    """Whether all that is drawn lies within its panel and the room around it."""
    root = ElementTree.fromstring(drawn)
    height = float(root.attrib["height"])
    groups = root.findall(f"{SVG}g")
    for group in groups:
        for one in group.iter():
            for name in ("x", "x1", "x2", "cx"):
                if not -plots.MARGIN <= float(one.get(name, 0)) <= plots.PANEL + plots.MARGIN:
                    return False
            for name in ("y", "y1", "y2", "cy"):
                if not -plots.HEAD <= float(one.get(name, 0)) <= height - plots.HEAD:
                    return False
    return True


def test_the_picture_holds_counts_times_and_batches() -> None:
    drawn = plots.report("net.onnx", np.array([[7, 1], [0, 12]]), [row(1, 0.25), row(64, 4, before_p50_ms=8.0)])
    told = texts(drawn)
    assert {"net.onnx", "7", "1", "12", "0.25", "4", "64", "16k/s"} <= set(told)
    assert sum(text == "0" for text in told) == 2  # two ticks: an empty cell is not drawn
    assert "baseline p50" in told
    assert within(drawn)
    assert drawn == plots.report("net.onnx", np.array([[7, 1], [0, 12]]), [row(1, 0.25), row(64, 4, before_p50_ms=8.0)])


def test_without_classes_there_is_the_latency_alone() -> None:
    drawn = plots.report("net.onnx", None, [row(1, 0.25, before={"p50_ms": 1e-5})])
    assert len(ElementTree.fromstring(drawn).findall(f"{SVG}g")) == 1
    assert within(drawn)


@pytest.mark.parametrize("count", [2, 20, 21, 100])
def test_cells_keep_to_the_panel_and_numbers_to_their_cells(count: int) -> None:
    drawn = plots.report("n", np.full((count, count), 123456), [row(2**at, 1.0 + at) for at in range(12)])
    assert within(drawn)
    assert ("123k" in texts(drawn)) == (count <= plots.MOST_NUMBERED)
    written = ElementTree.fromstring(drawn).iter(f"{SVG}text")
    sizes = {float(one.get("font-size", 0)) for one in written if one.text == "123k"}
    assert all(size >= 7 and 4 * 0.6 * size <= plots.PANEL / count for size in sizes)  # a digit is 0.6 as wide as high


@pytest.mark.parametrize("count", [1, 2, 4])
def test_numbers_of_threads_stand_side_by_side_in_colours_of_their_own(count: int) -> None:
    rows = [row(batch, 0.1 * batch / one, threads=one) for one in (1, 2, 4)[:count] for batch in (1, 8, 64)]
    drawn = plots.report("net.onnx", None, rows)
    assert within(drawn)
    dots = [one for one in ElementTree.fromstring(drawn).iter(f"{SVG}circle") if one.get("r") == "5"]
    assert len({one.get("cx") for one in dots}) == len(dots) == len(rows)
    assert len({one.get("fill") for one in dots}) == min(count, 3)
    assert ("2 threads" in texts(drawn), "1 thread" in texts(drawn)) == (count > 1, count > 1)
    assert texts(drawn).count("64") == 1


def test_a_dark_screen_has_its_own_colours_for_all_that_is_drawn() -> None:
    root = ElementTree.fromstring(plots.report("n", np.array([[7, 1], [0, 12]]), [row(1, 1.0, before_p50_ms=2.0)]))
    (style,) = root.iter(f"{SVG}style")
    used = {kind for one in root.iter() for kind in one.get("class", "").split()}
    assert {"f-paper", "f-ink", "f-cell", "s-faint", "s-grey"} <= used
    assert all(f".{kind}{{" in (style.text or "") for kind in used)


@pytest.mark.parametrize("p50", [1e-4, 1.0, 0.999, 12345.678])
def test_any_time_has_its_place(p50: float) -> None:
    assert within(plots.report("n", None, [row(1, p50), row(8, p50)]))


def test_an_odd_name_is_no_markup() -> None:
    drawn = plots.report("<script>&\x00\x1b.onnx" + "n" * 300, None, [row(1, 1.0)])
    assert texts(drawn)[0].startswith("<script>&  .onnx")
    assert len(texts(drawn)[0]) == plots.MOST_LETTERS
    assert "<script>" not in drawn
