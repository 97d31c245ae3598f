"""What is learned from: how far answers are from labels or from a teacher's answers, as a number to be made small.

A loss is given a batch of answers and the rows of their samples. Samples that are also seen in further views (flipped)
have further rows: view v of sample i is row v · N + i. A target that is kept for all views is looked up by that row;
one that does not depend on the view, by i.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from modelctl.data.samples import Array
from modelctl.errors import DataError
from modelctl.graph.teaching import SMALLEST as SMALLEST
from modelctl.graph.teaching import are_probabilities as are_probabilities
from modelctl.options import Loss as Loss

Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # answers and the rows of their samples → a number


_MEASURES: dict[Loss, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    Loss.MSE: functional.mse_loss,
    Loss.L1: functional.l1_loss,
    Loss.BCE: functional.binary_cross_entropy_with_logits,
}


def label_loss(labels: Array, smoothing: float = 0.0) -> Objective:
    """Cross-entropy of the answers, logits [N, classes], on integer labels [N]."""
    wanted = torch.from_numpy(np.ascontiguousarray(labels, np.int64))
    return lambda answers, rows: functional.cross_entropy(
        answers, _at(wanted, rows, answers.device), label_smoothing=smoothing
    )


def target_loss(kind: Loss, targets: Array) -> Objective:
    """Mean squared error, mean absolute error, or binary cross-entropy of logits, on targets of the answers' shape."""
    wanted = torch.from_numpy(np.ascontiguousarray(targets, np.float32))
    measure = _MEASURES[kind]

    def loss(answers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        target = _at(wanted, rows, answers.device)
        return measure(answers.reshape(target.shape), target.to(answers.dtype))

    return loss


def distillation_loss(
    teacher: Array, labels: Array | None, *, temperature: float, alpha: float, smoothing: float = 0.0
) -> Objective:
    """alpha · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 - alpha) · cross-entropy on the labels.

    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network" (2015, arXiv:1503.02531),
    section 2: T² keeps the two parts in proportion whatever T is. `teacher` holds cached logits [N, classes], or one
    after the other those of several views; without labels the teacher's part stands alone.
    """
    logits = torch.from_numpy(np.ascontiguousarray(teacher, np.float32))
    softened = functional.log_softmax(logits / temperature, dim=1)
    hard = None if labels is None or alpha == 1 else label_loss(labels, smoothing)

    def loss(answers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        mine = functional.log_softmax(answers / temperature, dim=1)
        theirs = _at(softened, rows, answers.device)
        soft = functional.kl_div(mine, theirs, reduction="batchmean", log_target=True) * temperature**2
        return soft if hard is None else alpha * soft + (1 - alpha) * hard(answers, rows)

    return loss


def chosen(loss: Loss, labels: Array) -> Loss:
    """What `auto` stands for: cross-entropy for classes, the squared error for float targets."""
    if loss is not Loss.AUTO:
        return loss
    return Loss.CROSS_ENTROPY if labels.dtype.kind == "i" else Loss.MSE


def check(loss: Loss, labels: Array, answers: tuple[int, ...], where: str) -> None:
    """DataError unless the labels of the samples called `where` fit answers of that shape, [N, …], and the loss."""
    found = f"labels {labels.dtype}{list(labels.shape)} and answers {['N', *answers[1:]]}".replace("'", "")
    if loss is Loss.CROSS_ENTROPY:
        if labels.dtype.kind != "i":
            raise DataError(f"{where}: cross-entropy learns from classes, found {found}", "--loss mse")
        if len(answers) != 2 or answers[1] < 2:
            raise DataError(f"{where}: cross-entropy learns from answers [N, classes], found {found}", "--loss bce")
        if labels.min() < 0 or labels.max() >= answers[1]:
            raise DataError(
                f"{where}: labels run from {labels.min()} to {labels.max()}, but the model answers {answers[1]} classes"
            )
        return
    if math.prod(labels.shape[1:]) != math.prod(answers[1:]):
        raise DataError(f"{where}: {loss} learns from as many labels as answers, found {found}")
    if loss is Loss.BCE and (labels.min() < 0 or labels.max() > 1):
        raise DataError(f"{where}: bce learns from labels from 0 to 1, found {labels.min():g} to {labels.max():g}")


def _at(kept: torch.Tensor, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    return kept[rows % len(kept)].to(device, non_blocking=True)
