"""The Open Inference Protocol over REST, asked of a real server."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import servers
from servers import Running, v2

from modelctl import digests

X = np.array([[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]], dtype=np.float32)


def binary(document: dict[str, Any], *blobs: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(document).encode()
    return b"".join([head, *blobs]), {"Inference_Header_Content_Length": str(len(head))}


def blobs_of(answer: servers.Answer) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of a binary answer, and each output's bytes."""
    length = int(answer.headers["inference-header-content-length"])
    document, rest = json.loads(answer.body[:length]), answer.body[length:]
    found = {}
    for one in document["outputs"]:
        if size := one.get("parameters", {}).get("binary_data_size"):
            found[one["name"]], rest = rest[:size], rest[size:]
    assert rest == b""
    return document, found


def test_health_metadata_and_index(server: Running, zoo: dict[str, Path]) -> None:
    assert server.ask("/v2/health/live").json == {"live": True}
    assert server.ask("/v2/health/ready").json == {"ready": True}
    assert "binary_tensor_data" in server.ask("/v2").json["extensions"]
    model = server.ask("/v2/models/pair").json
    assert model["inputs"] == [
        {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "b", "datatype": "INT64", "shape": [-1, 2]},
    ]
    assert [one["name"] for one in model["outputs"]] == ["sum", "twice"]
    assert server.ask("/v2/models/pair/versions/1").json == model
    assert server.ask("/v2/models/pair/ready").json == {"name": "pair", "ready": True}
    index = server.ask("/v2/repository/index", {}).json
    assert {one["name"] for one in index} == set(zoo)
    assert all(one["state"] == "READY" for one in index)


def test_infer_in_json_names_the_model_that_answered(server: Running, zoo: dict[str, Path]) -> None:
    answer = server.ask("/v2/models/affine/infer", {"id": "seven", "inputs": [v2("x", X, "FP32")]})
    assert answer.status == 200
    document = answer.json
    assert (document["model_name"], document["model_version"], document["id"]) == ("affine", "1", "seven")
    (output,) = document["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2, 3])
    expected = servers.reference(zoo["affine"], {"x": X})["y"]
    np.testing.assert_allclose(np.reshape(output["data"], (2, 3)), expected, rtol=1e-5)
    assert answer.headers["modelctl-model"] == f"affine@sha256:{digests.of_file(zoo['affine'])}"


def test_nested_data_is_taken(server: Running) -> None:
    flat = {"inputs": [v2("x", X, "FP32")]}
    nested = {"inputs": [{**v2("x", X, "FP32"), "data": X.tolist()}]}
    path = "/v2/models/affine/versions/1/infer"
    assert server.ask(path, flat).json == server.ask(path, nested).json


def test_several_inputs_and_a_choice_of_outputs(server: Running) -> None:
    a, b = np.array([[0.5, 1.5]], np.float32), np.array([[2, -3]], np.int64)
    asked = {"inputs": [v2("b", b, "INT64"), v2("a", a, "FP32")]}
    both = server.ask("/v2/models/pair/infer", asked).json["outputs"]
    assert {one["name"]: one["data"] for one in both} == {"sum": [2.5, -1.5], "twice": [4, -6]}
    one = server.ask("/v2/models/pair/infer", {**asked, "outputs": [{"name": "twice"}]}).json["outputs"]
    assert one == [{"name": "twice", "datatype": "INT64", "shape": [1, 2], "data": [4, -6]}]


def test_binary_tensors_both_ways(server: Running) -> None:
    a, b = np.array([[0.5, 1.5]], np.float32), np.array([[2, -3]], np.int64)
    document = {
        "inputs": [
            {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            {"name": "b", "shape": [1, 2], "datatype": "INT64", "parameters": {"binary_data_size": 16}},
        ],
        "outputs": [{"name": "twice", "parameters": {"binary_data": True}}, {"name": "sum"}],
        "parameters": {"sequence_id": 3},
    }
    body, headers = binary(document, a.tobytes(), b.tobytes())
    answer = server.ask("/v2/models/pair/infer", body, **headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    told, blobs = blobs_of(answer)
    assert np.frombuffer(blobs["twice"], np.int64).tolist() == [4, -6]
    assert told["outputs"][1]["data"] == [2.5, -1.5]


@pytest.mark.parametrize(
    ("model", "datatype", "array"),
    [
        ("half", "FP16", np.array([[1.5, -2.0]], np.float16)),
        ("brain", "BF16", np.array([[1.5, -2.0]], ml_dtypes.bfloat16)),
        ("bits", "BOOL", np.array([[True, False]])),
        ("affine", "FP32", X),
    ],
)
def test_every_output_as_binary(server: Running, model: str, datatype: str, array: np.ndarray[Any, Any]) -> None:
    one = {"name": "x", "shape": list(array.shape), "datatype": datatype}
    document = {
        "inputs": [{**one, "parameters": {"binary_data_size": array.nbytes}}],
        "parameters": {"binary_data_output": True},
    }
    body, headers = binary(document, array.tobytes())
    told, blobs = blobs_of(server.ask(f"/v2/models/{model}/infer", body, **headers))
    if model != "affine":
        assert blobs["y"] == array.tobytes()
        assert told["outputs"][0]["datatype"] == datatype
    else:
        assert len(blobs["y"]) == 2 * 3 * 4


def test_strings_in_json_and_in_binary(server: Running) -> None:
    words = [["", "grüße"], ["日本", "x" * 300]]
    one = {"name": "x", "shape": [2, 2], "datatype": "BYTES"}
    flat = [word for row in words for word in row]
    answer = server.ask("/v2/models/words/infer", {"inputs": [{**one, "data": words}]}).json
    assert answer["outputs"][0]["data"] == flat
    blob = b"".join(len(word.encode()).to_bytes(4, "little") + word.encode() for word in flat)
    document = {
        "inputs": [{**one, "parameters": {"binary_data_size": len(blob)}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    body, headers = binary(document, blob)
    assert blobs_of(server.ask("/v2/models/words/infer", body, **headers))[1]["y"] == blob


def test_what_json_has_no_number_for_is_null_and_exact_in_binary(server: Running) -> None:
    x = np.array([[-1.0], [0.0], [1.0]], np.float32)
    asked = {"inputs": [v2("x", x, "FP32")]}
    assert server.ask("/v2/models/log/infer", asked).json["outputs"][0]["data"] == [None, None, 0.0]
    told = server.ask("/v2/models/log/infer", {**asked, "parameters": {"binary_data_output": True}})
    values = np.frombuffer(blobs_of(told)[1]["y"], np.float32)
    assert np.isnan(values[0])
    assert values[1] == -np.inf


def test_an_empty_batch_is_answered(server: Running) -> None:
    one = {"name": "x", "shape": [0, 4], "datatype": "FP32", "data": []}
    assert server.ask("/v2/models/affine/infer", {"inputs": [one]}).json["outputs"][0]["shape"] == [0, 3]


GOOD = v2("x", X, "FP32")
WRONG: dict[str, tuple[Any, str]] = {
    "not json": (b"{", "not JSON"),
    "not utf-8": (b'{"id": "\xff\xfe"}', "not JSON"),
    "nested too deep": (b"[" * 100_000, "not JSON"),
    "nan": (b'{"inputs": [{"name":"x","shape":[1,4],"datatype":"FP32","data":[NaN,1,1,1]}]}', "not JSON"),
    "empty": (b"", "not JSON"),
    "a list": ([], "not a JSON object"),
    "no inputs": ({}, "inputs is not a list"),
    "inputs no list": ({"inputs": {"x": 1}}, "inputs is not a list"),
    "missing input": ({"inputs": []}, "input 'x' is missing"),
    "unknown input": ({"inputs": [{**GOOD, "name": "z"}]}, "no input 'z'; the model takes: x"),
    "nameless input": ({"inputs": [3]}, "no input None"),
    "twice": ({"inputs": [GOOD, GOOD]}, "given twice"),
    "wrong datatype": ({"inputs": [{**GOOD, "datatype": "FP64"}]}, "datatype 'FP64', the model takes FP32"),
    "wrong shape": ({"inputs": [{**GOOD, "shape": [2, 5]}]}, "shape [2, 5], the model takes [-1, 4]"),
    "wrong rank": ({"inputs": [{**GOOD, "shape": [8]}]}, "the model takes [-1, 4]"),
    "negative": ({"inputs": [{**GOOD, "shape": [-2, 4]}]}, "below 0"),
    "huge": ({"inputs": [{**GOOD, "shape": [2**62, 4]}]}, "above 2^31"),
    "claimed": ({"inputs": [{**GOOD, "shape": [2**30, 4]}]}, "8 elements"),
    "shape of floats": ({"inputs": [{**GOOD, "shape": [2.0, 4]}]}, "not a list of integers"),
    "shape of true": ({"inputs": [{**GOOD, "shape": [True, 4]}]}, "not a list of integers"),
    "no shape": ({"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]}, "not a list of integers"),
    "no data": ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}, "neither data"),
    "strings": ({"inputs": [{**GOOD, "data": ["1"] * 8}]}, "not a FP32 number"),
    "null": ({"inputs": [{**GOOD, "data": [None] * 8}]}, "not a FP32 number"),
    "out of range": ({"inputs": [{**GOOD, "data": [1e300] * 8}]}, "out of FP32's range"),
    "ragged": ({"inputs": [{**GOOD, "data": [[1, 2, 3, 4], [5]]}]}, "ragged"),
    "other nesting": ({"inputs": [{**GOOD, "data": [[1, 2], [3, 4], [5, 6], [7, 8]]}]}, "nested as [4, 2]"),
    "unknown output": ({"inputs": [GOOD], "outputs": [{"name": "q"}]}, "no output 'q'; the model gives: y"),
    "output twice": ({"inputs": [GOOD], "outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
    "id": ({"id": 7, "inputs": [GOOD]}, "id is not a string"),
    "parameters": ({"parameters": [], "inputs": [GOOD]}, "parameters is not an object"),
    "classification": (
        {"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
        "classification extension is not offered",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_told_what_is_wrong(server: Running, case: str) -> None:
    body, words = WRONG[case]
    answer = server.ask("/v2/models/affine/infer", body)
    assert answer.status == 400
    assert words in answer.error
    assert len(answer.error) < 300
    assert answer.headers["modelctl-model"].startswith("affine@sha256:")


def test_whole_numbers_are_not_rounded_into_their_datatype(server: Running) -> None:
    a = v2("a", np.zeros((1, 2), np.float32), "FP32")
    for data, words in (([1.5, 1], "not a INT64 number"), ([2**63, 1], "out of INT64's range"), ([2**80, 1], "INT64")):
        b = {"name": "b", "shape": [1, 2], "datatype": "INT64", "data": data}
        answer = server.ask("/v2/models/pair/infer", {"inputs": [a, b]})
        assert answer.status == 400
        assert words in answer.error


def test_wrong_binary_requests_are_told_what_is_wrong(server: Running) -> None:
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32"}

    def told(size: object, blob: bytes, header: str | None = None, **more: object) -> str:
        body, headers = binary({"inputs": [{**one, "parameters": {"binary_data_size": size}, **more}]}, blob)
        if header is not None:
            headers = {"Inference_Header_Content_Length": header}
        answer = server.ask("/v2/models/affine/infer", body, **headers)
        assert answer.status == 400
        return answer.error

    sixteen = bytes(16)
    assert "binary_data_size 17, the body has 16 bytes left" in told(17, sixteen)
    assert "binary_data_size -1" in told(-1, sixteen)
    assert "binary_data_size '16'" in told("16", sixteen)
    assert "belong to no input" in told(16, bytes(17))
    assert "15 bytes of data, shape [1, 4] asks for 16" in told(15, bytes(15))
    assert "both data and binary_data_size" in told(16, sixteen, data=[1, 2, 3, 4])
    for header in ("99999", "-1", "x", "1" * 40, "²"):
        assert "Inference-Header-Content-Length" in told(16, sixteen, header.encode().decode("latin-1"))
    assert "not JSON" in told(16, sixteen, "0")


def test_wrong_bytes_of_strings_and_truths_are_refused(server: Running) -> None:
    def told(model: str, datatype: str, blob: bytes) -> str:
        one = {"name": "x", "shape": [1, 2], "datatype": datatype, "parameters": {"binary_data_size": len(blob)}}
        body, headers = binary({"inputs": [one]}, blob)
        answer = server.ask(f"/v2/models/{model}/infer", body, **headers)
        assert answer.status == 400
        return answer.error

    assert "neither 0 nor 1" in told("bits", "BOOL", b"\x01\x02")
    assert "reaches past the end" in told("words", "BYTES", b"\xff\xff\xff\xffab")
    assert "does not end where its shape says" in told("words", "BYTES", bytes(12))
    assert "1 BYTES elements" in told("words", "BYTES", bytes(4))
    assert "not UTF-8" in told("words", "BYTES", b"\x01\0\0\0\xff\0\0\0\0")


def test_bf16_has_no_form_in_json(server: Running) -> None:
    one = {"name": "x", "shape": [1, 2], "datatype": "BF16"}
    assert "as binary data" in server.ask("/v2/models/brain/infer", {"inputs": [{**one, "data": [1, 2]}]}).error
    body, headers = binary({"inputs": [{**one, "parameters": {"binary_data_size": 4}}]}, bytes(4))
    assert "as binary data" in server.ask("/v2/models/brain/infer", body, **headers).error


def test_what_the_model_itself_refuses_is_the_clients_matter(server: Running) -> None:
    asked = {"inputs": [v2("x", np.array([7]), "INT64")]}
    answer = server.ask("/v2/models/lookup/infer", asked)
    assert answer.status == 400
    assert "out of data bounds" in answer.error
    assert "/" not in answer.error


def test_unknown_names_are_told_what_there_is(server: Running) -> None:
    answer = server.ask("/v2/models/none/infer", {})
    assert answer.status == 404
    assert "no model 'none'; served: affine, pair" in answer.error
    assert "no version '2' of pair; served: 1" in server.ask("/v2/models/pair/versions/2").error
    assert server.ask("/v2/models/none").status == 404
    assert "nothing at '/v3'" in server.ask("/v3").error
    assert server.ask("/v2/models/" + "x" * 2000).status == 404


def test_a_wrong_method_is_told_the_right_one(server: Running) -> None:
    answer = server.ask("/v2/models/affine/infer")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert server.ask("/v2", method="PUT").headers["allow"] == "GET, HEAD"
    assert server.ask("/v2", method="HEAD").status == 200


def test_bodies_that_are_not_read(server: Running) -> None:
    assert server.ask("/v2/models/affine/infer", b"{}", Content_Encoding="gzip").status == 415
    answer = server.ask("/v2/models/affine/infer", b" " * 1_000_001)
    assert answer.status == 413
    assert "larger than 1000000 bytes" in answer.error
