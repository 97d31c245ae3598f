"""How a model that was cut or rounded learns from the float model that it was: what is taught, and by which recipe.

The teacher's answers are computed once, by onnxruntime.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx
import torch

from modelctl.data import Data, Samples
from modelctl.data.samples import Array
from modelctl.errors import DataError
from modelctl.graph import augmentation, losses, measure, teaching, training
from modelctl.graph.learner import Learner, learner_of
from modelctl.graph.session import Session
from modelctl.graph.tensors import tensor_of
from modelctl.graph.trainable import TrainableGraph
from modelctl.options import Loss, Optimizer
from modelctl.progress import Progress

JUDGED_ON = 512  # samples of the validation part
PROBED = 8  # samples that a graph is asked first, to see what it answers
RATES = {Optimizer.SGD: 0.1, Optimizer.ADAMW: 1e-3, Optimizer.ADAM: 1e-3}
SMALLEST_SPREAD = 1e-12
GENTLER = 0.2  # is the rate at which SGD follows a squared error
CLIP = 1.0  # of the gradients of a squared error, which has no bound
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_ATTENDING = frozenset({"LayerNormalization", "Attention", "MultiHeadAttention", "SkipLayerNormalization"})


class Course(Protocol):
    """How a teacher is followed. Where `optimizer` or `lr` is None, the model's operators say which."""

    @property
    def batch_size(self) -> int:
        """Samples a step, unless the model's own number is fixed."""

    @property
    def optimizer(self) -> Optimizer | None:
        """How weights follow their gradients."""

    @property
    def lr(self) -> float | None:
        """The largest learning rate."""

    @property
    def temperature(self) -> float:
        """By which a classifier's logits are softened."""

    @property
    def alpha(self) -> float:
        """The weight of the teacher's answers against the labels, 0 to 1."""

    @property
    def flip(self) -> bool:
        """Whether pictures are also shown mirrored."""


class Tutor:
    """A teacher, its answers to the samples, and how another model learns them.

    Of a classifier (answers [N, classes], labels that are classes) logits are learned, beside the labels; of any other
    model its answers, by their squared error as a share of how they are spread. `kind` tells which.
    """

    def __init__(self, session: Session, data: Data, course: Course, learner: str, progress: Progress) -> None:
        """The teacher's answers are taken from `session` when they are needed first; `learner` is the step's name.

        DataError for labels that the teacher does not tell, and for fewer samples than it takes at a time.
        """
        self.name = session.name
        self._session, self._data, self._course, self._progress = session, data, course, progress
        self._step = learner
        size = session.inputs[0].shape[0]
        self.batch = size if isinstance(size, int) else None
        if self.batch is not None and len(data.train) < self.batch:
            raise DataError(
                f"{data.name}: holds {len(data.train)} samples to learn from, and {session.name} takes {self.batch}"
                " at a time"
            )
        self._few = data.validation.pick(np.arange(self.batch or PROBED) % len(data.validation))
        answers = measure.answers(session, self._few, progress)
        labels = data.train.labels
        classes = answers.ndim == 2 and answers.shape[1] > 1 and labels is not None and labels.dtype.kind == "i"
        self.kind = Loss.CROSS_ENTROPY if classes else Loss.MSE
        if classes:
            losses.check(Loss.CROSS_ENTROPY, np.asarray(labels), answers.shape, data.name)

    def taught(self, samples: Samples) -> Array:
        """What the teacher answers, logits of a classifier: float32 [N, …]."""
        if self.kind is Loss.CROSS_ENTROPY:
            return teaching.logits(self._session, samples, self._step, self._progress)[0]
        return measure.answers(self._session, samples, self._progress).astype(np.float32)

    def learner(self, model: onnx.ModelProto) -> tuple[TrainableGraph, Learner]:
        """A model as one that learns; UnsupportedError for an operator that can't be trained."""
        graph = TrainableGraph(model, self.name)
        return graph, learner_of(graph, self._few, self.kind)

    def teach(
        self,
        graph: TrainableGraph,
        learner: Learner,
        epochs: int,
        after_step: Callable[[], None] = lambda: None,
        share: float = 1.0,
    ) -> training.History:
        """Train `graph`, in place, for `epochs` over the training part; call it within `training.reproducible`.

        `share` of the recipe's rate is used. CheckFailed when the loss is not a number any more.
        """
        samples = self._data.train
        return training.fit(
            graph,
            learner.answer,
            samples,
            self._loss,
            self.recipe(graph, epochs, share),
            self._progress,
            augment=augmentation.flips(samples, graph.name) if self._course.flip else None,
            after_step=after_step,
        )

    def held_out(self, graph: TrainableGraph, learner: Learner) -> float:
        """The loss that `teach` makes small, on samples that nothing is learned from."""
        samples, loss = self._judged
        return training.mean_loss(learner.answer, samples, loss, self.recipe(graph, 1))

    def recipe(self, graph: TrainableGraph, epochs: int, share: float = 1.0) -> training.Recipe:
        """What suits the operators of a graph: SGD for convolutions, AdamW for what attends, and for all else.

        A model that takes few samples at a time learns at a rate that is smaller by as much (linear scaling: P. Goyal
        et al. 2017, arXiv:1706.02677), unless one is asked for. `share` of the rate is what is used.
        """
        types = {node.op_type for node in graph.nodes}
        sgd = bool(types & _CONVOLUTIONS) and not types & _ATTENDING
        optimizer = self._course.optimizer or (Optimizer.SGD if sgd else Optimizer.ADAMW)
        size = self.batch or self._course.batch_size
        usual = RATES[optimizer] * min(1.0, size / self._course.batch_size)
        if self.kind is Loss.MSE and optimizer is Optimizer.SGD:
            usual *= GENTLER
        return training.Recipe(
            epochs=epochs,
            batch_size=size,
            lr=(self._course.lr or usual) * share,
            optimizer=optimizer,
            clip=CLIP if self.kind is Loss.MSE else None,
            whole_batches=self.batch is not None,
        )

    @cached_property
    def _loss(self) -> losses.Objective:
        """What is learned of the training part, flipped pictures too."""
        samples = self._data.train
        flipped = [augmentation.flipped(samples, self.name)] if self._course.flip else []
        return self._objective(samples, [samples, *flipped])

    @cached_property
    def _judged(self) -> tuple[Samples, losses.Objective]:
        """Samples of the validation part, and the same of them."""
        samples = self._data.validation.first(JUDGED_ON)
        return samples, self._objective(samples, [samples])

    def _objective(self, samples: Samples, views: list[Samples]) -> losses.Objective:
        """The teacher's answers to all views, and the labels of a classifier."""
        answers = np.concatenate([self.taught(one) for one in views])
        if self.kind is Loss.MSE:
            found = losses.target_loss(Loss.MSE, answers)
            spread = max(float(answers.var(dtype=np.float64)), SMALLEST_SPREAD)
            return lambda given, rows: found(given, rows) / spread
        temperature, alpha = self._course.temperature, self._course.alpha
        return losses.distillation_loss(answers, samples.labels, temperature=temperature, alpha=alpha)


def tensors(samples: Samples) -> list[torch.Tensor]:
    """The inputs as tensors, in their order."""
    return [tensor_of(array) for array in samples.inputs.values()]
