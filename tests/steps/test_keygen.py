"""keygen: keys that only their owner can read, and that are not lost by a second call."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from modelctl.crypto import keys
from modelctl.errors import UsageError
from modelctl.options import KeygenOptions, KeyType
from modelctl.steps.keygen import keygen


@pytest.mark.parametrize("kind", [kind for kind in KeyType if kind is not KeyType.API])
def test_key_is_its_owners_alone_whatever_the_umask(tmp_path: Path, kind: KeyType) -> None:
    before = os.umask(0)
    try:
        report = keygen(tmp_path / "k.pem", KeygenOptions(type=kind, bits=2048))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    loaded = (keys.aes_key if kind is KeyType.AES else keys.private_key)(str(tmp_path / "k.pem"))
    assert report.facts["id"] == loaded.id and report.facts["type"] == kind
    names = ["k.pem"] if kind is KeyType.AES else ["k.pem", "k.pub.pem"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    if kind is not KeyType.AES:
        assert keys.public_key(str(tmp_path / "k.pub.pem")).id == loaded.id


def test_rsa_keys_have_3072_bits_unless_told_otherwise(tmp_path: Path) -> None:
    keygen(tmp_path / "k.pem", KeygenOptions(type=KeyType.RSA))
    assert keys.public_key(str(tmp_path / "k.pub.pem")).material.size_in_bits() == 3072


def test_a_key_that_stands_is_not_overwritten_but_by_force(tmp_path: Path) -> None:
    keygen(tmp_path / "k.pem", KeygenOptions())
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"k\.pem: stands already"):
        keygen(tmp_path / "k.pem", KeygenOptions())
    (tmp_path / "k.pem").unlink()
    with pytest.raises(UsageError, match=r"k\.pub\.pem: stands already"):
        keygen(tmp_path / "k.pem", KeygenOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["k.pub.pem"]
    keygen(tmp_path / "k.pem", KeygenOptions(force=True))
    assert (tmp_path / "k.pub.pem").read_bytes() not in first.values()


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "away").write_bytes(b"mine")
    (tmp_path / "k.pem").symlink_to(tmp_path / "away")
    with pytest.raises(UsageError, match="is a link"):
        keygen(tmp_path / "k.pem", KeygenOptions(force=True))
    with pytest.raises(UsageError, match="no such folder"):
        keygen(tmp_path / "no" / "k.pem", KeygenOptions())


def test_command_tells_where_and_what_but_not_the_secret(tmp_path: Path) -> None:
    for kind in KeyType:
        out = tmp_path / f"{kind}.pem"
        argv = [sys.executable, "-m", "modelctl", "keygen", "-o", str(out), "--type", kind, "--bits", "2048"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert str(out) in done.stdout and done.stderr == ""
        secrets = [line for line in out.read_text().replace(":", "\n").splitlines() if len(line) > 30]
        assert secrets and not any(secret in done.stdout for secret in secrets)
        again = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (again.returncode, again.stdout) == (2, "")
        assert again.stderr.startswith(f"modelctl: error: {out}: stands already")
