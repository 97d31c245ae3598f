"""Quantizing beside onnxruntime's own defaults: accuracy lost, speed and size relative to the float model.

    python tests/bench/quantize.py MODEL.onnx DATA [--threads 1] [--seconds 2] [--runs 3]

Each row is timed in turns with the float model (`speed` is the median of the runs, with the lowest and highest bound of
their intervals). Accuracy is that of the test part of DATA, all calibrate on the same 512 samples of its training part.
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization import shape_inference

from modelctl.artifact import Artifact
from modelctl.data import Samples, open_data
from modelctl.graph import measure
from modelctl.graph.session import Session
from modelctl.options import Method, QuantizeOptions
from modelctl.steps.quantize import quantize

CALIBRATED_ON = 512


class Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: Samples) -> None:
        self.batches: Iterator[Samples] = samples.batches(32)

    def get_next(self) -> Any:
        batch = next(self.batches, None)
        return None if batch is None else batch.inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    model = Artifact.open(given.model)
    data = open_data(given.data, Session(model.load()).inputs, 0)
    samples = data.train.take(CALIBRATED_ON, 0)
    print(f"{'by':<12} {'method':<12} {'drop pp':>8} {'agree':>7} {'speed':>22} {'size':>6} {'took s':>7}")
    for by, method, make in rows(model, given, samples):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "q.onnx"
            started = time.perf_counter()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    make(out)
                took = time.perf_counter() - started
                shown = row(model, out, data.test, data.sha256, given)
            except Exception as error:  # noqa: BLE001 - a peer's crash is a result
                shown, took = f"{type(error).__name__}: {str(error).strip()[:70]}", 0.0
        print(f"{by:<12} {method:<12} {shown} {took:>7.1f}")


def rows(model: Artifact, given: Any, samples: Samples) -> list[tuple[str, str, Callable[[Path], Any]]]:
    """Who quantizes, how, and a function that does it into a file."""

    def ours(method: Method) -> Callable[[Path], Any]:
        data = given.data if method is not Method.WEIGHT_ONLY else None
        options = QuantizeOptions(method=method, data=data, threads=given.threads, allow_regression=True)
        return lambda out: quantize(model, out, options)

    def static(out: Path, source: Path = model.path) -> None:
        ort_quantization.quantize_static(source, out, Reader(samples))

    def dynamic(out: Path, source: Path = model.path) -> None:
        ort_quantization.quantize_dynamic(source, out)

    def advised(make: Callable[[Path, Path], None]) -> Callable[[Path], Any]:
        """After onnxruntime's own preparation of the model, as its documentation advises."""

        def run(out: Path) -> None:
            ready = out.with_name("ready.onnx")
            shape_inference.quant_pre_process(model.path, ready, skip_symbolic_shape=True)
            make(out, ready)

        return run

    return [
        *(("modelctl", str(method), ours(method)) for method in Method),
        ("onnxruntime", "static", static),
        ("onnxruntime", "dynamic", dynamic),
        ("ort prepared", "static", advised(static)),
        ("ort prepared", "dynamic", advised(dynamic)),
    ]


def row(model: Artifact, out: Path, samples: Samples, digest: str, given: Any) -> str:
    trial = measure.Trial(samples=samples, data=digest, timed_threads=given.threads, seconds=given.seconds)
    found = [measure.compare(model.load(), Artifact.open(out).load(), trial) for _ in range(given.runs)]
    speeds = [one["latency"]["speedup"] for one in found]
    speed = statistics.median(one["value"] for one in speeds)
    span = f"×{speed:.2f} ({min(one['low'] for one in speeds):.2f}–{max(one['high'] for one in speeds):.2f})"
    return f"{found[0]['drop_pp']:>8.2f} {found[0]['agreement']:>7.4f} {span:>22} ×{found[0]['size_ratio']:>5.2f}"


if __name__ == "__main__":
    main()
