"""The gate says no to everything that is not the same model, and yes to what is."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from modelctl.errors import CheckFailed, DataError
from modelctl.graph.parity import Tolerance, check, draw, find_sizes
from modelctl.manifest import TensorSpec

Array = np.ndarray[Any, Any]
Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]

X = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
WEIGHTS = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)


def linear(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": feeds["x"] @ WEIGHTS}


def judged(candidate: Function, reference: Function = linear, *inputs: TensorSpec, **options: Any) -> dict[str, Any]:
    specs = inputs or (X,)
    samples = options.pop("samples", None)
    return check(
        reference,
        candidate,
        specs,
        find_sizes(reference, specs),
        Tolerance(**options),
        name="model",
        samples=samples,
    )


def changed(change: Callable[[Array], Array]) -> Function:
    return lambda feeds: {"y": change(linear(feeds)["y"])}


def of_x(compute: Callable[[Array], Array]) -> Function:
    return lambda feeds: {"y": compute(feeds["x"])}


def with_nan(y: Array) -> Array:
    y = y.copy()
    y[0, 0] = np.nan
    return y


DIFFERENT: dict[str, tuple[Function, str]] = {
    "a number": (changed(lambda y: y + 1), "output 'y' at batch 1 differs by 1, allowed is"),
    "one number in many": (
        changed(lambda y: y + np.float32(0.01) * (np.arange(y.size).reshape(y.shape) == 20)),
        "at batch 8",
    ),
    "the batch size": (changed(lambda y: y if len(y) > 1 else y * 1.01), "at batch 1"),
    "a shape": (changed(lambda y: y[:, :2]), "has shape [1, 2], the source gives [1, 3]"),
    "a broadcast shape": (changed(lambda y: y[:, :1]), "has shape"),
    "an element type": (changed(lambda y: y.astype(np.float64)), "is float64, the source gives float32"),
    "a name": (lambda feeds: {"z": linear(feeds)["y"]}, "gives the outputs z, the source gives y"),
    "one output more": (lambda feeds: linear(feeds) | {"z": feeds["x"]}, "gives the outputs y, z"),
    "nan": (changed(with_nan), "has NaN in other places"),
    "infinity": (changed(lambda y: y / np.zeros_like(y)), "in other places"),
    "all nan": (changed(lambda y: y * np.float32("nan")), "has NaN"),
    "zero": (changed(lambda y: y * 0), "differs"),
}


@pytest.mark.parametrize("difference", DIFFERENT)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_difference_is_found(difference: str) -> None:
    candidate, said = DIFFERENT[difference]
    with pytest.raises(CheckFailed) as raised:
        judged(candidate)
    assert said in raised.value.message


def test_the_order_of_outputs_counts() -> None:
    with pytest.raises(CheckFailed, match="gives the outputs b, a"):
        judged(lambda feeds: {"b": feeds["x"], "a": feeds["x"]}, lambda feeds: {"a": feeds["x"], "b": feeds["x"]})


def test_what_is_measured_is_told() -> None:
    facts = judged(changed(lambda y: y + np.float32(1e-6)))
    assert facts["batches"] == [1, 3, 8]
    assert 5e-7 < facts["max_difference"] < 2e-6 < facts["allowed"]
    assert facts["samples"] == 36
    assert facts["top1_agreement"] == 1.0


def test_the_difference_is_judged_against_the_spread_not_the_size() -> None:
    far = of_x(lambda x: x * np.float32(0.001) + 100)
    with pytest.raises(CheckFailed, match="differs"):
        judged(lambda feeds: {"y": far(feeds)["y"] + np.float32(0.001)}, far)
    large = of_x(lambda x: x * 1000)
    judged(lambda feeds: {"y": large(feeds)["y"] + np.float32(0.001)}, large)


def test_outputs_that_prove_nothing_are_refused() -> None:
    dead = of_x(lambda x: np.full((len(x), 3), 7, np.float32))
    with pytest.raises(CheckFailed, match="does not depend on the input"):
        judged(dead, dead)
    assert judged(dead, dead, allow_vacuous=True)["vacuous"] == ["y"]
    noise = of_x(lambda x: 7 + x * np.float32(1e-8))
    with pytest.raises(CheckFailed, match="does not depend on the input"):
        judged(noise, noise)
    silent = of_x(lambda x: x * np.float32("nan"))
    with pytest.raises(CheckFailed, match="never a number"):
        judged(silent, silent)


def test_outputs_without_a_batch_axis_are_judged_too() -> None:
    flat = of_x(lambda x: x.ravel() * 2)
    judged(flat, flat)
    counting = of_x(lambda x: np.arange(x.size, dtype=np.float32))
    with pytest.raises(CheckFailed, match="does not depend"):
        judged(counting, counting)
    total = of_x(lambda x: x.sum())
    judged(total, total)
    with pytest.raises(CheckFailed, match="differs"):
        judged(of_x(lambda x: x.sum() + np.float32(1)), total)


def test_samples_of_the_user_can_be_what_differs_and_what_proves() -> None:
    quiet = of_x(lambda x: np.maximum(x.sum(1) - 100, 0))
    samples = {"x": np.random.default_rng(0).uniform(0, 200, (20, 4)).astype(np.float32)}
    with pytest.raises(CheckFailed, match="does not depend"):
        judged(quiet, quiet)
    judged(quiet, quiet, samples=samples)
    with pytest.raises(CheckFailed, match="samples 0 to 7"):
        judged(lambda feeds: {"y": np.minimum(quiet(feeds)["y"], 5)}, quiet, samples=samples)


def test_nan_in_the_same_places_is_no_difference() -> None:
    holes = of_x(lambda x: np.log(x))
    with np.errstate(invalid="ignore"):
        judged(holes, holes)


LENGTH = (
    TensorSpec(name="tokens", dtype="int64", shape=("batch", "length")),
    TensorSpec(name="mask", dtype="float32", shape=("batch", "length")),
)


def pooled(feeds: Mapping[str, Array]) -> dict[str, Array]:
    if feeds["tokens"].shape[1] > 16:
        raise DataError("too long")
    return {"y": (feeds["tokens"] * feeds["mask"]).sum(1)}


def test_other_free_dimensions_take_a_few_values_that_the_source_accepts() -> None:
    assert judged(pooled, pooled, *LENGTH)["sizes"]["length"] == [1, 5, 8, 9, 16]

    def wrong_at_one(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": pooled(feeds)["y"] * (1 if feeds["tokens"].shape[1] > 1 else 2)}

    with pytest.raises(CheckFailed, match="length 1"):
        judged(wrong_at_one, pooled, *LENGTH)


def test_a_dimension_at_which_only_one_size_runs_is_not_free() -> None:
    def only_eight(feeds: Mapping[str, Array]) -> dict[str, Array]:
        if feeds["tokens"].shape[1] != 8:
            raise DataError("no")
        return {"y": feeds["mask"].sum(1)}

    with pytest.raises(CheckFailed, match="length is no free dimension: the source runs at 8 only"):
        judged(only_eight, only_eight, *LENGTH)


def test_a_candidate_that_refuses_what_the_source_takes_is_not_the_same() -> None:
    def small(feeds: Mapping[str, Array]) -> dict[str, Array]:
        if len(feeds["x"]) > 5:
            raise DataError("too many")
        return linear(feeds)

    with pytest.raises(CheckFailed, match="at batch 8 it can't run: too many"):
        judged(small)
    with pytest.raises(CheckFailed, match="the source itself can't run at batch 8"):
        judged(linear, small)


def test_a_source_that_refuses_everything_says_why() -> None:
    def refuses(feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise DataError("never")

    with pytest.raises(DataError, match="never"):
        find_sizes(refuses, LENGTH)


def test_integers_and_booleans_must_be_equal() -> None:
    top = of_x(lambda x: x.argmax(1))
    judged(top, top)
    with pytest.raises(CheckFailed, match="differs by 1"):
        judged(lambda feeds: {"y": feeds["x"].argmax(1) + (feeds["x"][:, 0] > 1)}, top)
    large = of_x(lambda x: np.arange(len(x)) + 2**60 + (x[:, 0] > 0))
    with pytest.raises(CheckFailed, match="differs by 1"):
        judged(of_x(lambda x: np.arange(len(x)) + 2**60 + (x[:, 0] > 0.5)), large)
    sign = of_x(lambda x: x > 0)
    judged(sign, sign)


def test_inputs_are_drawn_distinct_and_the_same_again() -> None:
    twins = tuple(TensorSpec(name=name, dtype="float32", shape=("n", 3)) for name in "ab")
    one, again, other = (draw(twins, {"n": 5}, (seed, 0)) for seed in (1, 1, 2))
    assert not np.array_equal(one["a"], one["b"])
    assert all(np.array_equal(one[key], again[key]) and not np.array_equal(one[key], other[key]) for key in "ab")
    kinds = tuple(TensorSpec(name=kind, dtype=kind, shape=(50,)) for kind in ("int64", "uint8", "bool", "float16"))
    drawn = draw(kinds, {}, (0, 0))
    assert all(drawn[kind].dtype == kind for kind in drawn)
    assert set(drawn["int64"]) == {0, 1}


def test_integers_are_drawn_over_the_whole_range_where_one_is_known() -> None:
    tokens = TensorSpec(name="tokens", dtype="int32", shape=("n", 40))
    drawn = [draw((tokens,), {"n": 8}, (0, seed), {"tokens": (-3, 96)})["tokens"] for seed in range(3)]
    assert drawn[0].dtype == np.int32 and len(np.unique(drawn[0])) > 80
    assert all(array.min() >= -3 and array.max() <= 96 for array in drawn)
    assert (drawn[0].flat[0], drawn[1].flat[0]) == (-3, 96)


def test_a_row_that_only_large_indices_reach_is_looked_at() -> None:
    table = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    other = table.copy()
    other[2:] += 1
    tokens = TensorSpec(name="tokens", dtype="int64", shape=("batch", 4))

    def of(rows: Array) -> Function:
        return lambda feeds: {"y": rows[feeds["tokens"]]}

    def held(ranges: dict[str, tuple[int, int]]) -> dict[str, Any]:
        return check(of(table), of(other), (tokens,), {"batch": 3}, Tolerance(), name="model", ranges=ranges)

    assert held({})["max_difference"] == 0
    with pytest.raises(CheckFailed, match="differs by 1"):
        held({"tokens": (0, 49)})


def test_answers_are_let_go_as_soon_as_they_are_seen() -> None:
    alive: list[weakref.ref[Array]] = []
    most = 0

    def large(feeds: Mapping[str, Array]) -> dict[str, Array]:
        nonlocal most
        answer = np.repeat(feeds["x"], 10, axis=1)
        alive.append(weakref.ref(answer))
        most = max(most, sum(one() is not None for one in alive))
        return {"y": answer}

    judged(large, large)
    assert len(alive) > 18 and most <= 5


def test_a_failure_is_explained_from_the_inputs_that_showed_it() -> None:
    def explain(feeds: Mapping[str, Array]) -> str:
        return f"seen with {len(feeds['x'])} samples"

    def wrong(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": linear(feeds)["y"] + (len(feeds["x"]) == 3)}

    with pytest.raises(CheckFailed, match=r"at batch 3 differs by 1, .*; seen with 3 samples"):
        check(linear, wrong, (X,), {"batch": 3}, Tolerance(), name="model", explain=explain)


def test_a_model_of_fixed_sizes_is_checked_at_those() -> None:
    fixed = TensorSpec(name="x", dtype="float32", shape=(2, 4))
    facts = judged(linear, linear, fixed)
    assert facts["batches"] == [] and facts["samples"] == 6
    data = {"x": np.random.default_rng(0).random((7, 4), np.float32)}
    assert judged(linear, linear, fixed, samples=data)["samples"] == 12
