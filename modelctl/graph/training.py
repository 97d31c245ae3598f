"""The training loop that the learning steps share: a torch module, samples, a loss, a recipe.

Everything random comes from one seed, and everything global that is touched (torch's random state, its threads, its
choice of algorithms) is put back: the same seed on the same machine with the same threads gives the same weights, also
when the training was killed in between and went on from its checkpoint.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from modelctl.data import Samples
from modelctl.errors import CheckFailed, UnsupportedError
from modelctl.graph.augmentation import Augment, Batch
from modelctl.graph.checkpoints import UNREADABLE, Checkpoint
from modelctl.graph.losses import Objective
from modelctl.graph.masters import FEW_BITS, Masters
from modelctl.graph.schedules import MOMENTUM, optimizer_of, schedule_of
from modelctl.graph.tensors import tensor_of
from modelctl.options import Optimizer, Schedule
from modelctl.progress import Progress, silent

Answer = Callable[[Sequence[torch.Tensor]], torch.Tensor]  # a batch of each input → the answers, with their gradients
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to learn: passes over the samples, samples a step, the largest rate, and what else has a usual value.

    `weight_decay` None is the optimizer's own, `warmup` None the schedule's. `clip` is the largest norm of all
    gradients together. `whole_batches` leaves out what does not fill a batch. `bfloat16` computes in it where torch's
    autocast does, `device` is where the module lies. With `patience`, the training ends after as many epochs without a
    gain in what `validate` says, and the weights of the best epoch are kept.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: Optimizer = Optimizer.ADAMW
    momentum: float = MOMENTUM
    weight_decay: float | None = None
    schedule: Schedule = Schedule.ONE_CYCLE
    warmup: float | None = None
    clip: float | None = None
    whole_batches: bool = False
    bfloat16: bool = False
    patience: int | None = None
    device: torch.device = CPU


@dataclass
class History:
    """What happened, epoch by epoch: the mean loss, and what `validate` said of it; the epoch, from 1, that is kept."""

    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    kept: int = 0


@contextlib.contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """A block in which torch draws from `seed` and computes alike each time, on `threads` threads."""
    threads_before = torch.get_num_threads()
    exact_before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
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
    loss: Objective,
    recipe: Recipe,
    progress: Progress = silent,
    *,
    augment: Augment | None = None,
    after_step: Callable[[], None] = lambda: None,
    validate: Callable[[], float] | None = None,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train `module`, in place and left in evaluation mode; call it within `reproducible`.

    `answer` runs the module on a batch of each of the samples' inputs, in their order. `augment` shows the samples
    otherwise; `after_step` is called when weights have changed, and may change them; `validate` when an epoch is over,
    with the module in evaluation mode, and says how bad it is. A `checkpoint` that stands is gone on from.
    CheckFailed when the loss is not a number any more; UnsupportedError when nothing in the module can learn.
    """
    run = _Run(module, recipe, len(samples))
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        try:
            run.restore(state)
        except UNREADABLE as error:
            raise checkpoint.unreadable() from error
        progress.note(f"going on from {checkpoint.file}: epoch {run.epoch + 1}, batch {run.done + 1}")
    shown = _reading(samples)
    while not run.is_over:
        module.train()
        for rows in run.left():
            batch, targets = shown(rows), rows
            if augment is not None:
                batch, targets = augment(batch, targets)
            with torch.autocast(recipe.device.type, torch.bfloat16, enabled=recipe.bfloat16):
                answers = answer(_placed(batch, recipe.device))
            run.step(loss(_wide(answers), targets))
            after_step()
            what = f"learning, epoch {run.epoch + 1} of {recipe.epochs}"
            progress.advance(what, run.done, run.batches, "batches")
            if checkpoint is not None and checkpoint.is_due():
                checkpoint.save(run.state())
        module.eval()
        run.end_epoch(None if validate is None else validate())
        if checkpoint is not None:
            checkpoint.save(run.state())
    module.eval()
    return run.finish()


class _Run:
    """A training on its way: all that it needs to go on, in the middle of an epoch too."""

    def __init__(self, module: torch.nn.Module, recipe: Recipe, count: int) -> None:
        learned = [one for one in module.parameters() if one.requires_grad]
        if not learned:
            raise UnsupportedError("the module has no parameter that learns")
        self.module, self.recipe, self.count = module, recipe, count
        self.masters = Masters(learned)
        self.optimizer = optimizer_of(
            self.masters.parameters, recipe.optimizer, lr=recipe.lr, decay=recipe.weight_decay, momentum=recipe.momentum
        )
        self.order = torch.randperm(count)  # of the rows in the running epoch
        self.batches = len(self._split(self.order))
        self.schedule = schedule_of(
            self.optimizer,
            recipe.schedule,
            lr=recipe.lr,
            steps=recipe.epochs * self.batches,
            warmup=recipe.warmup,
            momentum=recipe.momentum,
        )
        self.epoch = 0  # epochs that are over
        self.losses: list[float] = []  # of its steps so far
        self.history = History()
        self.best: dict[str, torch.Tensor] = {}

    @property
    def done(self) -> int:
        """Steps that the running epoch has made."""
        return len(self.losses)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are over, or patience is."""
        patience = self.recipe.patience
        waited = patience is not None and self.history.kept and self.epoch - self.history.kept >= patience
        return self.epoch >= self.recipe.epochs or bool(waited)

    def left(self) -> list[torch.Tensor]:
        """The batches, as rows, that the running epoch has still to go through."""
        if not self.done:
            self.order = torch.randperm(self.count)
        return self._split(self.order)[self.done :]

    def step(self, found: torch.Tensor) -> None:
        """Let the weights follow the gradients of a loss."""
        if not found.requires_grad:
            raise UnsupportedError("the module's answers don't depend on anything that learns")
        self.optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        self.masters.take()
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.masters.parameters, self.recipe.clip)
        self.optimizer.step()
        self.masters.give()
        self.schedule.step()
        self.losses.append(found.item())
        if not math.isfinite(self.losses[-1]):
            raise CheckFailed(
                f"training diverged in epoch {self.epoch + 1}: the loss is {self.losses[-1]}", "a smaller --lr"
            )

    def end_epoch(self, said: float | None) -> None:
        """Note what the epoch has reached, and what validation said of it."""
        self.history.losses.append(sum(self.losses) / len(self.losses))
        self.epoch, self.losses = self.epoch + 1, []
        least = min(self.history.validation, default=math.inf)
        if said is None or self.recipe.patience is None:
            self.history.kept = self.epoch
        elif said < least:
            self.history.kept = self.epoch
            self.best = {key: value.detach().clone() for key, value in self.module.state_dict().items()}
        if said is not None:
            self.history.validation.append(said if math.isfinite(said) else math.inf)

    def finish(self) -> History:
        """Put the weights in place that are kept."""
        if self.best:
            self.module.load_state_dict(self.best)
        return self.history

    def state(self) -> dict[str, Any]:
        """All of it, as tensors, numbers, strings, lists and dicts."""
        cuda = self.recipe.device.type == "cuda"
        return {
            "module": self.module.state_dict(),
            "masters": self.masters.copies,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if cuda else [])],
            "order": self.order,
            "losses": self.losses,
            "history": [self.history.losses, self.history.validation, self.history.kept],
            "epoch": self.epoch,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was taken of; one of UNREADABLE when it does not fit."""
        self.module.load_state_dict(state["module"])
        self.masters.restore(state["masters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.order, self.losses, self.epoch, self.best = (state[key] for key in ("order", "losses", "epoch", "best"))
        self.history = History(*state["history"])
        torch.set_rng_state(state["random"][0])
        for one in state["random"][1:]:
            torch.cuda.set_rng_state(one)

    def _split(self, order: torch.Tensor) -> list[torch.Tensor]:
        """Rows, as many at a time as make a batch; a last one alone sits out, as batch norm learns nothing from one."""
        size = self.recipe.batch_size
        split = list(torch.split(order, size))
        short = size if self.recipe.whole_batches else 2
        return split[:-1] if len(split) > 1 and len(split[-1]) < short else split


def mean_loss(answer: Answer, samples: Samples, loss: Objective, recipe: Recipe) -> float:
    """The mean loss on samples in their order, nothing learned from them."""
    shown = _reading(samples)
    total, seen = 0.0, 0
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(samples)), recipe.batch_size):
            if recipe.whole_batches:  # filled up with the first samples again
                rows = (int(rows[0]) + torch.arange(recipe.batch_size)) % len(samples)
            with torch.autocast(recipe.device.type, torch.bfloat16, enabled=recipe.bfloat16):
                answers = answer(_placed(shown(rows), recipe.device))
            total += len(rows) * loss(_wide(answers), rows).item()
            seen += len(rows)
    return total / seen


def _reading(samples: Samples) -> Callable[[torch.Tensor], Batch]:
    """What gives the inputs at some rows; those that are not held in memory are read each time."""
    if not samples.is_held:
        return lambda rows: [tensor_of(array) for array in samples.pick(rows.numpy()).inputs.values()]
    inputs = [tensor_of(array) for array in samples.inputs.values()]
    return lambda rows: [one[rows] for one in inputs]


def _wide(answers: torch.Tensor) -> torch.Tensor:
    """Answers in as many bits as a sum of them needs."""
    return answers.float() if answers.dtype in FEW_BITS else answers


def _placed(batch: Batch, device: torch.device) -> Batch:
    return [one.to(device, non_blocking=True) for one in batch]
