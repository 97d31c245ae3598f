"""What is tried, what is kept, and why; on nets so small that speed tells little: what is asked of it is allowed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import prunable
import pytest
from listening import Listener
from nets import Array
from onnx import helper

from modelctl.data.samples import Samples
from modelctl.graph.latency import Speedup
from modelctl.graph.measure import Trial
from modelctl.graph.quantizing import trials as trials_room
from modelctl.graph.quantizing.recipe import CHAINS, SUMS, Recipe
from modelctl.graph.quantizing.search import Search
from modelctl.graph.quantizing.trials import Trials, Tried
from modelctl.graph.quantizing.workshop import Workshop
from modelctl.graph.session import Session
from modelctl.graph.weight_only import Form
from modelctl.options import Calibration, Goal, Method, QuantizeOptions

make = helper.make_node


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_room, "SECONDS", 0.01)


def searching(model: onnx.ModelProto, samples: Samples, folder: Path, **given: Any) -> Search:
    options = QuantizeOptions(data="samples.npz", threads=1, **{"allow_regression": True} | given)
    payload = prunable.payload(model)
    session = Session(payload)
    workshop = Workshop(model, payload, session, samples.first(256), folder, options)
    return Search(workshop, Trials(payload, session, Trial(samples=samples, data="d"), options), options)


def pictures(count: int = 600) -> Samples:
    found, labels = nets.samples(count, seed=7)
    return Samples({"x": found}, labels)


def fragile(read: float = 0.0) -> tuple[onnx.ModelProto, Samples]:
    """Three products; one channel between two is huge, and is `read` hardly or not at all: 8 bits ruin the others."""
    random = np.random.default_rng(0)
    first, second, third = (random.standard_normal((32, 32)).astype(np.float32) / 4 for _ in range(3))
    first[:, 0] *= 3000
    second[0] *= read
    nodes = [
        make("MatMul", ["x", "w1"], ["a"], "first"),
        make("Relu", ["a"], ["ra"], "relu1"),
        make("MatMul", ["ra", "w2"], ["b"], "second"),
        make("Relu", ["b"], ["rb"], "relu2"),
        make("MatMul", ["rb", "w3"], ["logits"], "third"),
    ]
    model = nets.model_of(nodes, {"w1": first, "w2": second, "w3": third}, ["n", 32], ["n", 32])
    x: Array = random.standard_normal((600, 32)).astype(np.float32)
    return model, Samples({"x": x}, prunable.run(model, {"x": x}).argmax(axis=1))


def tried(**facts: Any) -> Tried:
    speed, name = facts.pop("speed", 1.0), facts.pop("name", "n")
    told = {"size_bytes": 100, "size_ratio": 2.0, "drop_pp": 0.0, "agreement": 1.0, "error": 0.01} | facts
    recipe = Recipe(method=Method.STATIC, floats=(name,))
    return Tried(recipe=recipe, speedup=Speedup(speed, speed, speed), **told)


@pytest.mark.parametrize(
    ("given", "rows", "wanted"),
    [
        ({}, [{"name": "slow", "speed": 1.5}, {"name": "fast", "speed": 2.0}], "fast"),
        ({}, [{"name": "small", "speed": 1.99, "size_bytes": 50}, {"name": "fast", "speed": 2.0}], "small"),
        ({}, [{"name": "true", "speed": 1.99, "error": 1e-3}, {"name": "fast", "speed": 2.0}], "true"),
        ({"max_drop": 1}, [{"name": "fast", "speed": 3, "drop_pp": 1.1}, {"name": "kept", "drop_pp": 1.0}], "kept"),
        (
            {"min_agreement": 0.99},
            [{"name": "fast", "speed": 3, "agreement": 0.98, "drop_pp": -1}, {"name": "kept", "drop_pp": 9}],
            "kept",
        ),
        (
            {"target": Goal.SIZE},
            [{"name": "small", "size_ratio": 4.0, "speed": 1.0}, {"name": "f", "speed": 9}],
            "small",
        ),
        (
            {"target": Goal.BOTH},
            [{"name": "both", "size_ratio": 3.0, "speed": 2.0}, {"name": "f", "size_ratio": 1.0, "speed": 5.0}],
            "both",
        ),
        ({"min_speedup": 1.5}, [{"name": "slow", "speed": 1.4}], None),
        ({"allow_regression": False}, [{"name": "slow", "speed": 0.9}], None),
        ({"allow_regression": False}, [{"name": "large", "speed": 2, "size_bytes": 10**9}], None),
        ({}, [{"name": "lossy", "speed": 2, "drop_pp": 0.6}], None),  # by the goal where no budget is named
    ],
)
def test_the_best_is_what_was_asked_for(
    tmp_path: Path, given: dict[str, Any], rows: list[dict[str, Any]], wanted: str | None
) -> None:
    search = searching(nets.convolutional(), pictures(60), tmp_path, **given)
    search.tried = {one.recipe: one for one in (tried(**row) for row in rows)}
    found = search.best
    assert (found and found.recipe.floats[0]) == wanted


def test_what_seemed_fast_by_chance_is_timed_again(tmp_path: Path) -> None:
    search = searching(nets.convolutional(), pictures(60), tmp_path)
    lucky, plain = (Recipe(method=Method.STATIC, types=types) for types in (CHAINS, SUMS))
    by_chance = Speedup(90.0, 89.0, 91.0)
    search.tried = {one: replace(tried(), recipe=one, speedup=by_chance) for one in (lucky, plain)}
    found = search.run([lucky])
    assert found is not None and found.speed < 30
    assert all(one.speedup == found.speedup for one in search.tried.values())  # which were taken to be as fast


def test_the_best_keeps_the_budget_and_every_candidate_is_told(tmp_path: Path) -> None:
    search = searching(nets.convolutional(), pictures(), tmp_path, max_drop=1)
    best = search.run()
    assert best is not None
    assert best.drop_pp is not None
    assert best.drop_pp <= 1
    assert best.size_ratio > 2
    rows = search.table()
    assert [row["verdict"] for row in rows].count("chosen") == 1
    methods = {row["candidate"].partition(",")[0] for row in rows}
    assert methods >= {"static", "dynamic", "weight-only"}
    assert all(row["speed"] or row["verdict"] != "keeps all" for row in rows)
    made, _ = search._workshop.make(best.recipe)
    assert [row["node"] for row in search.explanation(made)] == ["conv1", "conv2", "dense"]


def test_the_harmful_nodes_go_back_to_float_and_no_other(tmp_path: Path) -> None:
    model, samples = fragile()
    search = searching(model, samples, tmp_path, max_drop=1, smooth=False, op_types=("MatMul",), bits=8)
    base = Recipe(method=Method.STATIC, types=("MatMul",), per_channel=True)
    assert search.attempt(base).drop_pp > 20  # type: ignore[operator]
    assert next(iter(search._workshop.harms)) == "second"
    (fewer,) = search._fewer(base)
    assert set(fewer.floats) == {"first", "second"}
    kept = search.attempt(fewer)
    assert kept.drop_pp is not None
    assert kept.drop_pp <= 1
    assert search.reasons["second"] == "harms the answers most"
    made, _ = search._workshop.make(fewer)
    rows = {row["node"]: row for row in search.explanation(made)}
    assert [rows[name]["decision"] for name in ("first", "second", "third")] == ["float", "float", "int8"]


def test_outliers_are_smoothed_where_that_helps(tmp_path: Path) -> None:
    model, samples = fragile(read=1e-4)
    search = searching(model, samples, tmp_path, max_drop=1)
    assert search._workshop.has_outliers
    plain, smooth = (Recipe(method=Method.STATIC, types=CHAINS, smooth=one) for one in (False, True))
    assert search.attempt(smooth).error < 0.2 * search.attempt(plain).error


def test_a_spent_budget_ends_the_search_with_what_was_found(tmp_path: Path) -> None:
    search = searching(nets.convolutional(), pictures(60), tmp_path, time_budget_s=0, max_drop=50)
    search._progress = listener = Listener()
    assert search.run() is search.best
    assert len(search.tried) == 1
    assert listener.told == ["the search has spent its 0 s"]


def test_what_can_not_be_made_is_told_and_not_kept(tmp_path: Path) -> None:
    search = searching(nets.convolutional(), pictures(60), tmp_path)
    found = search.attempt(Recipe(method=Method.DYNAMIC, types=("LSTM",)))
    assert "holds nothing that dynamic could quantize" in found.trouble
    assert search.best is None
    assert search.table()[0]["verdict"] == found.trouble
    assert search.why_not() == f"nothing could be quantized: {found.trouble}"


def test_what_was_not_found_is_said_with_what_came_nearest(tmp_path: Path) -> None:
    model, samples = fragile()
    search = searching(model, samples, tmp_path, max_drop=0, min_agreement=1.0)
    search.attempt(Recipe(method=Method.STATIC, types=CHAINS))
    assert search.why_not().startswith(
        "not accepted: none of 1 candidates keeps the budget; the truest, static, chains, loses"
    )


def test_only_samples_to_choose_by_are_scored(tmp_path: Path) -> None:
    """Candidates are scored on what they are given, which the step takes from the validation part."""
    samples = pictures(50)
    search = searching(nets.convolutional(), samples, tmp_path)
    candidate = search.attempt(Recipe(method=Method.WEIGHT_ONLY, form=Form.STORED))
    made, _ = search._workshop.make(candidate.recipe)
    before, after = prunable.run(nets.convolutional(), dict(samples.inputs)), prunable.run(made, dict(samples.inputs))
    assert candidate.agreement == (before.argmax(1) == after.argmax(1)).mean()


def test_four_bits_where_they_keep_the_answers_and_eight_elsewhere(tmp_path: Path) -> None:
    model, samples = fragile()
    search = searching(model, samples, tmp_path, target=Goal.SIZE, min_agreement=0.93)
    four = Recipe(method=Method.WEIGHT_ONLY, bits=4, form=Form.STORED)
    assert search.attempt(four).agreement < 0.93
    (mixed,) = search._mixed(four)
    found = search.attempt(mixed)
    assert found.agreement >= 0.93
    assert mixed.stores_rest
    assert 0 < len(mixed.floats) < 3


def test_a_recipe_has_a_name_of_its_own(tmp_path: Path) -> None:
    recipes = [
        Recipe(method=method, bits=bits, smooth=smooth, calibration=calibration, form=form)
        for method, bits, smooth, calibration, form in (
            (Method.STATIC, 8, False, Calibration.MINMAX, Form.STORED),
            (Method.STATIC, 8, True, Calibration.MINMAX, Form.STORED),
            (Method.STATIC, 8, False, Calibration.MSE, Form.STORED),
            (Method.WEIGHT_ONLY, 8, False, Calibration.MINMAX, Form.STORED),
            (Method.WEIGHT_ONLY, 4, False, Calibration.MINMAX, Form.STORED),
            (Method.WEIGHT_ONLY, 4, False, Calibration.MINMAX, Form.INTEGERS),
            (Method.FLOAT16, 16, False, Calibration.MINMAX, Form.STORED),
            (Method.FLOAT16, 16, False, Calibration.MINMAX, Form.BLOCKS),
        )
    ]
    assert len({one.name for one in recipes}) == len(recipes)


def test_products_that_stay_as_they_are_are_told_with_the_reason(tmp_path: Path) -> None:
    bert = prunable.exported("bert")
    samples = Samples({"x": np.random.default_rng(0).integers(0, 20, (64, 16))})
    workshop = searching(bert, samples, tmp_path)._workshop
    assert set(workshop.unfit.values()) == {"multiplies two activations"}
    half, _ = searching(nets.convolutional(), pictures(60), tmp_path)._workshop.make(
        Recipe(method=Method.STATIC, types=("Gemm",))
    )
    assert searching(half, pictures(60), tmp_path)._workshop.unfit == {"dense": "is quantized already"}
