"""The published JSON Schema is the one that the types give, and refuses what the parser refuses for its types."""

import json
from typing import Any

import generated
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import manifest
from modelctl.errors import ArtifactError
from modelctl.manifest import parse

VALIDATOR = jsonschema.Draft202012Validator(manifest.json_schema())

RECORD = {"name": "net", "format": "checkpoint", "digest": "01" * 32}
STEP = {"step": "quantize", "version": "0.1.0", "options": {"bits": 8, "data": None}, "parents": ["01" * 32], "seed": 0}
WHOLE: dict[str, Any] = {
    "schema": "modelctl/manifest/v1",
    "name": "digits-int8",
    "format": "onnx",
    "files": [{"path": "digits-int8.onnx", "size": 3, "sha256": "ab" * 32}],
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 28, 28]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 10]}],
    "preprocess": [
        {"do": "image", "input": "x", "height": 28, "width": 28, "color": "gray", "mean": [0.5], "std": [0.5]},
        {"do": "table", "input": "t", "columns": [{"is": "number", "name": "n"}]},
        {"do": "text", "input": "ids", "mask": "mask"},
    ],
    "postprocess": [{"do": "softmax", "output": "y"}, {"do": "top-k", "output": "y", "k": 3, "labels": ["a", "b"]}],
    "made_by": STEP | {"environment": {"python": "3.11.7"}, "choices": {"channel": [1]}},
    "metrics": {"accuracy": {"top1": 0.97}, "latency": {"ms": 1.5}},
    "lineage": [RECORD | {"made_by": None, "metrics": {}}],
    "annotations": {"commit": "1a2b3c"},
    "encryption": {"suite": "floe", "recipients": ["k"], "manifest": "23" * 32, "digest": "45" * 32},
}
SMALL = {key: WHOLE[key] for key in ("schema", "name", "format", "files")}


def refused_by_types(plain: Any) -> bool:
    try:
        parse(json.dumps(plain).encode())
    except ArtifactError as error:
        return "not a manifest" in error.message or "schema is" in error.message
    return False


def test_the_published_schema_is_the_one_of_the_types() -> None:
    assert generated.SCHEMA.read_text() == generated.schema_text(), generated.AGAIN


def test_the_schema_is_a_sound_one() -> None:
    jsonschema.Draft202012Validator.check_schema(manifest.json_schema())


@pytest.mark.parametrize("plain", [WHOLE, SMALL, WHOLE | {"encryption": None, "made_by": None}])
def test_a_manifest_is_valid(plain: dict[str, Any]) -> None:
    VALIDATOR.validate(plain)
    VALIDATOR.validate(json.loads(parse(json.dumps(plain).encode()).text()))


def places(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a document something else could stand; what is free in form (options, metrics, …) is left alone."""
    found = [path] if path else []
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else []
    free = ("options", "choices", "metrics", "preprocess")
    return found + [place for key, one in items if key not in free for place in places(one, (*path, key))]


def changed(path: tuple[Any, ...], value: Any, *, drop: bool) -> Any:
    """`WHOLE` with another value at a place, or without what stands there."""
    plain = json.loads(json.dumps(WHOLE))
    inside = plain
    for key in path[:-1]:
        inside = inside[key]
    if drop:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return plain


word = st.none() | st.booleans() | st.integers(-3, 3) | st.just(1.5) | st.text(max_size=2) | st.just("ab" * 32)
odd: st.SearchStrategy[Any] = st.one_of(
    word, st.lists(word, max_size=2), st.dictionaries(st.sampled_from(["name", "step", "odd"]), word, max_size=2)
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(places(WHOLE)), odd, st.booleans())
def test_schema_and_parser_refuse_the_same_types(path: tuple[Any, ...], value: Any, drop: bool) -> None:
    plain = changed(path, value, drop=drop)
    assert VALIDATOR.is_valid(plain) is not refused_by_types(plain)


@pytest.mark.parametrize("path", places(WHOLE))
def test_an_unknown_field_is_refused_by_both(path: tuple[Any, ...]) -> None:
    plain = json.loads(json.dumps(WHOLE))
    inside = plain
    for key in path:
        inside = inside[key]
    if isinstance(inside, dict) and path not in (("annotations",), ("made_by", "environment")):
        inside["colour"] = "red"
        assert not VALIDATOR.is_valid(plain)
        assert refused_by_types(plain)
