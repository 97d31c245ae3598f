"""Several workers on one socket: they count together, are replaced, and end together."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import servers
from servers import Running, ask, eventually, v2

BODY = {"inputs": [v2("x", np.ones((1, 4), np.float32), "FP32")]}
INFER = "/v2/models/affine/infer"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of three workers."""
    model = servers.affine(tmp_path_factory.mktemp("several") / "affine.onnx")
    with servers.running([model], "--workers", "3") as found:
        yield found
        assert found.stop() == (0, "")


def workers_of(server: Running) -> list[int]:
    """The process ids of a server's workers."""
    pid = server.process.pid
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_all_workers_answer_and_metrics_are_their_sum(several: Running) -> None:
    before = several.metric("modelctl_requests_total")
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(contextlib.closing(several.connect())) for _ in range(30)]
        for client in clients:
            assert ask(client, INFER, BODY).status == 200
        assert {several.metric("modelctl_requests_total") - before for _ in range(9)} == {30}
        assert several.metric("modelctl_requests_in_flight") == 0
    assert len(workers_of(several)) == 3


def test_the_parent_stays_small_and_loads_no_model(several: Running) -> None:
    maps = Path(f"/proc/{several.process.pid}/maps").read_text()
    assert "onnxruntime" not in maps
    assert all("onnxruntime" in Path(f"/proc/{pid}/maps").read_text() for pid in workers_of(several))


def test_a_killed_worker_is_replaced_and_takes_nobody_with_it(several: Running) -> None:
    stop, broken, answered = threading.Event(), [0] * 6, [0] * 6

    def client(index: int) -> None:
        connection = several.connect()
        while not stop.is_set():
            try:
                assert ask(connection, INFER, BODY).status == 200
                answered[index] += 1
            except (OSError, http.client.HTTPException):
                broken[index] += 1
                connection.close()
                connection = several.connect()
        connection.close()

    clients = [threading.Thread(target=client, args=(index,)) for index in range(6)]
    for one in clients:
        one.start()
    try:
        eventually(lambda: min(answered) > 5)
        before = workers_of(several)
        total = several.metric("modelctl_requests_total")
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(set(workers_of(several)) - set(before)) == 1, 20)
        done = list(answered)
        eventually(lambda: all(now > then + 5 for now, then in zip(answered, done, strict=True)))
    finally:
        stop.set()
        for one in clients:
            one.join()
    assert max(broken) <= 1  # the request that the killed one had in hand, and no other
    assert sum(broken) < 6
    assert several.metric("modelctl_requests_total") > total
    eventually(lambda: several.metric("modelctl_requests_in_flight") == 0)


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    with servers.running([servers.affine(tmp_path / "affine.onnx")], "--workers", "2") as server:
        workers = workers_of(server)
        assert len(workers) == 2
        assert server.stop(signal.SIGKILL)[0] == -signal.SIGKILL
        eventually(lambda: not any(map(_runs, workers)))


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_the_end_under_load_breaks_no_answer(tmp_path: Path) -> None:
    with servers.running([servers.affine(tmp_path / "affine.onnx")], "--workers", "2") as server:
        servers.end_under_load(server, INFER, BODY, signal.SIGTERM)


def test_what_no_worker_can_load_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(b"junk")
    with pytest.raises(AssertionError) as caught, servers.running([tmp_path / "cut.onnx"], "--workers", "2"):
        pass
    assert "modelctl: error: cut.onnx" in str(caught.value)
    assert str(caught.value).count("modelctl: error:") == 1


def test_a_worker_that_ends_before_it_answers_ends_the_server(zoo: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "modelctl", "serve", str(zoo["affine"]), "--port", "0", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        born = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        eventually(lambda: born.read_text().split() != [])
        os.kill(int(born.read_text().split()[0]), signal.SIGKILL)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("modelctl: error: a worker ended by SIGKILL before it could answer\n")
