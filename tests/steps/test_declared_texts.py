"""A model that takes texts: its tokenizer is one of its files, and stays so through every step."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import servers
import words

from modelctl import chains
from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.errors import IntegrityError, UsageError
from modelctl.integrity import check
from modelctl.options import EncryptOptions, ExportOptions, OptimizeOptions, PredictOptions, QuantizeOptions
from modelctl.steps.encrypt import encrypt
from modelctl.steps.export import Source, export
from modelctl.steps.optimize import optimize
from modelctl.steps.predict import predict
from modelctl.steps.quantize import quantize

TEXTS = ["good day", "a very bad Night", "strange"]
BESIDE = "encoder.onnx.tokenizer.json"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    words.tokenizer(tmp_path / "tokenizer.json", pad_id=0)
    words.encoder(tmp_path / "net.onnx")
    yield tmp_path


@pytest.fixture
def encoder(here: Path) -> Artifact:
    options = ExportOptions(
        preprocess=("text:tokenizer.json,max-length=16",), postprocess=("pool,normalize",), threads=1
    )
    return export(Source.parse("net.onnx"), here / "encoder.onnx", options)


def vectors(texts: list[str]) -> list[list[float]]:
    """The mean of the words' vectors, of length 1."""
    means = [words.table()[words.ids_of(text, 16)].mean(axis=0) for text in texts]
    return [(one / np.linalg.norm(one)).tolist() for one in means]


def test_the_tokenizer_is_one_of_the_files(encoder: Artifact, here: Path) -> None:
    assert [entry.path for entry in encoder.manifest.files] == ["encoder.onnx", BESIDE]
    assert (here / BESIDE).read_bytes() == (here / "tokenizer.json").read_bytes()
    assert encoder.manifest.preprocess == (chains.Text(input="input_ids", mask="attention_mask", max_length=16),)
    assert encoder.manifest.postprocess[0] == chains.Pool(output="hidden", mask="attention_mask")
    assert encoder.manifest.metrics["parity"]["raw"]["instances"] == 12
    check(encoder)


def test_texts_are_answered_as_they_are_written_out(encoder: Artifact, here: Path) -> None:
    (here / "a.txt").write_text(TEXTS[0] + "\n")
    found = predict(encoder, ["a.txt", *TEXTS[1:]], PredictOptions(threads=1)).facts
    assert found["inputs"] == ["a.txt", *TEXTS[1:]]
    np.testing.assert_allclose(found["predictions"], vectors(TEXTS), rtol=1e-5)


def test_the_tokenizer_goes_through_every_step(encoder: Artifact, here: Path) -> None:
    optimized = optimize(encoder, here / "o.onnx", OptimizeOptions(threads=1, allow_regression=True))
    small = quantize(optimized, here / "q.onnx", QuantizeOptions(threads=1, method="float16", allow_regression=True))  # type: ignore[arg-type]
    adopted = export(Source.parse("q.onnx"), here / "again.onnx", ExportOptions(threads=1))
    (here / "key").write_bytes(b"")
    assert status_of(["keygen", "--type", "aes", "-o", "aes.key", "-q"]) == 0
    sealed = encrypt(adopted, here / "again.onnx.sealed", EncryptOptions(key_file="aes.key"))
    for made in (optimized, small, adopted):
        assert made.manifest.preprocess == encoder.manifest.preprocess
        assert [entry.path for entry in made.manifest.files] == [made.path.name, f"{made.path.name}.tokenizer.json"]
        check(made)
    assert [entry.path for entry in sealed.manifest.files] == ["again.onnx.sealed"]
    store = f"sqlite:///{here}/models.db/words:1"
    assert status_of(["push", "again.onnx.sealed", store, "-q"]) == 0
    assert status_of(["pull", store, "-o", "away", "-q"]) == 0
    away = Artifact.open(here / "away" / "again.onnx.sealed")
    found = predict(away, TEXTS, PredictOptions(threads=1, key_file="aes.key")).facts["predictions"]
    np.testing.assert_allclose(found, vectors(TEXTS), atol=2e-3)
    assert status_of(["decrypt", "away/again.onnx.sealed", "-o", "away", "--key-file", "aes.key", "-q"]) == 0
    check(Artifact.open(here / "away" / "again.onnx"))


def test_a_tokenizer_that_was_changed_is_noticed(encoder: Artifact, here: Path) -> None:
    (here / BESIDE).write_bytes((here / BESIDE).read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="the bytes are not the ones"):
        optimize(encoder, here / "o.onnx", OptimizeOptions(threads=1, allow_regression=True))
    assert not list(here.glob("o.onnx*"))


def test_a_fixed_length_is_filled(here: Path) -> None:
    words.encoder(here / "fixed.onnx", 8)
    made = export(
        Source.parse("fixed.onnx"), here / "f.onnx", ExportOptions(preprocess=("text:tokenizer.json",), threads=1)
    )
    assert made.manifest.preprocess == (chains.Text(input="input_ids", mask="attention_mask", max_length=8, pad="max"),)
    with pytest.raises(UsageError, match=r"makes int64\[N,up to 8\], and the model takes"):
        export(
            Source.parse("fixed.onnx"),
            here / "g.onnx",
            ExportOptions(preprocess=("text:tokenizer.json,pad=longest",), threads=1),
        )


def test_texts_are_served(encoder: Artifact) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="t"\r\n\r\na very bad night\r\n--x--'
    with servers.running([encoder.path]) as server:
        for body, kind in (
            (TEXTS[1].encode(), "text/plain; charset=utf-8"),
            (json.dumps(TEXTS[1]).encode(), "application/json"),
            (json.dumps({"instances": TEXTS}).encode(), "application/json"),
            (form, "multipart/form-data; boundary=x"),
        ):
            answer = server.ask("/predict", body, content_type=kind)
            assert answer.status == 200, answer.body
            found = answer.json["predictions"]
            np.testing.assert_allclose(found, vectors(TEXTS if len(found) > 1 else TEXTS[1:2]), rtol=1e-5)
        assert server.ask("/predict", b"\xff", content_type="text/plain").status == 400
        assert server.ask("/predict", "good day " * 20_000).status == 200  # by the thread
        assert server.ask("/predict", "good day " * 1_000_000).status == 400
        assert server.stop() == (0, "")
