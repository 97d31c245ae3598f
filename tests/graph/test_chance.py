from typing import Any

import numpy as np
import pytest

from modelctl.data.samples import Array, Samples
from modelctl.errors import CheckFailed, DataError
from modelctl.graph import chance, intervals, scores
from modelctl.options import Metric


def scored(metric: Metric, answers: Array, labels: Array) -> dict[str, Any]:
    return scores.score(metric, answers, Samples({"x": labels}, labels), "")


def votes(predicted: Array, size: int) -> Array:
    found: Array = np.eye(size)[predicted]
    return found


LABELS = np.random.default_rng(0).integers(0, 3, 300)
TARGETS = np.random.default_rng(1).standard_normal((300, 2))


def test_the_best_constant_answer_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 2, 3, 4, 5])
    assert chance.best_constant("top1", labels) == 3 / 8
    assert chance.best_constant("top5", labels) == 7 / 8
    assert chance.best_constant("top5", labels[:7]) is None  # five classes: every answer has it
    constant = scores.f1_macro(np.zeros(8, int), labels)
    assert chance.best_constant("f1", labels) == pytest.approx(constant)
    assert chance.best_constant("rmse", TARGETS) == pytest.approx(np.sqrt(((TARGETS - TARGETS.mean(0)) ** 2).mean()))
    assert chance.best_constant("own:metric", labels) is None


@pytest.mark.parametrize("metric", [Metric.TOP1, Metric.F1])
def test_a_model_that_guesses_is_not_above_chance_and_one_that_knows_is(metric: Metric) -> None:
    random = np.random.default_rng(2)
    passed = 0
    for _ in range(40):
        answers = random.random((300, 3))
        passed += chance.is_above(scored(metric, answers, LABELS), LABELS, answers)
    # Guesses are spread, so that their macro F1 is above that of one class for all; top1 is not.
    assert passed <= (4 if metric is Metric.TOP1 else 40)
    knows = votes(np.where(random.random(300) < 0.5, LABELS, random.integers(0, 3, 300)), 3)
    assert chance.is_above(scored(metric, knows, LABELS), LABELS, knows)
    always = votes(np.zeros(300, int), 3)
    assert not chance.is_above(scored(metric, always, LABELS), LABELS, always)


def test_one_class_that_has_nearly_all_hides_no_skill() -> None:
    labels = (np.arange(1000) < 50).astype(int)
    predicted = (np.arange(1000) < 10).astype(int)  # 10 of the 50 rare ones are found, and no other is called rare
    answers = votes(predicted, 2)
    score = scored(Metric.TOP1, answers, labels)
    assert score["value"] < intervals.wilson(950, 1000)[1]  # by the interval alone it would be refused
    assert chance.is_above(score, labels, answers)
    assert not chance.is_above(score, labels)


def test_few_samples_are_enough_for_a_model_that_is_right() -> None:
    labels = np.arange(10) % 2
    answers = votes(labels, 2)
    assert chance.is_above(scored(Metric.TOP1, answers, labels), labels, answers)


def test_an_error_no_smaller_than_the_spread_is_chance() -> None:
    random = np.random.default_rng(3)
    off, near = random.standard_normal((300, 2)), TARGETS + 0.5 * random.standard_normal((300, 2))
    assert not chance.is_above(scored(Metric.RMSE, off, TARGETS), TARGETS)
    assert chance.is_above(scored(Metric.RMSE, near, TARGETS), TARGETS)


def test_what_tells_nothing_is_refused_in_one_line() -> None:
    answers = votes(np.full(300, 2), 3)
    score = scored(Metric.TOP1, answers, LABELS)
    chance.refuse(scored(Metric.TOP1, votes(LABELS, 3), LABELS), LABELS, "net.onnx", votes(LABELS, 3))
    with pytest.raises(CheckFailed, match=r"net\.onnx: top1 of 0\.3\d+ on 300 samples is not above chance: always"):
        chance.refuse(score, LABELS, "net.onnx", answers)
    with pytest.raises(CheckFailed, match=r"always answering class \d has 0\.\d+: no drop can be told$"):
        chance.refuse(score, LABELS, "net.onnx")
    with pytest.raises(DataError, match=r"net\.onnx: all 300 labels are of class 1, and a model that always says so"):
        chance.refuse(score, np.ones(300, int), "net.onnx", answers)
    with pytest.raises(DataError, match=r"net\.onnx: all 300 labels are the same, and"):
        chance.refuse(score, np.ones((300, 2)), "net.onnx")
    with pytest.raises(DataError, match=r"net\.onnx: the samples have no labels 'y'"):
        chance.refuse(None, None, "net.onnx")
