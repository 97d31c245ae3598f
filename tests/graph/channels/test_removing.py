"""Residual blocks: which parts of a graph can go, and that x is x without them."""

import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from modelctl.errors import UnsupportedError
from modelctl.graph.channels.costs import macs
from modelctl.graph.channels.cutting import cut
from modelctl.graph.channels.groups import find
from modelctl.graph.channels.removing import Block, blocks, remove


def run(model: onnx.ModelProto, shape: tuple[int, ...]) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    random = np.random.default_rng(0)
    (given,) = session.get_inputs()
    x = random.integers(0, 20, shape) if "int64" in given.type else random.random(shape, np.float32)
    return np.asarray(session.run(None, {given.name: x})[0])


def silenced(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    return made


def short(found: list[Block]) -> list[tuple[str, str]]:
    return [(one.name, one.kind) for one in found]


def test_a_residual_net_has_a_block_wherever_the_shape_stays() -> None:
    model = prunable.exported("residual", old=True)
    found = blocks(model)
    assert short(found) == [(name, "convolution") for name in ("3", "4", "6", "8")]
    made = remove(model, found[1])
    assert [node.name for node in made.graph.node if node.name.startswith("/4/")] == []
    branch = next(node for node in model.graph.node if node.name == "/4/conv2/Conv").input[1:]
    whole = run(silenced(model, *branch), (2, 1, 28, 28))
    np.testing.assert_allclose(run(made, (2, 1, 28, 28)), whole, rtol=1e-5, atol=1e-6)
    assert macs(made) < macs(model)
    assert {one.name for one in made.graph.initializer} < {one.name for one in model.graph.initializer}


def test_blocks_that_follow_each_other_go_together() -> None:
    model = prunable.exported("residual", old=True)
    found = blocks(model)
    first = remove(remove(model, found[1]), found[0])
    assert remove(model, *found[:2]) == first == remove(model, *found[1::-1])
    assert run(first, (2, 1, 28, 28)).shape == (2, 10)


def test_a_transformer_has_attentions_mlps_and_layers() -> None:
    model = prunable.exported("vit", old=True)
    found = blocks(model)
    assert [one.kind for one in found] == ["attention", "mlp"] * 2 + ["layer"] * 2
    assert found[1].name == "layers.0:mlp"
    assert found[4].name == "layers.0:layer"
    assert (found[4].before, found[4].after) == (found[0].before, found[1].after)
    made = remove(model, found[4])
    assert not any("layers.0" in node.name for node in made.graph.node)
    assert remove(model, *found[:2]) == made
    assert run(made, (2, 1, 28, 28)).shape == (2, 10)


def test_a_normalization_behind_the_sum_goes_with_the_block() -> None:
    model = prunable.exported("bert", old=False)
    found = blocks(model)
    assert [one.kind for one in found] == ["attention", "mlp"] * 2 + ["layer"] * 2
    made = remove(model, *found[4:])
    norms = [node for node in made.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 1
    assert run(made, (2, 6)).shape == (2, 10)


def test_a_projection_a_gelu_and_a_gate_are_no_blocks() -> None:
    for name in ("unet", "dense", "norms", "mlp", "lstm"):
        assert blocks(prunable.exported(name, old=True)) == []
    assert len(blocks(prunable.exported("grouped", old=True))) == 1


def negative_skip(outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """y = Relu(x + x·w): without the product a Relu of x is left."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 3])],
        [value(name, TensorProto.FLOAT, ["batch", 3]) for name in outputs],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_relu_stays_where_the_skip_may_be_negative() -> None:
    made = remove(negative_skip(), *blocks(negative_skip()))
    assert [node.op_type for node in made.graph.node] == ["Relu"]
    assert made.graph.node[0].input == ["x"]


def test_an_output_keeps_its_name() -> None:
    model = negative_skip(("s", "y"))
    made = remove(model, *blocks(model))
    assert [one.name for one in made.graph.output] == ["s", "y"]
    session = ort.InferenceSession(made.SerializeToString())
    x = np.array([[-1, 0, 2]], np.float32)
    assert [one.tolist() for one in session.run(None, {"x": x})] == [[[-1, 0, 2]], [[0, 0, 2]]]


def test_a_group_that_keeps_nothing_takes_its_block_with_it() -> None:
    model = prunable.exported("residual", old=True)
    (block,) = (one for one in blocks(model) if one.name == "6")
    channels = find(model)
    assert cut(channels, {"6.conv1": []}) == remove(channels.model, block)
    narrower = cut(channels, {"6.conv1": [], "8.conv1": [], "5.conv2": range(16), "3.conv1": [5]})
    assert run(narrower, (2, 1, 28, 28)).shape == (2, 10)
    assert {one.name: one.size for one in find(narrower).groups}["5.conv2"] == 16


def test_heads_that_all_go_take_the_attention_with_them() -> None:
    channels = find(prunable.exported("vit", old=True))
    made = cut(channels, {"layers.0.attention.q:heads": [], "layers.1.mlp.0": []})
    assert [one.kind for one in blocks(made)] == ["mlp", "attention"]
    assert run(made, (2, 1, 28, 28)).shape == (2, 10)


def test_a_group_in_no_block_can_t_keep_nothing() -> None:
    channels = find(prunable.exported("residual", old=True))
    with pytest.raises(UnsupportedError, match=r"5\.conv1: can't lose all 32 channels, no residual block is around it"):
        cut(channels, {"5.conv1": []})
