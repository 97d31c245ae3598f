"""Health.Watch over gRPC-Web and HTTP/1.1, from a real server: told as it comes, in chunks, until somebody ends it."""

import base64
import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import servers
from certificates import Authority
from servers import Running

from modelctl.options import KeygenOptions, KeyType
from modelctl.serve.grpc import calls
from modelctl.serve.grpc.calls import framed
from modelctl.serve.grpc.messages import message
from modelctl.steps.keygen import keygen

WATCH = "/grpc.health.v1.Health/Watch"
KIND, TEXT = "application/grpc-web+proto", "application/grpc-web-text"
Asked, Status = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")


@pytest.fixture
def two(zoo: dict[str, Path]) -> Iterator[Running]:
    with servers.running([zoo["affine"], zoo["log"]]) as found:
        yield found


@contextmanager
def watching(server: Running, name: str = "", kind: str = KIND, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """An answer that goes on."""
    body = framed(Asked(service=name).SerializeToString())
    with closing(server.connect()) as connection:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(
            "POST", WATCH, base64.b64encode(body) if kind == TEXT else body, {"Content-Type": kind} | named
        )
        yield connection.getresponse()


def status_in(frame: bytes) -> Any:
    assert frame[:5] == b"\0\0\0\0\2"
    return Status.FromString(frame[5:]).status


def trailers_in(frame: bytes) -> dict[str, str]:
    assert frame[0] == 0x80
    return dict(one.split(": ", 1) for one in frame[5:].decode().split("\r\n")[:-1])


@pytest.mark.parametrize("kind", [KIND, TEXT])
def test_a_change_is_told_when_it_comes_and_the_end_of_the_server_at_the_end(two: Running, kind: str) -> None:
    read = base64.b64decode if kind == TEXT else bytes
    with watching(two, "log", kind) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == kind
        assert (answer.headers["transfer-encoding"], answer.headers["connection"]) == ("chunked", "close")
        assert "content-length" not in answer.headers
        assert "date" in answer.headers
        assert status_in(read(answer.read1())) == Status.SERVING
        assert two.ask("/v2/repository/models/log/unload", b"").status == 200
        assert status_in(read(answer.read1())) == Status.SERVICE_UNKNOWN
        with watching(two, "affine", kind) as other:
            assert status_in(read(other.read1())) == Status.SERVING
            assert two.stop() == (0, "")
            assert status_in(read(other.read1())) == Status.NOT_SERVING
            assert trailers_in(read(other.read1()))["grpc-status"] == str(calls.UNAVAILABLE)
            assert other.read() == b""  # with the last chunk, else http.client says IncompleteRead
        assert trailers_in(read(answer.read()))["grpc-message"] == "the server ends"


def test_it_ends_at_its_deadline(server: Running) -> None:
    with watching(server, grpc_timeout="100m") as answer:
        assert status_in(answer.read1()) == Status.SERVING
        assert trailers_in(answer.read())["grpc-status"] == str(calls.DEADLINE_EXCEEDED)


def test_who_keeps_no_connection_is_sent_no_chunks(server: Running) -> None:
    with watching(server, connection="close", grpc_timeout="100m") as answer:
        assert "transfer-encoding" not in answer.headers
        body = answer.read()  # until the connection ends
        assert status_in(body[:7]) == Status.SERVING
        assert trailers_in(body[7:])["grpc-status"] == str(calls.DEADLINE_EXCEEDED)


def test_a_second_message_ends_it(server: Running) -> None:
    body = server.ask(WATCH, framed(b"") * 2, content_type=KIND).body
    assert status_in(body[:7]) == Status.SERVING
    assert trailers_in(body[7:])["grpc-status"] == str(calls.INVALID_ARGUMENT)


def test_who_leaves_is_no_error_and_who_sends_on_is_not_heard(two: Running) -> None:
    before = two.metric("modelctl_request_errors_total")
    for _ in range(20):
        with watching(two) as answer:
            assert status_in(answer.read1()) == Status.SERVING
    with closing(two.connect()) as connection:
        connection.request("POST", WATCH, framed(b""), {"Content-Type": KIND})
        socket = connection.sock
        answer = connection.getresponse()
        assert status_in(answer.read1()) == Status.SERVING
        socket.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        assert two.ask("/predict/affine", [[1, 2, 3, 4]]).status == 200
        assert two.metric("modelctl_request_errors_total") == before
        assert two.stop() == (0, "")
        assert status_in(answer.read1()) == Status.NOT_SERVING


def test_other_origins_the_log_and_tls_are_as_for_any_answer(tmp_path: Path, zoo: dict[str, Path]) -> None:
    keygen(tmp_path / "alice.key", KeygenOptions(type=KeyType.API, models=("aff*",)))  # health is told to everybody
    authority = Authority(tmp_path)
    cert, pem = authority.sign("server")
    flags = ["--api-keys", "keys.toml", "--cors-origin", "https://app.example", "--log-requests", "log.jsonl"]
    flags += ["--tls-cert", str(cert), "--tls-key", str(pem)]
    trust = ssl.create_default_context(cafile=authority.certificate)
    with servers.running([zoo["affine"], zoo["log"]], *flags, folder=tmp_path, trust=trust) as server:
        with watching(server, "affine", origin="https://app.example") as answer:
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert status_in(answer.read1()) == Status.SERVING
        with watching(server, "none", grpc_timeout="50m") as answer:
            assert status_in(answer.read1()) == Status.SERVICE_UNKNOWN
            assert trailers_in(answer.read())["grpc-status"] == str(calls.DEADLINE_EXCEEDED)
        assert server.stop() == (0, "")
    lines = [json.loads(one) for one in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(one["path"], one["status"]) for one in lines] == [(WATCH, 499), (WATCH, 200)]
