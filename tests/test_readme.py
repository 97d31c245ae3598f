"""The README's commands work as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from modelctl.cli.main import status_of

README = Path(__file__).parents[1] / "README.md"


def session() -> list[str]:
    """The commands of the session, in order."""
    text = README.read_text(encoding="utf-8")
    told = text.partition("<!-- session:begin -->")[2].partition("<!-- session:end -->")[0]
    return re.findall(r"^\$ (.*)$", told, re.MULTILINE)


def environment() -> dict[str, str]:
    """The environment of a person who has activated the virtual environment that runs these tests."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_two_commands_stand_in_one_line_each() -> None:
    lines = [line.strip() for line in README.read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert lines[0].startswith("python3 -m venv ")
    assert lines[0].endswith("modelctl demo")
    assert lines[1].startswith("python3 -m venv ")
    assert lines[1].endswith("pytest")


def test_the_session_shows_commands_and_flags_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    words = [shlex.split(line) for line in session() if line.startswith("modelctl ")]
    assert len(words) > 10
    for _, command, *rest in words:
        assert status_of([command, "--help"]) == 0
        shown = capsys.readouterr().out
        missing = [
            word for word in rest if word.startswith("-") and f"{word} " not in shown and f"{word}," not in shown
        ]
        assert not missing, f"{command}: {missing}"


@pytest.mark.slow
def test_the_session_runs_as_it_stands(tmp_path: Path) -> None:
    *commands, serve = session()
    script = "\n".join(["set -e", *commands])
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with subprocess.Popen(
        [*shlex.split(serve), "--port", "0"],
        cwd=tmp_path / "digits",
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("ready http://127.0.0.1:")
        server.terminate()
    assert server.returncode == 0


@pytest.mark.slow
def test_the_demo_leaves_a_folder_that_run_finds_current(tmp_path: Path) -> None:
    modelctl = [sys.executable, "-m", "modelctl"]
    demo = subprocess.run([*modelctl, "demo"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert demo.returncode == 0, demo.stderr
    assert "asked over HTTP what a handwritten" in demo.stdout
    shown = {line.split()[0] for line in demo.stdout.splitlines() if line}
    made = {"export", "prune", "quantize", "distill", "eval", "sign", "encrypt", "push", "pull", "decrypt", "verify"}
    assert made | {"serve"} <= shown
    folder = tmp_path / "modelctl-demo"
    plan = subprocess.run(
        [*modelctl, "run", "--dry-run"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    states = [line.split()[2] for line in plan.splitlines()[1:]]
    assert "stale" not in states
    assert states.count("current") >= 5
