"""What is declared before and after a model: stays with it through every step, and means the same in each."""

import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import servers
from onnx import helper
from PIL import Image

from modelctl import chains
from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.errors import DataError
from modelctl.options import (
    DecryptOptions,
    DistillOptions,
    EncryptOptions,
    EvalOptions,
    ExportOptions,
    OptimizeOptions,
    PredictOptions,
    PruneOptions,
    QuantizeOptions,
    TrainOptions,
)
from modelctl.steps.decrypt import decrypt
from modelctl.steps.distill import distill
from modelctl.steps.encrypt import encrypt
from modelctl.steps.eval import eval as evaluate
from modelctl.steps.export import Source, export
from modelctl.steps.optimize import optimize
from modelctl.steps.predict import predict
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize
from modelctl.steps.train import train

Capture = pytest.CaptureFixture[str]
LABELS = ["ant", "bee", "cat", "dog"]
PICTURE = "image:scale=1/51,mean=2"  # of bytes 0…255, numbers from −2 to 3
AFTER = "softmax,top-k=2,labels=labels.txt"


def as_bytes(pictures: Any) -> Any:
    """Pictures [N, 1, 8, 8] as bytes that `PICTURE` makes the same numbers of, but for rounding."""
    return np.clip(np.rint((pictures + 2) * 51), 0, 255).astype(np.uint8)


def file_of(shades: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(shades).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    nets.save(nets.convolutional(), tmp_path / "net.onnx")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    yield tmp_path


@pytest.fixture
def declared(here: Path) -> Artifact:
    options = ExportOptions(preprocess=(PICTURE,), postprocess=(AFTER,), threads=1)
    return export(Source.parse("net.onnx"), here / "declared.onnx", options)


@pytest.fixture
def folder(here: Path) -> Path:
    """Pictures in a folder for each class."""
    pictures, labels = nets.samples(240, seed=7)
    for number, (shades, label) in enumerate(zip(as_bytes(pictures), labels, strict=True)):
        place = here / "pictures" / LABELS[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03}.png").write_bytes(file_of(shades[0]))
    return here / "pictures"


def ends_of(made: Artifact) -> Any:
    return made.manifest.preprocess, made.manifest.postprocess


def test_what_is_declared_stands_in_the_manifest(declared: Artifact) -> None:
    before = chains.Image(input="x", height=8, width=8, color="gray", scale=1 / 51, mean=(2.0,))
    after = (chains.Softmax(output="logits"), chains.TopK(output="logits", k=2, labels=tuple(LABELS)))
    assert ends_of(Artifact.open(declared.path)) == ((before,), after)
    assert declared.manifest.metrics["parity"]["raw"] == {"instances": 12, "alike": 1.0}
    assert declared.manifest.made_by is not None
    told = declared.manifest.made_by.options["postprocess"][1]["labels"]
    assert told.keys() == {"name", "sha256"}


def test_labels_that_changed_make_another_model(declared: Artifact, here: Path) -> None:
    from modelctl.steps.export import origin

    options = ExportOptions(preprocess=(PICTURE,), postprocess=(AFTER,))
    assert origin(Source.parse("net.onnx"), options).is_current(declared.path)
    (here / "labels.txt").write_text("\n".join(reversed(LABELS)))
    assert not origin(Source.parse("net.onnx"), options).is_current(declared.path)


def test_an_export_of_an_export_keeps_replaces_or_takes_away(declared: Artifact, here: Path) -> None:
    kept = export(Source.parse("declared.onnx"), here / "kept.onnx", ExportOptions(threads=1))
    assert ends_of(kept) == ends_of(declared)
    options = ExportOptions(postprocess=("argmax",), threads=1)
    other = export(Source.parse("declared.onnx"), here / "other.onnx", options)
    assert ends_of(other) == (declared.manifest.preprocess, (chains.Argmax(output="logits"),))
    options = ExportOptions(preprocess=("none",), postprocess=("none",), threads=1)
    bare = export(Source.parse("declared.onnx"), here / "bare.onnx", options)
    assert ends_of(bare) == ((), ())
    assert "raw" not in bare.manifest.metrics["parity"]


def test_a_factory_is_proven_from_raw_input_to_answer(here: Path, capsys: Capture) -> None:
    (here / "author.py").write_text(
        "import torch\n\ndef build():\n    torch.manual_seed(1)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 6 * 7, 4))\n"
    )
    words = ["--input", "x:float32[batch,6,7,3]", "--preprocess", "image:imagenet,crop", "--postprocess", AFTER]
    assert status_of(["export", "author:build", "-o", "made.onnx", *words, "-q", "--threads", "1"]) == 0
    made = Artifact.open(here / "made.onnx").manifest
    (entry,) = made.preprocess
    assert isinstance(entry, chains.Image)
    assert (entry.height, entry.width, entry.layout, entry.color) == (6, 7, "nhwc", "rgb")
    assert made.metrics["parity"]["raw"]["alike"] == 1.0


def test_an_export_is_judged_on_pictures_too(here: Path, folder: Path) -> None:
    options = ExportOptions(preprocess=(PICTURE,), postprocess=(AFTER,), data=str(folder), threads=1)
    made = export(Source.parse("net.onnx"), here / "judged.onnx", options)
    assert made.manifest.metrics["accuracy"]["samples"] == 24
    assert made.manifest.metrics["accuracy"]["value"] > 0.7


def test_a_batch_of_one_is_asked_one_by_one(here: Path, folder: Path) -> None:
    nets.save(nets.convolutional(1), here / "one.onnx")
    options = ExportOptions(preprocess=(PICTURE,), postprocess=("argmax",), threads=1)
    made = export(Source.parse("one.onnx"), here / "one-d.onnx", options)
    files = list(map(str, sorted(folder.glob("*/*.png"))[::60]))
    found = predict(made, files, PredictOptions(threads=1)).facts["predictions"]
    whole = export(Source.parse("net.onnx"), here / "many.onnx", options)
    wanted = predict(whole, files, PredictOptions(threads=1)).facts["predictions"]
    assert [one["index"] for one in found] == [one["index"] for one in wanted]


def test_what_does_not_fit_is_exit_2_and_leaves_nothing(here: Path, capsys: Capture) -> None:
    for flag, text, words in (
        ("--preprocess", "image:9x9", "makes float32[N,1,9,9], and the model takes x:float32[batch,1,8,8]"),
        ("--postprocess", "top-k=9", "has 4 classes"),
        ("--postprocess", "argmax,labels=none.txt", "none.txt: no such file"),
        ("--preprocess", "chain.toml", "chain.toml: no such file"),
        ("--preprocess", "pictures", "is not image, table or text"),
    ):
        assert status_of(["export", "net.onnx", "-o", "out.onnx", flag, text, "-q"]) == 2
        err = capsys.readouterr().err
        assert words in err.splitlines()[0]
    assert not list(here.glob("out.onnx*"))


def test_a_pipeline_declares_it_as_a_list(here: Path) -> None:
    (here / "modelctl.toml").write_text(
        f'model = "net.onnx"\n[[step]]\nrun = "export"\nout = "made.onnx"\npreprocess = ["{PICTURE}"]\n'
        f'postprocess = ["{AFTER}"]\n'
    )
    assert status_of(["run", "-q"]) == 0
    assert Artifact.open(here / "made.onnx").manifest.postprocess
    (here / "modelctl.toml").write_text(
        'model = "net.onnx"\n[[step]]\nrun = "export"\nout = "b.onnx"\npostprocess = ["argmax,labels=gone.txt"]\n'
    )
    assert status_of(["run", "-q"]) == 2
    assert not (here / "b.onnx").exists()


def test_it_stays_through_every_step(declared: Artifact, here: Path, folder: Path, key_folder: Path) -> None:
    data = str(folder)
    wanted = ends_of(declared)
    optimized = optimize(declared, here / "o.onnx", OptimizeOptions(threads=1, allow_regression=True))
    pruned = prune(optimized, here / "p.onnx", PruneOptions(threads=1, sparsity=0.3, allow_regression=True))
    options = QuantizeOptions(threads=1, data=data, method="static", allow_regression=True, min_agreement=0.5)  # type: ignore[arg-type]
    small = quantize(pruned, here / "q.onnx", options)
    trained = train(declared, here / "t.onnx", TrainOptions(threads=1, data=data, epochs=1, allow_regression=True))
    student = distill(
        declared,
        here / "s.onnx",
        DistillOptions(threads=1, data=data, student_size=400, epochs=1, allow_regression=True),
    )
    for made in (optimized, pruned, small, trained, student):
        assert ends_of(made) == wanted, made.path
    keys = EncryptOptions(recipients=(str(key_folder / "rsa.pub.pem"),))
    sealed = encrypt(small, here / "q.onnx.sealed", keys)
    assert ends_of(sealed) == wanted
    store = f"sqlite:///{here}/models.db/net:1"
    assert status_of(["push", str(sealed.path), store, "-q"]) == 0
    assert status_of(["pull", store, "-o", str(here / "away"), "-q"]) == 0
    opened = PredictOptions(identities=(str(key_folder / "rsa.pem"),), threads=1)
    picture = str(next(folder.glob("*/*.png")))
    plain = predict(small, [picture], PredictOptions(threads=1)).facts["predictions"]
    assert predict(Artifact.open(here / "away/q.onnx.sealed"), [picture], opened).facts["predictions"] == plain
    (here / "back").mkdir()
    back = decrypt(sealed, here / "back", DecryptOptions(identities=(str(key_folder / "rsa.pem"),)))
    assert ends_of(back) == wanted
    private = encrypt(small, here / "private.sealed", EncryptOptions(recipients=keys.recipients, private=True))
    assert ends_of(private) == ((), ())
    assert predict(private, [picture], opened).facts["predictions"] == plain


def test_pictures_are_judged_as_their_tensors_are(declared: Artifact, here: Path, folder: Path) -> None:
    files = sorted(folder.glob("*/*.png"))
    shades = np.stack([np.asarray(Image.open(file)) for file in files])
    tensors = ((shades / 51.0 - 2)[:, None]).astype(np.float32)
    labels = np.array([LABELS.index(file.parent.name) for file in files])
    np.savez(here / "tensors.npz", x=tensors, y=labels)
    by_picture = evaluate(declared, EvalOptions(data=str(folder), threads=1)).facts
    by_tensor = evaluate(declared, EvalOptions(data="tensors.npz", threads=1)).facts
    for key in ("value", "samples"):
        assert by_picture["accuracy"][key] == by_tensor["accuracy"][key]
    assert by_picture["accuracy"]["value"] > 0.8
    assert by_picture["classes"] == by_tensor["classes"]
    by_name = evaluate(declared, EvalOptions(data=f"{folder}#limit=10", threads=1)).facts
    assert by_name["accuracy"]["samples"] == 10


def test_pictures_that_come_split(declared: Artifact, here: Path, folder: Path) -> None:
    for number, file in enumerate(sorted(folder.glob("*/*.png"))):
        place = here / "split" / ("test" if number % 4 == 0 else "train") / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    assert evaluate(declared, EvalOptions(data="split", threads=1)).facts["accuracy"]["samples"] == 60
    found = evaluate(declared, EvalOptions(data="split#split=train", threads=1)).facts["accuracy"]
    assert found["samples"] == 180


def test_a_folder_of_pictures_that_is_not_right(declared: Artifact, here: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="the model declares no picture"):
        evaluate(Artifact.open(here / "net.onnx"), EvalOptions(data=str(folder), threads=1))
    bad = next(folder.glob("bee/*.png"))
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(DataError, match=rf"{bad.name}: the PNG picture is not sound"):
        evaluate(declared, EvalOptions(data=str(folder), threads=1))
    bad.unlink()
    (folder / "bee").rename(folder / "eel")
    found = evaluate(declared, EvalOptions(data=str(folder), threads=1)).facts  # as many: by their order
    assert found["accuracy"]["samples"] == 24
    (folder / "fox").mkdir()
    (folder / "fox" / "a.png").write_bytes(file_of(np.zeros((8, 8), np.uint8)))
    with pytest.raises(DataError, match="the folder 'eel' is none of the model's labels"):
        evaluate(declared, EvalOptions(data=str(folder), threads=1))


TABLE = """
[[preprocess]]
do = "table"
columns = [
  {is = "number", name = "size", mean = 5, std = 2, missing = 5},
  {is = "category", name = "shape", values = ["round", "flat"]},
]
"""


@pytest.fixture
def rows(here: Path) -> Artifact:
    """Of size and shape: class 1 for what is round or larger than 5, else 0."""
    (here / "table.toml").write_text(TABLE)
    w = np.array([[0, 4], [0, 3], [0, -1]], np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    servers.save(here / "rows.onnx", nodes, [("x", 1, ["n", 3])], [("y", 1, ["n", 2])], {"w": w})
    options = ExportOptions(preprocess=("table.toml",), postprocess=("softmax,argmax",), threads=1)
    return export(Source.parse("rows.onnx"), here / "rows-d.onnx", options)


def test_raw_rows_are_judged(rows: Artifact, here: Path) -> None:
    held = [("round", "9", 1), ("flat", "1", 0), ("round", "", 1), ("flat", "8", 1)] * 10
    lines = [f"{shape},{size},{number},{label}" for number, (shape, size, label) in enumerate(held)]
    (here / "rows.csv").write_text("\n".join(["shape,size,number,y", *lines]))
    found = evaluate(rows, EvalOptions(data="rows.csv#split=train", threads=1)).facts["accuracy"]
    assert found["value"] == 1.0
    (here / "rows.csv").write_text("shape,size,y\nround,1,1\nsquare,2,0\n")
    with pytest.raises(DataError, match=r"rows.csv: row 2: column 'shape': 'square' is none of round, flat"):
        evaluate(rows, EvalOptions(data="rows.csv", threads=1))


def test_predict_takes_rows_in_every_spelling(rows: Artifact, here: Path, capsys: Capture) -> None:
    (here / "a.csv").write_text("shape,size\nround,9\nflat,1\n")
    (here / "a.json").write_text(json.dumps({"instances": [{"shape": "flat", "size": 1}]}))
    (here / "a.jsonl").write_text('{"shape": "flat", "size": 8}\n[1, "flat"]\n')
    words = ["a.csv", "a.json", "a.jsonl", '{"shape": "round"}', '[9, "flat"]']
    assert status_of(["predict", "rows-d.onnx", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["model"] == f"rows-d@sha256:{rows.digest}"
    assert result["inputs"] == ["a.csv[0]", "a.csv[1]", "a.json", "a.jsonl[0]", "a.jsonl[1]", *words[3:]]
    assert [one["index"] for one in result["predictions"]] == [1, 0, 0, 1, 0, 1, 1]
    assert status_of(["predict", "rows-d.onnx", "a.csv", "-q"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["a.csv[0]", "1"], ["a.csv[1]", "0"]]
    assert err == ""


def test_predict_answers_a_picture_as_numpy_does(declared: Artifact, here: Path, folder: Path) -> None:
    files = sorted(folder.glob("*/*.png"))[::40]
    found = predict(declared, list(map(str, files)), PredictOptions(threads=1)).facts["predictions"]
    shades = np.stack([np.asarray(Image.open(file)) for file in files])
    scores = nets.run(nets.convolutional(), ((shades / 51.0 - 2)[:, None]).astype(np.float32)).astype(np.float64)
    powers = np.exp(scores)
    shares = powers / powers.sum(axis=1, keepdims=True)
    for row, wanted in zip(found, shares, strict=True):
        assert [one["label"] for one in row] == [LABELS[index] for index in np.argsort(-wanted)[:2]]
        np.testing.assert_allclose([one["score"] for one in row], np.sort(wanted)[::-1][:2], rtol=1e-4)


def test_predict_takes_tensors_where_nothing_is_declared(here: Path, capsys: Capture) -> None:
    pictures, _ = nets.samples(3)
    np.savez("x.npz", x=pictures)
    wanted = nets.run(nets.convolutional(), pictures)
    found = predict(Artifact.open(here / "net.onnx"), ["x.npz"], PredictOptions(threads=1)).facts
    np.testing.assert_allclose(found["predictions"], wanted, rtol=1e-4, atol=1e-5)
    typed = json.dumps(pictures.tolist())
    found = predict(Artifact.open(here / "net.onnx"), [typed], PredictOptions(threads=1)).facts
    np.testing.assert_allclose(found["predictions"], wanted, rtol=1e-4, atol=1e-5)


def test_what_predict_can_not_take_is_exit_2_in_one_line(declared: Artifact, here: Path, capsys: Capture) -> None:
    (here / "a.png").write_bytes(b"none")
    (here / "latin.json").write_bytes(b'["\xe9"]')
    os.mkfifo(here / "pipe.npz")
    for words, said in (
        (["declared.onnx", "gone.png"], "gone.png: no such file"),
        (["declared.onnx", "a.png"], "a.png: not a picture that is read here"),
        (["net.onnx", "a.png"], "declares nothing that makes its input of that"),
        (["net.onnx", "gone.png"], "gone.png: no such file"),
        (["net.onnx", "gone.json"], "gone.json: no such file"),
        (["net.onnx", "gone.npz"], "gone.npz: no such file"),
        (["net.onnx", "x" * 5000], "xxx…: no such file"),
        (["net.onnx", "pipe.npz"], "pipe.npz: is not a plain file"),
        (["net.onnx", "."], ".: is not a plain file"),
        (["declared.onnx", "pipe.npz"], "pipe.npz: is not a plain file"),
        (["net.onnx", "latin.json"], "latin.json: is not UTF-8 text, and so not an input"),
        (["net.onnx", '{"x": [], "x": [[1]]}'], "duplicate key 'x'"),
        (["net.onnx", "[" * 5000], "not JSON"),
        (["declared.onnx", "{"], "not JSON"),
        (["net.onnx", "[[1]]"], "expected float32[N,1,8,8], found float32[N,1]"),
        (["net.onnx", "[[1], 2]"], "is not numbers that the model takes"),
        (["labels.txt", "a.png"], "no format goes by the suffix"),
    ):
        assert status_of(["predict", *words, "-q"]) == 2
        err = capsys.readouterr().err
        assert said in err.splitlines()[0]
