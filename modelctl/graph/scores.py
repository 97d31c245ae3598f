"""How good answers are: accuracy and its 95 % interval, error, and how far two models agree.

The interval of a share is Wilson's, others are bootstrapped (`intervals`). What else can be told of the answers of a
classifier: `classes`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelctl import factory
from modelctl.data.samples import Array, Samples
from modelctl.errors import DataError
from modelctl.graph import classes
from modelctl.graph.intervals import Measure, bootstrap, wilson
from modelctl.options import Metric

OWN_RESAMPLES = 200


@dataclass(frozen=True)
class Own:
    """A metric of the user's own, `module:function`: of answers and labels a number, higher is better."""

    name: str
    measure: Measure

    def __str__(self) -> str:
        return self.name


def own(reference: str) -> Own:
    """The metric `module:function`, found in the current folder first.

    UsageError when there is no such function, ArtifactError when its module raises. What it is given it can't change;
    whatever it raises, or anything that is no finite number, is a DataError.
    """
    function, _ = factory.load(reference)

    def measure(answers: Array, labels: Array) -> float:
        with factory.AuthorsCode(reference, DataError):
            found = function(_locked(answers), _locked(labels))
            number = float(found) if np.ndim(found) == 0 and not isinstance(found, str | bytes) else math.nan
        if not math.isfinite(number):
            raise DataError(f"{reference}: gave {type(found).__name__} {found!r:.40}, and a metric is a finite number")
        return number

    return Own(reference, measure)


def _locked(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def score(metric: Metric | Own, answers: Array, samples: Samples, data: str, seed: int = 0) -> dict[str, Any]:
    """How well `answers` [N, …] fit the samples' labels: `{metric, value, low, high, samples, data}`.

    top1, top5 and f1 (macro) are shares of 1, higher is better; rmse is in the labels' unit, lower is better. `data` is
    the digest to be named. The interval of a share is Wilson's, others are bootstrapped by `seed`. DataError when there
    are no labels, or none that this metric can be computed from.
    """
    labels = labels_of(samples)
    metric = chosen(metric, samples)
    check(metric, answers, labels)
    low, high = _interval(metric, answers, labels, seed)
    found = _value(metric, answers, labels)
    told = {"metric": str(metric), "value": found, "low": low, "high": high, "samples": len(labels)}
    return told | {"data": data}


def value(metric: Metric | Own, answers: Array, samples: Samples) -> float:
    """As `score`, the value alone: quick, for choosing among many."""
    labels = labels_of(samples)
    metric = chosen(metric, samples)
    check(metric, answers, labels)
    return _value(metric, answers, labels)


def _value(metric: Metric | Own, answers: Array, labels: Array) -> float:
    if isinstance(metric, Own):
        return metric.measure(answers, labels)
    if metric is Metric.F1:
        return f1_macro(answers.argmax(axis=1), labels)
    if metric is Metric.RMSE:
        return rmse(answers, labels)
    return float(hits(answers, labels, 1 if metric is Metric.TOP1 else 5).mean())


def _interval(metric: Metric | Own, answers: Array, labels: Array, seed: int) -> tuple[float, float]:
    """The ends of the metric's interval."""
    if isinstance(metric, Own):
        return bootstrap(metric.measure, answers, labels, seed, OWN_RESAMPLES)
    if metric is Metric.F1:
        return bootstrap(f1_macro, answers.argmax(axis=1), labels, seed)
    if metric is Metric.RMSE:
        squares = (_differences(answers, labels) ** 2).mean(axis=1)
        return bootstrap(lambda one, _: math.sqrt(one.mean()), squares, squares, seed)
    return wilson(int(hits(answers, labels, 1 if metric is Metric.TOP1 else 5).sum()), len(labels))


def labels_of(samples: Samples) -> Array:
    """The labels; DataError if there are none."""
    if samples.labels is None:
        raise DataError("the samples have no labels 'y' to score answers against")
    return samples.labels


def chosen(metric: Metric | Own, samples: Samples) -> Metric | Own:
    """The metric that `auto` stands for: top1 for classes, rmse for float targets."""
    if metric is not Metric.AUTO:
        return metric
    return Metric.TOP1 if labels_of(samples).dtype.kind == "i" else Metric.RMSE


def check(metric: Metric | Own, answers: Array, labels: Array) -> None:
    """DataError unless answers and labels have the shapes and kinds that the metric needs."""
    if isinstance(metric, Own):
        return
    found = f"answers {answers.dtype}{list(answers.shape)} and labels {labels.dtype}{list(labels.shape)}"
    if metric is Metric.RMSE:
        if math.prod(answers.shape) != math.prod(labels.shape) or len(answers) != len(labels):
            raise DataError(f"rmse needs as many answers as labels, found {found}")
        return
    if answers.ndim != 2 or answers.shape[1] < 2 or labels.dtype.kind != "i":
        raise DataError(f"{metric} needs answers [N, classes] and integer labels, found {found}", "--metric rmse")
    if labels.min() < 0 or labels.max() >= answers.shape[1]:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, but the model answers {answers.shape[1]} classes"
        )


def hits(answers: Array, labels: Array, count: int) -> Array:
    """Whether the label is among the `count` highest of each row; of equal answers the earlier class goes first."""
    own = np.take_along_axis(answers, labels[:, np.newaxis], axis=1)
    earlier = np.arange(answers.shape[1]) < labels[:, np.newaxis]
    rank = ((answers > own) | ((answers == own) & earlier)).sum(axis=1)
    hit: Array = rank < count
    return hit


def f1_macro(predicted: Array, labels: Array) -> float:
    """The mean over the classes that occur of 2·TP / (2·TP + FP + FN)."""
    size = int(max(predicted.max(), labels.max())) + 1
    right = np.bincount(labels[predicted == labels], minlength=size)
    total = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    return float((2 * right[total > 0] / total[total > 0]).mean())


def rmse(answers: Array, targets: Array) -> float:
    """The root of the mean squared difference."""
    return float(np.sqrt(np.mean(_differences(answers, targets) ** 2)))


def _differences(answers: Array, targets: Array) -> Array:
    difference: Array = answers.astype(np.float64).reshape(len(targets), -1) - targets.reshape(len(targets), -1)
    return difference


def drop_pp(before: dict[str, Any], after: dict[str, Any], samples: Samples) -> float:
    """What was lost from one score to the other, in percentage points; negative if something was gained.

    An rmse has no percentage points: its rise is given in hundredths of the labels' standard deviation.
    """
    lost = float(before["value"] - after["value"])
    if before["metric"] == Metric.RMSE:
        lost = -lost / (float(labels_of(samples).std()) or 1.0)
    return 100 * lost


def agreement(before: Array, after: Array) -> dict[str, float]:
    """How alike two models' answers are, labels aside.

    `max_error`: the largest difference; `relative_error`: the root mean squared difference over the standard deviation
    of `before`. For answers [N, K] also `agreement`, the share of samples with the same highest class, and, which tells
    more of embeddings, `cosine` and `cosine_lowest`, the mean and the lowest of `cosines`.
    """
    difference = after.astype(np.float64) - before.astype(np.float64)
    spread = float(before.astype(np.float64).std()) or 1.0
    told = {
        "max_error": float(np.abs(difference).max()),
        "relative_error": float(np.sqrt(np.mean(difference**2))) / spread,
    }
    if before.ndim == 2 and before.shape[1] > 1:
        told = {"agreement": float((before.argmax(axis=1) == after.argmax(axis=1)).mean())} | told
        found = cosines(before, after)
        told |= {"cosine": float(found.mean()), "cosine_lowest": float(found.min())}
    return told


def alike(before: Array, after: Array, labels: Array | None) -> float:
    """How alike two models answer, 0 to 1: what `--min-agreement` is held against.

    Where the labels are classes and the answers [N, classes], the share of samples with the same class; of any other
    answers the mean over samples of the cosine between the two.
    """
    if classes.fit(before, labels):
        return float((before.argmax(axis=1) == after.argmax(axis=1)).mean())
    return float(cosines(before.reshape(len(before), -1), after.reshape(len(after), -1)).mean())


def cosines(before: Array, after: Array) -> Array:
    """The cosine similarity of each two rows of [N, K], float64 [N]; 1 where both are zeros, 0 where one is."""
    # By its largest number first: the square of a large one may be infinite.
    units = [_scaled(one.astype(np.float64)) for one in (before, after)]
    norms = [np.sqrt((one**2).sum(axis=1)) for one in units]
    product = (units[0] * units[1]).sum(axis=1)
    cosine = np.divide(product, norms[0] * norms[1], out=np.zeros(len(product)), where=norms[0] * norms[1] > 0)
    found: Array = np.where((norms[0] == 0) & (norms[1] == 0), 1.0, np.clip(cosine, -1, 1))
    return found


def _scaled(rows: Array) -> Array:
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scaled: Array = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    return scaled
