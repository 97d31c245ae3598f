"""gRPC clients that people use, asked to talk to a real server."""

import json
import os
import queue
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import page_models
import pytest
import servers
from servers import Running

from modelctl.data import digits

pytestmark = [
    pytest.mark.real_parts,
    pytest.mark.filterwarnings("ignore"),  # these clients' own
]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    """Triton's client."""
    pytest.importorskip("grpc", reason="pip install grpcio")
    triton: Any = pytest.importorskip("tritonclient.grpc", reason="pip install tritonclient grpcio")
    found = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield found
    found.close()


def infer(client: Any, model: str, inputs: dict[str, tuple[str, Any]], outputs: list[str], **more: Any) -> Any:
    triton: Any = import_module("tritonclient.grpc")
    asked = []
    for name, (datatype, array) in inputs.items():
        one = triton.InferInput(name, list(array.shape), datatype)
        one.set_data_from_numpy(array)
        asked.append(one)
    return client.infer(model, asked, outputs=[triton.InferRequestedOutput(one) for one in outputs], **more)


def test_tritonclient_is_told_what_there_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pair")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata().name == "modelctl"
    told = client.get_model_metadata("pair", as_json=True)
    assert [one["name"] for one in told["outputs"]] == ["sum", "twice"]
    assert {one.name: one.state for one in client.get_model_repository_index().models}["pair"] == "READY"


def test_tritonclient_has_tensors_computed(client: Any) -> None:
    for turn in range(3):  # as they are read first, and as they are remembered
        a, b = np.array([[0.5, 1.5 + turn]], np.float32), np.array([[2, -3]], np.int64)
        asked = {"a": ("FP32", a), "b": ("INT64", b)}
        answer = infer(client, "pair", asked, ["twice", "sum"], request_id=f"{turn}")
        assert answer.get_response().id == f"{turn}"
        np.testing.assert_array_equal(answer.as_numpy("sum"), a + b)
        np.testing.assert_array_equal(answer.as_numpy("twice"), b * 2)
    words = np.array([["a", "grüße"]], dtype=object)
    echoed = infer(client, "words", {"x": ("BYTES", words)}, ["y"]).as_numpy("y")
    assert [one.decode() for one in echoed.reshape(-1)] == ["a", "grüße"]
    truth = np.array([[True, False]])
    np.testing.assert_array_equal(infer(client, "bits", {"x": ("BOOL", truth)}, ["y"]).as_numpy("y"), truth)
    half = np.array([[1.5, -2.0]], np.float16)
    np.testing.assert_array_equal(infer(client, "half", {"x": ("FP16", half)}, ["y"]).as_numpy("y"), half)
    brain = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(infer(client, "brain", {"x": ("BF16", brain)}, ["y"]).as_numpy("y"), brain)


def test_tritonclient_is_told_what_is_wrong(client: Any) -> None:
    exceptions: Any = import_module("tritonclient.utils")
    x = np.ones((1, 4), np.float32)
    for model, inputs, told in (
        ("none", {"x": ("FP32", x)}, "NOT_FOUND.*no model 'none'"),
        ("affine", {"z": ("FP32", x)}, "INVALID_ARGUMENT.*no input 'z'"),
        ("affine", {"x": ("FP32", x[:, :3])}, "INVALID_ARGUMENT.*the model takes"),
    ):
        with pytest.raises(exceptions.InferenceServerException, match=told):
            infer(client, model, inputs, ["y"])
    slow = {"x": ("FP32", np.ones((1, 256), np.float32))}
    with pytest.raises(exceptions.InferenceServerException, match=re.compile("deadline", re.IGNORECASE)):
        infer(client, "slow", slow, ["y"], client_timeout=0.0005)
    assert infer(client, "slow", slow, ["y"], client_timeout=20).as_numpy("y").shape == (1, 256)
    large = np.ones((70_000, 4), np.float32)
    with pytest.raises(exceptions.InferenceServerException, match=r"RESOURCE_EXHAUSTED.*larger than 1000000 bytes"):
        infer(client, "affine", {"x": ("FP32", large)}, ["y"])
    assert infer(client, "affine", {"x": ("FP32", large[:60_000])}, ["y"]).as_numpy("y").shape == (60_000, 3)


def test_tritonclient_compresses(client: Any) -> None:
    x = np.ones((2_000, 4), np.float32)
    found = infer(client, "affine", {"x": ("FP32", x)}, ["y"], compression_algorithm="gzip")
    assert found.as_numpy("y").shape == (2_000, 3)


def test_tritonclient_streams(client: Any) -> None:
    triton: Any = import_module("tritonclient.grpc")
    told: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: told.put((result, error)))
    for turn in range(50):
        x = np.full((1, 4 if turn != 20 else 3), turn, np.float32)
        one = triton.InferInput("x", list(x.shape), "FP32")
        one.set_data_from_numpy(x)
        client.async_stream_infer("affine", [one], request_id=str(turn))
    for turn in range(50):
        result, error = told.get(timeout=20)
        assert (error is not None) == (turn == 20)
        assert error is not None or result.get_response().id == str(turn)
    client.stop_stream()


def test_tritonclient_loads_and_unloads(client: Any) -> None:
    client.unload_model("lookup")
    assert not client.is_model_ready("lookup")
    client.load_model("lookup")
    assert client.is_model_ready("lookup")


def test_grpcio_has_examples_classified_by_the_labels_that_are_declared(tmp_path: Path) -> None:
    grpcio: Any = pytest.importorskip("grpc", reason="pip install grpcio")
    pytest.importorskip("PIL", reason="pip install pillow")
    message: Any = import_module("modelctl.serve.grpc.messages").message
    with np.load(digits.path()) as held:
        pixels = held["x"][:3].reshape(3, -1).astype(np.float32).tolist()
    asked = message("tensorflow.serving.ClassificationRequest")()
    asked.model_spec.name = "digits"
    for row in pixels:
        asked.input.example_list.examples.add().features.feature["x"].float_list.value.extend(row)
    answered = message("tensorflow.serving.ClassificationResponse").FromString
    with servers.running([page_models.readable(tmp_path)]) as server:
        body = {"examples": [{"x": row} for row in pixels]}
        expected = server.ask("/v1/models/digits:classify", body).json["results"]
        with grpcio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            service = "/tensorflow.serving.PredictionService"
            found = channel.unary_unary(f"{service}/Classify", type(asked).SerializeToString, answered)(
                asked, timeout=20
            )
            for one, rest in zip(found.result.classifications, expected, strict=True):
                assert [each.label for each in one.classes] == [label for label, _ in rest]
                np.testing.assert_allclose(
                    [each.score for each in one.classes], [score for _, score in rest], rtol=1e-6
                )
            assert [len(one.classes) for one in found.result.classifications] == [10, 10, 10]
            with pytest.raises(grpcio.RpcError, match="no output to regress with"):
                channel.unary_unary(f"{service}/Regress", type(asked).SerializeToString)(asked, timeout=20)
            with pytest.raises(grpcio.RpcError, match=r"grpc\.reflection\.v1 tells which there are"):
                channel.unary_unary(f"{service}/MultiInference")(b"", timeout=20)
        assert server.stop() == (0, "")


def test_our_numbers_are_those_of_the_public_contracts() -> None:
    pytest.importorskip("grpc", reason="pip install grpcio")
    theirs: Any = pytest.importorskip("tritonclient.grpc.service_pb2", reason="pip install tritonclient grpcio")
    pool: Any = import_module("modelctl.serve.grpc.messages").POOL

    def same(one: Any, other: Any) -> None:
        for field in one.fields:
            found = other.fields_by_number[field.number]
            assert (found.name, found.type, found.is_repeated) == (field.name, field.type, field.is_repeated)
            assert (field.containing_oneof is None) == (found.containing_oneof is None)
            if field.message_type is not None and field.message_type.containing_type is not None:
                same(field.message_type, found.message_type)

    service = pool.FindServiceByName("inference.GRPCInferenceService")
    other = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in service.methods:
        found = other.methods_by_name[method.name]
        same(method.input_type, found.input_type)
        same(method.output_type, found.output_type)
    same(
        pool.FindMessageTypeByName("inference.InferTensorContents"),
        theirs.DESCRIPTOR.message_types_by_name["InferTensorContents"],
    )


@pytest.fixture
def buf(server: Running, tmp_path: Path) -> Any:
    """`buf curl`, which asks by reflection what it may ask."""
    if shutil.which("buf") is None:
        pytest.skip("npm install -g @bufbuild/buf")

    def ask(method: str, *flags: str, **message: Any) -> subprocess.CompletedProcess[str]:
        url = f"http://127.0.0.1:{server.port}/{method}"
        command = ["buf", "curl", "--http2-prior-knowledge", *flags, "-d", json.dumps(message), url]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "HOME": str(tmp_path)},
        )

    return ask


@pytest.mark.parametrize("protocol", ["grpc", "grpcweb"])
def test_buf_curl(buf: Any, protocol: str) -> None:
    contents = {"fp32_contents": [1, 2, 3, 4]}
    asked = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": contents}
    method = "inference.GRPCInferenceService/ModelInfer"
    found = buf(method, "--protocol", protocol, model_name="affine", inputs=[asked])
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["outputs"][0]["contents"]["fp32Contents"]) == 3
    refused = buf(method, "--protocol", protocol, model_name="none")
    assert refused.returncode != 0
    assert json.loads(refused.stderr)["code"] == "not_found"


def test_curl_with_prior_knowledge(server: Running, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("apt-get install curl")
    body = tmp_path / "body.json"
    body.write_text("[[1, 2, 3, 4]" + ", [1, 2, 3, 4]" * 40_000 + "]")  # half a megabyte, in many frames
    command = [
        "curl",
        "-sS",
        "--http2-prior-knowledge",
        "-w",
        "%{http_version} %{http_code}",
        "--data-binary",
        f"@{body}",
    ]
    command.append(f"http://127.0.0.1:{server.port}/predict/affine")
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert found.endswith("2 200")
    assert len(json.loads(found.removesuffix("2 200"))["outputs"]["y"]) == 40_001


@pytest.mark.parametrize(("connections", "streams"), [(16, 1), (1, 16), (8, 32)])
def test_h2load(server: Running, tmp_path: Path, connections: int, streams: int) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("apt-get install nghttp2-client")
    body = tmp_path / "body"
    message: Any = import_module("modelctl.serve.grpc.messages").message("inference.ModelInferRequest")
    asked = message(model_name="affine", raw_input_contents=[bytes(16)])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    data = asked.SerializeToString()
    body.write_bytes(b"\0" + len(data).to_bytes(4, "big") + data)
    command = ["h2load", "-n", "3000", "-c", str(connections), "-m", str(streams), "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    before = server.metric("modelctl_requests_total", model="affine")
    url = f"http://127.0.0.1:{server.port}/inference.GRPCInferenceService/ModelInfer"
    found = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "3000 succeeded, 0 failed, 0 errored" in found
    assert server.metric("modelctl_requests_total", model="affine") == before + 3000
