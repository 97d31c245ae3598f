"""TensorFlow Serving's REST API, so that its clients need no change.

    GET  /v1/models/NAME[/versions/V|/labels/V]             status: what versions there are
    GET  /v1/models/NAME[/versions/V|/labels/V]/metadata    the signature: what goes in and comes out
    POST /v1/models/NAME[/versions/V|/labels/V]:predict     `instances` (rows) or `inputs` (columns) of tensors
    POST /v1/models/NAME[/versions/V|/labels/V]:classify    `examples` of features, to labels and scores
    POST /v1/models/NAME[/versions/V|/labels/V]:regress     `examples` of features, to a number each

Sources: TensorFlow Serving's "RESTful API" and its json_tensor.cc. A version is whatever word it is served under, and
its own label, too. A model has one signature, `serving_default`. Of rows come `predictions`, of columns `outputs`; a
single output is told without its name. Bytes are `{"b64": "…"}`, in an answer where the output's name ends in `_bytes`.
As there, and nowhere else in this server, a float that is none is answered as `NaN` or `Infinity`, which is not JSON.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import orjson

from modelctl.manifest import TensorSpec
from modelctl.serve import examples, predict
from modelctl.serve.http import Answer, App, Handler, Outputs, Request, Route
from modelctl.serve.models import Model
from modelctl.serve.refusal import Refused, told
from modelctl.serve.tensors import Array, datatype_of, parse_json, to_nested_json

SIGNATURE = "serving_default"
METHODS = "tensorflow/serving/"  # a signature may be asked for by its method
DTYPES = {"float32": "DT_FLOAT", "float64": "DT_DOUBLE", "float16": "DT_HALF", "bool": "DT_BOOL"}
Write = Callable[[Outputs], Answer]
Ask = Callable[[bytes, Model], tuple[dict[str, Array], Write]]


def routes(app: App) -> Iterable[Route]:
    """The routes of the protocol."""
    for name in app.models.names():
        place, newest = f"/v1/models/{name}", app.models.get(name)
        versions = {version: app.models.get(name, version) for version in app.models.versions(name)}
        for whichever in (place, f"{place}/versions/0"):  # 0 is no version, as OpenVINO's clients have it
            yield Route("GET", whichever, _told(_status([*versions])), newest)
            yield Route("GET", f"{whichever}/metadata", _told(_metadata(newest)), newest)
            for verb, ask in ASKS.items():
                handler, settled = app.shared(name, partial(_asked, app, ask))
                yield Route("POST", f"{whichever}:{verb}", handler, settled)
        for version, model in versions.items():
            for named in (f"{place}/versions/{version}", f"{place}/labels/{version}"):
                yield Route("GET", named, _told(_status([version])), model)
                yield Route("GET", f"{named}/metadata", _told(_metadata(model)), model)
                for verb, ask in ASKS.items():
                    yield Route("POST", f"{named}:{verb}", _asked(app, ask, model), model)


def _told(document: Any) -> Handler:
    answer = Answer(orjson.dumps(document))

    def tell(_: Request) -> Answer:
        return answer

    return tell


def _asked(app: App, ask: Ask, model: Model) -> Handler:
    def asked(request: Request) -> None:
        feeds, write = ask(request.body, model)
        app.run(model, feeds, request, write)

    return asked


def _status(versions: list[str]) -> dict[str, Any]:
    fine = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": one, "state": "AVAILABLE", "status": fine} for one in versions]}


def _metadata(model: Model) -> dict[str, Any]:
    signature = {
        "inputs": {name: _tensor_info(spec) for name, spec in model.inputs.items()},
        "outputs": {name: _tensor_info(spec) for name, spec in model.outputs.items()},
        "method_name": f"{METHODS}predict",
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    sizes = [str(one) if isinstance(one, int) else "-1" for one in spec.shape]
    return {
        "dtype": DTYPES.get(spec.dtype, f"DT_{spec.dtype.upper()}"),
        "tensor_shape": {"dim": [{"size": one, "name": ""} for one in sizes], "unknown_rank": False},
        "name": spec.name,
    }


def _request(body: bytes, verb: str, model: Model) -> dict[str, Any]:
    """A request's JSON object, its bytes decoded where the model takes strings, for a signature that there is."""
    asked = parse_json(body)
    if type(asked) is not dict:
        raise Refused("the request is not a JSON object")
    if any(spec.dtype == "string" for spec in model.inputs.values()) and b"b64" in body:
        asked = {name: _decoded(one) for name, one in asked.items()}
    name = asked.get("signature_name", SIGNATURE)
    if name not in ("", SIGNATURE, f"{METHODS}{verb}"):
        raise Refused(f"no signature {told(name)}; there is {SIGNATURE}")
    return asked


def _decoded(value: Any) -> Any:
    """JSON with the text of each `{"b64": "…"}` in its place."""
    if type(value) is list:
        return [_decoded(one) for one in value]
    if type(value) is not dict:
        return value
    if len(value) != 1 or type(value.get("b64")) is not str:
        return {name: _decoded(one) for name, one in value.items()}
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode()
    except (binascii.Error, ValueError) as error:  # strings of onnx are texts
        raise Refused(f"b64 {told(text)} is not base64 of UTF-8") from error


def _predict(body: bytes, model: Model) -> tuple[dict[str, Array], Write]:
    asked = _request(body, "predict", model)
    rows = "instances" in asked
    if rows == ("inputs" in asked):
        raise Refused('the request has neither "instances" nor "inputs", or both')
    key = "instances" if rows else "inputs"
    return predict.read({key: asked[key]}, model), partial(_rows if rows else _columns, model)


def _rows(model: Model, outputs: Outputs) -> Answer:
    """`predictions`: a list with what each row gave."""
    lists = {name: _lists(outputs[name], name) for name in model.outputs}
    counts = {len(one) if outputs[name].ndim else -1 for name, one in lists.items()}
    if len(counts) != 1 or counts == {-1}:
        raise Refused('outputs are not of one row for each instance; send "inputs"')
    if len(lists) == 1:
        return _dumped({"predictions": next(iter(lists.values()))}, outputs)
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return _dumped({"predictions": rows}, outputs)


def _columns(model: Model, outputs: Outputs) -> Answer:
    """`outputs`: each whole, by name where there are several."""
    lists = {name: _lists(outputs[name], name) for name in model.outputs}
    return _dumped({"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}, outputs)


def _lists(array: Array, name: str) -> Any:
    """An output as orjson or json write it."""
    if array.dtype == object and name.endswith("_bytes"):
        flat = [{"b64": base64.b64encode(str(one).encode()).decode()} for one in array.reshape(-1)]
        return np.array(flat, dtype=object).reshape(array.shape).tolist()
    kind = datatype_of(str(array.dtype))
    return array.tolist() if kind is None else to_nested_json(array, kind)


def _dumped(document: Any, outputs: Outputs) -> Answer:
    if all(np.isfinite(one).all() for one in outputs.values() if one.dtype.kind == "f"):
        return Answer(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))
    return Answer(json.dumps(document, separators=(",", ":"), default=lambda one: one.tolist()).encode())


def _examples(body: bytes, verb: str, model: Model) -> dict[str, Array]:
    """The inputs that examples give; a feature is a number or a flat list of them."""
    asked = _request(body, verb, model)
    context, given = asked.get("context", {}), asked.get("examples")
    if type(context) is not dict or type(given) is not list or not given:
        raise Refused('"examples" is not a list of objects, or "context" is no object')
    if any(type(one) is not dict for one in given):
        raise Refused("an example is not an object")
    size_bytes = len(orjson.dumps(context)) if context else 0
    rows = [dict(_folded(row, model.inputs)) for row in examples.rows(context, size_bytes, given)]
    return predict.read({"instances": rows}, model)


def _folded(row: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, Any]]:
    """A row's features, each nested to the shape that a row of its input has."""
    for name, value in row.items():
        flat = value if type(value) is list else [value]
        if any(type(one) in (list, dict) for one in flat):
            raise Refused(f"feature {told(name)} is not a flat list")
        shape = examples.shape_of(name, len(flat), specs[name]) if name in specs else [len(flat)]
        for size in reversed(shape[1:]):
            flat = [flat[place : place + size] for place in range(0, len(flat), size)]
        yield name, flat if shape else flat[0]


def _classify(body: bytes, model: Model) -> tuple[dict[str, Array], Write]:
    return _examples(body, "classify", model), partial(_classes, model)


def _classes(model: Model, outputs: Outputs) -> Answer:
    """Of each example `[label, score]` of every class."""
    labels, rows = examples.classes(model, outputs)
    return _dumped({"results": [[*map(list, zip(labels, row, strict=True))] for row in rows]}, outputs)


def _regress(body: bytes, model: Model) -> tuple[dict[str, Array], Write]:
    return _examples(body, "regress", model), partial(_numbers, model)


def _numbers(model: Model, outputs: Outputs) -> Answer:
    """One number for each example."""
    return _dumped({"results": examples.numbers(model, outputs)}, outputs)


ASKS: dict[str, Ask] = {"predict": _predict, "classify": _classify, "regress": _regress}
