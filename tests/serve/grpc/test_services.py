"""The other services, gRPC-Web, and what all ways to a model have in common."""

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import descriptors
import numpy as np
import pytest
import servers
from google.protobuf import descriptor_pb2
from h2peer import Caller
from servers import Running

from modelctl.artifact import Artifact
from modelctl.making import Origin, create
from modelctl.options import PushOptions, StepOptions
from modelctl.serve.grpc import calls
from modelctl.serve.grpc.calls import framed
from modelctl.serve.grpc.messages import FILES, SERVICES, message
from modelctl.serve.grpc.tensorflow import DTYPES, FIELDS
from modelctl.serve.http2 import frames
from modelctl.serve.tensors import DATATYPES
from modelctl.steps.push import push

INFER = "/inference.GRPCInferenceService/ModelInfer"
HEALTH = "/grpc.health.v1.Health"
X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def caller(server: Running) -> Iterator[Caller]:
    """A connection to the server of the zoo."""
    with closing(Caller(server.port)) as found:
        yield found


def affine(model: str = "affine", version: str = "") -> bytes:
    request = message("inference.ModelInferRequest")(model_name=model, model_version=version)
    request.inputs.add(name="x", datatype="FP32", shape=X.shape)
    request.raw_input_contents.append(X.tobytes())
    return bytes(request.SerializeToString())


def code_of(trailers: dict[str, str]) -> int:
    return int(trailers["grpc-status"])


@pytest.mark.real_parts
def test_descriptors_are_those_of_the_schemas() -> None:
    pytest.importorskip("grpc_tools", reason="pip install grpcio-tools")
    compiled, kept = (
        descriptor_pb2.FileDescriptorSet.FromString(one)
        for one in (descriptors.compiled(), descriptors.COMPILED.read_bytes())
    )
    assert compiled == kept, "run: python tests/descriptors.py"


def test_every_schema_is_compiled() -> None:
    assert {one.name for one in descriptors.SCHEMAS.glob("*.proto")} <= FILES.keys()


def test_health_is_told_of_the_server_its_services_and_models(caller: Caller) -> None:
    kind, status = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")
    for name in ("", "inference.GRPCInferenceService", "affine"):
        body, trailers = caller.call(f"{HEALTH}/Check", kind(service=name).SerializeToString())
        assert (code_of(trailers), status.FromString(body).status) == (calls.OK, status.SERVING)
    assert code_of(caller.call(f"{HEALTH}/Check", kind(service="none").SerializeToString())[1]) == calls.NOT_FOUND
    watch = caller.begin(f"{HEALTH}/Watch", kind(service="none").SerializeToString())
    caller.wait(lambda: watch in caller.replies and caller.replies[watch].body)
    assert status.FromString(caller.replies[watch].body[5:]).status == status.SERVICE_UNKNOWN


def test_who_watches_is_told_of_a_change(zoo: dict[str, Path]) -> None:
    kind, status = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")
    change = message("inference.RepositoryModelUnloadRequest")(model_name="log").SerializeToString()
    with servers.running([zoo["affine"], zoo["log"]]) as server, closing(Caller(server.port)) as caller:
        watch = caller.begin(f"{HEALTH}/Watch", kind(service="log").SerializeToString())
        caller.wait(lambda: watch in caller.replies and caller.replies[watch].body)
        told = caller.call("/inference.GRPCInferenceService/RepositoryModelUnload", change)[1]
        assert code_of(told) == calls.OK
        caller.wait(lambda: len(caller.replies[watch].body) > 7)
        found = [status.FromString(one).status for one in caller.replies[watch].body.split(b"\0\0\0\0\x02")[1:]]
        assert found == [status.SERVING, status.SERVICE_UNKNOWN]
        body, _ = caller.call("/inference.GRPCInferenceService/RepositoryIndex", b"")
        index = message("inference.RepositoryIndexResponse").FromString(body)
        assert {one.name: one.state for one in index.models} == {"affine": "READY", "log": "UNAVAILABLE"}
        body, _ = caller.call("/inference.GRPCInferenceService/RepositoryIndex", b"\x10\x01")
        assert [one.name for one in message("inference.RepositoryIndexResponse").FromString(body).models] == ["affine"]
        for name, code in (("log", calls.OK), ("none", calls.NOT_FOUND)):
            wanted = message("inference.RepositoryModelLoadRequest")(model_name=name).SerializeToString()
            assert code_of(caller.call("/inference.GRPCInferenceService/RepositoryModelLoad", wanted)[1]) == code
        caller.feed(frames.rst_stream(watch, frames.Code.CANCEL))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_tells_every_file(caller: Caller, version: str) -> None:
    package = f"grpc.reflection.{version}"
    asked, told = message(f"{package}.ServerReflectionRequest"), message(f"{package}.ServerReflectionResponse")

    def ask(**what: Any) -> Any:
        path = f"/{package}.ServerReflection/ServerReflectionInfo"
        return told.FromString(caller.call(path, asked(host="x", **what).SerializeToString())[0])

    found = ask(list_services="*")
    assert found.valid_host == "x"
    assert [one.name for one in found.list_services_response.service] == SERVICES
    for name in ("tensorflow.serving.PredictionService", "tensorflow.serving.PredictionService.Predict"):
        files = ask(file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
        names = [descriptor_pb2.FileDescriptorProto.FromString(one).name for one in files]
        assert names[0] == "tensorflow_serving.proto"
        assert set(names) >= {"tensorflow_tensor.proto", "google/protobuf/any.proto"}
    assert len(ask(file_by_filename="health.proto").file_descriptor_response.file_descriptor_proto) == 1
    assert ask(file_by_filename="none.proto").error_response.error_code == calls.NOT_FOUND
    assert ask(file_containing_symbol="no.such.Thing").error_response.error_code == calls.NOT_FOUND
    extensions = ask(all_extension_numbers_of_type="inference.ModelInferRequest").all_extension_numbers_response
    assert extensions.base_type_name == "inference.ModelInferRequest"
    assert ask().error_response.error_code == calls.NOT_FOUND


def predict(caller: Caller, name: str, **tensors: Any) -> tuple[Any, dict[str, str]]:
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = name
    for key, (dtype, shape, field, values) in tensors.items():
        tensor = request.inputs[key]
        tensor.dtype = dtype
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        if field == "tensor_content":
            tensor.tensor_content = values
        else:
            getattr(tensor, field).extend(values)
    body, trailers = caller.call("/tensorflow.serving.PredictionService/Predict", request.SerializeToString())
    return message("tensorflow.serving.PredictResponse").FromString(body), trailers


def test_tensorflow_servings_clients_predict(server: Running, caller: Caller) -> None:
    expected = server.ask("/predict/affine", {"instances": X.tolist()}).json["outputs"]["y"]
    for field, values in (("float_val", X[0].tolist()), ("tensor_content", X.tobytes())):
        found, trailers = predict(caller, "affine", x=(1, (1, 4), field, values))
        assert (found.model_spec.name, found.model_spec.version.value) == ("affine", 1)
        assert found.model_spec.signature_name == "serving_default"
        y = found.outputs["y"]
        assert (y.dtype, [one.size for one in y.tensor_shape.dim]) == (1, [1, 3])
        np.testing.assert_array_equal(np.array(y.float_val, np.float32), np.array(expected[0], np.float32))
        assert trailers["modelctl-model"].startswith("affine@sha256:")
    found, _ = predict(caller, "affine", x=(1, (2, 4), "float_val", [1.0]))  # the last one stands for the rest
    assert found.outputs["y"].float_val[:3] == found.outputs["y"].float_val[3:]
    found, _ = predict(caller, "words", x=(7, (1, 2), "string_val", [b"a", "grüße".encode()]))
    assert list(found.outputs["y"].string_val) == [b"a", "grüße".encode()]
    found, _ = predict(caller, "half", x=(19, (1, 2), "half_val", [0x3C00, 0xC000]))
    assert list(found.outputs["y"].half_val) == [0x3C00, 0xC000]
    found, _ = predict(caller, "brain", x=(14, (1, 2), "half_val", [0x3F80, 0xC000]))
    assert list(found.outputs["y"].half_val) == [0x3F80, 0xC000]
    found, _ = predict(caller, "bits", x=(10, (1, 2), "bool_val", [True, False]))
    assert list(found.outputs["y"].bool_val) == [True, False]
    found, _ = predict(caller, "lookup", x=(9, (2,), "int64_val", [4, 1]))
    assert list(found.outputs["y"].float_val) == [40.0, 10.0]
    assert DTYPES.keys() == FIELDS.keys() == DATATYPES.keys()


def test_what_tensorflow_servings_clients_get_wrong_is_told(caller: Caller) -> None:
    def told(**tensors: Any) -> str:
        trailers = predict(caller, "affine", **tensors)[1]
        assert code_of(trailers) == calls.INVALID_ARGUMENT
        return trailers["grpc-message"]

    assert "input 'x' is missing" in told()
    assert "no input 'z'" in told(z=(1, (1, 4), "float_val", [1.0]))
    assert "the model takes FP32" in told(x=(2, (1, 4), "double_val", [1.0]))
    assert "the model takes [-1, 4]" in told(x=(1, (1, 5), "float_val", [1.0]))
    assert "asks for 16" in told(x=(1, (1, 4), "tensor_content", b"123"))
    assert "asks for 4000000" in told(x=(1, (1_000_000, 4), "float_val", [1.0]))  # nothing is made of a mere claim
    assert "5 elements" in told(x=(1, (1, 4), "float_val", [1.0] * 5))
    assert code_of(predict(caller, "none")[1]) == calls.NOT_FOUND


def examples(caller: Caller, verb: str, name: str, context: Any = None, *each: Any, signature: str = "") -> Any:
    """The answer of Classify or Regress, and its trailers; features are by name, and by list."""
    kind = {"Classify": "Classification", "Regress": "Regression"}[verb]
    request = message(f"tensorflow.serving.{kind}Request")()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    held = request.input.example_list if context is None else request.input.example_list_with_context
    held.SetInParent()
    for one, features in [*([] if context is None else [(held.context, context)]), *((None, each) for each in each)]:
        into = (held.examples.add() if one is None else one).features.feature
        for key, (field, values) in features.items():
            getattr(into[key], field).value.extend(values)
    body, trailers = caller.call(f"/tensorflow.serving.PredictionService/{verb}", request.SerializeToString())
    return message(f"tensorflow.serving.{kind}Response").FromString(body), trailers


def test_examples_are_classified_and_regressed_as_over_rest(server: Running, caller: Caller) -> None:
    first, second = [1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]
    asked = {"examples": [{"x": first}, {"x": second}]}
    expected = server.ask("/v1/models/affine:classify", asked).json["results"]
    each = [{"x": ("float_list", one)} for one in (first, second)]
    for signature in ("", "serving_default", "tensorflow/serving/classify"):
        found, trailers = examples(caller, "Classify", "affine", None, *each, signature=signature)
        assert (found.model_spec.name, found.model_spec.version.value) == ("affine", 1)
        assert found.model_spec.signature_name == "serving_default"
        classes = [[(one.label, one.score) for one in each.classes] for each in found.result.classifications]
        assert classes == [[("", np.float32(score)) for _, score in one] for one in expected]
        assert trailers["modelctl-model"].startswith("affine@sha256:")
    found, _ = examples(caller, "Classify", "affine", each[1], {}, {})
    assert [[one.score for one in each.classes] for each in found.result.classifications] == [
        [np.float32(score) for _, score in expected[1]]
    ] * 2
    found, _ = examples(caller, "Classify", "pair", {"a": ("float_list", [0.5, 1])}, {"b": ("int64_list", [2, -3])})
    assert [one.score for one in found.result.classifications[0].classes] == [2.5, -2.0]
    found, _ = examples(caller, "Regress", "log", None, {"x": ("float_list", [1])}, {"x": ("float_list", [0])})
    assert [one.value for one in found.result.regressions] == [0.0, -np.inf]
    found, _ = examples(caller, "Regress", "lookup", None, *({"x": ("int64_list", [one])} for one in (4, 1)))
    assert [one.value for one in found.result.regressions] == [40.0, 10.0]
    found, _ = examples(caller, "Classify", "half", None, {"x": ("float_list", [1.5, np.nan])})
    np.testing.assert_array_equal([one.score for one in found.result.classifications[0].classes], [1.5, np.nan])


def test_what_is_wrong_with_examples_is_told(caller: Caller) -> None:
    def told(model: str, *given: Any, verb: str = "Classify", code: int = calls.INVALID_ARGUMENT, **more: Any) -> str:
        _, trailers = examples(caller, verb, model, *given, **more)
        assert code_of(trailers) == code
        return str(trailers["grpc-message"])

    row = {"x": ("float_list", [1, 2, 3, 4])}
    assert "there are no examples" in told("affine", None)
    assert "there are no examples" in told("affine", row)
    assert "input 'x' is missing" in told("affine", None, row, {})
    assert "no input 'z'" in told("affine", None, row | {"z": ("float_list", [1])})
    assert "in the context and in an example" in told("affine", row, row)
    assert "has 3 values" in told("affine", None, {"x": ("float_list", [1, 2, 3])})
    assert "FP32 goes into float_list, not into int64_list" in told("affine", None, {"x": ("int64_list", [1] * 4)})
    assert "has 0 values" in told("affine", None, {"x": ("float_list", [])})
    assert "out of FP16's range" in told("half", None, {"x": ("float_list", [1e6, 1])})
    assert "BYTES goes into bytes_list" in told("words", None, {"x": ("float_list", [1, 2])})
    assert "not UTF-8" in told("words", None, {"x": ("bytes_list", [b"\xff", b""])})
    assert "neither 0 nor 1" in told("bits", None, {"x": ("int64_list", [0, 2])})
    assert "no output to classify with" in told("bits", None, {"x": ("int64_list", [0, 1])})
    assert "no output to regress with" in told("affine", None, row, verb="Regress")
    assert "no signature 'tensorflow/serving/regress'" in told(
        "affine", None, row, signature="tensorflow/serving/regress"
    )
    assert "no model 'none'" in told("none", None, row, code=calls.NOT_FOUND)
    large = {"x": ("bytes_list", [b"a" * 400_000] * 2)}
    assert "context is too large" in told("words", large, *[{}] * 99, code=calls.RESOURCE_EXHAUSTED)


def test_tensorflow_servings_clients_are_told_of_models(caller: Caller) -> None:
    request = message("tensorflow.serving.GetModelMetadataRequest")(metadata_field=["signature_def"])
    request.model_spec.name = "pair"
    body, _ = caller.call("/tensorflow.serving.PredictionService/GetModelMetadata", request.SerializeToString())
    found = message("tensorflow.serving.GetModelMetadataResponse").FromString(body)
    signatures = message("tensorflow.serving.SignatureDefMap")()
    assert found.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert {name: one.dtype for name, one in signature.inputs.items()} == {"a": 1, "b": 9}
    assert [one.size for one in signature.outputs["sum"].tensor_shape.dim] == [-1, 2]
    status = message("tensorflow.serving.GetModelStatusRequest")()
    status.model_spec.name = "pair"
    path = "/tensorflow.serving.ModelService/GetModelStatus"
    body, _ = caller.call(path, status.SerializeToString())
    (one,) = message("tensorflow.serving.GetModelStatusResponse").FromString(body).model_version_status
    assert (one.version, one.state) == (1, 30)
    status.model_spec.version.value = 7
    assert code_of(caller.call(path, status.SerializeToString())[1]) == calls.NOT_FOUND
    status.model_spec.version_label = "1"
    assert code_of(caller.call(path, status.SerializeToString())[1]) == calls.OK


def web(
    server: Running, path: str, body: bytes, kind: str = "application/grpc-web"
) -> tuple[list[bytes], dict[str, str]]:
    """Messages and trailers of a call by POST."""
    answer = server.ask(path, body, content_type=kind)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == kind
    data = base64.b64decode(answer.body) if "text" in kind else answer.body
    messages, trailers = [], {}
    while data:
        end = 5 + int.from_bytes(data[1:5], "big")
        if data[0] == 0x80:
            assert end == len(data)
            trailers = dict(one.split(": ", 1) for one in data[5:end].decode().split("\r\n")[:-1])
        else:
            messages.append(data[5:end])
        data = data[end:]
    return messages, trailers


def test_browsers_call_by_post(server: Running, caller: Caller) -> None:
    expected, _ = caller.call(INFER, affine())
    body = framed(affine())
    for kind in ("application/grpc-web", "application/grpc-web+proto"):
        messages, trailers = web(server, INFER, body, kind)
        assert messages == [expected]
        assert trailers["grpc-status"] == "0"
        assert trailers["modelctl-model"].startswith("affine@sha256:")
    for text in (base64.b64encode(body), base64.b64encode(body[:7]) + base64.b64encode(body[7:])):
        assert web(server, INFER, text, "application/grpc-web-text")[0] == [expected]
    stream = "/inference.GRPCInferenceService/ModelStreamInfer"
    messages, trailers = web(server, stream, body * 40 + framed(b"\xff") + body)
    assert len(messages) == 42
    assert trailers["grpc-status"] == "0"
    assert message("inference.ModelStreamInferResponse").FromString(messages[-1]).infer_response.outputs


def test_what_browsers_get_wrong_is_told(server: Running) -> None:
    def code(body: bytes, path: str = INFER, kind: str = "application/grpc-web") -> int:
        messages, trailers = web(server, path, body, kind)
        assert messages == []
        return int(trailers["grpc-status"])

    assert code(b"") == calls.INVALID_ARGUMENT
    assert code(framed(affine())[:-1]) == calls.INVALID_ARGUMENT
    assert code(framed(affine()) * 2) == calls.INVALID_ARGUMENT
    assert code(b"!", kind="application/grpc-web-text") == calls.INVALID_ARGUMENT
    assert code(framed(affine("none"))) == calls.NOT_FOUND
    assert code(b"", f"{HEALTH}/Watch") == calls.INVALID_ARGUMENT
    assert code(framed(b"\xff"), f"{HEALTH}/Watch") == calls.INVALID_ARGUMENT
    stream = "/inference.GRPCInferenceService/ModelStreamInfer"
    assert code(framed(b"") * 1001, stream) == calls.INVALID_ARGUMENT
    assert server.ask(INFER, b"{}", content_type="application/json").status == 415
    assert server.ask(INFER).status == 405
    assert server.ask("/inference.GRPCInferenceService/None", b"", content_type="application/grpc-web").status == 404


def test_calls_go_by_shares_and_shadows(tmp_path: Path) -> None:
    refs = []
    for tag in ("stable", "next"):
        root, out = servers.affine(tmp_path / f"{tag}.onnx"), tmp_path / tag / "m.onnx"
        out.parent.mkdir()
        with create(out, Origin("export", StepOptions(), (Artifact.open(root),))) as draft:
            draft.path.write_bytes(root.read_bytes())
        refs.append(f"sqlite:///{tmp_path}/models.db/m:{tag}")
        push(Artifact.open(out), refs[-1], PushOptions())
    with (
        servers.running(refs, "--route", "m:stable=50,m:next=50", "--shadow", "m:next") as server,
        closing(Caller(server.port)) as caller,
    ):
        versions = set()
        for _ in range(40):
            body, _ = caller.call(INFER, affine("m"))
            versions.add(message("inference.ModelInferResponse").FromString(body).model_version)
        assert versions == {"stable", "next"}
        body, _ = caller.call(INFER, affine("m", "next"))
        assert message("inference.ModelInferResponse").FromString(body).model_version == "next"
        assert server.metric("modelctl_requests_total", model="m") == 41
        shadowed = server.metric("modelctl_shadow_requests_total", model="m", version="next")
        assert shadowed == server.metric("modelctl_requests_total", model="m", version="stable")


def test_rest_answers_over_http2(server: Running, caller: Caller) -> None:
    def ask(number: int, method: str, path: str, body: bytes = b"") -> Any:
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]
        caller.feed(caller.headers(number, fields), frames.frame(frames.DATA, frames.END_STREAM, number, body))
        caller.wait(lambda: number in caller.replies and caller.replies[number].ended)
        return caller.replies[number]

    over_1 = server.ask("/predict/affine", {"instances": X.tolist()})
    found = ask(1, "POST", "/predict/affine", json.dumps({"instances": X.tolist()}).encode())
    assert found.headers[":status"] == "200"
    assert found.body == over_1.body
    assert found.headers["modelctl-model"] == over_1.headers["modelctl-model"]
    assert found.headers["content-length"] == str(len(found.body))
    head = ask(3, "HEAD", "/v2")
    assert (head.body, head.headers[":status"]) == (b"", "200")
    assert ask(5, "GET", "/nothing").headers[":status"] == "404"
    assert ask(7, "DELETE", "/v2").headers["allow"] == "GET, HEAD"
    assert ask(9, "POST", "/predict/affine", b"{").headers[":status"] == "400"
