"""`check` says no to whatever is not exactly what the manifest tells, and names it."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from artifacts import make, origin_of, root

from modelctl.artifact import Artifact, manifest_path
from modelctl.errors import IntegrityError
from modelctl.integrity import check, check_chain, roots
from modelctl.manifest import FileEntry, Manifest, Record, Step


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return make(tmp_path / "b.onnx", origin_of(root(tmp_path)), beside={"b.onnx.data": b"weights"})


def test_a_whole_artifact_passes(made: Artifact) -> None:
    check(made)
    (made.path.parent / "b.onnx.dsse.json").write_text("{}")
    (made.path.parent / "b.txt").write_text("notes")
    check(made)


def test_a_foreign_file_passes(tmp_path: Path) -> None:
    check(root(tmp_path))


def _link_folder(folder: Path) -> None:
    (folder / "b.onnx.data").rename(folder / "elsewhere")
    (folder / "b.onnx.data").symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("spoil", "trouble"),
    [
        (lambda folder: (folder / "b.onnx.data").write_bytes(b"weightz"), "not the ones that its manifest describes"),
        (lambda folder: (folder / "b.onnx.data").write_bytes(b"weights!"), "not the ones that its manifest describes"),
        (lambda folder: (folder / "b.onnx").write_bytes(b""), "not the ones that its manifest describes"),
        (lambda folder: (folder / "b.onnx.data").unlink(), "is missing"),
        (_link_folder, "is a link"),
        (lambda folder: (folder / "b.onnx.extra").write_bytes(b""), "does not list it"),
        (lambda folder: (folder / "b.onnx.d").mkdir(), "does not list it"),
        (lambda folder: (folder / "b.onnx.extra.manifest.json").write_text("{"), "does not list it"),
        (lambda folder: (folder / "b.onnx.extra").symlink_to("nothing"), "does not list it"),
    ],
)
def test_a_changed_missing_linked_or_added_file_is_named(
    made: Artifact, spoil: Callable[[Path], object], trouble: str
) -> None:
    spoil(made.path.parent)
    with pytest.raises(IntegrityError, match=trouble) as caught:
        check(made)
    assert caught.value.message.startswith(str(made.path.parent / "b.onnx"))
    assert caught.value.exit_code == 1


def test_a_pipe_in_place_of_a_file_is_not_waited_for(made: Artifact) -> None:
    (made.path.parent / "b.onnx.data").unlink()
    os.mkfifo(made.path.parent / "b.onnx.data")
    with pytest.raises(IntegrityError, match="is missing"):
        check(made)


def test_another_artifact_beside_is_none_of_ours(made: Artifact) -> None:
    make(made.path.with_name("b.onnx.sealed"), origin_of(made), beside={"b.onnx.sealed.part": b"x"})
    made.path.with_name("b.onnx.sealed.dsse.json").write_text("{}")
    check(made)
    manifest_path(made.path.with_name("b.onnx.sealed")).unlink()
    with pytest.raises(IntegrityError, match="does not list it"):
        check(made)


DIGESTS = [f"0{index}" * 32 for index in range(5)]


def record(index: int, *parents: int) -> Record:
    made_by = Step(step="s", version="1", parents=tuple(DIGESTS[one] for one in parents)) if parents else None
    return Record(name=f"r{index}", format="onnx", digest=DIGESTS[index], made_by=made_by)


def described(*lineage: Record, parents: tuple[int, ...] = ()) -> Manifest:
    entry = FileEntry(path="m.onnx", size=0, sha256=DIGESTS[4])
    step = Step(step="s", version="1", parents=tuple(DIGESTS[one] for one in parents)) if parents else None
    return Manifest(name="m", format="onnx", files=(entry,), made_by=step, lineage=lineage)


def test_a_chain_is_told_in_order_and_whole() -> None:
    check_chain(described(), "m")
    check_chain(described(record(0), record(1, 0), record(2, 0, 1), parents=(2,)), "m")
    for broken in (
        described(record(1, 0), record(0), parents=(1,)),  # a child before its parent
        described(record(0), record(2, 1), parents=(2,)),  # a parent that nobody tells of
        described(record(0), record(0), parents=(0,)),  # the same twice
        described(record(0, 0), parents=(0,)),  # its own parent
        described(record(0), parents=(1,)),  # our own parent is not told of
    ):
        with pytest.raises(IntegrityError, match="the lineage is broken"):
            check_chain(broken, "m")


def test_roots_are_where_the_lineage_begins() -> None:
    assert roots(described()) == {DIGESTS[4]: "m"}
    both = described(record(0), record(1), record(2, 0, 1), parents=(2,))
    assert roots(both) == {DIGESTS[0]: "r0", DIGESTS[1]: "r1"}


def test_a_made_artifact_has_a_sound_chain_even_if_a_step_changed_no_byte(tmp_path: Path) -> None:
    first = root(tmp_path, data=b"same")
    same = make(tmp_path / "b.onnx", origin_of(first), b"same")
    last = make(tmp_path / "c.onnx", origin_of(same), b"other")
    check(last)
    assert roots(last.manifest) == {first.digest: "a"}
    assert msgspec.structs.asdict(last.manifest)["lineage"][0].name == "a"
