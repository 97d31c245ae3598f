"""Batch normalization put into a graph for its training, and folded away again."""

import nets
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from modelctl.graph import normalization
from modelctl.graph.trainable import TrainableGraph


def batch() -> torch.Tensor:
    return torch.from_numpy(nets.samples(200)[0])


def answers(model: onnx.ModelProto) -> torch.Tensor:
    with torch.no_grad():
        (found,) = TrainableGraph(model).eval().forward(batch())
    return found


def test_it_does_nothing_until_something_is_learned() -> None:
    model = nets.convolutional()
    made = normalization.insert(model, "net", [batch()])
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("BatchNormalization") == 2
    assert kinds[kinds.index("Conv", 2) + 1] == "BatchNormalization"
    assert torch.allclose(answers(made), answers(model), atol=1e-4)
    onnx.checker.check_model(made, full_check=True)


def test_folded_it_computes_what_was_learned_and_leaves_the_graph_as_it_was() -> None:
    model = nets.convolutional()
    graph = TrainableGraph(normalization.insert(model, "net", [batch()]))
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    learned = graph.to_onnx()
    folded = onnx.ModelProto()
    folded.CopyFrom(learned)
    normalization.fold(folded)
    assert torch.allclose(answers(folded), answers(learned), atol=1e-4)
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in model.graph.node]
    assert {one.name for one in folded.graph.initializer} == {one.name for one in model.graph.initializer}


def test_a_convolution_without_a_bias_gets_one_and_shared_kernels_are_left() -> None:
    kernel = np.random.default_rng(0).standard_normal((1, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "shared"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["a", "shared"], ["b"], pads=[1] * 4),
        helper.make_node("ConvTranspose", ["b", "own"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["logits"]),
    ]
    own = np.random.default_rng(1).standard_normal((1, 2, 3, 3)).astype(np.float32)
    model = nets.model_of(nodes, {"shared": kernel, "own": own}, ["n", 1, 8, 8], ["n", 2, 8, 8])
    made = normalization.insert(model, "net", [batch()])
    assert [node.op_type for node in made.graph.node].count("BatchNormalization") == 1
    normalization.fold(made)
    assert torch.allclose(answers(made), answers(model), atol=1e-4)
    assert numpy_helper.to_array(made.graph.initializer[-1]).shape == (2,)
