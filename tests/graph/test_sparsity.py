from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from modelctl.graph import sparsity
from modelctl.options import PruneOptions, Scope


def projected(
    arrays: list[np.ndarray[Any, Any]], **options: Any
) -> tuple[list[np.ndarray[Any, Any]], dict[str, float]]:
    tensors = [numpy_helper.from_array(array, str(place)) for place, array in enumerate(arrays)]
    found = sparsity.project(tensors, PruneOptions(**options))
    return [numpy_helper.to_array(tensor) for tensor in tensors], found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=40), st.integers(0, 45))
def test_exactly_the_largest_are_kept_as_they_are(numbers: list[float], keep: int) -> None:
    array = np.array(numbers, np.float32).reshape(1, -1)
    (after,), found = projected([array], keep=keep)
    kept = min(keep, len(numbers))
    assert found["kept"] == kept
    lost = np.sort(np.abs(array).ravel())[: len(numbers) - kept].astype(np.float64)
    assert np.isclose(found["change_norm"], np.sqrt((lost**2).sum()))
    assert np.isclose(np.linalg.norm((after - array).astype(np.float64)), found["change_norm"], atol=1e-6)
    assert np.all((after == array) | (after == 0))


def test_of_equal_magnitudes_the_earliest_are_kept() -> None:
    (after,), _ = projected([np.array([[1, -1, 1, -1]], np.float32)], keep=2)
    assert after.tolist() == [[1, -1, 0, 0]]


def test_ranked_over_all_tensors_or_in_each() -> None:
    small, large = np.array([[0.1, 0.2]], np.float32), np.array([[1.0, 2.0]], np.float32)
    everywhere, _ = projected([small, large], sparsity=0.5)
    each, found = projected([small, large], sparsity=0.5, scope=Scope.LAYER)
    assert [one.tolist() for one in everywhere] == [[[0, 0]], [[1, 2]]]
    assert [np.count_nonzero(one) for one in each] == [1, 1]
    assert found["kept"] == 2


def test_a_threshold_keeps_what_reaches_it() -> None:
    (after,), found = projected([np.array([[0.5, -0.5, 0.49, -2]], np.float32)], threshold=0.5)
    assert after.tolist() == [[0.5, -0.5, 0, -2]]
    assert (found["weights"], found["kept"]) == (4, 3)


def test_half_precision_keeps_its_type() -> None:
    (after,), _ = projected([np.array([[1, 2]], np.float16)], keep=1)
    assert (after.dtype, after.tolist()) == (np.float16, [[0, 2]])
