"""An ONNX graph as a torch module: the same answers, gradients, and the same graph back."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from modelctl.errors import DataError, UnsupportedError
from modelctl.graph.trainable import TrainableGraph


def sum_of_relus() -> onnx.ModelProto:
    """y = Relu(x + w) + w."""
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Add", ["r", "w"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 3])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([1, -2, 3], np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="someone")


def test_a_graph_runs_learns_and_comes_back() -> None:
    model = sum_of_relus()
    before = model.SerializeToString()
    graph = TrainableGraph(model)
    x = torch.tensor([[1.0, 1.0, 1.0], [0.0, 3.0, -5.0]])
    (y,) = graph(x)
    assert torch.equal(y, torch.relu(x + torch.tensor([1.0, -2, 3])) + torch.tensor([1.0, -2, 3]))
    assert list(graph.parameter_names.values()) == ["w"]
    y.sum().backward()
    (weight,) = graph.parameters()
    assert weight.grad is not None
    assert weight.grad.tolist() == [4.0, 3.0, 3.0]
    assert model.SerializeToString() == before
    assert graph.to_onnx() == model
    with torch.no_grad():
        weight.add_(1)
    assert numpy_helper.to_array(graph.to_onnx().graph.initializer[0]).tolist() == [2.0, -1.0, 4.0]


def test_inner_values_can_be_asked_for() -> None:
    graph = TrainableGraph(sum_of_relus())
    found = graph.values([torch.ones(2, 3)], ["a", "y"])
    assert found["a"].tolist() == [[2.0, -1.0, 4.0]] * 2


def test_an_unknown_operator_and_a_wrong_input_are_told_by_name() -> None:
    model = sum_of_relus()
    with pytest.raises(DataError, match="takes 1 inputs, was given 2"):
        TrainableGraph(model)(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(DataError, match="Add failed on this input"):
        TrainableGraph(model)(torch.ones(2, 4))
    model.graph.node[1].op_type = "NonMaxSuppression"
    with pytest.raises(UnsupportedError, match="operator NonMaxSuppression"):
        TrainableGraph(model)
