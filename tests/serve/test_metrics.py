"""The text of `/metrics`."""

import shutil
import subprocess

import pytest
import servers
from servers import Running

from modelctl.serve.metrics import Histogram, Tally, exposition


def test_buckets_are_cumulative_and_end_with_all() -> None:
    tally = Tally()
    tally.batch_rows = Histogram((1.0, 2.0, 4.0))
    for rows in (1, 2, 2, 3, 100):
        tally.batch_rows.observe(rows)
    text = exposition([({"model": "m"}, tally)], Tally(), True).decode()
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("modelctl_batch_rows_bucket")]
    assert found == ["1", "3", "4", "5"]
    assert 'modelctl_batch_rows_bucket{model="m",le="+Inf"} 5' in text
    assert 'modelctl_batch_rows_sum{model="m"} 108.0' in text


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
