"""`modelctl run`: exit status, table, one JSON document, and what Ctrl-C leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelctl.artifact import Artifact
from modelctl.cli.main import status_of

PIPELINE = """
model = "model.onnx"

[[step]]
run = "encrypt"
out = "build/model.sealed"
recipients = ["rsa.pub.pem"]

[[step]]
run = "push"
to = "sqlite:///models.db/model:1"
"""


@pytest.fixture
def project(
    tmp_path: Path, make_artifact: Callable[..., Artifact], key_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working folder, with a model, a key and a pipeline."""
    make_artifact()
    (tmp_path / "rsa.pub.pem").write_bytes((key_folder / "rsa.pub.pem").read_bytes())
    (tmp_path / "modelctl.toml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_table_goes_to_stdout_and_the_rest_to_stderr(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run"]) == 0
    first = capsys.readouterr()
    head, sealed, pushed = first.out.splitlines()
    assert head.split() == ["step", "file", "state", "bytes", "accuracy", "sha256"]
    assert sealed.split()[:3] == ["encrypt", "build/model.sealed", "made"]
    assert pushed.split() == ["push", "sqlite:///models.db/model:1", "pushed"]
    assert "step 1 of 2: encrypt build/model.sealed" in first.err
    assert status_of(["run", "-q"]) == 0
    second = capsys.readouterr()
    assert second.out.splitlines()[1].split()[2] == "current"
    assert second.err == ""


def test_dry_run_says_what_is_stale(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in document["result"]["steps"]] == ["stale", "runs"]
    assert not (project / "build").exists()


def test_bad_pipeline_is_exit_2_and_leaves_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "modelctl.toml").write_text(PIPELINE + '[[step]]\nrun = "quantize"\nout = "q.onnx"\nmax_drop = 200\n')
    before = sorted(project.rglob("*"))
    assert status_of(["run"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "modelctl: error: modelctl.toml: step 3 (quantize): max_drop: 200 must be 0 to 100\n"
    assert sorted(project.rglob("*")) == before


def test_gate_that_says_no_is_exit_1_and_names_its_step(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "modelctl.toml").write_text(PIPELINE + '[[step]]\nrun = "verify"\nkeys = ["rsa.pub.pem"]\n')
    assert status_of(["run"]) == 1
    assert "modelctl.toml: step 3 (verify): build/model.sealed: " in capsys.readouterr().err
    assert (project / "build" / "model.sealed").is_file()


def test_missing_file_is_exit_2_with_a_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", str(tmp_path / "modelctl.toml")]) == 2
    assert "no such file\nmodelctl: hint: modelctl init DIR" in capsys.readouterr().err


def test_interrupt_leaves_what_was_finished_and_nothing_half_made(
    project: Path, make_artifact: Callable[..., Artifact]
) -> None:
    slow = '[[step]]\nrun = "encrypt"\nfrom = "model.onnx"\nout = "slow/model.sealed"\npassphrase = "file:pipe"\n'
    (project / "modelctl.toml").write_text(PIPELINE + slow)
    os.mkfifo(project / "pipe")
    writer = os.open(project / "pipe", os.O_RDWR)  # of a passphrase that never comes
    command = [sys.executable, "-m", "modelctl", "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "step 3 of 3" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    os.close(writer)
    assert process.returncode == 130
    assert err.endswith("modelctl: interrupted\n")
    assert out == ""
    assert Artifact.open(project / "build" / "model.sealed").manifest_sha256
    assert not (project / "slow").exists()
