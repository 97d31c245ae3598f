from typing import Any

import nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from modelctl.graph import sparsity


def projected(
    arrays: list[np.ndarray[Any, Any]], **options: Any
) -> tuple[list[np.ndarray[Any, Any]], dict[str, float]]:
    tensors = [numpy_helper.from_array(array, str(place)) for place, array in enumerate(arrays)]
    found = sparsity.apply(tensors, sparsity.masks(tensors, sparsity.Rule(**options)))
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
    each, found = projected([small, large], sparsity=0.5, each=True)
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


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_more_than_n_of_m_neighbours_are_kept(data: st.DataObject) -> None:
    of = data.draw(st.integers(2, 6))
    kept = data.draw(st.integers(1, of - 1))
    shape = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    axis = data.draw(st.integers(0, len(shape) - 1))
    size = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 4, shape).astype(np.float32)
    found = sparsity.neighbours(size, axis, kept, of)
    rows, magnitudes = np.moveaxis(found, axis, -1), np.moveaxis(size, axis, -1)
    whole = rows.shape[-1] // of * of
    assert rows[..., whole:].all()
    for start in range(0, whole, of):
        group, inside = magnitudes[..., start : start + of], rows[..., start : start + of]
        assert (inside.sum(-1) == kept).all()
        best = np.sort(group, -1)[..., of - kept :].sum(-1)
        assert np.array_equal(np.where(inside, group, 0).sum(-1), best)


def test_a_pattern_goes_along_what_is_summed() -> None:
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return random.standard_normal(shape).astype(np.float32)

    make = helper.make_node
    nodes = [
        make("Conv", ["x", "kernel"], ["c"]),
        make("ConvTranspose", ["c", "transposed"], ["u"]),
        make("Gemm", ["u", "plain"], ["g"]),
        make("Gemm", ["g", "turned"], ["h"], transB=1),
        make("MatMul", ["h", "right"], ["m"]),
        make("MatMul", ["left", "m"], ["n"]),
        make("Transpose", ["hidden"], ["visible"]),
        make("MatMul", ["n", "visible"], ["o"]),
        make("Gather", ["table", "o"], ["e"]),
        make("Einsum", ["e", "summed"], ["s"], equation="bqd,hdk->bhqk"),
        make("LSTM", ["s", "input", "recurrent"], ["l"]),
        make("MatMul", ["l", "both"], ["p"]),
        make("Gemm", ["p", "both"], ["logits"], transB=1),
    ]
    names = ["kernel", "transposed", "plain", "turned", "right", "left", "hidden", "table", "both"]
    held = {name: weight(4, 4, 1, 1) if name in ("kernel", "transposed") else weight(4, 4) for name in names}
    held |= {"summed": weight(2, 4, 4), "input": weight(1, 16, 4), "recurrent": weight(1, 16, 4)}
    model = nets.model_of(nodes, held, ["n", 4], ["n", 4])
    axes = sparsity.summed_axes(model)
    wanted = {"kernel": 1, "transposed": 0, "plain": 0, "turned": 1, "right": 0, "left": 1, "hidden": 1}
    assert axes == wanted | {"summed": 1, "input": 2, "recurrent": 2}
    tensors = list(model.graph.initializer)
    masks = sparsity.masks(tensors, sparsity.Rule(pattern=(2, 4)), axes)
    for name, axis in axes.items():
        assert (np.moveaxis(masks[name], axis, -1).reshape(-1, 4).sum(1) == 2).all()
    assert masks["table"].all()
    assert masks["both"].all()
    found = sparsity.apply(tensors, masks)
    assert (found["weights"], found["kept"]) == (
        sum(one.size for one in held.values()),
        sum(np.count_nonzero(numpy_helper.to_array(one)) for one in tensors),
    )


def test_masks_can_be_held() -> None:
    """What was learned since is zeroed again where it was zero, and nowhere else."""
    tensors = [numpy_helper.from_array(np.array([[1, -3, 2]], np.float32), "w")]
    masks = sparsity.masks(tensors, sparsity.Rule(keep=1))
    learned = [
        numpy_helper.from_array(np.array([[9, -4, 9]], np.float32), "w"),
        numpy_helper.from_array(np.ones(2), "b"),
    ]
    sparsity.apply(learned, masks)
    assert [numpy_helper.to_array(one).tolist() for one in learned] == [[[0, -4, 0]], [1, 1]]
    assert sparsity.masks([], sparsity.Rule(keep=1)) == {}


def test_no_zero_has_a_sign() -> None:
    (after,), _ = projected([np.array([[-0.0, 1, -1, -0.0]], np.float32)], keep=3)
    assert after.tolist() == [[0, 1, -1, 0]]
    assert not np.signbit(after[after == 0]).any()


def test_the_share_grows_fast_and_then_slower() -> None:
    found = [sparsity.share_at(step, 4, 0.8) for step in range(6)]
    assert found == pytest.approx([0, 0.8 * (1 - 27 / 64), 0.8 * (1 - 1 / 8), 0.8 * (1 - 1 / 64), 0.8, 0.8])
    assert sparsity.share_at(0, 3, 0.9, 0.5) == pytest.approx(0.5)
