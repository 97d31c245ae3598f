"""Quantizing beside other tools: what each writes is scored, and timed in turns with its input; a table for each model.

    python tests/bench/quantize.py [--models cnn,residual,…] [--folder DIR] [--peers DIR] [--rounds N] [--quick]

The models are those of `models.py`, made in `--folder` where it lacks them. `modelctl` is called on its command line
as a user would, with a budget: half a point of accuracy, or a cosine of .993 where there are no labels. Its peers are
onnxruntime's own quantization at its defaults and, with `--peers`, NNCF and Olive, for which environments are made in
that folder. The first three models have more rows than the others; what takes minutes waits for `--patient`.

All files of a model are timed in one run on one thread, the float model twice: `control` is that model against itself.
`drop` is in points of accuracy on the test part, with its 95 % interval over samples; `agree` the share of equal
answers; where there are no classes, both are cosines, the mean and the least. `size` is the input's bytes over those of
the result, `s` the seconds that the tool took.

Exits 1 if modelctl wrote a file that can't be loaded, is over its budget, or is slower or larger than its input.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime as ort
import peers
from models import Array, Feeds, Subject

from modelctl.graph import latency

FIRST = ("cnn", "residual", "minilm")  # those that have figures to reach, and are asked for more rows
MORE = ("auto-size", "dynamic", "weight-only", "float16", "fixed-point", "accuracy-control")
PATIENCE = ("auto-both", "weight-only-4", "qat-4", "qat-3", "search")  # what takes minutes, or was seen above
MAX_DROP = 0.5  # points, where there are labels
LEAST_COSINE = 0.993  # where there are none


@dataclass(frozen=True)
class Ours:
    """What is typed behind `modelctl quantize MODEL -o OUT --data DATA`, and the budget where there are no labels."""

    words: tuple[str, ...] = ()
    least_cosine: float = LEAST_COSINE

    def budget(self, subject: Subject) -> list[str]:
        """The budget that is given; none where there are no samples to hold it against."""
        if subject.data is None:
            return []
        has_labels = subject.test_labels is not None
        return ["--max-drop", str(MAX_DROP)] if has_labels else ["--min-agreement", str(self.least_cosine)]


OURS: dict[str, Ours] = {
    "auto": Ours(),
    "auto-size": Ours(("--target", "size"), least_cosine=0.98),
    "auto-both": Ours(("--target", "both")),
    "static": Ours(("--method", "static")),
    "dynamic": Ours(("--method", "dynamic")),
    "weight-only": Ours(("--method", "weight-only")),
    "weight-only-4": Ours(("--method", "weight-only", "--bits", "4"), least_cosine=0.98),
    "float16": Ours(("--method", "float16")),
    "fixed-point": Ours(("--method", "fixed-point")),
    "qat-4": Ours(("--method", "qat", "--bits", "4", "--flip")),
    "qat-3": Ours(("--method", "qat", "--bits", "3", "--flip")),
}
BATCH = 250


@dataclass
class Row:
    """A line of the table: who made the file, how, and what came of it."""

    by: str
    method: str
    out: Path | None = None
    took_s: float = 0.0
    said: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    least_cosine: float = 0.0
    speed: latency.Speedup | None = None

    @property
    def is_ours(self) -> bool:
        return self.by == "modelctl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(models.MAKERS), help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where models lie or are made; by default a temporary folder")
    parser.add_argument("--peers", type=Path, help="where the environments of peers lie or are made; else without them")
    parser.add_argument("--ours", default=",".join(OURS), help="rows of modelctl; default: %(default)s")
    parser.add_argument(
        "--patient", action="store_true", help="also the rows that take minutes: " + ", ".join(PATIENCE)
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often all are loaded anew and timed")
    parser.add_argument("--row-seconds", type=float, default=240.0, help="a tool that takes longer is ended")
    parser.add_argument("--quick", action="store_true", help="1,000 test samples, two rounds, few rows")
    parser.add_argument("--json", type=Path, help="write all figures into this file, too")
    given = parser.parse_args()
    for name, known in [(given.models, models.MAKERS), (given.ours, OURS)]:
        if unknown := set(name.split(",")) - {*known, ""}:
            parser.error(f"no {', '.join(sorted(unknown))} among {', '.join(known)}")
    if given.quick:
        given.rounds = 2
    broken: list[str] = []
    told: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in given.models.split(","):
            subject = models.ready(name, folder, 1000 if given.quick else None)
            with tempfile.TemporaryDirectory() as work:
                rows = examined(subject, Path(work), given)
            show(subject, rows)
            told[name] = [_plain(row) for row in rows]
            if given.json:
                given.json.write_text(json.dumps(told, indent=1))
            broken += [f"{name}: modelctl {row.method} {why}" for row in rows if row.is_ours for why in violations(row)]
    print("\n".join(["", *broken]) if broken else "\nmodelctl kept the law on every model")
    sys.exit(1 if broken else 0)


def examined(subject: Subject, work: Path, given: argparse.Namespace) -> list[Row]:
    """All rows of a model: made, scored, timed."""
    left_out = (() if given.patient else PATIENCE) + (() if subject.name in FIRST and not given.quick else MORE)
    rows = [Row("float", "control", subject.path)]
    wanted = [name for name in given.ours.split(",") if name not in left_out]
    rows += [ours(subject, name, work, given.row_seconds) for name in wanted]
    samples = work / "samples.npz"
    _save_samples(subject, samples)
    for peer in peers.PEERS:
        if given.peers or not peer.requirements:
            methods = [one for one in peer.methods if one.removeprefix(f"{peer.name}-") not in left_out]
            rows += [theirs(subject, peer, method, samples, work, given) for method in methods]
    told = answers(_session(subject.path, 2), subject)
    for row in rows:
        if row.out is not None:
            _score(row, subject, told)
    race(subject, [row for row in rows if row.out is not None], given.rounds)
    return rows


def ours(subject: Subject, name: str, work: Path, limit_s: float) -> Row:
    """What `modelctl quantize` does when it is called as in `OURS`."""
    out = work / f"modelctl-{name}" / f"{subject.name}.onnx"
    out.parent.mkdir()
    asked = OURS[name]
    words = [*asked.words, *(["--data", subject.data] if subject.data else []), *asked.budget(subject)]
    command = [sys.executable, "-m", "modelctl", "quantize", str(subject.path.resolve()), "-o", str(out), *words]
    least = asked.least_cosine if subject.data and subject.test_labels is None else 0.0
    row = Row("modelctl", name, least_cosine=least)
    return _run(row, [*command, "--json"], out, limit_s)


def theirs(
    subject: Subject, peer: peers.Peer, method: str, samples: Path, work: Path, given: argparse.Namespace
) -> Row:
    """What another tool does in its own environment."""
    out = work / method / f"{subject.name}.onnx"
    out.parent.mkdir()
    row = Row(peer.name, method.removeprefix("ort-").removeprefix(f"{peer.name}-").removeprefix(peer.name) or "default")
    try:
        python = peer.python(given.peers)
    except subprocess.CalledProcessError as error:
        row.said = f"can't be installed: {_last_line(error.stderr)}"
        return row
    words = [method, str(subject.path.resolve()), str(out), str(samples)]
    words += ["--transformer"] if subject.transformer else []
    return _run(row, [str(python), str(Path(peers.__file__).resolve()), *words], out, given.row_seconds)


def _run(row: Row, command: list[str], out: Path, limit_s: float) -> Row:
    """Run a tool for no longer than `limit_s`; its file, if it wrote one that can be loaded, or what it said."""
    started = time.perf_counter()
    # Not where another environment's path would be found, nor where it may leave files.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or row.is_ours}
    environment |= {"OLIVE_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        row.said = f"took longer than {limit_s:.0f} s"
        return row
    row.took_s = time.perf_counter() - started
    if done.returncode or not out.exists():
        row.said = f"exit {done.returncode}: {_message(done)}".replace(f"{out}: ", "")
        return row
    row.out = out
    return row


def _message(done: subprocess.CompletedProcess[str]) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(done.stdout)["error"]["message"])
    return _last_line(done.stderr)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "said nothing")


def _save_samples(subject: Subject, path: Path) -> None:
    """The samples of a subject as `peers.py` reads them."""
    held: Feeds = {}
    for part, feeds in (("calibration", subject.calibration), ("validation", subject.validation)):
        held |= {f"{part}.{name}": array if subject.whole else array[:, np.newaxis] for name, array in feeds.items()}
    if subject.validation_labels is not None:
        held["labels"] = subject.validation_labels
    np.savez(path, allow_pickle=False, **held)


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _batches(subject: Subject) -> Iterator[Feeds]:
    count, size = len(next(iter(subject.test.values()))), 1 if subject.whole else BATCH
    for start in range(0, count, size):
        rows: Any = start if subject.whole else slice(start, start + size)
        yield {name: array[rows] for name, array in subject.test.items()}


def answers(session: ort.InferenceSession, subject: Subject) -> Array:
    """The first output for all test samples, [N, …]."""
    found = [np.asarray(session.run(None, feeds)[0], np.float64) for feeds in _batches(subject)]
    return np.stack(found) if subject.whole else np.concatenate(found)


def _score(row: Row, subject: Subject, wanted: Array) -> None:
    """How good the answers of a row's file are beside those of the float model; a file that can't run is none."""
    assert row.out is not None
    try:
        found = answers(_session(row.out, 2), subject)
    except Exception as error:  # noqa: BLE001 - onnxruntime has many ways to say no
        row.said, row.out = f"unloadable: {_last_line(str(error))}", None
        return
    row.facts["size"] = _size(subject.path) / _size(row.out)
    labels = subject.test_labels
    if labels is None:
        one, other = wanted.reshape(len(wanted), -1), found.reshape(len(found), -1)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosine = (one * other).sum(1) / np.maximum(lengths, 1e-12)
        row.facts |= {"cosine": float(cosine.mean()), "least cosine": float(cosine.min())}
        return
    was, now = wanted.argmax(1), found.argmax(1)
    lost = 100.0 * ((was == labels).astype(float) - (now == labels))
    half = 1.96 * float(lost.std()) / math.sqrt(len(lost))
    row.facts |= {
        "before": float((was == labels).mean()),
        "after": float((now == labels).mean()),
        "drop": float(lost.mean()),
        "drop_low": float(lost.mean()) - half,
        "drop_high": float(lost.mean()) + half,
        "agreement": float((was == now).mean()),
    }


def _size(path: Path) -> int:
    """The bytes of a model, of the weights in the files beside it too."""
    beside = [one for one in path.parent.glob("*.data") if one.name.startswith(path.name)]
    return sum(one.stat().st_size for one in (path, *beside))


def race(subject: Subject, rows: list[Row], rounds: int, seconds: float = 0.4) -> None:
    """Time all files in turns with their input, on one thread, one sample at a time.

    Blocks of runs follow each other in an order that is drawn anew for each turn; a turn gives each row one ratio to
    the float model's block of that turn. Each of `rounds` rounds loads all anew; their medians are summed up by their
    median, their intervals by the widest, as `modelctl` itself does.
    """
    feeds = next(_batches(subject))
    feeds = feeds if subject.whole else {name: array[:1] for name, array in feeds.items()}
    random = np.random.default_rng(0)
    found: list[list[latency.Speedup]] = [[] for _ in rows]
    for _ in range(rounds):
        sessions = [_session(path, 1) for path in (subject.path, *(row.out for row in rows if row.out))]
        pace = [min(_block(session, feeds, 3) for _ in range(2)) for session in sessions]
        runs = [max(1, min(50, round(seconds / 40 / one))) for one in pace]
        ratios: list[list[float]] = [[] for _ in rows]
        end = time.perf_counter() + seconds * len(sessions)
        while len(ratios[0]) < 9 or (time.perf_counter() < end and len(ratios[0]) < 100):
            took = [0.0] * len(sessions)
            for at in random.permutation(len(sessions)):
                took[at] = _block(sessions[at], feeds, runs[at])
            for of, one in zip(ratios, took[1:], strict=True):
                of.append(took[0] / one)
        for all_of_them, of in zip(found, ratios, strict=True):
            all_of_them.append(latency.median_interval(of))
    for row, many in zip(rows, found, strict=True):
        median = float(np.median([one.value for one in many]))
        row.speed = latency.Speedup(median, min(one.low for one in many), max(one.high for one in many))


def _block(session: ort.InferenceSession, feeds: Feeds, runs: int) -> float:
    """The median seconds of a run in a block of them."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - started)
    return max(float(np.median(times)), 1e-9)


def violations(row: Row) -> list[str]:
    """What the law says against a file that modelctl wrote."""
    if row.out is None:
        return [row.said] if row.said.startswith(("unloadable", "exit 70")) else []
    found = []
    if row.facts.get("drop", 0.0) > MAX_DROP:
        found.append(f"loses {row.facts['drop']:.2f} points")
    if row.facts.get("cosine", 1.0) < row.least_cosine:
        found.append(f"has a cosine of {row.facts['cosine']:.4f}, less than {row.least_cosine:g}")
    if row.facts["size"] < 1:
        found.append(f"is larger: ÷{row.facts['size']:.3f}")
    if row.speed is not None and row.speed.is_slower:
        found.append(f"is slower: ×{row.speed.value:.2f} ({row.speed.low:.2f}–{row.speed.high:.2f})")
    return found


def show(subject: Subject, rows: list[Row]) -> None:
    """Print the table of a model."""
    has_labels = subject.test_labels is not None
    count = len(next(iter(subject.test.values())))
    print(f"\n{subject.name}, {_size(subject.path):,} bytes, {count} test samples")
    head = "accuracy" if has_labels else "cosine"
    print(f"{'by':<12} {'method':<17} {head:>8} {'drop, points':>20} {'agree':>7} {'speed':>19} {'size':>6} {'s':>6}")
    for row in rows:
        start = f"{row.by:<12} {row.method:<17}"
        if row.out is None:
            print(f"{start} {row.said[:110]}", flush=True)
            continue
        one = row.facts
        middle = f"{one.get('cosine', 0.0):>8.4f} {'':>20} {one.get('least cosine', 0.0):>7.4f}"
        if has_labels:
            drop = f"{one['drop']:.2f} ({one['drop_low']:.2f} to {one['drop_high']:.2f})"
            middle = f"{one['after']:>8.2%} {drop:>20} {one['agreement']:>7.4f}"
        assert row.speed is not None
        speed = f"×{row.speed.value:.2f} ({row.speed.low:.2f}–{row.speed.high:.2f})"
        print(f"{start} {middle} {speed:>19} ÷{one['size']:>5.2f} {row.took_s:>6.1f}", flush=True)


def _plain(row: Row) -> dict[str, Any]:
    speed = None if row.speed is None else row.speed.facts()
    return {"by": row.by, "method": row.method, "took_s": row.took_s, "said": row.said, "speed": speed} | row.facts


if __name__ == "__main__":
    main()
