"""An artifact is opened as what its manifest says, and its bytes are checked as they are read."""

import os
from pathlib import Path

import pytest
from artifacts import make, origin_of, root

from modelctl.artifact import Artifact, format_of, manifest_path, model_name
from modelctl.errors import ArtifactError, IntegrityError


def test_names_and_formats_come_from_suffixes() -> None:
    assert model_name(Path("x/digits-int8.onnx.sealed")) == "digits-int8"
    assert model_name(Path("resnet-1.2.onnx")) == "resnet-1.2"
    assert model_name(Path("plain")) == "plain"
    assert format_of(Path("a.ONNX")) == "onnx"
    with pytest.raises(ArtifactError, match="no format goes by the suffix"):
        format_of(Path("a.docx"))


@pytest.mark.parametrize("trouble", ["missing", "changed", "longer", "folder", "pipe"])
def test_loading_checks_every_byte(tmp_path: Path, trouble: str) -> None:
    made = make(tmp_path / "b.onnx", origin_of(root(tmp_path)), beside={"b.onnx.data": b"weights"})
    file = tmp_path / "b.onnx.data"
    file.unlink()
    match trouble:
        case "changed":
            file.write_bytes(b"weightz")
        case "longer":
            file.write_bytes(b"weights!")
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
    with pytest.raises((ArtifactError, IntegrityError, IsADirectoryError), match="data"):
        made.load()


def test_opening_refuses_what_is_no_artifact(tmp_path: Path) -> None:
    made = make(tmp_path / "b.onnx", origin_of(root(tmp_path)))
    sidecar = manifest_path(made.path)
    good = sidecar.read_bytes()
    for path, trouble in (
        (tmp_path / "no.onnx", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "b.onnx.manifest.json" / "x", "no such file"),
    ):
        with pytest.raises(ArtifactError, match=trouble):
            Artifact.open(path)
    sidecar.write_bytes(b"{")
    with pytest.raises(ArtifactError, match="not sound JSON"):
        Artifact.open(made.path)
    sidecar.write_bytes(good.replace(b'"path": "b.onnx"', b'"path": "c.onnx"'))
    with pytest.raises(ArtifactError, match=r"describes 'c\.onnx'"):
        Artifact.open(made.path)
    sidecar.unlink()
    for target in ("nothing", "a.onnx"):  # a manifest that can't be read is not the same as none
        sidecar.symlink_to(target)
        with pytest.raises(ArtifactError, match="not a plain file"):
            Artifact.open(made.path)
        sidecar.unlink()
    assert Artifact.open(made.path).manifest_sha256 is None


def test_a_foreign_file_is_a_root(tmp_path: Path) -> None:
    foreign = root(tmp_path, data=b"abc")
    assert foreign.manifest.made_by is None
    assert foreign.manifest_sha256 is None
    assert foreign.load().primary == b"abc"
    odd = tmp_path / os.fsdecode(b"\xff.onnx")
    odd.write_bytes(b"x")
    with pytest.raises(ArtifactError, match="a manifest can't keep"):
        Artifact.open(odd)
