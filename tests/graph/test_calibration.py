"""Ranges of activations found in one pass, and what onnxruntime.quantization makes of them."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

from modelctl.data.samples import Samples
from modelctl.errors import DataError, UnsupportedError
from modelctl.graph import histograms
from modelctl.graph.calibration import Calibrator, activations, write_ranges
from modelctl.graph.histograms import Histogram, Range
from modelctl.graph.prepare import prepare
from modelctl.graph.quantization import STATIC_TYPES

METHODS: dict[str, Callable[[Histogram], Range]] = {
    "minmax": histograms.minmax,
    "percentile": histograms.percentile,
    "entropy": histograms.entropy,
    "mse": histograms.mse,
}


def _samples(count: int = 256) -> Samples:
    return Samples({"x": nets.samples(count)[0]})


def _watched(model: onnx.ModelProto, folder: Path, samples: Samples, size: int = 32) -> Calibrator:
    made = Calibrator(model, "net.onnx", activations(model, STATIC_TYPES), folder)
    made.watch(samples.batches(size))
    return made


def test_every_activation_is_seen_as_it_is(tmp_path: Path) -> None:
    model, samples = prepare(nets.convolutional(), "net.onnx"), _samples()
    found = _watched(model, tmp_path, samples).histograms
    assert set(found) == {"x", "logits"} | {value for node in model.graph.node for value in node.output}
    for value, seen in found.items():
        if value == "x":
            wanted = samples.inputs["x"]
        else:
            probe = onnx.ModelProto.FromString(model.SerializeToString())
            del probe.graph.output[:]
            probe.graph.output.append(onnx.ValueInfoProto(name=value))
            wanted = nets.run(probe, samples.inputs["x"])
        assert seen.total == wanted.size
        assert (seen.low, seen.high) == pytest.approx((wanted.min(), wanted.max()), rel=1e-5, abs=1e-6)
    assert not list(tmp_path.iterdir())


def test_watching_goes_on_where_it_stopped_in_any_order(tmp_path: Path) -> None:
    model, samples = nets.convolutional(), _samples()
    whole = _watched(model, tmp_path, samples, size=64).histograms
    apart = Calibrator(model, "net.onnx", activations(model, STATIC_TYPES), tmp_path)
    batches = list(samples.batches(64))
    apart.watch(reversed(batches[1:]))
    apart.watch(batches[:1])
    for value, found in whole.items():
        again = apart.histograms[value]
        assert (found.low, found.high, found.zeros) == (again.low, again.high, again.zeros)
        assert np.array_equal(found.counts, again.counts)


@pytest.mark.parametrize("method", METHODS)
def test_onnxruntime_quantizes_with_the_ranges_of_each_method(method: str, tmp_path: Path) -> None:
    model = prepare(nets.convolutional(), "net.onnx")
    found = _watched(model, tmp_path, _samples()).histograms
    ranges = {value: METHODS[method](seen) for value, seen in found.items()}
    made = quantized(model, ranges, tmp_path)
    scales = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    low, high = ranges["x"]
    assert scales["x_scale"] == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-5)
    pictures, labels = nets.samples(1000, seed=7)
    assert np.mean(nets.run(made, pictures).argmax(1) == labels) > 0.9
    assert np.mean(nets.run(made, pictures).argmax(1) == nets.run(model, pictures).argmax(1)) > 0.97


def quantized(
    model: onnx.ModelProto, ranges: dict[str, Range], folder: Path, excluded: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """The model in eight bits with these ranges; no sample is run."""
    write_ranges(ranges, folder / "ranges.json")
    ort_quantization.quantize_static(
        model,
        folder / "quantized.onnx",
        None,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*STATIC_TYPES, "Add"],
        nodes_to_exclude=list(excluded),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        calibration_cache_path=folder / "ranges.json",
    )
    return onnx.load(folder / "quantized.onnx")


def test_masks_are_named_and_integers_left_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["masked"], "log"),
        helper.make_node("Shape", ["masked"], ["size"], "shape"),
        helper.make_node("Relu", ["masked"], ["logits"], "relu"),
    ]
    model = nets.model_of(nodes, {}, ["n", 2], ["n", 2])
    made = Calibrator(model, "net.onnx", ["x", "masked", "size", "logits", "nowhere"], tmp_path)
    made.watch([Samples({"x": np.array([[0, 1], [2, 3]], np.float32)})])
    assert list(made.histograms) == ["x", "masked", "logits"]
    assert made.unbounded() == ["masked"]


def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path) -> None:
    made = Calibrator(nets.convolutional(), "net.onnx", ["x", "c1"], tmp_path)
    with pytest.raises(DataError, match=r"net\.onnx: failed on the calibration samples: ") as caught:
        made.watch([Samples({"x": np.zeros((1, 1, 4, 9), np.float32)})])
    assert "\n" not in caught.value.message
    assert all(found.total == 0 for found in made.histograms.values())
    nodes = [helper.make_node("Missing", ["x"], ["logits"], "missing", domain="nowhere")]
    unknown = nets.model_of(nodes, {}, ["n"], ["n"])
    unknown.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(UnsupportedError, match=r"net\.onnx: can't be run to be calibrated: "):
        Calibrator(unknown, "net.onnx", ["logits"], tmp_path)


_CHILD = """
import gc, sys
from pathlib import Path
import numpy as np, onnx
from modelctl.data.samples import Samples
from modelctl.graph.calibration import Calibrator, activations

def held(what):
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(what)) >> 10

def batches(count):
    random = np.random.default_rng(0)
    for place in range(count):
        yield Samples({"x": random.standard_normal((64, 1024), np.float32) * (1 + place)})

samples = next(batches(1))
path = Path(sys.argv[1])
before = held("VmRSS")
model = onnx.load(path)
made = Calibrator(model, "net.onnx", activations(model, ["MatMul", "Relu"]), path.parent)
del model
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins again
made.watch(batches(2))
few = held("VmHWM")
made.watch(batches(20))
print(before, few, held("VmHWM"), len(made.histograms))
"""


def test_memory_is_the_model_and_a_batch_however_many_samples(tmp_path: Path) -> None:
    random, layers, width = np.random.default_rng(0), 24, 1024
    nodes, weights = [], {}
    for place in range(layers):
        source = f"r{place - 1}" if place else "x"
        weights[f"w{place}"] = (random.standard_normal((width, width)) / width**0.5).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [source, f"w{place}"], [f"m{place}"], f"matmul{place}"))
        last = "logits" if place == layers - 1 else f"r{place}"
        nodes.append(helper.make_node("Relu", [f"m{place}"], [last], f"relu{place}"))
    path = nets.save(nets.model_of(nodes, weights, ["n", width], ["n", width]), tmp_path / "net.onnx")
    done: Any = subprocess.run([sys.executable, "-c", _CHILD, path], capture_output=True, text=True, check=True)
    before, few, many, count = map(int, re.findall(r"\d+", done.stdout))
    model, batch = layers * width * width * 4 >> 20, (2 * layers + 1) * 64 * width * 4 >> 20
    assert count == 2 * layers + 1
    assert many - few <= 5
    assert many - before <= 1.5 * (model + batch)


def test_weights_of_half_precision_and_of_integers_are_taken_in(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    held: dict[str, Any] = {
        "half": random.standard_normal((64, 64)).astype(np.float16),
        "table": random.integers(-100, 100, (64, 64)).astype(np.int8),
    }
    nodes = [
        helper.make_node("Cast", ["half"], ["wide"], "widen", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["table"], ["other"], "convert", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "other"], ["logits"], "second"),
    ]
    made = Calibrator(nets.model_of(nodes, held, ["n", 64], ["n", 64]), "net.onnx", ["logits", "wide"], tmp_path)
    pictures = random.standard_normal((8, 64)).astype(np.float32)
    made.watch([Samples({"x": pictures})])
    wanted = pictures @ held["half"].astype(np.float32) @ held["table"].astype(np.float32)
    assert made.histograms["logits"].high == pytest.approx(wanted.max(), rel=1e-4)
    assert made.histograms["wide"].low == held["half"].min()
