"""Requests a second of a tiny MLP (784 floats in, 10 out), 32 connections, JSON and binary, beside what people use.

    python tests/bench/serve.py [--rounds 3] [--seconds 4] [--peers]

Needs wrk (apt-get install wrk). `--peers` installs FastAPI into an environment of its own and measures it too: the same
request, declared with pydantic, the same onnxruntime session, uvicorn with uvloop and httptools, one worker. All
contenders take turns, and the median of the rounds is shown, beside what raw onnxruntime does in one process. Client
and server share the machine, so the figures compare; they are no absolute measure.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

PEER = """
from contextlib import asynccontextmanager
import numpy as np, onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel

class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]

class Asked(BaseModel):
    inputs: list[Tensor]

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession("mlp.onnx", options)
app = FastAPI()

@app.post("/infer")
async def infer(asked: Asked):
    x = np.array(asked.inputs[0].data, dtype=np.float32).reshape(asked.inputs[0].shape)
    (y,) = session.run(["y"], {"x": x})
    return {"outputs": [{"name": "y", "datatype": "FP32", "shape": list(y.shape), "data": y.ravel().tolist()}]}
"""


def write_model(path: Path, hidden: int = 32) -> None:
    """784 → hidden → 10, relu between."""
    chance = np.random.default_rng(0)
    weights = {"a": (784, hidden), "b": (hidden, 10)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "b"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(chance.standard_normal(shape).astype(np.float32), n) for n, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def write_scripts(folder: Path) -> None:
    """wrk's scripts: the same picture as JSON, and as a binary tensor with a binary answer."""
    x = np.random.default_rng(1).random((1, 784), dtype=np.float32)
    tensor = {"name": "x", "shape": [1, 784], "datatype": "FP32"}
    asked = json.dumps({"inputs": [{**tensor, "data": [round(float(one), 4) for one in x[0]]}]}).encode()
    parameters = {"binary_data_size": x.nbytes}
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": parameters}], "parameters": {"binary_data_output": True}}
    ).encode()
    for name, body, header in (("json", asked, None), ("binary", head + x.tobytes(), len(head))):
        (folder / f"{name}.body").write_bytes(body)
        lines = ['wrk.method = "POST"', f'wrk.body = io.open("{folder}/{name}.body", "rb"):read("*a")']
        lines.append('wrk.headers["Content-Type"] = "application/json"')
        if header is not None:
            lines.append(f'wrk.headers["Inference-Header-Content-Length"] = "{header}"')
        (folder / f"{name}.lua").write_text("\n".join(lines))


@contextmanager
def process(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """A server that listens on `port` within the block."""
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(20)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def wrk(url: str, script: Path, seconds: float) -> tuple[float, str]:
    """Requests a second and the 99th percentile of latency."""
    command = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise SystemExit(f"{url} answers with errors:\n{text}")
    rate, tail = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"99%\s+(\S+)", text)
    assert rate and tail
    return float(rate[1]), tail[1]


def raw(path: Path, seconds: float) -> tuple[float, str]:
    """Calls a second of onnxruntime in this process, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options)
    x = np.random.default_rng(1).random((1, 784), dtype=np.float32)
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(1000):
            session.run(["y"], {"x": x})
        calls += 1000
    return calls / (time.perf_counter() - began), "-"


def peer_python() -> Path:
    """The interpreter of an environment that has FastAPI, made if it is not there."""
    home = Path(tempfile.gettempdir()) / "modelctl-bench-fastapi"
    python = home / "bin" / "python"
    if not (home / "done").exists():
        venv.create(home, with_pip=True, clear=True)
        libraries = ["fastapi", "uvicorn[standard]", "numpy", "onnxruntime"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *libraries], check=True)
        (home / "done").touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--peers", action="store_true")
    asked = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "mlp.onnx")
        write_scripts(folder)
        ours, theirs = free_port(), free_port()
        command = [sys.executable, "-m", "modelctl", "serve", "mlp.onnx", "--port", str(ours)]
        infer = f"http://127.0.0.1:{ours}/v2/models/mlp/infer"
        contenders: dict[str, Callable[[], tuple[float, str]]] = {
            "raw onnxruntime, in process": lambda: raw(folder / "mlp.onnx", asked.seconds / 2),
            "modelctl, binary": lambda: wrk(infer, folder / "binary.lua", asked.seconds),
            "modelctl, JSON": lambda: wrk(infer, folder / "json.lua", asked.seconds),
        }
        peer = [sys.executable, "-c", ""]
        if asked.peers:
            (folder / "peer.py").write_text(PEER)
            peer = [str(peer_python()), "-m", "uvicorn", "peer:app", "--port", str(theirs), "--no-access-log"]
            peer += ["--log-level", "warning"]
            url = f"http://127.0.0.1:{theirs}/infer"
            contenders["FastAPI + pydantic, JSON"] = lambda: wrk(url, folder / "json.lua", asked.seconds)
        with process(command, folder, ours), process(peer, folder, theirs if asked.peers else ours):
            table(contenders, asked.rounds)


def table(contenders: dict[str, Callable[[], tuple[float, str]]], rounds: int) -> None:
    """Let the contenders take turns, and print the median of each."""
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            found[name].append(measure())
    base = statistics.median(rate for rate, _ in found["raw onnxruntime, in process"])
    print(f"load before and beside: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':30}{'requests/s':>12}{'of raw':>9}{'p99':>10}")
    for name, rates in found.items():
        rate = statistics.median(one for one, _ in rates)
        print(f"{name:30}{rate:12.0f}{rate / base:9.3f}{sorted(tail for _, tail in rates)[len(rates) // 2]:>10}")


if __name__ == "__main__":
    main()
