"""The algebra of axes: what is one axis, where it is divided, and which unit lies where."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.graph.channels.dims import (
    Dim,
    Reason,
    concatenation,
    divided,
    freeze,
    leaves_of,
    mask,
    product,
    unify,
    units,
)

FIXED = Reason("are fixed")


def reasons(dim: Dim) -> list[Reason | None]:
    return [leaf.reason for leaf in leaves_of(dim)]


def test_a_leaf_becomes_what_it_meets() -> None:
    heads, width, whole = Dim(4), Dim(6), Dim(24)
    unify(whole, product([heads, width]))
    assert list(leaves_of(whole)) == [heads, width]
    found = mask(whole, {heads: np.array([True, False, False, True])})
    assert found.tolist() == [True] * 6 + [False] * 12 + [True] * 6
    columns = units(whole, width)
    assert columns is not None and columns.tolist() == list(range(6)) * 4


def test_three_in_a_row_and_three_times_meet() -> None:
    """A fused projection, cut into three equal parts here and reshaped to three times heads times width there."""
    parts = [Dim(8), Dim(8), Dim(8)]
    three, heads, width = Dim(3), Dim(2), Dim(4)
    unify(concatenation(parts), product([three, heads, width]))
    assert all(list(leaves_of(part)) == [heads.root(), width.root()] for part in parts)
    assert reasons(heads) == [None]


def test_products_are_divided_at_each_other_s_seams() -> None:
    a, b = [Dim(4), Dim(6)], [Dim(2), Dim(12)]
    unify(product(a), product(b))
    assert [leaf.size for leaf in leaves_of(a[0])] == [2, 2]
    assert [leaf.size for leaf in leaves_of(b[1])] == [2, 6]
    assert list(leaves_of(a[1])) == [list(leaves_of(b[1]))[1]]


def test_what_does_not_correspond_is_frozen() -> None:
    a, b = product([Dim(4), Dim(6)]), product([Dim(6), Dim(4)])
    unify(a, b)
    assert None not in reasons(a) + reasons(b)
    c, d = Dim(3), Dim(4)
    unify(c, d)
    assert None not in reasons(c) + reasons(d)


def test_a_reason_spreads_to_all_that_is_the_same() -> None:
    whole, part = Dim(6), Dim(2)
    unify(whole, product([part, Dim(3, FIXED)]))
    assert reasons(whole) == [None, FIXED]
    unify(whole, Dim(6, FIXED))
    assert reasons(whole) == [FIXED, FIXED]
    freeze(part, Reason("come later"))
    assert reasons(part) == [FIXED]


def test_a_product_of_an_axis_with_itself_has_no_units() -> None:
    one = Dim(3)
    assert units(product([one, one]), one) is None
    assert units(concatenation([one, one]), one) is not None


@pytest.mark.parametrize("sizes", [[1, 5], [2, 2, 2], [0, 6, 0], [6]])
def test_a_leaf_is_divided_anywhere(sizes: list[int]) -> None:
    whole = Dim(6)
    found = divided(whole, sizes)
    assert found is not None and [one.size for one in found] == sizes
    assert sum(leaf.size for leaf in leaves_of(whole)) == 6


def test_a_product_is_divided_between_rows_only() -> None:
    rows, columns = Dim(4), Dim(3)
    found = divided(product([rows, columns]), [3, 9])
    assert found is not None and [leaf.size for leaf in leaves_of(found[1])] == [3, 3]
    assert divided(product([rows, columns]), [4, 8]) is None


axes = st.recursive(
    st.integers(1, 4).map(Dim),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(product), st.lists(inner, min_size=1, max_size=3).map(concatenation)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_what_is_unified_is_cut_alike(data: st.DataObject, sizes: list[int]) -> None:
    """Whatever two axes of a size look like, after they are unified any choice of units leaves the same positions."""
    first = product([Dim(size) for size in sizes])
    second = data.draw(axes)
    if prod(sizes) != second.size:
        second = concatenation([Dim(1), Dim(prod(sizes) - 1)]) if prod(sizes) > 1 else Dim(1)
    unify(first, second)
    leaves = {leaf for dim in (first, second) for leaf in leaves_of(dim)}
    kept = {
        leaf: np.array(data.draw(st.lists(st.booleans(), min_size=leaf.size, max_size=leaf.size))) for leaf in leaves
    }
    kept = {leaf: found for leaf, found in kept.items() if leaf.reason is None}
    assert np.array_equal(mask(first, kept), mask(second, kept))
    for leaf, chosen in kept.items():
        found = units(first, leaf)
        if found is not None:
            others = mask(first, {one: held for one, held in kept.items() if one is not leaf})
            assert np.array_equal(mask(first, kept), others & np.where(found >= 0, chosen[found], True))
