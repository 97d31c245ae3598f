"""Weights of few bytes that claim to be large, or of a type that torch has not."""

import json
import struct
from pathlib import Path

import pytest
import torch

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError
from modelctl.formats import checkpoint


@pytest.mark.parametrize("size", [1 << 34, 1 << 40])
def test_a_small_file_does_not_become_a_huge_tensor(tmp_path: Path, size: int) -> None:
    torch.save({"w": torch.zeros(1).expand(size)}, tmp_path / "w.pt")
    with pytest.raises(ArtifactError, match="the file holds fewer"):
        checkpoint.read(Artifact.open(tmp_path / "w.pt"))


@pytest.mark.parametrize("kind", ["F8_E8M0", "F4"])
def test_types_that_torch_has_not_are_named(tmp_path: Path, kind: str) -> None:
    count = 2 if kind == "F4" else 1
    header = json.dumps({"w": {"dtype": kind, "shape": [count], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(ArtifactError, match=kind):
        checkpoint.read(Artifact.open(path))
