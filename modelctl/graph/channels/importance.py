"""How much each unit of a group matters, one number a unit; the larger, the rather it stays.

Sources: the norm over a whole dependency group as in DepGraph (Fang et al. 2023, arXiv:2301.12900); the first-order
Taylor expansion of the loss, (Σ g·w)², as in Molchanov et al. 2019, arXiv:1906.10771.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from modelctl.graph.channels.groups import Group, Member

Array = np.ndarray[Any, Any]


def magnitude(model: onnx.ModelProto | Mapping[str, Array], group: Group) -> Array:
    """The root of the mean square of all weights of a unit, float64 [size], 1 on the group's average.

    Each tensor counts alike, whatever its size, so that groups can be compared.
    """
    weights = of_group(model, group)
    total = np.zeros(group.size)
    for member in _weighty(group):
        square = _summed(member, np.square(weights[member.tensor].astype(np.float64)), group.size)
        total += square / max(float(square.mean()), np.finfo(float).tiny)
    return _normal(np.sqrt(total))


def from_gradients(weights: Mapping[str, Array], gradients: Mapping[str, Array], group: Group) -> Array:
    """The squared change of the loss when a unit goes, (Σ w·g)² over all its numbers, float64 [size].

    Both by initializer name; a tensor without a gradient (running statistics) does not count. What lies on both sides
    of the unit, as a residual stream does, is summed before it is squared. Not normalized: a loss is a loss anywhere.
    """
    total = np.zeros(group.size)
    for member in _weighty(group):
        if member.tensor in gradients:
            product = weights[member.tensor].astype(np.float64) * gradients[member.tensor]
            total += _summed(member, product, group.size)
    return np.asarray(np.square(total))


def from_activations(activations: Mapping[str, Array], group: Group) -> Array:
    """How much a unit's inputs to its consumers move them, float64 [size], 1 on the group's average.

    `activations` has by initializer name, for those that take the group up, the mean square of what each position
    of the cut axis is multiplied with, [length of the axis].
    """
    total = np.zeros(group.size)
    for member in group.members:
        if member.side == "in" and member.tensor in activations:
            held = member.units >= 0
            seen = np.asarray(activations[member.tensor], np.float64)[held]
            total += np.bincount(member.units[held], seen, group.size)
    return _normal(np.sqrt(total))


def of_group(model: onnx.ModelProto | Mapping[str, Array], group: Group) -> Mapping[str, Array]:
    """The arrays of a group's members by initializer name."""
    if not isinstance(model, onnx.ModelProto):
        return model
    wanted = {member.tensor for member in group.members}
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name in wanted}


def _weighty(group: Group) -> list[Member]:
    """The members that are weights, each place of a tensor once."""
    found = {(one.tensor, one.axis, one.units.tobytes()): one for one in group.members if one.side != "running"}
    return list(found.values())


def _summed(member: Member, values: Array, size: int) -> Array:
    """The sums of an array over all but the cut axis, by unit."""
    others = tuple(axis for axis in range(values.ndim) if axis != member.axis)
    along = values.sum(axis=others)
    held = member.units >= 0
    return np.bincount(member.units[held], along[held], size)


def _normal(values: Array) -> Array:
    mean = float(values.mean()) if values.size else 0.0
    return values / mean if mean > 0 else values
