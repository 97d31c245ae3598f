"""What else the answers of a classifier tell, beside a score: class by class, how sure it is, what a step has flipped.

Answers are [N, classes], floats or what they were quantized to; labels int64 [N], from 0 to classes - 1; of equal
answers the earlier class goes first.
"""

import math
from typing import Any

import numpy as np

from modelctl.data.samples import Array
from modelctl.graph.intervals import wilson

BINS = 15
MOST_DRAWN = 100


def fit(answers: Array, labels: Array | None) -> bool:
    """Whether these are a classifier's answers, and labels that can be held against them."""
    if labels is None or answers.ndim != 2 or answers.shape[1] < 2 or labels.dtype.kind != "i" or labels.ndim != 1:
        return False
    return bool(labels.min() >= 0 and labels.max() < answers.shape[1])


def by_class(answers: Array, labels: Array) -> list[dict[str, Any]]:
    """One row for each class that occurs: `{class, support, precision, recall, low, high, f1, confused_with}`.

    `support` counts its labels. Precision is None where it is never answered, recall where it is never the label.
    `low` and `high` are the ends of the recall's interval, Wilson's.
    `confused_with` is what its samples are most often taken for wrongly, None if they never are.
    """
    predicted = answers.argmax(axis=1)
    size = answers.shape[1]
    support, answered = np.bincount(labels, minlength=size), np.bincount(predicted, minlength=size)
    right = np.bincount(labels[predicted == labels], minlength=size)
    confused = _confused(predicted, labels)
    rows = []
    for one in np.flatnonzero(support + answered).tolist():
        low, high = wilson(int(right[one]), int(support[one])) if support[one] else (None, None)
        row = {
            "class": one,
            "support": int(support[one]),
            "precision": float(right[one] / answered[one]) if answered[one] else None,
            "recall": float(right[one] / support[one]) if support[one] else None,
            "low": low,
            "high": high,
            "f1": float(2 * right[one] / (support[one] + answered[one])),
            "confused_with": confused.get(one),
        }
        rows.append(row)
    return rows


def _confused(predicted: Array, labels: Array) -> dict[int, int]:
    """What each class is most often taken for wrongly; of equally many the lower one."""
    wrong = predicted != labels
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    found: dict[int, int] = {}
    for at in np.argsort(-counts, kind="stable"):
        found.setdefault(int(pairs[at, 0]), int(pairs[at, 1]))
    return found


def confusion(answers: Array, labels: Array) -> Array | None:
    """How many of each class (row) are taken for each (column): [classes, classes]; None if they are too many."""
    size = answers.shape[1]
    if size > MOST_DRAWN:
        return None
    counts: Array = np.bincount(labels * size + answers.argmax(axis=1), minlength=size * size).reshape(size, size)
    return counts


def calibration(answers: Array, labels: Array) -> dict[str, Any] | None:
    """How far the answered probabilities are from how often they come true: `{error, confidence, bins, answers}`.

    `error` is the expected calibration error over 15 bins of equal width (C. Guo et al., "On calibration of modern
    neural networks", ICML 2017, arXiv:1706.04599, eq. 3); it has no interval, for a resample's error is larger than the
    sample's. `confidence` is the mean of the highest probabilities, to be held beside top1. `answers` says what the
    answers were taken for: probabilities where all rows are, else logits. None for answers that are no floats.
    """
    if answers.dtype.kind != "f":
        return None
    highest = answers.max(axis=1, keepdims=True)
    sums = answers.sum(axis=1, dtype=np.float64)
    are_shares = bool(answers.min() >= 0 and np.allclose(sums, 1, atol=1e-3))
    # Softmax's highest is 1/Σ exp(z - max z).
    sure = highest[:, 0] / sums if are_shares else 1 / np.exp(answers - highest).sum(axis=1, dtype=np.float64)
    right = answers.argmax(axis=1) == labels
    # The m-th bin holds what is above (m - 1)/15 and at most m/15.
    place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(place, weights=right - sure, minlength=BINS)
    return {
        "error": float(np.abs(gaps).sum() / len(labels)),
        "confidence": float(sure.mean()),
        "bins": BINS,
        "answers": "probabilities" if are_shares else "logits",
    }


def flips(before: Array, after: Array, labels: Array) -> dict[str, Any]:
    """What has changed from one model's answers to another's, and how likely chance alone makes the two differ so.

    `{right_to_wrong, wrong_to_right, wrong_otherwise, p_value}`: counts of samples, the last one of those that both get
    wrong, but differently; the p-value is McNemar's, exact.
    """
    old, new = before.argmax(axis=1), after.argmax(axis=1)
    was, now = old == labels, new == labels
    lost, won = int((was & ~now).sum()), int((~was & now).sum())
    return {
        "right_to_wrong": lost,
        "wrong_to_right": won,
        "wrong_otherwise": int((~was & ~now & (old != new)).sum()),
        "p_value": mcnemar(lost, won),
    }


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value of so many changes for the worse and the better, if each were as likely.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947), with the binomial distribution itself in place of its approximation.
    """
    total, fewer = lost + won, min(lost, won)
    log_ways = (
        math.lgamma(total + 1) - math.lgamma(one + 1) - math.lgamma(total - one + 1) for one in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(ways - total * math.log(2)) for ways in log_ways))
