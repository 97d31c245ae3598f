"""Weights are read from what people keep them in, and nothing but weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, IntegrityError
from modelctl.formats.checkpoint import fill, read


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def weights(folder: Path, content: Any, **options: Any) -> Artifact:
    torch.save(content, folder / "w.pt", **options)
    return Artifact.open(folder / "w.pt")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_state_dict_is_found_in_its_wrapping(tmp_path: Path, wrap: Any, prefix: str) -> None:
    state = net().state_dict()
    other = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    fill(other, weights(tmp_path, wrap({prefix + key: value for key, value in state.items()})))
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("options", [{"_use_new_zipfile_serialization": False}, {}])
def test_every_way_that_torch_saves_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    state = net().state_dict()
    found = read(weights(tmp_path, state, **options))
    assert list(found) == list(state)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    assert len(read(Artifact.open(tmp_path / "w.safetensors"))) == 7


def test_what_the_model_computes_for_itself_may_be_in_the_file_if_it_is_the_same(tmp_path: Path) -> None:
    def counting() -> torch.nn.Module:
        module = torch.nn.Linear(2, 3)
        module.register_buffer("positions", torch.arange(4), persistent=False)
        return module

    state = counting().state_dict()
    other = counting()
    fill(other, weights(tmp_path, state | {"positions": torch.arange(4)}))
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    for wrong in (torch.arange(5), torch.arange(4) + 1, torch.arange(4.0)):
        with pytest.raises(ArtifactError, match="has besides 'positions'"):
            fill(other, weights(tmp_path, state | {"positions": wrong}))


def test_infinity_is_kept_and_nan_is_not(tmp_path: Path) -> None:
    assert len(read(weights(tmp_path, {"mask": torch.tensor([float("-inf")])}))) == 1
    with pytest.raises(ArtifactError, match=r"w\.pt: 'mask' holds NaN"):
        read(weights(tmp_path, {"mask": torch.tensor([float("nan")])}))


@pytest.mark.parametrize("content", [{}, 3, [torch.zeros(1)], {"a": "text"}, {3: torch.zeros(1)}, torch.zeros(2)])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ArtifactError, match="not a state dict"):
        read(weights(tmp_path, content))


def test_the_bytes_that_are_read_are_the_ones_that_were_hashed(tmp_path: Path) -> None:
    opened = weights(tmp_path, net().state_dict())
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(IntegrityError, match="not the ones"):
        read(opened)


def damaged(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    try:
        read(Artifact.open(folder / name))
    except ArtifactError as error:
        assert error.message.startswith(str(folder / name)) or "holds NaN" in error.message


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 2500), flip=st.integers(1, 255), old=st.booleans())
def test_a_damaged_checkpoint_raises_nothing_unforeseen(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int, old: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    torch.save(net().state_dict(), folder / "f.pt", _use_new_zipfile_serialization=not old)
    data = bytearray((folder / "f.pt").read_bytes())
    data[place % len(data)] ^= flip
    damaged(folder, "f.pt", bytes(data))


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 700), flip=st.integers(1, 255))
def test_damaged_safetensors_raise_nothing_unforeseen(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    data = bytearray(save(net().state_dict()))
    data[place % len(data)] ^= flip
    damaged(tmp_path_factory.getbasetemp(), "f.safetensors", bytes(data))
