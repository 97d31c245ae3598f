"""eval, quantize and prune as they are typed: exit code, stdout, stderr, and what lies on disk afterwards."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nets
import numpy as np
import pytest
from artifacts import names

from modelctl.cli.main import status_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    nets.save(nets.convolutional(), tmp_path / "net.onnx")
    nets.save_npz(tmp_path / "samples.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELCTL_THREADS", "1")
    return tmp_path


def test_the_way_of_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["prune", "net.onnx", "-o", "p.onnx", "--sparsity", "0.1", "--data", "samples.npz"]) == 0
    out, err = capsys.readouterr()
    assert "pruned.kept" in out
    assert "weights are zero now; a plain file is no smaller for it" in err
    assert status_of(["quantize", "p.onnx", "-o", "q.onnx", "--data", "samples.npz", "--allow-regression"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("q.onnx  ")
    assert "drop_pp" in out
    assert err == ""
    assert status_of(["eval", "q.onnx", "--data", "samples.npz", "--baseline", "net.onnx"]) == 0
    out, err = capsys.readouterr()
    assert "accuracy.value" in out
    assert "latency.speedup.low" in out
    assert err == ""
    made = {"p.onnx", "p.onnx.manifest.json", "q.onnx", "q.onnx.manifest.json"}
    assert names(folder) == {"net.onnx", "samples.npz"} | made


def test_figures_by_class_group_and_batch_are_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "eval net.onnx --data samples.npz --slices y --batch 1,8 --plot eval.svg"
    assert status_of(command.split()) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[lines.index("classes") + 1].split()[:3] == ["class", "support", "precision"]
    assert lines[lines.index("slices.groups") + 1].split() == ["group", "samples", "value", "low", "high"]
    assert [lines[lines.index("latencies") + at].split()[0] for at in (1, 2, 3)] == ["batch", "1", "8"]
    assert err == ""
    assert names(folder) == {"net.onnx", "samples.npz", "eval.svg"}
    assert status_of([*command.split(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["class"] for row in document["result"]["classes"]] == [0, 1, 2, 3]
    assert document["result"]["latencies"][1]["batch"] == 8


def test_a_gate_that_is_not_met_shows_what_was_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gated = ["eval", "net.onnx", "--data", "samples.npz", "--min-accuracy", "1"]
    assert status_of(gated) == 1
    out, err = capsys.readouterr()
    assert "accuracy.value" in out
    assert err.startswith("modelctl: error: net.onnx: min_accuracy wanted 1, found 0.")
    assert status_of([*gated, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["error"]["kind"] == "CheckFailed"
    assert document["result"]["gates"]["min_accuracy"]["met"] is False


def test_a_refused_result_is_not_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(folder)
    refused = ["quantize", "net.onnx", "-o", "q.onnx", "--data", "samples.npz", "--min-speedup", "900"]
    assert status_of([*refused, "--method", "static"]) == 1
    out, err = capsys.readouterr()
    assert "latency.speedup.value" in out
    assert err.startswith("modelctl: error: q.onnx: not accepted: the result runs at ×")
    assert names(folder) == before


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("quantize empty.onnx -o q.onnx", "empty.onnx: is empty"),
        ("prune empty.onnx -o q.onnx --keep 5", "empty.onnx: is empty"),
        ("eval empty.onnx", "empty.onnx: is empty"),
        ("eval net.onnx --baseline empty.onnx", "empty.onnx: is empty"),
        ("optimize empty.onnx -o q.onnx", "empty.onnx: is empty"),
        ("inspect empty.onnx", "empty.onnx: is empty"),
        ("log empty.onnx", "empty.onnx: is empty"),
        ("serve empty.onnx", "empty.onnx: is empty"),
        ("quantize short.onnx -o q.onnx", "short.onnx: not an ONNX model, or cut short"),
        ("prune short.onnx -o q.onnx --keep 5", "short.onnx: not an ONNX model, or cut short"),
        ("eval short.onnx", "short.onnx: not an ONNX model, or cut short"),
        ("quantize none.onnx -o q.onnx", "none.onnx: no such file"),
        ("eval net.onnx --data none.npz", "none.npz: no such file or folder"),
        ("eval net.onnx --data samples.txt", "samples.txt: no reader for .txt"),
        ("eval net.onnx --data wide.npz", "input 'x': expected float32[N,1,8,8], found float64[N,1,9,9]"),
        ("eval net.onnx --data bare.npz", "bare.npz: has no labels 'y'"),
        ("eval net.onnx --data samples.npz --slices who", "samples.npz: has no column 'who'; its columns: y"),
        ("eval net.onnx --data samples.npz --metric none:score", "there is no module 'none' in this folder"),
        ("eval net.onnx --data samples.npz --batch 1,x", "--batch 1,x: must be numbers of samples"),
        ("eval net.onnx --plot net.onnx", "--plot net.onnx: only .svg is drawn"),
        ("quantize net.onnx -o q.onnx --data nan.npz", "holds NaN, infinity"),
        ("quantize net.onnx -o q.onnx --data wide.npz", "found float64[N,1,9,9]"),
        ("quantize net.onnx -o q.onnx --data bare.npz --max-drop 1", "no labels 'y'"),
        ("quantize net.onnx -o q.onnx --max-drop 1", "--max-drop needs samples"),
        ("quantize net.onnx -o q.onnx --method static", "--method static needs samples"),
        ("quantize net.onnx -o net.onnx", "is the input itself"),
        ("quantize net.onnx -o none/q.onnx", "no such folder"),
        ("prune net.onnx -o q.onnx", "exactly one of --sparsity"),
        ("prune net.onnx -o q.onnx --sparsity 2", "must be 0 to 1"),
        ("prune samples.npz -o q.onnx --keep 1", "prune reads onnx, this is npz"),
    ],
)
def test_bad_input_is_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str], command: str, says: str) -> None:
    (folder / "empty.onnx").touch()
    (folder / "short.onnx").write_bytes((folder / "net.onnx").read_bytes()[:-100])
    (folder / "samples.txt").write_text("1 2 3")
    nets.save_npz(folder / "wide.npz", x=np.ones((9, 1, 9, 9)), y=np.zeros(9, int))
    nets.save_npz(folder / "bare.npz", x=nets.samples(50)[0])
    nets.save_npz(folder / "nan.npz", x=np.full((50, 1, 8, 8), np.nan), y=np.zeros(50, int))
    before = names(folder)
    assert status_of(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("modelctl: error: ")
    assert says in err.splitlines()[0]
    assert len([line for line in err.splitlines() if not line.startswith("modelctl: hint: ")]) == 1
    assert names(folder) == before


def test_a_dry_run_does_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(folder)
    assert status_of(["quantize", "net.onnx", "-o", "q.onnx", "--dry-run"]) == 0
    assert "quantize" in capsys.readouterr().out
    assert names(folder) == before


def test_ctrl_c_leaves_nothing(folder: Path) -> None:
    nets.save_npz(folder / "many.npz", 20000)
    before = names(folder)
    command = ["quantize", "net.onnx", "-o", "q.onnx", "--data", "many.npz", "--samples", "16000"]
    command += ["--calibration", "entropy"]
    with subprocess.Popen([sys.executable, "-m", "modelctl", *command], cwd=folder, stderr=subprocess.PIPE) as process:
        while not any(name.startswith(".q.onnx.tmp") for name in names(folder)):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "modelctl: interrupted"
    assert names(folder) == before
