"""Whether a model serves all alike: its score by group of samples, and the largest gap between two groups.

A group is all samples that hold the same value in a column of the data. The gap is a difference of the metric, which is
how M. Hardt, E. Price and N. Srebro, "Equality of opportunity in supervised learning" (2016), and others after them ask
for fairness. Groups of few samples differ by chance: their intervals, which are given, overlap widely.
"""

from typing import Any

import numpy as np

from modelctl.data.samples import Array, Samples
from modelctl.errors import DataError
from modelctl.graph import scores
from modelctl.options import Metric

MOST = 100


def told(
    metric: Metric | scores.Own,
    answers: Array,
    samples: Samples,
    column: str,
    seed: int = 0,
    before: Array | None = None,
) -> dict[str, Any]:
    """The score of each group: `{column, metric, gap_pp, lowest, highest, groups}`.

    DataError if there is one only, which leaves no gap to be told, or if they are too many.
    `groups` are rows `{group, samples, value, low, high}`. `gap_pp` is in percentage points, for an rmse in hundredths
    of the labels' standard deviation, as `scores.drop_pp` has it; it is from the group of the `lowest` value to that of
    the `highest`. With the answers `before` a step there is also each group's `before`, and `gap_before_pp`.
    """
    values = samples.columns[column]
    names = np.unique(values).tolist()
    if len(names) > MOST:
        raise DataError(f"column {column!r}: holds {len(names)} groups, at most {MOST} are told apart")
    found = []
    for name in names:
        rows = np.flatnonzero(values == name)
        part = samples.pick(rows)
        score = _score(metric, answers[rows], part, f"group {name!r} of {column!r}", seed)
        row = {"group": name} | {key: score[key] for key in ("samples", "value", "low", "high")}
        if before is not None:
            row["before"] = _score(metric, before[rows], part, f"group {name!r} of {column!r}", seed)["value"]
        found.append(row)
    if len(names) == 1:
        raise DataError(f"column {column!r}: all {len(samples)} samples are of one group, {names[0]!r}")
    unit = _unit(metric, samples)
    ranked = sorted(found, key=lambda row: float(row["value"]))
    facts = {"column": column, "metric": str(scores.chosen(metric, samples)), "gap_pp": _gap(found, "value", unit)}
    if before is not None:
        facts["gap_before_pp"] = _gap(found, "before", unit)
    return facts | {"lowest": ranked[0]["group"], "highest": ranked[-1]["group"], "groups": found}


def _score(metric: Metric | scores.Own, answers: Array, samples: Samples, where: str, seed: int) -> dict[str, Any]:
    try:
        return scores.score(metric, answers, samples, "", seed)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error


def _unit(metric: Metric | scores.Own, samples: Samples) -> float:
    """What a hundred points are in the unit of the metric."""
    if scores.chosen(metric, samples) is Metric.RMSE:
        return float(scores.labels_of(samples).std()) or 1.0
    return 1.0


def _gap(rows: list[dict[str, Any]], key: str, unit: float) -> float:
    values = [float(row[key]) for row in rows]
    return round(100 * (max(values) - min(values)) / unit, 4)
