"""Real pictures: what a PNG is answered over HTTP is what `eval` counts of the same picture's tensor."""

import gzip
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from bench.fashion import FASHION_MNIST
from onnx import helper
from PIL import Image

from modelctl.artifact import Artifact
from modelctl.options import EvalOptions, ExportOptions
from modelctl.steps.eval import eval as evaluate
from modelctl.steps.export import Source, export

LABELS = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
ASKED = 300


def idx(name: str, count: int, head: int) -> np.ndarray[Any, Any]:
    """The first of an IDX file's bytes."""
    with gzip.open(FASHION_MNIST / name) as file:
        file.read(head)
        return np.frombuffer(file.read(count), np.uint8)


def linear(path: Path) -> Path:
    """Flatten, dense 10, fitted in the least squares to some thousand pictures."""
    pictures = idx("train-images-idx3-ubyte.gz", 6000 * 784, 16).reshape(6000, 784) / 255.0
    labels = idx("train-labels-idx1-ubyte.gz", 6000, 8)
    design = np.hstack([pictures, np.ones((len(pictures), 1))])
    solved = np.linalg.solve(design.T @ design + 30 * np.eye(785), design.T @ np.eye(10)[labels])
    weights = {"w": solved[:-1].astype(np.float32) * 8, "b": solved[-1].astype(np.float32) * 8}
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"])]
    return servers.save(path, nodes, [("x", 1, ["n", 1, 28, 28])], [("y", 1, ["n", 10])], weights)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    if not FASHION_MNIST.is_dir():
        pytest.skip("apt-get install dataset-fashion-mnist")
    folder = tmp_path_factory.mktemp("fashion")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    after = f"softmax,argmax,labels={folder / 'labels.txt'}"
    options = ExportOptions(preprocess=("image",), postprocess=(after,), threads=1)
    return export(Source.parse(str(linear(folder / "linear.onnx"))), folder / "fashion.onnx", options)


@pytest.mark.real_parts
def test_a_picture_over_http_is_answered_as_its_tensor_is_judged(model: Artifact, tmp_path: Path) -> None:
    pictures = idx("t10k-images-idx3-ubyte.gz", ASKED * 784, 16).reshape(ASKED, 28, 28)
    labels = idx("t10k-labels-idx1-ubyte.gz", ASKED, 8)
    right = 0
    with servers.running([model.path]) as server:
        connection = server.connect()
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            file = BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            place = tmp_path / "pictures" / LABELS[label] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.getvalue())
            answer = servers.ask(connection, "/predict", file.getvalue(), content_type="image/png")
            (found,) = answer.json["predictions"]
            right += found["label"] == LABELS[label]
            if number < 20:
                tensor = (picture[None, None] / np.float32(255)).astype(np.float32)
                raw = servers.ask(
                    connection, "/v2/models/fashion/infer", {"inputs": [servers.v2("x", tensor, "FP32")]}
                ).json["outputs"][0]["data"]
                assert found["index"] == int(np.argmax(raw))
                np.testing.assert_allclose(found["score"], np.exp(np.max(raw)) / np.exp(raw).sum(), rtol=1e-5)
        connection.close()
    by_tensor = evaluate(model, EvalOptions(data=f"{FASHION_MNIST}#split=test,limit={ASKED}", threads=1)).facts
    assert by_tensor["accuracy"]["value"] == right / ASKED
    assert right / ASKED > 0.7
    by_picture = evaluate(model, EvalOptions(data=f"{tmp_path / 'pictures'}#split=train", threads=1)).facts["accuracy"]
    assert by_picture["samples"] == ASKED - 2 * (ASKED // 10)
