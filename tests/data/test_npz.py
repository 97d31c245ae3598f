import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl.data import npz, rows, spool
from modelctl.errors import DataError


@pytest.fixture(params=["held", "in files"], autouse=True)
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Inputs that are held in memory, and such that are too large for it."""
    if request.param == "in files":
        monkeypatch.setattr(rows, "HELD_BYTES", -1)
    return str(request.param)


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_takes_the_arrays_called_as_the_inputs_and_the_labels(tmp_path: Path) -> None:
    left, right, labels = np.ones((3, 2)), np.zeros((3, 4), np.int32), np.arange(3)
    np.savez_compressed(tmp_path / "a.npz", left=left, right=right, y=labels, other=np.zeros(9))
    found = npz.read(tmp_path / "a.npz", ["left", "right"])
    assert list(found.inputs) == ["left", "right"]
    assert np.array_equal(found.inputs["right"], right)
    assert found.labels is not None
    assert np.array_equal(found.labels, labels)


def test_a_single_input_may_be_called_x(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)))
    found = npz.read(tmp_path / "a.npz", ["pixels"])
    assert found.inputs["pixels"].shape == (3, 2)
    assert found.labels is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("portion", [8, 100, 1 << 20])
def test_reads_columns_first_and_big_endian_arrays(
    tmp_path: Path, save: Callable[..., None], portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PORTION_BYTES", portion)
    array = np.asfortranarray(np.arange(60, dtype=">f4").reshape(5, 3, 4))
    save(tmp_path / "a.npz", x=array)
    found = npz.read(tmp_path / "a.npz", ["x"])
    assert np.array_equal(found.inputs["x"], array)
    assert np.array_equal(found.pick(np.array([3, 0, 1])).inputs["x"], array[[3, 0, 1]])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_rows_are_read_in_any_order(tmp_path: Path, save: Callable[..., None], kept: str) -> None:
    array = np.random.default_rng(0).standard_normal((50, 3, 2))
    save(tmp_path / "a.npz", before=np.zeros(9), x=array, y=np.arange(50))
    found = npz.read(tmp_path / "a.npz", ["x"])
    assert found.is_held == (kept == "held")
    for rows_ in (slice(7, 9), slice(None, None, -3), np.array([4, 5, 6, 2, 2, 49, 0]), np.array([], int)):
        assert np.array_equal(found.pick(rows_).inputs["x"], array[rows_])
    twice = found.pick(slice(10, None)).pick(np.array([1, 0]))
    assert np.array_equal(twice.inputs["x"], array[[11, 10]])
    assert all(batch.is_held for batch in found.batches(7))
    assert np.array_equal(np.concatenate([batch.inputs["x"] for batch in found.batches(7)]), array)


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones((50, 3)))
    found = npz.read(path, ["x"])
    path.write_bytes(path.read_bytes()[:300])
    if kept == "held":
        assert len(found.inputs["x"]) == 50
        return
    with pytest.raises(DataError, match=r"a\.npz: was changed while it was read"):
        _ = found.inputs["x"]
    path.unlink()
    with pytest.raises(DataError, match=r"a\.npz: is gone"):
        _ = found.inputs["x"]


def test_a_flipped_bit_is_found_before_work_begins(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((50, 3)))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[700] ^= 1
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(DataError, match=r"not a sound \.npz file: Bad CRC-32"):
        npz.read(tmp_path / "a.npz", ["x"])


def test_a_full_disk_is_one_line(tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.ones((50, 3)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    if kept == "held":
        npz.read(tmp_path / "a.npz", ["x"])
        return
    with pytest.raises(DataError, match=r"array 'x': no room in \S+ to lay 1200 bytes out") as caught:
        npz.read(tmp_path / "a.npz", ["x"])
    assert caught.value.hint == "export TMPDIR=/a/larger/disk"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_a_disk_that_fills_up_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115, PTH123
    with pytest.raises(DataError, match=r"set: no room in \S+ to lay 10 bytes out"):
        spool.Spool("set").write(bytes(10))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.ones(3)}, "expected an array 'a' or 'x', found z"),
        ({"x": np.ones((3, 1)), "y": np.ones(2)}, "inputs and labels differ in number: 3 of 'a', 2 of 'y'"),
        ({"x": np.ones((0, 1))}, "holds no samples"),
        ({"x": np.ones(())}, "found a single number"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "only plain numbers are read"),
    ],
)
def test_says_what_was_expected(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says):
        npz.read(tmp_path / "a.npz", ["a"])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (header("(9999999999,)") + b"1234", "promises 39999999996 bytes, it holds 4"),
        (header("(-1,)") + b"1234", "promises"),
        (header("(2,)") + b"12345678more", "promises 8 bytes, it holds 12"),
        (header("(" * 400 + ")" * 400), "not a sound .npz file"),
        (header("(1,)", "O") + b"12345678", "only plain numbers"),
        (b"\x93NUMPY\x03\x00", "version 3.0 is not read"),
        (b"", "not a sound .npz file"),
        (b"not an array", "not a sound .npz file"),
    ],
)
def test_hostile_arrays_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        npz.read(zipped(tmp_path / "a.npz", x=data), ["x"])


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "LIMIT_BYTES", 1000)
    with pytest.raises(DataError, match="4128 bytes unpacked, at most 1000 are read"):
        npz.read(zipped(tmp_path / "a.npz", x=npy(np.zeros(500)), other=npy(np.zeros(500))), ["x"])


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"a\.npz: not a sound \.npz file"):
        npz.read(tmp_path / "a.npz", ["x"])


def test_a_member_that_lies_before_the_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[whole.rindex(b"PK\x05\x06") + 19] = 1  # where the directory begins: 2^24 bytes later than it does
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(DataError, match=r"not a sound \.npz file"):
        npz.read(tmp_path / "a.npz", ["x"])


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (np.array(["f", "ü", "m"]), ["f", "ü", "m"]),
        (np.array(["f", "ü", "m"], ">U3"), ["f", "ü", "m"]),
        (np.array([b"f", b"\xfc", b"m"]), ["f", "\ufffd", "m"]),
        (np.array([[3], [1], [2]], np.uint8), [3, 1, 2]),
        (np.array([True, False, True]), [True, False, True]),
    ],
)
def test_columns_are_read_beside_the_inputs(tmp_path: Path, column: np.ndarray[Any, Any], told: list[Any]) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), who=column, other=np.zeros(9))
    found = npz.read(tmp_path / "a.npz", ["x"], ["who"])
    assert found.columns["who"].tolist() == told
    assert found.pick(np.array([2, 0])).columns["who"].tolist() == [told[2], told[0]]
    assert npz.read(tmp_path / "a.npz", ["x"]).columns == {}


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (np.ones(3), r"column 'who': expected strings or integers \[N\], found float64\[3\]"),
        (np.ones((3, 2), int), r"found int64\[3, 2\]"),
        (np.array(1), r"found int64\[\]"),
        (np.arange(2), "differ in number: 3 of 'x', 2 of 'who'"),
        (np.full(3, 0x110000, np.uint32).view("U1"), "column 'who': holds what is not text"),
        (None, "has no column 'who'; its columns: age, y"),
    ],
)
def test_what_is_no_column_is_refused(tmp_path: Path, column: np.ndarray[Any, Any] | None, says: str) -> None:
    arrays: dict[str, Any] = {"x": np.ones((3, 2)), "age": np.arange(3), "y": np.arange(3)}
    np.savez(tmp_path / "a.npz", **arrays | ({} if column is None else {"who": column}))
    with pytest.raises(DataError, match=says):
        npz.read(tmp_path / "a.npz", ["x"], ["who"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_a_data_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    whole = io.BytesIO()
    np.savez(whole, x=np.ones((2, 3), np.float32), y=np.arange(2))
    damaged = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged)
    try:
        found = npz.read(path, ["x"])
        assert len(found) == len(found.inputs["x"]) > 0
    except DataError as error:
        assert str(path) in error.message
