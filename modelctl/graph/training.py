"""The training loop that the learning steps share: a torch module, samples, a loss, a one-cycle schedule.

Everything random comes from one seed, and everything global that is touched (torch's random state, its threads, its
choice of algorithms) is put back: the same seed on the same machine with the same threads gives the same weights.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from modelctl.data import Samples
from modelctl.data.samples import Array
from modelctl.errors import CheckFailed, UnsupportedError
from modelctl.options import Optimizer
from modelctl.progress import Progress, silent

Answer = Callable[[Sequence[torch.Tensor]], torch.Tensor]  # a batch of each input → the answers, with their gradients
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # answers and the rows of their samples → a number

MOMENTUM = 0.9
WEIGHT_DECAY = {Optimizer.ADAMW: 1e-2, Optimizer.SGD: 5e-4}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to learn: passes over the samples, samples a step, the largest rate of the schedule, the optimizer."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: Optimizer = Optimizer.ADAMW


@contextlib.contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """A block in which torch draws from `seed` and computes alike each time, on `threads` threads."""
    threads_before = torch.get_num_threads()
    exact_before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(exact_before[0], warn_only=exact_before[1])
            torch.set_num_threads(threads_before)


def fit(
    module: torch.nn.Module,
    answer: Answer,
    samples: Samples,
    loss: Loss,
    recipe: Recipe,
    progress: Progress = silent,
) -> float:
    """Train `module`, in place and left in evaluation mode, and return the mean loss of the last epoch.

    `answer` runs the module on a batch of each of the samples' inputs, in their order. SGD with Nesterov momentum or
    AdamW under a one-cycle schedule (Smith and Topin 2018, arXiv:1708.07120). Call it within `reproducible`.
    CheckFailed when the loss is not a number any more; UnsupportedError when nothing in the module can learn.
    """
    inputs = [torch.from_numpy(np.ascontiguousarray(array)) for array in samples.inputs.values()]
    batches = len(_batches(len(samples), recipe.batch_size))
    optimizer = _optimizer(module, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.epochs * batches)
    mean = math.nan
    for epoch in range(recipe.epochs):
        module.train()
        losses = []
        for index, rows in enumerate(_batches(len(samples), recipe.batch_size)):
            found = loss(answer([one[rows] for one in inputs]), rows)
            if not found.requires_grad:
                raise UnsupportedError("the module's answers don't depend on anything that learns")
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(found.item())
            if not math.isfinite(losses[-1]):
                raise CheckFailed(f"training diverged in epoch {epoch + 1}: the loss is {losses[-1]}", "a smaller --lr")
            progress.advance(f"learning, epoch {epoch + 1} of {recipe.epochs}", index + 1, batches, "batches")
        mean = sum(losses) / len(losses)
    module.eval()
    return mean


def _batches(count: int, size: int) -> list[torch.Tensor]:
    """All rows in random order, `size` at a time; a last one alone sits out, as batch norm learns nothing from one."""
    split = list(torch.split(torch.randperm(count), size))
    return split[:-1] if len(split) > 1 and len(split[-1]) == 1 else split


def _optimizer(module: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    learned = [one for one in module.parameters() if one.requires_grad]
    if not learned:
        raise UnsupportedError("the module has no parameter that learns")
    decay = WEIGHT_DECAY[recipe.optimizer]
    if recipe.optimizer is Optimizer.SGD:
        return torch.optim.SGD(learned, recipe.lr, momentum=MOMENTUM, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(learned, recipe.lr, weight_decay=decay)


def label_loss(labels: Array) -> Loss:
    """Cross-entropy of the answers, logits [N, classes], on integer labels [N]."""
    wanted = torch.from_numpy(np.ascontiguousarray(labels, np.int64))
    return lambda answers, rows: functional.cross_entropy(answers, wanted[rows])


def distillation_loss(teacher: Array, labels: Array | None, *, temperature: float, alpha: float) -> Loss:
    """alpha · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 - alpha) · cross-entropy on the labels.

    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network" (2015, arXiv:1503.02531),
    section 2: T² keeps the two parts in proportion whatever T is. `teacher` holds cached logits [N, classes]; without
    labels the teacher's part stands alone.
    """
    logits = torch.from_numpy(np.ascontiguousarray(teacher, np.float32))
    softened = functional.log_softmax(logits / temperature, dim=1)
    hard = None if labels is None or alpha == 1 else label_loss(labels)

    def loss(answers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        mine = functional.log_softmax(answers / temperature, dim=1)
        soft = functional.kl_div(mine, softened[rows], reduction="batchmean", log_target=True) * temperature**2
        return soft if hard is None else alpha * soft + (1 - alpha) * hard(answers, rows)

    return loss
