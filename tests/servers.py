"""Models small enough to be made on the spot, and real servers of them to ask."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelctl.options import ServeOptions
from modelctl.serve.models import Models, load_all

Shape = list[int | str]


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any]) -> Path:
    """Write an ONNX model of these nodes; inputs and outputs are (name, TensorProto type, shape)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(np.asarray(one), name) for name, one in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def affine(path: Path, wide: int = 4) -> Path:
    """y[batch,3] = x[batch,wide] @ w, in float32."""
    w = np.random.default_rng(0).standard_normal((wide, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return save(path, nodes, [("x", 1, ["batch", wide])], [("y", 1, ["batch", 3])], {"w": w})


def pair(path: Path) -> Path:
    """Of a[batch,2] in float32 and b[batch,2] in int64: sum = a + b in float32, twice = b + b in int64."""
    nodes = [
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "c"], ["sum"]),
        helper.make_node("Add", ["b", "b"], ["twice"]),
    ]
    shape: Shape = ["batch", 2]
    return save(path, nodes, [("a", 1, shape), ("b", 7, shape)], [("sum", 1, shape), ("twice", 7, shape)], {})


def echo(path: Path, element: int, shape: Shape | None = None) -> Path:
    """y = x, of any element type."""
    shape = ["batch", 2] if shape is None else shape
    return save(
        path, [helper.make_node("Identity", ["x"], ["y"])], [("x", element, shape)], [("y", element, shape)], {}
    )


def logarithm(path: Path) -> Path:
    """y = log x: NaN below 0, -inf at 0."""
    shape: Shape = ["batch", 1]
    return save(path, [helper.make_node("Log", ["x"], ["y"])], [("x", 1, shape)], [("y", 1, shape)], {})


def lookup(path: Path) -> Path:
    """y[batch] = table[x[batch]] of a table of 5: fails for an index that is not in it."""
    table = np.arange(5, dtype=np.float32) * 10
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    return save(path, nodes, [("x", 7, ["batch"])], [("y", 1, ["batch"])], {"table": table})


def slow(path: Path, layers: int = 20, width: int = 1024) -> Path:
    """y[batch,256] from x[batch,256] through many layers: some milliseconds, so that it has a thread."""
    chance = np.random.default_rng(0)
    sizes = {"first": (256, width), "w": (width, width), "last": (width, 256)}
    weights = {name: (chance.standard_normal(size) / size[0] ** 0.5).astype(np.float32) for name, size in sizes.items()}
    nodes = [helper.make_node("MatMul", ["x", "first"], ["a0"])]
    for index in range(layers):
        nodes.append(helper.make_node("Tanh", [f"a{index}"], [f"b{index}"]))
        nodes.append(helper.make_node("MatMul", [f"b{index}", "w"], [f"a{index + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"a{layers}", "last"], ["y"]))
    return save(path, nodes, [("x", 1, ["batch", 256])], [("y", 1, ["batch", 256])], weights)


def loaded(*sources: Path, **options: Any) -> Models:
    """Models as the server has them, in this process."""
    return load_all([str(one) for one in sources], ServeOptions(**options))


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        document = self.json
        assert list(document) == ["error"]
        text: str = document["error"]
        assert "\n" not in text
        assert "Traceback" not in text
        return text


@dataclass
class Running:
    """A server as a process of its own."""

    process: subprocess.Popen[str]
    url: str
    trust: ssl.SSLContext | None = None  # of a server over TLS

    @property
    def port(self) -> int:
        found = urllib.parse.urlsplit(self.url).port
        assert found is not None
        return found

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        if self.trust is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.trust)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; a body that is not bytes is sent as JSON."""
        connection = self.connect()
        try:
            return ask(connection, path, body, method, **headers)
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = self.ask("/metrics").body.decode().splitlines()
        mine = [one for one in lines if one.startswith((name + "{", name + " ")) and all(two in one for two in wanted)]
        return sum(float(one.rpartition(" ")[2]) for one in mine)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to end; the exit status and all of stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Wait for its end; the exit status and all of stderr."""
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


def ask(
    connection: http.client.HTTPConnection, path: str, body: Any = None, method: str | None = None, **headers: str
) -> Answer:
    """One request on a connection that stays open."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if data is None else "POST"), path, data, named)
    response = connection.getresponse()
    return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())


@contextmanager
def running(
    sources: Sequence[Path | str],
    *flags: str,
    folder: Path | None = None,
    trust: ssl.SSLContext | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """A server of these models on a free port, ended when the block ends."""
    command = [sys.executable, "-m", "modelctl", "serve", *map(str, sources), "--port", "0", *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    server = Running(process, line.removeprefix("ready ").partition(" ")[0].strip(), trust)
    try:
        assert line.startswith(f"ready http{'s' if '--tls-cert' in flags else ''}://127.0.0.1:"), process.communicate(
            timeout=10
        )[1]
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=10)


def end_under_load(server: Running, path: str, body: Any, number: int) -> None:
    """Have eight clients ask all the time, end the server by a signal, and find that no answer was broken off."""
    broken: list[Exception] = []
    done: list[int] = []

    def client() -> None:
        try:
            connection = server.connect()
            connection.connect()
        except OSError:
            return
        with closing(connection):
            while True:
                try:
                    answer = ask(connection, path, body)
                except (OSError, http.client.HTTPException) as error:
                    broken.append(error)
                    return
                done.append(answer.status)
                if answer.headers.get("connection") == "close":
                    return

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    eventually(lambda: len(done) > 50)
    assert server.stop(number) == (0, "")
    for one in clients:
        one.join()
    assert broken == []
    assert set(done) == {200}


def v2(name: str, array: np.ndarray[Any, Any], datatype: str) -> dict[str, Any]:
    """An input tensor of the Open Inference Protocol, its data flat in JSON."""
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.reshape(-1).tolist()}


def reference(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """What onnx's own reference implementation answers, for what onnxruntime is not to be asked about itself."""
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(path)
    return dict(zip([one.name for one in model.graph.output], ReferenceEvaluator(model).run(None, feeds), strict=True))


def eventually(holds: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Wait until something is so; it must be within a while."""
    ends = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.02)
