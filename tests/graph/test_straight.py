"""Graphs without detours."""

from typing import Any

import nets
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from modelctl.errors import UnsupportedError
from modelctl.graph.straight import straight
from modelctl.graph.trainable import TrainableGraph

X = np.arange(8, dtype=np.float32).reshape(2, 4) - 4


def model_of(nodes: list[onnx.NodeProto], weights: dict[str, Any]) -> onnx.ModelProto:
    return nets.model_of(nodes, weights, ["batch", 4], ["batch", 4])


def choice(condition: list[onnx.NodeProto], test: str) -> onnx.ModelProto:
    """y = Relu(x) if the condition holds, else -x."""
    value = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
    branches: Any = {
        name: helper.make_graph([helper.make_node(kind, ["x"], ["chosen"])], name, [], [value])
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        *condition,
        helper.make_node("If", [test], ["picked"], "choice", **branches),
        helper.make_node("Identity", ["picked"], ["logits"]),
    ]
    return model_of(nodes, {"yes": np.array(True), "four": np.array([4], np.int64)})


def test_a_straight_graph_is_left_alone() -> None:
    model = nets.convolutional()
    assert straight(model, "net") is model


def test_a_choice_by_a_constant_is_made() -> None:
    made = straight(choice([], "yes"), "net")
    assert "If" not in {node.op_type for node in made.graph.node}
    assert TrainableGraph(made)(torch.from_numpy(X))[0].tolist() == np.maximum(X, 0).tolist()


def test_a_choice_by_what_a_constant_gives_is_made() -> None:
    model = choice([helper.make_node("Not", ["yes"], ["no"])], "no")
    assert TrainableGraph(model)(torch.from_numpy(X))[0].tolist() == (-X).tolist()


def test_a_choice_by_a_fixed_size_is_made() -> None:
    condition = [
        helper.make_node("Shape", ["x"], ["size"], start=1),
        helper.make_node("Equal", ["size", "four"], ["same"]),
        helper.make_node("Squeeze", ["same"], ["test"]),
    ]
    assert TrainableGraph(choice(condition, "test"))(torch.from_numpy(X))[0].tolist() == np.maximum(X, 0).tolist()


def test_a_choice_by_the_input_is_refused_by_name() -> None:
    condition = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["test"], to=TensorProto.BOOL),
    ]
    with pytest.raises(UnsupportedError, match=r"net: If \(choice\) decides while it runs what is computed"):
        straight(choice(condition, "test"), "net")


def test_constants_and_sparse_weights_become_initializers() -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "sparse"),
        numpy_helper.from_array(np.array([1, 3], np.int64), "places"),
        [4],
    )
    nodes = [
        helper.make_node("Constant", [], ["five"], value_float=5.0),
        helper.make_node("Mul", ["x", "five"], ["m"]),
        helper.make_node("Add", ["m", "sparse"], ["logits"]),
    ]
    model = model_of(nodes, {})
    model.graph.sparse_initializer.append(sparse)
    made = straight(model, "net")
    held = {one.name: numpy_helper.to_array(one).tolist() for one in made.graph.initializer}
    assert held == {"five": 5.0, "sparse": [0, 2, 0, 3]}
    assert TrainableGraph(model)(torch.from_numpy(X))[0].tolist() == (5 * X + np.array([0, 2, 0, 3])).tolist()


def test_functions_are_unfolded() -> None:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = model_of([helper.make_node("Twice", ["x"], ["logits"], domain="own")], {})
    model.functions.append(twice)
    model.opset_import.append(helper.make_opsetid("own", 1))
    made = straight(model, "net")
    assert [node.op_type for node in made.graph.node] == ["Add"]
    assert not made.functions
