"""The file by which a server knows its clients."""

import hashlib
from pathlib import Path

import pytest

from modelctl.crypto import api_keys
from modelctl.crypto.api_keys import Rights
from modelctl.errors import KeyFileError
from modelctl.options import May

HASH = "sha256:" + "ab" * 32


def test_a_key_has_256_bits_and_is_known_by_its_hash() -> None:
    keys = {api_keys.generate() for _ in range(100)}
    assert len(keys) == 100
    assert {len(one) for one in keys} == {api_keys.KEY_LETTERS}
    one = keys.pop()
    assert one.startswith("mctl_")
    assert api_keys.hash_of(one.encode()) == "sha256:" + hashlib.sha256(one.encode()).hexdigest()


@pytest.mark.parametrize("name", ["alice", "a.b@example.com", "X_1-2"])
def test_what_is_written_of_a_key_is_read_again(name: str) -> None:
    key = api_keys.generate()
    rights = Rights(models=('a"b*', "ünï\\c"), may=(May.METRICS,), rate=0.5, burst=3)
    text = api_keys.block(name, rights, key)
    assert key not in text
    (found,) = api_keys.parse(text, Path("keys.toml")).items()
    assert found[0] == name
    assert found[1].hash == api_keys.hash_of(key.encode())
    assert (found[1].models, found[1].may, found[1].rate, found[1].burst) == (rights.models, rights.may, 0.5, 3)


def test_all_that_can_be_said_is_understood() -> None:
    text = f'[keys.a]\nhash = "{HASH}"\nmodels = []\nrate = 1\nexpires = 2027-01-01T00:00:00Z\n'
    text += '[keys.b]\ncertificate = "URI:spiffe://x/y"\nmodels = ["*"]\nmay = ["load", "metrics"]\n'
    found = api_keys.parse(text, Path("keys.toml"))
    assert found["a"].expires is not None
    assert found["a"].expires.year == 2027
    assert (found["a"].at_once, found["b"].may) == (1, (May.LOAD, May.METRICS))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys = 3", "not a file of keys"),
        ("[keys", "not sound TOML"),
        ("[key.a]\nmodels = []", "has 'key'"),
        (f'[keys.a]\nhash = "{HASH}"', "keys.a: Object missing required field `models`"),
        ("[keys.a]\nmodels = []", "neither hash nor certificate"),
        (f'[keys.a]\nhash = "{HASH.upper()}"\nmodels = []', "hash is not sha256:"),
        ('[keys.a]\nhash = "mctl_x"\nmodels = []', "hash is not sha256:"),
        ('[keys.a]\ncertificate = "alice"\nmodels = []', "does not begin with CN="),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = "*"', "keys.a: Expected `array`"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\nmodel = []', "unknown field `model`"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\nmay = ["fly"]', "Invalid enum value 'fly'"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\nrate = 0', "Expected `float` > 0"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\nrate = nan', "keys.a"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\nrate = inf', "keys.a"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\nburst = 0', "Expected `int` >= 1"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\nexpires = 2027-01-01T00:00:00', "has no time zone"),
        (f'[keys."a b"]\nhash = "{HASH}"\nmodels = []', "is no name of a key"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\n[keys.b]\nhash = "{HASH}"\nmodels = []', "keys.b has the"),
        (f'[keys.a]\nhash = "{HASH}"\nmodels = []\n[keys.a]\nhash = "{HASH}"\nmodels = []', "not sound TOML"),
    ],
)
def test_what_is_not_right_is_named(text: str, said: str) -> None:
    with pytest.raises(KeyFileError) as caught:
        api_keys.parse(text, Path("keys.toml"))
    assert caught.value.message.startswith("keys.toml: ")
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_absent_a_folder_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"#" * (api_keys.FILE.limit_bytes + 1))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, said in (("no", "no such file"), (".", "is a folder"), ("large", "too large"), ("bytes", "not UTF-8")):
        with pytest.raises(KeyFileError, match=said):
            api_keys.read(tmp_path / name)
