"""How much units matter: computed by hand on a small net, and what follows from it on large ones."""

import numpy as np
import prunable
from onnx import numpy_helper

from modelctl.graph.channels.groups import find
from modelctl.graph.channels.importance import from_activations, from_gradients, magnitude

CHANNELS = find(prunable.exported("mobilenet", old=True))
WEIGHTS = {one.name: numpy_helper.to_array(one).astype(np.float64) for one in CHANNELS.model.graph.initializer}


def test_a_unit_without_weights_matters_nothing_and_one_twice_as_large_twice_as_much() -> None:
    group = CHANNELS.groups[1]
    weights = {name: np.ones_like(array) for name, array in WEIGHTS.items()}
    for member in group.members:
        factor = np.where(member.units == 3, 0, np.where(member.units == 5, 2, 1)).astype(np.float64)
        weights[member.tensor] *= factor.reshape(
            [-1 if at == member.axis else 1 for at in range(weights[member.tensor].ndim)]
        )
    found = magnitude(weights, group)
    assert found.shape == (group.size,)
    assert found[3] == 0
    np.testing.assert_allclose(found[5] / found[0], 2)
    np.testing.assert_allclose(np.delete(found, [3, 5]), found[0])
    np.testing.assert_allclose(found.mean(), 1)


def test_a_model_and_its_arrays_give_the_same() -> None:
    for group in CHANNELS.groups:
        np.testing.assert_allclose(magnitude(CHANNELS.model, group), magnitude(WEIGHTS, group), rtol=1e-6)


def test_taylor_is_the_squared_sum_of_weight_times_gradient() -> None:
    group = CHANNELS.groups[0]
    random = np.random.default_rng(0)
    gradients = {name: random.standard_normal(array.shape) for name, array in WEIGHTS.items()}
    expected = np.zeros(group.size)
    for member in group.members:
        product = np.moveaxis(WEIGHTS[member.tensor] * gradients[member.tensor], member.axis, 0)
        for position, unit in enumerate(member.units):
            expected[unit] += product[position].sum()
    np.testing.assert_allclose(from_gradients(WEIGHTS, gradients, group), expected**2)
    only = {"5.weight": gradients["5.weight"]}
    last = (WEIGHTS["5.weight"] * only["5.weight"]).sum(0).reshape(8, 9).sum(1)
    np.testing.assert_allclose(from_gradients(WEIGHTS, only, group), last**2)


def test_activations_count_where_they_are_taken_up() -> None:
    group = CHANNELS.groups[0]
    seen = np.arange(72, dtype=np.float64)
    found = from_activations({"5.weight": seen}, group)
    expected = np.sqrt(seen.reshape(8, 9).sum(1))
    np.testing.assert_allclose(found, expected / expected.mean())
    assert not from_activations({}, group).any()
