"""Setting weights to zero: the exact projection onto tensors with few nonzeros.

argmin ‖W' − W‖_F subject to ‖W'‖₀ ≤ K keeps the K numbers of largest magnitude as they are and zeroes the rest (hard
thresholding; T. Blumensath, M. E. Davies, "Iterative thresholding for sparse approximations", 2008). Of equal
magnitudes the one that comes first is kept, so that the answer is always the same.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from modelctl.data.samples import Array
from modelctl.options import PruneOptions, Scope


def kept_of(magnitudes: Array, options: PruneOptions) -> Array:
    """Which numbers of a flat array of magnitudes to keep: a boolean for each."""
    size = len(magnitudes)
    if options.threshold is not None:
        above: Array = magnitudes >= options.threshold
        return above
    if options.keep is not None:
        return largest(magnitudes, min(options.keep, size))
    return largest(magnitudes, size - round((options.sparsity or 0.0) * size))


def largest(magnitudes: Array, count: int) -> Array:
    """Exactly `count` of a flat array, the largest, of equal ones the earliest: a boolean for each."""
    kept = np.zeros(len(magnitudes), bool)
    if count == 0:
        return kept
    edge = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    kept[magnitudes > edge] = True
    equal = np.flatnonzero(magnitudes == edge)
    kept[equal[: count - int(kept.sum())]] = True
    return kept


def project(tensors: Sequence[onnx.TensorProto], options: PruneOptions) -> dict[str, float]:
    """Zero what is not kept, in place; `{weights, kept, change_norm, relative_change}` over all tensors together.

    With the scope `layer` a share, a threshold or a number to keep is meant for each tensor by itself.
    """
    values = [numpy_helper.to_array(tensor) for tensor in tensors]
    flat = [np.abs(one).ravel().astype(np.float64 if one.dtype == np.float64 else np.float32) for one in values]
    if options.scope is Scope.LAYER:
        kept = [kept_of(one, options) for one in flat]
    else:
        ends = np.cumsum([len(one) for one in flat])[:-1]
        kept = np.split(kept_of(np.concatenate(flat), options), ends)
    lost = total = 0.0
    for tensor, value, magnitude, mask in zip(tensors, values, flat, kept, strict=True):
        lost += float(np.sum(magnitude[~mask].astype(np.float64) ** 2))
        total += float(np.sum(magnitude.astype(np.float64) ** 2))
        pruned = np.where(mask.reshape(value.shape), value, np.zeros((), value.dtype))
        tensor.CopyFrom(numpy_helper.from_array(pruned, tensor.name))
    return {
        "weights": sum(map(len, flat)),
        "kept": sum(int(mask.sum()) for mask in kept),
        "change_norm": math.sqrt(lost),
        "relative_change": math.sqrt(lost / total) if total else 0.0,
    }
