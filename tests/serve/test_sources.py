"""Where served models come from, and who must have signed them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import servers

from modelctl.artifact import Artifact, manifest_path
from modelctl.errors import ArtifactError, IntegrityError, KeyFileError, ModelctlError, StoreError, UsageError
from modelctl.making import Origin, create
from modelctl.options import EncryptOptions, PushOptions, ServeOptions, SignOptions, StepOptions
from modelctl.serve.models import Model, load_all
from modelctl.steps.encrypt import encrypt
from modelctl.steps.push import push
from modelctl.steps.sign import sign

Served = Callable[..., Model]


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    """An ONNX artifact with a manifest."""
    root = servers.affine(tmp_path / "root.onnx")
    out = tmp_path / "digits.onnx"
    with create(out, Origin("export", StepOptions(), (Artifact.open(root),))) as draft:
        draft.path.write_bytes(root.read_bytes())
    return Artifact.open(out)


def serve(source: Path | str, **options: object) -> Model:
    """The one model that a server of `source` would have."""
    (found,) = load_all([str(source)], ServeOptions(**options))  # type: ignore[arg-type]
    return found


def sealed(model: Artifact, key_folder: Path, name: str = "digits.onnx.sealed") -> Artifact:
    return encrypt(model, model.path.with_name(name), EncryptOptions(recipients=(str(key_folder / "rsa.pub.pem"),)))


def rsa(key_folder: Path) -> dict[str, object]:
    return {"identities": (str(key_folder / "rsa.pem"),)}


def test_a_file_is_served_under_its_own_name(model: Artifact) -> None:
    found = serve(model.path)
    assert (found.name, found.version, found.digest) == ("digits", "1", model.digest)
    assert serve(model.path, name="other").name == "other"


def test_a_foreign_file_has_a_digest_too(tmp_path: Path) -> None:
    path = servers.affine(tmp_path / "resnet-1.2.onnx")
    found = serve(path)
    assert (found.name, found.digest) == ("resnet-1.2", Artifact.open(path).digest)


def test_a_ref_is_served_under_name_and_tag(model: Artifact, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/models.db"
    push(model, f"{store}/numbers:1.0", PushOptions())
    push(model, f"{store}/numbers:1.1", PushOptions())
    models = load_all([f"{store}/numbers:1.0", f"{store}/numbers:1.1"], ServeOptions())
    assert models.versions("numbers") == ["1.0", "1.1"]
    assert models.get("numbers").version == "1.1"
    assert models.get("numbers", "1.0").digest == model.digest
    with pytest.raises(StoreError, match="no such tag"):
        serve(f"{store}/numbers:2")


def test_a_sealed_artifact_is_served_with_the_digest_of_what_is_inside(model: Artifact, key_folder: Path) -> None:
    found = serve(sealed(model, key_folder).path, **rsa(key_folder))
    assert (found.name, found.digest) == ("digits", model.digest)
    with pytest.raises(UsageError):
        serve(model.path.with_name("digits.onnx.sealed"))
    with pytest.raises(KeyFileError):
        serve(model.path.with_name("digits.onnx.sealed"), identities=(str(key_folder / "rsa2.pem"),))


def test_what_was_sealed_is_nowhere_on_disk(
    model: Artifact, key_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"file://{tmp_path}/store"
    push(sealed(model, key_folder), f"{store}/digits:1", PushOptions())
    secret = model.path.read_bytes()
    for left in (model.path, manifest_path(model.path), tmp_path / "root.onnx"):
        left.unlink()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    flags = ("--identity", str(key_folder / "rsa.pem"))
    with servers.running([f"{store}/digits:1"], *flags, folder=temporary) as server:
        assert server.ask("/predict", [[1, 2, 3, 4]]).status == 200
        assert list(temporary.iterdir()) == []
        opened = [str(one.readlink()) for one in Path(f"/proc/{server.process.pid}/fd").iterdir() if one.is_symlink()]
        assert not [one for one in opened if one.startswith(str(tmp_path)) or "memfd" in one]
        assert server.stop() == (0, "")
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or secret[100:160] not in file.read_bytes()


def test_an_artifact_whose_bytes_changed_is_refused(model: Artifact) -> None:
    model.path.write_bytes(model.path.read_bytes() + b"\0")
    with pytest.raises(IntegrityError):
        serve(model.path)


def test_with_a_required_signature_only_the_signed_are_served(
    model: Artifact, key_folder: Path, tmp_path: Path
) -> None:
    key, other = str(key_folder / "ed.pub.pem"), str(key_folder / "ed2.pub.pem")
    with pytest.raises(IntegrityError, match="not signed"):
        serve(model.path, require_signature=key)
    with pytest.raises(IntegrityError, match="no manifest"):
        serve(tmp_path / "root.onnx", require_signature=key)
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    assert serve(model.path, require_signature=key).digest == model.digest
    with pytest.raises(IntegrityError, match="not signed by"):
        serve(model.path, require_signature=other)
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in tmp_path.glob("digits.onnx*"):
        shutil.copy(file, changed)
    text = manifest_path(changed / "digits.onnx").read_text()
    manifest_path(changed / "digits.onnx").write_text(text.replace('"name": "digits"', '"name": "digit5"'))
    with pytest.raises(IntegrityError):
        serve(changed / "digits.onnx", require_signature=key)


def test_a_signature_is_found_in_a_store_and_under_a_seal(model: Artifact, key_folder: Path, tmp_path: Path) -> None:
    key, other = str(key_folder / "ed.pub.pem"), str(key_folder / "ed2.pub.pem")
    store = f"sqlite:///{tmp_path}/models.db"
    plain = sealed(model, key_folder, "unsigned.sealed")
    push(plain, f"{store}/unsigned:1", PushOptions())
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    push(model, f"{store}/signed:1", PushOptions())
    both = sealed(model, key_folder)
    push(both, f"{store}/both:1", PushOptions())
    opening = rsa(key_folder)
    for good in (f"{store}/signed:1", f"{store}/both:1", both.path):
        assert serve(good, require_signature=key, **opening).digest == model.digest
        with pytest.raises(IntegrityError):
            serve(good, require_signature=other, **opening)
    for bad in (f"{store}/unsigned:1", plain.path):
        with pytest.raises(IntegrityError, match="not signed"):
            serve(bad, require_signature=key, **opening)
    sign(plain, SignOptions(key=str(key_folder / "ed.pem")))
    assert serve(plain.path, require_signature=key, **opening).digest == model.digest


def test_what_can_not_be_served_is_told_in_one_line(tmp_path: Path, model: Artifact) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(model.path.read_bytes()[:50])
    (tmp_path / "model.pt").write_bytes(b"weights")
    (tmp_path / "junk.sealed").write_bytes(b"junk" * 100)
    for name in ("none.onnx", "empty.onnx", "cut.onnx", "model.pt", "junk.sealed", "a.gguf"):
        with pytest.raises(ModelctlError) as error:
            serve(tmp_path / name, **{"passphrase": "env:NONE"} if name == "junk.sealed" else {})
        assert name in error.value.message or "NONE" in error.value.message


def test_two_models_of_one_name_and_version_clash(model: Artifact) -> None:
    with pytest.raises(UsageError, match="two models would be served as digits version 1"):
        load_all([str(model.path)] * 2, ServeOptions())
    with pytest.raises(UsageError, match="single model"):
        load_all([str(model.path)] * 2, ServeOptions(name="x"))


def test_weights_beside_the_file_are_in_memory_too(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "big.onnx"
    loaded = onnx.load(servers.affine(tmp_path / "small.onnx", wide=512))
    onnx.save(loaded, path, save_as_external_data=True, location="big.onnx.data", size_threshold=0)
    with pytest.raises(ArtifactError, match="does not list"):
        serve(path)
    (tmp_path / "whole").mkdir()
    out = tmp_path / "whole" / "big.onnx"
    with create(out, Origin("export", StepOptions(), (Artifact.open(path),))) as draft:
        draft.path.write_bytes(path.read_bytes())
        draft.path.with_name("big.onnx.data").write_bytes((tmp_path / "big.onnx.data").read_bytes())
    found = serve(out)
    for file in tmp_path.rglob("big.onnx.data"):
        file.unlink()
    x = np.ones((2, 512), np.float32)
    expected = servers.reference(tmp_path / "small.onnx", {"x": x})["y"]
    np.testing.assert_allclose(found.runner._run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_a_signature_that_must_be_there_is_asked_for_before_anything_is_loaded(
    model: Artifact, key_folder: Path
) -> None:
    model.path.write_bytes(b"not what was signed")
    with pytest.raises(IntegrityError, match="is not signed"):
        serve(model.path, require_signature=str(key_folder / "ed.pub.pem"))


@pytest.mark.parametrize("private", [False, True])
def test_what_is_sealed_in_private_is_not_told_by_a_server(model: Artifact, key_folder: Path, private: bool) -> None:
    options = EncryptOptions(recipients=(str(key_folder / "rsa.pub.pem"),), private=private)
    closed = encrypt(model, model.path.with_name("digits.onnx.sealed"), options)
    found = serve(closed.path, **rsa(key_folder))
    assert found.digest == model.digest
    assert (found.manifest.lineage == (), found.manifest.made_by is None) == (private, private)
