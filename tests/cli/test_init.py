"""`modelctl init`: a whole project, or nothing."""

import gzip
import importlib.util
import json
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from modelctl.cli.main import status_of
from modelctl.data import digits
from modelctl.options import Options
from modelctl.pipeline import plan

FILES = {
    ".github/workflows/model.yml",
    ".gitignore",
    "Makefile",
    "README.md",
    "modelctl.toml",
    "net.py",
    "train.py",
}


def files_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def write_idx(folder: Path, side: int, count: int = 40) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
        labels = (np.arange(count) % 7).astype(np.uint8)
        for name, array in ((f"{split}-images-idx3-ubyte.gz", images), (f"{split}-labels-idx1-ubyte.gz", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / name).write_bytes(gzip.compress(head + array.tobytes(), mtime=0))


def test_project_is_whole_and_carries_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["init", "--json", str(tmp_path / "My Demo")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["result"]["files"]) == FILES | {"digits.npz", "digits.LICENSE.md"}
    project = tmp_path / "My Demo"
    assert files_in(project) == set(document["result"]["files"])
    assert (project / "digits.npz").read_bytes() == digits.path().read_bytes()
    pipeline = tomllib.loads((project / "modelctl.toml").read_text())
    assert [step["run"] for step in pipeline["step"]][:3] == ["export", "prune", "quantize"]
    assert pipeline["step"][0]["out"] == "build/my-demo.onnx"
    assert not any("{{" in (project / name).read_text() for name in FILES)
    assert list(tmp_path.iterdir()) == [project]


def test_its_pipeline_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of(["init", "-q", str(tmp_path / "demo")]) == 0
    monkeypatch.chdir(tmp_path / "demo")
    Path("keys").mkdir()
    for name in ("weights.pt", "keys/signing.pem", "keys/signing.pub.pem", "keys/release.pub.pem"):
        Path(name).write_bytes(b"")
    steps = plan.checked(plan.read(Path("modelctl.toml")), Path("modelctl.toml"), Options())
    assert [step.number for step in steps] == list(range(1, 9))


def test_two_projects_of_one_name_are_the_same_bytes(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        assert status_of(["init", "-q", str(tmp_path / parent / "demo")]) == 0
    a, b = tmp_path / "a" / "demo", tmp_path / "b" / "demo"
    assert {name: (a / name).read_bytes() for name in files_in(a)} == {
        name: (b / name).read_bytes() for name in files_in(b)
    }


def test_empty_current_folder_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(["init", "."]) == 0
    assert "next: make" in capsys.readouterr().err
    assert files_in(tmp_path) >= FILES


def test_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert status_of(["init", str(tmp_path / "mine")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert files_in(tmp_path) == {"mine/notes.txt"}


@pytest.mark.parametrize(
    ("folder", "told"),
    [("file", "stands already"), ("missing/demo", "no such folder"), ("file/demo", "is no folder")],
)
def test_place_that_cannot_be_is_refused(
    tmp_path: Path, folder: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert status_of(["init", str(tmp_path / folder)]) == 2
    assert told in capsys.readouterr().err
    assert files_in(tmp_path) == {"file"}


@pytest.mark.parametrize("stands", [False, True])
def test_a_full_disk_is_told_of_the_folder_and_leaves_nothing(stands: bool, tmp_path: Path) -> None:
    if stands:
        (tmp_path / "demo").mkdir()
    done = subprocess.run(
        # -B: Python would write half of a module it compiles, and take that for the whole from then on.
        [sys.executable, "-B", "-m", "modelctl", "init", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"modelctl: error: {tmp_path / 'demo'}: file too large\n"
    assert list(tmp_path.rglob("*")) == ([tmp_path / "demo"] if stands else [])


def test_net_is_sized_by_the_data(tmp_path: Path) -> None:
    write_idx(tmp_path / "images", side=28)
    assert status_of(["init", "-q", "--data", str(tmp_path / "images"), str(tmp_path / "demo")]) == 0
    text = (tmp_path / "demo" / "net.py").read_text()
    assert "CHANNELS, HEIGHT, WIDTH, CLASSES = 1, 28, 28, 7" in text
    assert not (tmp_path / "demo" / "digits.npz").exists()
    pipeline = tomllib.loads((tmp_path / "demo" / "modelctl.toml").read_text())
    assert pipeline["data"] == str(tmp_path / "images")
    assert pipeline["step"][0]["inputs"] == ["x:float32[batch,1,28,28]"]


def test_data_that_cannot_be_learned_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx(tmp_path / "tiny", side=3)
    np.savez(tmp_path / "flat.npz", x=np.zeros((50, 4), np.float32), y=np.zeros(50, np.int64))
    for data, told in (("tiny", "too small"), ("flat.npz", "expected"), ("none.npz", "no such file")):
        assert status_of(["init", "--data", str(tmp_path / data), str(tmp_path / "demo")]) == 2
        assert told in capsys.readouterr().err
    assert status_of(["init", "--data", "mine:samples", str(tmp_path / "demo")]) == 2
    assert "a file or a folder of samples, not from a function" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_training_script_learns_and_writes_the_same_weights_again(tmp_path: Path) -> None:
    assert status_of(["init", "-q", str(tmp_path / "demo")]) == 0
    weights = []
    for name in ("one.pt", "two.pt"):
        command = [sys.executable, "train.py", "--epochs", "4", "--threads", "1", "-o", name]
        done = subprocess.run(command, cwd=tmp_path / "demo", capture_output=True, text=True, check=True)
        assert float(done.stdout.splitlines()[-1].split()[2]) > 0.6
        weights.append((tmp_path / "demo" / name).read_bytes())
    assert weights[0] == weights[1]
