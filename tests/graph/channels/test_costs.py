"""Multiply-accumulates and parameters, counted by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import prunable
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl.errors import UnsupportedError
from modelctl.graph.channels.costs import costs, macs, parameters

Array = np.ndarray[Any, Any]


def of(op_type: str, shape: Sequence[int | str], *weights: tuple[int, ...], domain: str = "", **more: Any) -> int:
    """The cost of a single node over `x` and weights of these shapes."""
    names = [f"w{at}" for at in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *names], ["y"], "n", domain=domain, **more)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(one, np.float32), name) for one, name in zip(weights, names, strict=True)],
    )
    opsets = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return macs(helper.make_model(graph, opset_imports=opsets))


def test_each_operator_is_counted() -> None:
    assert of("Conv", ("b", 4, 8, 8), (6, 4, 3, 3), pads=[1, 1, 1, 1]) == 6 * 64 * 4 * 9
    assert of("Conv", ("b", 4, 8, 8), (8, 1, 3, 3), pads=[1, 1, 1, 1], group=4, strides=[2, 2]) == 8 * 16 * 9
    assert of("ConvTranspose", ("b", 4, 8, 8), (4, 6, 2, 2), strides=[2, 2]) == 64 * 4 * 6 * 4
    assert of("Gemm", ("b", 4), (6, 4), (6,), transB=1) == 24
    assert of("MatMul", (1, 3, 4), (4, 5)) == 60
    assert of("Einsum", (1, 3, 4), (4, 5), equation="bti,ij->btj") == 60
    assert (
        of("LSTM", (7, "batch", 3), (2, 20, 3), (2, 20, 5), hidden_size=5, direction="bidirectional") == 7 * 2 * 20 * 8
    )
    assert of("GRU", (7, 1, 3), (1, 15, 3), (1, 15, 5), hidden_size=5) == 7 * 15 * 8
    assert of("Relu", (1, 3)) == 0


def test_attention_is_scores_and_sums() -> None:
    assert of("Attention", (1, 3, 4, 8), (1, 3, 6, 8), (1, 3, 6, 5)) == 3 * 4 * 6 * (8 + 5)
    assert of("Attention", (1, 4, 24), (1, 6, 24), (1, 6, 15), q_num_heads=3, kv_num_heads=3) == 4 * 6 * (24 + 15)
    assert of("Attention", ("b", 4, 8), (8, 18), (18,), domain="com.microsoft", num_heads=2) == 4 * 8 * 18 + 2 * 16 * 6


def test_a_batch_counts_as_one_and_other_free_dimensions_as_they_are_said_to_be() -> None:
    model = prunable.exported("bert", old=True)
    assert macs(model) == macs(model, {"batch": 1, "length": 64})
    assert macs(model, {"length": 8}) < macs(model, {"length": 16}) < macs(model)


def test_the_residual_net_costs_what_its_layers_do() -> None:
    model = prunable.exported("residual", old=True)
    stages = 28 * 28 * 16 * (1 + 4 * 16) * 9 + 14 * 14 * 32 * (16 + 3 * 32) * 9 + 7 * 7 * 64 * (32 + 3 * 64) * 9
    assert macs(model) == stages + 14 * 14 * 32 * 16 + 7 * 7 * 64 * 32 + 640
    found = costs(model)
    assert sum(one.macs for one in found) == macs(model)
    assert sum(one.parameters for one in found) == parameters(model)
    assert (found[0].node, found[0].operator, found[0].macs) == ("/0/Conv", "Conv", 28 * 28 * 16 * 9)


def test_what_can_t_be_counted_is_told() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"], "m"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [2, 2])], [value("y", TensorProto.FLOAT, None)]
    )
    with pytest.raises(UnsupportedError, match=r"MatMul \(m\): its shape can't be inferred"):
        macs(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def test_the_model_is_left_as_it_is() -> None:
    model = prunable.exported("mlp", old=True)
    before = onnx.ModelProto()
    before.CopyFrom(model)
    macs(model)
    assert model == before


def test_an_einsum_of_one_thing_multiplies_nothing() -> None:
    graph = helper.make_graph(
        [helper.make_node("Einsum", ["x"], ["y"], equation="bij->bi")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    assert macs(helper.make_model(graph)) == 0


def test_a_recurrent_layer_whose_weights_have_no_known_shape_is_told() -> None:
    nodes = [
        helper.make_node("NonZero", ["r"], ["odd"]),
        helper.make_node("Reshape", ["odd", "odd2"], ["rr"]),
        helper.make_node("GRU", ["x", "w", "rr"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 1, 4]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 9, 4]),
        helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 9, 3]),
        helper.make_tensor_value_info("odd2", TensorProto.INT64, [3]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    with pytest.raises(UnsupportedError, match="GRU: its shape can't be inferred"):
        macs(helper.make_model(graph))
