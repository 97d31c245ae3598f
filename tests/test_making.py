"""An artifact appears whole or not at all, is overwritten only by itself, and knows whether it is current."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from artifacts import make, names, origin_of, root

from modelctl import manifest
from modelctl.artifact import Artifact, manifest_path
from modelctl.chains import Image
from modelctl.errors import ArtifactError, UsageError
from modelctl.making import Origin, check_out, create
from modelctl.manifest import Encryption, TensorSpec
from modelctl.options import DistillOptions


def test_made_artifact_is_described_whole(tmp_path: Path) -> None:
    model = root(tmp_path)
    out = tmp_path / "b.onnx"
    with create(out, origin_of(model, annotations=("commit=1a=2", "who=é"), seed=7)) as draft:
        draft.path.write_bytes(b"made")
        draft.inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", 64)),)
        draft.metrics = {"accuracy": 0.5}
        draft.choices = {"channel": [1, 2]}
    assert names(tmp_path) == {"a.onnx", "b.onnx", "b.onnx.manifest.json"}
    made = Artifact.open(out)
    assert (made.name, made.manifest.format, made.size_bytes) == ("b", "onnx", 4)
    assert made.manifest.annotations == {"commit": "1a=2", "who": "é"}
    assert made.manifest.metrics == {"accuracy": 0.5}
    step = made.manifest.made_by
    assert step is not None
    assert (step.step, step.parents, step.seed, step.choices) == ("quantize", (model.digest,), 7, {"channel": [1, 2]})
    assert set(step.environment) == {"python", "msgspec"}
    assert "threads" not in step.options
    assert "annotations" not in step.options
    assert [one.digest for one in made.manifest.lineage] == [model.digest]
    assert str(tmp_path) not in manifest_path(out).read_text()
    assert made.load().primary == b"made"


def test_same_origin_gives_the_same_manifest_byte_for_byte(tmp_path: Path) -> None:
    model = root(tmp_path)
    texts = []
    for _ in range(2):
        make(tmp_path / "b.onnx", origin_of(model))
        texts.append(manifest_path(tmp_path / "b.onnx").read_bytes())
    assert texts[0] == texts[1]


def test_lineage_tells_each_ancestor_once_oldest_first(tmp_path: Path) -> None:
    first = root(tmp_path)
    second = make(tmp_path / "b.onnx", origin_of(first), b"2")
    third = make(tmp_path / "c.onnx", origin_of(second), b"3")
    both = make(tmp_path / "d.onnx", origin_of(third, second), b"4")
    assert [one.name for one in both.manifest.lineage] == ["a", "b", "c"]


def test_draft_begins_with_what_the_first_parent_takes_and_gives(tmp_path: Path) -> None:
    with create(tmp_path / "b.onnx", origin_of(root(tmp_path))) as draft:
        draft.path.write_bytes(b"2")
        draft.outputs = (TensorSpec(name="y", dtype="float32", shape=(1,)),)
        draft.preprocess = (Image(input="x", height=2, width=2),)
    with create(tmp_path / "c.onnx", origin_of(Artifact.open(tmp_path / "b.onnx"))) as draft:
        draft.path.write_bytes(b"3")
        assert draft.outputs[0].name == "y"
    assert Artifact.open(tmp_path / "c.onnx").manifest.preprocess == (Image(input="x", height=2, width=2),)


def test_several_files_are_listed_primary_first_and_loaded(tmp_path: Path) -> None:
    made = make(tmp_path / "b.onnx", origin_of(root(tmp_path)), beside={"b.onnx.data": b"w", "a.bin": b"v"})
    assert [entry.path for entry in made.manifest.files] == ["b.onnx", "a.bin", "b.onnx.data"]
    assert made.load().files == {"b.onnx": b"made", "a.bin": b"v", "b.onnx.data": b"w"}
    assert made.digest != made.manifest.files[0].sha256


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_whatever_ends_the_block_nothing_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    model = root(tmp_path)
    with pytest.raises(error), create(tmp_path / "b.onnx", origin_of(model)) as draft:
        draft.path.write_bytes(b"half")
        raise error
    assert names(tmp_path) == {"a.onnx"}


def test_a_failed_run_leaves_the_older_version_as_it_was(tmp_path: Path) -> None:
    model = root(tmp_path)
    make(tmp_path / "b.onnx", origin_of(model))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="no"), create(tmp_path / "b.onnx", origin_of(model)) as draft:
        draft.path.write_bytes(b"half")
        raise ValueError("no")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_step_that_wrote_nothing_or_what_no_manifest_can_keep_leaves_nothing(tmp_path: Path) -> None:
    origin = origin_of(root(tmp_path))
    with pytest.raises(RuntimeError, match="without having written"), create(tmp_path / "b.onnx", origin):
        pass
    with pytest.raises(ValueError, match="JSON"), create(tmp_path / "b.onnx", origin) as draft:
        draft.path.write_bytes(b"x")
        draft.metrics = {"parity": float("nan")}
    with pytest.raises(ArtifactError, match="not a plain one"):
        make(tmp_path / "b.onnx", origin, beside={".left-over": b"x"})
    assert names(tmp_path) == {"a.onnx"}


@pytest.mark.parametrize(
    ("out", "trouble"),
    [
        ("b.docx", "no format goes by"),
        (".onnx", "no format goes by"),
        (".b.onnx", "no name for an artifact"),
        ("b\n.onnx", "no name for an artifact"),
        ("b:c.onnx", "no name for an artifact"),
        (" b.onnx", "no name for an artifact"),
        (os.fsdecode(b"\xff.onnx"), "no name for an artifact"),
        ("nowhere/b.onnx", "no such folder"),
        ("folder.onnx", "is a folder"),
        ("link.onnx", "is a link"),
        ("dangling.onnx", "is a link"),
        ("a.onnx", "is the input itself"),
        ("./folder.onnx/../a.onnx", "is the input itself"),
        ("hard.onnx", "is the input itself"),
        ("other.onnx", "stands already"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_an_out_that_may_not_be_written_is_refused_before_any_work(
    tmp_path: Path, out: str, trouble: str, force: bool
) -> None:
    model = root(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "other.onnx").write_bytes(b"mine")
    (tmp_path / "link.onnx").symlink_to("other.onnx")
    (tmp_path / "dangling.onnx").symlink_to("nothing")
    (tmp_path / "hard.onnx").hardlink_to(tmp_path / "a.onnx")
    before = names(tmp_path)
    worked = False
    if trouble == "stands already" and force:
        assert make(tmp_path / out, origin_of(model, force=True)).digest
        return
    with (
        pytest.raises((UsageError, ArtifactError), match=trouble),
        create(tmp_path / out, origin_of(model, force=force)),
    ):
        worked = True
    assert not worked
    assert names(tmp_path) == before
    assert (tmp_path / "other.onnx").read_bytes() == b"mine"


def test_out_may_be_no_second_file_of_the_input(tmp_path: Path) -> None:
    model = make(tmp_path / "b.onnx", origin_of(root(tmp_path)), beside={"w.safetensors": b"w"})
    with pytest.raises(UsageError, match="is the input itself"):
        check_out(tmp_path / "w.safetensors", origin_of(model, force=True))


def test_overwriting_needs_force_unless_the_same_would_be_made(tmp_path: Path) -> None:
    model = root(tmp_path)
    out = tmp_path / "b.onnx"
    make(out, origin_of(model, samples=5))
    make(out, origin_of(model, samples=5))
    with pytest.raises(UsageError, match="stands already") as caught:
        make(out, origin_of(model, samples=6))
    assert caught.value.hint == "add --force to replace it"
    make(out, origin_of(model, samples=6, force=True))


def test_overwriting_takes_away_what_the_older_version_brought_and_nothing_else(tmp_path: Path) -> None:
    model = root(tmp_path)
    out = tmp_path / "b.onnx"
    make(out, origin_of(model), beside={"b.onnx.data": b"w", "changed.bin": b"w"})
    (tmp_path / "b.onnx.dsse.json").write_text("{}")
    (tmp_path / "changed.bin").write_bytes(b"the user's own by now")
    make(out, origin_of(model))
    assert names(tmp_path) == {"a.onnx", "b.onnx", "b.onnx.manifest.json", "changed.bin"}


def test_a_second_file_replaces_no_stranger(tmp_path: Path) -> None:
    model = root(tmp_path)
    (tmp_path / "b.onnx.data").write_bytes(b"mine")
    before = names(tmp_path)
    with pytest.raises(UsageError, match=r"b\.onnx\.data: stands already, and is no file of b\.onnx"):
        make(tmp_path / "b.onnx", origin_of(model), beside={"b.onnx.data": b"w"})
    assert names(tmp_path) == before
    assert (tmp_path / "b.onnx.data").read_bytes() == b"mine"
    make(tmp_path / "b.onnx", origin_of(model, force=True), beside={"b.onnx.data": b"w"})
    assert (tmp_path / "b.onnx.data").read_bytes() == b"w"


def test_private_draft_tells_no_history(tmp_path: Path) -> None:
    model = root(tmp_path)
    seal = Encryption(suite="s", recipients=("r",), manifest="01" * 32, digest=model.digest)
    with create(tmp_path / "b.sealed", origin_of(model)) as draft:
        draft.path.write_bytes(b"secret")
        draft.metrics, draft.encryption, draft.private = {"accuracy": 1.0}, seal, True
    made = Artifact.open(tmp_path / "b.sealed")
    assert made.manifest.lineage == ()
    assert made.manifest.metrics == {}
    assert made.manifest.made_by is not None
    assert made.manifest.made_by.parents == ()
    assert made.digest == model.digest
    assert origin_of(model).is_current(tmp_path / "b.sealed")
    assert not origin_of(root(tmp_path, "other.onnx", b"other")).is_current(tmp_path / "b.sealed")


def test_is_current_asks_for_everything_but_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = root(tmp_path)
    data = tmp_path / "set.npz"
    data.write_bytes(b"one")
    out = tmp_path / "b.onnx"

    def current(**options: Any) -> bool:
        asked: dict[str, Any] = {"samples": 5, "data": str(data), "annotations": ("a=1",)} | options
        return origin_of(Artifact.open(model.path), **asked).is_current(out)

    assert not current()
    make(out, origin_of(model, samples=5, data=str(data), annotations=("a=1",)), beside={"b.onnx.data": b"w"})
    assert current()
    assert current(threads=3, force=True)
    assert not current(samples=6)
    assert not current(annotations=("a=2",))
    assert not current(data=f"{data}#limit=3")
    assert not origin_of(model, samples=5, data=str(data), annotations=("a=1",), also={"key": "k"}).is_current(out)

    data.write_bytes(b"two")
    assert not current()
    data.write_bytes(b"one")
    assert current()

    for file, content in ((out, b"touched"), (tmp_path / "b.onnx.data", b"touched"), (model.path, b"retrained")):
        before = file.read_bytes()
        file.write_bytes(content)
        assert not current()
        file.write_bytes(before)
        assert current()
    (tmp_path / "b.onnx.data").unlink()
    assert not current()


def test_what_changes_while_the_step_runs_is_remembered_as_it_was_found(tmp_path: Path) -> None:
    model = root(tmp_path)
    data = tmp_path / "set.npz"
    data.write_bytes(b"one")
    with create(tmp_path / "b.onnx", origin_of(model, data=str(data))) as draft:
        draft.path.write_bytes(b"made")
        data.write_bytes(b"two")
    assert not origin_of(model, data=str(data)).is_current(tmp_path / "b.onnx")
    data.write_bytes(b"one")
    assert origin_of(model, data=str(data)).is_current(tmp_path / "b.onnx")


def test_changed_code_of_a_factory_is_not_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = root(tmp_path)
    (tmp_path / "set.npz").write_bytes(b"one")
    (tmp_path / "net.py").write_text("import layers")
    (tmp_path / "layers.py").write_text("WIDTH = 1")
    options = DistillOptions(student="net:make", data="set.npz")
    make(tmp_path / "b.onnx", Origin("distill", options, (model,)))

    def current() -> bool:
        return Origin("distill", options, (model,)).is_current(tmp_path / "b.onnx")

    assert current()
    (tmp_path / "layers.py").write_text("WIDTH = 2")
    assert not current()
    (tmp_path / "layers.py").write_text("WIDTH = 1")
    assert current()
    (tmp_path / "net.py").unlink()
    assert not current()


def test_is_current_ignores_metrics_but_not_the_lineage(tmp_path: Path) -> None:
    model = make(tmp_path / "b.onnx", origin_of(root(tmp_path)), b"same bytes")
    out = tmp_path / "c.onnx"
    make(out, origin_of(model), b"3")
    sidecar = manifest_path(model.path)

    def current(text: bytes) -> bool:
        before = sidecar.read_bytes()
        sidecar.write_bytes(text)
        try:
            return origin_of(Artifact.open(model.path)).is_current(out)
        finally:
            sidecar.write_bytes(before)

    assert current(sidecar.read_bytes())
    measured = msgspec.structs.replace(model.manifest, metrics={"accuracy": 0.1})
    assert current(measured.text().encode())
    assert not current(sidecar.read_bytes().replace(b'"samples": 512', b'"samples": 511'))
    plain = json.loads(sidecar.read_bytes())
    plain["lineage"][0]["digest"] = plain["made_by"]["parents"][0] = "01" * 32
    assert not current(json.dumps(plain).encode())


def test_a_foreign_file_or_a_broken_manifest_is_never_current(tmp_path: Path) -> None:
    model = root(tmp_path)
    assert not origin_of(model).is_current(root(tmp_path, "b.onnx").path)
    (tmp_path / "b.onnx.manifest.json").write_text("{")
    assert not origin_of(model).is_current(tmp_path / "b.onnx")
    assert manifest.SUFFIX == ".manifest.json"


def test_also_and_tuples_are_remembered_as_json_has_them(tmp_path: Path) -> None:
    origin = origin_of(root(tmp_path), also={"keys": ("k1", "k2"), "pair": {"a": (1, 2.0)}}, op_types=("Conv",))
    make(tmp_path / "b.onnx", origin)
    assert origin.is_current(tmp_path / "b.onnx")
