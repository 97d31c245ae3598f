"""How often a caller may ask, over all workers."""

import os
from pathlib import Path

import servers

from modelctl.crypto.api_keys import Rights
from modelctl.options import KeygenOptions, KeyType
from modelctl.serve.access import rates
from modelctl.serve.access.callers import Caller
from modelctl.serve.access.rates import Rates
from modelctl.steps.keygen import keygen


def caller(name: str, rate: float = 2.0, burst: int | None = None) -> Caller:
    return Caller(name, Rights(rate=rate, burst=burst), "key")


def test_a_burst_is_taken_at_once_and_then_as_many_as_the_rate_says() -> None:
    counted, who = Rates(), caller("a", rate=2.0, burst=3)
    assert [counted.take(who, 100.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert counted.take(who, 100.25) == 0.25
    assert counted.take(who, 100.5) == 0.0
    assert counted.take(who, 100.5) == 0.5
    assert [counted.take(who, 200.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_over_a_long_time_it_is_the_rate() -> None:
    counted, who = Rates(), caller("a", rate=10.0)
    taken = sum(counted.take(who, 100.0 + step / 1000) == 0.0 for step in range(10_000))
    assert taken in range(109, 112)  # ten seconds' worth, and the burst of one second


def test_callers_do_not_share_and_few_places_are_given_to_those_who_wait(monkeypatch: object) -> None:
    counted = Rates()
    callers = [caller(f"c{number}", rate=1.0, burst=1) for number in range(3 * rates.TRIED)]
    for one in callers:
        one.number = one.number // rates.PLACES * rates.PLACES + 7 or 7  # all want the same place
    busy, others = callers[0], callers[1:]
    assert len({one.number for one in callers}) == len(callers)
    for step, one in enumerate(others):
        assert counted.take(one, 100.0 + 2 * step) == 0.0  # full again when the next one comes
    now = 100.0 + 2 * len(others)
    assert counted.take(busy, now) == 0.0
    assert counted.take(busy, now) == 1.0
    assert counted.take(others[0], now) == 0.0
    assert counted.take(busy, now + 0.5) == 0.5


def test_processes_count_together_and_none_is_lost_between_them() -> None:
    counted, who = Rates(workers=4), caller("a", rate=0.001, burst=4000)
    line, told = os.pipe()
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            taken = sum(counted.take(who) == 0.0 for _ in range(2000))
            os.write(told, b"%d\n" % taken)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    os.close(told)
    with os.fdopen(line) as file:
        assert sum(map(int, file.read().split())) == 4000


def test_workers_of_a_server_count_together(tmp_path: Path, zoo: dict[str, Path]) -> None:
    keygen(tmp_path / "a.key", KeygenOptions(type=KeyType.API, rate=0.001, burst=20))
    key = (tmp_path / "a.key").read_text().strip()
    with servers.running([zoo["affine"]], "--workers", "3", "--api-keys", "keys.toml", folder=tmp_path) as server:
        statuses = [server.ask("/v2", X_Api_Key=key).status for _ in range(40)]
        assert statuses == [200] * 20 + [429] * 20
        assert server.stop() == (0, "")
