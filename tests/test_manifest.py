"""A manifest's text is stable and round-trips; reading refuses whatever is not exactly a manifest."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import chains, digests, manifest
from modelctl.errors import ArtifactError
from modelctl.manifest import Encryption, FileEntry, Manifest, Record, Step, TensorSpec, parse

DIGEST = "ab" * 32
SMALL = Manifest(name="a", format="onnx", files=(FileEntry(path="a.onnx", size=3, sha256=DIGEST),))

COLUMNS = (chains.Number(name="n", min=-1.0, max=0.1), chains.Category(name="c", values=("a", "é"), missing="a"))
BEFORE = (
    chains.Image(input="x", height=28, width=28, color="gray", invert=True, mean=(0.1,), std=(0.3,), layout="nhw"),
    chains.Table(input="x", columns=COLUMNS),
    chains.Text(input="x", mask="m", max_length=7),
)
AFTER = (
    chains.Softmax(output="y"),
    chains.Pool(output="y", mask="m"),
    chains.Normalize(output="y"),
    chains.TopK(output="y", k=2, labels=("a", "é")),
    chains.Threshold(output="y", at=0.1),
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
numbers = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
facts = st.dictionaries(texts, plain, max_size=3)
parts = st.text("abcXYZ019_-é漢", min_size=1, max_size=8)
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
steps = st.builds(
    Step,
    step=texts,
    version=texts,
    options=facts,
    parents=st.lists(hexes, max_size=2).map(tuple),
    seed=st.none() | st.integers(0, 2**32 - 1),
    environment=st.dictionaries(texts, texts, max_size=2),
    choices=facts,
)
specs = st.builds(
    TensorSpec, name=texts, dtype=texts, shape=st.lists(st.integers(0, 2**40) | texts, max_size=4).map(tuple)
)
entries = st.builds(FileEntry, path=paths, size=st.integers(0, 2**63), sha256=hexes)
records = st.builds(Record, name=texts, format=texts, digest=hexes, made_by=st.none() | steps, metrics=facts)
sealed = st.builds(
    Encryption, suite=texts, recipients=st.lists(texts, max_size=2).map(tuple), manifest=hexes, digest=hexes
)
manifests = st.builds(
    Manifest,
    name=st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=20),
    format=st.sampled_from(["onnx", "sealed"]),
    files=st.lists(entries, min_size=1, max_size=3, unique_by=lambda one: one.path.casefold()).map(tuple),
    inputs=st.lists(specs, max_size=2).map(tuple),
    outputs=st.lists(specs, max_size=2).map(tuple),
    preprocess=st.lists(st.sampled_from(BEFORE), max_size=2).map(tuple),
    postprocess=st.lists(st.sampled_from(AFTER), max_size=3).map(tuple),
    made_by=st.none() | steps,
    metrics=facts,
    lineage=st.lists(records, max_size=2).map(tuple),
    annotations=st.dictionaries(texts, texts, max_size=2),
    encryption=st.none() | sealed,
)


def text_with(**fields: Any) -> bytes:
    return json.dumps(json.loads(SMALL.text()) | fields).encode()


@settings(max_examples=60, deadline=None)
@given(manifests)
def test_text_round_trips_and_is_stable(one: Manifest) -> None:
    text = one.text()
    again = parse(text.encode())
    assert again == one
    assert again.text() == text


def test_a_manifest_of_version_1_is_read_and_written_as_it_always_was() -> None:
    text = (Path(__file__).parent / "golden" / "manifest-v1.json").read_bytes()
    assert digests.of_bytes(text) == "330f221d548511136ec128d242576c90ea7b3fbdf4518111d0daf032be63561c"
    assert parse(text).text().encode() == text
    assert parse(text).digest == "45" * 32


def test_text_is_sorted_indented_utf8_with_one_final_newline() -> None:
    text = msgspec.structs.replace(SMALL, annotations={"z": "é", "b": ""}).text()
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
    assert text.startswith('{\n  "annotations": {\n    "b": "",\n    "z": "é"\n  },\n')
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_text_refuses_what_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        msgspec.structs.replace(SMALL, metrics={"parity": float("nan")}).text()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_a_manifest_or_an_artifact_error(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        parse(data)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_another_manifest(data: st.DataObject) -> None:
    text = bytearray(SMALL.text().encode())
    index = data.draw(st.integers(0, len(text) - 1))
    text[index] ^= data.draw(st.integers(1, 255))
    try:
        parse(bytes(text))
    except ArtifactError:
        return


@pytest.mark.parametrize(
    ("data", "trouble"),
    [
        (b"", "not sound JSON"),
        (b"[]", "not a manifest"),
        (b"\xff\xfe{}", "not sound JSON"),
        (b"\xef\xbb\xbf" + SMALL.text().encode(), "not sound JSON"),
        (SMALL.text().encode("utf-16"), "not sound JSON"),
        (SMALL.text().encode() + b"x", "not sound JSON"),
        (text_with(metrics={"x": float("nan")}), "NaN is not a JSON number"),
        (text_with(metrics={"x": float("-inf")}), "-Infinity is not a JSON number"),
        (text_with(metrics={"x": 1}).replace(b'"x": 1', b'"x": 1e999'), "out of range"),
        (text_with(metrics={"x": 1}).replace(b'"x": 1', b'"x": ' + b"9" * 5000), "not sound JSON"),
        (text_with(metrics={"x": 1}).replace(b'"x": 1', b'"x": 1, "x": 2'), "duplicate key 'x'"),
        (text_with().replace(b'{"', b'{"name": "b", "', 1), "duplicate key 'name'"),
        (text_with(annotations={"x": "\ud800"}), "not sound JSON"),
        (text_with(colour="red"), "unknown field `colour`"),
        (text_with(schema="modelctl/manifest/v2"), "this modelctl reads modelctl/manifest/v1"),
        (text_with(schema=None), "schema is 'None'"),
        (text_with(files=[]), "not a manifest"),
        (text_with(name=""), "not a manifest"),
        (text_with(name=3), "not a manifest"),
        (text_with(made_by={"step": "x"}), "missing required field `version`"),
        (text_with(inputs=[{"name": "x", "dtype": "float32", "shape": [-1]}]), "not a manifest"),
        (text_with(inputs=[{"name": "x", "dtype": "float32", "shape": [1.5]}]), "not a manifest"),
        (text_with(inputs=[{"name": "x", "dtype": "float32", "shape": [True]}]), "not a manifest"),
    ],
)  # fmt: skip
def test_what_is_not_exactly_a_manifest_is_refused(data: bytes, trouble: str) -> None:
    with pytest.raises(ArtifactError, match=r"^m\.json: ") as caught:
        parse(data, "m.json")
    assert trouble in caught.value.message


@pytest.mark.parametrize("digest", ["", "AB" * 32, "ab" * 31, "ab" * 33, "ab" * 32 + "\n", "xy" * 32, "a" * 63 + "é"])
def test_a_digest_is_64_lowercase_hex_digits_and_nothing_more(digest: str) -> None:
    with pytest.raises(ArtifactError, match="not a manifest"):
        parse(text_with(files=[{"path": "a.onnx", "size": 3, "sha256": digest}]))


@pytest.mark.parametrize("size", [-1, 1.5, "3", True, None])
def test_a_size_is_a_count(size: object) -> None:
    with pytest.raises(ArtifactError, match="not a manifest"):
        parse(text_with(files=[{"path": "a.onnx", "size": size, "sha256": DIGEST}]))


HOSTILE = [
    "/etc/passwd", "../a", "a/../b", "a/..", ".", "./a", "a//b", "a/", "\\a", "a\\..\\b", "c:a", "a\x00b", "a\nb",
    "a\x1b[2Jb", "a\x7fb", "a\x85b", "a\u202eb", "a\u2028b", "a\u200bb", ".hidden", "a/.hidden", " a", "a ", "a/ b",
    "a*b", "a?b", "a<b", "a|b", 'a"b', "~/../x", "x" * 1025,
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_is_not_a_plain_one_inside_its_folder_is_refused(path: str) -> None:
    with pytest.raises(ArtifactError):
        parse(text_with(files=[{"path": path, "size": 3, "sha256": DIGEST}]))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_an_accepted_path_stays_inside(path: str) -> None:
    try:
        manifest.check_path(path, "m")
    except ArtifactError:
        return
    assert path.isprintable()
    assert not path.startswith(("/", ".", "~/.."))
    assert all(part not in ("", ".", "..") for part in path.split("/"))


@pytest.mark.parametrize("second", ["a.onnx", "A.ONNX", "a.onnx.manifest.json", "a.onnx.dsse.json"])
def test_a_file_is_listed_once_and_a_sidecar_never(second: str) -> None:
    entries = [{"path": path, "size": 3, "sha256": DIGEST} for path in ("a.onnx", second)]
    with pytest.raises(ArtifactError, match="twice, or lists its own sidecar"):
        parse(text_with(files=entries))


def test_size_and_depth_are_bounded() -> None:
    with pytest.raises(ArtifactError, match="is larger than 4194304 bytes"):
        parse(b" " * (4 << 20) + b"{}")
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    with pytest.raises(ArtifactError, match="nested deeper than 64"):
        parse(text_with(metrics={"x": deep}))
    with pytest.raises(ArtifactError, match="nested deeper than 64"):
        parse(b"[" * 2_000_000)


def test_brackets_in_strings_are_no_depth() -> None:
    assert parse(text_with(annotations={"x": '\\"[' * 500})).annotations == {"x": '\\"[' * 500}


@pytest.mark.parametrize("data", [b'"' * (4 << 20), b'"\\' * (2 << 20), b'{"a":' * 10 + b'"' + b"\\" * 3_000_000])
def test_hostile_text_of_the_largest_size_is_refused_in_one_pass(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        parse(data)


def test_one_file_lends_its_digest_and_several_the_digest_of_their_lines() -> None:
    assert SMALL.digest == DIGEST
    second = FileEntry(path="a.onnx.data", size=1, sha256="cd" * 32)
    both = msgspec.structs.replace(SMALL, files=(*SMALL.files, second))
    assert both.digest == digests.of_bytes(f"{DIGEST}  a.onnx\n{'cd' * 32}  a.onnx.data\n".encode())


def test_a_sealed_artifact_goes_by_the_digest_of_what_is_inside() -> None:
    inside = Encryption(suite="floe", recipients=(), manifest="01" * 32, digest="23" * 32)
    assert msgspec.structs.replace(SMALL, encryption=inside).digest == "23" * 32


def test_history_ends_with_the_artifact_itself() -> None:
    ancestor = Record(name="p", format="pt2", digest="01" * 32)
    told = msgspec.structs.replace(SMALL, lineage=(ancestor,), metrics={"accuracy": 0.9}).history()
    assert told == (ancestor, Record(name="a", format="onnx", digest=DIGEST, metrics={"accuracy": 0.9}))
