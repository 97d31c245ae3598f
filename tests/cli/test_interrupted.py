"""Ctrl-C or SIGTERM at any moment of a long command: its status, no traceback, and nothing on disk but what is whole.

A command is started again and again and stopped a little later each time, until it is done before: so every part of it
is met, on slow machines too. The clock starts at a sign of life, the first line that the new process prints. `demo` is
not let to its end here, which takes longest: `test_readme` does that, and looks at what it leaves.
"""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nets import convolutional, save, save_npz

from modelctl import integrity
from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.making import Origin, create
from modelctl.options import StepOptions

PROGRAM = "import sys; from modelctl.cli.start import main; sys.stderr.write('alive\\n'); sys.stderr.flush(); main()"
WORDS = {signal.SIGINT: "modelctl: interrupted", signal.SIGTERM: "modelctl: terminated"}
FIRST_S = 0.15
MOST_S = 300.0
MOST_DEMO_S = 12.0
BIG_BYTES = 24 << 20

FAST = {
    "prune": "prune m.onnx -o out.onnx --sparsity 0.5 --data samples.npz",
    "encrypt": "encrypt big.onnx -o out.sealed --key-file aes.key",
    "decrypt": "decrypt big.sealed -o opened/big.onnx --key-file aes.key",
    "push-sqlite": "push big.onnx sqlite:///new.db/big:1",
    "push-folder": "push big.onnx file://{folder}/new/big:1",
    "pull": "pull sqlite:///models.db/big:1 -o pulled",
    "keygen": "keygen -o out.pem --type rsa",
    "init": "init project",
}
SLOW = {
    "quantize": "quantize m.onnx -o out.onnx --data samples.npz --allow-regression --method static",
    "eval": "eval m.onnx --data samples.npz --plot drawn.svg",
    "run": "run pipe.toml",
    "search": "quantize m.onnx -o out.onnx --data samples.npz --allow-regression",
    "optimize": "optimize m.onnx -o out.onnx --data samples.npz --allow-regression",
    "export": "export net:build -o out.onnx --input x:float32[batch,1,8,8]",
    "distill": "distill m.onnx -o out.onnx --data samples.npz --student-size 800 --epochs 3 --allow-regression",
    "train": "train m.onnx -o out.onnx --data samples.npz --epochs 3",
    "demo": "demo show",
}
PIPE = """
model = "m.onnx"
data = "samples.npz"
[[step]]
run = "prune"
out = "build/pruned.onnx"
sparsity = 0.5
[[step]]
run = "encrypt"
out = "build/pruned.sealed"
key_file = "aes.key"
[[step]]
run = "push"
to = "sqlite:///pipe.db/m:1"
"""
NET = """
import torch
def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all that the commands read; each test works in a copy."""
    folder = tmp_path_factory.mktemp("kit")
    save(convolutional(), folder / "m.onnx")
    save_npz(folder / "samples.npz", 400)
    (folder / "pipe.toml").write_text(PIPE)
    (folder / "net.py").write_text(NET)
    (folder / "opened").mkdir()
    (folder / "root.pt").write_bytes(b"weights")
    with create(folder / "big.onnx", Origin("export", StepOptions(), (Artifact.open(folder / "root.pt"),))) as draft:
        draft.path.write_bytes(np.random.default_rng(0).bytes(BIG_BYTES))
    for line in (
        "keygen -o {}/aes.key --type aes",
        "encrypt {}/big.onnx -o {}/big.sealed --key-file {}/aes.key",
        "push {}/big.onnx sqlite:///{}/models.db/big:1",
    ):
        assert status_of([*line.replace("{}", str(folder)).split(), "-q"]) == 0
    return folder


@pytest.mark.parametrize("name", FAST)
def test_a_stopped_command_leaves_nothing_half_made(name: str, kit: Path, tmp_path: Path) -> None:
    assert not sweep(FAST[name], kit, tmp_path / "w", step=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_a_stopped_command_leaves_nothing_half_made_at_many_moments(name: str, kit: Path, tmp_path: Path) -> None:
    most = MOST_DEMO_S if name == "demo" else MOST_S
    stopped = sweep({**FAST, **SLOW}[name], kit, tmp_path / "w", 4.0 if name in SLOW else 1.6, most)
    assert stopped == (name == "demo")


def sweep(line: str, kit: Path, folder: Path, step: float, most: float = MOST_S) -> bool:
    """Stop the command later and later, `step` times as late each time, until it is done before, or later than `most`.

    Whether the last one was stopped.
    """
    chance = random.Random(line)
    moment = FIRST_S
    stopped = True
    number = chance.choice(list(WORDS))
    while stopped and moment < most:
        number = next(one for one in WORDS if one != number)  # in turns
        shutil.copytree(kit, folder, copy_function=shutil.copy2)
        before = listed(folder)
        told = f"{line}, {number.name} after {moment:.2f} s"
        stopped = stop_after(moment, number, line.replace("{folder}", str(folder)), folder, told)
        check(folder, before, stopped, told)
        shutil.rmtree(folder)
        moment *= step * chance.uniform(0.9, 1.1)
    return stopped


def stop_after(moment: float, number: signal.Signals, line: str, folder: Path, told: str) -> bool:
    """Run a command line in `folder` and send it a signal after `moment` seconds; whether it was stopped by that."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *line.split()],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "alive\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (0, 128 + number), f"{told}: {process.returncode} {err}"
    assert "Traceback" not in err, f"{told}: {err}"
    if process.returncode:
        assert out == "", told
        assert err.splitlines()[-1] == WORDS[number], f"{told}: {err}"
        assert all(one.startswith("modelctl: ") for one in err.splitlines()), f"{told}: {err}"
    return process.returncode != 0


def listed(folder: Path) -> set[Path]:
    """All that lies in a folder and below; the caches of Python aside."""
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def check(folder: Path, before: set[Path], stopped: bool, told: str) -> None:
    """What was there is there; what is new is whole: files with manifests that verify, or what is whole by itself."""
    now = listed(folder)
    assert before <= now, f"{told}: lost {before - now}"
    new = now - before
    assert stopped or new or told.startswith("eval "), f"{told}: made nothing"
    assert not [path for path in new if ".tmp-" in path.name or path.suffix == ".part"], f"{told}: {new}"
    for path in new:
        if path.suffix in (".onnx", ".sealed"):
            integrity.check(Artifact.open(path))
            assert Artifact.open(path).manifest_sha256, f"{told}: {path} has no manifest"
        if path.name.endswith(".manifest.json"):
            assert path.with_name(path.name.removesuffix(".manifest.json")).is_file(), f"{told}: {path} is alone"
    writing = folder / "new" / "tmp"  # where a store in a folder writes
    assert not writing.is_dir() or not any(writing.iterdir()), f"{told}: left in {writing}"
    for project in (folder / "project", folder / "show"):
        if project.is_dir():
            assert {"net.py", "train.py", "modelctl.toml", "Makefile"} <= {path.name for path in project.iterdir()}, (
                told
            )
    keys = {folder / "out.pem", folder / "out.pub.pem"}
    assert keys & now in (set(), keys), f"{told}: half a pair of keys"
