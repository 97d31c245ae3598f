import math

import numpy as np
import pytest

from modelctl.data.samples import Array, Samples
from modelctl.errors import DataError
from modelctl.graph import scores
from modelctl.options import Metric

FIVE = np.eye(6)[[0, 1, 2, 3, 4]] + np.arange(6) / 100


def labelled(labels: list[int]) -> Samples:
    return Samples({"x": np.zeros(len(labels))}, np.array(labels))


def test_top1_with_the_interval_of_wilson() -> None:
    found = scores.score(Metric.AUTO, FIVE, labelled([0, 1, 2, 3, 0]), "digest")
    assert (found["metric"], found["value"], found["samples"], found["data"]) == ("top1", 0.8, 5, "digest")
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.3755, 0.9638)  # as R's binom.wilson(4, 5) says


def test_wilson_stays_inside_a_share() -> None:
    assert scores.wilson(0, 10)[0] == 0
    assert scores.wilson(10, 10)[1] == 1


def test_of_equal_answers_the_earlier_class_goes_first() -> None:
    same = np.zeros((2, 6))
    assert scores.hits(same, np.array([0, 1]), 1).tolist() == [True, False]
    assert scores.hits(same, np.array([4, 5]), 5).tolist() == [True, False]


def test_top5() -> None:
    found = scores.score(Metric.TOP5, FIVE, labelled([0, 1, 2, 3, 0]), "")
    assert found["value"] == 0.8  # class 0 is the sixth where class 4 is the first


def test_f1_is_the_mean_over_the_classes_that_occur() -> None:
    predicted, labels = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert math.isclose(scores.f1_macro(predicted, labels), (2 / 3 + 4 / 5) / 2)
    found = scores.score(Metric.F1, np.eye(9)[predicted], labelled([0, 1, 1, 1]), "")
    assert math.isclose(found["value"], (2 / 3 + 4 / 5) / 2)
    assert found["low"] <= found["value"] <= found["high"]


def test_rmse_and_its_drop_in_hundredths_of_the_spread() -> None:
    samples = Samples({"x": np.zeros(4)}, np.array([0.0, 2.0, 0.0, 2.0]))
    exact = scores.score(Metric.AUTO, np.array([[0.0], [2.0], [0.0], [2.0]]), samples, "")
    off = scores.score(Metric.AUTO, np.array([[0.5], [2.5], [0.5], [2.5]]), samples, "")
    assert (exact["metric"], exact["value"], off["value"]) == ("rmse", 0, 0.5)
    assert scores.drop_pp(exact, off, samples) == 50


@pytest.mark.parametrize(
    ("metric", "answers", "labels", "says"),
    [
        (Metric.TOP1, FIVE, [0, 1, 2, 3, 6], "labels run from 0 to 6, but the model answers 6 classes"),
        (Metric.TOP1, FIVE, [0, 1, 2, 3, -1], "labels run from -1"),
        (Metric.TOP1, FIVE[:, :1], [0] * 5, r"top1 needs answers \[N, classes\]"),
        (Metric.TOP1, FIVE, [0.0] * 5, "top1 needs answers"),
        (Metric.RMSE, FIVE, [0.0] * 5, "rmse needs as many answers as labels"),
    ],
)
def test_what_can_not_be_scored(metric: Metric, answers: Array, labels: list[int], says: str) -> None:
    with pytest.raises(DataError, match=says):
        scores.score(metric, answers, labelled(labels), "")


def test_nothing_is_scored_without_labels() -> None:
    with pytest.raises(DataError, match="no labels"):
        scores.score(Metric.AUTO, FIVE, Samples({"x": np.zeros(5)}), "")


def test_agreement() -> None:
    other = FIVE.copy()
    other[0] = FIVE[1]
    found = scores.agreement(FIVE, other)
    assert found["agreement"] == 0.8
    assert math.isclose(found["max_error"], 1)
    assert "agreement" not in scores.agreement(FIVE[:, 0], other[:, 0])
