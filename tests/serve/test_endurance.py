"""A day in the small: many requests, and memory that stays flat."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import servers
from servers import Running, v2

from modelctl.serve.heads import REMEMBERED

AHEAD = 20  # requests that are sent before their answers are read


def resident_mb(server: Running) -> float:
    """Memory of the server's process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


def ask_many(server: Running, rounds: int, seed: int) -> None:
    """Requests of every kind that is remembered or not: other lengths, other heads, other ids, and wrong ones."""
    chance = np.random.default_rng(seed)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for one in range(rounds):
            sent = b""
            for place in range(AHEAD):
                x = chance.standard_normal((1, 4)).astype(np.float32).round(int(chance.integers(1, 7)))
                wide = "FP32" if place % 10 else "FP64"  # which is refused
                body = json.dumps({"id": f"{one % 300}", "inputs": [v2("x", x, wide)]}).encode()
                head = (
                    f"POST /v2/models/affine/infer?n={one} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                sent += head.encode() + body
            connection.sendall(sent)
            answers = b""
            while answers.count(b"HTTP/1.1 ") < AHEAD or not answers.endswith(b"}"):
                piece = connection.recv(1 << 20)
                assert piece
                answers += piece
            assert answers.count(b"HTTP/1.1 200 OK") == AHEAD - AHEAD // 10
            assert answers.count(b"HTTP/1.1 400 Bad Request") == AHEAD // 10


def flat(folder: Path, first: int, rounds: int) -> None:
    with servers.running([servers.affine(folder / "affine.onnx")]) as server:
        ask_many(server, first, 0)
        before = resident_mb(server)
        ask_many(server, rounds, 1)
        assert resident_mb(server) < before + 8
        opened = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert opened < 40
        assert server.stop() == (0, "")


def test_thousands_of_requests_leave_memory_flat(tmp_path: Path) -> None:
    flat(tmp_path, first=REMEMBERED + 100, rounds=60)


@pytest.mark.slow
def test_two_hundred_thousand_requests_leave_memory_flat(tmp_path: Path) -> None:
    flat(tmp_path, first=1000, rounds=200_000 // AHEAD)
