"""The Open Inference Protocol over REST, with the binary tensor data extension.

    GET  /v2                                              what the server is
    GET  /v2/health/live   /v2/health/ready
    GET  /v2/models/NAME[/versions/V]                     what the model takes and gives
    GET  /v2/models/NAME[/versions/V]/ready
    POST /v2/models/NAME[/versions/V]/infer

Sources: the Open Inference Protocol's REST specification (kserve/open-inference-protocol); Triton's binary tensor data
extension (tensors follow the JSON in the body, whose length is in the `Inference-Header-Content-Length` header; each
has its `binary_data_size`; outputs come that way on `binary_data` or `binary_data_output`). Parameters that we do not
know are ignored, but those that would change the answer are refused.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import orjson

from modelctl import __version__
from modelctl.serve.http import Answer, App, Handler, Request, Route
from modelctl.serve.models import Model
from modelctl.serve.plans import BINARY, HEADER_LENGTH, Asked, Plans, recall_answer, remember_answer
from modelctl.serve.refusal import Refused, told
from modelctl.serve.tensors import (
    Array,
    Datatype,
    check_shape,
    datatype_of,
    from_bytes,
    from_json,
    parse_json,
    to_bytes,
    to_json,
    wire_shape,
)

EXTENSIONS = ["binary_tensor_data", "model_repository"]
NOT_OURS = ("classification", "shared_memory_region")  # parameters of extensions that we do not have


def routes(app: App) -> Iterable[Route]:
    """The routes of the protocol."""
    yield Route("GET", "/v2", _const({"name": "modelctl", "version": __version__, "extensions": EXTENSIONS}))
    yield Route("GET", "/v2/health/live", _const({"live": True}))
    yield Route("GET", "/v2/health/ready", _readiness(app, {}))
    for name in app.models.names():
        versions = app.models.versions(name)
        handler, settled = app.shared(name, partial(_infer, app))
        yield from _of_model(app, f"/v2/models/{name}", app.models.get(name), versions)
        yield Route("POST", f"/v2/models/{name}/infer", handler, settled)
        for version in versions:
            model, place = app.models.get(name, version), f"/v2/models/{name}/versions/{version}"
            yield from _of_model(app, place, model, versions)
            yield Route("POST", f"{place}/infer", _infer(app, model), model)


def _of_model(app: App, place: str, model: Model, versions: list[str]) -> Iterable[Route]:
    yield Route("GET", place, _const(metadata(model, versions)), model)
    yield Route("GET", f"{place}/ready", _readiness(app, {"name": model.name}), model)


def _const(document: Any) -> Handler:
    answer = Answer(orjson.dumps(document))

    def tell(_: Request) -> Answer:
        return answer

    return tell


def _readiness(app: App, who: dict[str, str]) -> Handler:
    def tell(_: Request) -> Answer:
        return Answer(orjson.dumps({**who, "ready": app.ready}), status=200 if app.ready else 503)

    return tell


def metadata(model: Model, versions: list[str]) -> dict[str, Any]:
    """What the protocol tells of a model."""
    return {
        "name": model.name,
        "versions": versions,
        "platform": "onnxruntime_onnx" if model.manifest.format == "onnx" else model.manifest.format,
        "inputs": [_described(spec) for spec in model.inputs.values()],
        "outputs": [_described(spec) for spec in model.outputs.values()],
    }


def _described(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": _kind(spec.dtype).word, "shape": wire_shape(spec)}


def _infer(app: App, model: Model) -> Handler:
    plans = Plans(model, lambda body: read(body, None, model)[1])

    def infer(request: Request) -> None:
        header_length = request.head.headers.get(HEADER_LENGTH)
        known = plans.recall(request.body, header_length)
        if known is None:
            known = read(request.body, header_length, model)
            plans.remember(request.body, header_length, *known)
        asked, feeds = known
        app.run(model, feeds, request, lambda outputs: write(asked, outputs, model))

    return infer


def read(body: bytes, header_length: bytes | None, model: Model) -> tuple[Asked, dict[str, Array]]:
    """An inference request and its tensors, checked against what the model takes; `Refused` says what is wrong."""
    blobs = memoryview(b"")
    if header_length is not None:
        length = int(header_length) if header_length.isdigit() and len(header_length) < 16 else -1
        if not 0 <= length <= len(body):
            what = told(header_length.decode("latin-1"))
            raise Refused(f"Inference-Header-Content-Length {what}, the body has {len(body)} bytes")
        blobs = memoryview(body)[length:]
        body = body[:length]
    asked = parse_json(body)
    if type(asked) is not dict:
        raise Refused("the request is not a JSON object")
    name = asked.get("id")
    if name is not None and type(name) is not str:
        raise Refused("id is not a string")
    binary = _parameters(asked, "the request").get("binary_data_output", False) is True
    feeds = _inputs(asked.get("inputs"), blobs, model)
    return Asked(name, _outputs(asked.get("outputs"), binary, model)), feeds


def _parameters(holder: dict[str, Any], what: str) -> dict[str, Any]:
    found = holder.get("parameters")
    if found is None:
        return {}
    if type(found) is not dict:
        raise Refused(f"{what}: parameters is not an object")
    for name in NOT_OURS:
        if found.get(name):
            raise Refused(f"{what}: the {name} extension is not offered")
    return found


def _inputs(given: Any, blobs: memoryview, model: Model) -> dict[str, Array]:
    if type(given) is not list:
        raise Refused("inputs is not a list")
    feeds: dict[str, Array] = {}
    place = 0
    for one in given:
        name = one.get("name") if type(one) is dict else None
        if type(name) is not str or name not in model.inputs:
            raise Refused(f"no input {told(name)}; the model takes: {', '.join(model.inputs)}")
        if name in feeds:
            raise Refused(f"input {name!r} is given twice")
        size = _parameters(one, f"input {name!r}").get("binary_data_size")
        if size is None:
            feeds[name] = _input(one, None, model)
        else:
            if type(size) is not int or not 0 <= size <= len(blobs) - place:
                left = len(blobs) - place
                raise Refused(f"input {name!r}: binary_data_size {told(size)}, the body has {left} bytes left")
            feeds[name] = _input(one, blobs[place : place + size], model)
            place += size
    if place != len(blobs):
        raise Refused(f"{len(blobs) - place} bytes of binary data belong to no input")
    missing = [name for name in model.inputs if name not in feeds]
    if missing:
        raise Refused(f"input {missing[0]!r} is missing; the model takes: {', '.join(model.inputs)}")
    return feeds


def _input(one: dict[str, Any], blob: memoryview | None, model: Model) -> Array:
    """One input tensor, out of the JSON or out of its bytes."""
    name = one["name"]
    spec = model.inputs[name]
    kind = _kind(spec.dtype)
    if one.get("datatype") != kind.word:
        raise Refused(f"input {name!r}: datatype {told(one.get('datatype'))}, the model takes {kind.word}")
    shape = check_shape(name, one.get("shape"), spec)
    if blob is not None:
        if "data" in one:
            raise Refused(f"input {name!r}: has both data and binary_data_size")
        return from_bytes(name, blob, kind, shape)
    if "data" not in one:
        raise Refused(f"input {name!r}: has neither data nor binary_data_size")
    return from_json(name, one["data"], kind, shape)


def _outputs(wanted: Any, binary: bool, model: Model) -> dict[str, bool]:
    """The outputs to be sent, each with whether as binary data; all of them if none is asked for."""
    if wanted is None or wanted == []:
        return dict.fromkeys(model.outputs, binary)
    if type(wanted) is not list:
        raise Refused("outputs is not a list")
    found: dict[str, bool] = {}
    for one in wanted:
        name = one.get("name") if type(one) is dict else None
        if type(name) is not str or name not in model.outputs:
            raise Refused(f"no output {told(name)}; the model gives: {', '.join(model.outputs)}")
        if name in found:
            raise Refused(f"output {name!r} is asked for twice")
        found[name] = _parameters(one, f"output {name!r}").get("binary_data", binary) is True
    return found


def write(asked: Asked, outputs: dict[str, Array], model: Model) -> Answer:
    """The answer to an inference request."""
    known = recall_answer(asked, outputs)
    return known if known is not None else _written(asked, outputs, model)


def _written(asked: Asked, outputs: dict[str, Array], model: Model) -> Answer:
    told_of: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in asked.outputs.items():
        array, kind = outputs[name], _kind(model.outputs[name].dtype)
        one: dict[str, Any] = {"name": name, "datatype": kind.word, "shape": list(array.shape)}
        if binary:
            blobs.append(to_bytes(array, kind))
            one["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            one["data"] = to_json(array, kind)
        told_of.append(one)
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": told_of}
    if asked.id is not None:
        document["id"] = asked.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if blobs:
        answer = Answer(b"".join([head, *blobs]), BINARY, headers=((HEADER_LENGTH, b"%d" % len(head)),))
    else:
        answer = Answer(head)
    remember_answer(asked, outputs, model, answer)
    return answer


def _kind(dtype: str) -> Datatype:
    kind = datatype_of(dtype)
    assert kind is not None, dtype  # a model with another dtype is not taken in
    return kind
