"""The text of `/metrics`."""

import shutil
import subprocess

import pytest
import servers
from servers import Running

from modelctl.serve.metrics import IN_FLIGHT, REQUESTS, Board, Tally, exposition


def test_buckets_are_cumulative_and_end_with_all() -> None:
    tally = Tally()
    for rows in (1, 2, 2, 3, 1000):
        tally.batch_rows.observe(rows)
    text = exposition([({"model": "m"}, tally)], Tally(), True).decode()
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("modelctl_batch_rows_bucket")]
    assert found == ["1", "3", *["4"] * 8, "5"]
    assert 'modelctl_batch_rows_bucket{model="m",le="+Inf"} 5' in text
    assert 'modelctl_batch_rows_sum{model="m"} 1008.0' in text


def test_what_workers_count_adds_up_and_what_one_had_in_flight_is_lost_with_it() -> None:
    board = Board(3)
    for worker in range(3):
        tally = board.tally(worker, 5)
        tally.cells[REQUESTS] += worker + 1
        tally.cells[IN_FLIGHT] += 1
        tally.failed("overload")
        tally.queue_s.observe(0.5)
    total = board.total(5)
    assert (total.requests, total.in_flight, total.errors, sum(total.queue_s.counts)) == (6, 3, {"overload": 3}, 3)
    board.lost(1)
    assert (board.total(5).requests, board.total(5).in_flight) == (6, 2)
    assert board.total(4).requests == 0
    board.clear(5)
    assert board.total(5).requests == 0


def test_labels_are_escaped() -> None:
    text = exposition([({"model": 'a"b\\c\nd'}, Tally())], Tally(), True).decode()
    assert 'model="a\\"b\\\\c\\nd"' in text


def test_requests_and_errors_are_counted_by_model_and_kind(server: Running) -> None:
    def counts() -> tuple[float, ...]:
        return (
            server.metric("modelctl_requests_total", model="bits"),
            server.metric("modelctl_request_errors_total", model="bits", kind="bad_request"),
            server.metric("modelctl_compute_seconds_count", model="bits"),
            server.metric("modelctl_request_errors_total", model="", kind="not_found"),
        )

    before = counts()
    assert server.ask("/predict/bits", [[True, False]]).status == 200
    assert server.ask("/predict/bits", [[1, 2]]).status == 400
    assert server.ask("/nothing").status == 404
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [1, 1, 1, 1]
    assert server.metric("modelctl_requests_in_flight") == 0
    assert server.metric("modelctl_ready") == 1


@pytest.mark.real_parts
def test_prometheus_own_tool_finds_nothing_to_say(server: Running) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("apt-get install prometheus")
    servers_text = server.ask("/metrics")
    assert servers_text.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = subprocess.run(["promtool", "check", "metrics"], input=servers_text.body, capture_output=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


def test_a_digest_is_a_label(server: Running) -> None:
    digest = server.ask("/v2/models/bits").headers["modelctl-model"].partition("sha256:")[2]
    assert server.metric("modelctl_requests_in_flight", digest=digest) == 0
    assert digest in server.ask("/metrics").body.decode()
    assert servers.Answer(200, {}, b"{}").json == {}
