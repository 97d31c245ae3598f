"""`inference.GRPCInferenceService`: the Open Inference Protocol over gRPC, and Triton's repository and streams.

Tensors come as raw contents or typed ones, and go back as they came; an output that has no typed form (FP16, BF16)
makes all of an answer raw. Sources: the Open Inference Protocol's gRPC specification (kserve/open-inference-protocol);
Triton's grpc_service.proto.
"""

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from modelctl import __version__
from modelctl.serve.changes import LOAD, UNLOAD
from modelctl.serve.grpc.calls import CONTENT_TYPE, METHOD, CallRequest
from modelctl.serve.grpc.contents import FIELDS, from_contents, packed_into, to_list
from modelctl.serve.grpc.messages import message, parsed
from modelctl.serve.grpc.plans import Asked, Plans, front_of, named, recall_answer, remember_answer
from modelctl.serve.http import Answer, App, Handler, Request, Route
from modelctl.serve.jobs import late
from modelctl.serve.models import Model
from modelctl.serve.openinference import EXTENSIONS, NOT_OURS, metadata
from modelctl.serve.refusal import Refused, told
from modelctl.serve.repository import index
from modelctl.serve.tensors import Array, Datatype, check_shape, datatype_of, from_bytes, to_bytes

SERVICE = "inference.GRPCInferenceService"


def _kind_of(name: str) -> Any:
    return message(f"inference.{name}")


InferRequest = _kind_of("ModelInferRequest")
InferResponse = _kind_of("ModelInferResponse")


def well(made: Any) -> Answer:
    """The answer that a message is."""
    return Answer(made.SerializeToString(), CONTENT_TYPE)


def routes(app: App) -> Iterable[Route]:
    """The methods of the service."""
    about = _kind_of("ServerMetadataResponse")(name="modelctl", version=__version__, extensions=EXTENSIONS)
    methods: dict[str, Handler] = {
        "ServerLive": lambda _: well(_kind_of("ServerLiveResponse")(live=True)),
        "ServerReady": lambda _: well(_kind_of("ServerReadyResponse")(ready=app.ready)),
        "ServerMetadata": lambda _: well(about),
        "ModelReady": partial(_model_ready, app),
        "ModelMetadata": partial(_model_metadata, app),
        "ModelInfer": infer(app),
        "RepositoryIndex": partial(_repository_index, app),
        "RepositoryModelLoad": partial(_change, app, LOAD, "RepositoryModelLoad"),
        "RepositoryModelUnload": partial(_change, app, UNLOAD, "RepositoryModelUnload"),
    }
    for name, handler in methods.items():
        yield Route(METHOD, f"/{SERVICE}/{name}", handler)


def _asked_for(app: App, kind: str, request: Request) -> Model:
    """The model that a message names."""
    asked = parsed(_kind_of(kind), request.body)
    request.model = model = app.models.get(asked.name, asked.version or None)
    if request.visit is not None:
        request.visit.check(model.name)
    return model


def _model_ready(app: App, request: Request) -> Answer:
    try:
        _asked_for(app, "ModelReadyRequest", request)
    except Refused as refused:
        if refused.status != 404:
            raise
        return well(_kind_of("ModelReadyResponse")(ready=False))
    return well(_kind_of("ModelReadyResponse")(ready=app.ready))


def _model_metadata(app: App, request: Request) -> Answer:
    model = _asked_for(app, "ModelMetadataRequest", request)
    return well(_kind_of("ModelMetadataResponse")(**metadata(model, app.models.versions(model.name))))


def _repository_index(app: App, request: Request) -> Answer:
    asked = parsed(_kind_of("RepositoryIndexRequest"), request.body)
    found = [one for one in index(app, request) if one["state"] == "READY" or not asked.ready]
    return well(_kind_of("RepositoryIndexResponse")(models=found))


def _change(app: App, kind: str, name: str, request: Request) -> None:
    asked = parsed(_kind_of(f"{name}Request"), request.body)
    if request.visit is not None:
        request.visit.check(asked.model_name)
    if app.changes is None:
        raise Refused("models can't be changed here", 501)

    def done(refused: Refused | None) -> None:
        if refused is None:
            request.reply(well(_kind_of(f"{name}Response")()))
        else:
            app.refuse(request, refused)

    app.changes.ask(kind, asked.model_name, done)


def infer(app: App) -> Handler:
    """What answers ModelInfer: the beginning of a message says which model is meant."""
    handlers: dict[bytes, Handler] = {}
    for name in app.models.names():
        handlers[named(name)] = app.shared(name, partial(_infer, app))[0]
        for version in app.models.versions(name):
            handlers[named(name, version)] = _infer(app, app.models.get(name, version))

    def lead(request: Request) -> Answer | None:
        body = request.body
        handler = handlers.get(front_of(body))
        if handler is None:
            asked = parsed(InferRequest, body)
            name, version = asked.model_name, asked.model_version
            if named(name, version) not in handlers:
                app.models.get(name, version or None)
            handler = handlers[named(name, version)]
        return handler(request)

    return lead


def _infer(app: App, model: Model) -> Handler:
    plans = Plans()

    def ask(request: Request) -> None:
        assert isinstance(request, CallRequest)
        request.model = model
        asked = plans.recall(request.body)
        if asked is None:
            given = parsed(InferRequest, request.body)
            asked = read(given, model)
            plans.remember(request.body, given, asked, model)
        app.run(model, asked.feeds, request, lambda outputs: write(asked, outputs, model), time_left(request))

    return ask


def time_left(request: CallRequest) -> float | None:
    """Seconds that a call's client waits for its answer; None: it does not say. `Refused` 504 when they are over."""
    if request.deadline is None:
        return None
    left = request.deadline - time.monotonic()
    if left <= 0:
        raise late()
    return left


def read(given: Any, model: Model) -> Asked:
    """An inference request, checked against what the model takes; `Refused` says what is wrong."""
    if given.model_name != model.name or given.model_version not in ("", model.version):
        raise Refused("model_name or model_version is given twice")
    _check_parameters(given, "the request")
    raws = given.raw_input_contents
    if raws and len(raws) != len(given.inputs):
        raise Refused(f"{len(raws)} raw_input_contents for {len(given.inputs)} inputs")
    feeds: dict[str, Array] = {}
    for place, one in enumerate(given.inputs):
        if one.name not in model.inputs:
            raise Refused(f"no input {told(one.name)}; the model takes: {', '.join(model.inputs)}")
        if one.name in feeds:
            raise Refused(f"input {one.name!r} is given twice")
        feeds[one.name] = _input(one, raws[place] if raws else None, model)
    missing = [name for name in model.inputs if name not in feeds]
    if missing:
        raise Refused(f"input {missing[0]!r} is missing; the model takes: {', '.join(model.inputs)}")
    return Asked(given.id, feeds, _outputs(given.outputs, model), bool(raws) or not given.inputs)


def _check_parameters(holder: Any, what: str) -> None:
    for name in NOT_OURS:
        if name in holder.parameters:
            raise Refused(f"{what}: the {name} extension is not offered")


def _input(one: Any, raw: bytes | None, model: Model) -> Array:
    """One input tensor, out of its raw contents or its typed ones."""
    spec = model.inputs[one.name]
    kind = kind_of(spec.dtype)
    _check_parameters(one, f"input {one.name!r}")
    if one.datatype != kind.word:
        raise Refused(f"input {one.name!r}: datatype {told(one.datatype)}, the model takes {kind.word}")
    shape = check_shape(one.name, list(one.shape), spec)
    if raw is None:
        return from_contents(one.name, one.contents, kind, shape)
    if one.HasField("contents") and one.contents.ListFields():
        raise Refused(f"input {one.name!r}: has contents beside raw_input_contents")
    return from_bytes(one.name, memoryview(raw), kind, shape)


def _outputs(wanted: Any, model: Model) -> tuple[str, ...]:
    """The outputs to be sent; all of them if none is asked for."""
    for one in wanted:
        if one.name not in model.outputs:
            raise Refused(f"no output {told(one.name)}; the model gives: {', '.join(model.outputs)}")
        _check_parameters(one, f"output {one.name!r}")
    names = tuple(one.name for one in wanted)
    if len(set(names)) != len(names):
        raise Refused("an output is asked for twice")
    return names or tuple(model.outputs)


def write(asked: Asked, outputs: dict[str, Array], model: Model) -> Answer:
    """The answer to an inference request."""
    known = recall_answer(asked, outputs)
    if known is not None:
        return Answer(known, CONTENT_TYPE)
    answer = InferResponse(model_name=model.name, model_version=model.version, id=asked.id)
    kinds = {name: kind_of(model.outputs[name].dtype) for name in asked.outputs}
    raw = asked.raw or any(kind.word not in FIELDS for kind in kinds.values())
    for name, kind in kinds.items():
        one = answer.outputs.add(name=name, datatype=kind.word, shape=outputs[name].shape)
        if raw:
            answer.raw_output_contents.append(to_bytes(outputs[name], kind))
        else:
            one.contents.SetInParent()
            if not packed_into(one.contents, FIELDS[kind.word], outputs[name]):
                getattr(one.contents, FIELDS[kind.word]).extend(to_list(outputs[name], kind))
    body: bytes = answer.SerializeToString()
    if raw:
        remember_answer(asked, outputs, model, body)
    return Answer(body, CONTENT_TYPE)


def kind_of(dtype: str) -> Datatype:
    """The datatype of a model's tensor."""
    kind = datatype_of(dtype)
    assert kind is not None, dtype  # a model with another dtype is not taken in
    return kind
