from pathlib import Path
from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from nets import model_of
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.errors import UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.formats import packing
from modelctl.graph import halves, weights
from modelctl.graph.halves import Half
from modelctl.graph.trainable import TrainableGraph

make = helper.make_node
TYPES = {Half.FLOAT16: np.float16, Half.BFLOAT16: ml_dtypes.bfloat16}


def product(weight: Array, opset: int = 17) -> onnx.ModelProto:
    """x @ weight, for a weight [K, N]."""
    rows, columns = weight.shape
    return model_of([make("MatMul", ["x", "w"], ["logits"], "m")], {"w": weight}, ["n", rows], ["n", columns], opset)


def loaded(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What onnxruntime makes of a model when it loads it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def held(model: onnx.ModelProto) -> dict[str, Array]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.float32, (16, 20), elements=st.floats(-60000, 60000, width=32)),
    st.sampled_from(Half),
    st.sampled_from((9, 13, 21)),
)
def test_what_is_computed_with_is_the_nearest_half(weight: Array, kind: Half, opset: int) -> None:
    made, (told,) = halves.stored(product(weight, opset), "net.onnx", kind)
    onnx.checker.check_model(made)
    wanted = weight.astype(TYPES[kind]).astype(np.float32)
    assert np.array_equal(nets.run(made, np.eye(16, dtype=np.float32)), wanted)
    assert (told.weight, told.bytes_before, told.bytes_after) == ("w", 1280, 640)
    assert told.error * np.abs(weight).max() == pytest.approx(np.abs(wanted - weight).max())


@pytest.mark.parametrize("kind", Half)
@pytest.mark.parametrize("net", ["convolutional", "bert"])
def test_stored_halves_are_unfolded_when_a_file_is_loaded(kind: Half, net: str, tmp_path: Path) -> None:
    """Half the file, the same nodes at work, nearly the same answers; what is trained on is the halves."""
    model = nets.convolutional() if net == "convolutional" else prunable.exported(net)
    made, told = halves.stored(model, "net.onnx", kind)
    assert not [one for one in told if one.reason]
    saved = sum(one.bytes_before - one.bytes_after for one in told)
    assert saved > 0.3 * model.ByteSize()
    assert abs(model.ByteSize() - made.ByteSize() - saved) < 150 * len(told)
    before, after = loaded(model, tmp_path), loaded(made, tmp_path)
    assert sorted(kinds(before)) == sorted(kinds(after))
    assert weights.count(made).parameters == weights.count(model).parameters
    feeds = {"x": nets.samples(8)[0]} if net == "convolutional" else prunable.inputs(net, 8, 0)
    wanted, found = prunable.run(model, feeds), prunable.run(made, feeds)
    assert 0 < np.std(found - wanted) < 0.05 * np.std(wanted)
    graph = TrainableGraph(made, "m").eval()
    assert np.allclose(graph(torch.from_numpy(feeds["x"]))[0].detach().numpy(), found, atol=1e-4)


def test_computing_in_float16_keeps_types_outside_and_halves_them_inside() -> None:
    model = nets.convolutional()
    made = halves.computing(model, "net.onnx")
    onnx.checker.check_model(made)
    assert [one.type.tensor_type.elem_type for one in (*made.graph.input, *made.graph.output)] == [
        TensorProto.FLOAT
    ] * 2
    assert {array.dtype for array in held(made).values()} == {np.dtype(np.float16)}
    pictures, _ = nets.samples(20)
    wanted = nets.run(model, pictures)
    assert 0 < np.abs(nets.run(made, pictures) - wanted).max() < 0.01 * np.std(wanted)
    assert held(model)["w2"].dtype == np.float32


@pytest.mark.parametrize("named", [True, False])
def test_what_overflows_stays_in_float(named: bool) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, 16)).astype(np.float32)
    wide = weight * np.float32(1e5)
    nodes = [
        make("MatMul", ["x", "w"], ["y"], "a" if named else ""),
        make("MatMul", ["y", "v"], ["z"], "b" if named else ""),
        make("Tanh", ["z"], ["logits"]),
    ]
    model = model_of(nodes, {"w": weight, "v": wide}, ["n", 16], ["n", 16])
    x = random.standard_normal((4, 16)).astype(np.float32) / 1e5
    wanted = nets.run(model, x)
    half = halves.computing(model, "net.onnx")
    assert (held(half)["w"].dtype, held(half)["v"].dtype) == (np.float16, np.float32)
    stored, told = halves.stored(model, "net.onnx")
    assert [(one.weight, one.reason) for one in told] == [("w", ""), ("v", "is too large for float16")]
    for made in (half, stored, halves.stored(model, "net.onnx", "bfloat16")[0]):
        assert np.abs(nets.run(made, x) - wanted).max() < 0.05
    with pytest.raises(
        UnsupportedError, match=r"^net.onnx: holds no weights .* float16: 'w' is too large for float16$"
    ):
        halves.stored(product(wide), "net.onnx")


def test_infinite_numbers_stay_what_they_are() -> None:
    mask = np.triu(np.full((16, 16), -np.inf, np.float32), 1)
    model = model_of([make("Add", ["x", "m"], ["logits"])], {"m": mask}, [16, 16], [16, 16])
    made, (told,) = halves.stored(model, "net.onnx")
    assert (told.error, told.reason) == (0, "")
    assert np.array_equal(nets.run(made, np.zeros((16, 16), np.float32)), mask)


def test_a_cpu_computes_nothing_in_bfloat16() -> None:
    """But moves values about: where onnxruntime has all kernels, it is done."""
    with pytest.raises(UnsupportedError, match=r"^net.onnx: .* in bfloat16 on cpu: it has no Conv for that$"):
        halves.computing(nets.convolutional(), "net.onnx", "bfloat16")
    with pytest.raises(UnsupportedError, match=r"it has no MatMul for that$"):
        halves.computing(product(np.ones((16, 16), np.float32)), "net.onnx", "bfloat16")
    table = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    nodes = [
        make("Cast", ["x"], ["i"], to=TensorProto.INT64),
        make("Gather", ["t", "i"], ["g"]),
        make("Transpose", ["g"], ["logits"], perm=[1, 0]),
    ]
    made = halves.computing(model_of(nodes, {"t": table}, [8], [32, 8], 9), "net.onnx", "bfloat16")
    assert held(made)["t"].dtype == ml_dtypes.bfloat16
    found = nets.run(made, np.arange(8, dtype=np.float32))
    assert np.array_equal(found, table.astype(ml_dtypes.bfloat16).T.astype(np.float32))


def test_float16_is_not_mixed_with_bfloat16() -> None:
    model = product(np.ones((16, 16), np.float32))
    made, _ = halves.stored(model, "net.onnx")
    with pytest.raises(UnsupportedError, match="holds float16 already"):
        halves.computing(made, "net.onnx", "bfloat16")
    with pytest.raises(UnsupportedError, match=r"holds no weights that could be stored in bfloat16$"):
        halves.stored(made, "net.onnx", "bfloat16")


def test_weights_are_stored_once_wherever_they_are_read(tmp_path: Path) -> None:
    """By several nodes, in a subgraph, of a subgraph; those that are inputs or outputs stay, and those too small."""
    random = np.random.default_rng(0)
    shared, inner, given, out = (random.standard_normal((16, 16)).astype(np.float32) for _ in range(4))
    small, yes = np.ones((15, 17), np.float32), np.array(True)
    branch = helper.make_graph(
        [make("MatMul", ["y", "shared"], ["one"]), make("MatMul", ["one", "inner"], ["in"])],
        "branch",
        [],
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(inner, "inner")],
    )
    nodes = [
        make("MatMul", ["x", "shared"], ["y"]),
        make("If", ["yes"], ["z"], then_branch=branch, else_branch=branch),
        make("MatMul", ["z", "given"], ["a"]),
        make("Add", ["a", "out"], ["logits"]),
    ]
    initializers: dict[str, Any] = {"shared": shared, "given": given, "out": out, "small": small, "yes": yes}
    model = model_of(nodes, initializers, [16, 16], [16, 16])
    model.graph.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, [16, 16]))
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, [16, 16]))
    made, told = halves.stored(model, "net.onnx")
    reason = "is an input or output of the graph"
    assert [(one.weight, one.reason) for one in told] == [
        *(("shared", ""), ("given", reason), ("out", reason)),
        *(("inner", ""), ("inner", "")),
    ]
    assert held(made)["shared_float16"].dtype == np.float16
    assert len({node.name for node in made.graph.node if node.op_type == "Cast"}) == 1
    x = random.standard_normal((16, 16)).astype(np.float32)
    wanted = nets.run(model, x)
    assert 0 < np.abs(nets.run(made, x) - wanted).max() < 0.05 * np.std(wanted)
    onnx.checker.check_model(made)


def test_weights_beside_the_file_and_packed_ones_are_stored_too(tmp_path: Path) -> None:
    """As `formats.onnx` gives a model out."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    weight[weight < 1] = 0
    apart, packed = product(weight), product(weight)
    onnx.save_model(apart, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    payload = onnx_format.undescribed({name: (tmp_path / name).read_bytes() for name in ("m.onnx", "m.data")})
    assert packing.pack(packed) > 0
    for one in (payload, prunable.payload(packed)):
        made, (told,) = halves.stored(onnx_format.parse(one), "m.onnx")
        assert told.bytes_after == 64 * 64 * 2
        assert np.array_equal(
            nets.run(made, np.eye(64, dtype=np.float32)), weight.astype(np.float16).astype(np.float32)
        )


def test_scales_of_what_is_quantized_already_stay() -> None:
    held: dict[str, Array] = {
        "q": np.ones((4, 300), np.int8),
        "s": np.ones(300, np.float32),
        "w": np.ones((300, 4), np.float32),
    }
    nodes = [
        make("DequantizeLinear", ["q", "s"], ["f"], axis=1),
        make("MatMul", ["x", "f"], ["y"]),
        make("MatMul", ["y", "w"], ["logits"]),
    ]
    made, told = halves.stored(model_of(nodes, held, ["n", 4], ["n", 4]), "net.onnx")
    assert [(one.weight, bool(one.reason)) for one in told] == [("s", True), ("w", False)]
    assert nets.run(made, np.ones((1, 4), np.float32)).tolist() == [[1200.0] * 4]
