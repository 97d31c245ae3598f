"""Words: one line each, nothing that steers a terminal, numbers and names as they are meant."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.cli.console import Console, explain, one_line, plain_lines, visible
from modelctl.cli.teller import Teller
from modelctl.errors import CheckFailed, ModelctlError, UsageError
from modelctl.report import Report


def console(**more: Any) -> Console:
    return Console(command="x", out=io.StringIO(), err=io.StringIO(), **more)


def said(text: Any) -> str:
    assert isinstance(text, io.StringIO)
    return text.getvalue()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_whatever_the_text_nothing_steers_the_terminal(text: str) -> None:
    assert one_line(text).isprintable()
    assert visible(text).isprintable()
    assert len(visible(text)) == len(text)
    for as_json in (False, True):
        one = console(as_json=as_json)
        one.error(UsageError(text, text))
        one.result(Report(subject=text, facts={text: [text, {"a": text}]}))
        one.result(Report(subject=text, lines=(text,)))
        assert (said(one.out) + said(one.err)).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "A.npz"), "A.npz: no such file or directory"),
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError(2, "No such file", b"b\xc3\xa9"), "bé: no such file"),
        (OSError(9, "Bad file descriptor", 7), "bad file descriptor"),
        (OSError("Could not reach Host"), "Could not reach Host"),
        (OSError(), "OSError"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_os_error_is_one_line_with_the_file_first(error: OSError, line: str) -> None:
    assert explain(error) == (line, None, 2)


def test_an_error_brings_its_hint_and_status() -> None:
    assert explain(CheckFailed("m: no", "do this")) == ("m: no", "do this", 1)
    assert explain(ModelctlError("a\nb")) == ("a b", None, 2)


def test_facts_are_aligned_lines_of_dotted_names() -> None:
    facts = {"a": 1, "bb": {"c": 0.123456789, "d": [1, 2], "e": [{"f": None}, {"f": True}]}, "none": []}
    assert plain_lines(facts) == [
        "a          1",
        "bb.c       0.123457",
        "bb.d       1 2",
        "bb.e[0].f  None",
        "bb.e[1].f  True",
        "none",
    ]


def test_like_rows_are_a_table_below_the_other_facts() -> None:
    rows = [{"class": 0, "f1": 0.123456789}, {"class": 10, "f1": None}]
    assert plain_lines({"rows": rows, "inner": {"one": [{"a": "x\n", "b": True}]}, "last": 1}) == [
        "last  1",
        "",
        "rows",
        "  class        f1",
        "      0  0.123457",
        "     10",
        "",
        "inner.one",
        "  a     b",
        "  x  True",
    ]
    assert plain_lines({"rows": [{"a": 1, "b": 2}, {"a": 1}]})[0] == "rows[0].a  1"
    assert plain_lines({"rows": [{"a": 1, "b": [1]}]}) == ["rows[0].a  1", "rows[0].b  1"]


def test_a_table_is_cut_where_nobody_reads_on() -> None:
    lines = plain_lines({"rows": [{"a": at, "b": 0} for at in range(103)]})
    assert lines[-2:] == ["  99  0", "  … 3 more with --json"]


def test_a_document_holds_every_kind_of_fact() -> None:
    one = console(as_json=True)
    one.result(Report(subject="s", facts={"t": (1, float("-inf")), "3": {"n": float("nan")}, "lines": "\n"}))
    assert json.loads(said(one.out))["result"] == {"t": [1, None], "3": {"n": None}, "lines": "\n"}


def test_progress_in_a_pipe_is_a_line_each_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    one = console()
    teller = Teller(one)
    for second in range(0, 100, 5):
        now = float(second)
        teller.advance("training", second * 2, 400, "samples")
    assert said(one.err).splitlines() == [
        "modelctl: training: 60 of 400 samples, 2/s, 170 s left",
        "modelctl: training: 120 of 400 samples, 2/s, 140 s left",
        "modelctl: training: 180 of 400 samples, 2/s, 110 s left",
    ]
    now += 60
    teller.advance("hashing\x1b[2J", 5)
    assert said(one.err).splitlines()[-1] == "modelctl: hashing [2J: 5"
    quiet = console(quiet=True)
    Teller(quiet).note("x")
    assert said(quiet.err) == ""
    teller.close()
