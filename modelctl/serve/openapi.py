"""`/openapi.json`: the OpenAPI 3.1 document of this server, with the names, types and shapes of the models it has.

It is made, when first asked for, from the routes that there are: an operation is told for each model and version
that has its route. A new route needs a line in `contract.OPERATIONS`; a test finds the routes that none tells of.
"""

import asyncio
import gzip
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
import orjson

from modelctl import __version__
from modelctl.manifest import Manifest
from modelctl.serve import schemas
from modelctl.serve.contract import JSON, OF_MODEL, OPERATIONS, TAGS, Content, Operation, Told
from modelctl.serve.http import Answer, App, Request, Route
from modelctl.serve.models import Model
from modelctl.serve.schemas import Schema
from modelctl.serve.tensors import DATATYPES

REMEMBERED = 64  # documents, for callers who know of other models
Texts = tuple[bytes, bytes]  # of a document: plain, and zipped


def routes(app: App) -> Iterable[Route]:
    """The route of the document; one for all who may know of the same models, made in a thread."""
    made: dict[frozenset[str], asyncio.Future[Texts]] = {}

    def tell(request: Request) -> Answer | None:
        knows = bool if request.visit is None else request.visit.knows
        known = frozenset(filter(knows, {*app.models.names(), *_given(app)}))
        texts = made.get(known)
        if texts is None:
            if len(made) >= REMEMBERED:
                made.clear()
            write = partial(
                _written, [*told(app, knows)], [one for one in app.models if knows(one.name)], _schemes(app)
            )
            texts = made[known] = asyncio.get_running_loop().run_in_executor(None, write)
        if texts.done():
            return _sent(request, texts.result())
        texts.add_done_callback(lambda done: request.reply(_sent(request, done.result())))
        return None

    return [Route("GET", "/openapi.json", tell)]


def _sent(request: Request, texts: Texts) -> Answer:
    plain, zipped = texts
    if b"gzip" in request.head.headers.get(b"accept-encoding", b""):
        return Answer(zipped, headers=((b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")))
    return Answer(plain, headers=((b"vary", b"accept-encoding"),))


def _written(places: list["Place"], models: list[Model], schemes: dict[str, Schema]) -> Texts:
    plain = orjson.dumps(_document(places, models, schemes))
    return plain, gzip.compress(plain, 6, mtime=0)


def document(app: App) -> dict[str, Any]:
    """The OpenAPI document of what an application answers now."""
    return _document([*told(app)], [*app.models], _schemes(app))


def _document(places: list["Place"], models: list[Model], schemes: dict[str, Schema]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for one in places:
        found = _operation(one, [*_OF_CALLERS, "429"] if schemes else [])
        if schemes and one.operation.open:
            found["security"] = []
        paths.setdefault(quote(one.path, safe="/:"), {})[one.operation.method.lower()] = found
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "modelctl serve",
            "version": __version__,
            "description": "Answers of models. Each names, in `Modelctl-Model`, the digest of the model that made it.",
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in schemes],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": _components(models, schemes, paths),
    }


def _schemes(app: App) -> dict[str, Schema]:
    """How a caller tells who he is; none where nobody is asked."""
    gate = app.visits.gate if app.visits is not None else None
    if gate is None:
        return {}
    if gate.certificates and gate.keys is None and gate.tokens is None:
        return {"certificate": {"type": "mutualTLS"}}
    return {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }


@dataclass(frozen=True)
class Place:
    """Where an operation is found: its path, the model and version named in it, and the models that may answer."""

    operation: Operation
    path: str
    named: tuple[str, ...]
    models: list[Model]


def told(app: App, knows: Callable[[str], bool] = bool) -> Iterator[Place]:
    """Every operation at every path that has its route."""
    served = app.models.names()
    known = [one for one in dict.fromkeys([*served, *_given(app)]) if knows(one)]
    every = [one for one in app.models if knows(one.name)]
    for operation in OPERATIONS:
        for name in known if "{model}" in operation.path else [""]:
            for version in app.models.versions(name) if "{version}" in operation.path and name in served else [""]:
                path = operation.path.replace("{model}", name).replace("{version}", version)
                models = [app.models.get(name, version or None)] if name in served else [] if name else every
                if operation.method in app.routes.get(path, {}) and all(map(operation.only, models)):
                    yield Place(operation, path, tuple(one for one in (name, version) if one), models)


def _given(app: App) -> Iterable[str]:
    """The names that were given to the server, loaded or not."""
    return app.changes.shelf.ledger.names if app.changes is not None else ()


def _operation(place: Place, more: list[str]) -> dict[str, Any]:
    operation, models = place.operation, place.models
    found: dict[str, Any] = {"tags": [operation.tag], "summary": operation.summary}
    found["operationId"] = schemas.key(operation.name, *place.named)
    if operation.parameters:
        found["parameters"] = list(operation.parameters)
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": _joined(operation.body, models)}
    good: dict[str, Any] = {"description": "The answer.", "content": _joined(operation.answer, models)}
    if operation.statuses == OF_MODEL:
        told_of = ("Modelctl-Model", *operation.headers)
        good["headers"] = {name: {"$ref": f"#/components/headers/{name.replace('-', '')}"} for name in told_of}
    refused = {status: {"$ref": f"#/components/responses/E{status}"} for status in (*operation.statuses, *more)}
    found["responses"] = {"200": good, **refused, **dict(operation.also)}
    return found


def _joined(tell: Told | Content, models: list[Model]) -> Content:
    """What is told of a route that one of several models may answer."""
    if not callable(tell):
        return tell
    each = [tell(model) for model in models]
    if len(each) == 1:
        return each[0]
    if not each:
        return {JSON: {"schema": {}}}
    found: Content = {}
    for kind in each[0]:
        forms: list[Schema] = []
        for one in each:
            if kind in one and one[kind]["schema"] not in forms:
                forms.append(one[kind]["schema"])
        found[kind] = {"schema": {"anyOf": forms} if len(forms) > 1 else forms[0]}
    return found


def _referred(found: dict[str, Schema], paths: Any) -> dict[str, Schema]:
    """The schemas that paths refer to, or other schemas do that they refer to."""
    wanted: set[str] = set()
    waiting = [orjson.dumps(paths)]
    while waiting:
        new = set(re.findall(rb'"#/components/schemas/([^"]+)"', waiting.pop())) - {one.encode() for one in wanted}
        wanted |= {one.decode() for one in new}
        waiting += [orjson.dumps(found[one.decode()]) for one in new]
    return {name: schema for name, schema in found.items() if name in wanted | {"Error", "ModelDigest"}}


def _components(models: list[Model], schemes: dict[str, Schema], paths: Any) -> dict[str, Any]:
    """What the document refers to."""
    _, told_of = msgspec.json.schema_components([Manifest], ref_template="#/components/schemas/{name}")
    found: dict[str, Schema] = {**_SHARED, **told_of}
    for model in models:
        found |= {schemas.key(what, model.name, model.version): of(model) for what, of in schemas.OF_MODEL.items()}
    retry = {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 0}}
    error = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers: dict[str, Any] = {}
    refusals = _REFUSALS | (_OF_CALLERS if schemes else {})
    for status, what in refusals.items():
        answers[f"E{status}"] = {"description": what, "content": error}
        if status in ("429", "503"):
            answers[f"E{status}"]["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    told_digest = {"description": "the model that answered", "schema": {"$ref": "#/components/schemas/ModelDigest"}}
    timing = {
        "description": "milliseconds: `read`, `queue`, `compute` (the model's run), and `total` in the server",
        "schema": {"type": "string", "pattern": r"^(\w+;dur=\d+\.\d{3}(, |$))+$"},
    }
    return {
        "schemas": _referred(found, paths),
        "responses": answers,
        "headers": {"ModelctlModel": told_digest, "RetryAfter": retry, "ServerTiming": timing},
        "securitySchemes": schemes,
    }


_WORD: Schema = {"type": "string"}
_OF_CALLERS = {"401": "It is not known who asks.", "403": "Who asks may not."}
_REFUSALS = {
    "400": "What was sent is not right; the answer says what.",
    "404": "There is no such model, version or path.",
    "408": "The body came too slowly.",
    "413": "The body is longer than this server takes.",
    "415": "The body is encoded, or of a type that is not read here.",
    "429": "Too much is waiting already.",
    "500": "The server is at fault, or its model.",
    "503": "The model is not asked at present, as it failed too often.",
    "504": "The answer took longer than a request may wait.",
}
_SHARED: dict[str, Schema] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "ModelDigest": {"type": "string", "pattern": "^.+@sha256:[0-9a-f]{64}$", "description": "name and digest"},
    "Tensor": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": _WORD,
            "datatype": {"enum": list(DATATYPES)},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}, "description": "-1: free"},
        },
    },
    "ModelMetadata": {
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {
            "name": _WORD,
            "versions": {"type": "array", "items": _WORD},
            "platform": _WORD,
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
    },
    "TensorflowStatus": {
        "type": "object",
        "required": ["model_version_status"],
        "properties": {
            "model_version_status": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["version", "state", "status"],
                    "properties": {"version": _WORD, "state": {"const": "AVAILABLE"}, "status": {"type": "object"}},
                },
            }
        },
    },
    "TensorflowMetadata": {
        "type": "object",
        "required": ["model_spec", "metadata"],
        "properties": {"model_spec": {"type": "object"}, "metadata": {"type": "object"}},
    },
    "RepositoryIndex": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "version", "state", "reason"],
            "properties": {
                "name": _WORD,
                "version": _WORD,
                "state": {"enum": ["READY", "UNAVAILABLE"]},
                "reason": _WORD,
            },
        },
    },
}
