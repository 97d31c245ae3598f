"""Between which ends a figure lies that was taken of samples: 95 % intervals.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), for
the interval of a share; B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979), for the
others.
"""

import contextlib
import math
from collections.abc import Callable

import numpy as np

from modelctl.data.samples import Array
from modelctl.errors import DataError

Z = 1.959964  # the normal distribution's 97.5 % quantile
RESAMPLES = 500
Measure = Callable[[Array, Array], float]


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, `right` of `total`."""
    share, z2 = right / total, Z * Z
    centre = share + z2 / (2 * total)
    spread = Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    scale = 1 + z2 / total
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return (0.0 if right == 0 else low), (1.0 if right == total else high)  # exactly, not but for rounding


def bootstrap(
    measure: Measure, answers: Array, labels: Array, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % percentile interval of a measure over so many resamples, the same ones for the same seed.

    A resample that the measure can't be taken of, such as one that lacks a class, is left out; NaN if most are.
    """
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        rows = random.integers(0, len(labels), len(labels))
        with contextlib.suppress(DataError):
            found.append(measure(answers[rows], labels[rows]))
    if 2 * len(found) < resamples:
        return math.nan, math.nan
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
