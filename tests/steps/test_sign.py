"""sign: an envelope beside the artifact, one signature a key, over bytes that were looked at."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modelctl.artifact import Artifact, manifest_path, signature_path
from modelctl.errors import IntegrityError, KeyFileError, UsageError
from modelctl.options import EncryptOptions, SignOptions, VerifyOptions
from modelctl.steps.encrypt import encrypt
from modelctl.steps.sign import sign
from modelctl.steps.verify import verify

Make = Callable[..., Artifact]


def by(folder: Path, name: str) -> SignOptions:
    return SignOptions(key=str(folder / f"{name}.pem"))


def of(folder: Path, *names: str) -> VerifyOptions:
    return VerifyOptions(keys=tuple(str(folder / f"{name}.pub.pem") for name in names))


def test_several_sign_and_the_same_one_replaces_its_own(make_artifact: Make, key_folder: Path) -> None:
    model = make_artifact()
    for name in ("ed", "rsa", "ed"):
        report = sign(model, by(key_folder, name))
    signatures = verify(model.path, of(key_folder, "ed", "rsa")).facts["signatures"]
    assert report.facts["signed_by"] == [one["keyid"] for one in signatures] and len(signatures) == 2
    assert all(one["verified_by"] for one in signatures)


def test_sealed_artifact_is_signed_from_outside(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    options = EncryptOptions(recipients=(str(key_folder / "rsa.pub.pem"),))
    sealed = encrypt(make_artifact(), tmp_path / "m.sealed", options)
    sign(sealed, by(key_folder, "ed"))
    assert verify(sealed.path, of(key_folder, "ed")).facts["signatures"][0]["verified_by"]


def test_what_is_not_sound_is_not_signed(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    model = make_artifact()
    with pytest.raises(UsageError, match="sign needs a private key"):
        sign(model, SignOptions())
    with pytest.raises(KeyFileError):
        sign(model, SignOptions(key=str(key_folder / "ed.pub.pem")))
    with pytest.raises(UsageError, match="has no manifest"):
        sign(Artifact.open(tmp_path / "root.pt"), by(key_folder, "ed"))
    model.path.write_bytes(b"grape")
    with pytest.raises(IntegrityError, match="not the ones"):
        sign(model, by(key_folder, "ed"))
    assert not signature_path(model.path).exists()


def test_signature_about_something_else_stays_and_is_told(make_artifact: Make, key_folder: Path) -> None:
    model = make_artifact()
    sign(model, by(key_folder, "ed"))
    text = manifest_path(model.path).read_text().replace("0.75", "0.95")
    manifest_path(model.path).write_text(text)
    before = signature_path(model.path).read_bytes()
    with pytest.raises(IntegrityError, match="about another artifact") as caught:
        sign(Artifact.open(model.path), by(key_folder, "ed"))
    assert caught.value.hint == f"rm {signature_path(model.path)}"
    assert signature_path(model.path).read_bytes() == before


def test_making_it_again_takes_the_old_signature_away(make_artifact: Make, key_folder: Path) -> None:
    model = make_artifact()
    sign(model, by(key_folder, "ed"))
    make_artifact(data=b"other")
    assert not signature_path(model.path).exists()


def test_envelope_is_plain_sorted_json(make_artifact: Make, key_folder: Path) -> None:
    model = make_artifact()
    sign(model, by(key_folder, "ed"))
    data = signature_path(model.path).read_text()
    assert data == json.dumps(json.loads(data), indent=2, sort_keys=True) + "\n"
