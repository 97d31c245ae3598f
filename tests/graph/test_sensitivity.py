"""Which node quantization harms most, told before anything is quantized, against what onnxruntime then answers."""

import subprocess
import sys
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from eightbit import quantized
from onnx import helper, numpy_helper

from modelctl.data.samples import Array, Samples
from modelctl.graph.calibration import Calibrator, activations
from modelctl.graph.histograms import Histogram, Range, minmax
from modelctl.graph.sensitivity import TYPES, pulls, rank

SHAPES = {"conv1": (8, 4, 3, 3), "conv2": (16, 8, 3, 3), "conv3": (16, 16, 3, 3), "dense": (5, 1024)}


def _net(scales: dict[str, Array] | None = None) -> onnx.ModelProto:
    """Three convolutions and a dense layer, their weights multiplied by `scales`."""
    random = np.random.default_rng(0)
    nodes, weights, source = [], {}, "x"
    for name, shape in SHAPES.items():
        weight = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        weights[f"{name}_w"] = (weight * (scales or {}).get(name, 1)).astype(np.float32)
        if name == "dense":
            nodes += [
                helper.make_node("Flatten", [source], ["flat"], "flatten"),
                helper.make_node("Gemm", ["flat", "dense_w"], ["logits"], "dense", transB=1),
            ]
        else:
            nodes += [
                helper.make_node("Conv", [source, f"{name}_w"], [f"{name}_y"], name, pads=[1, 1, 1, 1]),
                helper.make_node("Relu", [f"{name}_y"], [f"{name}_r"], f"{name}_relu"),
            ]
            source = f"{name}_r"
    return nets.model_of(nodes, weights, ["n", 4, 8, 8], ["n", 5])


def _samples(seed: int = 1, stretched: float = 1) -> Samples:
    pictures = np.random.default_rng(seed).standard_normal((128, 4, 8, 8)).astype(np.float32)
    pictures[:, 0] *= stretched
    return Samples({"x": pictures})


def _seen(
    model: onnx.ModelProto, samples: Samples, folder: Path
) -> tuple[dict[str, Histogram], dict[str, Range], dict[str, Array]]:
    made = Calibrator(model, "net.onnx", activations(model, TYPES), folder)
    made.watch(samples.batches(32))
    ranges = {value: minmax(found) for value, found in made.histograms.items()}
    return made.histograms, ranges, pulls(model, "net.onnx", samples.first(32))


def _lost(model: onnx.ModelProto, ranges: dict[str, Range], folder: Path, samples: Samples, *excluded: str) -> float:
    """The mean squared error of the outputs when all but `excluded` is quantized."""
    made = quantized(model, ranges, folder, ["Conv", "Gemm"], excluded)
    pictures = samples.inputs["x"]
    told, wanted = nets.run(made, pictures), nets.run(model, pictures)
    return float(np.mean((told - wanted) ** 2))


def _outlier(name: str) -> dict[str, Array]:
    """The layer before has a channel that is always zero, and this one very large weights for it: of no effect."""
    before = list(SHAPES)[list(SHAPES).index(name) - 1]
    dead, large = np.ones(SHAPES[before]), np.ones(SHAPES[name])
    dead[0] = 0
    large[:, : 64 if name == "dense" else 1] = 100
    return {before: dead, name: large}


@pytest.mark.parametrize("name", ("conv2", "conv3", "dense"))
@pytest.mark.parametrize("pulled", (True, False))
def test_layer_with_outlier_weights_comes_first_and_pays_back_in_float(name: str, pulled: bool, tmp_path: Path) -> None:
    model, samples = _net(_outlier(name)), _samples()
    found, ranges, pull = _seen(model, samples, tmp_path)
    worst = rank(model, found, ranges, pull if pulled else None, ("Conv", "Gemm"))[0]
    assert worst.node == name and worst.from_weights > worst.from_inputs
    fresh = _samples(seed=9)
    assert _lost(model, ranges, tmp_path, fresh, name) < 0.5 * _lost(model, ranges, tmp_path, fresh)


@pytest.mark.parametrize("pulled", (True, False))
def test_layer_with_outlier_activations_comes_first_and_pays_back_in_float(pulled: bool, tmp_path: Path) -> None:
    tamed = np.ones(SHAPES["conv1"])
    tamed[:, 0] = 1 / 60
    model, samples = _net({"conv1": tamed}), _samples(stretched=60)
    found, ranges, pull = _seen(model, samples, tmp_path)
    worst = rank(model, found, ranges, pull if pulled else None, ("Conv", "Gemm"))[0]
    assert worst.node == "conv1" and worst.from_inputs > worst.from_weights
    fresh = _samples(seed=9, stretched=60)
    assert _lost(model, ranges, tmp_path, fresh, "conv1") < 0.5 * _lost(model, ranges, tmp_path, fresh)


@pytest.mark.parametrize("name", SHAPES)
def test_share_is_what_rounded_weights_do_to_the_answer(name: str, tmp_path: Path) -> None:
    model, samples = _net(), _samples()
    found, ranges, pull = _seen(model, samples, tmp_path)
    told = next(one for one in rank(model, found, ranges, pull, weight_bits=6, activation_bits=24) if one.node == name)
    rounded = onnx.ModelProto.FromString(model.SerializeToString())
    weight = next(tensor for tensor in rounded.graph.initializer if tensor.name == f"{name}_w")
    values = numpy_helper.to_array(weight)
    scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) / 31
    weight.CopyFrom(numpy_helper.from_array((np.rint(values / scale) * scale).astype(np.float32), weight.name))
    pictures = samples.inputs["x"]
    wanted = nets.run(model, pictures)
    lost = np.mean((nets.run(rounded, pictures) - wanted) ** 2) / wanted.var()
    assert 0.5 < told.share / lost < 2


def test_shares_add_up_to_what_onnxruntime_loses(tmp_path: Path) -> None:
    model, samples = _net(), _samples()
    found, ranges, pull = _seen(model, samples, tmp_path)
    told = rank(model, found, ranges, pull, ("Conv", "Gemm"))
    lost = _lost(model, ranges, tmp_path, samples) / nets.run(model, samples.inputs["x"]).var()
    assert 0.5 < sum(one.share or 0 for one in told) / lost < 2
    assert {one.node: one.from_output > 0 for one in told} == {
        name: name != "dense"
        for name in SHAPES  # the convolutions are followed by a Relu in float
    }


def test_pull_of_an_output_on_itself_is_one_to_its_variance(tmp_path: Path) -> None:
    model, samples = _net(), _samples()
    pull = pulls(model, "net.onnx", samples)
    assert set(pull) == {"conv1_y", "conv2_y", "conv3_y", "logits"}
    wanted = 1 / 5 / nets.run(model, samples.inputs["x"]).astype(np.float64).var()
    assert pull["logits"] == pytest.approx([wanted] * 5, rel=1e-4)
    assert [len(pull[f"{name}_y"]) for name in ("conv1", "conv2", "conv3")] == [8, 16, 16]
    again = pulls(model, "net.onnx", samples)
    assert all(np.array_equal(again[value], found) for value, found in pull.items())


def test_sums_and_products_carry_the_errors_of_what_they_join(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    held = {"w": random.standard_normal((16, 16)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "weighted"),
        helper.make_node("Add", ["x", "a"], ["sum"], "sum"),
        helper.make_node("Mul", ["x", "a"], ["product"], "product"),
        helper.make_node("Transpose", ["a"], ["turned"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "turned"], ["matrix"], "matrix"),
        helper.make_node("Concat", ["sum", "product", "matrix"], ["logits"], "join", axis=2),
    ]
    model = nets.model_of(nodes, held, ["n", 16, 16], ["n", 16, 48])
    x = random.standard_normal((200, 16, 16)).astype(np.float32)
    samples = Samples({"x": x})
    found, ranges, _ = _seen(model, samples, tmp_path)
    told = {one.node: one for one in rank(model, found, ranges, types=(*TYPES, "Concat"), activation_bits=6)}
    assert set(told) == {"weighted", "sum", "product", "matrix"}
    a = x @ held["w"]
    xs, as_ = (_rounded(array, *ranges[value], 6) for array, value in ((x, "x"), (a, "a")))
    lost = {
        "weighted": (xs - x) @ held["w"],
        "sum": xs + as_ - (x + a),
        "product": xs * as_ - x * a,
        "matrix": xs @ as_.transpose(0, 2, 1) - x @ a.transpose(0, 2, 1),
    }
    for name, error in lost.items():
        assert told[name].from_inputs == pytest.approx(np.mean(error**2), rel=0.25)
    quality = 10 * np.log10(np.var(x + a) / told["sum"].from_inputs)
    assert told["sum"].sqnr_db == pytest.approx(quality, abs=0.1)


def _rounded(values: Array, low: float, high: float, bits: int) -> Array:
    scale = (high - low) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return np.asarray((np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale)


def test_node_behind_a_mask_comes_first_and_unseen_ones_are_left_out(tmp_path: Path) -> None:
    model, samples = _net(), _samples()
    found, ranges, pull = _seen(model, samples, tmp_path)
    found["conv2_r"].add(np.array([-np.inf], np.float32))
    del found["conv1_y"]
    for given in (None, pull):
        told = rank(model, found, ranges, given)
        assert told[0].node == "conv3" and told[0].sqnr_db == -np.inf
        assert {one.node for one in told} == {"conv2", "conv3", "dense"}


def test_torch_is_imported_for_pulls_only() -> None:
    code = "import sys, modelctl.graph.calibration, modelctl.graph.sensitivity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
