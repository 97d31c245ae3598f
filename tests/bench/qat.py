"""Quantization-aware training beside plain rounding, timed in turns with the float model; prints one table.

    python tests/bench/qat.py MODEL.onnx [DATA] [--bits 4 3] [--seeds 0 1] [--epochs 1] [--threads 2] [--seconds 2]

MODEL is an export of a net of `fashion.py` (`tests/bench/prune.py` makes them), or any classifier. Accuracy is that of
the test part of DATA, which no choice sees. Models are timed on one thread, on batches of 1 and 64.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fashion
import numpy as np

from modelctl.data import Data, open_data
from modelctl.formats import onnx as onnx_format
from modelctl.graph import measure
from modelctl.graph.quantizing import qat
from modelctl.graph.session import Session

BATCHES = (1, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", nargs="?", default=str(fashion.FASHION_MNIST))
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--no-flip", action="store_true", help="show no mirrored pictures, and take any inputs")
    given = parser.parse_args()
    model = onnx_format.open_model(given.model)
    payload = model.load()
    session = Session(payload, given.threads)
    graph = onnx_format.parse(payload)
    print(f"{'bits':>4} {'seed':>4} {'float':>7} {'rounded':>8} {'taught':>8} {'bytes':>8} {'size':>6}", end=" ")
    print(f"{'batch 1':>8} {'batch 64':>8} {'took s':>7}")
    for bits in given.bits:
        taught = []
        for seed in given.seeds:
            data = open_data(given.data, session.inputs, seed)
            course = qat.Course(
                bits=bits, epochs=given.epochs, lr=given.lr, flip=not given.no_flip, seed=seed, threads=given.threads
            )
            with tempfile.TemporaryDirectory() as place:
                plain = qat.train(graph, session, data, replace(course, epochs=0), Path(place))
                started = time.perf_counter()
                made = qat.train(graph, session, data, course, Path(place))
                took = time.perf_counter() - started
            before = _accuracy(onnx_format.payload_of(plain.model, payload), data, given.threads)
            facts = [_compared(payload, made, data, batch, given) for batch in BATCHES]
            taught.append(facts[0]["accuracy"]["value"])
            speeds = [f"×{one['latency']['speedup']['value']:.2f}" for one in facts]
            first = facts[0]
            print(
                f"{bits:>4} {seed:>4} {first['accuracy_before']['value']:>7.2%} {before:>8.2%} {taught[-1]:>8.2%} "
                f"{first['size_bytes']:>8} ÷{first['size_ratio']:>5.2f} {speeds[0]:>8} {speeds[1]:>8} {took:>7.0f}",
                flush=True,
            )
        print(f"{bits:>4} mean {'':>16} {statistics.mean(taught):>8.2%}", flush=True)


def _accuracy(model: Any, data: Data, threads: int) -> float:
    found = measure.answers(Session(model, threads), data.test)
    return float(np.mean(found.argmax(axis=1) == data.test.labels))


def _compared(before: Any, made: qat.Trained, data: Data, batch: int, given: Any) -> dict[str, Any]:
    trial = measure.Trial(
        samples=data.test, data=data.sha256, batch=batch, threads=given.threads, seconds=given.seconds
    )
    return measure.compare(before, onnx_format.payload_of(made.model, before), trial)


if __name__ == "__main__":
    main()
