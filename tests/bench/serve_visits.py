"""What it costs a request that somebody wants to know who asks: CPU time, without sockets.

    python tests/bench/serve_visits.py

A binary request of 784 floats is fed to 32 connections whose transports go nowhere, for each option by itself. Of what
is written and sent by threads, only the handing over is counted; `nothing` is a server without any such option.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

import jwts
import servers

from modelctl.options import KeygenOptions, KeyType, ServeOptions
from modelctl.serve.connections import Connection
from modelctl.serve.http import App
from modelctl.serve.models import Models, load_all
from modelctl.serve.visits import Visits
from modelctl.serve.wire import Wire
from modelctl.steps.keygen import keygen

CLIENTS = 32
TURNS = 100
ROUNDS = 7


class Nowhere:
    """A transport that takes everything."""

    def write(self, data: bytes) -> None:
        pass

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 1) if name == "peername" else None


def request(more: bytes) -> bytes:
    """A request with further headers."""
    x = np.random.default_rng(0).random((1, 784), dtype=np.float32)
    parameters = {"binary_data_size": x.nbytes}
    asked = {"inputs": [{"name": "x", "shape": [1, 784], "datatype": "FP32", "parameters": parameters}]}
    front = orjson.dumps(asked)
    head = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/octet-stream\r\n"
    head += more + b"Inference-Header-Content-Length: %d\r\n" % len(front)
    return head + b"Content-Length: %d\r\n\r\n" % (len(front) + x.nbytes) + front + x.tobytes()


async def cost(models: Models, options: ServeOptions, data: bytes) -> float:
    """CPU time of one request, in µs, the best of some rounds."""
    app, clients = App(models, options), []
    if options.has_visits:
        visits = Visits(options)
        visits.begin(app)
    wire, found = Wire(app), []
    for _ in range(CLIENTS):
        clients.append(Connection(wire))
        clients[-1].connection_made(cast(asyncio.Transport, Nowhere()))
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(TURNS):
            for one in clients:
                one.data_received(bytes(memoryview(data)))
            await asyncio.sleep(0)
        found.append((time.thread_time() - began) / (TURNS * CLIENTS) * 1e6)
        await asyncio.sleep(0.15)  # for the threads
    return min(found)


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = load_all([str(servers.affine(folder / "mlp.onnx", 784))], ServeOptions())
        for who, rate in (("plain", None), ("rated", 1e6)):
            keygen(folder / f"{who}.key", KeygenOptions(type=KeyType.API, rate=rate))
        plain, rated = (
            b"X-Api-Key: %b\r\n" % (folder / f"{who}.key").read_bytes().strip() for who in ("plain", "rated")
        )
        signer = jwts.Signer("RS256")
        (folder / "jwks.json").write_text(jwts.jwks(signer.jwk()))
        token = b"Authorization: Bearer %b\r\n" % signer.token().encode()
        keys: dict[str, Any] = {"api_keys": folder / "keys.toml"}
        by_token = {"jwt_keys": folder / "jwks.json", "jwt_issuer": jwts.ISSUER, "jwt_audience": jwts.AUDIENCE}
        log, traces = {"log_requests": "/dev/null"}, {"otlp": "http://127.0.0.1:1/"}
        cases: dict[str, tuple[dict[str, Any], bytes]] = {
            "nothing": ({}, b""),
            "a key": (keys, plain),
            "a key with a rate": (keys, rated),
            "the same among workers": ({**keys, "workers": 2}, rated),
            "a JWT, seen before": (by_token, token),
            "pages of an origin": ({"cors_origins": ("https://app.example",)}, b""),
            "a log": (log, b""),
            "traces, none recorded": ({**traces, "trace_share": 0.0}, b""),
            "traces, one of 100 recorded": ({**traces, "trace_share": 0.01}, b""),
            "traces, all recorded": (traces, b""),
            "a key, a log, one trace of 100": ({**keys, **log, **traces, "trace_share": 0.01}, plain),
        }
        print(f"{'':32}{'CPU µs':>8}")
        for what, (options, more) in cases.items():
            print(f"{what:32}{await cost(models, ServeOptions(**options), request(more)):8.1f}", flush=True)


if __name__ == "__main__":
    uvloop.run(main())
