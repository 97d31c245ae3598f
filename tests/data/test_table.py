"""Samples from tables."""

import sys
from pathlib import Path

import numpy as np
import pytest

from modelctl.data import open_data, table
from modelctl.data.samples import Samples
from modelctl.errors import DataError, UnsupportedError
from modelctl.manifest import TensorSpec

SPEC = TensorSpec(name="features", dtype="float32", shape=("batch", 2))
TEXT = 'age,who,size,kind\n1,f,2.5,0\n2,"m, n",3e1,1\n\n3,f,-4,0\n'


def read(path: Path, *columns: str, spec: TensorSpec = SPEC, target: str | None = "kind") -> Samples:
    return table.read(path, [spec], columns, target)


def written(path: Path, text: str = TEXT) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("rows", [1, 2, 4096])
def test_a_row_is_a_sample(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS", rows)
    found = read(written(tmp_path / "a.csv"), "who")
    assert found.inputs["features"].tolist() == [[1, 2.5], [2, 30], [3, -4]]
    assert found.labels is not None
    assert (found.labels.dtype, found.labels.tolist()) == (np.int64, [0, 1, 0])
    assert found.columns["who"].tolist() == ["f", "m, n", "f"]


def test_labels_are_targets_unless_all_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS", 1)
    found = read(written(tmp_path / "a.csv"), "who", target="size", spec=SPEC)
    assert found.labels is not None
    assert (found.labels.dtype, found.labels.tolist()) == (np.float64, [2.5, 30, -4])


def test_a_column_for_groups_is_a_number_that_the_model_takes_where_it_has_room(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "\ufeffa, b,y\n1,2,0\n3,4,1\n")
    assert read(path, "b", target=None).inputs["features"].tolist() == [[1, 2], [3, 4]]
    one = TensorSpec(name="z", dtype="float32", shape=("batch", 1))
    assert read(path, "b", target=None, spec=one).inputs["z"].tolist() == [[1], [3]]


def test_columns_may_be_named_as_inputs(tmp_path: Path) -> None:
    specs = [
        TensorSpec(name="b", dtype="int32", shape=("n",)),
        TensorSpec(name="a", dtype="float32", shape=("n", 1)),
    ]
    found = table.read(written(tmp_path / "a.csv", "a,b,c\n1,2,9\n3,4,9\n"), specs)
    assert found.inputs["b"].tolist() == [2, 4]
    assert found.inputs["b"].dtype == np.int64
    assert found.inputs["a"].tolist() == [[1], [3]]
    assert found.labels is None


def test_a_table_is_dealt_out_as_other_samples_are(tmp_path: Path) -> None:
    lines = "".join(f"{i},{-i},{i}\n" for i in range(100))
    path = written(tmp_path / "a.csv", "a,b,label\n" + lines)
    data = open_data(f"{path}#target=label,limit=50", [SPEC], 0)
    assert [len(part) for part in (data.train, data.test)] == [50, 10]
    assert data.test.labels is not None
    assert np.array_equal(data.test.inputs["features"][:, 0], data.test.labels)
    assert data.test.inputs["features"].dtype == np.float32


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its first line must name the columns"),
        ("a,a\n1,2\n", "its first line must name the columns, each otherwise: a, a"),
        ("a,b,kind\n", "holds no samples"),
        ("a,b\n1,2\n", "has no column 'kind'; its columns: a, b"),
        ("a,b,kind\n1,2,0\n1,,0\n", "row 2: column 'b' holds '', and numbers are read"),
        ("a,b,kind\n1,2,cat\n", "row 1: column 'kind' holds 'cat', and numbers are read"),
        ("a,b,kind\n1,2\n", "row 1 has 2 cells, its first line names 3 columns"),
        ('a,b,kind\n1,2,"0\n', "not a sound .csv file: unexpected end of data"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read(written(tmp_path / "a.csv", text))
    assert caught.value.message.startswith(str(tmp_path / "a.csv"))


def test_bytes_that_are_no_text_and_endless_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b,kind\n\xff,1,2\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read(tmp_path / "a.csv")
    monkeypatch.setattr(table, "LIMIT_LINE", 10)
    with pytest.raises(DataError, match="holds a line of more than 10 characters"):
        read(written(tmp_path / "a.csv"))


def test_inputs_that_rows_are_not(tmp_path: Path) -> None:
    image = TensorSpec(name="x", dtype="float32", shape=("n", 1, 8, 8))
    with pytest.raises(DataError, match=r"a row holds K numbers, and the model takes x:float32\[n,1,8,8\]"):
        read(written(tmp_path / "a.csv"), spec=image)
    with pytest.raises(DataError, match="has no column 'features'; its columns: age"):
        table.read(tmp_path / "a.csv", [SPEC, image], [], "kind")
    wide = open_data(f"{tmp_path / 'a.csv'}#target=kind", [SPEC], 0, ["who"])
    assert wide.columns == ("who",)


@pytest.mark.real_parts
def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    from pyarrow import parquet

    held = {"age": [1, 2, 3], "who": ["f", "m", None], "size": [2.5, 30.0, -4.0], "kind": [0, 1, 0]}
    parquet.write_table(pyarrow.table(held), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", "who")
    assert found.inputs["features"].tolist() == [[1, 2.5], [2, 30], [3, -4]]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 0]
    parquet.write_table(pyarrow.table(held | {"size": [1.0, None, 2.0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 2: column 'size' holds None, and numbers are read"):
        read(tmp_path / "a.parquet", "who")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(DataError, match=r"not a sound \.parquet file"):
        read(tmp_path / "a.parquet")


def test_parquet_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnsupportedError, match=r"a\.parquet: \.parquet is read with pyarrow, which is not") as caught:
        read(written(tmp_path / "a.parquet"))
    assert caught.value.hint == "pip install 'modelctl[parquet]'"
