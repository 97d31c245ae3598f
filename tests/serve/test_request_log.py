"""The log of requests: what it says, that its lines are whole, and that nobody waits for it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import servers
from servers import Running, ask, eventually

from modelctl.options import KeygenOptions, KeyType
from modelctl.serve import request_log
from modelctl.serve.request_log import RequestLog
from modelctl.steps.keygen import keygen

TOLD = 20406.75  # stands in no time and no size
ROW = [[TOLD, 2.0, 3.0, 4.0]]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, all of them whole."""
    data = path.read_bytes() if path.exists() else b""
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def test_a_line_tells_all_of_a_request_but_its_payload(zoo: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    keygen(tmp_path / "alice.key", KeygenOptions(type=KeyType.API, models=("affine",)))
    key = (tmp_path / "alice.key").read_text().strip()
    flags = ["--log-requests", str(log), "--api-keys", str(tmp_path / "keys.toml")]
    with servers.running([zoo["affine"], zoo["slow"]], *flags) as server:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        answer = server.ask("/predict/affine?secret=1", ROW, X_Api_Key=key, traceparent=parent)
        server.ask("/predict/slow", [[0.5] * 256], X_Api_Key=key)
        server.ask("/predict/affine", ROW)
        server.ask("/nothing", X_Api_Key=key)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"junk\x01\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 400")
        eventually(lambda: len(lines_of(log)) == 5)
        first, slow, unknown, missing, junk = lines_of(log)
        assert server.stop() == (0, "")
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert abs(datetime.fromisoformat(first["time"]).timestamp() - time.time()) < 60
    assert first["model"] == answer.headers["modelctl-model"]
    assert first["trace"] == "0af7651916cd43dd8448eb211c80319c"
    assert first["remote"] == "127.0.0.1"
    assert [first[name] for name in ("method", "path", "status", "key")] == ["POST", "/predict/affine", 200, "alice"]
    assert (first["in"], first["out"]) == (len(json.dumps(ROW)), len(answer.body))
    assert 0 <= first["queue_ms"] + first["compute_ms"] <= first["total_ms"]
    assert first["compute_ms"] > 0
    assert "error" not in first
    assert (slow["status"], slow["error"], slow["key"]) == (403, "forbidden", "alice")
    assert (unknown["status"], unknown["error"], "key" in unknown) == (401, "unauthenticated", False)
    assert (missing["status"], missing["error"]) == (404, "not_found")
    assert (junk["status"], junk["error"]) == (400, "not_http")
    text = log.read_text()
    assert "secret" not in text
    assert key not in text
    assert str(TOLD) not in text
    assert log.stat().st_mode & 0o027 == 0


def test_payloads_are_told_where_asked_for_and_cut(zoo: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with servers.running([zoo["affine"], zoo["words"]], "--log-requests", str(log), "--log-payloads", "25") as server:
        server.ask("/predict/affine", ROW)
        server.ask("/predict/words", json.dumps([["ü" * 20, "b"]], ensure_ascii=False).encode())
        server.ask("/predict/affine", b"\xff\xfe\x00")
        eventually(lambda: len(lines_of(log)) == 3)
        first, words, raw = lines_of(log)
        assert server.stop() == (0, "")
    assert first["sent"] == json.dumps(ROW)[:25]
    assert re.fullmatch('{"model":"affine@sha256:[0-9a-f]', first["answered"])
    assert words["sent"] == '[["' + "ü" * 11
    assert raw["sent"] == "base64://4A"


def test_a_client_that_leaves_is_told_of(zoo: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with servers.running([zoo["slow"]], "--log-requests", str(log)) as server:
        body = json.dumps([[0.5] * 256] * 400).encode()
        head = b"POST /predict/slow HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head + body[:-1])
            time.sleep(0.1)
        eventually(lambda: len(lines_of(log)) == 1)
        (line,) = lines_of(log)
        assert (line["status"], line["error"], line["out"]) == (499, "client_gone", 0)
        assert server.stop() == (0, "")


def test_lines_of_several_workers_are_whole_and_none_is_lost_when_the_file_is_moved_away(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    flags = ["--workers", "3", "--log-requests", str(log), "--log-payloads", "3000"]
    with servers.running([zoo["affine"]], *flags) as server:
        rows = json.dumps(ROW * 200).encode()

        def client() -> None:
            with contextlib.closing(server.connect()) as connection:
                for _ in range(60):
                    assert ask(connection, "/predict/affine", rows).status == 200

        def all_at_once() -> None:
            threads = [threading.Thread(target=client) for _ in range(9)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()

        all_at_once()
        moved = tmp_path / "log.1"
        log.rename(moved)
        server.process.send_signal(signal.SIGHUP)
        eventually(log.exists)
        held = Path(f"/proc/{server.process.pid}/fd").iterdir()
        assert moved not in [one.resolve() for one in held]  # or what logrotate removes would stay on the disk
        all_at_once()
        eventually(lambda: len(lines_of(moved)) + len(lines_of(log)) == 2 * 9 * 60)
        assert len(lines_of(log)) > 0
        assert server.ask("/v2").status == 200
        assert server.stop() == (0, "")
    assert len(lines_of(moved)) + len(lines_of(log)) == 2 * 9 * 60 + 1


def test_what_is_in_hand_at_the_end_is_written(zoo: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with servers.running([zoo["affine"]], "--log-requests", str(log)) as server:
        for _ in range(5):
            server.process.send_signal(signal.SIGHUP)  # which ends no server that has files to read anew
            assert server.ask("/v2").status == 200
        assert server.stop() == (0, "")
    assert len(lines_of(log)) == 5


def test_a_dash_is_stdout(zoo: dict[str, Path]) -> None:
    with servers.running([zoo["affine"]], "--log-requests", "-", "--workers", "2") as server:
        server.ask("/v2")
        server.process.send_signal(signal.SIGHUP)
        server.ask("/v2/models/affine")
        server.process.send_signal(signal.SIGTERM)
        out, err = server.process.communicate(timeout=30)
    assert sorted(json.loads(line)["path"] for line in out.splitlines()) == ["/v2", "/v2/models/affine"]
    assert (server.process.returncode, err) == (0, "")


def test_a_program_that_was_told_to_ignore_sighup_ignores_it(zoo: dict[str, Path]) -> None:
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, '-m', 'modelctl', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, "serve", str(zoo["affine"]), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = Running(process, process.stdout.readline().split()[1])
        process.send_signal(signal.SIGHUP)
        assert server.ask("/v2").status == 200
        assert server.stop() == (0, "")


class Line:
    """What a log asks of a visit."""

    kind, caller, context = "", None, None
    guest = SimpleNamespace(remote="::1")
    request = SimpleNamespace(body=b"", model=None, head=SimpleNamespace(method="GET", path="/v2"))


def test_a_disk_that_takes_nothing_keeps_nobody_waiting_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    log = RequestLog("/dev/full")
    log.begin(lost.append)
    for _ in range(5):
        log.write(cast(Any, Line()), 200, 0, (0.0, -1.0, -1.0), None, 0)
    eventually(lambda: sum(lost) == 5)
    log.end()
    assert caplog.text.count("no space left on device; lines are lost") == 1
    os.mkfifo(tmp_path / "stuck")
    reader = os.open(tmp_path / "stuck", os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(request_log, "WAITING_BYTES", 10_000)
    monkeypatch.setattr(request_log, "END_S", 0.1)
    stuck = RequestLog(str(tmp_path / "stuck"))
    lost.clear()
    stuck.begin(lost.append)
    for _ in range(3000):  # far more than a pipe and the queue take
        stuck.write(cast(Any, Line()), 200, 0, (0.0, -1.0, -1.0), None, 0)
    assert sum(lost) > 1000
    assert stuck.waiting_bytes <= 10_000
    stuck.end()
    os.close(reader)


def test_lines_that_are_lost_stand_in_metrics(zoo: dict[str, Path]) -> None:
    with servers.running([zoo["affine"]], "--log-requests", "/dev/full") as server:
        server.ask("/v2")
        eventually(lambda: server.metric("modelctl_log_lines_lost_total") >= 1)
        status, err = server.stop()
    assert (status, err.count("lines are lost")) == (0, 1)
