"""Inputs as a user spells them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.errors import CheckFailed, UsageError
from modelctl.graph.signature import (
    DTYPES,
    agree,
    batch_dimension,
    free_dimensions,
    parse_input,
    parse_inputs,
    readings,
    spelled,
)
from modelctl.manifest import TensorSpec

sizes = st.one_of(st.integers(1, 2**31 - 1), st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True))
names = st.from_regex(r"[A-Za-z_./][A-Za-z0-9_./-]{0,12}", fullmatch=True)


@given(names, st.sampled_from(DTYPES), st.lists(sizes, max_size=5))
def test_what_is_spelled_is_read_back(name: str, dtype: str, shape: list[int | str]) -> None:
    spec = TensorSpec(name=name, dtype=dtype, shape=tuple(shape))
    assert parse_input(spelled(spec)) == spec


def test_spaces_do_not_matter_and_a_scalar_has_no_sizes() -> None:
    assert parse_input(" x : float32 [ batch, 3 ]") == TensorSpec(name="x", dtype="float32", shape=("batch", 3))
    assert parse_input("t:int64[]").shape == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x:float32",
        "x:float32[a,,b]",
        "x:float32[1.5]",
        "x:float32[a b]",
        ":float32[1]",
        "x:float32[99999999999]",
    ],
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--input"):
        parse_input(text)


def test_two_inputs_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="second input"):
        parse_inputs(("x:float32[a]", "x:float32[b]"))


def test_free_dimensions_and_the_batch_are_found() -> None:
    specs = parse_inputs(("ids:int64[4,length]", "image:float32[n,3,height,length]"))
    assert free_dimensions(specs) == ("length", "n", "height")
    assert batch_dimension(specs) == "n"
    assert batch_dimension(specs[:1]) is None


def test_what_is_asked_for_must_be_so() -> None:
    found = parse_inputs(("x:float32[batch,4]",))
    assert agree(found, parse_inputs(("x:float32[n,4]",)), "m")[0].shape == ("n", 4)
    assert agree(found, parse_inputs(("z:float32[n,4]",)), "m", rename=True)[0].name == "z"
    with pytest.raises(CheckFailed, match="'width' of 'x' was to be free, but it is 4 for good"):
        agree(found, parse_inputs(("x:float32[n,width]",)), "m")
    for other in ("z:float32[n,4]", "x:int64[n,4]", "x:float32[n]", "x:float32[n,5]", "x:float32[3,4]"):
        with pytest.raises(UsageError):
            agree(found, parse_inputs((other,)), "m")


def test_unnamed_dimensions_are_apart_first_and_then_one_by_one_as_long_as_the_batch() -> None:
    specs = (
        TensorSpec(name="x", dtype="float32", shape=("dim0", "dim1")),
        TensorSpec(name="state", dtype="float32", shape=(2, "dim1", 8)),
        TensorSpec(name="past", dtype="float32", shape=("dim0", "seen")),
    )
    found = [tuple(one.shape for one in read) for read in readings(specs)]
    assert found == [
        (("dim0", "x_1"), (2, "state_1", 8), ("dim0", "seen")),
        (("dim0", "dim0"), (2, "state_1", 8), ("dim0", "seen")),
        (("dim0", "x_1"), (2, "dim0", 8), ("dim0", "seen")),
    ]
    assert list(readings(specs[2:])) == [specs[2:]]
    assert list(readings(())) == [()]
