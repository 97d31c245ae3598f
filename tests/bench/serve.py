"""Requests a second of a tiny MLP (784 floats in, 10 out), 32 connections, JSON and binary, beside what people use.

    python tests/bench/serve.py [--rounds 3] [--seconds 4] [--peers]

Needs wrk (apt-get install wrk). `--peers` installs FastAPI into an environment of its own and measures it too: the same
request, declared with pydantic, the same onnxruntime session, uvicorn with uvloop and httptools, one worker. All
contenders take turns, and the median of the rounds is shown, beside what raw onnxruntime does in one process. Client
and server share the machine, so the figures compare; they are no absolute measure. CPU time of the server's process for
a request is what stays comparable where others use the machine, too.
"""

import argparse
import contextlib
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

# Every request another picture, of another length.
VARIOUS = """
local bodies = {}
init = function()
  math.randomseed(7)
  for i = 1, 500 do
    local x = {}
    for j = 1, 784 do x[j] = string.format("%." .. math.random(1, 7) .. "f", math.random()) end
    local head = '{"inputs":[{"name":"x","shape":[1,784],"datatype":"FP32","data":['
    local headers = {["Content-Type"] = "application/json"}
    bodies[i] = wrk.format("POST", nil, headers, head .. table.concat(x, ",") .. "]}]}")
  end
end
local at = 0
request = function()
  at = at % 500 + 1
  return bodies[at]
end
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
    (folder / "various.lua").write_text(VARIOUS)


Found = tuple[float, str, float]  # requests a second, 99th percentile of latency, CPU time a request in µs


@contextlib.contextmanager
def process(command: list[str], folder: Path, port: int) -> Iterator[int]:
    """A server that listens on `port` within the block; its process id."""
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield server.pid
    finally:
        server.terminate()
        server.wait(20)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """CPU time of a process and those it started, in seconds (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_s(int(child)) for child in children)


def wrk(url: str, script: Path, seconds: float, pid: int) -> Found:
    """What wrk finds at a URL that the process `pid` serves."""
    before = cpu_s(pid)
    command = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise SystemExit(f"{url} answers with errors:\n{text}")
    rate, tail = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"99%\s+(\S+)", text)
    count = re.search(r"(\d+) requests in", text)
    assert rate and tail and count
    return float(rate[1]), tail[1], (cpu_s(pid) - before) / int(count[1]) * 1e6


def raw(path: Path, seconds: float) -> Found:
    """Calls a second of onnxruntime in this process, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options)
    x = np.random.default_rng(1).random((1, 784), dtype=np.float32)
    calls, began, before = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for _ in range(1000):
            session.run(["y"], {"x": x})
        calls += 1000
    return calls / (time.perf_counter() - began), "-", (time.process_time() - before) / calls * 1e6


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
        with contextlib.ExitStack() as servers:
            mine = servers.enter_context(process(command, folder, ours))
            contenders: dict[str, Callable[[], Found]] = {
                "raw onnxruntime, in process": lambda: raw(folder / "mlp.onnx", asked.seconds / 2),
                "modelctl, binary": lambda: wrk(infer, folder / "binary.lua", asked.seconds, mine),
                "modelctl, JSON": lambda: wrk(infer, folder / "json.lua", asked.seconds, mine),
                "modelctl, JSON of many kinds": lambda: wrk(infer, folder / "various.lua", asked.seconds, mine),
            }
            if asked.peers:
                (folder / "peer.py").write_text(PEER)
                peer = [str(peer_python()), "-m", "uvicorn", "peer:app", "--port", str(theirs), "--no-access-log"]
                other = servers.enter_context(process([*peer, "--log-level", "warning"], folder, theirs))
                url = f"http://127.0.0.1:{theirs}/infer"
                contenders["FastAPI + pydantic, JSON"] = lambda: wrk(url, folder / "json.lua", asked.seconds, other)
            table(contenders, asked.rounds)


def table(contenders: dict[str, Callable[[], Found]], rounds: int) -> None:
    """Let the contenders take turns, and print the median of each."""
    found: dict[str, list[Found]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            found[name].append(measure())
    base = statistics.median(rate for rate, *_ in found["raw onnxruntime, in process"])
    print(f"load before and beside: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':30}{'requests/s':>12}{'of raw':>9}{'p99':>10}{'CPU µs':>9}")
    for name, rates in found.items():
        rate = statistics.median(one for one, *_ in rates)
        tail = sorted(tail for _, tail, _ in rates)[len(rates) // 2]
        cost = statistics.median(cost for *_, cost in rates)
        print(f"{name:30}{rate:12.0f}{rate / base:9.3f}{tail:>10}{cost:9.1f}")


if __name__ == "__main__":
    main()
