"""Rows of cells become the numbers that are declared; a cell that is none is refused by the name of its column."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import chains
from modelctl.errors import DataError
from modelctl.manifest import TensorSpec
from modelctl.processing import tables
from modelctl.processing.before import Before
from modelctl.processing.tables import Rows

AGE = chains.Number(name="age", mean=40.0, std=10.0)
PAY = chains.Number(name="pay", min=100.0, max=300.0, missing=200.0)
JOB = chains.Category(name="job", values=("cook", "baker", "smith"), missing="baker")
TOWN = chains.Category(name="town", values=("1", "2", "true"), encode="index")
TABLE = chains.Table(input="x", columns=(AGE, PAY, JOB, TOWN))


def made(rows: Any, table: chains.Table = TABLE, dtype: str = "float32", shape: tuple[Any, ...] = ("n", "k")) -> Any:
    return Rows(table, TensorSpec(name="x", dtype=dtype, shape=shape)).tensor(rows)


def test_columns_come_in_their_order_each_as_it_is_declared() -> None:
    found = made([{"job": "smith", "town": "2", "pay": 150, "age": 30}, [45.5, 300, "cook", "1"]])
    wanted = [[-1.0, 0.25, 0, 0, 1, 1], [0.55, 1.0, 1, 0, 0, 0]]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("empty", [None, "", math.nan])
def test_an_empty_cell_is_what_is_declared_for_it(empty: Any) -> None:
    found = made([{"age": 40, "pay": empty, "job": None if empty != empty else empty, "town": "1"}])
    np.testing.assert_allclose(found, [[0, 0.5, 0, 1, 0, 0]])
    np.testing.assert_allclose(made([{"age": 40, "town": "1"}]), [[0, 0.5, 0, 1, 0, 0]])
    with pytest.raises(DataError, match="column 'age' is missing"):
        made([{"age": empty, "pay": 1, "job": "cook", "town": "1"}])


def test_a_category_may_be_a_number_or_a_truth_in_json() -> None:
    found = made([[40, 200, "cook", 2], [40, 200, "cook", True]])
    np.testing.assert_array_equal(found[:, -1], [1, 2])


def test_others_are_zeros_where_that_is_declared() -> None:
    table = chains.Table(input="x", columns=(chains.Category(name="c", values=("a", "b"), others=True),))
    np.testing.assert_array_equal(made([["b"], ["z"]], table), [[0, 1], [0, 0]])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"age": 1, "pay": 1, "job": "king", "town": "1"}, "column 'job': 'king' is none of cook, baker, smith"),
        ({"age": "1", "pay": 1, "job": "cook", "town": "1"}, "column 'age': '1' is not a number"),
        ({"age": True, "pay": 1, "job": "cook", "town": "1"}, "not a number"),
        ({"age": math.inf, "pay": 1, "job": "cook", "town": "1"}, "not a number"),
        ({"age": 10**400, "pay": 1, "job": "cook", "town": "1"}, "not a number"),
        ({"age": 1, "pay": 1, "job": ["cook"], "town": "1"}, "none of"),
        ({"age": 1, "pay": 1, "job": "cook", "town": 1.0}, "none of"),
        ({"age": 1, "wage": 1, "job": "cook", "town": "1"}, "no column 'wage'"),
        ({"age": 1, 7: 1}, "no column '7'"),
        ([1, 2, 3], "a row has 3 cells, the columns are 4"),
        ("cook", "a row is an object or a list"),
        (None, "a row is an object or a list"),
    ],
)
def test_a_wrong_row_is_told_what_is_wrong(row: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        made([row])
    assert words in caught.value.message
    assert len(caught.value.message) < 300


def test_whole_numbers_for_whole_inputs() -> None:
    table = chains.Table(input="x", columns=(chains.Number(name="n"),))
    assert made([[7]], table, "int64").dtype == np.int64
    for cell, dtype in ((1.5, "int64"), (300, "uint8"), (2.0**63, "int64"), (1e299, "float32"), (1e6, "float16")):
        with pytest.raises(DataError, match="that x, "):
            made([[cell]], table, dtype)


def test_one_column_may_be_a_vector() -> None:
    table = chains.Table(input="x", columns=(chains.Number(name="n"),))
    assert made([[1], [2]], table, shape=("n",)).shape == (2,)


def test_csv_by_names_and_by_place() -> None:
    wanted = [{"age": 30.0, "pay": None, "job": "cook", "town": "2"}]
    assert tables.of_csv("town,age,pay,job\r\n2,30,,cook\r\n", [TABLE]) == wanted
    assert tables.of_csv("30,,cook,2\n", [TABLE]) == wanted
    assert tables.of_csv("30,,cook,2\n", [TABLE], header=False) == wanted
    assert tables.of_csv('age,pay,job,town\n1,2,"a, ""b""",\n', [TABLE])[0]["job"] == 'a, "b"'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no rows"),
        ("age,pay,job,town\n", "holds no rows"),
        ("age,pay,job,town\n1,2\n", "a row of the .csv body has 2 cells, not 4"),
        ("1,2,3\n", "has 3 cells, not 4"),
        ("age,age,pay,job,town\n1,1,1,1,1\n", "names a column twice"),
        ('"a\n', "not sound"),
    ],
)
def test_csv_that_is_none(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        tables.of_csv(text, [TABLE])


def test_a_text_of_too_many_cells_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_TYPED", 100)
    assert len(tables.of_csv("1,2,cook,1\n" * 25, [TABLE])) == 25
    with pytest.raises(DataError, match="more than 100 cells"):
        tables.of_csv("1,2,cook,1\n" * 26, [TABLE])


def test_several_tables_share_a_row() -> None:
    other = chains.Table(input="z", columns=(chains.Number(name="height"),))
    one = chains.Table(input="x", columns=(AGE,))
    specs = [TensorSpec(name=name, dtype="float32", shape=("n", 1)) for name in ("x", "z")]
    found = Before([one, other], specs).feeds([{"age": 50, "height": 2}])
    assert {name: array.tolist() for name, array in found.items()} == {"x": [[1.0]], "z": [[2.0]]}


cells: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["cook", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["age", "pay", "job"]), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(st.lists(cells, max_size=3))
def test_any_rows_are_finite_numbers_or_refused(rows: list[Any]) -> None:
    try:
        found = Before([TABLE], [TensorSpec(name="x", dtype="float32", shape=("n", 6))]).feeds(rows)["x"]
    except DataError as error:
        assert len(error.message) < 400
    else:
        assert found.shape == (len(rows), 6)
        assert np.isfinite(found).all()
