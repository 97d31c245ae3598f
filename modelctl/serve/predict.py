"""`/predict`: the simple way to ask, for people with curl.

    POST /predict                 the only model, or ?model=name
    POST /predict/name[/versions/V]

The body is JSON: `{"inputs": {name: nested lists}}`; for a model with one input also `{"inputs": nested lists}` or the
nested lists alone; or `{"instances": [row, …]}`, a row being nested lists or, with several inputs, `{name: nested
lists}`. Shapes are those of the lists. The answer is `{"model": "name@sha256:…", "outputs": {name: nested lists}}`.
With `Content-Type: application/msgpack` the body is the same in MessagePack, and so is the answer, unless `Accept` says
otherwise. A model whose manifest declares what comes before and after it is asked as `declared` and `raw` tell. Where
the time went is told as `timing` tells.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

import orjson

from modelctl.serve import timing
from modelctl.serve.http import Answer, App, Handler, Request, Route
from modelctl.serve.models import Model
from modelctl.serve.refusal import Refused, told
from modelctl.serve.tensors import Array, check_shape, datatype_of, from_json, parse_json, to_nested_json

QUERY_LIMIT_BYTES = 4096


def routes(app: App) -> Iterable[Route]:
    """The routes of `/predict`."""

    desk: list[Any] = []

    def bound(model: Model) -> Handler:
        if model.declared is not None:
            from modelctl.serve import declared

            desk[:] = desk or [declared.Desk(app)]
            return declared.handler(app, desk[0], model)

        def predict(request: Request) -> None:
            _predict(app, model, request)

        return predict

    def chosen(request: Request) -> Answer | None:
        name = _named(app, request.head.query)
        if request.visit is not None:
            request.visit.check(name)
        handler, request.model = by_name[name]
        return handler(request)

    by_name = {name: app.shared(name, bound) for name in app.models.names()}
    yield Route("POST", "/predict", chosen)
    for name, (handler, settled) in by_name.items():
        yield Route("POST", f"/predict/{name}", handler, settled)
        for version in app.models.versions(name):
            model = app.models.get(name, version)
            yield Route("POST", f"/predict/{name}/versions/{version}", bound(model), model)


def _named(app: App, query: bytes) -> str:
    """The name that a query asks for, else the only one there is; `Refused` 404."""
    asked = parse_qs(query[:QUERY_LIMIT_BYTES].decode("latin-1")).get("model")
    return app.models.get(asked[-1]).name if asked else app.models.only().name


def _predict(app: App, model: Model, request: Request) -> None:
    began = timing.now()
    kind = request.head.headers.get(b"content-type")
    asked = packed().parse(request.body) if kind is not None and b"msgpack" in kind else parse_json(request.body)
    timing.run(app, model, read(asked, model), request, partial(write, model, request), began)


def packed() -> ModuleType:
    """The module of MessagePack, imported when somebody speaks it."""
    return import_module("modelctl.serve.packed")


def wants_packed(request: Request) -> bool:
    """Whether a request wants its answer in MessagePack: as `Accept` says, else as it was sent itself."""
    headers = request.head.headers
    accept = headers.get(b"accept")
    if accept is not None and accept != b"*/*":
        return b"msgpack" in accept
    kind = headers.get(b"content-type")
    return kind is not None and b"msgpack" in kind


def write(model: Model, request: Request, outputs: dict[str, Array]) -> Answer:
    """The answer of a model after which nothing is declared."""
    if wants_packed(request):
        return Answer(packed().dumps({"model": model.told, "outputs": outputs}), packed().MSGPACK)
    told_of = {name: to_nested_json(outputs[name], _kind(model.outputs[name].dtype)) for name in model.outputs}
    return Answer(orjson.dumps({"model": model.told, "outputs": told_of}, option=orjson.OPT_SERIALIZE_NUMPY))


def read(asked: Any, model: Model) -> dict[str, Array]:
    """The inputs by name that a body asks a model for."""
    given = _by_name(asked, list(model.inputs))
    check_names(given, model)
    feeds = {}
    for name, spec in model.inputs.items():
        array = from_json(name, given[name], _kind(spec.dtype), None)
        check_shape(name, list(array.shape), spec)
        feeds[name] = array
    return feeds


def check_names(given: Mapping[str, Any], model: Model) -> None:
    """`Refused` unless a model's inputs are given, all of them and no others."""
    unknown = [name for name in given if name not in model.inputs]
    missing = [name for name in model.inputs if name not in given]
    if unknown or missing:
        what = f"no input {told(unknown[0])}" if unknown else f"input {missing[0]!r} is missing"
        raise Refused(f"{what}; the model takes: {', '.join(model.inputs)}")


def _by_name(asked: Any, names: list[str]) -> dict[str, Any]:
    """Nested lists by the name of the input that they are for."""
    if type(asked) is dict and "instances" in asked:
        return _columns(asked["instances"], names)
    if type(asked) is dict:
        if "inputs" not in asked:
            raise Refused('the body has neither "inputs" nor "instances"')
        asked = asked["inputs"]
        if type(asked) is dict:
            return asked
    if len(names) != 1:
        raise Refused(f'the model has several inputs, send {{"inputs": {{…}}}} with: {", ".join(names)}')
    return {names[0]: asked}


def _columns(rows: Any, names: list[str]) -> dict[str, Any]:
    if type(rows) is not list or not rows:
        raise Refused('"instances" is not a list of rows')
    if type(rows[0]) is not dict:
        if len(names) != 1:
            raise Refused(f"the model has several inputs, each of the instances names them: {', '.join(names)}")
        return {names[0]: rows}
    if any(type(row) is not dict or row.keys() != rows[0].keys() for row in rows):
        raise Refused("instances do not all have the same names")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _kind(dtype: str) -> Any:
    return datatype_of(dtype)
