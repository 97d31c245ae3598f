"""Requests a second, latency, CPU time, start and memory of `modelctl serve`, beside what people use, in turns.

    python tests/bench/serve.py [--peers DIR] [--only fastapi,kserve] [--measure tiny,cnn,start] [--rounds 3]

Needs wrk and h2load (apt-get install wrk nghttp2-client), and grpcio for one call. Each peer is installed into an
environment of its own under DIR (default: a temporary one; minutes, and some GB), all are started, and the contenders
take turns; the median of the rounds is shown. One that can't be installed or gives no right answer is told, not fatal.
`--only modelctl` installs nothing. Client and servers share the machine, so the figures compare; they are no absolute
measure. CPU time of a server's processes for a request is what stays comparable where others use the machine, too.
"""

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnxruntime as ort
from serve_load import (
    CLIENTS,
    INFER,
    START_S,
    Found,
    ask,
    cpu_s,
    free_port,
    h2load,
    process,
    raw,
    right,
    runs,
    wrk,
)
from serve_models import SIDES, pictures, session, write_models, write_scripts
from serve_peers import OURS, SERVERS, Server
from serve_start import starting

# How many times as many requests as a peer modelctl shall answer, by peer and form.
GOALS = {
    "fastapi": {"JSON": 8.0},
    "mlserver": {"JSON": 12.0},
    "kserve": {"JSON": 18.0, "gRPC": 5.0},
    "litserve": {"JSON": 25.0},
    "bentoml": {"JSON": 40.0},
    "pytriton": {"JSON": 8.0, "binary": 8.0, "gRPC": 3.0},
    "ray": {"JSON": 8.0},
}
FORMS = {
    "json": "JSON",
    "rows": "JSON",
    "various": "JSON, each another",
    "binary": "binary",
    "floats": "floats alone",
    "grpc": "gRPC",
}
SAME = {"floats alone": "binary"}  # what modelctl has instead
RAW = "onnxruntime in process"
SLOWER = 1.5  # times as long slices for a net whose runs take a quarter of a second for all clients
SETTLE_S = 1.0  # over which idle servers are watched


@dataclass(frozen=True)
class Live:
    """A server that runs, and the forms in which each model answered rightly."""

    server: Server
    pid: int
    port: int
    grpc: int
    forms: set[str]

    def url(self, kind: str, model: str) -> str:
        """Where a body of a kind goes."""
        if kind == "grpc":
            return f"http://127.0.0.1:{self.grpc}{INFER}"
        return f"http://127.0.0.1:{self.port}{self.server.paths[kind].format(model=model)}"

    def contender(self, kind: str, model: str, folder: Path, seconds: float) -> Callable[[], Found]:
        """A slice of load on it."""
        load = h2load if kind == "grpc" else wrk
        front = "" if model == "mlp" else f"{model}."
        return partial(load, self.url(kind, model), front + kind, folder, seconds, self.pid)


Contenders = dict[tuple[str, str, str], Callable[[], Found]]  # by title, peer and form


@contextlib.contextmanager
def live(chosen: Sequence[Server], peers: Path, folder: Path) -> Iterator[list[Live]]:
    """Servers that are installed, started, and answer."""
    with contextlib.ExitStack() as stack:
        started = []
        for server in (OURS, *chosen):
            try:
                python = server.peer.python(peers)
            except subprocess.CalledProcessError as error:
                print(f"{server.title}: can't be installed: {(error.stderr or str(error)).strip().splitlines()[-1]}")
                continue
            server.lay(folder)
            ports = {name: str(free_port()) for name in ("port", "grpc", "metrics")}
            program = f"{server.peer.name}_program.py"
            known = {"python": python, "program": program, "folder": folder, **ports}
            fill: Callable[[str], str] = partial(_filled, known)
            environment = {name: fill(value) for name, value in server.environment.items()}
            pid = stack.enter_context(process([fill(part) for part in server.command], folder, environment))
            started.append(Live(server, pid, int(ports["port"]), int(fill(server.grpc)), set()))
        yield [one for one in started if answers(one, folder)]


def _filled(known: dict[str, object], text: str) -> str:
    return text.format_map(known)


def answers(one: Live, folder: Path) -> bool:
    """Wait until a server answers all that is declared, and keep what it answers rightly; whether that is anything."""
    wanted = {
        name: session(folder / f"{name}.onnx").run(["y"], {"x": pictures(side)})[0] for name, side in SIDES.items()
    }
    ends, trouble = time.monotonic() + START_S, "it does not answer"
    for kind in one.server.paths:
        for model in SIDES if kind != "various" else ("mlp",):
            front = "" if model == "mlp" else f"{model}."
            while True:
                try:
                    if right(ask(one.url(kind, model), front + kind, folder), wanted[model]):
                        one.forms.add(f"{model} {kind}")
                    else:
                        trouble = f"another answer to {kind} of {model}"
                    break
                except OSError as error:
                    trouble = str(error)
                if time.monotonic() > ends or not runs(one.pid):
                    break
                time.sleep(0.2)
            if f"{model} {kind}" not in one.forms:
                print(f"{one.server.title}: {kind}, {model}: {trouble.strip().splitlines()[0]}")
    return bool(one.forms)


def tiny(servers: Sequence[Live], kinds: set[str], folder: Path, rounds: int, seconds: float) -> None:
    """The tiny MLP, whose model time is next to nothing: what is measured is the server."""
    print(f"\nTiny MLP (784 → 32 → 10), {CLIENTS} connections:\n")
    contenders: Contenders = {(RAW, "", ""): partial(raw, folder / "mlp.onnx", seconds / 2)}
    for kind in (one for one in FORMS if one in kinds):
        contenders |= _contenders(servers, kind, "mlp", folder, seconds)
    table(contenders, rounds)


def cnn(servers: Sequence[Live], kinds: set[str], folder: Path, rounds: int, seconds: float) -> None:
    """A net that takes its time: what is measured is how a server keeps it busy, and who waits."""
    for model, wanted, what in (
        ("cnn", ("json", "rows"), "28×28 pictures as JSON"),
        ("picture", ("binary", "floats", "grpc"), "224×224 pictures as 196 kB of floats"),
    ):
        contenders: Contenders = {}
        for kind in (one for one in wanted if one in kinds):
            contenders |= _contenders(servers, kind, model, folder, SLOWER * seconds)
        if contenders:
            print(f"\nA convolutional net of about 8 ms, {what}, {CLIENTS} connections:\n")
            table(contenders, rounds)


def _contenders(servers: Sequence[Live], kind: str, model: str, folder: Path, seconds: float) -> Contenders:
    return {
        (one.server.title, one.server.peer.name, FORMS[kind]): one.contender(kind, model, folder, seconds)
        for one in servers
        if f"{model} {kind}" in one.forms
    }


def table(contenders: Contenders, rounds: int) -> None:
    """Let the contenders take turns, and print the medians."""
    found: dict[tuple[str, str, str], list[Found]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            try:
                found[name].append(measure())
            except OSError as error:
                print(f"{name[0]}, {name[2]}: {str(error).splitlines()[0]}")
    rates = {name: statistics.median(one.rate for one in all_) for name, all_ in found.items() if all_}
    base = next((rate for name, rate in rates.items() if name[0] == RAW), None)
    print("| what | requests/s | of raw | modelctl is | asked | p50, ms | p99, ms | CPU, µs |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rate in rates.items():
        title, peer, form = name
        ours = rates.get((OURS.title, "modelctl", SAME.get(form, form)))
        over = f"×{ours / rate:.1f}" if ours and peer != "modelctl" else ""
        goal = GOALS.get(peer, {}).get(form) if base else 1.0 if over else None
        p50, p99, cpu = (statistics.median(getattr(one, part) for one in found[name]) for part in ("p50", "p99", "cpu"))
        cells = [f"{title}, {form}" if form else title, f"{rate:,.0f}", f"{rate / base:.3f}" if base else "", over]
        cells += [
            f"×{goal:g}" if goal else "",
            *(f"{one:.2f}" if one == one else "" for one in (p50, p99)),
            f"{cpu:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where the peers' environments are kept")
    parser.add_argument("--only", default=",".join(GOALS), help="peers, or modelctl for it alone")
    parser.add_argument("--measure", default="tiny,cnn,start")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    asked = parser.parse_args()
    for tool in ("wrk", "h2load"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: apt-get install wrk nghttp2-client")
    chosen = [one for one in SERVERS if one.peer.name in asked.only.split(",")]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        took = write_models(folder)
        write_scripts(folder, tuple(took))
        about = ", ".join(f"{model} {ms:.2f} ms" for model, ms in took.items())
        print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; CPython", end=" ")
        print(f"{platform.python_version()}, onnxruntime {ort.__version__}, one thread: {about}")
        if "start" in asked.measure:
            starting(folder / "mlp.onnx")
        if asked.measure == "start":
            return
        for restless in (False, True):
            together = [one for one in chosen if one.restless == restless]
            if together or not restless:
                beside(together, (asked.peers or folder / "peers").resolve(), folder, asked)


def beside(chosen: Sequence[Server], peers: Path, folder: Path, asked: argparse.Namespace) -> None:
    """Measure modelctl and some peers, which are all up at once."""
    with live(chosen, peers, folder) as servers:
        before, began = sum(cpu_s(one.pid) for one in servers), time.monotonic()
        time.sleep(SETTLE_S)
        share = (sum(cpu_s(one.pid) for one in servers) - before) / (time.monotonic() - began)
        print(f"\n{', '.join(one.server.title for one in servers)}: idle, they take {share:.0%} of a core together")
        kinds = {kind for one in chosen for kind in one.paths} if any(one.restless for one in chosen) else set(FORMS)
        for part in (tiny, cnn):
            if part.__name__ in asked.measure:
                part(servers, kinds, folder, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
