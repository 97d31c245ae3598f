"""keygen: keys that only their owner can read, and that are not lost by a second call."""

import os
import stat
from pathlib import Path

import pytest

from modelctl.cli.main import status_of
from modelctl.crypto import api_keys, keys
from modelctl.errors import KeyFileError, UsageError
from modelctl.options import KeygenOptions, KeyType, May
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


def test_command_tells_where_and_what_but_not_the_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KeyType:
        out = tmp_path / f"{kind}.pem"
        argv = ["keygen", "-o", str(out), "--type", kind, "--bits", "2048"]
        assert status_of(argv) == 0
        told = capsys.readouterr()
        assert str(out) in told.out and told.err == ""
        secrets = [line for line in out.read_text().replace(":", "\n").splitlines() if len(line) > 30]
        assert secrets and not any(secret in told.out for secret in secrets)
        assert status_of(argv) == 2
        again = capsys.readouterr()
        assert again.out == ""
        assert again.err.startswith(f"modelctl: error: {out}: stands already")


def test_an_api_key_is_its_owners_and_the_server_gets_its_hash(tmp_path: Path) -> None:
    report = keygen(tmp_path / "alice.key", KeygenOptions(type=KeyType.API, models=("d*",), mays=(May.LOAD,), rate=5))
    key = (tmp_path / "alice.key").read_text().strip()
    assert stat.S_IMODE((tmp_path / "alice.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys.toml").stat().st_mode) == 0o600
    text, known = api_keys.read(tmp_path / "keys.toml")
    assert key not in text
    assert key not in str(report.facts)
    assert known["alice"].hash == report.facts["id"] == api_keys.hash_of(key.encode())
    assert (known["alice"].models, known["alice"].may, known["alice"].rate) == (("d*",), (May.LOAD,), 5.0)


def test_an_api_key_is_added_to_what_stands_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    place = tmp_path / "etc" / "server.toml"
    place.write_text("# mine\n")
    place.chmod(0o640)
    for name in ("a", "b"):
        keygen(tmp_path / f"{name}.key", KeygenOptions(type=KeyType.API, keys=place, name=f"{name}@x"))
    text, known = api_keys.read(place)
    assert text.startswith("# mine\n")
    assert list(known) == ["a@x", "b@x"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    with pytest.raises(UsageError, match="knows a key of a@x already"):
        keygen(tmp_path / "c.key", KeygenOptions(type=KeyType.API, keys=place, name="a@x"))
    with pytest.raises(UsageError, match="stands already"):
        keygen(tmp_path / "a.key", KeygenOptions(type=KeyType.API, keys=place, name="c"))
    place.write_text("[broken")
    with pytest.raises(KeyFileError, match="not sound TOML"):
        keygen(tmp_path / "c.key", KeygenOptions(type=KeyType.API, keys=place))
    assert not (tmp_path / "c.key").exists()
    assert place.read_text() == "[broken"


def test_what_is_said_of_an_api_key_is_of_no_other(tmp_path: Path) -> None:
    for options in ({"rate": 1.0}, {"models": ("x",)}, {"mays": (May.LOAD,)}, {"name": "x"}):
        with pytest.raises(UsageError, match="are of an api key"):
            KeygenOptions(**options)
    with pytest.raises(KeyFileError, match="is no name of a key"):
        keygen(tmp_path / "a b.key", KeygenOptions(type=KeyType.API))
    assert list(tmp_path.iterdir()) == []
