"""Options become flags, flags become options, and a dry run does nothing."""

import json
from pathlib import Path

import pytest
import typer
from artifacts import make, names, origin_of, root
from typer.main import get_command

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Out, Run, Shell, command, plan
from modelctl.cli.console import facts_of
from modelctl.errors import UsageError
from modelctl.options import Method, QuantizeOptions
from modelctl.report import Report

SEEN: list[QuantizeOptions] = []


def app() -> typer.Typer:
    built = typer.Typer(rich_markup_mode=None)

    @command(built, QuantizeOptions)
    def take_it(model: Model, out: Out, options: QuantizeOptions, shell: Shell) -> Answer:
        """Take it."""
        SEEN.append(options)
        return Report(subject=str(model), facts={"dry": shell.dry_run})

    @command(built, name="plain")
    def other() -> Answer:
        """Nothing to choose."""
        return None

    return built


def parsed(*argv: str) -> Run:
    found = get_command(app())(args=list(argv), standalone_mode=False)
    assert isinstance(found, Run)
    return found


def test_parsing_runs_nothing() -> None:
    SEEN.clear()
    run = parsed("take-it", "m", "-o", "o", "-q")
    assert run.console.quiet
    assert not SEEN


def test_flags_become_options(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--method", "dynamic", "--max-drop", "1", "--data", "d", "--op-type", "A", "--op-type", "B"]
    parsed("take-it", "m", "-o", "o", *argv, "--per-tensor", "--annotate", "k=v", "--dry-run").act()
    assert SEEN[-1] == QuantizeOptions(
        method=Method.DYNAMIC, max_drop=1.0, data="d", op_types=("A", "B"), per_channel=False, annotations=("k=v",)
    )
    assert capsys.readouterr().out == "dry  True\n"


def test_no_flags_are_the_defaults() -> None:
    parsed("take-it", "m", "-o", "o").act()
    assert SEEN[-1] == QuantizeOptions()


def test_a_command_without_options_has_what_every_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    parsed("plain", "--json").act()
    assert json.loads(capsys.readouterr().out) == {"command": "plain", "ok": True, "result": None}
    flags = {flag for one in get_command(app()).commands["plain"].params for flag in one.opts}  # type: ignore[attr-defined]
    assert flags == {"--json", "-q", "--quiet", "-v", "--verbose", "--no-progress"}


def test_a_plan_tells_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    model = root(tmp_path)
    facts = plan(origin_of(model, seed=3), tmp_path / "b.onnx").facts
    assert (facts["step"], facts["current"], facts["options"]["seed"]) == ("quantize", False, 3)
    assert names(tmp_path) == {"a.onnx"}
    make(tmp_path / "b.onnx", origin_of(model, seed=3))
    assert plan(origin_of(model, seed=3), tmp_path / "b.onnx").facts["current"] is True
    with pytest.raises(UsageError, match="stands already"):
        plan(origin_of(model, seed=4), tmp_path / "b.onnx")


def test_an_artifact_is_told_by_its_facts(tmp_path: Path) -> None:
    made = make(tmp_path / "b.onnx", origin_of(root(tmp_path)))
    assert facts_of(made) == {
        "path": str(tmp_path / "b.onnx"),
        "manifest": str(tmp_path / "b.onnx.manifest.json"),
        "name": "b",
        "format": "onnx",
        "digest": Artifact.open(made.path).digest,
        "size_bytes": 4,
        "metrics": {},
    }
