"""Checkpoints: whole or not there, of one training only, and never run as code."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from modelctl.errors import ArtifactError, UsageError
from modelctl.graph.checkpoints import Checkpoint

STATE = {"epoch": 3, "weights": {"w": torch.arange(3.0)}, "losses": [1.5, 0.5]}


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_state_comes_back_and_goes(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "kept", "mine")
    assert kept.load() is None
    assert not kept.folder.exists()
    kept.save({"epoch": 1})
    kept.save(STATE)
    found = Checkpoint(tmp_path / "kept", "mine").load()
    assert found is not None
    assert found["epoch"] == 3
    assert torch.equal(found["weights"]["w"], torch.arange(3.0))
    assert [one.name for one in kept.folder.iterdir()] == ["checkpoint.pt"]
    (kept.folder / ".checkpoint.pt.tmp-1").write_bytes(b"left by a killed process")
    kept.remove()
    assert not kept.folder.exists()
    kept.remove()


def test_a_folder_with_something_else_in_it_stays(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, "mine")
    kept.save(STATE)
    (tmp_path / "notes.txt").write_text("mine")
    kept.remove()
    assert [one.name for one in tmp_path.iterdir()] == ["notes.txt"]


def test_another_training_s_state_is_refused_or_ignored(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "theirs").save(STATE)
    with pytest.raises(UsageError, match="belongs to a training of another model") as caught:
        Checkpoint(tmp_path, "mine").load()
    assert caught.value.hint == "add --force to begin anew"
    assert Checkpoint(tmp_path, "mine", anew=True).load() is None
    assert Checkpoint(tmp_path, "theirs", anew=True).load() is not None


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "list", "hostile"])
def test_what_is_no_checkpoint_is_told_and_not_run(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Checkpoint(tmp_path, "mine")
    kept.save(STATE)
    if damage == "list":
        torch.save([1, 2], kept.file)
    else:
        data = {
            "cut": kept.file.read_bytes()[:-100],
            "empty": b"",
            "text": b"hello",
            "hostile": pickle.dumps(Hostile(), 2),
        }
        kept.file.write_bytes(data[damage])
    with pytest.raises(ArtifactError, match=r"checkpoint.pt: is not a checkpoint that can be read"):
        kept.load()
    assert not Path("ran").exists()


def test_a_place_that_can_hold_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is no folder to keep checkpoints in"):
        Checkpoint(tmp_path / "file", "mine")
    with pytest.raises(UsageError, match="no such folder"):
        Checkpoint(tmp_path / "missing" / "kept", "mine")
