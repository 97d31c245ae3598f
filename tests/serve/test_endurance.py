"""A day in the small: many requests, and memory that stays flat."""

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
import pytest
import servers
from servers import Running, v2

from modelctl.serve.heads import REMEMBERED

CLIENTS = 16
AHEAD = 40  # requests that a client sends before it reads the answers
WRONG = 20  # one of so many is
BLOCKS = 40
PLACE = b"########"  # where a request says its number
UNLIKE = 40  # one of so many is like none before


def resident_mb(server: Running) -> float:
    """Memory of the server's process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


def blocks(seed: int) -> Iterator[bytes]:
    """Requests of every kind that is remembered or not, a block after the other: of other lengths, raw, and wrong."""
    chance = np.random.default_rng(seed)
    for number in range(BLOCKS):
        block = b""
        for place in range(AHEAD):
            x = chance.standard_normal((1 + place % 3, 4)).astype(np.float32).round(int(chance.integers(1, 7)))
            asked = v2("x", x, "FP32" if place % WRONG else "FP64")  # which is refused
            raw = b""
            if place % 4 == 3:
                raw = x.tobytes()
                asked = {"name": "x", "datatype": asked["datatype"], "shape": x.shape} | {
                    "parameters": {"binary_data_size": len(raw)}
                }
            one = PLACE.decode() if place % UNLIKE == 0 else f"{number:08d}"
            document = json.dumps({"id": one, "inputs": [asked]}).encode()
            head = f"POST /v2/models/affine/infer?n={one} HTTP/1.1\r\nHost: x\r\n"
            head += f"Content-Length: {len(document) + len(raw)}\r\n"
            head += f"Inference-Header-Content-Length: {len(document)}\r\n" if raw else ""
            block += head.encode() + b"\r\n" + document + raw
        yield block


def ask_many(server: Running, rounds: int, seed: int) -> None:
    """So many blocks over each connection, each request of which is answered, and as it should be."""
    numbers = count()
    with contextlib.ExitStack() as opened:
        address = ("127.0.0.1", server.port)
        clients = [opened.enter_context(socket.create_connection(address, timeout=30)) for _ in range(CLIENTS)]
        for block in islice(cycle(list(blocks(seed))), rounds):
            for client in clients:
                client.sendall(block.replace(PLACE, b"%08d" % next(numbers)))
            for client in clients:
                check_answers(client)


def check_answers(client: socket.socket) -> None:
    """Read the answers to a block."""
    answers = b""
    while answers.count(b"HTTP/1.1 ") < AHEAD:
        piece = client.recv(1 << 20)
        assert piece
        answers += piece
    last = answers.rindex(b"HTTP/1.1 ")
    head, _, body = answers[last:].partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    assert found
    left = int(found[1]) - len(body)
    while left:
        left -= len(client.recv(left))
    assert answers.count(b"HTTP/1.1 200 OK") == AHEAD - AHEAD // WRONG
    assert answers.count(b"HTTP/1.1 400 Bad Request") == AHEAD // WRONG


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
    flat(tmp_path, first=REMEMBERED // (CLIENTS * AHEAD) + BLOCKS, rounds=10)


@pytest.mark.slow
def test_two_million_requests_leave_memory_flat(tmp_path: Path) -> None:
    flat(tmp_path, first=100, rounds=2_000_000 // (CLIENTS * AHEAD))
