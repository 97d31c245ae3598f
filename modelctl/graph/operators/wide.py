"""Unsigned numbers of 16 bits and more, with which torch holds tensors but hardly computes: done in int64."""

import torch

from modelctl.graph.operators.node import Call

_WIDE = frozenset({torch.uint16, torch.uint32, torch.uint64})


def widened(call: Call, *, keeps: bool = True) -> Call:
    """`call`, taking such numbers too; `keeps`: its int64 results are then of the inputs' type again.

    A RuntimeError tells of numbers above 2**63, which int64 does not hold.
    """

    def run(*inputs: torch.Tensor | None) -> torch.Tensor:
        try:
            return call(*inputs)  # type: ignore[no-any-return]
        except (RuntimeError, TypeError):
            kind = next((one.dtype for one in inputs if one is not None and one.dtype in _WIDE), None)
            if kind is None:
                raise
        found: torch.Tensor = call(*(_signed(one) for one in inputs))
        return found.to(kind) if keeps and found.dtype == torch.int64 else found

    return run


def _signed(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None or tensor.dtype not in _WIDE:
        return tensor
    signed = tensor.to(torch.int64)
    if tensor.dtype == torch.uint64 and bool((signed < 0).any()):
        raise RuntimeError("holds whole numbers above 2**63, which can't be computed with")
    return signed
