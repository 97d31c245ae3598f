"""How the numbers of a tensor are spread, found while they stream by, and the range in which to quantize them.

Bins are 2^e wide and begin at multiples of their width, e as small as lets `BINS` of them hold all numbers. When the
range grows, bins are merged two by two; as no number changes sides then, the same numbers give the same histogram in
any order and in any portions. Zeros are counted apart: after a Relu they are half of all, and every range holds them
exactly.

Ranges are quantized as onnxruntime.quantization does (compute_scale_zp): widened to hold zero, scale (high − low) /
(2^bits − 1), the zero point an integer.
"""

import math

import numpy as np

from modelctl.data.samples import Array

BINS = 4096  # at least half of them are in use, so that at 8 bits a level is at least eight bins wide
DIGITS = 24  # bits of a float32: narrower bins would tell apart what it can't
SMALLEST = -149  # the exponent of the smallest float32
SHARE = 0.99999  # as in onnxruntime.quantization
MOST_SCALED = -120  # the exponent of a width whose reciprocal float32 still holds
CHUNK = 1 << 16  # numbers looked at together, so that no copy of a large tensor is made

Range = tuple[float, float]


class Histogram:
    """What is remembered of a stream of numbers: `low`, `high`, how many are `zeros`, how many `unbounded`, and bins.

    Infinity and NaN are counted in `unbounded` and else left out; `low` > `high` as long as there was no number.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.zeros = self.unbounded = 0
        self.exponent, self.first = SMALLEST, 0
        self.counts: Array = np.zeros(0, np.int64)

    @property
    def width(self) -> float:
        """Of one bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """How many numbers there were, without the unbounded ones."""
        return int(self.counts.sum()) + self.zeros

    def add(self, values: Array) -> None:
        """Take in all numbers of an array of floats."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            numbers = flat[start : start + CHUNK]
            if not (np.isfinite(numbers.min()) and np.isfinite(numbers.max())):
                finite = numbers[np.isfinite(numbers)]
                self.unbounded += numbers.size - finite.size
                numbers = finite
            if numbers.size:
                self._count(numbers)

    def _count(self, numbers: Array) -> None:
        """Take in numbers that are all finite."""
        self._grow(float(numbers.min()), float(numbers.max()))
        # Exact: a power of two times a float32, if not so small a power that the smallest numbers would vanish.
        kind = np.float32 if numbers.dtype == np.float32 and MOST_SCALED < self.exponent <= 0 else np.float64
        places = np.floor(numbers * kind(1 / self.width)).astype(np.int64) - self.first
        self.counts += np.bincount(places, minlength=self.counts.size)
        zeros = numbers.size - int(np.count_nonzero(numbers))
        if zeros:
            self.counts[-self.first] -= zeros
            self.zeros += zeros

    def merge(self, other: "Histogram") -> None:
        """Take in all numbers that another one has taken in."""
        self.unbounded += other.unbounded
        if other.total:
            self._grow(other.low, other.high)
            self.zeros += other.zeros
            self._put(other.counts, other.first, other.exponent)

    def points(self) -> tuple[Array, Array]:
        """The middles of the bins that hold something, and how many numbers each holds; zeros are not among them."""
        taken = np.flatnonzero(self.counts)
        edges = (taken + self.first) * self.width
        middles = (np.maximum(edges, self.low) + np.minimum(edges + self.width, self.high)) / 2
        return middles, self.counts[taken]

    def mean(self) -> float:
        """Of all numbers, to half a bin; 0 if there are none."""
        middles, counts = self.points()
        return float(middles @ counts) / max(self.total, 1)

    def power(self) -> float:
        """The mean of the squares."""
        middles, counts = self.points()
        return float(middles**2 @ counts) / max(self.total, 1)

    def _grow(self, low: float, high: float) -> None:
        """Make room for numbers from `low` to `high`."""
        if self.low <= low and high <= self.high:
            return
        counts, first, exponent = self.counts, self.first, self.exponent
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.exponent = _exponent(self.low, self.high)
        self.first = math.floor(self.low / self.width)
        self.counts = np.zeros(math.floor(self.high / self.width) - self.first + 1, np.int64)
        self._put(counts, first, exponent)

    def _put(self, counts: Array, first: int, exponent: int) -> None:
        taken = np.flatnonzero(counts)
        np.add.at(self.counts, ((taken + first) >> (self.exponent - exponent)) - self.first, counts[taken])


def _exponent(low: float, high: float) -> int:
    """The smallest e for which at most `BINS` bins of 2^e hold all from `low` to `high`."""
    largest, span = max(-low, high), high - low
    finest = max(math.frexp(largest)[1] - DIGITS, SMALLEST) if largest else SMALLEST
    exponent = max(math.frexp(span / BINS)[1] - 1, finest) if span else finest
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent


def minmax(found: Histogram) -> Range:
    """All that was seen; (0, 0) where nothing was."""
    return (found.low, found.high) if found.total else (0.0, 0.0)


def percentile(found: Histogram, share: float = SHARE) -> Range:
    """What `share` of the numbers lie in, as many left out below as above."""
    if share >= 1 or not found.total:
        return minmax(found)
    counts = found.counts.copy()
    if found.zeros:
        counts[-found.first] += found.zeros
    reached = np.concatenate([[0], np.cumsum(counts)]) / found.total
    edges = (np.arange(counts.size + 1) + found.first) * found.width
    low, high = np.interp([(1 - share) / 2, (1 + share) / 2], reached, edges)
    return max(float(low), found.low), min(float(high), found.high)


def entropy(found: Histogram, bits: int = 8) -> Range:
    """The range, cut at ±t, whose quantized numbers are spread most like the numbers: of least KL divergence.

    Source: S. Migacz, 8-bit inference with TensorRT, GTC 2017 (s7310), as in onnxruntime.quantization; but 2^bits
    levels where all numbers have one sign, and without the zeros, which no range changes. 128 thresholds are tried.
    """
    one_sided = found.low >= 0 or found.high <= 0
    levels = 1 << (bits if one_sided else bits - 1)
    places = np.arange(found.counts.size) + found.first
    places = np.where(places < 0, -places - 1, places)
    if not found.counts.any() or places.min() > BINS or places.max() < levels:
        return minmax(found)  # nothing to tell apart, or all far from zero, where no cut leaves most of it
    folded: Array = np.bincount(places, weights=found.counts)
    first = int(np.flatnonzero(folded)[0])
    tried = np.unique(np.linspace(max(levels, first + 1), len(folded), 128).astype(np.int64))
    least = min(tried, key=lambda kept: _divergence(folded, int(kept), levels))
    threshold = float(least) * found.width
    return max(found.low, -threshold), min(found.high, threshold)


def _divergence(counts: Array, kept: int, levels: int) -> float:
    """KL(P‖Q): P the first `kept` bins, the rest put into the last of them, Q the same bins in `levels` levels."""
    inner = counts[:kept]
    wanted = inner.copy()
    wanted[-1] += counts[kept:].sum()
    starts = np.arange(levels) * kept // levels
    filled = np.add.reduceat((wanted > 0).astype(np.float64), starts)
    level = np.add.reduceat(inner, starts) / np.maximum(filled, 1)
    taken = wanted > 0
    got = np.repeat(level, np.diff([*starts, kept]))[taken]
    got = np.maximum(got, 1e-4)  # a bin that only the outliers fill would be infinitely wrong
    shares, told = wanted[taken] / wanted.sum(), got / got.sum()
    return float(shares @ np.log(shares / told))


def mse(found: Histogram, bits: int = 8) -> Range:
    """The range of least expected squared error: both ends drawn in together, then each, then each more finely."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if not found.total or low == high:
        return minmax(found)
    coarse, fine = np.geomspace(1 / 16, 1, 33).tolist(), np.linspace(0.92, 1.08, 17).tolist()
    best = _least(found, bits, [(low * share, high * share) for share in coarse])
    for shares in (coarse, fine):
        best = _least(found, bits, [best, *((best[0], min(best[1] * share, high)) for share in shares)])
        best = _least(found, bits, [best, *((max(best[0] * share, low), best[1]) for share in shares)])
    return best


def _least(found: Histogram, bits: int, ranges: list[Range]) -> Range:
    return min(ranges, key=lambda tried: expected_error(found, tried, bits))


def expected_error(found: Histogram, within: Range, bits: int = 8) -> float:
    """The mean squared error of the numbers when they are quantized in a range, those outside of it clipped."""
    low, high = min(within[0], 0.0), max(within[1], 0.0)
    if not found.total:
        return 0.0
    if low == high:
        return found.power()
    middles, counts = found.points()
    scale = (high - low) / ((1 << bits) - 1)
    zero = np.rint(-low / scale)
    told = (np.clip(np.rint(middles / scale) + zero, 0, (1 << bits) - 1) - zero) * scale
    return float((told - middles) ** 2 @ counts) / found.total
