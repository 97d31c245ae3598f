"""How long `modelctl serve` takes from nothing to its first answer, where the time goes, and what memory it takes."""

import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from serve_load import cpu_s, free_port, process, resident_mb, wrk
from serve_models import pictures

TIMES = 5
PAUSE_S = 0.002  # between two tries to connect
PACKAGES = 8  # of those that take the longest to import
FLOOR = "import onnxruntime, numpy; onnxruntime.InferenceSession('mlp.onnx')"


def starting(model: Path) -> None:
    """Print the start to the first answer, its CPU time, its imports, and memory at rest and after some load."""
    first_answer(model)  # writes the bytecode that an installed package comes with
    found = [first_answer(model) for _ in range(TIMES)]
    took, cpu = (statistics.median(one[part] for one in found) for part in (0, 1))
    floors = []
    for _ in range(TIMES):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", FLOOR], cwd=model.parent, check=True)
        floors.append(time.perf_counter() - began)
    low, high = min(one[0] for one in found), max(one[0] for one in found)
    print(f"\nfrom the start to the first answer, median of {TIMES}: {took:.2f} s ({low:.2f} to {high:.2f}),", end=" ")
    print(
        f"CPU time {cpu:.2f} s; a process that only opens the model in onnxruntime: {statistics.median(floors):.2f} s"
    )
    packages = imports(model)
    print(
        f"imports: {sum(packages.values()):.2f} s, traced: "
        + ", ".join(
            f"{name} {spent:.2f}" for name, spent in sorted(packages.items(), key=lambda one: -one[1])[:PACKAGES]
        )
    )
    rest, loaded = memory(model)
    beside = model.stat().st_size / 1e6
    print(
        f"resident memory: {rest:.0f} MB after one answer, {loaded:.0f} MB under load, the model {beside:.1f} MB of it"
    )


def bytecode(model: Path) -> dict[str, str]:
    """An environment whose Python keeps what it compiles, as it would be in an installed package, beside the model."""
    return {"PYTHONPYCACHEPREFIX": str(model.parent / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}


def command(model: Path, port: int) -> list[str]:
    """`modelctl serve` of one model."""
    return [sys.executable, "-m", "modelctl", "serve", model.name, "--port", str(port)]


def first_answer(model: Path) -> tuple[float, float]:
    """Seconds until the first answer, by the clock and of CPU time."""
    port, request = free_port(), request_of(model.parent / "binary.body")
    began = time.perf_counter()
    with process(command(model, port), model.parent, bytecode(model)) as pid:
        wait(port, request)
        return time.perf_counter() - began, cpu_s(pid)


def request_of(body: Path) -> bytes:
    """A whole request for a binary answer."""
    asked = body.read_bytes()
    head = f"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(asked)}\r\n"
    head += f"Inference-Header-Content-Length: {len(asked) - pictures(28).nbytes}\r\nConnection: close\r\n\r\n"
    return head.encode() + asked


def wait(port: int, request: bytes) -> None:
    """Send a request as soon as a server takes it; SystemExit when its answer is none."""
    for _ in range(30000):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                client.sendall(request)
                answer = b"".join(iter(lambda: client.recv(65536), b""))
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(f"the first answer is {answer[:200]!r}")
                return
        time.sleep(PAUSE_S)
    raise SystemExit("the server does not start")


def imports(model: Path) -> dict[str, float]:
    """Seconds that each top package's modules take to be imported, as `-X importtime` has them."""
    port = free_port()
    log = model.parent / "imports.txt"
    with log.open("w") as out:
        asked = command(model, port)
        traced, kept = [asked[0], "-X", "importtime", *asked[1:]], os.environ | bytecode(model)
        server = subprocess.Popen(traced, cwd=model.parent, env=kept, stdout=out, stderr=out)
        wait(port, request_of(model.parent / "binary.body"))
        server.terminate()
        server.wait()
    found: dict[str, float] = defaultdict(float)
    for line in log.read_text().splitlines():
        if one := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)", line):
            found[one[2] if one[2] not in sys.stdlib_module_names else "standard library"] += int(one[1]) / 1e6
    return found


def memory(model: Path) -> tuple[float, float]:
    """Resident memory after the first answer, and after a second of load in both forms, in MB."""
    port = free_port()
    with process(command(model, port), model.parent, bytecode(model)) as pid:
        wait(port, request_of(model.parent / "binary.body"))
        rest = resident_mb(pid)
        for kind in ("binary", "json"):
            wrk(f"http://127.0.0.1:{port}/v2/models/mlp/infer", kind, model.parent, 1, pid)
        return rest, resident_mb(pid)
