"""Ranges of activations found in one pass, and what onnxruntime.quantization makes of them."""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from eightbit import quantized
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Samples
from modelctl.errors import DataError, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import calibration, histograms
from modelctl.graph.calibration import Calibrator, activations
from modelctl.graph.histograms import Histogram, Range
from modelctl.graph.prepare import prepare
from modelctl.graph.quantizing.recipe import CHAINS

TYPES = [*CHAINS, "Add"]
METHODS: dict[str, Callable[[Histogram], Range]] = {
    "minmax": histograms.minmax,
    "percentile": histograms.percentile,
    "entropy": histograms.entropy,
    "mse": histograms.mse,
}


def _samples(count: int = 256) -> Samples:
    return Samples({"x": nets.samples(count)[0]})


def _watched(model: onnx.ModelProto, folder: Path, samples: Samples, size: int = 32) -> Calibrator:
    made = Calibrator(model, "net.onnx", activations(model, CHAINS), folder)
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
    apart = Calibrator(model, "net.onnx", activations(model, CHAINS), tmp_path)
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
    made = quantized(model, ranges, tmp_path, TYPES)
    scales = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    low, high = ranges["x"]
    assert scales["x_scale"] == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-5)
    pictures, labels = nets.samples(1000, seed=7)
    assert np.mean(nets.run(made, pictures).argmax(1) == labels) > 0.9
    assert np.mean(nets.run(made, pictures).argmax(1) == nets.run(model, pictures).argmax(1)) > 0.97


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


LAYERS, WIDTH = 24, 1024


def _deep() -> onnx.ModelProto:
    """24 layers of 4 MiB."""
    random = np.random.default_rng(0)
    nodes, weights = [], {}
    for place in range(LAYERS):
        source = f"r{place - 1}" if place else "x"
        weights[f"w{place}"] = (random.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [source, f"w{place}"], [f"m{place}"], f"matmul{place}"))
        last = "logits" if place == LAYERS - 1 else f"r{place}"
        nodes.append(helper.make_node("Relu", [f"m{place}"], [last], f"relu{place}"))
    return nets.model_of(nodes, weights, ["n", WIDTH], ["n", WIDTH])


def _told(child: str, *arguments: Path) -> list[int]:
    command = [sys.executable, "-c", child, *map(str, arguments)]
    done: Any = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(number) for number in re.findall(r"\d+", done.stdout)]


MODEL_MIB, BATCH_MIB = LAYERS * WIDTH * WIDTH * 4 >> 20, (2 * LAYERS + 1) * 64 * WIDTH * 4 >> 20


def test_memory_is_the_model_and_a_batch_however_many_samples(tmp_path: Path) -> None:
    path = nets.save(_deep(), tmp_path / "net.onnx")
    before, few, many, count = _told(_CHILD, path)
    assert count == 2 * LAYERS + 1
    assert many - few <= 5
    assert many - before <= 1.5 * (MODEL_MIB + BATCH_MIB)


_WHOLE = """
import sys
from pathlib import Path
from modelctl.data import open_data
from modelctl.formats import onnx as onnx_format
from modelctl.graph.calibration import Calibrator, activations
from modelctl.manifest import TensorSpec

def held(what):
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(what)) >> 10

before = held("VmRSS")
path = Path(sys.argv[1])
payload = onnx_format.open_model(path).load()
model = onnx_format.outline(payload)
made = Calibrator(model, "net.onnx", activations(model, ["MatMul", "Relu"]), path.parent, files=payload.files)
data = open_data(sys.argv[2], [TensorSpec(name="x", dtype="float32", shape=("n", 1024))], 0).train
made.watch(data.first(256).batches(64))
seen = sum(len(batch) for batch in data.batches(64, start=made.seen))
print(before, held("VmHWM"), made.seen, seen, data.is_held)
"""


def test_a_model_and_samples_that_lie_in_files_are_held_once_and_not_at_all(tmp_path: Path) -> None:
    onnx.save(_deep(), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin")
    count = 16_000
    np.savez(tmp_path / "a.npz", x=np.ones((count, WIDTH)))  # 125 MiB
    before, most, seen, rest = _told(_WHOLE, tmp_path / "net.onnx", tmp_path / "a.npz")
    assert (seen, seen + rest) == (256, 0.8 * count)
    assert most - before <= 1.5 * (MODEL_MIB + BATCH_MIB)


@pytest.mark.parametrize("kept", ["inline", "aligned", "odd"])
def test_weights_outside_of_the_model_give_the_same_ranges(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "ALIGNMENT_BYTES", 64)
    monkeypatch.setattr(calibration, "INLINE_BYTES", 64)
    path, model, samples = tmp_path / "m.onnx", nets.convolutional(), _samples()
    whole = _watched(model, tmp_path, samples).histograms
    if kept != "inline":
        onnx.save(nets.convolutional(), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    else:
        nets.save(model, path)
    if kept == "odd":
        shifted = onnx.load(path, load_external_data=False)
        for entry in [one for tensor in shifted.graph.initializer for one in tensor.external_data]:
            entry.value = str(int(entry.value) + 1) if entry.key == "offset" else entry.value
        nets.save(shifted, path)
        (tmp_path / "w.bin").write_bytes(b"." + (tmp_path / "w.bin").read_bytes())
    payload = onnx_format.open_model(path).load()
    outline = onnx_format.outline(payload)
    assert sum(tensor.data_location == TensorProto.EXTERNAL for tensor in outline.graph.initializer) > 2
    made = Calibrator(outline, "m", activations(outline, CHAINS), tmp_path, files=payload.files)
    made.watch(samples.batches(32))
    assert {value: (one.low, one.high) for value, one in made.histograms.items()} == {
        value: (one.low, one.high) for value, one in whole.items()
    }


def test_a_calibration_goes_on_with_the_samples_it_has_not_seen(tmp_path: Path) -> None:
    model, samples = nets.convolutional(), _samples()
    whole = _watched(model, tmp_path, samples).histograms
    made = Calibrator(model, "m", activations(model, CHAINS), tmp_path)

    def stopping() -> Iterator[Samples]:
        yield from itertools.islice(samples.batches(32), 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.watch(stopping())
    assert made.seen == 96
    made.watch(samples.batches(32, start=made.seen))
    assert made.seen == 256
    for value, found in whole.items():
        assert np.array_equal(found.counts, made.histograms[value].counts)


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
