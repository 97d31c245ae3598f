from typing import Any

import nets
import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from nets import model_of
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.errors import DataError, UnsupportedError
from modelctl.graph import fixed_point, weights
from modelctl.graph.fixed_point import INTEGERS

make = helper.make_node


def product(weight: Array, opset: int = 17) -> onnx.ModelProto:
    """x @ weight, for a weight [K, N]."""
    rows, columns = weight.shape
    return model_of([make("MatMul", ["x", "w"], ["logits"], "m")], {"w": weight}, ["n", rows], ["n", columns], opset)


def held(model: onnx.ModelProto) -> dict[str, Array]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def unpacked(model: onnx.ModelProto, names: list[str]) -> list[Array]:
    """What onnxruntime computes with in place of these weights."""
    for name in names:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        one.name: np.zeros([n if isinstance(n, int) else 1 for n in one.shape], np.float32)
        for one in session.get_inputs()
    }
    return [np.asarray(one) for one in session.run(names, feeds)]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_weights_and_inputs_are_what_the_formulas_say(data: st.DataObject) -> None:
    """Exactly: the largest p, the integers in the file, and the numbers that are computed with."""
    bits, power = data.draw(st.sampled_from(sorted(INTEGERS))), data.draw(st.integers(-90, 60))
    kind: Any = data.draw(st.sampled_from((np.float32, np.float64)))
    plain = data.draw(arrays.arrays(np.float32, (16, 20), elements=st.floats(-1, 1, width=32)))
    weight = (plain.astype(np.float64) * 2.0**power).astype(kind)
    x = data.draw(arrays.arrays(np.float32, (3, 16), elements=st.floats(0, 1, width=32)))
    nodes = (
        [make("Cast", ["x"], ["c"], to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))] if kind is np.float64 else []
    )
    read = "c" if nodes else "x"
    out = [make("MatMul", [read, "w"], ["y"]), make("Cast", ["y"], ["logits"], to=TensorProto.FLOAT)]
    model = model_of([*nodes, *out], {"w": weight}, [3, 16], [3, 20])
    made, (told, counted) = fixed_point.quantize(model, "net.onnx", bits=bits, batches=lambda: [{"x": x}])
    onnx.checker.check_model(made, full_check=True)

    def numbers(p: int) -> Array:
        return np.rint(weight.astype(np.float64) * 2.0**p)

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert told.p is not None
    assert numbers(told.p).min() >= low
    assert numbers(told.p).max() <= high
    if weight.any() and told.p < fixed_point.MOST:
        assert numbers(told.p + 1).min() < low or numbers(told.p + 1).max() > high
    (stored,) = (one for one in held(made).values() if one.dtype == INTEGERS[bits])
    assert np.array_equal(stored, numbers(told.p))
    wanted = numbers(told.p) * 2.0**-told.p
    made.graph.output.append(onnx.ValueInfoProto(name="x_counted"))
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(unpacked(made, ["w"])[0], wanted)
    assert told.error == np.abs(wanted - weight).max()
    (seen,) = session.run(["x_counted"], {"x": x})
    scale = np.float32(1 / 255)
    assert np.array_equal(seen, np.rint(x / scale) * scale)
    assert np.array_equal(np.rint(np.asarray(seen) * 255), np.rint(x / scale))
    assert (counted.tensor, counted.error) == ("x", np.abs(np.asarray(seen) - x).max())


def test_pixels_are_counted_without_loss() -> None:
    """Each of the 256 numbers that a byte of a picture becomes is that byte again."""
    pixels = (np.arange(256) / 255).astype(np.float32)
    assert np.array_equal(np.rint(fixed_point.counted(pixels) * 255), np.arange(256))
    assert np.abs(fixed_point.counted(pixels) - pixels).max() < 1e-7


@pytest.mark.parametrize(("bits", "loss"), [(8, 0.15), (16, 0.01)])
def test_a_net_in_fixed_point_is_small_and_answers_alike(bits: int, loss: float) -> None:
    """Of whatever opset, weights and biases, in the bits that were asked for; its file is known for quantized."""
    model = nets.convolutional()
    pictures = np.clip(nets.samples(200)[0], 0, 1)
    made, told = fixed_point.quantize(model, "net.onnx", bits=bits, batches=lambda: [{"x": pictures}])
    onnx.checker.check_model(made, full_check=True)
    assert not [one for one in told if one.reason]
    assert [one.tensor for one in told] == ["w1", "b1", "w2", "b2", "w3", "b3", "x"]
    saved = sum(one.bytes_before - one.bytes_after for one in told)
    assert saved > 22000 * (1 - bits / 32)
    assert abs(model.ByteSize() - made.ByteSize() - saved) < 1500
    assert weights.is_quantized(made)
    assert weights.count(made).parameters == weights.count(model).parameters
    wanted = nets.run(model, pictures)
    assert 0 < np.std(nets.run(made, pictures) - wanted) < loss * np.std(wanted)
    exact = {one.tensor: one.p for one in told}
    for name, array in zip(("w1", "b1", "w2", "w3"), unpacked(made, ["w1", "b1", "w2", "w3"]), strict=True):
        p = exact[name]
        assert p is not None
        assert np.array_equal(array, np.rint(held(model)[name] * 2.0**p) * 2.0**-p)


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_old_and_new_opsets_are_written(opset: int) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 20)).astype(np.float32)
    x = np.random.default_rng(1).random((4, 16)).astype(np.float32)
    made, _ = fixed_point.quantize(product(weight, opset), "net.onnx", batches=lambda: [{"x": x}])
    onnx.checker.check_model(made, full_check=True)
    assert np.abs(nets.run(made, x) - x @ weight).max() < 0.2
    assert weights.is_quantized(made)
    assert weights.count(made).parameters == weight.size


def test_a_point_can_be_given() -> None:
    weight = np.random.default_rng(0).uniform(-0.9, 0.9, (16, 20)).astype(np.float32)
    made, (told, _) = fixed_point.quantize(product(weight), "net.onnx", p=5)
    assert told.p == 5
    assert np.array_equal(unpacked(made, ["w"])[0], np.rint(weight * 32) / 32)
    with pytest.raises(UnsupportedError, match=r"^net.onnx: round\(w·2\^8\) of 'w' takes more than 8 bits$") as refused:
        fixed_point.quantize(product(weight), "net.onnx", p=8)
    assert refused.value.hint == "--fraction-bits 7"


@pytest.mark.parametrize(
    ("x", "trouble"), [(-0.1, "from -0.1 to 0.5"), (1.5, "from 0.5 to 1.5"), (np.nan, "not finite")]
)
def test_inputs_outside_are_refused(x: float, trouble: str) -> None:
    feeds = {"x": np.full((2, 16), 0.5, np.float32)}
    bad = {"x": np.array([[0.5] * 15 + [x]], np.float32)}
    with pytest.raises(DataError, match=trouble) as refused:
        fixed_point.quantize(product(np.ones((16, 20), np.float32)), "net.onnx", batches=lambda: [feeds, bad])
    assert str(refused.value).startswith("net.onnx: 'x' ")
    assert "\n" not in str(refused.value)


def test_without_samples_inputs_stay_as_they_are() -> None:
    made, told = fixed_point.quantize(product(np.ones((16, 20), np.float32)), "net.onnx")
    assert [(one.tensor, bool(one.reason)) for one in told] == [("w", False), ("x", True)]
    assert [node.op_type for node in made.graph.node] == ["Cast", "Mul", "MatMul"]


def test_tokens_are_not_counted_and_what_is_excluded_stays() -> None:
    model = prunable.exported("bert")
    feeds = prunable.inputs("bert", 8, 0)
    first = next(node.name for node in model.graph.node if node.op_type == "MatMul")
    made, told = fixed_point.quantize(model, "net.onnx", bits=16, excluded=[first], batches=lambda: [feeds])
    assert [one.reason for one in told if one.reason] == ["is excluded"]
    assert "x" not in [one.tensor for one in told]
    wanted = prunable.run(model, feeds)
    assert 0 < np.std(prunable.run(made, feeds) - wanted) < 0.01 * np.std(wanted)


def test_a_long_bias_is_counted_as_before() -> None:
    random = np.random.default_rng(0)
    held = {
        "w": random.standard_normal((300, 16)).astype(np.float32),
        "b": random.standard_normal(300).astype(np.float32),
    }
    model = model_of([make("Gemm", ["x", "w", "b"], ["logits"], transB=1)], held, ["n", 16], ["n", 300])
    made, (weight, bias, _) = fixed_point.quantize(model, "net.onnx")
    assert (weight.bytes_after, bias.bytes_after) == (4804, 304)
    assert weights.count(made).parameters == 300 * 17
    assert bias.p is not None
    assert np.array_equal(unpacked(made, ["b"])[0], np.rint(held["b"] * 2.0**bias.p) * 2.0**-bias.p)


def test_half_precision_keeps_its_type() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 20)).astype(np.float16)
    nodes = [make("MatMul", ["x", "w"], ["logits"])]
    model = model_of(nodes, {"w": weight}, ["n", 16], ["n", 20])
    for one in (*model.graph.input, *model.graph.output):
        one.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = np.random.default_rng(1).random((4, 16)).astype(np.float16)
    made, (told, _) = fixed_point.quantize(model, "net.onnx", batches=lambda: [{"x": x}])
    assert (told.bytes_before, told.bytes_after) == (640, 324)
    assert np.abs(nets.run(made, x).astype(np.float32) - x.astype(np.float32) @ weight).max() < 0.2
    _, (told, _) = fixed_point.quantize(model, "net.onnx", bits=16)
    assert told.reason == "has 16 bits already"
