"""Without Pillow and tokenizers, what needs them says what to install; a model that declares them does all else."""

import json
import subprocess
import sys
from pathlib import Path

import nets
import pytest
import words

from modelctl.options import ExportOptions
from modelctl.steps.export import Source, export

CODE = """
import contextlib, io, json, sys
sys.modules["PIL"] = sys.modules["tokenizers"] = None
from modelctl.cli.main import status_of
told = []
for line in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        status = status_of(line.split())
    told.append((status, said.getvalue()))
print(json.dumps(told))
"""
WORKS = (
    "inspect pictures.onnx",
    "eval pictures.onnx --data samples.npz",
    "quantize pictures.onnx -o small.onnx --method static --data samples.npz --allow-regression",
    "predict pictures.onnx samples.npz",
    "export pictures.onnx -o bare.onnx --preprocess none",
)
NEEDS = (
    ("predict pictures.onnx a.png", "images"),
    ("serve pictures.onnx --port 0", "images"),
    ("serve pictures.onnx --port 0 --workers 2", "images"),
    ("eval pictures.onnx --data folder", "images"),
    ("export net.onnx -o new.onnx --preprocess image:scale=1", "images"),
    ("serve texts.onnx --port 0", "text"),
    ("predict texts.onnx good", "text"),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELCTL_THREADS", "1")
    nets.save(nets.convolutional(), tmp_path / "net.onnx")
    nets.save_npz(tmp_path / "samples.npz")
    words.tokenizer(tmp_path / "tokenizer.json")
    words.encoder(tmp_path / "words.onnx")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "folder" / "ant").mkdir(parents=True)
    (tmp_path / "folder" / "ant" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    export(Source.parse("net.onnx"), tmp_path / "pictures.onnx", ExportOptions(preprocess=("image",), threads=1))
    options = ExportOptions(preprocess=("text:tokenizer.json",), threads=1)
    export(Source.parse("words.onnx"), tmp_path / "texts.onnx", options)
    return tmp_path


def test_what_needs_an_extra_says_so_and_all_else_works(place: Path) -> None:
    lines = [*WORKS, *(line for line, _ in NEEDS)]
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(lines), capture_output=True, text=True, cwd=place, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = dict(zip(lines, json.loads(done.stdout), strict=True))
    for line in WORKS:
        assert told[line][0] == 0, (line, told[line])
    for line, extra in NEEDS:
        status, said = told[line]
        assert status == 2, (line, said)
        assert f"pip install 'modelctl[{extra}]'" in said, (line, said)
        assert len([one for one in said.splitlines() if one.startswith("modelctl: error:")]) == 1, (line, said)
    assert not (place / "new.onnx").exists()
