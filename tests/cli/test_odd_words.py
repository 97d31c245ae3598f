"""Words that mean nothing where they stand, files that are something else: one clear line, and nothing on disk."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from artifacts import names

from modelctl.artifact import Artifact
from modelctl.cli.main import status_of

Make = Callable[..., Artifact]
PROGRAM = [sys.executable, "-m", "modelctl"]


@pytest.fixture
def place(make_artifact: Make, key_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a model, sealed with an AES key, and odd things beside it."""
    make_artifact()
    monkeypatch.chdir(tmp_path)
    Path("aes.key").write_text((key_folder / "aes.key").read_text())
    Path("aes.key").chmod(0o600)
    assert status_of(["encrypt", "model.onnx", "-o", "m.sealed", "--key-file", "aes.key", "-q"]) == 0
    Path("ed.pub.pem").write_text((key_folder / "ed.pub.pem").read_text())
    Path("folder").mkdir()
    Path("x.pt2").write_bytes(b"x")
    Path("x.npz").write_bytes(b"x")
    os.mkfifo("pipe.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (["quantize", "", "-o", "b.onnx"], "quantize: an empty word follows", None),
        (["quantize", "a.onnx", "-o", ""], "-o: an empty word follows", None),
        (["quantize", "a.onnx", "--out="], "--out: an empty word follows", None),
        (["decrypt", "m.sealed", "-o", "", "--key-file", "aes.key"], "-o: an empty word follows", None),
        (["decrypt", "-", "-o", "b"], "decrypt -: standard input is no place for this", "./- if a file is called so"),
        (["quantize", "a.onnx", "-o", "-"], "-o -: standard output is no place", "./- if a file is called so"),
        (["inspect", "-"], "inspect -: standard input is no place", "./- if a file is called so"),
        (["verify", "-"], "verify -: standard input is no place", "./- if a file is called so"),
        (["keygen", "--out=-"], "--out -: standard output is no place", "./- if a file is called so"),
        (["keygen", "-o", "."], ".: is a folder, not a file to write", None),
        (["keygen", "-o", "/"], "/: is a folder, not a file to write", None),
        (["quantize", "model.onnx", "-o", "folder"], "folder: is a folder, not a file", "-o folder/model.onnx"),
        (["quantize", "model.onnx", "-o", "a b/c.onnx"], "a b/c.onnx: no such folder: a b", "mkdir -p 'a b'"),
        (["quantize", "model.onnx", "-o", "x.npz/c.onnx"], "x.npz/c.onnx: ", None),
        (["init", "x.npz/project"], "x.npz/project: ", None),
        (["quantize", "model.onnx", "-o", "b.onnx", "--data", "pipe.onnx"], "pipe.onnx: is not a plain file", None),
        (
            ["decrypt", "m.sealed", "-o", "folder", "--identity", "ed.pub.pem"],
            "ed.pub.pem: not a private key, but a public one",
            None,
        ),
        (
            ["decrypt", "m.sealed", "-o", "folder", "--identity", "m.sealed"],
            "m.sealed: is not UTF-8 text, and so not a key file",
            "modelctl keygen -o key.pem",
        ),
        (["inspect", "pipe.onnx"], "pipe.onnx: is not a plain file", None),
        (
            ["quantize", "m.sealed", "-o", "b.onnx"],
            "m.sealed: quantize reads onnx, this is sealed",
            "modelctl decrypt m.sealed -o . --identity key.pem",
        ),
        (["prune", "x.npz", "-o", "b.onnx", "--keep", "1"], "x.npz: prune reads onnx, this is npz", None),
        (
            ["prune", "x.pt2", "-o", "b.onnx", "--keep", "1"],
            "x.pt2: prune reads onnx, this is pt2",
            "modelctl export x.pt2 -o x.onnx",
        ),
        (
            ["prune", "root.pt", "-o", "b.onnx", "--keep", "1"],
            "root.pt: prune reads onnx, this is checkpoint",
            "modelctl export net:build --weights root.pt -o model.onnx",
        ),
    ],
)
def test_an_odd_word_is_one_line_and_leaves_nothing(
    line: list[str], message: str, hint: str | None, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(place)
    assert status_of(line) == 2
    out, err = capsys.readouterr()
    error, *hints = err.splitlines()
    assert out == ""
    assert error.startswith(f"modelctl: error: {message}")
    assert hints == ([f"modelctl: hint: {hint}"] if hint else [])
    assert status_of([*line, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["hint"] == hint
    assert (err, names(place)) == ("", before)


def test_what_follows_two_dashes_is_a_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["inspect", "--", "-"]) == 2
    assert "-: no such file" in capsys.readouterr().err


def test_decrypt_writes_the_model_to_a_pipe_once_all_is_verified(place: Path) -> None:
    line = [*PROGRAM, "decrypt", "m.sealed", "-o", "-", "--key-file", "aes.key"]
    before = names(place)
    done = subprocess.run(line, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (Path("model.onnx").read_bytes(), b"")
    data = bytearray(Path("m.sealed").read_bytes())
    data[-1] ^= 1
    Path("m.sealed").write_bytes(data)
    done = subprocess.run(line, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"modelctl: error: m.sealed: ")
    assert names(place) == before


def test_decrypt_writes_no_model_where_it_makes_no_sense(
    place: Path, make_artifact: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["decrypt", "m.sealed", "-o", "-", "--key-file", "aes.key"]
    assert status_of([*line, "--json"]) == 2
    assert "nothing for --json" in json.loads(capsys.readouterr().out)["error"]["message"]
    ours, theirs = pty.openpty()
    done = subprocess.run([*PROGRAM, *line], stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 2)
    assert b"nothing for a terminal" in done.stderr
    make_artifact("two.onnx", more={"two.onnx.data": b"weights"})
    assert status_of(["encrypt", "two.onnx", "-o", "two.sealed", "--key-file", "aes.key", "-q"]) == 0
    capsys.readouterr()
    assert status_of(["decrypt", "two.sealed", "-o", "-", "--key-file", "aes.key"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "two.sealed: holds 2 files" in err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_trouble(closed: str, place: Path) -> None:
    line = f"exec '{sys.executable}' -m modelctl encrypt model.onnx -o out.sealed --key-file aes.key {closed}"
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 0
    assert status_of(["verify", "out.sealed", "-q"]) == 0
    line = f"exec '{sys.executable}' -m modelctl inspect absent.onnx {closed}"
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 2
