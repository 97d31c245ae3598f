"""Signatures: what they are over, whose they are, and what is no signature."""

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl.artifact import Artifact, manifest_path
from modelctl.crypto import keys, signing
from modelctl.crypto.keys import PrivateKey
from modelctl.errors import ArtifactError, IntegrityError, ModelctlError, UsageError

Make = Callable[..., Artifact]


@pytest.fixture
def text(make_artifact: Make) -> bytes:
    return manifest_path(make_artifact(more={"model.onnx.data": b"w"}).path).read_bytes()


@pytest.fixture
def ed(key_folder: Path) -> PrivateKey:
    return keys.private_key(str(key_folder / "ed.pem"))


@pytest.fixture
def rsa(key_folder: Path) -> PrivateKey:
    return keys.private_key(str(key_folder / "rsa.pem"))


def checked(text: bytes, envelope: bytes | None, *given: PrivateKey) -> list[signing.Checked]:
    return signing.check_signature(text, envelope, [(f"key{n}", key.public) for n, key in enumerate(given)], "m")


def test_pre_authentication_encoding_is_the_published_one() -> None:
    # The example of secure-systems-lab/dsse, protocol.md, but for our payload type.
    assert signing.encoded(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


def test_envelope_is_an_in_toto_statement_over_files_and_manifest(text: bytes, ed: PrivateKey) -> None:
    envelope = json.loads(signing.sign(text, ed, None, "m"))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:modelctl:manifest:v1"
    assert [one["name"] for one in statement["subject"]] == [
        "model.onnx",
        "model.onnx.data",
        "model.onnx.manifest.json",
    ]
    assert statement["predicate"] == json.loads(text)
    assert [one["keyid"] for one in envelope["signatures"]] == [ed.id]


def test_several_keys_sign_one_envelope_and_the_same_key_once(text: bytes, ed: PrivateKey, rsa: PrivateKey) -> None:
    once = signing.sign(text, ed, None, "m")
    both = signing.sign(text, rsa, once, "m")
    again = signing.sign(text, ed, both, "m")
    assert [one.keyid for one in checked(text, again, ed, rsa)] == [rsa.id, ed.id]
    assert {one.verified_by for one in checked(text, again, ed, rsa)} == {"key0", "key1"}
    assert [one.verified_by for one in checked(text, again)] == [None, None]


def test_a_key_that_has_not_signed_is_missed(text: bytes, ed: PrivateKey, rsa: PrivateKey) -> None:
    envelope = signing.sign(text, ed, None, "m")
    with pytest.raises(IntegrityError, match="is not signed by key1"):
        checked(text, envelope, ed, rsa)
    with pytest.raises(IntegrityError, match="m: is not signed, and key0 must have signed it"):
        checked(text, None, ed)
    assert checked(text, None) == []


def test_signature_over_another_manifest_is_refused_with_and_without_keys(text: bytes, ed: PrivateKey) -> None:
    envelope = signing.sign(text, ed, None, "m")
    other = text.replace(b"0.75", b"0.76")
    spaced = text + b" "  # says the same, in other bytes
    for changed in (other, spaced):
        for given_keys in ((), (ed,)):
            with pytest.raises(IntegrityError, match="about another artifact"):
                checked(changed, envelope, *given_keys)
        with pytest.raises(IntegrityError, match="about another artifact"):
            signing.sign(changed, ed, envelope, "m")


def test_signature_under_anothers_key_id_is_refused(text: bytes, ed: PrivateKey, key_folder: Path) -> None:
    other = keys.private_key(str(key_folder / "ed2.pem"))
    envelope = json.loads(signing.sign(text, other, None, "m"))
    envelope["signatures"][0]["keyid"] = ed.id
    with pytest.raises(IntegrityError, match="the signature of key0"):
        checked(text, json.dumps(envelope).encode(), ed)


def changes() -> dict[str, Callable[[dict[str, Any]], Any]]:
    return {
        "unknown field": lambda e: e.update(more=1),
        "no payload": lambda e: e.pop("payload"),
        "no signatures": lambda e: e.update(signatures=[]),
        "too many": lambda e: e.update(signatures=e["signatures"] * 65),
        "a key twice": lambda e: e.update(signatures=e["signatures"] * 2),
        "another type": lambda e: e.update(payloadType="application/json"),
        "type and more": lambda e: e.update(payloadType=e["payloadType"] + "\n"),
        "dot of the type": lambda e: e.update(payloadType=e["payloadType"].replace(".", "-")),
        "payload no base64": lambda e: e.update(payload="*"),
        "payload cut": lambda e: e.update(payload=e["payload"][:-5]),
        "payload with a line break": lambda e: e.update(payload=e["payload"] + "\n"),
        "payload a number": lambda e: e.update(payload=1),
        "keyid odd": lambda e: e["signatures"][0].update(keyid="x"),
        "keyid missing": lambda e: e["signatures"][0].pop("keyid"),
        "signature short": lambda e: e["signatures"][0].update(sig="AAAA"),
        "signature no base64": lambda e: e["signatures"][0].update(sig="=" * 64),
        "certificate": lambda e: e["signatures"][0].update(cert="x"),
    }


@pytest.mark.parametrize("name", changes())
def test_what_is_no_envelope_of_ours_is_refused(text: bytes, ed: PrivateKey, name: str) -> None:
    envelope = json.loads(signing.sign(text, ed, None, "m"))
    changed = copy.deepcopy(envelope)
    changes()[name](changed)
    assert changed != envelope
    with pytest.raises(IntegrityError):
        checked(text, json.dumps(changed).encode(), ed)
    if not name.startswith("signature no"):
        with pytest.raises(ModelctlError):
            signing.sign(text, ed, json.dumps(changed).encode(), "m")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(predicateType="other"),
        lambda s: s["subject"].pop(),
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
        lambda s: s["subject"].append({"name": "x", "digest": {"sha256": "0" * 64}}),
        lambda s: s["predicate"].update(name="other"),
    ],
)
def test_another_statement_is_refused_even_rightly_signed(
    text: bytes, ed: PrivateKey, change: Callable[[dict[str, Any]], Any]
) -> None:
    statement = signing.statement(text, "m")
    change(statement)
    payload = json.dumps(statement).encode()
    signature = {"keyid": ed.id, "sig": base64.b64encode(ed.sign(signing.encoded(payload))).decode()}
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": signing.PAYLOAD_TYPE,
        "signatures": [signature],
    }
    with pytest.raises(IntegrityError, match="about another artifact"):
        checked(text, json.dumps(envelope).encode(), ed)


def test_a_duplicate_key_or_deep_nesting_is_refused(text: bytes, ed: PrivateKey) -> None:
    envelope = signing.sign(text, ed, None, "m")
    for changed in (envelope.replace(b"{", b'{"payload": "",', 1), b"[" * 100_000, b"", b"null", b"\xff"):
        with pytest.raises(IntegrityError):
            checked(text, changed, ed)


def test_any_flipped_byte_is_refused_or_changes_nothing_that_is_said(text: bytes, ed: PrivateKey) -> None:
    whole = signing.sign(text, ed, None, "m")

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(at=st.integers(0, len(whole) - 1), bit=st.integers(0, 7))
    def flipped(at: int, bit: int) -> None:
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        try:
            found = checked(text, bytes(changed), ed)
        except IntegrityError:
            return
        assert json.loads(bytes(changed)) == json.loads(whole)
        assert [one.verified_by for one in found] == ["key0"]

    flipped()


def test_a_large_manifest_can_be_signed(make_artifact: Make, ed: PrivateKey) -> None:
    model = make_artifact()
    big = json.loads(manifest_path(model.path).read_bytes())
    big["annotations"] = {f"key{number}": "x" * 1000 for number in range(4000)}
    text = json.dumps(big).encode()
    assert checked(text, signing.sign(text, ed, None, "m"), ed)[0].verified_by == "key0"


def test_sidecars_are_those_that_were_opened(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact()
    assert signing.sidecars(model) == (manifest_path(model.path).read_bytes(), None)
    manifest_path(model.path).write_bytes(manifest_path(model.path).read_bytes() + b"\n")
    with pytest.raises(IntegrityError, match="changed while it was read"):
        signing.sidecars(model)
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(b"x")
    with pytest.raises(UsageError, match="has no manifest") as caught:
        signing.sidecars(Artifact.open(foreign))
    assert caught.value.hint == f"modelctl export {foreign} -o model.onnx"


def test_a_linked_or_endless_signature_is_refused(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact()
    beside = tmp_path / "model.onnx.dsse.json"
    beside.symlink_to(tmp_path / "root.pt")
    with pytest.raises(IntegrityError, match="is a link"):
        signing.sidecars(model)
    beside.unlink()
    with beside.open("wb") as file:
        file.truncate(signing.LIMIT_BYTES + 1)
    with pytest.raises(ArtifactError, match="larger than"):
        signing.sidecars(model)
