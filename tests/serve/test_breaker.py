"""A model that fails or hangs: told at once, tried again, and harmful to nobody else."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from onnx import TensorProto, helper
from servers import eventually, v2

from modelctl.errors import DataError
from modelctl.serve import breaker
from modelctl.serve.batching import Pace, Runner
from modelctl.serve.breaker import FAILURES, Breaker
from modelctl.serve.jobs import Outcome, Tensors
from modelctl.serve.metrics import Board, Tally
from modelctl.serve.refusal import Refused

FEEDS = {"x": np.ones((1, 2), np.float32)}


class Moody:
    """A model that does what it is told to: answer, raise, or hang until the gate opens."""

    def __init__(self) -> None:
        self.mood: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.runs = 0

    def __call__(self, feeds: Tensors) -> dict[str, Any]:
        self.runs += 1
        self.gate.wait(10)
        if self.mood is not None:
            raise self.mood
        return dict(feeds)


async def asked(runner: Runner, timeout_s: float = 10) -> Outcome:
    """What becomes of one request."""
    found: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    try:
        runner.submit(FEEDS, timeout_s, found.set_result)
    except Refused as refused:
        return refused
    return await found


def runner_of(model: Moody, run_s: float, cells: Breaker) -> Runner:
    pace = Pace(run_s=run_s, elements=2, rows_are_independent=True)
    return Runner(model, pace, Tally(), cells, max_batch=8, max_queue=100)


@pytest.mark.parametrize("run_s", [1e-5, 1.0])
def test_it_opens_after_repeated_failures_tries_once_and_closes(run_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "PAUSE_S", 0.05)
    model, state = Moody(), Breaker()

    async def go() -> None:
        runner = runner_of(model, run_s, state)
        assert isinstance(await asked(runner), dict)
        model.mood = ZeroDivisionError()
        for _ in range(FAILURES):
            assert isinstance(await asked(runner), ZeroDivisionError)
        runs = model.runs
        refused = await asked(runner)
        assert isinstance(refused, Refused)
        assert (refused.status, refused.kind) == (503, "broken")
        assert int(dict(refused.headers)[b"retry-after"]) >= 1
        assert model.runs == runs
        await asyncio.sleep(0.06)
        assert isinstance(await asked(runner), ZeroDivisionError)  # the one that tries
        assert isinstance(await asked(runner), Refused)
        model.mood = None
        await asyncio.sleep(0.06)
        assert isinstance(await asked(runner), dict)
        assert isinstance(await asked(runner), dict)
        runner.close()

    asyncio.run(go())


def test_what_the_client_got_wrong_is_no_failure_of_the_model() -> None:
    model = Moody()

    async def go() -> None:
        runner = runner_of(model, 1e-5, Breaker())
        model.mood = DataError("not so")
        for _ in range(3 * FAILURES):
            found = await asked(runner)
            assert isinstance(found, Refused)
            assert found.status == 400

    asyncio.run(go())


def test_a_success_between_failures_keeps_it_closed() -> None:
    model = Moody()

    async def go() -> None:
        runner = runner_of(model, 1e-5, Breaker())
        for _ in range(4):
            model.mood = ZeroDivisionError()
            for _ in range(FAILURES - 1):
                assert isinstance(await asked(runner), ZeroDivisionError)
            model.mood = None
            assert isinstance(await asked(runner), dict)

    asyncio.run(go())


def test_a_model_that_hangs_opens_it_and_its_return_closes_it() -> None:
    model, state = Moody(), Breaker()

    async def go() -> None:
        runner = runner_of(model, 1.0, state)
        model.gate.clear()
        late = await asked(runner, 0.2)
        assert isinstance(late, Refused)
        assert late.status == 504
        refused = await asked(runner)
        assert isinstance(refused, Refused)
        assert refused.status == 503
        model.gate.set()
        while state.open:
            await asyncio.sleep(0.01)
        assert isinstance(await asked(runner), dict)
        runner.close()

    asyncio.run(go())


def test_a_queue_that_is_too_long_is_no_failure_of_the_model() -> None:
    model = Moody()

    def slow(feeds: Tensors) -> dict[str, Any]:
        time.sleep(0.05)
        return model(feeds)

    async def go() -> None:
        state = Breaker()
        pace = Pace(run_s=1.0, elements=2, rows_are_independent=False)
        runner = Runner(slow, pace, Tally(), state, max_batch=1, max_queue=100)
        found = await asyncio.gather(*(asked(runner, 0.3) for _ in range(20)))
        statuses = {one.status for one in found if isinstance(one, Refused)}
        assert statuses == {504}
        assert any(isinstance(one, dict) for one in found)
        assert not state.open
        runner.close()

    asyncio.run(go())


def test_all_workers_share_its_state() -> None:
    board = Board(2)
    one, other = board.breaker(3), board.breaker(3)
    one.failed(FAILURES)
    assert other.open
    assert board.total(3).broken
    assert not board.breaker(4).open
    with pytest.raises(Refused):
        other.admit()
    other.succeeded()
    one.admit()


def endless(path: Path) -> Path:
    """y = x after as many turns of a loop as n says: a model that hangs when it is asked to."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["on"]),
            helper.make_node("Sin", ["before"], ["after"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", 1, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("after", 1, None)],
    )
    nodes = [
        helper.make_node("Squeeze", ["n"], ["turns"]),
        helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body),
    ]
    weights = {"yes": np.array(True)}
    return servers.save(path, nodes, [("x", 1, ["batch", 2048]), ("n", 7, [1])], [("y", 1, ["batch", 2048])], weights)


def test_a_model_that_hangs_leaves_the_others_unharmed(zoo: dict[str, Path], tmp_path: Path) -> None:
    x = v2("x", np.ones((400, 2048), np.float32), "FP32")

    def asking(turns: int) -> dict[str, Any]:
        return {"inputs": [x, v2("n", np.array([turns]), "INT64")]}

    flags = ("--timeout-s", "0.5")
    with servers.running([endless(tmp_path / "endless.onnx"), zoo["affine"]], *flags) as server:
        assert server.ask("/v2/models/endless/infer", asking(1)).status == 200
        assert server.ask("/v2/models/endless/infer", asking(10**12)).status == 504
        refused = server.ask("/v2/models/endless/infer", asking(1))
        assert refused.status == 503
        assert "failed too often" in refused.error
        assert refused.headers["modelctl-model"].startswith("endless@sha256:")
        assert server.metric("modelctl_breaker_open", model="endless") == 1
        assert server.metric("modelctl_breaker_open", model="affine") == 0
        for _ in range(20):
            assert server.ask("/predict/affine", [[1, 2, 3, 4]]).status == 200
        eventually(lambda: server.metric("modelctl_requests_in_flight") == 0)
        assert server.stop() == (0, "")
