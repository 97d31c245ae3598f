"""`/predict`, asked of a real server."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Running

from modelctl import digests
from modelctl.serve import openinference, predict
from modelctl.serve.models import Models
from modelctl.serve.refusal import Refused

ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]]


@pytest.fixture(scope="module")
def models(zoo: dict[str, Path]) -> Models:
    return servers.loaded(*(zoo[name] for name in ("affine", "pair", "words", "bits")))


@pytest.mark.parametrize("body", [{"inputs": {"x": ROWS}}, {"inputs": ROWS}, ROWS, {"instances": ROWS}])
def test_one_input_in_four_spellings(server: Running, zoo: dict[str, Path], body: object) -> None:
    answer = server.ask("/predict/affine", body)
    assert answer.status == 200
    digest = digests.of_file(zoo["affine"])
    assert answer.json["model"] == answer.headers["modelctl-model"] == f"affine@sha256:{digest}"
    expected = servers.reference(zoo["affine"], {"x": np.array(ROWS, np.float32)})["y"]
    np.testing.assert_allclose(answer.json["outputs"]["y"], expected, rtol=1e-5)


def test_several_inputs(server: Running) -> None:
    columns = {"inputs": {"a": [[1, 2], [3, 4]], "b": [[5, 6], [7, 8]]}}
    rows = {"instances": [{"a": [1, 2], "b": [5, 6]}, {"a": [3, 4], "b": [7, 8]}]}
    expected = {"sum": [[6.0, 8.0], [10.0, 12.0]], "twice": [[10, 12], [14, 16]]}
    assert server.ask("/predict/pair", columns).json["outputs"] == expected
    assert server.ask("/predict/pair", rows).json["outputs"] == expected


def test_strings_truths_and_small_floats(server: Running) -> None:
    assert server.ask("/predict/words", [["a", "ü"]]).json["outputs"] == {"y": [["a", "ü"]]}
    assert server.ask("/predict/bits", [[True, False]]).json["outputs"] == {"y": [[True, False]]}
    assert server.ask("/predict/half", [[1.5, 2]]).json["outputs"] == {"y": [[1.5, 2.0]]}


def spent(answer: servers.Answer) -> dict[str, float]:
    """What `Server-Timing` tells, in milliseconds."""
    told = [one.split(";dur=") for one in answer.headers["server-timing"].split(", ")]
    return {name: float(ms) for name, ms in told}


@pytest.mark.parametrize("path", ["/predict/half", "/predict?model=half", "/predict/half/versions/1"])
def test_an_answer_tells_where_its_time_went(server: Running, path: str) -> None:
    def counted(what: str) -> float:
        return server.metric(f"modelctl_{what}_seconds_sum", model="half") * 1000

    compute, queue = counted("compute"), counted("queue")
    found = spent(server.ask(path, [[1.5, 2]]))
    assert list(found) == ["read", "queue", "compute", "total"]
    assert found["compute"] == pytest.approx(counted("compute") - compute, abs=0.001)
    assert found["queue"] >= counted("queue") - queue - 0.001 >= 0
    assert found["read"] > 0
    assert found["total"] >= found["read"] + found["queue"] + found["compute"] - 0.002  # as rounded


def test_it_is_told_in_messagepack_and_where_a_thread_runs_the_model_but_nowhere_that_it_would_weigh(
    server: Running,
) -> None:
    packed = server.ask("/predict/affine", b"\x91\x94\x01\x02\x03\x04", Content_Type="application/msgpack")
    assert spent(packed).keys() == spent(server.ask("/predict/slow", [[0.0] * 256])).keys()
    assert "server-timing" not in server.ask("/predict/affine", [[1.0]]).headers
    asked = {"inputs": [servers.v2("x", np.array(ROWS, np.float32), "FP32")]}
    assert "server-timing" not in server.ask("/v2/models/affine/infer", asked).headers
    assert "server-timing" not in server.ask("/v1/models/affine:predict", {"instances": ROWS}).headers


def test_of_several_models_one_is_named(server: Running) -> None:
    answer = server.ask("/predict", ROWS)
    assert answer.status == 404
    assert "several models are served" in answer.error
    answer = server.ask("/predict?model=affine", ROWS)
    assert answer.status == 200
    assert answer.headers["modelctl-model"].startswith("affine@sha256:")
    assert "no model 'none'" in server.ask("/predict?model=none", ROWS).error
    assert "no model 'none'" in server.ask("/predict/none", ROWS).error


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        ("affine", {}, 'neither "inputs" nor "instances"'),
        ("affine", [[1, 2]], "the model takes [-1, 4]"),
        ("affine", [1, 2, 3, 4], "the model takes [-1, 4]"),
        ("affine", [[1, 2, 3, "4"]], "not a FP32 number"),
        ("affine", {"inputs": {"z": ROWS}}, "no input 'z'"),
        ("affine", {"instances": []}, "not a list of rows"),
        ("affine", 7, "the model takes [-1, 4]"),
        ("pair", [[1, 2]], "several inputs"),
        ("pair", {"instances": [[1, 2]]}, "several inputs"),
        ("pair", {"instances": [{"a": [1, 2]}, {"b": [1, 2]}]}, "same names"),
        ("pair", {"inputs": {"a": [[1, 2]]}}, "input 'b' is missing"),
        ("pair", {"inputs": {"a": [[1, 2]], "b": [[1, 2], [3, 4]]}}, "'batch' is 1 in input 'a', but 2 in input 'b'"),
    ],
)
def test_a_wrong_body_is_told_what_is_wrong(server: Running, model: str, body: Any, words: str) -> None:
    answer = server.ask(f"/predict/{model}", body)
    assert answer.status == 400
    assert words in answer.error


KEYS = st.sampled_from(
    ["inputs", "outputs", "instances", "name", "shape", "datatype", "data", "parameters", "binary_data_size", "x", "a"]
)
WORDS = st.sampled_from(["x", "a", "b", "y", "FP32", "INT64", "BOOL", "BYTES"]) | st.text(max_size=3)
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(width=32) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=30,
)


@settings(deadline=None, max_examples=300)
@given(BODIES, st.none() | st.binary(max_size=4), st.binary(max_size=30))
def test_no_body_is_anything_but_understood_or_refused(
    models: Models, body: Any, header: bytes | None, rest: bytes
) -> None:
    import orjson

    text = orjson.dumps(body)
    for model in models:
        for read in (
            lambda one: predict.read(body, one),
            lambda one: openinference.read(text, None, one),
            lambda one: openinference.read(text + rest, header, one),
            lambda one: openinference.read(text + rest, b"%d" % len(text), one),
        ):
            try:
                read(model)
            except Refused as refused:
                assert refused.status == 400
                assert len(refused.message) < 400
