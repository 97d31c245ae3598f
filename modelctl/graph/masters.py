"""Weights in few bits learn through copies in float32: a small step is lost in the rounding of a half-precision sum.

P. Micikevicius et al., "Mixed precision training" (2018, arXiv:1710.03740), section 3.1.
"""

from collections.abc import Sequence

import torch

FEW_BITS = (torch.float16, torch.bfloat16)


class Masters:
    """What an optimizer learns in place of `learned`: the weights themselves, or their copies where they have few bits.

    Call `take` between a backward and the optimizer's step, and `give` after it.
    """

    def __init__(self, learned: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = [torch.nn.Parameter(one.detach().float()) if _few(one) else one for one in learned]
        self._pairs = [pair for pair in zip(learned, self.parameters, strict=True) if _few(pair[0])]

    @property
    def copies(self) -> list[torch.Tensor]:
        """The copies alone."""
        return [copy.detach() for _, copy in self._pairs]

    def take(self) -> None:
        """Give the gradients to the copies."""
        for weight, copy in self._pairs:
            copy.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    def give(self) -> None:
        """Round the copies into the weights."""
        with torch.no_grad():
            for weight, copy in self._pairs:
                weight.copy_(copy)

    def restore(self, copies: Sequence[torch.Tensor]) -> None:
        """Put `copies` in place of the ones that are there; ValueError when they are not as many."""
        with torch.no_grad():
            for (_, copy), kept in zip(self._pairs, copies, strict=True):
                copy.copy_(kept)


def _few(weight: torch.Tensor) -> bool:
    return weight.dtype in FEW_BITS
