"""gRPC clients that people use, asked to talk to a real server."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from servers import Running

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
