"""What is remembered of requests: found only where the long way would say the same."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.serve import openinference
from modelctl.serve.models import Model
from modelctl.serve.plans import Asked, Plans, Text
from modelctl.serve.refusal import Refused


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Models by the datatype of their one input, x[batch, 2]."""
    folder = tmp_path_factory.mktemp("echoes")
    kinds = {"FP32": 1, "FP64": 11, "FP16": 10, "INT64": 7, "INT32": 6, "BOOL": 9, "BYTES": 8}
    found = {
        word: servers.loaded(servers.echo(folder / f"{word}.onnx", kind)).get(word) for word, kind in kinds.items()
    }
    return {**found, "pair": servers.loaded(servers.pair(folder / "pair.onnx")).get("pair")}


def asked_in_json(data: str, word: str = "FP32", **more: Any) -> bytes:
    head = json.dumps({**more, "inputs": [{"name": "x", "shape": [1, 2], "datatype": word, "data": "HERE"}]})
    return head.replace('"HERE"', data).encode()


def asked_raw(blobs: dict[str, bytes], model: Model, shape: list[int], **more: Any) -> tuple[bytes, bytes]:
    words = {"float32": "FP32", "int64": "INT64"}
    inputs = [
        {
            "name": name,
            "shape": shape,
            "datatype": words[model.inputs[name].dtype],
            "parameters": {"binary_data_size": len(blob)},
        }
        for name, blob in blobs.items()
    ]
    head = json.dumps({**more, "inputs": inputs}).encode()
    return head + b"".join(blobs.values()), b"%d" % len(head)


Tensors = dict[str, np.ndarray[Any, Any]]


def the_long_way(model: Model, body: bytes, header: bytes | None = None) -> tuple[Asked, Tensors] | str:
    """A request, or what is said of it."""
    try:
        return openinference.read(body, header, model)
    except Refused as refused:
        return refused.message


def forgetful(model: Model) -> Plans:
    """Plans of which nothing is read the long way."""

    def never(body: bytes) -> Tensors:
        raise AssertionError(body)

    return Plans(model, never)


def learned(model: Model, body: bytes, header: bytes | None = None, plans: Plans | None = None) -> Plans:
    plans = plans or Plans(model, lambda one: openinference.read(one, None, model)[1])
    assert plans.recall(body, header) is None
    plans.remember(body, header, *openinference.read(body, header, model))
    return plans


def recalled(plans: Plans, body: bytes, header: bytes | None = None) -> tuple[Asked, Tensors] | str | None:
    """A request as it is recalled, or what is said of it once it is read; None: it was not recalled."""
    known = plans.recall(body, header)
    if known is None:
        return None
    asked, feeds = known
    try:
        return asked, feeds.read() if isinstance(feeds, Text) else feeds
    except Refused as refused:
        return refused.message


def exact(tensors: Tensors) -> dict[str, tuple[Any, ...]]:
    """To the last bit of the numbers."""
    return {name: (one.dtype, one.shape, one.tobytes()) for name, one in tensors.items()}


def same(left: tuple[Asked, Tensors] | str | None, right: tuple[Asked, Tensors] | str) -> bool:
    if not isinstance(left, tuple) or not isinstance(right, tuple):
        return left == right
    return (left[0].id, left[0].outputs, exact(left[1])) == (right[0].id, right[0].outputs, exact(right[1]))


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(
        ["3.4028235e38", "3.4028236e38", "65504", "65520", "1e400", "-0", "-0.0", "1E5", "5e-324", "1e-50"]
    ),
    st.sampled_from(["null", "true", '"1"', "[1]", "{}", "", "01", "+1", ".5", "1.", "NaN", "0x1", " 1 ", "1,2"]),
)


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(["FP32", "FP64", "FP16", "INT64", "INT32"]), st.lists(NUMBERS, max_size=3))
def test_json_is_recalled_as_the_long_way_reads_it(models: dict[str, Model], word: str, numbers: list[str]) -> None:
    model = models[word]
    plans = learned(model, asked_in_json("[1, 2]", word))
    body = asked_in_json(f"[{','.join(numbers)}]", word)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recalled(plans, body)
    assert found is None or same(found, the_long_way(model, body))


WRONG = [
    "[1]",
    "[1,2,3]",
    "[[1,2]",
    "[1,[2]",
    '["a]',
    '[1,"]',
    '[",2]',
    "[1,{}]",
    "[1,null]",
    "[1,1e39]",
    "[1e400,1]",
    "[]",
]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["[1, 2]", "[-0.0,1e-3]", "[1e30, -1e30]", *WRONG]), min_size=2, max_size=5))
def test_texts_are_read_together_only_where_each_alone_is_right(models: dict[str, Model], lists: list[str]) -> None:
    plans = learned(models["FP32"], asked_in_json("[1, 2]"))
    known = [plans.recall(asked_in_json(one), None) for one in lists]
    texts = [one[1] for one in known if one is not None and isinstance(one[1], Text)]
    assert len(texts) == len(lists)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = texts[0].read_with(texts[1:])
    alone = [the_long_way(models["FP32"], asked_in_json(one)) for one in lists]
    right = [one[1]["x"] for one in alone if isinstance(one, tuple)]
    assert (found is not None) == (len(right) == len(lists))
    if found is not None:
        assert exact(found) == exact({"x": np.concatenate(right)})


@pytest.mark.parametrize("word", ["FP32", "FP64", "FP16", "INT64"])
def test_plain_numbers_are_recalled(models: dict[str, Model], word: str) -> None:
    plans = learned(models[word], asked_in_json("[1, 2]", word, id="seven"), plans=forgetful(models[word]))
    found = recalled(plans, asked_in_json("[-30,4]", word, id="seven"))
    assert isinstance(found, tuple)
    assert found[1]["x"].tolist() == [[-30, 4]]
    assert found[0].id == "seven"
    assert plans.recall(asked_in_json("[3, 4]", word, id="eight"), None) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "\\"data\\": [1]", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}',
        b'{"data": [1, 2], "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3, 4]}]}',
        b'{"parameters": {"data": [1, 2]}, "inputs": [{"name":"x","shape":[1, 2],"datatype":"FP32","data":[3, 4]}]}',
        b'{"inputs": [{"name": "x", "data": [1, 2], "shape": [1, 2], "datatype": "FP32", "data": [3, 4]}]}',
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}]}',
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}], "data": [5, 6]}',
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "a\\"data": [8, 9], "data": [1, 2]}]}',
    ],
)
def test_numbers_are_taken_from_nowhere_but_the_input(models: dict[str, Model], body: bytes) -> None:
    plans = learned(models["FP32"], body)
    for old, new in ((b"[1, 2]", b"[7, 7]"), (b"[3, 4]", b"[9, 9]"), (b"[1]", b"[7]"), (b"[8, 9]", b"[0, 0]")):
        for changed in (body.replace(old, new), body.replace(old, new, 1)):
            found = recalled(plans, changed)
            assert found is None or same(found, the_long_way(models["FP32"], changed))


def test_raw_tensors_are_recalled_where_they_lie(models: dict[str, Model]) -> None:
    model = models["pair"]
    for spaces in range(9):  # so that the tensors lie at every place within a word
        a, b = np.array([[0.5, 1.5]], np.float32), np.array([[2, -3]], np.int64)
        more = {"id": " " * spaces, "parameters": {"binary_data_output": True}}
        body, header = asked_raw({"a": a.tobytes(), "b": b.tobytes()}, model, [1, 2], **more)
        plans = learned(model, body, header)
        body, header = asked_raw({"a": (a + 1).tobytes(), "b": (b + 1).tobytes()}, model, [1, 2], **more)
        found = recalled(plans, body, header)
        assert isinstance(found, tuple)
        assert same(found, openinference.read(body, header, model))
        assert all(one.flags.aligned for one in found[1].values())
        for wrong in ((body + b"x", header), (body[:-1], header), (body, b"5"), (body, b"x"), (body, b"99999")):
            assert plans.recall(*wrong) is None


def test_bytes_that_must_be_looked_at_are_not_recalled(models: dict[str, Model]) -> None:
    for word, blob in (("BOOL", b"\x01\x00"), ("BYTES", b"\x01\0\0\0a\x01\0\0\0b")):
        one = {"name": "x", "shape": [1, 2], "datatype": word, "parameters": {"binary_data_size": len(blob)}}
        head = json.dumps({"inputs": [one]}).encode()
        plans = learned(models[word], head + blob, b"%d" % len(head))
        assert plans.recall(head + blob, b"%d" % len(head)) is None


def test_what_is_remembered_stays_little(models: dict[str, Model]) -> None:
    plans = forgetful(models["FP32"])
    for number in range(1000):
        body = asked_in_json("[1, 2]", id=str(number))
        plans.remember(body, None, *openinference.read(body, None, models["FP32"]))
        body = asked_in_json("[1, 2]", id="y" * 5000)
        plans.remember(body, None, *openinference.read(body, None, models["FP32"]))
    assert 0 < len(plans._numbers) + len(plans._raw) <= 128


@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_remembered_by_the_shapes_of_their_outputs(models: dict[str, Model], binary: bool) -> None:
    model = models["pair"]
    a, b = np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int64)
    body, header = asked_raw(
        {"a": a.tobytes(), "b": b.tobytes()}, model, [1, 2], parameters={"binary_data_output": binary}
    )
    asked, _ = openinference.read(body, header, model)
    for rows in (1, 2, 1, 3, 2):
        chance = np.random.default_rng(rows)
        outputs: dict[str, np.ndarray[Any, Any]] = {
            "sum": chance.random((rows, 2), np.float32),
            "twice": chance.integers(-9, 9, (rows, 2)),
        }
        outputs["sum"][0, 0] = np.nan
        fresh, _ = openinference.read(body, header, model)
        assert openinference.write(asked, outputs, model) == openinference.write(fresh, outputs, model)
    assert len(asked.looks) == 3


def test_a_recalled_request_is_answered_the_same(server: servers.Running, zoo: dict[str, Path]) -> None:
    for data in ([1, 2, 3, 4], [0.5, -1, 2, 1e3], [1, 2, 3, 4]):
        x = np.array([data], np.float32)
        answer = server.ask("/v2/models/affine/infer", {"inputs": [servers.v2("x", x, "FP32")]})
        expected = servers.reference(zoo["affine"], {"x": x})["y"]
        np.testing.assert_allclose(answer.json["outputs"][0]["data"], expected[0], rtol=1e-5)
        assert answer.headers["modelctl-model"].startswith("affine@sha256:")
