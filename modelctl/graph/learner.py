"""A graph that learns: which of its values is taught, and how that is read, as logits or as numbers.

Where an output is made by a Softmax or a Sigmoid and the loss wants logits, what goes into it is taught, so that no
logarithm is taken of a probability that has vanished.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch

from modelctl.data import Samples
from modelctl.errors import DataError, UnsupportedError, UsageError
from modelctl.graph.teaching import SMALLEST, are_probabilities
from modelctl.graph.tensors import array_of, tensor_of
from modelctl.graph.trainable import TrainableGraph
from modelctl.options import Loss

_ACTIVATIONS = {Loss.CROSS_ENTROPY: "Softmax", Loss.BCE: "Sigmoid"}


@dataclass(frozen=True)
class Learner:
    """A graph, the value of it that is taught, and whether its logarithm is to be taken first.

    `shape` is what it answers to a few samples.
    """

    graph: TrainableGraph
    value: str
    logarithm: bool
    shape: tuple[int, ...]

    def answer(self, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        """The answers to a batch of each of the graph's inputs, in their order, with their gradients."""
        found = self.graph.values(batch, [self.value])[self.value]
        return found.clamp_min(SMALLEST).log() if self.logarithm else found


def learner_of(graph: TrainableGraph, few: Samples, loss: Loss, output: str | None = None) -> Learner:
    """What is taught of `graph` so that its output of that name, or its first, gets better in that loss.

    A `few` samples are run, to see what it answers. UsageError where it has no such output, DataError where it can't
    run on the samples or answers no numbers, UnsupportedError where nothing that learns goes into the output.
    """
    name = output or graph.output_names[0]
    if name not in graph.output_names:
        raise UsageError(
            f"--output {name}: {graph.name} has no such output", f"one of: {', '.join(graph.output_names)}"
        )
    value = before(graph.nodes, name, _ACTIVATIONS[loss]) if loss in _ACTIVATIONS else name
    graph.eval()
    found = graph.values([tensor_of(few.inputs[one]) for one in graph.input_names], [value])[value]
    if not found.is_floating_point() or found.shape[:1] != (len(few),):
        told = f"{str(found.dtype).removeprefix('torch.')}{list(found.shape)}"
        raise DataError(f"{graph.name}: answers {len(few)} samples with {told}, which can't be taught")
    if not found.requires_grad:
        raise UnsupportedError(f"{graph.name}: the output {name!r} does not depend on anything that learns")
    shares = loss is Loss.CROSS_ENTROPY and value == name and found.dim() == 2
    logarithm = shares and are_probabilities(array_of(found.float()))
    return Learner(graph, value, logarithm, tuple(found.shape))


def before(nodes: list[onnx.NodeProto], value: str, activation: str) -> str:
    """What goes into the `activation` that makes `value`, over the last axis of two; `value` if none does."""
    maker = {name: node for node in nodes for name in node.output}
    node = maker.get(value)
    while node is not None and node.op_type == "Identity":
        node = maker.get(node.input[0])
    if node is None or node.op_type != activation:
        return value
    axis = next((one.i for one in node.attribute if one.name == "axis"), -1)
    return str(node.input[0]) if axis in (-1, 1) else value
