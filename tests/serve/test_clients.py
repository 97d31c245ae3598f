"""Clients that people use, asked to talk to a real server."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Running


@pytest.mark.real_parts
@pytest.mark.filterwarnings("ignore")  # gevent has its own opinion on what was imported before it
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient(server: Running, binary: bool) -> None:
    triton: Any = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pair")
    assert client.get_model_metadata("pair")["name"] == "pair"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert {one["name"] for one in client.get_model_repository_index()} >= {"pair", "affine"}

    def infer(model: str, inputs: dict[str, tuple[str, np.ndarray[Any, Any]]], outputs: list[str], **more: Any) -> Any:
        asked = []
        for name, (datatype, array) in inputs.items():
            one = triton.InferInput(name, list(array.shape), datatype)
            one.set_data_from_numpy(array, binary_data=binary)
            asked.append(one)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in outputs]
        return client.infer(model, asked, outputs=wanted, **more)

    a, b = np.array([[0.5, 1.5]], np.float32), np.array([[2, -3]], np.int64)
    answer = infer("pair", {"a": ("FP32", a), "b": ("INT64", b)}, ["twice", "sum"], request_id="7")
    assert answer.get_response()["id"] == "7"
    np.testing.assert_array_equal(answer.as_numpy("sum"), a + b)
    np.testing.assert_array_equal(answer.as_numpy("twice"), b * 2)
    words = np.array([["a", "grüße"]], dtype=object)
    echoed = infer("words", {"x": ("BYTES", words)}, ["y"]).as_numpy("y")
    assert [one.decode() if isinstance(one, bytes) else one for one in echoed.reshape(-1)] == ["a", "grüße"]
    truth = np.array([[True, False]])
    np.testing.assert_array_equal(infer("bits", {"x": ("BOOL", truth)}, ["y"]).as_numpy("y"), truth)
    if binary:
        half = np.array([[1.5, -2.0]], np.float16)
        np.testing.assert_array_equal(infer("half", {"x": ("FP16", half)}, ["y"]).as_numpy("y"), half)
    with pytest.raises(triton.InferenceServerException, match="no model 'none'"):
        infer("none", {"x": ("FP32", a)}, ["y"])
    client.unload_model("lookup")
    assert not client.is_model_ready("lookup")
    assert {one["name"]: one["state"] for one in client.get_model_repository_index()}["lookup"] == "UNAVAILABLE"
    client.load_model("lookup")
    assert client.is_model_ready("lookup")
    with pytest.raises(triton.InferenceServerException, match="no model 'none'"):
        client.load_model("none")
    client.close()


@pytest.mark.real_parts
@pytest.mark.parametrize("flags", [["-H", "Expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"], ["--http1.0"]])
def test_curl(server: Running, tmp_path: Path, flags: list[str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("apt-get install curl")
    small, large = tmp_path / "small.json", tmp_path / "large.json"
    small.write_text("[[1, 2, 3, 4]" + ", [1, 2, 3, 4]" * 40_000 + "]")  # half a megabyte, in many pieces
    large.write_text("[" + " " * 3_000_000 + "]")

    def told(path: Path) -> tuple[str, str]:
        url = f"http://127.0.0.1:{server.port}/predict/affine"
        command = ["curl", "-sS", *flags, "--data-binary", f"@{path}", "-w", "%{http_code}", url]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return found.stdout[-3:], found.stdout[:-3]

    if flags != ["--http1.0"]:
        status, body = told(large)
        assert status == "413"
        assert "larger than 1000000 bytes" in body
    status, body = told(small)
    assert status == "200"
    assert len(json.loads(body)["outputs"]["y"]) == 40_001
