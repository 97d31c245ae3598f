"""`demo`: the whole road on real handwritten digits, from training to an answer over HTTP, through the real commands.

The folder that it leaves is the project that `init` writes, with one step more. Nothing here is staged: the pipeline
is `modelctl run`'s, the server is a `modelctl serve` of its own, and the question is a digit that no step has seen.
"""

import contextlib
import importlib.util
import json
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelctl.artifact import Artifact
from modelctl.data import open_data
from modelctl.errors import CheckFailed, ModelctlError, UsageError, missing_extra
from modelctl.manifest import TensorSpec
from modelctl.options import DecryptOptions, InitOptions, KeygenOptions, KeyType, Options, PullOptions, VerifyOptions
from modelctl.pipeline import execution
from modelctl.progress import Progress, silent
from modelctl.report import Report
from modelctl.steps.decrypt import decrypt
from modelctl.steps.init import refuse_occupied, write_project
from modelctl.steps.keygen import keygen
from modelctl.steps.pull import pull
from modelctl.steps.verify import verify

KEYS = {"keys/signing.pem": KeyType.ED25519, "keys/release.pem": KeyType.RSA}
ANSWER_WITHIN_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What the server said to one digit: the class, the label it should have, and who answered."""

    predicted: int
    label: int
    model: str


def demo(folder: Path, options: Options, progress: Progress = silent) -> Report:
    """Train, run every step, serve from the sealed copy in the store and ask; the report has a row for each step.

    A folder that an earlier demo left is gone through again: what is current in it is not made again. UsageError for a
    folder that holds something else; CheckFailed if the served model answers wrong or is not the one that was signed.
    """
    if importlib.util.find_spec("torch") is None:
        raise missing_extra("demo trains a net, which needs torch", "torch")
    started = time.monotonic()
    name = _project(folder, progress)
    with contextlib.chdir(folder):
        _train(options, progress)
        _make_keys(progress)
        report = execution.run(Path("modelctl.toml"), options, progress)
        ref = f"sqlite:///build/models.db/{name}:1.0"
        pulled = pull(ref, Path("build/pulled"), PullOptions(), progress)
        opened = decrypt(pulled, pulled.path.parent, DecryptOptions(identities=("keys/release.pem",)), progress)
        checked = verify(pulled.path, VerifyOptions(roots=(Path("weights.pt"),)), progress)
        with _served(ref, progress) as url:
            answer = _asked(url, Path("digits.npz"))
    if not answer.model.endswith(f"@sha256:{pulled.digest}"):
        raise CheckFailed(f"{ref}: {answer.model} answered, and {pulled.digest} was signed and sealed")
    rows = [*report.facts["steps"], *_rows(pulled, opened, checked, answer, ref)]
    facts = {
        "folder": str(folder),
        "seconds": round(time.monotonic() - started, 1),
        "steps": rows,
        "asked": {"label": answer.label, "predicted": answer.predicted, "model": answer.model},
    }
    return Report(subject=str(folder), facts=facts, lines=_told(facts, rows))


def _project(folder: Path, progress: Progress) -> str:
    """A new project with the demo's step more, or the one that an earlier demo left; its name."""
    if not (folder / "modelctl.toml").is_file():
        refuse_occupied(folder, "demo")
        write_project(folder, InitOptions(), more_steps="demo.toml")
        progress.note(f"wrote the project {folder}")
    elif not (folder / "digits.npz").is_file():
        raise UsageError(f"{folder}: holds another project", "modelctl demo another-name")
    return folder.resolve().name


def _train(options: Options, progress: Progress) -> None:
    if Path("weights.pt").is_file():
        return
    progress.note("training a small convolutional net on the UCI digits")
    command = [sys.executable, "train.py", "--threads", str(options.thread_count())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelctlError(f"train.py: failed: {last}", f"cd {shlex.quote(str(Path.cwd()))} && python train.py")
    progress.note(done.stdout.strip().splitlines()[-1])


def _make_keys(progress: Progress) -> None:
    Path("keys").mkdir(exist_ok=True)
    for path, kind in KEYS.items():
        if not Path(path).is_file():
            progress.note(f"making the key {path}")
            keygen(Path(path), KeygenOptions(type=kind))


@contextlib.contextmanager
def _served(ref: str, progress: Progress) -> Iterator[str]:
    """The address of a `modelctl serve` that answers from the sealed artifact in the store, ended afterwards."""
    progress.note(f"serving {ref}")
    command = [sys.executable, "-m", "modelctl", "serve", ref, "--identity", "keys/release.pem", "--port", "0", "-q"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        ready = server.stdout.readline().split()
        if ready[:1] != ["ready"]:
            _, said = server.communicate(timeout=ANSWER_WITHIN_S)
            raise ModelctlError(f"modelctl serve did not come up: {said.strip()}")
        yield ready[1]
    finally:
        server.terminate()
        server.communicate()


def _asked(url: str, data: Path) -> Answer:
    """Ask the server for the class of one digit of the test part."""
    image = TensorSpec(name="x", dtype="float32", shape=("batch", 1, 8, 8))
    samples = open_data(str(data), [image], seed=0).test
    assert samples.labels is not None
    body = json.dumps({"inputs": samples.inputs["x"][:1].tolist()}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as response:
        told = json.load(response)
    scores = np.asarray(next(iter(told["outputs"].values())))
    return Answer(int(scores.argmax()), int(samples.labels[0]), told["model"])


def _rows(pulled: Artifact, opened: Artifact, checked: Report, answer: Answer, ref: str) -> list[execution.Row]:
    """What the demo did beyond the pipeline, as further rows of its table."""
    arrived = (("pull", "pulled", pulled), ("decrypt", "opened", opened))
    return [
        *(
            {"step": step, "file": str(one.path), "state": did, "size_bytes": one.size_bytes, "digest": one.digest}
            for step, did, one in arrived
        ),
        {"step": "verify", "file": str(pulled.path), "state": "checked", "facts": checked.facts},
        {"step": "serve", "file": ref, "state": "asked", "digest": answer.model.partition(":")[2]},
    ]


def _told(facts: dict[str, Any], rows: list[execution.Row]) -> tuple[str, ...]:
    asked = facts["asked"]
    return (
        *execution.table(rows),
        "",
        f"asked over HTTP what a handwritten {asked['label']} is: {asked['predicted']}, says {asked['model']}",
        f"done in {facts['seconds']:.0f} s; cd {shlex.quote(facts['folder'])} && modelctl run finds everything current",
    )
