"""What all tests share: how a missing real part is treated, and a quiet, separate home for each run.

A test that needs a part installed apart (a Debian package, a client from PyPI) carries the mark `real_parts` and skips
itself with the install line as its reason. `--require-real-parts` turns such a skip into a failure: CI runs with it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kept
import pytest

from modelctl.artifact import Artifact
from modelctl.graph import latency
from modelctl.graph.quantizing import trials
from modelctl.making import Origin, create
from modelctl.options import KeygenOptions, KeyType, StepOptions
from modelctl.steps.keygen import keygen


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-real-parts", action="store_true", help="a skipped real_parts test is a failure")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and item.get_closest_marker("real_parts") and item.config.getoption("--require-real-parts"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a real part is missing: {report.longrepr[2]}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Make torch's table of translations to ONNX once: it makes it anew for each export, a third of all that takes."""
    registration: Any = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is None or hasattr(registration, "made_once"):
        return
    table, made_once = registration.ONNXRegistry, {}
    make = table.from_torchlib

    def copied(opset_version: int = registration._constants.TORCHLIB_OPSET) -> Any:
        if opset_version not in made_once:
            made_once[opset_version] = make(opset_version)
        found = table()
        found._opset_version = opset_version
        found.functions = {key: list(known) for key, known in made_once[opset_version].functions.items()}
        return found

    table.from_torchlib, registration.made_once = staticmethod(copied), made_once


@pytest.fixture(scope="session", autouse=True)
def _kept_for_the_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    kept.folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kept"


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the stores and settings of the person who runs it."""
    home: Path = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    for name in ("MODELCTL_STORE", "MODELCTL_DATA", "MODELCTL_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _brief(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are timed for a moment only: what is asked of their speed is that it is told."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(latency, "SECONDS", 0.05)
        monkeypatch.setattr(trials, "SECONDS", 0.02)


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Artifact]:
    """Makes an artifact of any bytes, further files by their keyword `more`, exported from the checkpoint `root.pt`."""

    def make(name: str = "model.onnx", data: bytes = b"graph", more: dict[str, bytes] | None = None) -> Artifact:
        root = tmp_path / "root.pt"
        root.write_bytes(b"weights")
        out = tmp_path / name
        with create(out, Origin("export", StepOptions(force=True), (Artifact.open(root),))) as draft:
            draft.path.write_bytes(data)
            for beside, content in (more or {}).items():
                (draft.path.parent / beside).write_bytes(content)
            draft.metrics = {"accuracy": {"metric": "top1", "value": 0.75}}
        return Artifact.open(out)

    return make


@pytest.fixture(scope="session")
def key_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of keys: rsa.pem, rsa2.pem, ed.pem, ed2.pem, each with its .pub.pem, and aes.key, aes2.key."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("rsa.pem", "rsa2.pem"):
        keygen(folder / name, KeygenOptions(type=KeyType.RSA, bits=2048))
    for name in ("ed.pem", "ed2.pem"):
        keygen(folder / name, KeygenOptions())
    for name in ("aes.key", "aes2.key"):
        keygen(folder / name, KeygenOptions(type=KeyType.AES))
    return folder
