import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from nets import idx_bytes, write_idx

from modelctl.data import idx, rows
from modelctl.errors import DataError


@pytest.fixture(params=["held", "in files"], autouse=True)
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Images that are held in memory, and such that are too many for it."""
    if request.param == "in files":
        monkeypatch.setattr(rows, "HELD_BYTES", 0)
    return str(request.param)


@pytest.mark.parametrize("packed", [True, False])
def test_reads_images_and_labels(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path, packed=packed)
    found = idx.scaled(idx.read(tmp_path, "test", "x"))
    assert found.inputs["x"].shape == (10, 1, 8, 8)
    assert found.inputs["x"].dtype == np.float32
    assert np.allclose(found.inputs["x"][:, 0, 0, 0], np.arange(10) / 255)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no t10k-images-idx3-ubyte here"):
        idx.read(tmp_path, "test", "x")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "not an IDX file of unsigned bytes with 1 axes"),
        (bytes((0, 0, 8, 1)) + struct.pack(">I", 11) + b"0123456789", "promises 11 bytes, it holds fewer"),
        (bytes((0, 0, 8, 1)) + struct.pack(">I", 9) + b"0123456789", "promises 9 bytes, it holds more"),
        (bytes((0, 0, 8, 1)) + struct.pack(">I", 2**32 - 1) + b"0", "promises 4294967295 bytes"),
        (bytes((0, 0, 8, 1)) + struct.pack(">I", 0), "holds no samples"),
        (idx_bytes(np.zeros(9, np.uint8)), "10 images in t10k-images-idx3-ubyte.gz, 9 labels"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_header_that_lies_is_refused(tmp_path: Path, data: bytes, says: str, packed: bool) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    name = "t10k-labels-idx1-ubyte" + (".gz" if packed else "")
    (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=says):
        idx.read(tmp_path, "test", "x")


@pytest.mark.parametrize("cut", [1, 5, 12, -4])
def test_a_broken_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    write_idx(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"not a sound gzip file|not an IDX file"):
        idx.read(tmp_path, "test", "x")


def test_what_is_no_gzip_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match="not a sound gzip file"):
        idx.read(tmp_path, "test", "x")
