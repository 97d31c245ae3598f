"""Every reader of small files from outside, and what nobody means well by: refused in one line, never waited for."""

import fcntl
import os
import signal
import stat
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from modelctl.chains import spelling
from modelctl.cli.console import explain, one_line
from modelctl.crypto import api_keys, keys
from modelctl.data.pictures import PICTURE
from modelctl.errors import ModelctlError
from modelctl.manifest import TensorSpec
from modelctl.pipeline import plan
from modelctl.processing import fitting
from modelctl.serve import ensembles
from modelctl.serve.access import tls, tokens
from modelctl.steps.predict import INPUT

IDS = (TensorSpec(name="ids", dtype="int64", shape=("n", "t")),)


@dataclass(frozen=True)
class Reader:
    """What reads a file, the name that it goes by, and what is inside: bytes, text, toml or json."""

    read: Callable[[Path], object]
    name: str
    inside: str


def of_tokenizer(path: Path) -> object:
    return fitting.settled_before([spelling.Draft("text", {"do": "text"}, {"tokenizer": path})], IDS)


READERS = {
    "pipeline": Reader(plan.read, "modelctl.toml", "toml"),
    "ensemble": Reader(ensembles.read, "both.toml", "toml"),
    "api keys": Reader(api_keys.read, "keys.toml", "toml"),
    "entries in toml": Reader(lambda path: spelling.parse("preprocess", [str(path)]), "chain.toml", "toml"),
    "entries in json": Reader(lambda path: spelling.parse("postprocess", [str(path)]), "chain.json", "json"),
    "tokenizer": Reader(of_tokenizer, "tokenizer.json", "json"),
    "jwks": Reader(tokens.read, "jwks.json", "json"),
    "labels": Reader(lambda path: spelling.Draft("argmax", {}, {"labels": path}).labels(), "labels.txt", "text"),
    "public key": Reader(lambda path: keys.public_key(str(path)), "key.pub.pem", "text"),
    "private key": Reader(lambda path: keys.private_key(str(path)), "key.pem", "text"),
    "aes key": Reader(lambda path: keys.aes_key(str(path)), "aes.key", "text"),
    "passphrase": Reader(lambda path: keys.passphrase(f"file:{path}"), "word", "text"),
    "certificate": Reader(lambda path: tls.context(path, path, None), "cert.pem", "bytes"),
    "input": Reader(INPUT.text, "input.txt", "text"),
    "picture": Reader(PICTURE.data, "a.png", "bytes"),
}
PIPED = ("public key", "private key", "aes key", "passphrase")
LARGE_BYTES = 1 << 38  # none of it on the disk; more than any memory

DEEP = 50_000
HOSTILE = {
    "text": {"no UTF-8": b"\xff\xfe", "a picture": b"\x89PNG\r\n\x1a\n"},
    "toml": {
        "no UTF-8": b"\xff\xfe",
        "UTF-16": "a = 1".encode("utf-16"),
        "half a line": b"a = ",
        "a key twice": b"a = 1\na = 2\n",
        "lists in lists": b"a = " + b"[" * DEEP,
        "tables in tables": b"a = " + b"{a = " * DEEP,
        "a deep key": b"a." * DEEP + b"a = 1",
        "a deep key of quotes": b'"a\\"" . \'b\\\'.' * DEEP + b"a = 1",
        "a deep table": b"[" + b"a . " * DEEP + b"a]",
        "a deep key in a table": b'x = { y = """\n" """"", ' + b"a." * DEEP + b'"" = 1}',
    },
    "json": {
        "no UTF-8": b'{"a": "\xff"}',
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "nothing": b"",
        "half an object": b'{"a":',
        "a key twice": b'{"keys": [], "keys": [1]}',
        "a key twice inside": b'{"a": [{"b": 1, "b": 1}]}',
        "lists in lists": b"[" * DEEP,
        "sound lists in lists": b"[" * 100 + b"]" * 100,
        "objects in objects": b'{"a":' * DEEP,
        "no number": b'{"a": NaN}',
        "half a surrogate": b'{"a": "\\ud800"}',
        "quotes": b'"\\"' * DEEP,
    },
    "bytes": {},
}


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """Whoever waits for ever is killed, and the run tells of it."""
    signal.alarm(120)
    yield
    signal.alarm(0)


def refused(reader: Reader, path: Path) -> str:
    """What is said of the trouble: one line, exit 2, the file's name before it and a hint after."""
    with pytest.raises(ModelctlError) as caught:
        reader.read(path)
    message, hint, status = explain(caught.value)
    assert status == 2
    assert hint or reader.read == PICTURE.data
    assert message == caught.value.message == one_line(caught.value.message)
    where, _, trouble = message.partition(f"{path}: ")
    assert where in ("", "--passphrase file:") and trouble, message
    assert len(trouble) < 300
    return trouble


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    return READERS[request.param]


def test_what_is_not_there_is_refused(reader: Reader, tmp_path: Path) -> None:
    assert refused(reader, tmp_path / reader.name) == "no such file"
    (tmp_path / "file").write_text("")
    assert refused(reader, tmp_path / "file" / reader.name) == "no such file"


def test_a_folder_is_refused(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / reader.name).mkdir()
    assert refused(reader, tmp_path / reader.name).startswith("is a folder, not ")


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(reader: Reader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / reader.name, 0o600)
    told = refused(reader, tmp_path / reader.name)
    assert told.startswith("is not a plain file") is (reader not in [READERS[name] for name in PIPED])


def test_a_device_is_refused(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / reader.name).symlink_to("/dev/zero")
    assert refused(reader, tmp_path / reader.name).startswith("is not a plain file, and so not ")


def test_what_is_too_large_is_refused_and_not_read_whole(reader: Reader, tmp_path: Path) -> None:
    with (tmp_path / reader.name).open("wb") as file:
        file.truncate(LARGE_BYTES)
    assert " bytes, too large for " in refused(reader, tmp_path / reader.name)


@pytest.mark.parametrize(
    ("name", "trouble"), [(name, trouble) for name, one in READERS.items() for trouble in HOSTILE[one.inside]]
)
def test_what_is_inside_is_refused(name: str, trouble: str, tmp_path: Path) -> None:
    path = tmp_path / READERS[name].name
    path.write_bytes(HOSTILE[READERS[name].inside][trouble])
    path.chmod(0o600)
    refused(READERS[name], path)


@pytest.mark.parametrize("name", ["labels", "tokenizer"])
def test_a_name_that_no_file_can_have_is_no_such_file(name: str) -> None:
    with pytest.raises(ModelctlError, match="no such file"):
        READERS[name].read(Path("a\0b"))


def test_a_secret_may_come_through_a_pipe_whose_other_end_takes_its_time(tmp_path: Path, key_folder: Path) -> None:
    key = (key_folder / "aes.key").read_text()
    wanted: dict[str, Callable[[Path], str]] = {
        "wörd": lambda path: keys.passphrase(f"file:{path}").secret,
        key: lambda path: keys.aes_key(str(path)).line(),
    }
    for text, read in wanted.items():
        pipe = tmp_path / f"pipe{len(text)}"
        os.mkfifo(pipe, 0o600)
        handle = os.open(pipe, os.O_RDWR)  # as a shell holds it
        assert stat.S_ISFIFO(os.fstat(handle).st_mode)
        writer = Thread(target=_write_late, args=(pipe, text, handle))
        writer.start()
        assert read(pipe) == text
        writer.join()


def _write_late(pipe: Path, text: str, held: int) -> None:
    with pipe.open("wb", buffering=0) as file:
        for byte in text.encode():
            file.write(bytes([byte]))
        end = time.monotonic() + 30
        while any(fcntl.ioctl(held, termios.FIONREAD, bytes(4))) and time.monotonic() < end:
            time.sleep(0.001)  # who reads may not have come yet
    os.close(held)


def test_text_that_only_looks_deep_is_read(tmp_path: Path) -> None:
    path = tmp_path / "modelctl.toml"
    names = ", ".join(f'"model.layers.{place}.attention.0.5"' for place in range(200))
    path.write_text(
        f"# {'.' * 300}\n"
        f'[[step]]\nrun = "quantize"\nexclude = [{names}]\n'
        f"shares = [{', '.join(['0.25'] * 300)}]\nnote = 'one. two. three.{' a. b.' * 10}'\n"
    )
    (step,) = plan.read(path).step
    assert len(step["exclude"]) == 200 and len(step["shares"]) == 300


def test_a_mark_of_byte_order_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "chain.json").write_text('[{"do": "softmax"}]', encoding="utf-8-sig")
    (tmp_path / "chain.toml").write_text('[[postprocess]]\ndo = "softmax"\n', encoding="utf-8-sig")
    for name in ("chain.json", "chain.toml"):
        (draft,) = spelling.parse("postprocess", [str(tmp_path / name)])
        assert draft.fields == {"do": "softmax"}


@pytest.mark.parametrize("line", ["mean = 3", "std = true", "mean = 'x'", "height = []", "labels = 3"])
@pytest.mark.parametrize("do", ['"image"', "['image']", "1"])
def test_an_entry_of_odd_types_is_one_line(do: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "chain.toml"
    path.write_text(f"[[preprocess]]\ndo = {do}\n{line}\n")
    with pytest.raises(ModelctlError, match=r"chain\.toml"):
        spelling.parse("preprocess", [str(path)])
