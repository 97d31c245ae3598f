"""Sequences inside of a graph, also those that are the same in every run."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from modelctl.errors import DataError
from modelctl.graph.trainable import TrainableGraph


def choice() -> onnx.ModelProto:
    """y = (a, b)[i], with a and b constant."""
    nodes = [
        helper.make_node("SequenceConstruct", ["a", "b"], ["s"]),
        helper.make_node("SequenceAt", ["s", "i"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.array([1, 2]), "a"), numpy_helper.from_array(np.array([3.5], np.float32), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_a_sequence_of_constants_can_be_chosen_from() -> None:
    graph = TrainableGraph(choice())
    assert graph(torch.tensor(0))[0].tolist() == [1, 2]
    (chosen,) = graph(torch.tensor(-1))
    chosen.sum().backward()
    assert [one.grad.tolist() for one in graph.parameters() if one.grad is not None] == [[1.0]]


def test_a_place_beyond_the_sequence_is_told() -> None:
    with pytest.raises(DataError, match="SequenceAt failed on this input"):
        TrainableGraph(choice())(torch.tensor(2))
