"""encrypt and decrypt: there and back, and nothing left of what failed on the way."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelctl.artifact import Artifact, manifest_path, signature_path
from modelctl.errors import IntegrityError, KeyFileError, ModelctlError, UnsupportedError, UsageError
from modelctl.options import DecryptOptions, EncryptOptions, SignOptions
from modelctl.steps.decrypt import decrypt
from modelctl.steps.encrypt import encrypt, origin
from modelctl.steps.sign import sign

Make = Callable[..., Artifact]


def for_keys(folder: Path, *names: str, **more: Any) -> EncryptOptions:
    return EncryptOptions(recipients=tuple(str(folder / f"{name}.pub.pem") for name in names), **more)


def by(folder: Path, name: str = "rsa", **more: Any) -> DecryptOptions:
    return DecryptOptions(identities=(str(folder / f"{name}.pem"),), **more)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def sealed(make_artifact: Make, tmp_path: Path, key_folder: Path) -> Artifact:
    model = make_artifact(data=b"plain" * 700_000, more={"model.onnx.data": b"weights"})
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    return encrypt(model, tmp_path / "model.onnx.sealed", for_keys(key_folder, "rsa", "rsa2"))


def test_all_files_come_back_byte_for_byte(sealed: Artifact, tmp_path: Path, out: Path, key_folder: Path) -> None:
    plain = decrypt(sealed, out, by(key_folder, "rsa2"))
    assert plain.path == out / "model.onnx"
    before = listing(tmp_path)
    names = {"model.onnx", "model.onnx.data", "model.onnx.manifest.json", "model.onnx.dsse.json"}
    assert listing(out) == {name: before[name] for name in names}


def test_sealed_manifest_tells_the_history_and_who_may_open(sealed: Artifact, tmp_path: Path) -> None:
    plain = Artifact.open(tmp_path / "model.onnx")
    assert sealed.manifest.encryption is not None
    assert sealed.manifest.encryption.manifest == plain.manifest_sha256
    assert sealed.digest == plain.digest
    assert sealed.manifest.lineage == plain.manifest.history()
    assert sealed.manifest.metrics == plain.manifest.metrics
    assert len(sealed.manifest.encryption.recipients) == 2
    assert sealed.manifest.format == "sealed" and sealed.name == plain.name == "model"


def test_private_tells_neither_history_nor_figures(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    options = for_keys(key_folder, "rsa", private=True)
    made = encrypt(make_artifact(), tmp_path / "m.sealed", options)
    text = manifest_path(made.path).read_text()
    assert "root" not in text and "accuracy" not in text and not made.manifest.lineage
    assert origin(Artifact.open(tmp_path / "model.onnx"), options).is_current(made.path)


def test_sealing_is_current_until_signature_keys_or_model_change(
    make_artifact: Make, tmp_path: Path, key_folder: Path
) -> None:
    model = make_artifact()
    out, options = tmp_path / "m.sealed", for_keys(key_folder, "rsa", "rsa2")
    encrypt(model, out, options)
    assert origin(model, options).is_current(out)
    assert origin(model, for_keys(key_folder, "rsa2", "rsa")).is_current(out)
    assert not origin(model, for_keys(key_folder, "rsa")).is_current(out)
    assert not origin(model, for_keys(key_folder, "rsa", "rsa2", key_file=str(key_folder / "aes.key"))).is_current(out)
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    assert not origin(model, options).is_current(out)
    assert not origin(make_artifact(data=b"other"), options).is_current(out)


def test_foreign_sealed_and_wrongly_named_are_refused(
    sealed: Artifact, tmp_path: Path, key_folder: Path, make_artifact: Make
) -> None:
    before = listing(tmp_path)
    foreign = tmp_path / "root.pt"
    with pytest.raises(UsageError, match="has no manifest") as caught:
        encrypt(Artifact.open(foreign), tmp_path / "f.sealed", for_keys(key_folder, "rsa"))
    assert caught.value.hint == f"modelctl export {foreign} -o model.onnx"
    with pytest.raises(UnsupportedError, match="is sealed already"):
        encrypt(sealed, tmp_path / "f.sealed", for_keys(key_folder, "rsa"))
    with pytest.raises(UsageError, match=r"encrypt writes \.sealed"):
        encrypt(Artifact.open(tmp_path / "model.onnx"), tmp_path / "f.onnx", for_keys(key_folder, "rsa"))
    with pytest.raises(UnsupportedError, match="is not sealed"):
        decrypt(Artifact.open(tmp_path / "model.onnx"), tmp_path, by(key_folder))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("what", ["model.onnx", "model.onnx.data", "model.onnx.dsse.json"])
def test_what_has_changed_since_is_not_sealed(make_artifact: Make, tmp_path: Path, key_folder: Path, what: str) -> None:
    model = make_artifact(more={"model.onnx.data": b"weights"})
    sign(model, SignOptions(key=str(key_folder / "ed.pem")))
    changed = tmp_path / what
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    before = listing(tmp_path)
    with pytest.raises(IntegrityError):
        encrypt(model, tmp_path / "m.sealed", for_keys(key_folder, "rsa"))
    assert listing(tmp_path) == before


def test_a_file_of_the_name_inside_is_taken_and_another_is_not(sealed: Artifact, out: Path, key_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"what is sealed is called model\.onnx") as caught:
        decrypt(sealed, out / "mine.onnx", by(key_folder))
    assert caught.value.hint == f"-o {out / 'model.onnx'}"
    assert listing(out) == {}
    assert decrypt(sealed, out / "model.onnx", by(key_folder)).path == out / "model.onnx"
    with pytest.raises(UsageError, match="no such folder"):
        decrypt(sealed, out / "no" / "model.onnx", by(key_folder))


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "model.onnx.manifest.json", "model.onnx.dsse.json"])
def test_what_stands_is_not_lost(sealed: Artifact, out: Path, key_folder: Path, name: str) -> None:
    (out / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match="stands already"):
        decrypt(sealed, out, by(key_folder))
    assert listing(out) == {name: b"mine"}
    decrypt(sealed, out, by(key_folder, force=True))
    assert b"mine" not in listing(out).values()
    decrypt(sealed, out, by(key_folder))  # the same again is no loss


def test_signatures_added_since_are_not_lost(sealed: Artifact, out: Path, key_folder: Path) -> None:
    plain = decrypt(sealed, out, by(key_folder))
    sign(plain, SignOptions(key=str(key_folder / "ed2.pem")))
    before = listing(out)
    with pytest.raises(UsageError, match="holds signatures that are not in the sealed file"):
        decrypt(sealed, out, by(key_folder))
    assert listing(out) == before


def test_the_input_itself_is_left_alone(sealed: Artifact, tmp_path: Path, key_folder: Path) -> None:
    disguised = tmp_path / "away" / "model.onnx.data"
    disguised.parent.mkdir()
    disguised.write_bytes(sealed.path.read_bytes())
    link = tmp_path / "linked.sealed"
    link.symlink_to(disguised)
    with pytest.raises(UsageError, match="is the input itself"):
        decrypt(Artifact.open(link), disguised.parent, by(key_folder, force=True))
    assert disguised.read_bytes() == sealed.path.read_bytes()


def test_nothing_is_written_through_a_link(sealed: Artifact, out: Path, tmp_path: Path, key_folder: Path) -> None:
    away = tmp_path / "away"
    away.write_bytes(b"mine")
    (out / "model.onnx.data").symlink_to(away)
    with pytest.raises(UsageError, match="is a link"):
        decrypt(sealed, out, by(key_folder, force=True))
    assert away.read_bytes() == b"mine" and list(out.iterdir()) == [out / "model.onnx.data"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.999999])
def test_a_changed_byte_anywhere_leaves_nothing(sealed: Artifact, out: Path, key_folder: Path, share: float) -> None:
    data = bytearray(sealed.path.read_bytes())
    data[int(share * len(data))] ^= 1
    sealed.path.write_bytes(data)
    with pytest.raises(IntegrityError):
        decrypt(sealed, out, by(key_folder))
    assert list(out.iterdir()) == []


def test_truncation_wrong_key_and_no_key_leave_nothing(sealed: Artifact, out: Path, key_folder: Path) -> None:
    with pytest.raises(UsageError, match="is sealed, for RSA key"):
        decrypt(sealed, out, DecryptOptions())
    with pytest.raises(KeyFileError, match="not sealed for a key that was given"):
        decrypt(sealed, out, DecryptOptions(key_file=str(key_folder / "aes.key")))
    whole = sealed.path.read_bytes()
    for length in (0, 10, 1000, 1 << 20, len(whole) - 1):
        sealed.path.write_bytes(whole[:length])
        with pytest.raises(IntegrityError):
            decrypt(sealed, out, by(key_folder))
    assert list(out.iterdir()) == []


def test_sealed_file_without_its_manifest_opens(sealed: Artifact, out: Path, key_folder: Path) -> None:
    manifest_path(sealed.path).unlink()
    assert decrypt(Artifact.open(sealed.path), out, by(key_folder)).path.is_file()


PROGRAM = """
import os
from modelctl.cli.main import main
from modelctl.crypto.tally import Tally
add = Tally.add
def counted(self, piece):
    add(self, piece)
    if self.size > 2 << 20:
        os.kill(os.getpid(), {number})
Tally.add = counted
main()
"""


def stopped(number: int, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    """The program, which is sent a signal when it is three segments into its work."""
    code = PROGRAM.format(number=number)
    return subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_ctrl_c_and_an_end_leave_nothing(
    sealed: Artifact, tmp_path: Path, out: Path, key_folder: Path, number: int, status: int
) -> None:
    before = listing(tmp_path)
    done = stopped(number, "decrypt", sealed.path, "-o", out, "--identity", key_folder / "rsa.pem")
    assert done.returncode == status, done.stderr
    again: list[str | Path] = [
        tmp_path / "model.onnx",
        "-o",
        tmp_path / "b.sealed",
        "--recipient",
        key_folder / "rsa.pub.pem",
    ]
    done = stopped(number, "encrypt", *again)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == before and list(out.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="Linux has files without a name")
def test_even_a_killed_process_leaves_no_plaintext(
    sealed: Artifact, tmp_path: Path, out: Path, key_folder: Path
) -> None:
    try:
        os.close(os.open(out, os.O_TMPFILE | os.O_WRONLY))
    except OSError as error:
        assert error.errno in (errno.EOPNOTSUPP, errno.EISDIR)
        pytest.skip("this file system has no files without a name")
    done = stopped(signal.SIGKILL, "decrypt", sealed.path, "-o", out, "--identity", key_folder / "rsa.pem")
    assert done.returncode == -signal.SIGKILL
    assert listing(out) == {}
    decrypt(sealed, out, by(key_folder))
    assert [path for path in out.iterdir() if path.name.startswith(".")] == []  # the empty folder is swept


def test_full_disk_leaves_nothing(sealed: Artifact, tmp_path: Path, out: Path, key_folder: Path) -> None:
    before = listing(tmp_path)
    plain, public = tmp_path / "model.onnx", key_folder / "rsa.pub.pem"
    commands: list[list[str | Path]] = [
        ["decrypt", sealed.path, "-o", out, "--identity", key_folder / "rsa.pem"],
        ["encrypt", plain, "-o", tmp_path / "b.sealed", "--recipient", public],
    ]
    for argv in commands:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "modelctl", *map(str, argv), "--json"],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20)),
        )
        assert done.returncode == 2, done.stderr
        assert json.loads(done.stdout)["error"]["kind"] == "OSError"
    assert listing(tmp_path) == before and list(out.iterdir()) == []


def test_signature_of_the_sealed_file_itself_stands_beside_it(sealed: Artifact, key_folder: Path, out: Path) -> None:
    sign(sealed, SignOptions(key=str(key_folder / "ed2.pem")))
    assert signature_path(sealed.path).is_file()
    decrypt(sealed, out, by(key_folder))
    assert signature_path(out / "model.onnx").read_bytes() != signature_path(sealed.path).read_bytes()


def test_passphrase_and_key_file_open_too(
    make_artifact: Make, tmp_path: Path, out: Path, key_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_artifact()
    monkeypatch.setenv("WORD", "correct horse")
    encrypt(model, tmp_path / "p.sealed", EncryptOptions(passphrase="env:WORD"))
    encrypt(model, tmp_path / "k.sealed", EncryptOptions(key_file=str(key_folder / "aes.key")))
    decrypt(Artifact.open(tmp_path / "p.sealed"), out, DecryptOptions(passphrase="env:WORD"))
    decrypt(Artifact.open(tmp_path / "k.sealed"), out, DecryptOptions(key_file=str(key_folder / "aes.key")))
    text = manifest_path(tmp_path / "p.sealed").read_text() + manifest_path(tmp_path / "k.sealed").read_text()
    assert "horse" not in text and "WORD" not in text and str(key_folder) not in text
    with pytest.raises(ModelctlError):
        decrypt(Artifact.open(tmp_path / "k.sealed"), out, DecryptOptions(key_file=str(key_folder / "aes2.key")))
