"""How requests meet a model: together where that changes nothing, in order, within bounds."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from modelctl.errors import DataError
from modelctl.serve.batching import Pace, Runner
from modelctl.serve.breaker import Breaker
from modelctl.serve.jobs import Tensors, Unread
from modelctl.serve.metrics import Tally
from modelctl.serve.refusal import Refused

FAST = Pace(run_s=1e-5, elements=2, rows_are_independent=True)
ONES = np.ones((1, 2), np.float32)
SLOW = Pace(run_s=1.0, elements=2, rows_are_independent=True)


class Doubling:
    """A model that doubles its input, remembers how many rows each run had, and fails on a negative one."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, feeds: Tensors) -> dict[str, Any]:
        self.gate.wait(10)
        x = feeds["x"]
        self.rows.append(x.shape[0])
        if x.size and x.min() < 0:
            raise DataError("negative")
        return {"y": x * 2}


def runner_of(run: Any, pace: Pace, max_batch: int = 8, max_queue: int = 100) -> tuple[Runner, Tally]:
    tally = Tally()
    return Runner(run, pace, tally, Breaker(), max_batch=max_batch, max_queue=max_queue), tally


def rows(*values: float, width: int = 2) -> Tensors:
    return {"x": np.array([[value] * width for value in values], np.float32)}


class Asked:
    """A job, and the outcome it came to."""

    def __init__(self, runner: Runner, feeds: Tensors | Unread, timeout_s: float = 10) -> None:
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.job = runner.submit(feeds, timeout_s, self.outcome.set_result)


async def answers(asked: list[Asked]) -> list[Any]:
    return [await asyncio.wait_for(one.outcome, 10) for one in asked]


@pytest.mark.parametrize("pace", [FAST, SLOW])
def test_jobs_share_runs_and_each_gets_its_own_rows(pace: Pace) -> None:
    model = Doubling()

    async def go() -> None:
        runner, tally = runner_of(model, pace)
        model.gate.clear()
        jobs = [Asked(runner, rows(one, one + 0.5)) for one in range(10)]
        model.gate.set()
        for one, found in enumerate(await answers(jobs)):
            np.testing.assert_array_equal(found["y"], rows(2 * one, 2 * one + 1)["x"])
        assert sum(model.rows) == 20
        assert max(model.rows) == 8
        assert (tally.in_flight, sum(tally.queue_s.counts)) == (0, 10)
        runner.close()

    asyncio.run(go())


def test_jobs_that_differ_in_more_than_rows_run_apart() -> None:
    model = Doubling()

    async def go() -> None:
        runner, _ = runner_of(model, FAST)
        found = await answers([Asked(runner, rows(1, width=2)), Asked(runner, rows(1, width=3))])
        assert [one["y"].shape for one in found] == [(1, 2), (1, 3)]
        assert model.rows == [1, 1]

    asyncio.run(go())


def test_inputs_are_told_apart_by_name_not_by_order() -> None:
    def run(feeds: Tensors) -> dict[str, Any]:
        return {"y": feeds["a"].sum(axis=1) - feeds["b"].sum(axis=1)}

    async def go() -> None:
        runner, _ = runner_of(run, FAST)
        narrow, wide = np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)
        feeds: list[Tensors] = [{"a": narrow, "b": wide}, {"b": narrow, "a": wide}, {"b": wide, "a": narrow}]
        found = await answers([Asked(runner, one) for one in feeds])
        assert [one["y"].tolist() for one in found] == [[-1], [1], [-1]]

    asyncio.run(go())


def test_rows_that_depend_on_each_other_are_never_mixed() -> None:
    model = Doubling()

    async def go() -> None:
        runner, _ = runner_of(model, Pace(run_s=1e-5, elements=2, rows_are_independent=False))
        await answers([Asked(runner, rows(one)) for one in range(5)])
        assert model.rows == [1] * 5

    asyncio.run(go())


class Late(Unread):
    """One row of a value that is read when its run begins; negative: it is wrong."""

    def __init__(self, value: float, reads: list[int]) -> None:
        super().__init__((1, 2), 2)
        self.value = value
        self.reads = reads  # how many rows were read at once

    def read(self) -> dict[str, Any]:
        if self.value < 0:
            raise Refused("wrong")
        self.reads.append(1)
        return dict(rows(self.value))

    def read_with(self, others: Sequence["Late"]) -> dict[str, Any] | None:
        values = [self.value, *(one.value for one in others)]
        if min(values) < 0:
            return None
        self.reads.append(len(values))
        return dict(rows(*values))


@pytest.mark.parametrize(
    ("given", "reads", "runs"),
    [
        ((1, 2, 3), [3], [3]),  # together
        ((1, -1, 3), [1, 1], [1, 1]),  # each alone, as one is wrong
        ((1, rows(2), 3), [1, 1], [3]),  # beside what is read already
        ((rows(1), -1), [], [1]),
        ((-1,), [], []),
    ],
)
def test_what_is_unread_is_read_with_its_run(given: tuple[Any, ...], reads: list[int], runs: list[int]) -> None:
    model, seen = Doubling(), list[int]()

    async def go() -> None:
        runner, tally = runner_of(model, FAST)
        jobs = [Asked(runner, Late(one, seen) if isinstance(one, int) else one) for one in given]
        for one, found in zip(given, await answers(jobs), strict=True):
            if one == -1:
                assert found.message == "wrong"
            else:
                np.testing.assert_array_equal(found["y"], 2 * (one if isinstance(one, int) else one["x"]) * ONES)
        assert tally.in_flight == 0

    asyncio.run(go())
    assert (seen, model.rows) == (reads, runs)


def test_what_is_unread_is_read_before_a_thread_runs_it() -> None:
    model, seen = Doubling(), list[int]()

    async def go() -> None:
        runner, tally = runner_of(model, SLOW)
        with pytest.raises(Refused) as caught:
            Asked(runner, Late(-1, seen))
        assert caught.value.message == "wrong"
        model.gate.clear()
        job = Asked(runner, Late(1, seen))
        assert seen == [1]
        model.gate.set()
        (found,) = await answers([job])
        np.testing.assert_array_equal(found["y"], 2 * ONES)
        assert tally.in_flight == 0
        runner.close()

    asyncio.run(go())


@pytest.mark.parametrize("pace", [FAST, SLOW])
def test_no_request_fails_for_another_ones_input(pace: Pace) -> None:
    model = Doubling()

    async def go() -> None:
        runner, _ = runner_of(model, pace)
        model.gate.clear()
        jobs = [Asked(runner, rows(one)) for one in (1, -1, 3)]
        model.gate.set()
        good, bad, fine = await answers(jobs)
        assert (good["y"][0, 0], fine["y"][0, 0]) == (2, 6)
        assert isinstance(bad, Refused)
        assert bad.status == 400

    asyncio.run(go())


def test_a_full_queue_refuses_and_recovers() -> None:
    model = Doubling()

    async def go() -> None:
        runner, tally = runner_of(model, SLOW, max_queue=3)
        model.gate.clear()
        jobs = [Asked(runner, rows(1))]  # this one is with the thread; the queue is for those that wait
        jobs += [Asked(runner, rows(1)) for _ in range(3)]
        with pytest.raises(Refused) as refused:
            Asked(runner, rows(1))
        assert refused.value.status == 429
        assert dict(refused.value.headers)[b"retry-after"] == b"1"
        assert tally.in_flight == 4
        model.gate.set()
        await answers(jobs)
        await answers([Asked(runner, rows(1))])
        assert tally.in_flight == 0

    asyncio.run(go())


def test_small_jobs_are_done_rather_than_refused() -> None:
    model = Doubling()

    async def go() -> None:
        runner, _ = runner_of(model, FAST, max_batch=4, max_queue=4)
        found = await answers([Asked(runner, rows(one)) for one in range(20)])
        assert [one["y"][0, 0] for one in found] == [2 * one for one in range(20)]

    asyncio.run(go())


def test_who_waits_too_long_or_has_gone_is_not_computed() -> None:
    model = Doubling()

    async def go() -> None:
        runner, tally = runner_of(model, SLOW)
        model.gate.clear()
        first = Asked(runner, rows(1))
        late, gone, good = (Asked(runner, rows(2), 0.0), Asked(runner, rows(3)), Asked(runner, rows(4)))
        gone.job.cancel()
        (refused,) = await answers([late])  # while the first is still with the thread
        assert isinstance(refused, Refused)
        assert refused.status == 504
        model.gate.set()
        _, found = await answers([first, good])
        assert found["y"][0, 0] == 8
        assert not gone.outcome.done()
        assert tally.in_flight == 0
        assert model.rows == [1, 1]

    asyncio.run(go())


def test_a_large_request_to_a_fast_model_does_not_hold_up_the_loop() -> None:
    seen: list[str] = []

    def run(feeds: Tensors) -> dict[str, Any]:
        seen.append(threading.current_thread().name)
        return dict(feeds)

    async def go() -> None:
        runner, _ = runner_of(run, FAST)
        large = rows(*range(FAST.inline_elements))
        asked = [Asked(runner, large), Asked(runner, rows(1))]
        assert [one.job.inline for one in asked] == [False, True]
        await answers(asked)
        assert sorted(seen) == sorted([threading.main_thread().name, "modelctl-model"])

    asyncio.run(go())


@pytest.mark.parametrize("pace", [FAST, SLOW])
def test_a_bug_reaches_each_of_those_it_concerns(pace: Pace) -> None:
    def run(_: Tensors) -> dict[str, Any]:
        raise ZeroDivisionError

    async def go() -> None:
        runner, tally = runner_of(run, pace)
        found = await answers([Asked(runner, rows(1)), Asked(runner, rows(2))])
        assert [type(one) for one in found] == [ZeroDivisionError, ZeroDivisionError]
        assert tally.in_flight == 0

    asyncio.run(go())


@pytest.mark.parametrize("pace", [FAST, SLOW])
def test_a_delay_waits_for_company_but_not_longer_than_for_a_full_run(pace: Pace) -> None:
    model = Doubling()

    async def go() -> None:
        runner = Runner(model, pace, Tally(), Breaker(), max_batch=4, max_queue=100, max_delay_s=0.05)
        first = Asked(runner, rows(1))
        await asyncio.sleep(0.005)
        others = [Asked(runner, rows(2)), Asked(runner, rows(3))]
        await answers([first, *others])
        assert model.rows == [3]
        if pace is SLOW:
            runner._max_delay_s = 1000
            await answers([Asked(runner, rows(1, 2)), Asked(runner, rows(3, 4))])
            assert model.rows == [3, 4]
        runner.close()

    asyncio.run(go())
