import math
from pathlib import Path

import numpy as np
import pytest

from modelctl.data.samples import Array, Samples
from modelctl.errors import DataError, UsageError
from modelctl.graph import intervals, scores
from modelctl.options import Metric

FIVE = np.eye(6)[[0, 1, 2, 3, 4]] + np.arange(6) / 100


def labelled(labels: list[int]) -> Samples:
    return Samples({"x": np.zeros(len(labels))}, np.array(labels))


def test_top1_with_the_interval_of_wilson() -> None:
    found = scores.score(Metric.AUTO, FIVE, labelled([0, 1, 2, 3, 0]), "digest")
    assert (found["metric"], found["value"], found["samples"], found["data"]) == ("top1", 0.8, 5, "digest")
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.3755, 0.9638)  # as R's binom.wilson(4, 5) says


def test_wilson_stays_inside_a_share() -> None:
    assert intervals.wilson(0, 10)[0] == 0
    assert intervals.wilson(10, 10)[1] == 1


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


def test_an_interval_goes_by_its_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 60)
    answers = np.random.default_rng(1).random((60, 3))
    samples = Samples({"x": labels}, labels)
    first, again, other = (scores.score(Metric.F1, answers, samples, "", seed) for seed in (0, 0, 1))
    assert first == again
    assert first["value"] == other["value"]
    assert first["low"] != other["low"]


def test_the_interval_of_an_rmse_covers_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        off = random.normal(0, 2, 80)
        found = scores.score(Metric.RMSE, off, Samples({"x": off}, np.zeros(80)), "", seed)
        covered += found["low"] <= 2 <= found["high"]
    assert 86 <= covered <= 99


def write_metrics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ownmetrics.py").write_text(
        "def right(answers, labels):\n    return (answers.argmax(1) == labels).mean()\n"
        "def greedy(answers, labels):\n    answers[:] = 0\n    return 1.0\n"
        "def fails(answers, labels):\n    raise KeyError('no such class')\n"
        "def words(answers, labels):\n    return '0.5'\n"
        "def nothing(answers, labels):\n    return None\n"
        "def many(answers, labels):\n    return labels\n"
        "def nan(answers, labels):\n    return float('nan')\n"
        "def picky(answers, labels):\n    return 1 / (len(set(labels.tolist())) == 5)\n"
        "constant = 3\n"
    )
    monkeypatch.chdir(folder)


def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metrics(tmp_path, monkeypatch)
    found = scores.score(scores.own("ownmetrics:right"), FIVE, labelled([0, 1, 2, 3, 0]), "")
    assert (found["metric"], found["value"], found["samples"]) == ("ownmetrics:right", 0.8, 5)
    assert found["low"] < 0.8 < found["high"]
    # Where it can't be taken of most resamples it has no interval.
    found = scores.score(scores.own("ownmetrics:picky"), FIVE, labelled([0, 1, 2, 3, 4]), "")
    assert found["value"] == 1
    assert math.isnan(found["low"])
    assert not list(tmp_path.glob("__pycache__"))


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("greedy", DataError, r"ownmetrics\.py:4: ValueError: assignment destination is read-only"),
        ("fails", DataError, r"ownmetrics:fails: ownmetrics\.py:7: KeyError: 'no such class'"),
        ("words", DataError, "gave str '0.5', and a metric is a finite number"),
        ("nothing", DataError, "ownmetrics:nothing: "),
        ("many", DataError, "gave ndarray"),
        ("nan", DataError, "gave float nan"),
        ("absent", UsageError, "has no 'absent'"),
        ("constant", UsageError, "is int"),
    ],
)
def test_a_metric_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], says: str
) -> None:
    write_metrics(tmp_path, monkeypatch)
    with pytest.raises(error, match=says):
        scores.score(scores.own(f"ownmetrics:{name}"), FIVE, labelled([0, 1, 2, 3, 0]), "")


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


def test_the_cosine_of_embeddings_row_by_row() -> None:
    before = np.array([[1.0, 0.0], [1e200, 1e200], [0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    after = np.array([[0.0, 2.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [-3.0, -4.0]])
    assert np.allclose(scores.cosines(before, after), [0, 1, 1, 0, -1])
    found = scores.agreement(before[2:], after[2:])
    assert abs(found["cosine"]) < 1e-12
    assert math.isclose(found["cosine_lowest"], -1)
    assert "cosine" not in scores.agreement(before[2:, 0], after[2:, 0])
    rounded = np.random.default_rng(0).standard_normal((100, 384)).astype(np.float32)
    assert (scores.cosines(rounded, 7 * rounded) <= 1).all()
