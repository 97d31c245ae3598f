"""How the serving bench loads a server: processes, and what wrk and h2load find out about them."""

import contextlib
import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from serve_models import Array, pictures, session

CLIENTS = 32
START_S = 90.0  # the longest time that a server may take to answer
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Found:
    """What was measured: requests a second, latencies in ms, CPU time of the server a request in µs."""

    rate: float
    p50: float = float("nan")
    p99: float = float("nan")
    cpu: float = float("nan")


def descendants(pid: int) -> list[int]:
    """A process and all that it started, and they, as long as they live."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for task in Path(f"/proc/{pid}/task").iterdir():
            if task.name != str(pid):
                children += (task / "children").read_text().split()
    except OSError:
        return []
    return [pid, *(other for child in children for other in descendants(int(child)))]


def runs(pid: int) -> bool:
    """Whether a process that we started has not ended yet (proc(5), stat)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def cpu_s(pid: int) -> float:
    """CPU time of a process and those it started, in seconds (proc(5), stat)."""
    ticks = 0
    for one in descendants(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory that a process has in RAM, what it shares with others included (proc(5), VmRSS), in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e6


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


@contextlib.contextmanager
def process(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server that runs within the block; its process id. What it prints goes to a file of its port's name."""
    log = folder / f"{Path(command[-1]).name}-{time.monotonic_ns()}.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=out, env={**os.environ, **(environment or {})}
        )
    try:
        yield server.pid
    finally:
        family = descendants(server.pid)[1:]
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)
        for one in [*family, *([server.pid] if server.poll() is None else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, 9)
        server.wait()


def ask(url: str, kind: str, folder: Path) -> bytes:
    """The answer to one request: its body, or the message in gRPC; OSError when there is none, or none that is well."""
    body = (folder / f"{kind}.body").read_bytes()
    if kind.endswith("grpc"):
        import grpc  # type: ignore[import-untyped]

        with grpc.insecure_channel(url.removeprefix("http://").partition("/")[0]) as channel:
            try:
                answer: bytes = channel.unary_unary(INFER)(body[5:], timeout=10)
                return answer
            except grpc.RpcError as error:
                raise OSError(str(error)) from error
    headers = json.loads((folder / f"{kind}.headers").read_text())
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as reply:
        found: bytes = reply.read()
        return found


def right(answer: bytes, wanted: Array) -> bool:
    """Whether an answer has the numbers that are wanted: as JSON, or as floats anywhere within."""
    near: Callable[[Any], bool] = partial(np.allclose, wanted.ravel(), rtol=1e-2, atol=1e-3)
    if answer[:1] in b"{[":
        lists = re.findall(rb"\[([-+0-9.eE,\s]+)\]", answer)
        found = [np.array([float(one) for one in text.split(b",")]) for text in lists]
        if any(len(one) == wanted.size and near(one) for one in found):
            return True
    with np.errstate(invalid="ignore"):
        ends = range(wanted.nbytes, len(answer) + 1)
        return any(near(np.frombuffer(answer[end - wanted.nbytes : end], np.float32)) for end in ends)


def wrk(url: str, kind: str, folder: Path, seconds: float, pid: int) -> Found:
    """What wrk finds at a URL that the process `pid` serves."""
    before = cpu_s(pid)
    script = str(folder / f"{kind}.lua")
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{max(1, round(seconds))}s", "--latency", "-s", script, url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = cpu_s(pid) - before
    if "Non-2xx" in text:
        raise OSError(f"{url} answers with errors:\n{text}")
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"(\d+) requests in", text)
    half, tail = (re.search(rf"{part}%\s+([\d.]+)(us|ms|s)\s*\n", text) for part in (50, 99))
    if rate is None or count is None or half is None or tail is None:
        raise OSError(f"{url} is not measured:\n{text}")
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    p50, p99 = (float(one[1]) * units[one[2]] for one in (half, tail))
    return Found(float(rate[1]), p50, p99, spent / max(int(count[1]), 1) * 1e6)


def h2load(url: str, kind: str, folder: Path, seconds: float, pid: int) -> Found:
    """What h2load finds: one call at a time on each of 32 connections."""
    log = folder / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "-t1", f"-c{CLIENTS}", "-m1", f"-D{max(1, round(seconds))}", f"--log-file={log}"]
    command += ["-d", str(folder / f"{kind}.body"), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    before = cpu_s(pid)
    text = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    spent = cpu_s(pid) - before
    counts = re.search(r"requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored", text)
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", text)
    if counts is None or rate is None or int(counts[1]) == 0 or int(counts[2]) or int(counts[3]):
        raise OSError(f"{url} answers with errors:\n{text}")
    took = np.array([int(line.split()[2]) for line in log.read_text().splitlines()]) / 1e3
    p50, p99 = (float(one) for one in np.percentile(took, [50, 99]))
    return Found(float(rate[1]), p50, p99, spent / int(counts[1]) * 1e6)


def raw(path: Path, seconds: float) -> Found:
    """Calls a second of onnxruntime in this process, one thread."""
    opened, x = session(path), pictures(28)
    calls, began, before = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for _ in range(1000):
            opened.run(["y"], {"x": x})
        calls += 1000
    return Found(calls / (time.perf_counter() - began), cpu=(time.process_time() - before) / calls * 1e6)
