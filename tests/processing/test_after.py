"""Outputs become answers: what each entry makes, held against the formula written out."""

from typing import Any

import numpy as np
import pytest

from modelctl import chains
from modelctl.errors import DataError
from modelctl.processing.after import After

Y = np.array([[1.0, 3.0, 2.0], [-1.0, -1.0, 5.0]], np.float32)
ABC = ("a", "b", "c")


def made(outputs: Any, *entries: chains.Postprocess, **feeds: Any) -> list[Any]:
    named = outputs if isinstance(outputs, dict) else {"y": outputs}
    return After(entries).predictions(named, feeds)


def test_softmax() -> None:
    powers: Any = np.exp(Y.astype(np.float64))
    np.testing.assert_allclose(made(Y, chains.Softmax(output="y")), powers / powers.sum(1, keepdims=True), rtol=1e-6)
    huge = np.array([[1e30, -1e30, 0]], np.float32)
    assert made(huge, chains.Softmax(output="y"))[0].tolist() == [1, 0, 0]


def test_sigmoid() -> None:
    np.testing.assert_allclose(made(Y, chains.Sigmoid(output="y")), 1 / (1 + np.exp(-Y.astype(np.float64))), rtol=1e-6)
    assert made(np.array([[-1e30, 1e30]], np.float32), chains.Sigmoid(output="y"))[0].tolist() == [0, 1]


def test_normalize() -> None:
    found = made(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), chains.Normalize(output="y"))
    np.testing.assert_allclose(np.array(found), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("how", ["mean", "max", "first"])
def test_pool_looks_at_tokens_only(how: Any) -> None:
    tokens = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 10
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    rows = [[tokens[0, :2]], [tokens[1, :1]]]
    wanted: Any = {"mean": lambda one: one.mean(0), "max": lambda one: one.max(0), "first": lambda one: one[0]}[how]
    found = made(tokens, chains.Pool(output="y", how=how, mask="mask"), mask=mask)
    np.testing.assert_allclose(found, [wanted(row[0]) for row in rows])
    whole = made(tokens, chains.Pool(output="y", how=how))
    np.testing.assert_allclose(whole, [wanted(row) for row in tokens])


def test_pool_of_a_text_without_tokens_is_zeros() -> None:
    found = made(np.ones((1, 2, 3), np.float32), chains.Pool(output="y", mask="mask"), mask=np.zeros((1, 2)))
    assert found[0].tolist() == [0, 0, 0]


def test_argmax_names_the_largest() -> None:
    wanted = [{"index": 1, "label": "b", "score": 3.0}, {"index": 2, "label": "c", "score": 5.0}]
    assert made(Y, chains.Argmax(output="y", labels=ABC)) == wanted
    assert made(Y, chains.Argmax(output="y"))[0] == {"index": 1, "score": 3.0}


def test_the_k_largest_come_largest_first_and_of_equals_the_first() -> None:
    found = made(Y, chains.TopK(output="y", k=2, labels=ABC))
    assert [[one["label"] for one in row] for row in found] == [["b", "c"], ["c", "a"]]
    assert [one["index"] for one in made(Y, chains.TopK(output="y", k=9))[0]] == [1, 2, 0]


def test_nan_comes_last() -> None:
    holes = np.array([[np.nan, 1.0, 2.0]], np.float32)
    assert [one["index"] for one in made(holes, chains.TopK(output="y", k=3))[0]] == [2, 1, 0]
    assert made(holes, chains.Argmax(output="y"))[0]["index"] == 2


def test_threshold_of_several_and_of_one() -> None:
    found = made(Y, chains.Threshold(output="y", at=2.0, labels=ABC))
    assert [[one["label"] for one in row] for row in found] == [["b", "c"], ["c"]]
    for one in (np.array([[0.2], [0.5]], np.float32), np.array([0.2, 0.5], np.float32)):
        found = made(one, chains.Threshold(output="y", labels=("no", "yes")))
        assert [row["label"] for row in found] == ["no", "yes"]
        assert [row["index"] for row in found] == [0, 1]


def test_entries_work_one_after_the_other() -> None:
    found = made(Y, chains.Softmax(output="y"), chains.TopK(output="y", k=1, labels=ABC))
    assert found[0][0]["label"] == "b"
    assert 0.66 < found[0][0]["score"] < 0.67


def test_several_outputs_are_told_by_their_names() -> None:
    entries = (chains.Argmax(output="y"), chains.Normalize(output="z"))
    found = made({"y": Y, "z": np.eye(2, dtype=np.float32), "w": Y}, *entries)
    assert [sorted(row) for row in found] == [["y", "z"]] * 2
    assert found[0]["y"]["index"] == 1


def test_classes_of_each_token() -> None:
    tokens = np.arange(12).reshape(2, 3, 2)
    found = made(tokens, chains.Argmax(output="y", labels=("a", "b")))
    assert [[one["label"] for one in row] for row in found] == [["b"] * 3] * 2
    assert len(made(tokens, chains.TopK(output="y", k=2))[1][2]) == 2


def test_half_precision_and_whole_numbers_are_answered_too() -> None:
    assert made(Y.astype(np.float16), chains.Argmax(output="y"))[0]["score"] == 3.0
    assert made(np.array([[1, 5]]), chains.Argmax(output="y"))[0] == {"index": 1, "score": 5.0}


@pytest.mark.parametrize(
    ("shape", "entry"),
    [
        ((), chains.Softmax(output="y")),
        ((2, 0), chains.Softmax(output="y")),
        ((3,), chains.Argmax(output="y")),
        ((2, 0), chains.TopK(output="y", k=1)),
        ((2, 3), chains.Pool(output="y")),
        ((2, 0, 3), chains.Pool(output="y")),
        ((), chains.Sigmoid(output="y")),
    ],
)
def test_outputs_of_other_axes_are_refused(shape: tuple[int, ...], entry: Any) -> None:
    with pytest.raises(DataError, match="'y'"):
        made(np.zeros(shape, np.float32), entry)
