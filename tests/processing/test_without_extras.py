"""Without Pillow and tokenizers, what needs them says what to install; a model that declares them does all else."""

from pathlib import Path

import nets
import pytest
import words
from without import said

from modelctl.options import ExportOptions
from modelctl.steps.export import Source, export

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
    told = said(["PIL", "tokenizers"], lines)
    for line in WORKS:
        assert told[line][0] == 0, (line, told[line])
    for line, extra in NEEDS:
        status, text = told[line]
        assert status == 2, (line, text)
        assert f"pip install 'modelctl[{extra}]'" in text, (line, text)
        assert len([one for one in text.splitlines() if one.startswith("modelctl: error:")]) == 1, (line, text)
    assert not (place / "new.onnx").exists()
