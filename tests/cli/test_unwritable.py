"""Every command that writes, where it can't: one clear line that names the place, exit status 2, nothing on disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from artifacts import snapshot
from nets import convolutional, save, save_npz

from modelctl.cli.main import status_of

WRITING = {
    "export foreign.onnx -o {out}/o.onnx": "o.onnx",
    "prune net.onnx -o {out}/o.onnx --sparsity 0.1 --allow-regression": "o.onnx",
    "optimize net.onnx -o {out}/o.onnx --allow-regression": "o.onnx",
    "quantize net.onnx -o {out}/o.onnx --allow-regression": "o.onnx",
    "encrypt net.onnx -o {out}/o.sealed --key-file aes.key": "o.sealed",
    "decrypt net.sealed -o {out}/net.onnx --key-file aes.key": "net.onnx",
    "keygen -o {out}/key.pem": "key.pem",
    "push net.onnx sqlite:///{out}/models.db/net:1": "models.db",
    "push net.onnx file://{out}/store/net:1": "store",
    "pull file://{here}/shelf/net:1 -o {out}/pulled": "pulled",
    "eval net.onnx --data samples.npz --plot {out}/drawn.svg": "drawn.svg",
    "init {out}/project": "project",
    "run pipe.toml": "o.sealed",
}

# A folder that became a store before it turned out to be full is one that holds nothing.
EMPTY_STORE = {"out/store", "out/store/modelctl-store.json", "out/store/tmp"}

# A limit on the size of files is answered as a full disk is, in the middle of a write. One process for all commands,
# for its start is what takes time.
CODE = """
import contextlib, io, json, resource, sys
from modelctl.cli.main import status_of
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
sys.dont_write_bytecode = True
told = []
for line in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        status = status_of([*line.split(), "-q"])
    told.append((status, said.getvalue()))
print(json.dumps(told))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of all that the commands read, and in it the folder `out`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELCTL_THREADS", "1")
    save(convolutional(), tmp_path / "foreign.onnx")
    save_npz(tmp_path / "samples.npz", 200)
    for line in (
        "export foreign.onnx -o net.onnx",
        "keygen -o aes.key --type aes",
        "encrypt net.onnx -o net.sealed --key-file aes.key",
        f"push net.onnx file://{tmp_path}/shelf/net:1",
    ):
        assert status_of([*line.split(), "-q"]) == 0
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("how", "out"),
    [
        pytest.param("full", "out", marks=pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")),
        pytest.param(
            "read-only",
            "/proc/self",  # for root too
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, which Linux has"),
        ),
    ],
)
def test_a_place_that_takes_no_files_is_one_clear_line_and_nothing_is_left(how: str, out: str, place: Path) -> None:
    out = str(place / out)
    (place / "pipe.toml").write_text(
        f'model = "net.onnx"\n[[step]]\nrun = "encrypt"\nout = "{out}/o.sealed"\nkey_file = "aes.key"\n'
    )
    lines = [line.format(out=out, here=place) for line in WRITING]
    before = snapshot(place)
    done = subprocess.run(
        [sys.executable, "-c", CODE, how],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    for line, name, (status, said) in zip(lines, WRITING.values(), json.loads(done.stdout), strict=True):
        assert status == 2, f"{line}: {said}"
        assert len(said.splitlines()) == 1, f"{line}: {said}"
        assert said.startswith("modelctl: error: "), f"{line}: {said}"
        assert name in said, f"{line}: {said}"
    left = snapshot(place)
    assert {name: left[name] for name in left.keys() - EMPTY_STORE} == before
