"""`modelctl pull`: all files of an artifact or none, whatever stands in the store or in the way."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from artifacts import exported, snapshot

from modelctl import digests, manifest
from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.integrity import check
from modelctl.stores.store import open_store

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that holds `digits:1`, an artifact of two files."""
    url = "sqlite:///models.db" if request.param == "sqlite" else f"file://{tmp_path}/models"
    exported(Path("m.onnx"), b"graph", data=b"weights")
    assert status_of(["push", "m.onnx", f"{url}/digits:1", "-q"]) == 0
    return url


def test_what_was_pushed_is_pulled_file_by_file(url: str, capsys: Capture) -> None:
    capsys.readouterr()
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 0
    out, err = capsys.readouterr()
    digest = Artifact.open(Path("m.onnx")).digest
    assert out.splitlines()[0] == f"out/m.onnx  12 bytes  sha256:{digest}" and err == ""
    names = ["m.onnx", "m.onnx.data", "m.onnx.manifest.json"]
    assert sorted(one.name for one in Path("out").iterdir()) == names
    assert all(Path("out", name).read_bytes() == Path(name).read_bytes() for name in names)
    check(Artifact.open(Path("out/m.onnx")))
    assert status_of(["pull", f"{url}/digits:1", "-o", "out", "--json"]) == 0  # the same again is no trouble
    assert json.loads(capsys.readouterr().out)["result"]["digest"] == digest


def test_a_file_that_was_damaged_on_disk_is_mended_by_pulling_again(url: str) -> None:
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 0
    Path("out/m.onnx.data").write_bytes(b"damaged")
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 0
    check(Artifact.open(Path("out/m.onnx")))


@pytest.mark.parametrize("ref", ["digits:2", "faces:1"])
def test_a_missing_ref_is_exit_2_and_names_what_there_is(url: str, ref: str, tmp_path: Path, capsys: Capture) -> None:
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert status_of(["pull", f"{url}/{ref}", "-o", "out"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "there are: " + ("1" if ref == "digits:2" else "digits:1") in err
    assert snapshot(tmp_path) == before


def damage(url: str, key: str, data: bytes | None) -> None:
    """Change, or take away, an object behind the store's back."""
    if url.startswith("file://"):
        place = Path(url.removeprefix("file://"), key)
        place.unlink() if data is None else place.write_bytes(data)
        return
    db = sqlite3.connect(url.removeprefix("sqlite:///"))
    which = "(SELECT id FROM objects WHERE key = ?)"
    if data is None:
        db.execute("DELETE FROM objects WHERE key = ?", (key,))
    else:
        db.execute(f"UPDATE rows SET data = ? WHERE object = {which}", (data, key))
    db.commit()
    db.close()


def key_of(data: bytes) -> str:
    digest = digests.of_bytes(data)
    return f"blobs/sha256/{digest[:2]}/{digest}"


@pytest.mark.parametrize("stored", [b"weightS", b"weight", b"weights!", b"", None])
def test_a_wrong_byte_in_the_store_is_exit_1_and_nothing_on_disk(
    url: str, stored: bytes | None, tmp_path: Path, capsys: Capture
) -> None:
    damage(url, key_of(b"weights"), stored)
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"modelctl: error: {url}/digits:1: m.onnx.data: ")
    assert len(err.splitlines()) == 1
    assert snapshot(tmp_path) == before


def test_a_wrong_byte_in_the_manifest_is_exit_1_and_nothing_on_disk(url: str, tmp_path: Path, capsys: Capture) -> None:
    text = Path("m.onnx.manifest.json").read_bytes()
    damage(url, f"manifests/sha256/{digests.of_bytes(text)}", text.replace(b'"m"', b'"n"'))
    before = snapshot(tmp_path)
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 1
    assert "its manifest: the bytes are not the ones" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def forge(url: str, entries: list[dict[str, object]]) -> str:
    plain = {"schema": manifest.SCHEMA, "name": "m", "format": "onnx", "files": entries}
    text = json.dumps(plain).encode()
    store = open_store(url)
    digest = digests.of_bytes(text)
    store.write(f"manifests/sha256/{digest}", [text])
    value = {"at": "2026-01-01T00:00:00Z", "manifest": digest, "signatures": []}
    assert store.move("forged", "1", 1, json.dumps(value).encode())
    store.close()
    return f"{url}/forged:1"


def entry(path: str, data: bytes = b"graph", **changes: object) -> dict[str, object]:
    return {"path": path, "size": len(data), "sha256": digests.of_bytes(data)} | changes


FORGED: dict[str, list[dict[str, object]]] = {
    "up": [entry("../evil.onnx")],
    "absolute": [entry("/tmp/evil.onnx")],
    "up later": [entry("m.onnx"), entry("a/../../evil")],
    "primary below": [entry("a/m.onnx")],
    "sidecar": [entry("m.onnx"), entry("m.onnx.manifest.json")],
    "signature": [entry("m.onnx"), entry("M.ONNX.dsse.json")],
    "file and folder": [entry("m.onnx"), entry("a"), entry("a/b")],
    "file and folder, other case": [entry("m.onnx"), entry("A"), entry("a/b")],
    "below the primary": [entry("m.onnx"), entry("m.onnx/b")],
    "below the sidecar": [entry("m.onnx"), entry("m.onnx.manifest.json/b")],
    "too large for any disk": [entry("m.onnx"), entry("b", size=2**62)],
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_manifest_is_refused_and_nothing_is_on_disk(
    url: str, what: str, tmp_path: Path, capsys: Capture
) -> None:
    ref = forge(url, FORGED[what])
    before = snapshot(tmp_path)
    assert status_of(["pull", ref, "-o", "out"]) == 2
    assert capsys.readouterr().err.startswith("modelctl: error: ")
    assert snapshot(tmp_path) == before


def test_files_in_folders_come_back_into_folders(url: str) -> None:
    ref = forge(url, [entry("m.onnx"), entry("assets/deep/w.bin", b"weights")])
    assert status_of(["pull", ref, "-o", "out"]) == 0
    assert Path("out/assets/deep/w.bin").read_bytes() == b"weights"
    check(Artifact.open(Path("out/m.onnx")))


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_link_in_the_way_is_not_followed(url: str, force: list[str], tmp_path: Path, capsys: Capture) -> None:
    ref = forge(url, [entry("m.onnx"), entry("assets/w.bin", b"weights")])
    Path("elsewhere").mkdir()
    Path("out").mkdir()
    Path("out/assets").symlink_to("../elsewhere")
    before = snapshot(tmp_path)
    assert status_of(["pull", ref, "-o", "out", *force]) == 2
    assert "out/assets: is not a plain folder" in capsys.readouterr().err
    Path("out/assets").unlink()
    Path("out/m.onnx").symlink_to("../elsewhere/target")
    assert status_of(["pull", ref, "-o", "out", *force]) == 2
    Path("out/m.onnx").unlink()
    Path("out/assets").symlink_to("../elsewhere")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data", "m.onnx.manifest.json"])
def test_files_of_another_artifact_are_kept_unless_forced(url: str, name: str, tmp_path: Path, capsys: Capture) -> None:
    Path("out").mkdir()
    Path("out", name).write_text("precious")
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"modelctl: error: out/{name}: stands already") and "add --force" in err
    assert snapshot(tmp_path) == before
    assert status_of(["pull", f"{url}/digits:1", "-o", "out", "--force"]) == 0
    check(Artifact.open(Path("out/m.onnx")))


def test_forcing_takes_away_what_the_older_version_left(url: str) -> None:
    Path("out").mkdir()
    exported(Path("out/m.onnx"), b"old", data=b"old weights", more=b"old rest")
    Path("out/m.onnx.dsse.json").write_text("old signature")
    assert status_of(["pull", f"{url}/digits:1", "-o", "out", "--force"]) == 0
    assert sorted(one.name for one in Path("out").iterdir()) == ["m.onnx", "m.onnx.data", "m.onnx.manifest.json"]
    check(Artifact.open(Path("out/m.onnx")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits:1", "-o", "m.onnx"], "m.onnx: is a file, not a folder"),
        (["digits:1", "-o", "none/out"], "none/out: no such folder: none"),
        (["digits:1"], "missing option"),
        (["-o", "out"], "missing argument"),
    ],
)
def test_a_place_to_write_that_is_none_is_exit_2(
    url: str, arguments: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    before = snapshot(tmp_path)
    capsys.readouterr()
    arguments = [f"{url}/{one}" if one == "digits:1" else one for one in arguments]
    assert status_of(["pull", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_a_store_that_is_not_there_is_exit_2_and_is_not_made(tmp_path: Path, capsys: Capture) -> None:
    for store in ("sqlite:///none.db", f"file://{tmp_path}/none"):
        assert status_of(["pull", f"{store}/digits:1", "-o", "out"]) == 2
        assert capsys.readouterr().err == f"modelctl: error: {store}: no such store\n"
    assert snapshot(tmp_path) == {}


def generate(*names: str) -> None:
    for name in names:
        assert status_of(["keygen", "-o", name, "--type", "ed25519", "-q"]) == 0


def test_a_signature_travels_and_is_asked_for(url: str, capsys: Capture) -> None:
    generate("author.pem", "other.pem")
    keyed = ["pull", f"{url}/digits:1", "-o", "out", "--key", "author.pub.pem"]
    assert status_of(keyed) == 1
    assert "is not signed" in capsys.readouterr().err and not Path("out").exists()
    assert status_of(["sign", "m.onnx", "--key", "author.pem"]) == 0
    assert status_of(["push", "m.onnx", f"{url}/digits:1"]) == 0
    assert status_of(keyed) == 0
    assert Path("out/m.onnx.dsse.json").read_bytes() == Path("m.onnx.dsse.json").read_bytes()
    assert status_of(["pull", f"{url}/digits:1", "-o", "out2", "--key", "other.pub.pem"]) == 1
    assert status_of(["pull", f"{url}/digits:1", "-o", "out2", "--key", "none.pem"]) == 2
    assert not Path("out2").exists()


def test_a_signature_made_here_is_not_lost_to_an_older_copy(url: str, capsys: Capture) -> None:
    generate("author.pem", "other.pem")
    for _ in range(2):
        assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 0
    assert status_of(["sign", "out/m.onnx", "--key", "author.pem"]) == 0
    mine = Path("out/m.onnx.dsse.json").read_bytes()
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 0
    assert Path("out/m.onnx.dsse.json").read_bytes() == mine
    assert status_of(["sign", "m.onnx", "--key", "other.pem"]) == 0
    assert status_of(["push", "m.onnx", f"{url}/digits:1"]) == 0
    capsys.readouterr()
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 2
    assert "out/m.onnx.dsse.json: stands already and is another signature" in capsys.readouterr().err
    assert Path("out/m.onnx.dsse.json").read_bytes() == mine
    assert status_of(["pull", f"{url}/digits:1", "-o", "out", "--force"]) == 0
    assert Path("out/m.onnx.dsse.json").read_bytes() == Path("m.onnx.dsse.json").read_bytes()


def test_a_signature_about_another_artifact_is_refused_without_any_key(url: str) -> None:
    generate("author.pem")
    exported(Path("other.onnx"), b"other")
    assert status_of(["sign", "other.onnx", "--key", "author.pem"]) == 0
    envelope = Path("other.onnx.dsse.json").read_bytes()
    store = open_store(url)
    store.write(key_of(envelope), [envelope])
    standing = store.ref("digits", "1")
    assert standing
    value = json.loads(standing[1]) | {"signatures": [digests.of_bytes(envelope)]}
    assert store.move("digits", "1", 2, json.dumps(value).encode())
    store.close()
    assert status_of(["pull", f"{url}/digits:1", "-o", "out"]) == 1
    assert not Path("out").exists()


LIMITED = """
import resource, sys
from modelctl.cli.main import status_of
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(status_of(sys.argv[2:]))
"""


def test_a_disk_that_takes_no_more_is_one_clear_line(url: str, tmp_path: Path) -> None:
    exported(Path("big.onnx"), b"x" * 300_000)
    assert status_of(["push", "big.onnx", f"{url}/big:1"]) == 0
    before = snapshot(tmp_path)
    command = [sys.executable, "-B", "-c", LIMITED, "100000", "pull", f"{url}/big:1", "-o", "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "modelctl: error: out/big.onnx: file too large\n"
    assert snapshot(tmp_path) == before


def interrupted(url: str, when: str) -> "subprocess.CompletedProcess[str]":
    script = f"""
import os, signal
from modelctl.cli.main import main
from modelctl.steps import pull
real = pull.{when}
def broken(*given):
    real(*given) if "{when}" == "_write" else None
    os.kill(os.getpid(), signal.SIGINT)
pull.{when} = broken
main()
"""
    command = [sys.executable, "-c", script, "pull", f"{url}/digits:1", "-o", "out"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("when", ["_write", "arrival.settle"])
def test_ctrl_c_leaves_nothing(url: str, when: str, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    done = interrupted(url, when)
    assert done.returncode == 130 and done.stdout == ""
    assert snapshot(tmp_path) == before
