"""The server under stress: many clients, too many, slow ones, rude ones, and the end."""

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from servers import Running, ask, eventually, v2

from modelctl.artifact import Artifact
from modelctl.graph.session import Session
from modelctl.options import ServeOptions
from modelctl.serve.connections import Connection
from modelctl.serve.http import App
from modelctl.serve.wire import Wire

ROWS = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)


@pytest.fixture(scope="module")
def sluggish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some fifty milliseconds."""
    return servers.slow(tmp_path_factory.mktemp("sluggish") / "sluggish.onnx", layers=150)


@pytest.fixture(scope="module")
def narrow(sluggish: Path) -> Iterator[Running]:
    """A server that takes little, and waits for nobody long."""
    flags = ("--max-queue", "2", "--max-batch", "1", "--timeout-s", "1", "--max-body-mb", "0.5")
    with servers.running([sluggish], *flags) as found:
        yield found
        assert found.stop() == (0, "")


def request_of(row: int) -> dict[str, Any]:
    return {"inputs": [v2("x", ROWS[row : row + 1], "FP32")]}


def raw(server: Running, data: bytes, pause_s: float = 0.0) -> bytes:
    """All that comes back for these bytes on a plain socket, until the server closes or is quiet for a while."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        found = b""
        try:
            connection.sendall(data)
            if not pause_s:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                found += piece
        except OSError:  # closed on us while we were still sending, or quiet
            pass
        return found


@pytest.mark.parametrize("name", ["slow", "affine"])
def test_many_clients_get_the_answers_onnxruntime_gives(server: Running, zoo: dict[str, Path], name: str) -> None:
    session = Session(Artifact.open(zoo[name]).load())
    width = session.inputs[0].shape[1]
    before = server.metric("modelctl_batch_rows_count", model=name)

    def client(index: int) -> None:
        chance = np.random.default_rng(index)
        connection = server.connect()
        for _ in range(6):
            x = chance.standard_normal((int(chance.integers(1, 4)), int(width))).astype(np.float32)
            answer = ask(connection, f"/v2/models/{name}/infer", {"inputs": [v2("x", x, "FP32")]})
            assert answer.status == 200
            (output,) = answer.json["outputs"]
            found = np.reshape(output["data"], output["shape"])
            np.testing.assert_allclose(found, session.run({"x": x})["y"], rtol=1e-4, atol=1e-5)
        connection.close()

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(32)))
    runs = server.metric("modelctl_batch_rows_count", model=name) - before
    if name == "slow":
        assert runs < 32 * 6  # some shared a run
    assert server.metric("modelctl_requests_in_flight") == 0


def test_too_many_are_told_to_come_again_and_the_rest_are_answered(narrow: Running) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: narrow.ask("/v2/models/sluggish/infer", request_of(one)), range(16)))
    counts = Counter(answer.status for answer in answers)
    assert set(counts) == {200, 429}
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["retry-after"] == "1"
    assert "too many requests" in refused.error
    assert narrow.metric("modelctl_request_errors_total", kind="overload") == counts[429]
    assert narrow.ask("/v2/models/sluggish/infer", request_of(0)).status == 200


def test_a_client_that_leaves_takes_its_request_with_it(narrow: Running) -> None:
    before = narrow.metric("modelctl_batch_rows_sum")
    large = {"inputs": [v2("x", ROWS[:32], "FP32")]}
    blocker = threading.Thread(target=lambda: narrow.ask("/v2/models/sluggish/infer", large))
    blocker.start()
    eventually(lambda: narrow.metric("modelctl_requests_in_flight") == 1)
    body = json.dumps(request_of(1)).encode()
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", narrow.port)) as leaver:
            head = f"POST /v2/models/sluggish/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            leaver.sendall(head.encode() + body)
    blocker.join()
    eventually(lambda: narrow.metric("modelctl_requests_in_flight") == 0)
    eventually(lambda: narrow.metric("modelctl_request_errors_total", kind="client_gone") == 2)
    eventually(lambda: narrow.metric("modelctl_batch_rows_sum") - before == 32)


def test_who_waits_too_long_is_told(sluggish: Path) -> None:
    with servers.running([sluggish], "--timeout-s", "0.02", "--max-batch", "1") as server:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda one: server.ask("/v2/models/sluggish/infer", request_of(one)), range(4)))
        late = [answer for answer in answers if answer.status == 504]
        assert late
        assert "longer than this server" in late[0].error
        assert server.metric("modelctl_request_errors_total", kind="timeout") == len(late)


def test_slow_clients_hold_nothing(narrow: Running) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with ThreadPoolExecutor(4) as pool:
        sent = (head, head + b"[", b"GET /v2 HTT", b"")
        *bodies, start, nothing = pool.map(lambda data: raw(narrow, data, pause_s=1), sent)
    for found in bodies:
        assert found.startswith(b"HTTP/1.1 408 Request Timeout")
        assert b"the body came too slowly" in found
    assert (start, nothing) == (b"", b"")


def test_a_client_that_never_reads_is_let_go(zoo: dict[str, Path]) -> None:
    asked = b"GET /v2/models/affine HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    with servers.running([zoo["affine"]], "--timeout-s", "1") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=15) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with pytest.raises(ConnectionError):
                while True:
                    deaf.sendall(asked)
        assert server.ask("/v2/health/live").status == 200
        assert server.stop() == (0, "")


def test_large_things_are_refused(narrow: Running) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"413 " in raw(narrow, head + chunk * 10 + b"0\r\n\r\n")
    many = b"".join(b"X-%d: %s\r\n" % (index, b"y" * 100) for index in range(2000))
    for head in (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000, b"GET /" + b"y" * 200_000, many):
        found = raw(narrow, head)  # nothing, where the reset overtook the answer
        assert found == b"" or b" 431 " in found or b" 400 " in found
    edge = b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (64 << 10)
    assert b" 431 " in raw(narrow, edge, pause_s=1)
    assert narrow.ask("/v2/health/live").status == 200


def test_all_bodies_together_are_bounded(narrow: Running) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 499000\r\n\r\n"
    with contextlib.ExitStack() as opened:
        clients = []
        for _ in range(12):  # of which 8 have room
            one = opened.enter_context(socket.create_connection(("127.0.0.1", narrow.port), timeout=15))
            one.sendall(head + b" " * 490_000)
            clients.append(one)
        first = [one.recv(65536).partition(b"\r\n")[0] for one in clients]
    counts = Counter(first)
    assert counts[b"HTTP/1.1 429 Too Many Requests"] >= 1
    assert set(counts) <= {b"HTTP/1.1 429 Too Many Requests", b"HTTP/1.1 408 Request Timeout"}
    eventually(lambda: narrow.ask("/v2/models/sluggish/infer", request_of(0)).status == 200)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /predict HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 100,
    ],
)
def test_what_is_no_http_is_refused_and_harms_nobody(narrow: Running, data: bytes) -> None:
    found = raw(narrow, data)
    assert found == b"" or found.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))
    assert b"Traceback" not in found
    assert narrow.ask("/v2/health/live").status == 200


def test_requests_in_one_go_are_answered_in_order(server: Running) -> None:
    one, other = (b"GET /v2/models/%s HTTP/1.1\r\nHost: x\r\n" % name for name in (b"pair", b"half"))
    found = raw(server, one + b"\r\n" + other + b"Connection: close\r\n\r\n", pause_s=1)
    assert found.count(b"HTTP/1.1 200 OK") == 2
    assert found.index(b'"name":"pair"') < found.index(b'"name":"half"')


def test_the_end_waits_for_what_was_accepted(sluggish: Path) -> None:
    with servers.running([sluggish], "--max-batch", "1") as server:
        before = server.connect()
        assert ask(before, "/v2/health/ready").status == 200
        answers: list[int] = []

        def client(row: int) -> None:
            answers.append(server.ask("/v2/models/sluggish/infer", request_of(row)).status)

        clients = [threading.Thread(target=client, args=(row,)) for row in range(12)]
        for one in clients:
            one.start()
        eventually(lambda: server.metric("modelctl_requests_total") == 12)
        server.process.send_signal(signal.SIGTERM)
        while (readiness := ask(before, "/v2/health/ready")).status == 200:
            pass
        assert (readiness.status, readiness.json) == (503, {"ready": False})
        assert readiness.headers["connection"] == "close"
        for one in clients:
            one.join()
        assert answers == [200] * 12
        assert server.ended() == (0, "")


def test_the_end_under_load_breaks_no_answer(zoo: dict[str, Path]) -> None:
    body = {"inputs": [v2("x", np.ones((1, 4), np.float32), "FP32")]}
    with servers.running([zoo["affine"]]) as server:
        servers.end_under_load(server, "/v2/models/affine/infer", body, signal.SIGINT)


def test_a_second_request_to_end_is_obeyed_at_once(tmp_path: Path) -> None:
    model = servers.slow(tmp_path / "m.onnx", layers=150)
    with servers.running([model], "--max-batch", "1") as server:
        for row in range(30):
            threading.Thread(target=_ignored, args=(server, row), daemon=True).start()
        eventually(lambda: server.metric("modelctl_requests_in_flight") > 20)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert server.stop(signal.SIGINT)[0] == 130


def _ignored(server: Running, row: int) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.ask("/v2/models/m/infer", request_of(row))


def test_a_bug_is_told_on_stderr_and_to_no_client(zoo: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    models = servers.loaded(zoo["affine"])

    def run(_: object) -> dict[str, Any]:
        raise ZeroDivisionError("a secret")

    models.get("affine").runner._run = run
    found = asyncio.run(_told(App(models, ServeOptions()), b"POST /predict", b"[[1, 2, 3, 4]]"))
    assert found.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert found.endswith(b'\r\n\r\n{"error":"internal error"}')
    assert "ZeroDivisionError" in caplog.text


async def _told(app: App, start: bytes, body: bytes) -> bytes:
    """What an application in this process answers to one request."""
    wire = Wire(app)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(wire), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (start, len(body)))
        writer.write(body)
        found = await reader.read()
        writer.close()
        await writer.wait_closed()
    return found
