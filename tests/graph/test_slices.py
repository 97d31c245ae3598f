import numpy as np
import pytest

from modelctl.data.samples import Array, Samples
from modelctl.errors import DataError
from modelctl.graph import intervals, scores, slices
from modelctl.options import Metric


def made(column: Array, labels: Array) -> Samples:
    return Samples({"x": np.zeros(len(labels))}, labels, {"who": column})


RIGHT = np.eye(2)[[0, 0, 0, 0, 1, 1]]
SIX = made(np.array(["a", "a", "b", "b", "b", "c"], object), np.array([0, 1, 0, 0, 0, 1]))


def test_each_group_has_its_score_and_its_interval() -> None:
    found = slices.told(Metric.AUTO, RIGHT, SIX, "who")
    assert (found["column"], found["metric"], found["lowest"], found["highest"]) == ("who", "top1", "a", "c")
    assert [(row["group"], row["samples"]) for row in found["groups"]] == [("a", 2), ("b", 3), ("c", 1)]
    assert [row["value"] for row in found["groups"]] == [1 / 2, 2 / 3, 1]
    assert (found["groups"][0]["low"], found["groups"][0]["high"]) == intervals.wilson(1, 2)
    assert found["gap_pp"] == 50
    assert "gap_before_pp" not in found


def test_the_gap_before_a_step_stands_beside_the_one_after_it() -> None:
    before = np.eye(2)[[0, 1, 0, 0, 0, 1]]
    found = slices.told(Metric.AUTO, RIGHT, SIX, "who", before=before)
    assert (found["gap_before_pp"], found["gap_pp"]) == (0, 50)
    assert [row["before"] for row in found["groups"]] == [1, 1, 1]


def test_the_gap_of_an_error_is_told_by_the_spread_of_the_labels() -> None:
    samples = made(np.array([1, 1, 2, 2]), np.array([0.0, 2.0, 0.0, 2.0]))
    found = slices.told(Metric.AUTO, np.array([0.0, 2.0, 0.5, 2.5]), samples, "who")
    assert found["gap_pp"] == 50
    assert [row["group"] for row in found["groups"]] == [1, 2]


def test_too_many_groups_are_not_told_apart() -> None:
    samples = made(np.arange(101), np.zeros(101, int))
    with pytest.raises(DataError, match="column 'who': holds 101 groups, at most 100"):
        slices.told(Metric.TOP1, np.eye(2)[np.zeros(101, int)], samples, "who")


def test_one_group_alone_leaves_no_gap() -> None:
    samples = made(np.array(["a", "a"], object), np.array([0, 1]))
    with pytest.raises(DataError, match="column 'who': all 2 samples are of one group, 'a'"):
        slices.told(Metric.TOP1, np.eye(2), samples, "who")


def test_a_group_that_can_not_be_scored_is_named() -> None:
    def needs_two(answers: Array, labels: Array) -> float:
        if len(set(labels.tolist())) < 2:
            raise DataError("own:two: needs two classes")
        return float((answers.argmax(axis=1) == labels).mean())

    with pytest.raises(DataError, match="group 'b' of 'who': own:two: needs two classes"):
        slices.told(scores.Own("own:two", needs_two), RIGHT, SIX, "who")
