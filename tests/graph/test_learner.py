"""Which value of a graph is taught, and how it is read."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from modelctl.data import Samples
from modelctl.errors import DataError, UsageError
from modelctl.graph.learner import learner_of
from modelctl.graph.trainable import TrainableGraph
from modelctl.options import Loss

FEW = Samples({"x": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)})


def graph_of(*nodes: onnx.NodeProto, output: str, **weights: Any) -> TrainableGraph:
    """A graph from x[batch, 3] by a weight w to an output."""
    held = {"w": np.eye(3, dtype=np.float32), **weights}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"]), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    return TrainableGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), "g.onnx")


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": -1}])
def test_the_logits_before_a_softmax_are_taught(attributes: dict[str, Any]) -> None:
    graph = graph_of(
        helper.make_node("Softmax", ["logits"], ["shares"], **attributes),
        helper.make_node("Identity", ["shares"], ["y"]),
        output="y",
    )
    learner = learner_of(graph, FEW, Loss.CROSS_ENTROPY)
    assert (learner.value, learner.logarithm, learner.shape) == ("logits", False, (5, 3))
    assert learner_of(graph, FEW, Loss.MSE).value == "y"


def test_shares_that_no_softmax_made_are_read_by_their_logarithms() -> None:
    graph = graph_of(
        helper.make_node("Exp", ["logits"], ["powers"]),
        helper.make_node("ReduceSum", ["powers", "last"], ["sum"]),
        helper.make_node("Div", ["powers", "sum"], ["y"]),
        output="y",
        last=np.array([1]),
    )
    learner = learner_of(graph, FEW, Loss.CROSS_ENTROPY)
    assert learner.logarithm
    batch = torch.from_numpy(FEW.inputs["x"])
    torch.testing.assert_close(learner.answer([batch]), torch.log_softmax(batch, 1))


def test_numbers_before_a_sigmoid_are_taught_where_shares_are_judged() -> None:
    graph = graph_of(helper.make_node("Sigmoid", ["logits"], ["y"]), output="y")
    assert learner_of(graph, FEW, Loss.BCE).value == "logits"
    assert learner_of(graph, FEW, Loss.CROSS_ENTROPY).value == "y"


def test_what_can_not_be_taught_is_told() -> None:
    choice = graph_of(helper.make_node("ArgMax", ["logits"], ["y"], axis=1), output="y")
    with pytest.raises(DataError, match=r"answers 5 samples with int64\[5, 1\]"):
        learner_of(choice, FEW, Loss.AUTO)
    mean = graph_of(helper.make_node("ReduceMean", ["logits"], ["y"], keepdims=0), output="y")
    with pytest.raises(DataError, match=r"answers 5 samples with float32\[\]"):
        learner_of(mean, FEW, Loss.MSE)
    with pytest.raises(UsageError, match=r"--output z: g\.onnx has no such output"):
        learner_of(mean, FEW, Loss.MSE, "z")
