"""Keys: where they come from, what they are called, whom they are closed to."""

import base64
import hashlib
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from Crypto.PublicKey import ECC, RSA

from modelctl.crypto import keys
from modelctl.errors import KeyFileError, UsageError
from modelctl.options import EncryptOptions, KeyType, OpeningOptions


def test_key_id_is_the_digest_of_the_subject_public_key_info(key_folder: Path) -> None:
    for name in ("rsa.pub.pem", "ed.pub.pem"):
        text = (key_folder / name).read_text()
        der = base64.b64decode("".join(text.splitlines()[1:-1]))
        assert keys.public_key(str(key_folder / name)).id == hashlib.sha256(der).hexdigest()
        private = name.replace(".pub", "")
        assert keys.private_key(str(key_folder / private)).id == hashlib.sha256(der).hexdigest()


def test_aes_key_id_follows_its_formula(key_folder: Path) -> None:
    line = (key_folder / "aes.key").read_text()
    assert re.fullmatch(r"modelctl-aes256:[A-Za-z0-9_-]{43}\n", line)
    secret = base64.urlsafe_b64decode(line.strip().partition(":")[2] + "=")
    assert keys.aes_key(str(key_folder / "aes.key")).id == hashlib.sha256(b"modelctl/kid" + secret).hexdigest()


def test_keys_come_from_the_environment_too(key_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", (key_folder / "rsa.pem").read_text())
    monkeypatch.setenv("THE_AES", (key_folder / "aes.key").read_text())
    assert keys.private_key("env:THE_KEY").id == keys.public_key(str(key_folder / "rsa.pub.pem")).id
    assert keys.aes_key("env:THE_AES") == keys.aes_key(str(key_folder / "aes.key"))
    with pytest.raises(KeyFileError, match="env:NO_SUCH_KEY: no such environment variable"):
        keys.aes_key("env:NO_SUCH_KEY")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
@pytest.mark.parametrize("name", ["rsa.pem", "aes.key", "word"])
def test_secret_that_others_may_read_is_refused(tmp_path: Path, key_folder: Path, name: str, mode: int) -> None:
    copy = tmp_path / name
    copy.write_bytes(b"word\n" if name == "word" else (key_folder / name).read_bytes())
    copy.chmod(mode)
    load: dict[str, Callable[[str], object]] = {
        "rsa.pem": keys.private_key,
        "aes.key": keys.aes_key,
        "word": lambda path: keys.passphrase(f"file:{path}"),
    }
    with pytest.raises(KeyFileError, match="other users may read") as caught:
        load[name](str(copy))
    assert caught.value.hint == f"chmod 600 {copy}"
    for good in (0o600, 0o400):
        copy.chmod(good)
        load[name](str(copy))


def test_public_key_may_be_read_by_all(tmp_path: Path, key_folder: Path) -> None:
    copy = tmp_path / "k.pub.pem"
    copy.write_bytes((key_folder / "ed.pub.pem").read_bytes())
    copy.chmod(0o666)
    assert keys.public_key(str(copy)).type is KeyType.ED25519


def test_secrets_stand_in_no_repr(key_folder: Path) -> None:
    line = (key_folder / "aes.key").read_text().strip().partition(":")[2]
    aes = keys.aes_key(str(key_folder / "aes.key"))
    shown = repr([aes, keys.private_key(str(key_folder / "ed.pem")), keys.private_key(str(key_folder / "rsa.pem"))])
    shown += repr(keys.Passphrase("hunter2"))
    assert "hunter2" not in shown and line not in shown and aes.secret.hex() not in shown
    assert "seed" not in shown and "d=" not in shown.replace("id=", "") and repr(aes.secret) not in shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\n!!!!\n-----END PUBLIC KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
        "modelctl-aes256:AAAA",
        "modelctl-aes256:" + "A" * 42 + "B",
        "modelctl-aes256:" + "A" * 44,
        "A" * 100_000,
    ],
)
def test_malformed_key_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "k"
    file.write_text(text)
    file.chmod(0o600)
    for load in (keys.public_key, keys.private_key, keys.aes_key):
        with pytest.raises(KeyFileError) as caught:
            load(str(file))
        assert str(file) in caught.value.message
        assert len(text) < 5 or text[-30:].strip() not in caught.value.message
        assert caught.value.__cause__ is None


def test_what_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"\xff\xfe")
    (tmp_path / "k").chmod(0o600)
    for name in ("k", "absent", "."):
        with pytest.raises(KeyFileError):
            keys.private_key(str(tmp_path / name))


def test_weak_and_foreign_kinds_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "k.pem"
    for pem in (
        RSA.generate(1024).export_key("PEM", pkcs=8).decode(),
        ECC.generate(curve="P-256").export_key(format="PEM"),
    ):
        file.write_text(pem)
        file.chmod(0o600)
        with pytest.raises(KeyFileError, match=r"1024 bits|P-256"):
            keys.private_key(str(file))


def test_private_key_for_a_public_one_is_refused_and_the_other_way(key_folder: Path) -> None:
    with pytest.raises(KeyFileError, match="a private key where the public one is wanted"):
        keys.public_key(str(key_folder / "rsa.pem"))
    copy = key_folder / "copy"
    copy.write_bytes((key_folder / "rsa.pub.pem").read_bytes())
    copy.chmod(0o600)
    with pytest.raises(KeyFileError, match="not a private key"):
        keys.private_key(str(copy))


def test_signing_keys_neither_receive_nor_open(key_folder: Path) -> None:
    with pytest.raises(KeyFileError, match="a key that signs"):
        keys.recipients(EncryptOptions(recipients=(str(key_folder / "ed.pub.pem"),)))
    with pytest.raises(KeyFileError, match="a key that signs"):
        keys.opening(OpeningOptions(identities=(str(key_folder / "ed.pem"),)))


def test_a_recipient_named_twice_counts_once(key_folder: Path) -> None:
    one = str(key_folder / "rsa.pub.pem")
    assert len(keys.recipients(EncryptOptions(recipients=(one, one)))) == 1


@pytest.mark.parametrize("kind", [KeyType.RSA, KeyType.ED25519])
def test_signature_holds_for_its_message_and_key_only(key_folder: Path, kind: KeyType) -> None:
    name = "rsa" if kind is KeyType.RSA else "ed"
    key = keys.private_key(str(key_folder / f"{name}.pem"))
    other = keys.public_key(str(key_folder / f"{name}2.pub.pem"))
    signature = key.sign(b"message")
    assert key.public.verifies(b"message", signature)
    assert not key.public.verifies(b"massage", signature)
    assert not other.verifies(b"message", signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes([signature[0] ^ 1]) + signature[1:]):
        assert not key.public.verifies(b"message", wrong)


def test_passphrase_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "word"
    file.write_text("correct horse \r\n")
    file.chmod(0o600)
    assert keys.passphrase(f"file:{file}").secret == "correct horse "
    monkeypatch.setenv("WORD", "battery")
    assert keys.passphrase("env:WORD").secret == "battery"
    file.write_text("\n")
    with pytest.raises(KeyFileError, match="is empty"):
        keys.passphrase(f"file:{file}")


def test_a_passphrase_given_in_place_of_its_source_is_not_repeated() -> None:
    for word in ("hunter2", "hunter2:secret"):
        with pytest.raises(UsageError) as caught:
            keys.passphrase(word)
        assert "secret" not in caught.value.message and word not in caught.value.message


def test_prompt_without_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(KeyFileError, match="no terminal"):
            keys.passphrase("prompt")


@pytest.mark.parametrize(("second", "expected"), [("word", "got word"), ("other", "the two are not the same")])
def test_prompt_asks_on_the_terminal_twice_and_shows_nothing(second: str, expected: str) -> None:
    program = (
        "from modelctl.crypto.keys import passphrase\n"
        "from modelctl.errors import KeyFileError\n"
        "try: print('got', passphrase('prompt', twice=True).secret)\n"
        "except KeyFileError as error: print(error)\n"
    )
    terminal, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    for prompt, answer in ((b"passphrase: ", "word"), (b"once more: ", second)):
        while prompt not in shown:
            shown += os.read(terminal, 1024)
        os.write(terminal, answer.encode() + b"\n")
    try:
        while piece := os.read(terminal, 1024):
            shown += piece
    except OSError:  # Linux says so when the other end is closed
        pass
    assert child.wait() == 0
    os.close(terminal)
    assert expected.encode() in shown
    assert shown.count(b"word") == (1 if second == "word" else 0)  # the one that the program itself printed


@pytest.mark.skipif(shutil.which("openssl") is None, reason="apt install openssl")
def test_openssl_reads_what_keygen_wrote(key_folder: Path) -> None:
    for name in ("rsa", "ed"):
        derived = subprocess.run(
            ["openssl", "pkey", "-in", key_folder / f"{name}.pem", "-pubout"], capture_output=True, check=True
        )
        assert derived.stdout == (key_folder / f"{name}.pub.pem").read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="apt install openssl")
def test_what_openssl_wrote_is_read_but_not_when_locked(tmp_path: Path) -> None:
    for algorithm, kind in (("ED25519", KeyType.ED25519), ("RSA", KeyType.RSA)):
        file = tmp_path / f"{algorithm}.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", algorithm, "-out", file], capture_output=True, check=True)
        file.chmod(0o600)
        assert keys.private_key(str(file)).public.type is kind
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", file, "-aes256", "-passout", "pass:x", "-out", locked],
        capture_output=True,
        check=True,
    )
    locked.chmod(0o600)
    with pytest.raises(KeyFileError, match="locked with a passphrase"):
        keys.private_key(str(locked))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="apt install openssl")
def test_openssl_bears_out_our_signatures(tmp_path: Path, key_folder: Path) -> None:
    (tmp_path / "message").write_bytes(b"message")
    for name, how in (
        ("ed", ["pkeyutl", "-verify", "-rawin", "-in", "message"]),
        ("rsa", ["pkeyutl", "-verify", "-rawin", "-in", "message", "-digest", "sha256"]),
    ):
        (tmp_path / "sig").write_bytes(keys.private_key(str(key_folder / f"{name}.pem")).sign(b"message"))
        pss = ["-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:32"] if name == "rsa" else []
        checked = subprocess.run(
            ["openssl", *how, "-sigfile", "sig", "-pubin", "-inkey", key_folder / f"{name}.pub.pem", *pss],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("secret", ["modelctl-aes256:" + "A" * 43, "-----BEGIN PRIVATE KEY-----\nMC4"])
def test_a_key_typed_in_place_of_its_path_is_not_repeated(secret: str) -> None:
    for read in (keys.aes_key, keys.private_key, keys.public_key):
        with pytest.raises(KeyFileError) as caught:
            read(secret)
        assert secret not in str(caught.value)
