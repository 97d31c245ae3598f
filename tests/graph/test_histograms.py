"""What is remembered of a stream of numbers, and the ranges that are found in it, against numpy on all numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.data.samples import Array
from modelctl.graph.histograms import BINS, Histogram, entropy, expected_error, minmax, mse, percentile


def _of(*parts: Array) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part)
    return found


def _normal(count: int = 200_000, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def _quantized(values: Array, low: float, high: float, bits: int = 8) -> Array:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return np.asarray((np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale)


def _error(values: Array, low: float, high: float, bits: int = 8) -> float:
    values = values.astype(np.float64)
    return float(np.mean((_quantized(values, low, high, bits) - values) ** 2))


def _spread() -> dict[str, Array]:
    normal = _normal()
    return {
        "normal": normal,
        "with outliers": np.concatenate([normal, np.array([300.0, -200.0], np.float32)]),
        "after Relu": np.maximum(normal, 0),
        "below zero": -np.abs(normal),
        "far from zero": normal + 1000,
        "float16": normal.astype(np.float16),
        "tiny": normal * np.float32(1e-38),
        "huge": normal * np.float32(1e37),
    }


def _state(found: Histogram) -> tuple[object, ...]:
    return found.low, found.high, found.zeros, found.unbounded, found.exponent, found.first, found.counts.tolist()


@pytest.mark.parametrize("values", _spread().values(), ids=_spread())
def test_bins_hold_what_numpy_counts(values: Array) -> None:
    found = _of(values)
    edges = (np.arange(found.counts.size + 1) + found.first) * found.width
    wide = values.astype(np.float64)
    assert found.counts.tolist() == np.histogram(wide[wide != 0], edges)[0].tolist()
    assert (found.low, found.high) == (wide.min(), wide.max())
    assert found.total == values.size and found.zeros == np.count_nonzero(wide == 0)
    assert found.counts.size <= BINS
    assert found.mean() == pytest.approx(wide.mean(), abs=found.width)
    assert found.power() == pytest.approx(np.mean(wide**2), rel=0.01)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.randoms())
@settings(max_examples=150, deadline=None)
def test_order_and_portions_change_nothing(numbers: list[float], random: object) -> None:
    values = np.array(numbers, np.float32)
    mixed = values.copy()
    random.shuffle(mixed)  # type: ignore[attr-defined]
    whole, apart = _of(values), _of(*(np.array([one], np.float32) for one in mixed))
    merged, half = _of(mixed[: len(mixed) // 2]), _of(mixed[len(mixed) // 2 :])
    merged.merge(half)
    assert _state(whole) == _state(apart) == _state(merged)


def test_memory_does_not_grow_with_what_is_taken_in() -> None:
    found = _of(*(_normal(1000, seed) * 2.0**seed for seed in range(50)))
    assert found.counts.size <= BINS and found.total == 50_000


def test_infinity_is_counted_and_left_out() -> None:
    found = _of(np.array([1, -np.inf, np.nan, 2, np.inf], np.float32))
    assert (found.low, found.high, found.total, found.unbounded) == (1, 2, 2, 3)


@pytest.mark.parametrize("values", _spread().values(), ids=_spread())
def test_minmax_is_all_that_was_seen(values: Array) -> None:
    assert minmax(_of(values)) == (values.min(), values.max())


@pytest.mark.parametrize("values", _spread().values(), ids=_spread())
@pytest.mark.parametrize("share", (0.9, 0.999, 0.99999))
def test_percentile_is_numpys_to_a_bin(values: Array, share: float) -> None:
    found = _of(values)
    wide, one = values.astype(np.float64), 1 / values.size
    for end, place in zip(percentile(found, share), ((1 - share) / 2, (1 + share) / 2), strict=True):
        below, above = np.quantile(wide, np.clip([place - one, place + one], 0, 1))
        assert below - found.width <= end <= above + found.width
        assert found.low <= end <= found.high


@pytest.mark.parametrize("value", (0.0, 3.7, -0.02, 1e-40, 3e38))
def test_constant_is_its_own_range(value: float) -> None:
    values = np.full(100, value, np.float32)
    found = _of(values)
    for method in (minmax, percentile, entropy):
        assert method(found) == pytest.approx((values[0], values[0]), rel=1e-6)
    low, high = mse(found)
    assert _error(values, low, high) <= (abs(value) / 255) ** 2 if value else (low, high) == (0, 0)


def test_nothing_seen_is_an_empty_range() -> None:
    for method in (minmax, percentile, entropy, mse):
        assert method(Histogram()) == (0, 0)


@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("name", ("normal", "with outliers", "after Relu", "below zero"))
def test_expected_error_is_the_error(name: str, bits: int) -> None:
    values = _spread()[name]
    found = _of(values)
    for low, high in (minmax(found), (-3.0, 2.0), mse(found, bits)):
        assert expected_error(found, (low, high), bits) == pytest.approx(_error(values, low, high, bits), rel=0.05)


@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("name", ("normal", "with outliers", "after Relu", "below zero"))
def test_mse_finds_the_range_of_least_error(name: str, bits: int) -> None:
    values = _spread()[name][-20_000:]
    found = _of(values)
    best = _error(values, *mse(found, bits), bits)
    ends = np.geomspace(1 / 128, 1, 41)
    tried = [_error(values, found.low * below, found.high * above, bits) for below in ends for above in ends]
    assert best <= 1.05 * min(tried)


def test_entropy_cuts_outliers_off_and_keeps_the_bulk() -> None:
    values = _spread()["with outliers"]
    low, high = entropy(_of(values))
    assert -40 < low < -2.5 and 2.5 < high < 40


def test_entropy_of_one_sided_numbers_is_one_sided() -> None:
    low, high = entropy(_of(np.maximum(_normal(), 0)))
    assert low == 0 and 2.5 < high < 5
    low, high = entropy(_of(-np.abs(_normal())))
    assert high == pytest.approx(0, abs=1e-4) and -5 < low < -2.5


def test_entropy_keeps_all_of_what_is_far_from_zero() -> None:
    found = _of(_normal() + 1000)
    assert entropy(found) == minmax(found)
