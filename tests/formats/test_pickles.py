"""A pickle is looked through without being run."""

import collections
import io
import os
import pickle
import zipfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.errors import ArtifactError
from modelctl.formats.pickles import refuse_code


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


STATE = {
    "weight": torch.zeros(3, 2),
    "half": torch.zeros(2, dtype=torch.bfloat16),
    "parameter": torch.nn.Parameter(torch.zeros(2)),
    "count": torch.tensor(3),
    "nested": collections.OrderedDict(a=torch.zeros(1, dtype=torch.int8)),
    "epoch": 3,
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_state_dict_passes(zipped: bool, protocol: int) -> None:
    data = saved(STATE, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    refuse_code(data, "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_function_that_would_be_called_is_named(zipped: bool, protocol: int) -> None:
    data = saved(STATE | {"bomb": Runs()}, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(ArtifactError, match=r"a\.pt: a pickle that would run code: it names posix\.getcwd"):
        refuse_code(data, "a.pt")


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_looked_through(protocol: int) -> None:
    with pytest.raises(ArtifactError, match="would run code"):
        refuse_code(pickle.dumps(Runs(), protocol), "a.pt")


def test_a_whole_module_is_told_how_to_be_saved() -> None:
    with pytest.raises(ArtifactError, match="Linear") as raised:
        refuse_code(saved(torch.nn.Linear(2, 2)), "a.pt")
    assert "state_dict()" in str(raised.value.hint)


def test_two_entries_of_one_name_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/data.pkl", pickle.dumps(Runs()))
    with pytest.raises(ArtifactError, match="two entries"):
        refuse_code(buffer.getvalue(), "a.pt")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), zipped=st.booleans())
def test_noise_is_refused_in_one_line_or_holds_nothing_that_runs(data: bytes, zipped: bool) -> None:
    try:
        refuse_code((b"PK\x03\x04" if zipped else b"") + data, "a.pt")
    except ArtifactError as error:
        assert error.message.startswith("a.pt: ")


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 1600), flip=st.integers(1, 255))
def test_a_damaged_checkpoint_never_raises_anything_else(place: int, flip: int) -> None:
    data = bytearray(GOOD)
    data[place % len(data)] ^= flip
    try:
        refuse_code(bytes(data), "a.pt")
    except ArtifactError as error:
        assert error.message.startswith("a.pt: ")


GOOD = saved({"weight": torch.zeros(3, 2)})
