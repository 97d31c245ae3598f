"""A pruned model brought back to what it was, with the model that it was as its teacher.

How it learns is in `tutoring`. How bad a candidate is before it is healed is told by how far its answers are from the
teacher's on samples that nothing is learned from, once its batch normalization has seen what now goes through it.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
from torch.nn import functional

from modelctl.data import Data
from modelctl.data.samples import Array
from modelctl.graph import losses, measure, normalization, sparsity
from modelctl.graph.session import Session
from modelctl.graph.tensors import tensor_of
from modelctl.graph.trainable import TrainableGraph
from modelctl.graph.tutoring import Tutor, tensors
from modelctl.options import Loss, PruneOptions
from modelctl.progress import Progress

JUDGED_ON = 512  # samples of the validation part
RECALIBRATED_ON = 8  # batches
NORMALIZED_ON = 512  # samples
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


class Healer:
    """A teacher, its answers to the samples, and how a pruned model learns them (see `Tutor`)."""

    def __init__(self, session: Session, data: Data, options: PruneOptions, progress: Progress) -> None:
        """The teacher's answers are taken from `session` when they are needed first."""
        self._session, self._data, self._options = session, data, options
        self._tutor = Tutor(session, data, options, "prune", progress)
        self._judged = data.validation.first(JUDGED_ON)
        self._right = self._tutor.taught(self._judged)

    def heal(
        self, model: onnx.ModelProto, epochs: int, masks: Mapping[str, Array] | None = None
    ) -> tuple[onnx.ModelProto, float]:
        """The model after `epochs` over the training part, and the mean loss of the last.

        `masks` tell by initializer which of its numbers may be other than zero. CheckFailed when the loss is not a
        number any more; UnsupportedError for a graph that can't be trained.
        """
        seen = self._data.train.first(NORMALIZED_ON)
        graph, learner = self._tutor.learner(normalization.insert(model, self._session.name, tensors(seen)))
        history = self._tutor.teach(graph, learner, epochs, _holder(graph, masks or {}))
        made = graph.to_onnx()
        normalization.fold(made)
        return made, history.losses[-1]

    def harm(self, model: onnx.ModelProto) -> float:
        """How far the answers are from the teacher's: KL(teacher ‖ model) in nats, or the relative squared error."""
        _, learner = self._tutor.learner(self.recalibrated(model))
        with torch.no_grad():
            found = [learner.answer(tensors(batch)) for batch in self._judged.batches(measure.BATCH)]
        return self._distance(torch.cat(found))

    def recalibrated(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model with running statistics of what now goes through it; itself where it has none."""
        if not any(node.op_type == "BatchNormalization" for node in model.graph.node):
            return model
        graph = TrainableGraph(model, self._session.name)
        graph.train()
        size = self._options.batch_size
        with torch.no_grad():
            for batch in self._data.train.first(size * RECALIBRATED_ON).batches(size):
                graph(*tensors(batch))
        return graph.to_onnx()

    def gradients(self, model: onnx.ModelProto) -> list[dict[str, Array]]:
        """The loss's gradient on each initializer, for each of some batches of the training part."""
        graph, learner = self._tutor.learner(model)
        size = self._options.batch_size
        samples = self._data.train.first(size * RECALIBRATED_ON)
        labels = samples.labels
        if self._tutor.kind is Loss.CROSS_ENTROPY and labels is not None:
            loss = losses.label_loss(labels)
        else:
            # At its own answers the loss is flat: how much they move is what counts.
            loss = losses.target_loss(Loss.MSE, np.zeros_like(self._tutor.taught(samples)))
        found = []
        for rows in torch.split(torch.arange(len(samples)), size):
            graph.zero_grad()
            answers = learner.answer(tensors(samples.pick(rows.numpy())))
            torch.autograd.backward(loss(answers, rows))
            weights = {name: graph.get_parameter(key).grad for key, name in graph.parameter_names.items()}
            found.append({name: one.numpy().copy() for name, one in weights.items() if one is not None})
        return found

    def activations(self, model: onnx.ModelProto) -> dict[str, Array]:
        """By weight, the mean square of what each position of its summed axis is multiplied with."""
        graph = TrainableGraph(model, self._session.name)
        axes = sparsity.summed_axes(model)
        values = {node.input[1]: node.input[0] for node in model.graph.node if len(node.input) > 1}
        taken = {weight: values[weight] for weight in axes if weight in values}
        batch = tensors(self._data.train.first(self._options.batch_size * 2))
        with torch.no_grad():
            found = graph.eval().values(batch, dict.fromkeys(taken.values()))
        sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        kernels = {node.input[1] for node in model.graph.node if node.op_type in _CONVOLUTIONS}
        told = {}
        for weight, value in taken.items():
            square = found[value].double().square()
            channel = 1 if weight in kernels else square.dim() - 1
            mean = square.mean([axis for axis in range(square.dim()) if axis != channel]).numpy()
            if len(mean) == sizes[weight][axes[weight]]:
                told[weight] = mean
        return told

    def _distance(self, found: torch.Tensor) -> float:
        right, mine = torch.from_numpy(self._right).double(), found.double()
        if self._tutor.kind is Loss.MSE:
            return float(((mine - right) ** 2).mean() / right.var().clamp(min=1e-12))
        wanted, told = functional.log_softmax(right, dim=1), functional.log_softmax(mine, dim=1)
        return float(functional.kl_div(told, wanted, reduction="batchmean", log_target=True))


def _holder(graph: TrainableGraph, masks: Mapping[str, Array]) -> Callable[[], None]:
    """What sets to zero again what has to stay zero."""
    held = [
        (graph.get_parameter(key), ~tensor_of(masks[name]))
        for key, name in graph.parameter_names.items()
        if name in masks
    ]

    def hold() -> None:
        with torch.no_grad():
            for parameter, empty in held:
                parameter.masked_fill_(empty, 0.0)  # a product with 0 may be -0.0, which a packed file keeps

    return hold
