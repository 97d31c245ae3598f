"""TensorFlow Serving's services: `PredictionService` (Predict, GetModelMetadata) and `ModelService` (GetModelStatus).

A version is whatever word it is served under: a number is found by `version`, any word by `version_label`, and so told
in answers. A model has one signature, `serving_default`. Sources: TensorFlow Serving's prediction_service.proto,
predict.proto and model_service.proto; TensorFlow's tensor.proto for how elements lie.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from modelctl.serve.grpc.calls import METHOD, CallRequest
from modelctl.serve.grpc.contents import from_list, packed_into, to_list
from modelctl.serve.grpc.inference import kind_of, time_left, well
from modelctl.serve.grpc.messages import message, parsed
from modelctl.serve.http import Answer, App, Handler, Request, Route
from modelctl.serve.models import Model
from modelctl.serve.predict import check_names
from modelctl.serve.refusal import Refused, told
from modelctl.serve.tensors import Array, Datatype, check_shape, from_bytes, wire_shape

SIGNATURE = "serving_default"
METHOD_NAME = "tensorflow/serving/predict"
DTYPES = {
    "FP32": 1,
    "FP64": 2,
    "INT32": 3,
    "UINT8": 4,
    "INT16": 5,
    "INT8": 6,
    "BYTES": 7,
    "INT64": 9,
    "BOOL": 10,
    "BF16": 14,
    "UINT16": 17,
    "FP16": 19,
    "UINT32": 22,
    "UINT64": 23,
}
FIELDS = {
    "FP32": "float_val",
    "FP64": "double_val",
    **dict.fromkeys(("INT32", "INT16", "INT8", "UINT16", "UINT8"), "int_val"),
    "BYTES": "string_val",
    "INT64": "int64_val",
    "BOOL": "bool_val",
    **dict.fromkeys(("FP16", "BF16"), "half_val"),
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
}


def _kind_of(name: str) -> Any:
    return message(f"tensorflow.serving.{name}")


def routes(app: App) -> Iterable[Route]:
    """The methods of the services."""
    service = "/tensorflow.serving.PredictionService"
    yield Route(METHOD, f"{service}/Predict", lead(app, "PredictRequest", _predict))
    yield Route(METHOD, f"{service}/GetModelMetadata", partial(_metadata, app))
    yield Route(METHOD, "/tensorflow.serving.ModelService/GetModelStatus", partial(_status, app))


def _version(spec: Any) -> str:
    """The version that is asked for; "": none, which 0 means too, as OpenVINO's clients have it."""
    which = spec.WhichOneof("version_choice")
    if which == "version":
        return str(spec.version.value or "")
    return str(spec.version_label)


def tell(spec: Any, model: Model, signature: str = "") -> None:
    """Say which model answers."""
    spec.name, spec.signature_name = model.name, signature
    if model.version.isdigit() and int(model.version) < 2**63:
        spec.version.value = int(model.version)
    else:
        spec.version_label = model.version


def check_signature(spec: Any, method: str) -> None:
    """`Refused` unless the model's one signature is asked for, by its name, by that of the method, or by none."""
    if spec.signature_name not in ("", SIGNATURE, method):
        raise Refused(f"no signature {told(spec.signature_name)}; there is {SIGNATURE}")


def _model(app: App, request: Request, spec: Any) -> Model:
    request.model = model = app.models.get(spec.name, _version(spec) or None)
    if request.visit is not None:
        request.visit.check(model.name)
    return model


def lead(app: App, kind: str, ask: Callable[[App, Model], Handler]) -> Handler:
    """What answers requests of a kind: leads each to what `ask` makes of the application and the model it is for."""
    handlers: dict[tuple[str, str], Handler] = {}
    for name in app.models.names():
        handlers[name, ""] = app.shared(name, partial(ask, app))[0]
        for version in app.models.versions(name):
            handlers[name, version] = ask(app, app.models.get(name, version))

    def led(request: Request) -> Answer | None:
        spec = parsed(_kind_of(kind), request.body).model_spec
        handler = handlers.get((spec.name, _version(spec)))
        if handler is None:
            app.models.get(spec.name, _version(spec))
            raise Refused(f"no model {told(spec.name)}", 404)
        return handler(request)

    return led


def _predict(app: App, model: Model) -> Handler:
    def ask(request: Request) -> None:
        assert isinstance(request, CallRequest)
        request.model = model
        asked = parsed(_kind_of("PredictRequest"), request.body)
        check_signature(asked.model_spec, METHOD_NAME)
        check_names(asked.inputs, model)
        feeds = {name: _input(name, asked.inputs[name], model, app.limit_bytes) for name in asked.inputs}
        wanted = list(dict.fromkeys(asked.output_filter)) or list(model.outputs)
        unknown = [name for name in wanted if name not in model.outputs]
        if unknown:
            raise Refused(f"no output {told(unknown[0])}; the model gives: {', '.join(model.outputs)}")
        app.run(model, feeds, request, partial(_write, model, wanted), time_left(request))

    return ask


def _write(model: Model, wanted: list[str], outputs: dict[str, Array]) -> Answer:
    answer = _kind_of("PredictResponse")()
    tell(answer.model_spec, model, SIGNATURE)
    for name in wanted:
        _fill(answer.outputs[name], outputs[name], kind_of(model.outputs[name].dtype))
    return well(answer)


def _input(name: str, given: Any, model: Model, limit_bytes: int) -> Array:
    spec = model.inputs[name]
    kind = kind_of(spec.dtype)
    if given.dtype != DTYPES[kind.word]:
        raise Refused(f"input {name!r}: dtype {given.dtype}, the model takes {kind.word}, which is {DTYPES[kind.word]}")
    if given.tensor_shape.unknown_rank:
        raise Refused(f"input {name!r}: has no shape")
    shape = check_shape(name, [one.size for one in given.tensor_shape.dim], spec)
    if given.tensor_content and kind.word != "BYTES":
        return from_bytes(name, memoryview(given.tensor_content), kind, shape)
    found, count = getattr(given, FIELDS[kind.word]), math.prod(shape)
    if count > len(found):  # the last one stands for all that would follow it, none at all for zeros
        if count * max(kind.dtype.itemsize, 8) > limit_bytes:
            raise Refused(f"input {name!r}: {len(found)} elements, shape {list(shape)} asks for {count}")
        found = [*found, *[found[-1] if found else b"" if kind.word == "BYTES" else 0] * (count - len(found))]
    if FIELDS[kind.word] == "half_val":
        bits = from_list(name, found, Datatype("UINT16", np.dtype("uint16"), "H"), shape)
        return bits.view(kind.dtype)
    return from_list(name, found, kind, shape)


def _fill(into: Any, array: Array, kind: Datatype) -> None:
    """Write a tensor, its elements in the list of its dtype, where TensorFlow Serving's clients look for them."""
    into.dtype = DTYPES[kind.word]
    for size in array.shape:
        into.tensor_shape.dim.add(size=size)
    field = FIELDS[kind.word]
    if field == "half_val":
        array = np.ascontiguousarray(array).view(np.uint16)
    if not packed_into(into, field, array):
        getattr(into, field).extend(to_list(array, kind))


def _metadata(app: App, request: Request) -> Answer:
    asked = parsed(_kind_of("GetModelMetadataRequest"), request.body)
    model = _model(app, request, asked.model_spec)
    unknown = [name for name in asked.metadata_field if name != "signature_def"]
    if unknown or not asked.metadata_field:
        raise Refused(f"metadata_field {told(unknown[0] if unknown else '')}; there is signature_def")
    signatures = _kind_of("SignatureDefMap")()
    signature = signatures.signature_def[SIGNATURE]
    signature.method_name = METHOD_NAME
    for told_of, specs in ((signature.inputs, model.inputs), (signature.outputs, model.outputs)):
        for spec in specs.values():
            info = told_of[spec.name]
            info.name, info.dtype = spec.name, DTYPES[kind_of(spec.dtype).word]
            for size in wire_shape(spec):
                info.tensor_shape.dim.add(size=size)
    answer = _kind_of("GetModelMetadataResponse")()
    tell(answer.model_spec, model)
    answer.metadata["signature_def"].Pack(signatures)
    return well(answer)


def _status(app: App, request: Request) -> Answer:
    spec = parsed(_kind_of("GetModelStatusRequest"), request.body).model_spec
    model = _model(app, request, spec)
    answer = _kind_of("GetModelStatusResponse")()
    for version in [model.version] if _version(spec) else app.models.versions(model.name):
        known = version.isdigit() and int(version) < 2**63
        answer.model_version_status.add(version=int(version) if known else 0, state="AVAILABLE").status.SetInParent()
    return well(answer)
