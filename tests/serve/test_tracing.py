"""Traces: what comes in, what goes out, what is sent to a collector, and that nobody waits for one."""

import base64
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st
from servers import Running, eventually

from modelctl.options import ServeOptions
from modelctl.serve import otlp, tracing
from modelctl.serve.otlp import Exporter, Span

ROW = [[1.0, 2.0, 3.0, 4.0]]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


@dataclass
class Sink:
    """A real HTTP server that keeps what it is sent, and answers as it is told to."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def spans(self) -> list[dict[str, Any]]:
        """All spans so far."""
        return [
            span
            for _, _, body in self.got
            for resource in json.loads(body)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]

    def of(self, trace: str) -> dict[str, dict[str, Any]]:
        """The spans of a trace by their names."""
        return {one["name"]: one for one in self.spans if one["traceId"] == trace}


@contextmanager
def sink() -> Iterator[Sink]:
    """A collector on a free port."""
    found = Sink()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.got.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
            self.send_response(found.statuses.pop(0) if found.statuses else 200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


ENVIRONMENT = {"OTEL_SERVICE_NAME": "digits of mine", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=a%20b,x"}


@pytest.fixture(scope="module")
def traced(zoo: dict[str, Path]) -> Iterator[tuple[Running, Sink]]:
    """A server and the collector that it sends to."""
    models = [zoo["affine"], zoo["lookup"]]
    with sink() as collector, servers.running(models, "--otlp", collector.url, environment=ENVIRONMENT) as server:
        yield server, collector
        assert server.stop() == (0, "")


def facts(span: dict[str, Any]) -> dict[str, Any]:
    """A span's attributes."""
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


def test_a_request_is_a_span_with_queue_and_compute_below_it(traced: tuple[Running, Sink]) -> None:
    server, collector = traced
    answer = server.ask("/predict/affine", ROW, traceparent=GOOD, tracestate="vendor=x, a@b=c", User_Agent="me/1")
    eventually(lambda: len(collector.of(TRACE)) == 3)
    found = collector.of(TRACE)
    whole, queue, compute = found["POST /predict/affine"], found["queue"], found["compute"]
    assert {one["traceId"] for one in found.values()} == {TRACE}
    assert whole["parentSpanId"] == PARENT
    assert queue["parentSpanId"] == compute["parentSpanId"] == whole["spanId"]
    assert len({one["spanId"] for one in found.values()}) == 3
    assert answer.headers["traceparent"] == f"00-{TRACE}-{whole['spanId']}-01"
    assert whole["traceState"] == "vendor=x,a@b=c"
    assert (whole["kind"], queue["kind"], compute["kind"]) == (2, 1, 1)
    times = [int(whole["startTimeUnixNano"]), int(queue["startTimeUnixNano"]), int(compute["startTimeUnixNano"])]
    assert times == sorted(times)
    assert int(queue["endTimeUnixNano"]) == times[2] < int(compute["endTimeUnixNano"]) <= int(whole["endTimeUnixNano"])
    digest = answer.headers["modelctl-model"].partition("@")[2]
    told = facts(whole)
    assert told["modelctl.model.digest"] == facts(compute)["modelctl.model.digest"] == digest
    assert (told["http.request.method"], told["http.response.status_code"]) == ("POST", "200")
    assert (told["http.route"], told["url.path"]) == ("/predict/affine", "/predict/affine")
    assert (told["url.scheme"], told["server.address"], told["user_agent.original"]) == ("http", "127.0.0.1", "me/1")
    path, headers, _ = collector.got[0]
    assert (path, headers["content-type"]) == ("/v1/traces", "application/json")


def test_refusals_are_spans_too_and_unknown_paths_make_no_new_names(traced: tuple[Running, Sink]) -> None:
    server, collector = traced
    first, second = "a" * 32, "b" * 32
    server.ask("/some/path/nobody/knows", traceparent=GOOD.replace(TRACE, first))
    server.ask("/predict/lookup", [99], traceparent=GOOD.replace(TRACE, second))
    eventually(lambda: bool(collector.of(first)) and bool(collector.of(second)))
    missing, wrong = collector.of(first)["GET"], collector.of(second)["POST /predict/lookup"]
    assert facts(missing)["error.type"] == "not_found"
    assert (missing["status"], "http.route" in facts(missing)) == ({}, False)
    assert facts(wrong)["http.response.status_code"] in ("400", "500")
    assert wrong["status"] == ({"code": 2} if facts(wrong)["http.response.status_code"] == "500" else {})


def test_the_parents_flag_decides_and_the_share_of_those_that_begin_here(zoo: dict[str, Path]) -> None:
    with sink() as collector, servers.running([zoo["affine"]], "--otlp", collector.url, "--trace-share", "0") as server:
        unsampled = server.ask("/v2", traceparent=GOOD[:-1] + "0")
        fresh = server.ask("/v2")
        server.ask("/v2/health/live", traceparent=GOOD)
        eventually(lambda: len(collector.spans) == 1)
        assert server.stop() == (0, "")
    assert [one["name"] for one in collector.spans] == ["GET /v2/health/live"]
    assert unsampled.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert unsampled.headers["traceparent"].endswith("-00")
    assert "traceparent" not in fresh.headers


def begun(headers: dict[bytes, bytes]) -> tracing.Context:
    """The context of a request to a server that records all traces."""
    found = tracing.context(headers, tracing.Tracer("http://127.0.0.1:1/", 1.0))
    assert found is not None
    return found


def test_shares_are_drawn_by_the_traces_id() -> None:
    tracer = tracing.Tracer("http://127.0.0.1:1/", 0.25)
    assert tracer.draws(1 << 127 | 1)
    assert not tracer.draws(2**64 - 1)
    drawn = [tracing.context({}, tracer) for _ in range(4000)]
    assert 800 < sum(one is not None and one.sampled for one in drawn) < 1200
    assert all(begun({}).sampled for _ in range(100))
    assert not any(tracing.context({}, tracing.Tracer("http://x/", 0.0)) for _ in range(100))
    assert tracing.context({}, None) is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        GOOD + "-",
        GOOD + "-00",
        GOOD + "0",
        GOOD[:-1],
        GOOD.upper(),
        "ff" + GOOD[2:],
        "0" + GOOD,
        GOOD.replace(TRACE, "0" * 32),
        GOOD.replace(PARENT, "0" * 16),
        GOOD.replace("-", "_"),
        GOOD.replace("a", "g"),
        f"{GOOD},{GOOD}",
        GOOD + "\n",
        "01" + GOOD[2:] + "x",
        GOOD.replace("-01", "-0x"),
    ],
)
def test_a_traceparent_that_is_none_begins_a_new_trace(value: str) -> None:
    assert tracing.read_parent(value.encode()) is None
    headers = {b"traceparent": value.encode(), b"tracestate": b"a=b"}
    assert tracing.context(headers, None) is None
    found = begun(headers)
    assert (found.parent, found.state, found.trace == TRACE) == ("", "", False)


@pytest.mark.parametrize(
    ("value", "sampled"),
    [(GOOD, True), (GOOD[:-2] + "00", False), (GOOD[:-2] + "ff", True), ("cc" + GOOD[2:] + "-more-to-come", True)],
)
def test_a_traceparent_of_this_version_or_a_later_one_is_understood(value: str, sampled: bool) -> None:
    assert tracing.read_parent(value.encode()) == (TRACE, PARENT, sampled)


def test_a_traceparent_that_is_sent_twice_is_none(server: Any) -> None:
    import socket

    head = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + f"traceparent: {GOOD}\r\n".encode() * 2 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")  # and nothing is said of a trace by who keeps none
    from modelctl.serve.heads import Heads

    assert begun(Heads().read(head).headers).trace != TRACE


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a=b", "a=b"),
        ("a=b,c@d=e f", "a=b,c@d=e f"),
        ("a=b , ,c=d,", "a=b,c=d"),
        ("a=b,a=c", ""),
        ("A=b", ""),
        ("a", ""),
        ("a=", ""),
        ("=b", ""),
        ("a=b=c", ""),
        ("a=é", ""),
        (",".join(f"k{n}=v" for n in range(32)), ",".join(f"k{n}=v" for n in range(32))),
        (",".join(f"k{n}=v" for n in range(33)), ""),
        ("a=" + "x" * 600, ""),
    ],
)
def test_a_tracestate_is_kept_as_it_is_or_not_at_all(value: str, kept: str) -> None:
    assert tracing.read_state(value.encode("latin-1")) == kept


@given(st.binary(max_size=80))
def test_no_bytes_are_too_odd_for_a_context(value: bytes) -> None:
    found = begun({b"traceparent": value, b"tracestate": value})
    assert re.fullmatch("[0-9a-f]{32}", found.trace)
    assert re.fullmatch("[0-9a-f]{16}", found.span)


@pytest.mark.real_parts
@given(
    st.sampled_from([GOOD, "cc" + GOOD[2:] + "-x", "ff" + GOOD[2:], GOOD + "-x"])
    | st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
)
def test_opentelemetrys_own_reader_finds_the_same(value: str) -> None:
    pytest.importorskip("opentelemetry.trace", reason="pip install opentelemetry-api")
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    theirs = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": value})).get_span_context()
    ours = tracing.read_parent(value.encode())
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert ours == (f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}", theirs.trace_flags.sampled)


@pytest.mark.real_parts
def test_opentelemetrys_own_classes_read_what_is_sent(traced: tuple[Running, Sink]) -> None:
    pytest.importorskip("opentelemetry.proto", reason="pip install opentelemetry-proto")
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    server, collector = traced
    trace = "c" * 32
    server.ask("/predict/affine", ROW, traceparent=GOOD.replace(TRACE, trace))
    eventually(lambda: len(collector.of(trace)) == 3)
    document = next(json.loads(body) for _, _, body in collector.got if trace.encode() in body)
    for span in document["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for name in ("traceId", "spanId", "parentSpanId"):  # hex in OTLP's JSON, base64 in protobuf's
            span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    read = json_format.ParseDict(document, ExportTraceServiceRequest())
    (resource,) = read.resource_spans
    told = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (told["service.name"], told["deployment.environment"]) == ("digits of mine", "a b")
    (scope,) = resource.scope_spans
    assert scope.scope.name == "modelctl"
    spans = {one.name: one for one in scope.spans if one.trace_id.hex() == trace}
    assert {len(one.trace_id) for one in scope.spans} == {16}
    assert spans["compute"].parent_span_id == spans["POST /predict/affine"].span_id
    assert spans["POST /predict/affine"].kind == 2
    status = next(one for one in spans["POST /predict/affine"].attributes if one.key == "http.response.status_code")
    assert status.value.int_value == 200


def test_the_standard_variables_say_where_and_how(zoo: dict[str, Path]) -> None:
    with sink() as collector:
        base = collector.url.removesuffix("/v1/traces")
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": base + "/", "OTEL_EXPORTER_OTLP_HEADERS": "Api-Key=a%20b,junk"}
        with servers.running([zoo["affine"]], "--workers", "2", environment=environment) as server:
            server.ask("/v2")
            eventually(lambda: len(collector.spans) == 1)
            assert server.stop() == (0, "")
        ((path, headers, _),) = collector.got
        assert (path, headers["api-key"]) == ("/v1/traces", "a b")


def test_a_collector_of_the_options_goes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServeOptions().collector is None
    assert not ServeOptions().has_visits
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1/base")
    assert ServeOptions().collector == "http://a:1/base/v1/traces"
    assert ServeOptions().has_visits
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:1/here")
    assert ServeOptions().collector == "http://b:1/here"
    assert ServeOptions(otlp="http://c:1/x").collector == "http://c:1/x"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert ServeOptions().collector is None


def spans(count: int) -> list[Span]:
    return [
        Span("1" * 32, f"{n + 1:016x}", "", "", "x", 2, 1, 2, {"n": n, "b": True}, n % 2 == 1) for n in range(count)
    ]


def test_spans_are_sent_in_batches_and_tried_once_more_where_the_collector_is_busy() -> None:
    lost: list[int] = []
    with sink() as collector:
        collector.statuses = [503]
        exporter = Exporter(collector.url)
        exporter.put(spans(1100))
        exporter.begin(lost.append)
        eventually(lambda: len(collector.got) == 4)
        exporter.end()
    assert lost == []
    assert [len(json.loads(body)["resourceSpans"][0]["scopeSpans"][0]["spans"]) for _, _, body in collector.got] == [
        512,
        512,
        512,
        76,
    ]


def test_what_no_collector_takes_is_lost_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    lost: list[int] = []
    with sink() as collector:
        collector.statuses = [400, 500, 404]
        exporter = Exporter(collector.url)
        exporter.put(spans(3 * otlp.BATCH))
        exporter.begin(lost.append)
        eventually(lambda: sum(lost) == 3 * otlp.BATCH)
        exporter.end()
    assert caplog.text.count("spans are lost") == 1
    unreachable = Exporter("http://127.0.0.1:1/v1/traces")
    lost.clear()
    for _ in range(otlp.WAITING // 1000 + 2):
        unreachable._lost = lost.append
        unreachable.put(spans(1000))
    assert sum(lost) == 2000
    assert len(unreachable._waiting) <= otlp.WAITING
    unreachable.begin(lost.append)
    unreachable.end()
    assert sum(lost) == (otlp.WAITING // 1000 + 2) * 1000


def test_a_collector_that_never_answers_keeps_nobody_waiting(zoo: dict[str, Path]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        with servers.running(
            [zoo["affine"]], "--otlp", url, environment={"OTEL_EXPORTER_OTLP_TIMEOUT": "300"}
        ) as server:
            for _ in range(30):
                assert server.ask("/predict/affine", ROW).status == 200
            eventually(lambda: server.metric("modelctl_spans_lost_total") >= 90)
            status, err = server.stop()
    assert (status, err.count("spans are lost")) == (0, 1)
