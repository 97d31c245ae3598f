import math

import numpy as np
import pytest

from modelctl.graph import classes, intervals

SIX = np.array([0, 0, 1, 1, 2, 2])


def said(predicted: list[int], size: int = 4) -> np.ndarray:
    """Answers that have their highest at these classes."""
    found: np.ndarray = np.eye(size, dtype=np.float32)[predicted]
    return found


def test_a_row_for_each_class_that_occurs() -> None:
    rows = classes.by_class(said([0, 1, 1, 1, 1, 0], size=9), SIX)
    assert [row["class"] for row in rows] == [0, 1, 2]
    low, high = intervals.wilson(1, 2)
    first = {"class": 0, "support": 2, "precision": 0.5, "recall": 0.5, "low": low, "high": high}
    assert rows[0] == first | {"f1": 0.5, "confused_with": 1}
    assert (rows[1]["precision"], rows[1]["recall"], rows[1]["confused_with"]) == (0.5, 1, None)
    assert math.isclose(rows[1]["f1"], 2 / 3)
    # Class 2 is never answered: there is no precision; it is taken for 0 and for 1 as often.
    assert (rows[2]["class"], rows[2]["support"], rows[2]["precision"], rows[2]["recall"]) == (2, 2, None, 0)
    assert (rows[2]["f1"], rows[2]["confused_with"]) == (0, 0)


def test_what_is_answered_but_never_the_label_has_no_recall() -> None:
    (own, other) = classes.by_class(said([0, 3]), np.array([0, 0]))
    assert own["confused_with"] == 3
    assert (other["class"], other["support"], other["recall"], other["precision"]) == (3, 0, None, 0)
    assert (other["low"], other["high"]) == (None, None)


def test_all_right() -> None:
    rows = classes.by_class(said([0, 0, 1, 1, 2, 2]), SIX)
    assert all(row["f1"] == 1 and row["confused_with"] is None for row in rows)


def test_confusion_counts_labels_by_answers() -> None:
    found = classes.confusion(said([0, 1, 1, 1, 1, 0], size=3), SIX)
    assert found is not None
    assert found.tolist() == [[1, 1, 0], [0, 2, 0], [1, 1, 0]]
    assert classes.confusion(np.zeros((2, 101)), np.array([0, 1])) is None


def test_calibration_error_by_hand() -> None:
    # Three answers of .9, two of them right, in one bin; one of .6, right, in another.
    answers = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    found = classes.calibration(answers, np.array([0, 1, 1, 1]))
    assert found is not None
    assert math.isclose(found["error"], 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * abs(1 - 0.6))
    assert math.isclose(found["confidence"], (3 * 0.9 + 0.6) / 4)
    assert (found["bins"], found["answers"]) == (15, "probabilities")


def test_logits_are_made_probabilities_first() -> None:
    shares = np.array([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]])
    labels = np.array([0, 0, 1])
    told = classes.calibration(shares, labels)
    logits = classes.calibration(np.log(shares) + 700, labels)
    assert told is not None
    assert logits is not None
    assert logits["answers"] == "logits"
    assert math.isclose(told["error"], logits["error"], rel_tol=1e-9)
    assert classes.calibration((shares * 100).astype(np.uint8), labels) is None


def test_a_bin_holds_its_upper_end_as_guo_has_it() -> None:
    # 1/15 · 9 and a little more lie in two bins, and their gaps do not cancel.
    end = 9 / 15
    answers = np.array([[end, 1 - end], [end + 1e-3, 1 - end - 1e-3]])
    found = classes.calibration(answers, np.array([0, 1]))
    assert found is not None
    assert math.isclose(found["error"], ((1 - end) + (end + 1e-3)) / 2)


def test_flips_are_counted_by_their_kind() -> None:
    found = classes.flips(said([0, 0, 1, 1, 0, 1]), said([0, 1, 1, 1, 1, 2]), SIX)
    assert found == {"right_to_wrong": 1, "wrong_to_right": 1, "wrong_otherwise": 1, "p_value": 1}


@pytest.mark.parametrize(
    ("lost", "won", "p_value"),
    [
        (0, 0, 1),
        (5, 5, 1),
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (1, 7, 2 * (1 + 8) / 256),
        (3, 12, 2 * (1 + 15 + 105 + 455) / 2**15),
    ],
)
def test_mcnemars_p_value_is_the_binomial_tail(lost: int, won: int, p_value: float) -> None:
    assert math.isclose(classes.mcnemar(lost, won), p_value, rel_tol=1e-12)


def test_mcnemar_of_many_is_near_the_normal_one_and_never_above_one() -> None:
    # (b - c)² / (b + c) with continuity: z = (200 - 1) / √20000 = 1.407
    assert math.isclose(classes.mcnemar(9900, 10100), math.erfc(199 / math.sqrt(20000) / math.sqrt(2)), rel_tol=1e-3)
    assert classes.mcnemar(1000, 1000) == 1
    assert classes.mcnemar(0, 5000) == 0


def test_what_is_no_classifiers_answer() -> None:
    assert classes.fit(said([0, 1]), np.array([0, 1]))
    assert not classes.fit(said([0, 1]), None)
    assert not classes.fit(said([0, 1]), np.array([0.0, 1.0]))
    assert not classes.fit(said([0, 1]), np.array([0, 4]))
    assert not classes.fit(np.zeros((2, 1)), np.array([0, 0]))
    assert not classes.fit(np.zeros((2, 3, 4)), np.array([0, 0]))
