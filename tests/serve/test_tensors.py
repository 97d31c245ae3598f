"""Tensors on the wire: what goes in comes out, and nothing else gets in."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from modelctl.manifest import TensorSpec
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import (
    DATATYPES,
    Datatype,
    check_shape,
    datatype_of,
    from_bytes,
    from_json,
    parse_json,
    to_bytes,
    to_json,
    to_nested_json,
)

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@st.composite
def tensors(draw: st.DrawFn, finite: bool) -> tuple[Datatype, np.ndarray[Any, Any]]:
    """A datatype and a tensor of it."""
    kind = draw(st.sampled_from(sorted(DATATYPES.values(), key=lambda one: one.word)))
    shape = draw(SHAPES)
    if kind.word == "BYTES":
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
        size = int(np.prod(shape))
        flat = np.empty(size, dtype=object)
        flat[:] = draw(st.lists(text, min_size=size, max_size=size))
        return kind, flat.reshape(shape)
    if kind.word == "BF16":
        return kind, draw(npst.arrays(np.uint16, shape)).view(kind.dtype)
    plain = {"allow_nan": False, "allow_infinity": False} if finite and kind.dtype.kind == "f" else {}
    elements: Any = npst.from_dtype(kind.dtype, **plain)  # type: ignore[arg-type]
    return kind, draw(npst.arrays(kind.dtype, shape, elements=elements))


def same(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    """Equal in shape, type and every bit."""
    if left.dtype == object:
        return left.shape == right.shape and bool(left.tolist() == right.tolist())
    alike = left.dtype == right.dtype and left.shape == right.shape
    return alike and left.tobytes() == right.tobytes()


@settings(deadline=None, max_examples=150)
@given(tensors(finite=False), st.integers(0, 7))
def test_bytes_round_trip(given_: tuple[Datatype, np.ndarray[Any, Any]], before: int) -> None:
    kind, array = given_
    data = memoryview(bytes(before) + to_bytes(array, kind))[before:]
    assert same(from_bytes("x", data, kind, array.shape), array)


@settings(deadline=None, max_examples=150)
@given(tensors(finite=True))
def test_json_round_trip(given_: tuple[Datatype, np.ndarray[Any, Any]]) -> None:
    kind, array = given_
    if kind.word == "BF16":
        with pytest.raises(Refused):
            to_json(array, kind)
        return
    flat = orjson.loads(orjson.dumps(to_json(array, kind), option=orjson.OPT_SERIALIZE_NUMPY))
    assert same(from_json("x", flat, kind, array.shape), array)
    nested = orjson.loads(orjson.dumps(to_nested_json(array, kind), option=orjson.OPT_SERIALIZE_NUMPY))
    if array.ndim:
        assert same(from_json("x", nested, kind, array.shape), array)
    if array.size:
        assert same(from_json("x", nested, kind, None), array)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(DATATYPES)), st.binary(max_size=40), SHAPES)
def test_any_bytes_are_a_tensor_or_refused(word: str, data: bytes, shape: tuple[int, ...]) -> None:
    kind = DATATYPES[word]
    try:
        array = from_bytes("x", memoryview(data), kind, shape)
    except Refused as refused:
        assert refused.status == 400
    else:
        assert array.shape == shape
        assert to_bytes(array, kind) == data


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(DATATYPES)), ANY_JSON, st.none() | SHAPES)
def test_any_json_is_a_tensor_or_refused(word: str, data: Any, shape: tuple[int, ...] | None) -> None:
    try:
        array = from_json("x", data, DATATYPES[word], shape)
    except Refused as refused:
        assert refused.status == 400
        assert "\n" not in refused.message
    else:
        assert array.dtype == DATATYPES[word].dtype
        assert shape is None or array.shape == shape


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=50) | st.text().map(str.encode))
def test_any_body_is_json_or_refused(body: bytes) -> None:
    try:
        parse_json(body)
    except Refused as refused:
        assert refused.status == 400


@settings(deadline=None, max_examples=100)
@given(ANY_JSON)
def test_any_shape_is_one_the_model_takes_or_refused(shape: Any) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
    try:
        found = check_shape("x", shape, spec)
    except Refused as refused:
        assert refused.status == 400
    else:
        assert found[1] == 4


def test_long_strings_do_not_widen_each_other() -> None:
    words = ["x" * 5_000_000, *["y"] * 50_000]  # as numpy's own text type this would be a terabyte
    assert from_json("x", words, DATATYPES["BYTES"], None).shape == (50_001,)
    with pytest.raises(Refused):
        from_json("x", words, DATATYPES["FP32"], None)


def test_lists_nested_without_end_are_refused() -> None:
    data: Any = 1.0
    for _ in range(1000):
        data = [data]
    with pytest.raises(Refused, match="nested deeper"):
        from_json("x", data, DATATYPES["FP32"], None)


@pytest.mark.parametrize("dtype", ["float8e4m3fn", "int4", "complex64"])
def test_what_the_protocol_has_no_word_for(dtype: str) -> None:
    assert datatype_of(dtype) is None
