"""The sdist builds a wheel that carries what is needed: a base install of it works elsewhere, and without torch."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import onnx
import pytest
from nets import convolutional, save_npz

ROOT = Path(__file__).parents[1]


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    _run([*PIP, "install", "--target", str(folder / "tools"), "build", "hatchling"], folder)
    environment = os.environ | {"PYTHONPATH": str(folder / "tools")}
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", str(folder / "dist"), str(ROOT)]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `modelctl` of a virtual environment that holds nothing but the wheel and its base requirements."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("modelctl-*.whl")
    place = folder / "venv" / "bin"
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], folder)
    # Most of what is installed is never imported here: what is gets compiled then.
    install = ["--python", str(place / "python"), "install", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    _run([*PIP, *install, str(wheel)], folder)
    return place / "modelctl"


def _run(command: list[str], folder: Path, status: int = 0) -> str:
    gone = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.mark.slow
@pytest.mark.real_parts
def test_a_base_install_does_all_but_training(installed: Path, tmp_path: Path) -> None:
    modelctl = str(installed)
    onnx.save(convolutional(), tmp_path / "foreign.onnx")
    save_npz(tmp_path / "data.npz")
    _run([modelctl, "init", "project"], tmp_path)
    missing = _run([modelctl, "export", "net:build", "-o", "m.onnx"], tmp_path / "project", status=2)
    assert "pip install 'modelctl[torch]'" in missing
    _run([modelctl, "export", "foreign.onnx", "-o", "model.onnx"], tmp_path)
    _run([modelctl, "quantize", "model.onnx", "--data", "data.npz", "--allow-regression", "-o", "int8.onnx"], tmp_path)
    _run([modelctl, "eval", "int8.onnx", "--data", "data.npz", "--min-accuracy", "0.8"], tmp_path)
    _run([modelctl, "keygen", "--type", "aes", "-o", "aes.key"], tmp_path)
    _run([modelctl, "encrypt", "int8.onnx", "--key-file", "aes.key", "-o", "int8.sealed"], tmp_path)
    _run([modelctl, "push", "int8.sealed", "sqlite:///models.db/int8:1"], tmp_path)
    _run([modelctl, "pull", "sqlite:///models.db/int8:1", "-o", "elsewhere"], tmp_path)
    _run([modelctl, "decrypt", "elsewhere/int8.sealed", "--key-file", "aes.key", "-o", "elsewhere"], tmp_path)
    verified = _run([modelctl, "verify", "elsewhere/int8.onnx", "--root", "foreign.onnx", "--json"], tmp_path)
    assert json.loads(verified)["ok"]
    command = [modelctl, "serve", "elsewhere/int8.sealed", "--key-file", "aes.key", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready, url, *_ = server.stdout.readline().split()
        assert ready == "ready"
        for path, held in (("/", b"/page/page.js?"), ("/docs", b"/page/docs.js?"), ("/page/page.css", b"--accent")):
            assert held in urllib.request.urlopen(url + path, timeout=10).read()
        server.terminate()
    assert server.returncode == 0


@pytest.mark.slow
@pytest.mark.real_parts
def test_the_sdist_builds_the_wheel(built: Path) -> None:
    assert {file.suffix for file in built.iterdir()} == {".gz", ".whl"}
