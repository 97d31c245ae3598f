"""Between numpy and torch, bfloat16 too, which numpy knows by way of ml_dtypes only."""

import ml_dtypes
import numpy as np
import torch

from modelctl.data.samples import Array


def tensor_of(array: Array) -> torch.Tensor:
    """An array as a tensor, of the same memory where it lies in one piece."""
    whole = np.ascontiguousarray(array)
    if whole.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(whole)


def array_of(tensor: torch.Tensor) -> Array:
    """A tensor's numbers as an array."""
    here = tensor.detach().cpu()
    if here.dtype == torch.bfloat16:
        bits: Array = here.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    found: Array = here.numpy()
    return found
