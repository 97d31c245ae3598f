from pathlib import Path

import nets
import numpy as np
import onnx
import prunable
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized import ranges, static

from modelctl.errors import UnsupportedError
from modelctl.graph.prepare import prepare
from modelctl.graph.quantizing import integers
from modelctl.graph.quantizing.recipe import CHAINS, DYNAMIC, PRODUCTS, Recipe
from modelctl.options import Method

make = helper.make_node


def fed_by(model: onnx.ModelProto) -> dict[str, str | None]:
    """What makes the second input of each product."""
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    return {node.name: maker.get(node.input[1]) for node in model.graph.node if node.op_type in PRODUCTS}


def test_products_take_integers_and_answers_stay_in_float() -> None:
    x, labels = nets.samples(300)
    made = static(nets.convolutional(), x)
    assert fed_by(made) == dict.fromkeys(("conv1", "conv2", "dense"), "DequantizeLinear")
    assert made.graph.node[-1].op_type == "Gemm"
    held = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert TensorProto.FLOAT not in {kind for name, kind in held.items() if len(name) == 2}
    assert not made.graph.value_info
    assert not made.metadata_props
    answers = prunable.run(made, {"x": x})
    assert (answers.argmax(1) == labels).mean() > 0.85


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("weight_bits", [7, 8])
def test_weights_are_within_their_bits(per_channel: bool, weight_bits: int) -> None:
    made = static(nets.convolutional(), nets.samples(50)[0], per_channel=per_channel, weight_bits=weight_bits)
    stored = [numpy_helper.to_array(one) for one in made.graph.initializer if one.data_type == TensorProto.INT8]
    weights = [one for one in stored if one.ndim > 1]
    assert len(weights) == 3
    assert max(int(np.abs(one.astype(int)).max()) for one in weights) == (127 if weight_bits == 8 else 64)
    scales = {tuple(one.dims) for one in made.graph.initializer if one.name == "w2_scale"}
    assert scales == {(64,) if per_channel else ()}


def test_a_node_to_leave_stays_and_its_pool_goes_before_its_relu() -> None:
    x = nets.samples(50)[0]
    made = static(nets.convolutional(), x, floats=("conv1",))
    assert fed_by(made)["conv1"] is None
    first = [node.op_type for node in made.graph.node if node.op_type in ("Conv", "MaxPool", "Relu")][:3]
    assert first == ["Conv", "MaxPool", "Relu"]
    before = prunable.run(nets.convolutional(), {"x": x})
    assert np.std(prunable.run(made, {"x": x}) - before) < 0.1 * np.std(before)


def masked() -> onnx.ModelProto:
    """A product, then a mask that is minus infinity, then another product of what comes of it."""
    random = np.random.default_rng(0)
    held = {name: random.standard_normal((8, 8)).astype(np.float32) for name in ("w1", "w2")}
    mask = np.where(np.arange(8) < 2, -np.inf, 0).astype(np.float32)
    nodes = [
        make("MatMul", ["x", "w1"], ["a"], "first"),
        make("Add", ["a", "mask"], ["b"], "masking"),
        make("Softmax", ["b"], ["c"], "softmax"),
        make("MatMul", ["c", "w2"], ["logits"], "second"),
    ]
    return nets.model_of(nodes, held | {"mask": mask}, ["n", 8], ["n", 8])


def test_what_has_no_range_stays_in_float() -> None:
    model = masked()
    x = np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)
    ready = prepare(model, "net")
    known = {name: one for name, one in ranges(ready, x).items() if np.isfinite(one).all() and name != "b"}
    recipe = Recipe(method=Method.STATIC, types=("MatMul", "Add", "Softmax"))
    made = integers.static(ready, integers.shapes(ready), known, recipe)
    assert [node.op_type for node in made.graph.node if node.name in ("masking", "softmax")] == ["Add", "Softmax"]
    before = prunable.run(model, {"x": x})
    assert np.std(prunable.run(made, {"x": x}) - before) < 0.1 * np.std(before)


def test_dynamic_finds_ranges_while_it_runs() -> None:
    x = nets.samples(50)[0]
    ready = prepare(nets.convolutional(), "net")
    made = integers.dynamic(ready, integers.shapes(ready), Recipe(method=Method.DYNAMIC, types=DYNAMIC))
    assert "MatMulInteger" in {node.op_type for node in made.graph.node}
    before = prunable.run(nets.convolutional(), {"x": x})
    assert np.std(prunable.run(made, {"x": x}) - before) < 0.1 * np.std(before)


def test_shapes_are_told_without_the_weights_and_the_model_is_left_alone() -> None:
    model = nets.convolutional()
    before = model.SerializeToString()
    told = {one.name: one.type.tensor_type for one in integers.shapes(model)}
    assert set(told) >= {"c1", "r1", "p1", "f"}
    assert [one.dim_value for one in told["p2"].shape.dim][1:] == [64, 2, 2]
    assert model.SerializeToString() == before


def test_what_onnxruntime_stumbles_over_is_named(tmp_path: Path) -> None:
    ready = prepare(nets.convolutional(), "net")
    recipe = Recipe(method=Method.STATIC, types=CHAINS)
    bad = {name: (float("nan"), float("nan")) for name in ranges(ready, nets.samples(5)[0])}
    with pytest.raises(UnsupportedError, match=r"onnxruntime\.quantization stumbles"):
        integers.static(ready, integers.shapes(ready), bad, recipe)
