"""Without torch all works that needs none, and what needs it says which extra to install: one line, nothing on disk."""

from pathlib import Path

import pytest
from artifacts import names
from nets import convolutional, save, save_npz
from without import said

WORKS = (
    "export foreign.onnx -o net.onnx",
    "prune net.onnx -o sparse.onnx --sparsity 0.2 --data samples.npz --allow-regression",
    "prune net.onnx -o narrow.onnx --target params=0.7 --allow-regression",
    "optimize net.onnx -o fused.onnx --allow-regression",
    "quantize net.onnx -o int8.onnx --method static --data samples.npz --allow-regression",
    "eval net.onnx --data samples.npz",
    "keygen -o aes.key --type aes",
    "keygen -o signing.pem",
    "sign net.onnx --key signing.pem",
    "encrypt net.onnx -o net.sealed --key-file aes.key",
    "push net.sealed sqlite:///models.db/net:1",
    "pull sqlite:///models.db/net:1 -o pulled",
    "decrypt pulled/net.sealed -o pulled --key-file aes.key",
    "verify pulled/net.onnx --root foreign.onnx",
    "inspect pulled/net.sealed",
    "log pulled/net.onnx",
    "init project",
)
NEEDS = (
    "export net:build -o x.onnx --input x:float32[batch,1,8,8]",
    "export program.pt2 -o x.onnx",
    "prune foreign.onnx -o x.onnx --target macs=0.5 --data samples.npz",
    "prune foreign.onnx -o x.onnx --sparsity 0.5 --data samples.npz --epochs 1",
    "distill foreign.onnx -o x.onnx --data samples.npz --student-size 800",
    "train foreign.onnx -o x.onnx --data samples.npz",
    "run pipe.toml",
    "demo show",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of all that the commands read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELCTL_THREADS", "1")
    save(convolutional(), tmp_path / "foreign.onnx")
    save_npz(tmp_path / "samples.npz", 400)
    (tmp_path / "program.pt2").write_bytes(b"not looked at")
    (tmp_path / "net.py").write_text("import torch\ndef build(): return torch.nn.Flatten()\n")
    (tmp_path / "pipe.toml").write_text(
        'model = "foreign.onnx"\ndata = "samples.npz"\n[[step]]\nrun = "prune"\nout = "build/x.onnx"\nsparsity = 0.1\n'
        '[[step]]\nrun = "prune"\nout = "build/y.onnx"\ntarget = "macs=0.5"\n'
    )
    return tmp_path


@pytest.mark.slow
def test_what_needs_no_torch_works(place: Path) -> None:
    found = said(["torch"], WORKS)
    assert {line: told for line, (status, told) in found.items() if status} == {}


def test_what_needs_torch_names_the_extra(place: Path) -> None:
    before = names(place)
    for line, (status, told) in said(["torch"], NEEDS).items():
        error, hint = told.splitlines()
        assert (status, hint) == (2, "modelctl: hint: pip install 'modelctl[torch]'"), line
        assert error.startswith("modelctl: error: ") and "torch" in error, line
    assert names(place) - {"__pycache__"} == before
