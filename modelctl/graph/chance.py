"""Whether a model's score tells anything: it must be above what one answer for all samples would reach.

Where it is not, the model has learned nothing of these samples, or they are not what it takes, or all labels are the
same; that a step loses nothing of such a score says nothing.
"""

from typing import Any

import numpy as np

from modelctl.data.samples import Array
from modelctl.errors import CheckFailed, DataError
from modelctl.graph import classes, intervals, scores
from modelctl.options import Metric


def best_constant(metric: str, labels: Array) -> float | None:
    """What the best answer scores that is the same for all samples; None where none can be told, or none is worse.

    For top1 and f1 that is the most frequent class, for top5 the five most frequent, for rmse the mean.
    """
    if metric == Metric.RMSE:
        return float(np.sqrt(np.mean((labels - labels.mean(axis=0)) ** 2)))
    if metric not in (Metric.TOP1, Metric.TOP5, Metric.F1):
        return None
    counts = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    if metric == Metric.F1:
        return float(2 * counts[0] / (len(labels) + counts[0]) / len(counts))
    if metric == Metric.TOP5:
        return float(counts[:5].sum() / len(labels)) if len(counts) > 5 else None
    return float(counts[0] / len(labels))


def is_above(score: dict[str, Any], labels: Array, answers: Array | None = None) -> bool:
    """Whether what `scores.score` told of a model is surely better than the best constant answer is.

    A share must lie above the 95 % interval of the constant's, or, where there are `answers` to top1, be right where
    the constant is wrong so often that chance has it in 1 of 40 cases (McNemar's test, which sees more where one class
    has nearly all samples); of the others the interval must lie on the better side. A metric of one's own passes.
    """
    floor = best_constant(score["metric"], labels)
    if floor is None:
        return True
    if score["metric"] == Metric.RMSE:
        return bool(score["high"] < floor)
    if score["metric"] == Metric.F1:
        return bool(score["low"] > floor)
    if score["value"] > intervals.wilson(round(floor * len(labels)), len(labels))[1]:
        return True
    if answers is None or score["metric"] != Metric.TOP1:
        return False
    right, usual = scores.hits(answers, labels, 1), labels == _most_frequent(labels)
    won, lost = int((right & ~usual).sum()), int((~right & usual).sum())
    return won > lost and classes.mcnemar(lost, won) <= 0.05  # two-sided, of which this is the better side


def told(score: dict[str, Any], labels: Array) -> str:
    """In words, how a model that is not above chance stands beside the best constant answer."""
    constant = {Metric.RMSE: "their mean", Metric.TOP5: "the five most frequent classes"}
    always = constant.get(score["metric"]) or f"class {_most_frequent(labels)}"
    return (
        f"{score['metric']} of {score['value']:.4g} on {len(labels)} samples is not above chance: "
        f"always answering {always} has {best_constant(score['metric'], labels):.4g}"
    )


def only_class(labels: Array) -> str | None:
    """In words, that all labels are the same; None if they are not."""
    if (labels == labels[0]).all():
        what = f"of class {labels[0]}" if labels.dtype.kind == "i" else "the same"
        return f"all {len(labels)} labels are {what}, and a model that always says so is right"
    return None


def refuse(score: dict[str, Any] | None, labels: Array | None, name: str, answers: Array | None = None) -> None:
    """Refuse to hold a step to the drop of a score that tells nothing; messages begin with `name`.

    DataError without labels (`score` may be None then), or where all of them are the same; CheckFailed where
    `score` does not lie above.
    """
    if labels is None or score is None:
        raise DataError(f"{name}: the samples have no labels 'y' to score answers against")
    same = only_class(labels)
    if same is not None:
        raise DataError(f"{name}: {same}: no drop can be told")
    if not is_above(score, labels, answers):
        raise CheckFailed(f"{name}: {told(score, labels)}: no drop can be told")


def _most_frequent(labels: Array) -> int:
    """The most frequent class; of equally many the lowest."""
    found, counts = np.unique(labels, return_counts=True)
    return int(found[counts.argmax()])
