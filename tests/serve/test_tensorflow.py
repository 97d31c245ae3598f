"""TensorFlow Serving's REST API, asked of a real server."""

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import page_models
import pytest
import servers
from onnx import helper
from servers import Running

from modelctl.data import digits

ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]]
OF_PAIR = [{"a": [1, 2], "b": [5, 6]}, {"a": [3, 4], "b": [7, 8]}]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of models that give back pictures, numbers, and strings called bytes."""
    folder = tmp_path_factory.mktemp("more")
    sources = [
        servers.echo(folder / "picture.onnx", 1, ["batch", 1, 2, 2]),
        servers.echo(folder / "number.onnx", 1, ["batch", 1]),
        servers.echo(folder / "ragged.onnx", 1, ["batch", "a", "b"]),
        servers.save(
            folder / "stored.onnx",
            [helper.make_node("Identity", ["x"], ["y_bytes"])],
            [("x", 8, ["batch"])],
            [("y_bytes", 8, ["batch"])],
            {},
        ),
    ]
    with servers.running(sources) as found:
        yield found
        assert found.stop() == (0, "")


@pytest.mark.parametrize("place", ["", "/versions/1", "/labels/1"])
def test_rows_and_columns_of_one_input_and_one_output(server: Running, zoo: dict[str, Path], place: str) -> None:
    expected = servers.reference(zoo["affine"], {"x": np.array(ROWS, np.float32)})["y"]
    url = f"/v1/models/affine{place}:predict"
    for body in (
        {"instances": ROWS},
        {"instances": [{"x": one} for one in ROWS]},
        {"signature_name": "", "instances": ROWS},
    ):
        answer = server.ask(url, body)
        assert list(answer.json) == ["predictions"]
        np.testing.assert_allclose(answer.json["predictions"], expected, rtol=1e-5)
        assert answer.headers["modelctl-model"].startswith("affine@sha256:")
    for inputs in (ROWS, {"x": ROWS}):
        answer = server.ask(url, {"signature_name": "serving_default", "inputs": inputs})
        assert list(answer.json) == ["outputs"]
        np.testing.assert_allclose(answer.json["outputs"], expected, rtol=1e-5)


def test_several_outputs_are_told_by_name(server: Running) -> None:
    expected = [{"sum": [6.0, 8.0], "twice": [10, 12]}, {"sum": [10.0, 12.0], "twice": [14, 16]}]
    assert server.ask("/v1/models/pair:predict", {"instances": OF_PAIR}).json == {"predictions": expected}
    columns = {name: [one[name] for one in OF_PAIR] for name in "ab"}
    expected_columns = {name: [one[name] for one in expected] for name in ("sum", "twice")}
    assert server.ask("/v1/models/pair:predict", {"inputs": columns}).json == {"outputs": expected_columns}


def test_bytes_are_base64_in_and_where_the_name_says_so_out(server: Running, images: Running) -> None:
    told = {"b64": base64.b64encode("grün".encode()).decode().rstrip("=")}
    assert server.ask("/v1/models/words:predict", {"instances": [["a", told]]}).json == {"predictions": [["a", "grün"]]}
    answer = images.ask("/v1/models/stored:predict", {"instances": [told, {"x": told}]})
    assert answer.status == 400  # as there: all rows are objects by name, or none is
    answer = images.ask("/v1/models/stored:predict", {"instances": [told, "b"]})
    assert answer.json == {"predictions": [{"b64": "Z3LDvG4="}, {"b64": "Yg=="}]}
    assert "not base64" in server.ask("/v1/models/words:predict", {"inputs": [["a", {"b64": "/w=="}]]}).error


def test_numbers_that_are_none_are_told_as_there(server: Running) -> None:
    answer = server.ask("/v1/models/log:predict", {"instances": [[-1], [0], [1]]})
    assert answer.body == b'{"predictions":[[NaN],[-Infinity],[0.0]]}'
    assert math.isnan(json.loads(answer.body)["predictions"][0][0])


def test_status_and_metadata(server: Running) -> None:
    fine = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for place in ("/v1/models/pair", "/v1/models/pair/versions/1", "/v1/models/pair/labels/1"):
        assert server.ask(place).json == {"model_version_status": [fine]}
        found = server.ask(f"{place}/metadata").json
        assert found["model_spec"] == {"name": "pair", "signature_name": "", "version": "1"}
        signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["method_name"] == "tensorflow/serving/predict"
        sizes = [{"size": "-1", "name": ""}, {"size": "2", "name": ""}]
        shape = {"dim": sizes, "unknown_rank": False}
        assert signature["inputs"]["a"] == {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "a"}
        assert signature["inputs"]["b"]["dtype"] == signature["outputs"]["twice"]["dtype"] == "DT_INT64"


def test_examples_are_classified(server: Running, zoo: dict[str, Path]) -> None:
    of_all: dict[str, Any] = {"context": {"x": ROWS[0]}, "examples": [{}, {}]}
    of_each: dict[str, Any] = {"context": {}, "examples": [{"x": one} for one in ROWS]}
    for rows, body in (([ROWS[0]] * 2, of_all), (ROWS, of_each)):
        expected = servers.reference(zoo["affine"], {"x": np.array(rows, np.float32)})["y"]
        body |= {"signature_name": "tensorflow/serving/classify"}
        results = server.ask("/v1/models/affine:classify", body).json["results"]
        assert [[label for label, _ in one] for one in results] == [["", "", ""]] * 2
        np.testing.assert_allclose([[score for _, score in one] for one in results], expected, rtol=1e-5)


def test_classes_have_the_labels_and_scores_that_are_declared(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="pip install pillow")
    with np.load(digits.path()) as held:
        pixels = held["x"][0].reshape(-1).tolist()
    with servers.running([page_models.readable(tmp_path)]) as server:
        (found,) = server.ask("/v1/models/digits:classify", {"examples": [{"x": pixels}]}).json["results"]
        inputs = {"inputs": {"x": np.reshape(pixels, (1, 1, 8, 8)).tolist()}}
        (expected,) = server.ask("/predict/digits", inputs).json["predictions"]
        assert sum(score for _, score in found) == pytest.approx(1, abs=1e-5)
        assert sorted(found, key=lambda one: -one[1])[:3] == [[one["label"], one["score"]] for one in expected]
        assert server.stop() == (0, "")


def test_examples_are_regressed_and_features_are_folded_to_rows(server: Running, images: Running) -> None:
    assert server.ask("/v1/models/log:regress", {"examples": [{"x": 1.0}, {"x": [1.0]}]}).json == {
        "results": [0.0, 0.0]
    }
    assert images.ask("/v1/models/number:regress", {"examples": [{"x": 0.1}]}).body == b'{"results":[0.1]}'
    for verb in ("classify", "regress"):
        answer = images.ask(f"/v1/models/picture:{verb}", {"examples": [{"x": [1, 2, 3, 4]}]})
        assert answer.error == f"picture has no output to {verb} with; ask for a prediction"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("none:predict", {"instances": ROWS}, 404, "no model 'none'"),
        ("affine/versions/7:predict", {"instances": ROWS}, 404, "no version '7' of affine"),
        ("affine/labels/new/metadata", None, 404, "no version 'new' of affine"),
        ("affine:explain", {"instances": ROWS}, 404, "nothing at"),
        ("affine:predict", None, 405, "takes POST"),
        ("affine:predict", ROWS, 400, "not a JSON object"),
        ("affine:predict", {"instances": ROWS, "inputs": ROWS}, 400, "or both"),
        ("affine:predict", {"signature_name": "train", "instances": ROWS}, 400, "no signature 'train'"),
        ("affine:predict", {"signature_name": ["train"], "instances": ROWS}, 400, "no signature"),
        ("affine:predict", {"instances": []}, 400, "not a list of rows"),
        ("affine:predict", {"instances": [[1, 2]]}, 400, "the model takes [-1, 4]"),
        ("affine:classify", {"examples": []}, 400, "not a list of objects"),
        ("affine:classify", {"examples": [[1]]}, 400, "an example is not an object"),
        ("affine:classify", {"context": {"x": [1, 2, 3, 4]}, "examples": [{"x": [1, 2, 3, 4]}]}, 400, "in the context"),
        ("affine:classify", {"examples": [{"x": [1, 2, 3]}]}, 400, "has 3 values"),
        ("affine:classify", {"examples": [{"x": []}]}, 400, "has 0 values"),
        ("affine:classify", {"examples": [{"x": [[1], [2], [3], [4]]}]}, 400, "not a flat list"),
        ("words:classify", {"context": {"x": ["a" * 400_000] * 2}, "examples": [{}] * 99}, 413, "context is too large"),
        ("affine:classify", {"examples": [{"z": 1}]}, 400, "no input 'z'"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(server: Running, path: str, body: Any, status: int, words: str) -> None:
    answer = server.ask(f"/v1/models/{path}", body)
    assert answer.status == status
    assert words in answer.error


def test_a_row_of_free_lengths_can_be_no_feature(images: Running) -> None:
    assert "has 4 values" in images.ask("/v1/models/ragged:classify", {"examples": [{"x": [1, 2, 3, 4]}]}).error
