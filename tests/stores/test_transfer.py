"""Artifacts into a store and out of it: order, what a killed push leaves, two pushers of one tag, hostile stores."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from modelctl import digests
from modelctl.artifact import Artifact, manifest_path, signature_path
from modelctl.errors import ArtifactError, CheckFailed, IntegrityError, ModelctlError, StoreError
from modelctl.stores import transfer
from modelctl.stores.blobs import Cut
from modelctl.stores.ref import Ref
from modelctl.stores.store import Store
from modelctl.stores.transfer import Sent, Standing, fetch, find

MakeArtifact = Callable[..., Artifact]
SMALL = Cut(whole_bytes=64 << 10, chunk_bytes=16 << 10)


def sidecars(model: Artifact) -> tuple[bytes, bytes | None]:
    signature = signature_path(model.path)
    return manifest_path(model.path).read_bytes(), signature.read_bytes() if signature.exists() else None


def send(store: Store, ref: Ref, model: Artifact, force: bool = False, cut: Cut = SMALL) -> Sent:
    return transfer.send(store, ref, model, sidecars(model), force=force, cut=cut)


@pytest.fixture
def ref(url: str) -> Ref:
    return Ref(url, "digits", "1")


def test_what_is_sent_is_fetched(store: Store, ref: Ref, make_artifact: MakeArtifact) -> None:
    model = make_artifact({"digits.onnx": b"g" * 1000, "digits.onnx.data": os.urandom(100_000)})
    signature_path(model.path).write_bytes(b"signed")
    sent = send(store, ref, model)
    assert sent.moved and sent.sent_bytes == sent.total_bytes > 101_000
    payload = fetch(ref)
    assert payload.files == model.load().files and payload.manifest == model.manifest
    assert payload.signature == b"signed"
    found = find(store, ref)
    assert found.text == manifest_path(model.path).read_bytes()
    assert found.manifest_sha256 == model.manifest_sha256


def test_the_same_again_sends_and_moves_nothing(store: Store, ref: Ref, make_artifact: MakeArtifact) -> None:
    model = make_artifact()
    send(store, ref, model)
    again = send(store, ref, model)
    assert (again.sent_bytes, again.moved) == (0, False)
    assert len(store.log("digits", "1")) == 1


def test_a_signature_can_be_added_and_is_not_lost(store: Store, ref: Ref, make_artifact: MakeArtifact) -> None:
    model = make_artifact()
    send(store, ref, model)
    signature_path(model.path).write_bytes(b"signed")
    assert send(store, ref, model).moved
    signature_path(model.path).unlink()
    assert not send(store, ref, model).moved
    assert fetch(ref).signature == b"signed"


def test_a_tag_is_not_moved_unless_forced_and_remembers(store: Store, ref: Ref, make_artifact: MakeArtifact) -> None:
    first, second = make_artifact(), make_artifact({"digits.onnx": b"other"}, folder="other")
    send(store, ref, first)
    with pytest.raises(CheckFailed, match="stands on another artifact since 20") as caught:
        send(store, ref, second)
    assert caught.value.exit_code == 1 and "--force" in str(caught.value.hint)
    assert fetch(ref).files == first.load().files
    assert send(store, ref, second, force=True).moved
    assert fetch(ref).files == second.load().files
    log = [transfer.standing(value, "log") for value in store.log("digits", "1")]
    assert [one.manifest for one in log] == [first.manifest_sha256, second.manifest_sha256]


def test_wrong_bytes_on_disk_move_no_ref(store: Store, ref: Ref, make_artifact: MakeArtifact) -> None:
    model = make_artifact()
    data = bytearray(model.path.read_bytes())
    data[0] ^= 1
    model.path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"digits\.onnx"):
        send(store, ref, model)
    assert store.ref("digits", "1") is None and store.refs() == []
    model.path.unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        send(store, ref, model)


def test_what_is_missing_is_answered_with_what_there_is(store: Store, ref: Ref, make_artifact: MakeArtifact) -> None:
    with pytest.raises(StoreError, match="the store is empty"):
        find(store, ref)
    send(store, ref, make_artifact())
    send(store, Ref(ref.store, "digits", "1.1"), make_artifact())
    with pytest.raises(StoreError, match=r"no such tag; there are: 1, 1\.1") as caught:
        find(store, Ref(ref.store, "digits", "2"))
    assert caught.value.hint == f"{ref.store}/digits:1.1"
    with pytest.raises(StoreError, match=r"no such name; there are: digits:1, digits:1\.1"):
        find(store, Ref(ref.store, "faces", "1"))


KILLED = """
import os, signal, sys
from pathlib import Path
from modelctl.artifact import Artifact, manifest_path
from modelctl.stores import transfer
from modelctl.stores.blobs import Cut
from modelctl.stores.ref import Ref
from modelctl.stores.store import open_store

url, path, calls, within = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "within"
store = open_store(url, create=True)
real = {"write": store.write, "move": store.move}

def counted(name):
    def call(*given):
        global calls
        calls -= 1
        if calls == 0 and within and name == "write":
            def dying(pieces):
                yield next(iter(pieces))
                os.kill(os.getpid(), signal.SIGKILL)
            given = (given[0], dying(given[1]))
        elif calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real[name](*given)
    return call

store.write, store.move = counted("write"), counted("move")
model = Artifact.open(path)
transfer.send(store, Ref(url, "digits", "1"), model, (manifest_path(path).read_bytes(), None),
              cut=Cut(64 << 10, 16 << 10))
store.close()
print("done")
"""


@pytest.mark.parametrize(
    ("calls", "when"),
    [(1, "within"), (4, "before"), (4, "within"), (10, "within"), (11, "before"), (11, "within"), (12, "before")],
)
def test_a_push_that_was_killed_is_taken_up_where_it_was(
    store: Store, ref: Ref, make_artifact: MakeArtifact, calls: int, when: str
) -> None:
    model = make_artifact({"digits.onnx": os.urandom(1000), "digits.onnx.data": os.urandom(120_000)})
    command = [sys.executable, "-c", KILLED, ref.store, str(model.path), str(calls), when]
    killed = subprocess.run(command, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert store.ref("digits", "1") is None  # calls: graph, 8 chunks, their list, manifest, ref
    written = [1000, *[16 << 10] * 7, 120_000 - (7 << 14), 0, len(manifest_path(model.path).read_bytes()), 0]
    again = send(store, ref, model)
    assert again.sent_bytes == again.total_bytes - sum(written[: calls - 1])
    assert fetch(ref).files == model.load().files


PUSHER = """
import sys
from pathlib import Path
from modelctl.artifact import Artifact, manifest_path
from modelctl.errors import CheckFailed
from modelctl.stores import transfer
from modelctl.stores.ref import Ref
from modelctl.stores.store import open_store

url, force = sys.argv[1], sys.argv[2] == "force"
models = [Artifact.open(Path(path)) for path in sys.argv[3:]]
store = open_store(url, create=True)
print("ready", flush=True)
sys.stdin.readline()
for number, model in enumerate(models):
    try:
        ref, text = Ref(url, "digits", str(number)), manifest_path(model.path).read_bytes()
        sent = transfer.send(store, ref, model, (text, None), force=force)
        print("won" if sent.moved else "same")
    except CheckFailed:
        print("lost")
store.close()
"""


@pytest.mark.parametrize("force", ["force", "no"])
def test_of_two_pushers_of_one_tag_one_wins_and_the_other_is_told(
    store: Store, url: str, make_artifact: MakeArtifact, force: str
) -> None:
    rounds, pushers = 12, 2
    made = [
        [make_artifact({"digits.onnx": f"{who} {turn}".encode()}, f"{who}-{turn}") for turn in range(rounds)]
        for who in range(pushers)
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PUSHER, url, force, *(str(model.path) for model in models)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for models in made
    ]
    for one in running:
        assert one.stdout and one.stdout.readline() == "ready\n"
    for one in running:
        assert one.stdin
        one.stdin.write("go\n")
        one.stdin.flush()
    told = [one.communicate(timeout=60)[0].split() for one in running]
    for turn in range(rounds):
        outcome = sorted(words[turn] for words in told)
        assert outcome == (["won", "won"] if force == "force" else ["lost", "won"])
        log = [transfer.standing(value, "log") for value in store.log("digits", str(turn))]
        assert len(log) == outcome.count("won")
        payload = fetch(Ref(url, "digits", str(turn)))
        if force == "no":
            (winner,) = (who for who in range(pushers) if told[who][turn] == "won")
            assert payload.primary == f"{winner} {turn}".encode()


class Watched:
    """A store that looks, at every change, whether all that its refs stand for is there."""

    def __init__(self, store: Store) -> None:
        self.store, self.order = store, list[str]()

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def write(self, key: str, pieces: Iterable[bytes]) -> None:
        self.order.append(key.partition("/")[0])
        self.store.write(key, pieces)

    def move(self, name: str, tag: str, number: int, value: bytes) -> bool:
        self.order.append("ref")
        return self.store.move(name, tag, number, value)


def test_blobs_go_first_then_the_manifest_then_the_ref(store: Store, ref: Ref, make_artifact: MakeArtifact) -> None:
    watched = Watched(store)
    model = make_artifact({"digits.onnx": b"x", "digits.onnx.data": os.urandom(70_000)})
    signature_path(model.path).write_bytes(b"signed")
    send(watched, ref, model)  # type: ignore[arg-type]
    assert watched.order == ["blobs"] * 6 + ["chunks", "blobs", "manifests", "ref"]


def forge(store: Store, ref: Ref, text: bytes, **more: object) -> None:
    digest = digests.of_bytes(text)
    store.write(f"manifests/sha256/{digest}", [text])
    value = json.dumps({"at": "2026-01-01T00:00:00Z", "manifest": digest, "signatures": [], **more})
    standing = store.ref(ref.name, ref.tag)
    assert store.move(ref.name, ref.tag, (standing[0] if standing else 0) + 1, value.encode())


def described(**changes: object) -> bytes:
    entry = {"path": "m.onnx", "size": 1, "sha256": digests.of_bytes(b"x")}
    plain = {"schema": "modelctl/manifest/v1", "name": "m", "format": "onnx", "files": [entry | changes]}
    return json.dumps(plain).encode()


@pytest.mark.parametrize(
    "path",
    ["../m.onnx", "/etc/m.onnx", "a/../../m.onnx", "..", "a\\b", "m\n.onnx", ".hidden", "C:m", "", "a//b", "m\0"],
)
def test_a_forged_path_is_refused(store: Store, ref: Ref, path: str) -> None:
    forge(store, ref, described(path=path))
    with pytest.raises(ArtifactError):
        find(store, ref)


@pytest.mark.parametrize("size", [-1, 2**70, 1.5, "1", None])
def test_a_forged_size_is_refused(store: Store, ref: Ref, size: object) -> None:
    forge(store, ref, described(size=size))
    with pytest.raises(ModelctlError):
        find(store, ref).load()


def test_a_huge_size_costs_nothing(store: Store, ref: Ref) -> None:
    forge(store, ref, described(size=2**60))
    store.write(f"blobs/sha256/{digests.of_bytes(b'x')[:2]}/{digests.of_bytes(b'x')}", [b"x"])
    with pytest.raises(IntegrityError):
        find(store, ref).load()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"[]",
        b'{"manifest": "../../x", "signatures": [], "at": ""}',
        b'{"manifest": "' + b"0" * 64 + b'", "signatures": ["x"], "at": ""}',
        b'{"manifest": "' + b"0" * 64 + b'", "at": "", "at": ""}',
        b'{"manifest": "' + b"0" * 64 + b'", "at": "", "more": 1}',
        b"[" * 10000,
        b"\xff",
    ],
)
def test_a_malformed_ref_is_one_clear_line(store: Store, ref: Ref, value: bytes) -> None:
    store.move(ref.name, ref.tag, 1, value)
    with pytest.raises(StoreError, match="the ref is malformed"):
        find(store, ref)


def test_a_manifest_with_other_bytes_than_the_ref_names_is_refused(
    store: Store, ref: Ref, make_artifact: MakeArtifact
) -> None:
    digest = digests.of_bytes(b"promised")
    store.write(f"manifests/sha256/{digest}", [described()])
    store.move(ref.name, ref.tag, 1, Standing(at="", manifest=digest).text())
    with pytest.raises(IntegrityError, match="its manifest: the bytes are not the ones"):
        find(store, ref)
    store.move(ref.name, ref.tag, 2, Standing(at="", manifest="0" * 64).text())
    with pytest.raises(IntegrityError, match="its manifest is not in the store"):
        find(store, ref)


def test_a_broken_lineage_is_refused(store: Store, ref: Ref) -> None:
    plain = json.loads(described())
    plain["made_by"] = {"step": "prune", "version": "1", "parents": ["0" * 64]}
    forge(store, ref, json.dumps(plain).encode())
    with pytest.raises(IntegrityError, match="lineage is broken"):
        find(store, ref)


def test_fetching_leaves_nothing_on_disk(
    store: Store, ref: Ref, make_artifact: MakeArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store, ref, make_artifact())
    store.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    fetch(ref)
    assert sorted(tmp_path.rglob("*")) == before
