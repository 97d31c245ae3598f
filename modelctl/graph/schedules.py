"""How weights follow their gradients: the optimizer, and the course of its learning rate."""

import math
from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from modelctl.options import Optimizer, Schedule

MOMENTUM = 0.9
MOMENTUM_CYCLE = 0.05  # how far momentum goes down and up again while the rate goes up and down
ONE_CYCLE_WARMUP = 0.3
WEIGHT_DECAY = {Optimizer.ADAMW: 1e-2, Optimizer.ADAM: 0.0, Optimizer.SGD: 5e-4}


def optimizer_of(
    learned: Iterable[torch.nn.Parameter], kind: Optimizer, *, lr: float, decay: float | None, momentum: float
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW, or Adam; momentum is the first of Adam's betas; decay None is the kind's."""
    decay = WEIGHT_DECAY[kind] if decay is None else decay
    if kind is Optimizer.SGD:
        return torch.optim.SGD(learned, lr, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
    adam = torch.optim.AdamW if kind is Optimizer.ADAMW else torch.optim.Adam
    return adam(learned, lr, betas=(momentum, 0.999), weight_decay=decay)


def schedule_of(
    optimizer: torch.optim.Optimizer, kind: Schedule, *, lr: float, steps: int, warmup: float | None, momentum: float
) -> LRScheduler:
    """The course of the rate over `steps` steps, its largest `lr`; `warmup` is the share of them in which it rises.

    One-cycle is that of Smith and Topin (2018, arXiv:1708.07120), momentum going the other way; cosine and linear come
    down to zero. Without `warmup`, a one-cycle rises in 0.3 of the steps and the others begin at the top.
    """
    if kind is Schedule.ONE_CYCLE:
        share = ONE_CYCLE_WARMUP if warmup is None else warmup
        share = min(share, 1 - 0.5 / steps)  # where either part has no step at all, torch divides by zero
        if math.isclose(share * steps, 1):
            share = 0.5 / steps
        return OneCycleLR(
            optimizer,
            lr,
            total_steps=steps,
            pct_start=share,
            cycle_momentum=momentum > 0,
            base_momentum=max(0.0, round(momentum - MOMENTUM_CYCLE, 9)),
            max_momentum=min(0.999, round(momentum + MOMENTUM_CYCLE, 9)),
        )
    rising = round((warmup or 0.0) * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        share = (step - rising) / max(1, steps - rising)
        match kind:
            case Schedule.COSINE:
                return (1 + math.cos(math.pi * share)) / 2
            case Schedule.LINEAR:
                return 1 - share
            case _:
                return 1.0

    return LambdaLR(optimizer, factor)
