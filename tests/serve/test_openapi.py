"""`/openapi.json`: tells of every route, and what it tells is so."""

import gzip
import json
from pathlib import Path
from typing import Any

import generated
import jsonschema
import numpy as np
import page_models
import pytest
import servers
from onnx import helper
from referencing import Registry, Resource
from servers import Running

from modelctl.options import ServeOptions
from modelctl.serve import contract, openapi, schemas
from modelctl.serve.http import App
from modelctl.serve.page import assets

PLACES = ("", "/versions/1", "/labels/1")
ELSEWHERE = ("/inference.", "/grpc.", "/tensorflow.")  # gRPC's own services, told of by their .proto
FILES = {f"/page/{name}" for name in assets.FILES}


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    answer = server.ask("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return answer.json


@pytest.fixture(scope="module")
def app(zoo: dict[str, Path]) -> App:
    return App(servers.loaded(zoo["affine"], zoo["pair"]), ServeOptions())


def validator(document: Any, schema: Any) -> Any:
    """A validator of a schema in the document."""
    registry: Any = Registry().with_resource("urn:it", Resource.opaque(document))
    inside = json.loads(json.dumps(schema).replace('"#/', '"urn:it#/'))
    return jsonschema.Draft202012Validator(inside, registry=registry)


def operations(document: Any) -> list[tuple[str, str, Any]]:
    return [(path, method, one) for path, methods in document["paths"].items() for method, one in methods.items()]


def test_every_route_is_told_of(app: App) -> None:
    told = {(place.path, place.operation.method) for place in openapi.told(app)}
    routes = {(path, method) for path, methods in app.routes.items() for method in methods}
    untold = {path for path, _ in routes - told if not path.startswith(ELSEWHERE)} - FILES
    untold = {one for one in untold if "/versions/0" not in one}  # another name for the newest, told of in words
    assert {one for one in untold if not one.endswith((":classify", ":regress"))} == set()
    assert {one for one in untold if "affine" in one} == {f"/v1/models/affine{one}:regress" for one in PLACES}


def test_every_operation_of_the_table_is_somewhere(document: Any) -> None:
    told = {one["operationId"].split(".")[0] for _, _, one in operations(document)}
    assert told == {one.name for one in contract.OPERATIONS}
    names = [one["operationId"] for _, _, one in operations(document)]
    assert len(set(names)) == len(names)


def test_examples_are_answered_and_answers_are_as_told(server: Running, document: Any) -> None:
    asked = tried(server, document)
    for name in ("affine", "pair", "log", "lookup", "words", "bits", "half", "slow"):
        assert {f"/v2/models/{name}/infer", f"/predict/{name}", f"/v1/models/{name}/versions/1:predict"} <= asked


def test_what_is_declared_is_told_and_answered_as_told(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="pip install pillow")
    with servers.running(
        [one(tmp_path) for one in (page_models.readable, page_models.houses, page_models.meanings)]
    ) as server:
        document = server.ask("/openapi.json").json
        names = {"digits": "image/*", "houses": "text/csv", "meanings": "text/plain"}
        assert {f"/predict/{name}" for name in names} <= tried(server, document)
        for name, kind in names.items():
            body = document["paths"][f"/predict/{name}"]["post"]["requestBody"]["content"]
            assert {kind, "application/json", "application/msgpack", "multipart/form-data"} == body.keys()
        schema = document["paths"]["/predict/houses"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        wrongs: list[Any] = [
            {"area": 1},
            {"area": 1, "town": "Paris"},
            {"area": "x", "town": "Cork"},
            [1],
            {"instances": []},
        ]
        for wrong in wrongs:
            assert not validator(document, schema).is_valid(wrong)
            assert server.ask("/predict/houses", wrong).status == 400
        assert server.stop() == (0, "")


def tried(server: Running, document: Any) -> set[str]:
    """The paths whose examples were answered as the document tells."""
    asked = set()
    for path, _, one in operations(document):
        for kind, content in one.get("requestBody", {}).get("content", {}).items():
            examples = [each["value"] for each in content.get("examples", {}).values()]
            for example in [*examples, *([content["example"]] if "example" in content else [])]:
                assert kind == "application/json"
                if path != "/predict":
                    validator(document, content["schema"]).validate(example)
                answer = server.ask(path, example)
                assert answer.status == 200, (path, answer.body)
                assert "modelctl-model" in answer.headers
                schema = one["responses"]["200"]["content"]["application/json"]["schema"]
                validator(document, schema).validate(answer.json if b"NaN" not in answer.body else {})
                asked.add(path)
    return asked


def test_what_is_got_is_as_told(server: Running, document: Any) -> None:
    for path, method, one in operations(document):
        if method == "get":
            answer = server.ask(path)
            assert answer.status == 200, path
            kind = answer.headers["content-type"].partition(";")[0]
            content = one["responses"]["200"]["content"]
            assert kind in content, path
            if kind == "application/json":
                validator(document, content[kind]["schema"]).validate(answer.json)


@pytest.mark.parametrize(
    ("model", "what", "body"),
    [
        ("affine", "PredictRequest", {"inputs": {"x": [[1, 2, 3]]}}),
        ("affine", "PredictRequest", {"inputs": {"x": [[1, 2, 3, "4"]]}}),
        ("affine", "PredictRequest", {"inputs": {"z": [[1, 2, 3, 4]]}}),
        ("affine", "PredictRequest", {"instances": []}),
        ("affine", "PredictRequest", [[1, 2, 3, 1e39]]),
        ("affine", "PredictRequest", {}),
        ("pair", "PredictRequest", {"inputs": {"a": [[1, 2]]}}),
        ("pair", "PredictRequest", {"instances": [{"a": [1, 2], "b": [0.5, 1]}]}),
        ("affine", "InferRequest", {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}),
        ("affine", "InferRequest", {"inputs": []}),
        ("pair", "InferRequest", {"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}] * 2}),
        ("affine", "TensorflowPredict", {"instances": [[1, 2, 3, 4]], "inputs": [[1, 2, 3, 4]]}),
        ("affine", "TensorflowExamples", {"examples": [{"x": [1, 2, 3]}]}),
    ],
)
def test_what_the_document_does_not_allow_is_refused(
    server: Running, document: Any, model: str, what: str, body: Any
) -> None:
    schema = document["components"]["schemas"][schemas.key(what, model, "1")]
    assert not validator(document, schema).is_valid(body)
    paths = {"Pre": f"/predict/{model}", "Inf": f"/v2/models/{model}/infer", "Ten": f"/v1/models/{model}:predict"}
    path = paths[what[:3]] if "Examples" not in what else f"/v1/models/{model}:classify"
    assert server.ask(path, body).status == 400


def test_no_example_is_told_of_what_has_none(tmp_path: Path, zoo: dict[str, Path]) -> None:
    models = servers.loaded(zoo["brain"], servers.echo(tmp_path / "wide.onnx", 1, ["batch", 2000]))
    for path, _, one in operations(openapi.document(App(models, ServeOptions()))):
        for content in one.get("requestBody", {}).get("content", {}).values():
            assert not {"example", "examples"} & set(content), path


def test_an_example_has_as_many_rows_as_the_model_takes(tmp_path: Path) -> None:
    with servers.running([servers.echo(tmp_path / "fixed.onnx", 7, [2, 3])]) as server:
        assert "/v1/models/fixed:predict" in tried(server, server.ask("/openapi.json").json)
        assert server.stop() == (0, "")


def test_a_free_dimension_in_an_example_is_of_a_size_that_suits(tmp_path: Path) -> None:
    picky = servers.save(
        tmp_path / "picky.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [("x", 1, ["batch", "n"])],
        [("y", 1, ["batch", "n"])],
        {"w": np.ones((1, 32), np.float32)},
    )
    (model,) = servers.loaded(picky)
    row = schemas.sample(model)
    assert row is not None
    assert row["x"].shape == (1, 32)


def test_odd_names_stand_in_paths_and_keys_as_they_may(tmp_path: Path, server: Running) -> None:
    odd = servers.affine(tmp_path / "a b{c}ü.onnx")
    document = openapi.document(App(servers.loaded(odd), ServeOptions()))
    assert "/predict/a%20b%7Bc%7D%C3%BC" in document["paths"]
    assert "PredictRequest.a.20.b.7b.c.7d..fc..1" in document["components"]["schemas"]
    with servers.running([odd]) as running:
        assert running.ask("/predict/a%20b%7Bc%7D%C3%BC", [[1, 2, 3, 4]]).status == 200
        assert running.ask("/openapi.json").json["paths"].keys() == document["paths"].keys() | {
            f"/v2/repository/models/a%20b%7Bc%7D%C3%BC/{one}" for one in ("load", "unload")
        }


def test_it_is_sent_zipped_to_who_takes_that(server: Running, document: Any) -> None:
    answer = server.ask("/openapi.json", accept_encoding="br, gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(answer.body)) == document


def test_it_is_told_anew_when_models_change(zoo: dict[str, Path]) -> None:
    with servers.running([zoo["affine"], zoo["log"]]) as server:
        assert "/predict/log" in server.ask("/openapi.json").json["paths"]
        assert server.ask("/v2/repository/models/log/unload", b"").status == 200
        paths = server.ask("/openapi.json").json["paths"]
        assert "/predict/log" not in paths
        assert "/v2/repository/models/log/load" in paths
        assert server.ask("/v2/repository/models/affine/unload", b"").status == 200
        assert "/predict" in server.ask("/openapi.json").json["paths"]
        assert server.stop() == (0, "")


def test_the_manifest_is_told_as_it_stands(server: Running, zoo: dict[str, Path]) -> None:
    for place in ("", "/versions/1"):
        found = server.ask(f"/v2/models/pair{place}/manifest")
        assert found.json["files"][0]["path"] == "pair.onnx"
        assert found.headers["modelctl-model"] == f"pair@sha256:{found.json['files'][0]['sha256']}"


def test_the_published_contract_is_what_the_server_tells() -> None:
    assert generated.CONTRACT.read_text() == generated.contract_text(), generated.AGAIN
