"""Where the server's own time goes: CPU time a request, without sockets, in units of one call of raw onnxruntime.

    python tests/bench/serve_parts.py

The requests of `serve.py`, and the same over gRPC, are fed to 32 connections whose transports go nowhere, so that what
is left out is the kernel and the event loop's reading and writing. CPU time stays comparable where others use the
machine, too.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import uvloop
from hpack import Encoder
from PIL import Image

from modelctl.options import ExportOptions, ServeOptions
from modelctl.serve import openinference
from modelctl.serve.connections import Connection
from modelctl.serve.grpc import inference
from modelctl.serve.grpc.calls import framed
from modelctl.serve.grpc.messages import parsed
from modelctl.serve.grpc.plans import Plans as CallPlans
from modelctl.serve.grpc.plans import recall_answer as recall_message
from modelctl.serve.heads import Heads
from modelctl.serve.http import Answer, App, Request
from modelctl.serve.http2 import frames
from modelctl.serve.http2.connection import Http2
from modelctl.serve.jobs import Unread
from modelctl.serve.models import Models, load_all
from modelctl.serve.plans import HEADER_LENGTH, Plans, recall_answer
from modelctl.serve.wire import Wire
from modelctl.steps.export import Source, export

bench: Any = import_module("serve_models")  # beside this file
CLIENTS = 32
ROUNDS = 5


class Nowhere:
    """A transport that takes everything."""

    def write(self, data: bytes) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        pass


class Immediate(App):
    """Answers everything at once, with the same."""

    def handle(self, request: Request) -> None:
        request.reply(Answer(b"x" * 175))


def best(work: Callable[[int], Any], count: int) -> float:
    """CPU time of one of `count`, in µs, the best of some rounds."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work(count)
        found.append((time.process_time() - began) / count * 1e6)
    return min(found)


def each(work: Callable[[], Any]) -> Callable[[int], None]:
    """The same work again and again."""

    def repeated(count: int) -> None:
        for _ in range(count):
            work()

    return repeated


def connected(app: App, count: int = 1) -> list[Connection]:
    """Connections to an application that lead nowhere."""
    wire, found = Wire(app), []
    for _ in range(count):
        found.append(Connection(wire))
        found[-1].connection_made(cast(asyncio.Transport, Nowhere()))
    return found


def whole(loop: asyncio.AbstractEventLoop, models: Models, request: bytes) -> Callable[[int], None]:
    """Requests from all clients in each turn of the loop."""
    clients = connected(App(models, ServeOptions()), CLIENTS)

    async def go(count: int) -> None:
        for _ in range(count // CLIENTS):
            for one in clients:
                one.data_received(bytes(memoryview(request)))
            await asyncio.sleep(0)

    return lambda count: loop.run_until_complete(go(count))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench.write_model(folder / "mlp.onnx")
        bench.write_scripts(folder)
        bodies = {kind: (folder / f"{kind}.body").read_bytes() for kind in ("binary", "json")}
        models = load_all([str(folder / "mlp.onnx")], ServeOptions())
        pictured = load_all([str(declared(folder / "mlp.onnx", folder / "pictures.onnx"))], ServeOptions())
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(folder / "mlp.onnx", options)
    x = np.random.default_rng(1).random((CLIENTS, 784), dtype=np.float32)
    raw = best(each(lambda: session.run(["y"], {"x": x[:1]})), 5000)
    figures = {"raw onnxruntime": raw, "in a run of 32": best(each(lambda: session.run(["y"], {"x": x})), 500) / 32}
    loop = uvloop.new_event_loop()
    figures |= {f"grpc, {what}": cost for what, cost in grpc_parts(loop, models, x[:1].tobytes()).items()}
    for kind, body in bodies.items():
        figures |= {f"{kind}, {what}": cost for what, cost in parts(loop, models, kind, body).items()}
    figures |= {f"PNG 28×28, {what}": cost for what, cost in picture_parts(loop, pictured).items()}
    print(f"{'':34}{'CPU µs':>8}{'of raw':>8}")
    for what, cost in figures.items():
        print(f"{what:34}{cost:8.1f}{cost / raw:8.2f}")


def parts(loop: asyncio.AbstractEventLoop, models: Models, kind: str, body: bytes) -> dict[str, float]:
    """CPU time of each part of one request."""
    model = models.get("mlp")
    length = b"%d" % (len(body) - 784 * 4) if kind == "binary" else None
    head = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n"
    head += b"%b: %b\r\n" % (HEADER_LENGTH, length) if length else b""
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    (client,) = connected(Immediate(models, ServeOptions()))
    plans = Plans(model, lambda one: openinference.read(one, None, model)[1])
    asked, feeds = openinference.read(body, length, model)
    plans.remember(body, length, asked, feeds)
    outputs = {"y": np.zeros((1, 10), np.float32)}
    openinference.write(asked, outputs, model)

    def recalled() -> None:
        known = plans.recall(body, length)
        assert known is not None
        if isinstance(known[1], Unread):
            known[1].read()

    return {
        "whole": best(whole(loop, models, head + body), 6400),
        "connection and head": best(each(lambda: client.data_received(head + body)), 5000),
        "body, as one before": best(each(recalled), 5000),
        "body, the long way": best(each(lambda: openinference.read(body, length, model)), 2000),
        "answer, as one before": best(each(lambda: recall_answer(asked, outputs)), 5000),
        "head, the long way": best(each(lambda: Heads().read(head)), 2000),
    }


def declared(source: Path, out: Path) -> Path:
    """The same model, which takes pictures and answers with the three likeliest classes."""
    options = ExportOptions(preprocess=("image:28x28,gray,flat",), postprocess=("softmax,top-k=3",))
    export(Source.parse(str(source)), out, options)
    return out


def picture_parts(loop: asyncio.AbstractEventLoop, models: Models) -> dict[str, float]:
    """CPU time of each part of one picture sent to `/predict`."""
    around = models.get("pictures").declared
    assert around is not None
    assert around.before is not None
    assert around.after is not None
    before, after = around.before, around.after
    file = BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (28, 28), dtype=np.uint8)).save(file, "PNG")
    body = file.getvalue()
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: image/png\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    outputs = {"y": np.random.default_rng(3).random((1, 10), dtype=np.float32)}
    return {
        "whole": best(whole(loop, models, head + body), 3200),
        "only decoded": best(each(lambda: np.asarray(Image.open(BytesIO(body)))), 2000),
        "made a tensor": best(each(lambda: before.feeds([body])), 2000),
        "softmax and top 3": best(each(lambda: after.predictions(outputs, {})), 2000),
    }


class Call:
    """A client of gRPC that asks the same again and again, as those do: all of its headers are in the table."""

    def __init__(self, app: App, message: bytes) -> None:
        self._number = -1
        self._connection = Http2(Wire(app))
        self._connection.connection_made(cast(asyncio.Transport, Nowhere()))
        self._connection.data_received(frames.PREFACE + frames.settings({}) + frames.window_update(0, 1 << 30))
        fields = [(":method", "POST"), (":scheme", "http"), (":path", "/inference.GRPCInferenceService/ModelInfer")]
        fields += [(":authority", "127.0.0.1:8080"), ("te", "trailers"), ("content-type", "application/grpc")]
        encoder, self._body = Encoder(), framed(message)
        for _ in range(2):
            self._block = encoder.encode(fields)
            self.ask()

    def ask(self) -> None:
        """Send one request."""
        self._number += 2
        block, number = self._block, self._number
        self._connection.data_received(
            frames.frame(frames.HEADERS, frames.END_HEADERS, number, block)
            + frames.frame(frames.DATA, frames.END_STREAM, number, self._body)
        )


def grpc_parts(loop: asyncio.AbstractEventLoop, models: Models, raw: bytes) -> dict[str, float]:
    """CPU time of each part of one ModelInfer."""
    model, plans = models.get("mlp"), CallPlans()
    given = inference.InferRequest(model_name="mlp", raw_input_contents=[raw])
    given.inputs.add(name="x", datatype="FP32", shape=(1, 784))
    message = given.SerializeToString()

    def read() -> Any:
        return inference.read(parsed(inference.InferRequest, message), model)

    asked = read()
    plans.remember(message, given, asked, model)
    outputs = {"y": np.zeros((1, 10), np.float32)}
    inference.write(asked, outputs, model)

    async def go(count: int) -> None:
        for _ in range(count // CLIENTS):
            for one in clients:
                one.ask()
            await asyncio.sleep(0)

    async def connected() -> tuple[list[Call], Call]:
        app = App(models, ServeOptions())
        return [Call(app, message) for _ in range(CLIENTS)], Call(Immediate(models, ServeOptions()), message)

    clients, client = loop.run_until_complete(connected())
    return {
        "whole": best(lambda count: loop.run_until_complete(go(count)), 6400),
        "connection and frames": best(each(client.ask), 5000),
        "message, as one before": best(each(lambda: plans.recall(message)), 5000),
        "message, the long way": best(each(read), 2000),
        "answer, as one before": best(each(lambda: recall_message(asked, outputs)), 5000),
    }


if __name__ == "__main__":
    main()
