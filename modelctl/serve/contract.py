"""What is told of each route in `/openapi.json`: a line in `OPERATIONS`, of a model by its own names, types and shapes.

`path` holds `{model}` and `{version}` where a route is there for each of them; `body` and `answer` tell, by media type,
what goes in and comes out. `answer` is called with the model where it depends on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from modelctl.serve import raw_schemas, schemas
from modelctl.serve.examples import answers
from modelctl.serve.models import Model
from modelctl.serve.schemas import Schema

JSON = "application/json"
TEXT = "text/plain"
HTML = "text/html"
BINARY = "application/octet-stream"
NO_MODEL = ("400", "404", "413")  # what any request may be answered, besides what it asked for
OF_MODEL = ("400", "404", "408", "413", "415", "429", "500", "503", "504")

Content = dict[str, Any]  # by media type
Told = Callable[[Model], Content]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What is told of a route."""

    method: str
    path: str
    tag: str
    name: str
    summary: str
    answer: Told | Content
    body: Told | None = None
    parameters: tuple[Schema, ...] = ()
    headers: tuple[str, ...] = ()  # further ones of a good answer, by what `components` calls them
    statuses: tuple[str, ...] = NO_MODEL
    also: tuple[tuple[str, Schema], ...] = ()  # further answers, by status
    open: bool = False  # to everybody, even where callers are asked who they are
    only: Callable[[Model], bool] = bool  # models that can be asked so


def _json(schema: Schema) -> Content:
    return {JSON: {"schema": schema}}


def _ref(name: str) -> Content:
    return _json({"$ref": f"#/components/schemas/{name}"})


def _infer_body(model: Model) -> Content:
    content = _json({"$ref": schemas.ref(model, "InferRequest")})
    example = schemas.infer_example(model)
    if example is not None and schemas.has_json(model):
        content[JSON]["example"] = example
    return {**content, BINARY: {"schema": {"description": "that JSON, and behind it the bytes of the tensors"}}}


def _infer_answer(model: Model) -> Content:
    return {**_json({"$ref": schemas.ref(model, "InferAnswer")}), BINARY: {"schema": {}}}


def _predict_body(model: Model) -> Content:
    if model.declared is not None:
        return raw_schemas.request(model)
    tensors = {"$ref": schemas.ref(model, "PredictRequest")}
    return {**_with_examples(model, tensors, "inputs", "instances"), raw_schemas.MSGPACK: {"schema": {}}}


def _predict_answer(model: Model) -> Content:
    return {**_json(raw_schemas.answer(model)), raw_schemas.MSGPACK: {"schema": {}}}


def _with_examples(model: Model, schema: Schema, *keys: str) -> Content:
    content = _json(schema)
    rows = schemas.sample(model)
    if rows is not None and schemas.has_json(model):
        lists = {name: row.tolist() for name, row in rows.items()}
        values: dict[str, Any] = {"inputs": {"inputs": lists}}
        counts = {len(one) for one in lists.values() if type(one) is list}
        if schemas.has_rows(model.inputs) and len(counts) == 1:
            told = [{name: one[row] for name, one in lists.items()} for row in range(counts.pop())]
            values["instances"] = {"instances": told if len(lists) > 1 else next(iter(lists.values()))}
        content[JSON]["examples"] = {key: {"value": values[key]} for key in keys if key in values}
    return content


def _object(*required: str, **properties: Schema) -> Content:
    return _json({"type": "object", "required": list(required), "properties": properties})


_WORD: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_READY = _object("ready", ready=_FLAG, name=_WORD)
_NOT_READY = (("503", {"description": "It ends, or is not ready yet.", "content": _READY}),)
_LENGTH: Schema = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "length of the JSON in bytes, where bytes of tensors follow it",
    "schema": {"type": "integer", "minimum": 0},
}
_MODEL: Schema = {
    "name": "model",
    "in": "query",
    "description": "the model that is asked; needed where there are several",
    "schema": _WORD,
}


def _get(path: str, tag: str, name: str, summary: str, answer: Told | Content, **more: Any) -> Operation:
    return Operation(method="GET", path=path, tag=tag, name=name, summary=summary, answer=answer, **more)


def _post(path: str, tag: str, name: str, summary: str, answer: Told | Content, **more: Any) -> Operation:
    return Operation(method="POST", path=path, tag=tag, name=name, summary=summary, answer=answer, **more)


def _tensorflow_body(what: str, model: Model) -> Content:
    schema = {"$ref": schemas.ref(model, what)}
    if what == "TensorflowPredict":
        return _with_examples(model, schema, "instances", "inputs")
    return _json(schema)


_VERBS = {
    "predict": (
        "Ask with rows or columns of tensors",
        partial(_tensorflow_body, "TensorflowPredict"),
        _json({"type": "object", "description": "`predictions` of `instances`, `outputs` of `inputs`"}),
    ),
    "classify": (
        "Ask for the score of each class",
        partial(_tensorflow_body, "TensorflowExamples"),
        _object("results", results={"type": "array", "items": {"type": "array"}}),
    ),
    "regress": (
        "Ask for a number",
        partial(_tensorflow_body, "TensorflowExamples"),
        _object("results", results={"type": "array", "description": "numbers, or NaN or Infinity"}),
    ),
}


def _operations() -> Iterator[Operation]:
    server = _object("name", "version", "extensions", name=_WORD, version=_WORD, extensions={"type": "array"})
    yield _get("/v2", "server", "server", "What the server is", server)
    yield _get(
        "/v2/health/live", "server", "live", "Whether the server answers", _object("live", live=_FLAG), open=True
    )
    yield _get("/v2/health/ready", "server", "ready", "Whether it takes requests", _READY, also=_NOT_READY, open=True)
    yield _get("/metrics", "server", "metrics", "Counts, for Prometheus", {TEXT: {"schema": _WORD}})
    yield _get("/openapi.json", "server", "openapi", "This document", _json({"type": "object"}))
    for place in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        yield _get(place, "models", "metadata", "What a model takes and gives", _ref("ModelMetadata"))
        yield _get(f"{place}/manifest", "models", "manifest", "Where a model comes from", _ref("Manifest"))
        yield _get(f"{place}/ready", "models", "model-ready", "Whether it is ready", _READY, also=_NOT_READY)
        yield _post(
            f"{place}/infer", "inference", "infer", "Ask a model with tensors", _infer_answer,
            body=_infer_body, parameters=(_LENGTH,), statuses=OF_MODEL,
        )  # fmt: skip
    yield _post("/v2/repository/index", "models", "index", "The models that there are", _ref("RepositoryIndex"))
    for kind, summary in (("load", "Read a model anew"), ("unload", "Serve a model no more")):
        path = f"/v2/repository/models/{{model}}/{kind}"
        yield _post(path, "models", kind, summary, _object(), statuses=(*NO_MODEL, "503"))
    for path, more in (("/predict", (_MODEL,)), ("/predict/{model}", ()), ("/predict/{model}/versions/{version}", ())):
        yield _post(
            path, "inference", "predict", "Ask a model the simple way", _predict_answer,
            body=_predict_body, parameters=more, headers=("Server-Timing",), statuses=OF_MODEL,
        )  # fmt: skip
    yield _get("/", "page", "page", "A page to try models with", {HTML: {"schema": _WORD}}, open=True)
    yield _get("/docs", "page", "docs", "This document, to be read and tried", {HTML: {"schema": _WORD}}, open=True)
    yield _get("/page/models.json", "page", "page-models", "What the page asks models by", _json({"type": "array"}))
    yield _get("/page/live.json", "page", "page-live", "Counts, for its charts", _object("now", now={"type": "number"}))
    for version in ("", "/versions/{version}", "/labels/{version}"):
        yield from _tensorflow(f"/v1/models/{{model}}{version}", "-label" if "labels" in version else "")


def _tensorflow(place: str, more: str) -> Iterator[Operation]:
    yield _get(place, "tensorflow", f"tf-status{more}", "The versions that there are", _ref("TensorflowStatus"))
    told = _ref("TensorflowMetadata")
    yield _get(f"{place}/metadata", "tensorflow", f"tf-metadata{more}", "What the model takes and gives", told)
    for verb, (summary, body, answer) in _VERBS.items():
        yield _post(
            f"{place}:{verb}",
            "tensorflow",
            f"tf-{verb}{more}",
            summary,
            answer,
            body=body,
            statuses=OF_MODEL,
            only=partial(answers, verb),
        )


OPERATIONS = tuple(_operations())
TAGS = {
    "server": "The server itself.",
    "models": "The models that it has.",
    "inference": "Asking them: the Open Inference Protocol, and the simple way.",
    "page": "For people with a browser.",
    "tensorflow": "As TensorFlow Serving answers: a float that is none is `NaN` or `Infinity`, which is no JSON. "
    "Version 0 is the newest.",
}
