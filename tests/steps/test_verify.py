"""verify: says yes to what is right, and names what is not; 1 for content, 2 for what can't be looked at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelctl.artifact import Artifact, manifest_path, signature_path
from modelctl.errors import ModelctlError
from modelctl.options import EncryptOptions, SignOptions, VerifyOptions
from modelctl.steps.encrypt import encrypt
from modelctl.steps.sign import sign
from modelctl.steps.verify import verify

Make = Callable[..., Artifact]


def status(path: Path, **options: Any) -> tuple[int, str]:
    """What the command would exit with, and say."""
    try:
        verify(path, VerifyOptions(**options))
    except ModelctlError as error:
        return error.exit_code, error.message
    return 0, ""


def edited(model: Artifact, change: Callable[[dict[str, Any]], Any]) -> None:
    plain = json.loads(manifest_path(model.path).read_text())
    change(plain)
    manifest_path(model.path).write_text(json.dumps(plain))


def test_report_tells_all_that_was_checked(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    model = make_artifact(more={"model.onnx.data": b"weights"})
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    public = str(key_folder / "ed.pub.pem")
    report = verify(model.path, VerifyOptions(keys=(public,), roots=(tmp_path / "root.pt",)))
    assert (report.facts["files"], report.facts["bytes"], report.facts["digest"]) == (2, 12, model.digest)
    assert report.facts["chain"] == ["root", "export"]
    assert [root["file"] for root in report.facts["roots"]] == [str(tmp_path / "root.pt")]
    assert [one["verified_by"] for one in report.facts["signatures"]] == [public]
    assert "not checked" not in "\n".join(report.lines)


def test_without_keys_it_says_so(make_artifact: Make, key_folder: Path) -> None:
    model = make_artifact()
    assert "not signed" in verify(model.path, VerifyOptions()).lines[-1]
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    assert "signature not checked" in verify(model.path, VerifyOptions()).lines[-1]


def test_sealed_files_are_verified_without_keys(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    make_artifact()
    for private in (False, True):
        options = EncryptOptions(recipients=(str(key_folder / "rsa.pub.pem"),), private=private, force=True)
        sealed = encrypt(Artifact.open(tmp_path / "model.onnx"), tmp_path / "m.sealed", options)
        assert status(sealed.path) == (0, "")
        assert status(sealed.path, roots=(tmp_path / "root.pt",))[0] == (1 if private else 0)
    data = bytearray(sealed.path.read_bytes())
    data[-1] ^= 1
    sealed.path.write_bytes(data)
    assert status(sealed.path)[0] == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"grape"), "not the ones"),
        (lambda folder: (folder / "model.onnx.data").write_bytes(b""), "not the ones"),
        (lambda folder: (folder / "model.onnx.data").unlink(), "is missing"),
        (lambda folder: (folder / "model.onnx.more").write_bytes(b"x"), "does not list it"),
        (lambda folder: (folder / "model.onnx.dsse.json").write_bytes(b"x"), "signature"),
        (lambda folder: (folder / "model.onnx.dsse.json").symlink_to(folder / "root.pt"), "is a link"),
        (lambda folder: (folder / "model.onnx.manifest.json").write_bytes(b"{"), "not sound JSON"),
        (lambda folder: (folder / "model.onnx.manifest.json").write_bytes(b""), "not sound JSON"),
    ],
)
def test_content_that_is_not_right_is_a_no(
    make_artifact: Make, tmp_path: Path, damage: Callable[[Path], Any], said: str
) -> None:
    model = make_artifact(more={"model.onnx.data": b"weights"})
    damage(tmp_path)
    code, message = status(model.path)
    assert code == 1 and said in message and str(tmp_path) in message


def test_linked_manifest_is_a_no(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact()
    for target in ("moved", "absent"):
        away = tmp_path / target
        if target == "moved":
            manifest_path(model.path).rename(away)
        manifest_path(model.path).unlink(missing_ok=True)
        manifest_path(model.path).symlink_to(away)
        assert status(model.path)[0] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain["lineage"].clear(),
        lambda plain: plain["lineage"].append(plain["lineage"][0]),
        lambda plain: plain["made_by"].update(parents=["0" * 64]),
        lambda plain: plain["lineage"][0].update(made_by=plain["made_by"]),
    ],
)
def test_a_broken_chain_is_a_no(make_artifact: Make, change: Callable[[dict[str, Any]], Any]) -> None:
    model = make_artifact()
    edited(model, change)
    code, message = status(model.path)
    assert code == 1 and "lineage is broken" in message


def test_what_can_not_be_looked_at_is_two(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    model = make_artifact()
    assert status(tmp_path / "absent.onnx")[0] == 2
    assert status(tmp_path)[0] == 2
    assert status(tmp_path / "root.pt")[0] == 2
    assert status(model.path, keys=(str(tmp_path / "absent.pem"),))[0] == 2
    assert status(model.path, keys=(str(key_folder / "rsa.pem"),))[0] == 2
    assert status(model.path, roots=(tmp_path / "absent.pt",))[0] == 2


def test_every_root_must_be_known_and_be_one(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact()
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    code, message = status(model.path, roots=(other,))
    assert code == 1 and f"does not come from {other}" in message
    assert status(model.path, roots=(tmp_path / "root.pt", other))[0] == 1
    edited(model, lambda plain: plain["lineage"].append(plain["lineage"][0] | {"digest": "1" * 64, "name": "second"}))
    code, message = status(model.path, roots=(tmp_path / "root.pt",))
    assert code == 1 and "comes from second too" in message


def test_every_key_must_have_signed(make_artifact: Make, key_folder: Path) -> None:
    model = make_artifact()
    ed, rsa = str(key_folder / "ed.pub.pem"), str(key_folder / "rsa.pub.pem")
    assert status(model.path, keys=(ed,))[0] == 1
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    assert status(model.path, keys=(ed,)) == (0, "")
    assert status(model.path, keys=(ed, rsa))[0] == 1
    sign(model, SignOptions(key=str(key_folder / "rsa.pem")))
    assert status(model.path, keys=(rsa, ed)) == (0, "")


def test_a_signed_history_can_not_be_told_otherwise(make_artifact: Make, key_folder: Path) -> None:
    model = make_artifact()
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    assert signature_path(model.path).is_file()
    edited(model, lambda plain: plain["metrics"].update(accuracy=0.99))
    code, message = status(model.path)
    assert code == 1 and "about another artifact" in message
