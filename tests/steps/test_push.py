"""`modelctl push`: what it prints, what it refuses, and that a refused push changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from artifacts import exported, snapshot

from modelctl.artifact import signature_path
from modelctl.cli.main import status_of
from modelctl.stores.ref import Ref
from modelctl.stores.transfer import fetch

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_push_tells_what_it_did(scheme: str, tmp_path: Path, capsys: Capture) -> None:
    model = exported(Path("m.onnx"), b"graph", data=b"weights")
    store = "sqlite:///models.db" if scheme == "sqlite" else f"file://{tmp_path}/models"
    assert status_of(["push", "m.onnx", f"{store}/digits:1"]) == 0
    out, err = capsys.readouterr()
    total = 12 + (tmp_path / "m.onnx.manifest.json").stat().st_size
    assert out == f"{store}/digits:1  pushed, {total} of {total} bytes sent  sha256:{model.digest}\n" and err == ""
    assert status_of(["push", "m.onnx", f"{store}/digits:1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "command": "push",
        "ok": True,
        "result": {
            "ref": f"{store}/digits:1",
            "name": "digits",
            "tag": "1",
            "store": store,
            "digest": model.digest,
            "manifest": model.manifest_sha256,
            "moved": False,
            "sent_bytes": 0,
            "total_bytes": total,
        },
    }
    assert fetch(Ref.parse(f"{store}/digits:1")).primary == b"graph"


def test_without_a_store_the_users_own_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "share"))
    exported(Path("m.onnx"))
    assert status_of(["push", "m.onnx", "digits:1"]) == 0
    assert (tmp_path / "home" / "share" / "modelctl" / "models.db").is_file()
    monkeypatch.setenv("MODELCTL_STORE", "sqlite:///mine.db")
    assert status_of(["push", "m.onnx", "digits:1"]) == 0
    assert (tmp_path / "mine.db").is_file()


def test_a_tag_on_another_artifact_is_exit_1_until_forced(capsys: Capture) -> None:
    exported(Path("a.onnx"), b"a")
    exported(Path("b.onnx"), b"b")
    assert status_of(["push", "a.onnx", "sqlite:///m.db/digits:1"]) == 0
    capsys.readouterr()
    assert status_of(["push", "b.onnx", "sqlite:///m.db/digits:1"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("modelctl: error: sqlite:///m.db/digits:1: stands on another artifact")
    assert "modelctl: hint: push to another tag, or add --force to move this one\n" in err
    assert fetch(Ref.parse("sqlite:///m.db/digits:1")).primary == b"a"
    assert status_of(["push", "b.onnx", "sqlite:///m.db/digits:1", "--force"]) == 0
    assert fetch(Ref.parse("sqlite:///m.db/digits:1")).primary == b"b"


def foreign() -> None:
    Path("m.onnx.manifest.json").unlink()


def tampered() -> None:
    Path("m.onnx").write_bytes(b"grapH")


def shortened() -> None:
    Path("m.onnx").write_bytes(b"")


def missing() -> None:
    Path("m.onnx").unlink()


def wrongly_signed() -> None:
    signature_path(Path("m.onnx")).write_text("{}")


@pytest.mark.parametrize(
    ("trouble", "status", "message"),
    [
        (foreign, 2, "m.onnx: has no manifest"),
        (tampered, 1, "m.onnx: the bytes are not the ones that its manifest describes"),
        (shortened, 1, "m.onnx: the bytes are not the ones that its manifest describes"),
        (missing, 2, "m.onnx: no such file"),
        (wrongly_signed, 1, "m.onnx: signature"),
    ],
)
def test_what_is_no_sound_artifact_is_not_pushed(
    trouble: object, status: int, message: str, tmp_path: Path, capsys: Capture
) -> None:
    exported(Path("m.onnx"))
    assert callable(trouble)
    trouble()
    before = snapshot(tmp_path)
    assert status_of(["push", "m.onnx", f"file://{tmp_path}/store/digits:1"]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[0].startswith(f"modelctl: error: {message}")
    assert snapshot(tmp_path) == before
    assert status_of(["push", "m.onnx", f"file://{tmp_path}/store/digits:1", "--json"]) == status
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"] and document["error"]["message"].startswith(message)


def test_a_foreign_file_is_told_how_to_be_adopted(capsys: Capture, tmp_path: Path) -> None:
    Path("m.onnx").write_bytes(b"graph")
    before = snapshot(tmp_path)
    assert status_of(["push", "m.onnx", "sqlite:///m.db/digits:1"]) == 2
    assert "modelctl: hint: modelctl export m.onnx -o " in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("sqlite:///m.onnx/digits:1", "m.onnx: not a store"),
        ("sqlite:///none/m.db/digits:1", "none/m.db: no such folder: none"),
        ("sqlite://m.db/digits:1", "sqlite://m.db: not sqlite:///FILE"),
        ("sqlite:///m.db/Digits:1", "sqlite:///m.db/Digits:1: 'Digits' can't be a name"),
        ("digits", "digits: not a ref"),
        ("s4://bucket/digits:1", "s4://bucket: no store goes by the scheme 's4'"),
        ("m.db/digits:1", "m.db/digits:1: m.db is not the URL of a store"),
    ],
)
def test_a_place_that_is_none_is_one_clear_line(to: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    exported(Path("m.onnx"))
    before = snapshot(tmp_path)
    assert status_of(["push", "m.onnx", to]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"modelctl: error: {message}") and len(err.splitlines()) <= 2
    assert snapshot(tmp_path) == before


def test_ctrl_c_moves_no_ref_and_leaves_a_sound_store(tmp_path: Path) -> None:
    exported(Path("m.onnx"), os.urandom(1000), data=os.urandom(1000))
    script = """
import os, signal
from modelctl.cli.main import main
from modelctl.stores import blobs
real = blobs.put
def put(store, content, source, tell, cut):
    if content.name.endswith("data"):
        tell = lambda count: os.kill(os.getpid(), signal.SIGINT)
    return real(store, content, source, tell, cut)
blobs.put = put
main()
"""
    for store in ("sqlite:///m.db", f"file://{tmp_path}/store"):
        command = [sys.executable, "-c", script, "push", "m.onnx", f"{store}/digits:1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 130 and done.stdout == "" and "interrupted" in done.stderr
        assert status_of(["pull", f"{store}/digits:1", "-o", "out"]) == 2
        assert not list(tmp_path.glob("store/tmp/*")) and not Path("out").exists()
        assert status_of(["push", "m.onnx", f"{store}/digits:1"]) == 0


def test_push_starts_without_a_tensor_library() -> None:
    code = """
import sys
import modelctl.steps.push, modelctl.steps.pull, modelctl.stores.sqlite, modelctl.stores.folder
print(sorted({"torch", "onnx", "onnxruntime", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_an_empty_folder_becomes_a_store(tmp_path: Path, capsys: Capture) -> None:
    exported(Path("m.onnx"))
    Path("empty").mkdir()
    assert status_of(["push", "m.onnx", f"file://{tmp_path}/empty/digits:1"]) == 0
    assert fetch(Ref.parse(f"file://{tmp_path}/empty/digits:1")).primary == b"graph"
