"""Models that come and go while the server answers."""

import contextlib
import http.client
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import servers
from onnx import helper
from servers import Running, ask, eventually, v2

from modelctl import digests
from modelctl.artifact import Artifact
from modelctl.making import Origin, create
from modelctl.options import PushOptions, StepOptions
from modelctl.steps.push import push

BODY = {"inputs": [v2("x", np.ones((1, 4), np.float32), "FP32")]}


def other(path: Path) -> Path:
    """A model like `servers.affine`, of other weights."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.full((4, 3), 2, np.float32)}
    return servers.save(path, nodes, [("x", 1, ["batch", 4])], [("y", 1, ["batch", 3])], weights)


def replace(path: Path, by: Path) -> str:
    """Put another file in place of one, at once; its digest."""
    shutil.copy(by, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)
    return digests.of_file(path)


@contextlib.contextmanager
def asking(server: Running, path: str, clients: int = 4) -> Iterator[list[str]]:
    """Clients that ask all the time, and must never be failed; the digests that answered."""
    stop = threading.Event()
    seen: list[str] = []
    broken: list[object] = []

    def client() -> None:
        with contextlib.closing(server.connect()) as connection:
            while not stop.is_set():
                try:
                    answer = ask(connection, path, BODY)
                except (OSError, http.client.HTTPException) as error:
                    broken.append(error)
                    return
                if answer.status != 200:
                    broken.append((answer.status, answer.body))
                seen.append(answer.headers["modelctl-model"].partition("sha256:")[2])

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for one in threads:
        one.start()
    try:
        yield seen
    finally:
        stop.set()
        for one in threads:
            one.join()
    assert broken == []


def states(server: Running) -> dict[str, str]:
    return {one["name"]: one["state"] for one in server.ask("/v2/repository/index", {}).json}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_models_are_exchanged_unloaded_and_loaded_without_a_failed_request(tmp_path: Path, workers: str) -> None:
    model, beside = servers.affine(tmp_path / "m.onnx"), servers.affine(tmp_path / "beside.onnx")
    before = digests.of_file(model)
    repository = "/v2/repository/models/m"
    with servers.running([model, beside], "--workers", workers) as server:
        with asking(server, "/v2/models/m/infer") as seen, asking(server, "/v2/models/beside/infer"):
            after = replace(model, other(tmp_path / "other.onnx"))
            eventually(lambda: len(seen) > 20)
            assert set(seen) == {before}
            assert server.ask(f"{repository}/load", {}).status == 200
            seen.clear()
            eventually(lambda: len(seen) > 20)
            assert after in seen
            assert server.metric("modelctl_requests_total", digest=after) > 0
            assert server.ask("/v2/models/m").json["versions"] == ["1"]
            (tmp_path / "bad.onnx").write_bytes(b"junk")
            replace(model, tmp_path / "bad.onnx")
            refused = server.ask(f"{repository}/load", {})
            assert refused.status == 400
            assert "m could not be loaded: m.onnx" in refused.error
            seen.clear()
            eventually(lambda: len(seen) > 20)
            assert set(seen) == {after}
        with asking(server, "/v2/models/beside/infer"):
            for _ in range(2):
                assert server.ask(f"{repository}/unload", {}).status == 200
            assert states(server) == {"m": "UNAVAILABLE", "beside": "READY"}
            gone = server.ask("/v2/models/m/infer", BODY)
            assert (gone.status, "served: beside" in gone.error) == (404, True)
            replace(model, servers.affine(tmp_path / "again.onnx"))
            assert server.ask(f"{repository}/load", {}).status == 200
            for _ in range(8):
                answer = server.ask("/v2/models/m/infer", BODY)
                assert answer.headers["modelctl-model"] == f"m@sha256:{before}"
            assert states(server) == {"m": "READY", "beside": "READY"}
        missing = server.ask("/v2/repository/models/none/load", {})
        assert missing.status == 404
        assert server.stop() == (0, "")


def test_a_worker_that_is_replaced_serves_what_was_agreed(tmp_path: Path) -> None:
    model, beside = servers.affine(tmp_path / "m.onnx"), servers.affine(tmp_path / "beside.onnx")
    with servers.running([model, beside], "--workers", "2") as server:
        after = replace(model, other(tmp_path / "other.onnx"))
        assert server.ask("/v2/repository/models/m/load", {}).status == 200
        assert server.ask("/v2/repository/models/beside/unload", {}).status == 200
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        for victim in children.read_text().split():
            os.kill(int(victim), signal.SIGKILL)
            eventually(partial(_replaced, children, victim))
        answer = server.ask("/v2/models/m/infer", BODY)
        assert answer.headers["modelctl-model"] == f"m@sha256:{after}"
        assert states(server) == {"m": "READY", "beside": "UNAVAILABLE"}
        assert server.ask("/v2/repository/models/beside/load", {}).status == 200
        assert states(server) == {"m": "READY", "beside": "READY"}
        assert server.stop() == (0, "")


def _replaced(children: Path, victim: str) -> bool:
    found = children.read_text().split()
    return len(found) == 2 and victim not in found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_ref_that_is_watched_is_swapped_when_it_moves(tmp_path: Path, workers: str) -> None:
    store = f"sqlite:///{tmp_path}/models.db"

    def pushed(path: Path, tag: str) -> str:
        out = tmp_path / f"out-{path.stem}" / "digits.onnx"
        out.parent.mkdir(exist_ok=True)
        with create(out, Origin("export", StepOptions(), (Artifact.open(path),))) as draft:
            draft.path.write_bytes(path.read_bytes())
        push(Artifact.open(out), f"{store}/digits:{tag}", PushOptions(force=True))
        return digests.of_file(path)

    before = pushed(servers.affine(tmp_path / "one.onnx"), "stable")
    with servers.running([f"{store}/digits:stable"], "--watch", "--workers", workers) as server:
        with asking(server, "/v2/models/digits/infer") as seen:
            eventually(lambda: len(seen) > 10)
            assert set(seen) == {before}
            after = pushed(other(tmp_path / "two.onnx"), "stable")
            eventually(lambda: seen[-1] == after, 30)
        assert server.ask("/v2/models/digits/versions/stable").status == 200
        pushed(servers.pair(tmp_path / "three.onnx"), "next")  # another tag is none of our business
        assert server.stop() == (0, "")


def test_a_bad_file_is_told_of_once_and_the_old_one_stays(tmp_path: Path) -> None:
    model = servers.affine(tmp_path / "m.onnx")
    before = digests.of_file(model)
    with servers.running([model], "--watch") as server:
        (tmp_path / "bad.onnx").write_bytes(b"junk")
        replace(model, tmp_path / "bad.onnx")
        with asking(server, "/v2/models/m/infer") as seen:
            eventually(lambda: len(seen) > 10)
            after = replace(model, other(tmp_path / "other.onnx"))
            eventually(lambda: seen[-1] == after, 30)
        assert set(seen) <= {before, after}
        status, err = server.stop()
        assert status == 0
        assert err.count("\n") <= 1
        assert "Traceback" not in err
