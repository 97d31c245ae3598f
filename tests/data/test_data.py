from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import write_idx
from PIL import Image

from modelctl import chains, digests
from modelctl.data import Data, open_data, rows
from modelctl.data.samples import Samples
from modelctl.errors import DataError, UsageError
from modelctl.manifest import TensorSpec
from modelctl.processing.before import Before
from modelctl.processing.declared import Declared

pytestmark = pytest.mark.usefixtures("kept")


@pytest.fixture(params=["held", "in files"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Samples that are held in memory, and such that are too large for it."""
    if request.param == "in files":
        monkeypatch.setattr(rows, "HELD_BYTES", 0)
    return str(request.param)


SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", 2))


def opened(path: Path, selection: str = "", spec: TensorSpec = SPEC, seed: int = 0) -> Data:
    return open_data(f"{path}{selection}", [spec], seed)


def numbered(path: Path, count: int = 100) -> Path:
    """Samples whose label is their number."""
    np.savez(path, x=np.ones((count, 2)) * np.arange(count)[:, None], y=np.arange(count))
    return path


def numbers(found: Samples) -> list[int]:
    assert found.labels is not None
    assert np.array_equal(found.inputs["x"].reshape(len(found), -1).max(axis=1).round(), found.labels)
    return [int(one) for one in found.labels]


def test_a_single_file_is_dealt_out_by_the_seed(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.npz")
    data = opened(path)
    parts = [numbers(part) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [80, 10, 10]
    assert sorted(one for part in parts for one in part) == list(range(100))
    assert parts == [numbers(part) for part in (opened(path).train, opened(path).validation, opened(path).test)]
    assert numbers(opened(path, seed=1).test) != parts[2]
    assert numbers(data.scored) == parts[2]
    assert data.sha256 == digests.of_file(path)


def test_a_limit_keeps_the_first_of_each_part(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.npz")
    data = opened(path, "#limit=7")
    assert numbers(data.train) == numbers(opened(path).train)[:7]
    assert [len(part) for part in (data.train, data.validation, data.test, data.scored)] == [7, 7, 7, 7]


def test_a_named_split_is_scored_whole_and_dealt_out_to_learners(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.npz")
    data = opened(path, "#split=train")
    assert sorted(numbers(data.scored)) == sorted(numbers(opened(path).train))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [64, 8, 8]
    assert sorted(numbers(data.train) + numbers(data.validation) + numbers(data.test)) == sorted(numbers(data.scored))
    assert len(opened(path, "#split=train,limit=50").test) == 5


def test_too_few_samples_to_deal_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 samples can't be split in 3 parts"):
        _ = opened(numbered(tmp_path / "a.npz", 2)).test
    assert len(opened(numbered(tmp_path / "a.npz", 3)).test) == 1


def test_an_idx_folder_comes_split(tmp_path: Path) -> None:
    write_idx(tmp_path)
    spec = TensorSpec(name="pixels", dtype="float32", shape=("batch", 1, 8, 8))
    data = opened(tmp_path, "", spec)
    assert [len(part) for part in (data.train, data.validation, data.test, data.scored)] == [27, 3, 10, 10]
    first = np.concatenate([part.inputs["pixels"][:, 0, 0, 0] * 255 for part in (data.train, data.validation)])
    assert sorted(first.round()) == list(range(30))
    assert len(opened(tmp_path, "#split=train", spec).scored) == 30
    assert [len(part) for part in (opened(tmp_path, "#limit=5", spec).train, data.test.first(5))] == [5, 5]


def test_only_the_files_that_are_meant_are_read_and_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 1, 8, 8))
    tested, both = opened(tmp_path, "#split=test", spec), opened(tmp_path, "", spec)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"broken")
    assert len(tested.scored) == 10
    assert len(both.test) == 10
    assert opened(tmp_path, "#split=test", spec).sha256 == tested.sha256
    assert opened(tmp_path, "", spec).sha256 != both.sha256
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: not a sound gzip file"):
        _ = both.train


def test_safe_casts_are_made(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((10, 2), np.int64), y=np.ones((10, 1), np.uint8))
    found = opened(tmp_path / "a.npz", "", TensorSpec(name="x", dtype="int32", shape=("batch", 2))).train
    assert found.inputs["x"].dtype == np.int32
    assert found.labels is not None
    assert (found.labels.dtype, found.labels.shape) == (np.int64, (8,))


@pytest.mark.parametrize(
    ("x", "y", "dtype", "says"),
    [
        (np.ones((9, 3)), np.zeros(9, int), "float32", r"input 'x': expected float32\[N,2\], found float64\[N,3\]"),
        (np.ones((9, 2, 1)), np.zeros(9, int), "float32", r"expected float32\[N,2\], found float64\[N,2,1\]"),
        (np.ones(9), np.zeros(9, int), "float32", r"expected float32\[N,2\], found float64\[N\]"),
        (np.ones((9, 2), np.uint8), np.zeros(9, int), "float32", r"expected float32\[N,2\], found uint8\[N,2\]"),
        (np.ones((9, 2)), np.zeros(9, int), "int64", r"expected int64\[N,2\], found float64\[N,2\]"),
        (np.full((9, 2), np.nan), np.zeros(9, int), "float32", "holds NaN, infinity"),
        (np.full((9, 2), 1e300), np.zeros(9, int), "float32", "numbers that float32 can't hold"),
        (np.full((9, 2), 300), np.zeros(9, int), "uint8", "holds numbers that uint8 can't hold"),
        (np.full((9, 2), -1), np.zeros(9, int), "uint64", "holds numbers that uint64 can't hold"),
        (np.ones((9, 2)), np.full(9, np.nan), "float32", "labels 'y': hold NaN"),
        (np.ones((9, 2)), np.zeros((9, 3), int), "float32", r"labels 'y': expected classes int64\[N\]"),
        (np.ones((9, 2)), np.array(["a"] * 9), "float32", "labels 'y': expected classes"),
        (np.ones((9, 2)), np.zeros(9, int), "string", "the model takes string, which is not read here"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, x: Any, y: Any, dtype: str, says: str) -> None:
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = opened(tmp_path / "a.npz", "", TensorSpec(name="x", dtype=dtype, shape=("batch", 2)))
    with pytest.raises(DataError, match=says):
        _ = dict(data.train.inputs)


def test_images_fit_no_model_of_two_inputs(tmp_path: Path) -> None:
    write_idx(tmp_path)
    data = open_data(str(tmp_path), [SPEC, TensorSpec(name="z", dtype="float32", shape=("batch", 2))], 0)
    with pytest.raises(DataError, match="holds images alone, and the model takes 2 inputs"):
        _ = data.test


def test_what_can_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1,2")
    (tmp_path / "empty.npz").touch()
    for path, says in (("a.tsv", "no reader for .tsv"), ("empty.npz", "is empty"), ("none.npz", "no such file")):
        with pytest.raises(DataError, match=says):
            opened(tmp_path / path)
    with pytest.raises(UsageError, match="can't select"):
        opened(tmp_path / "empty.npz", "#splt=test")


def test_batches_and_draws() -> None:
    found = Samples({"x": np.arange(10)}, np.arange(10))
    assert [batch.inputs["x"].tolist() for batch in found.batches(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [batch.inputs["x"].tolist() for batch in found.filled_batches(4)][-1] == [8, 9, 0, 1]
    drawn = found.take(4, seed=3)
    assert drawn.labels is not None
    assert len(set(drawn.labels.tolist())) == 4
    assert np.array_equal(drawn.inputs["x"], found.take(4, seed=3).inputs["x"])
    assert found.take(10, seed=3) is found


def test_who_stopped_goes_on_with_the_samples_after(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.npz")
    whole = [numbers(batch) for batch in opened(path).train.batches(16)]
    assert [numbers(batch) for batch in opened(path).train.batches(16, start=32)] == whole[2:]
    filled = [numbers(batch) for batch in opened(path).train.filled_batches(32)]
    assert [numbers(batch) for batch in opened(path).train.filled_batches(32, start=32)] == filled[1:]
    train = opened(path).train
    assert numbers(train.take(30, 3)) == numbers(train.take(20, 3)) + numbers(train.take(10, 3, start=20))
    rest = numbers(train.take(20, 3)) + numbers(train.take(100, 3, start=20))
    assert sorted(rest) == sorted(numbers(train))


def test_shards_are_one_set_in_the_order_of_their_names(tmp_path: Path) -> None:
    single = numbered(tmp_path / "a.npz")
    folder = tmp_path / "set"
    folder.mkdir()
    with np.load(single) as held:
        for place, (x, y) in enumerate(zip(np.split(held["x"], [7, 60]), np.split(held["y"], [7, 60]), strict=True)):
            np.savez(folder / f"{place}.npz", x=x, y=y)
    (folder / "README.md").write_text("no samples")
    data = opened(folder)
    assert data.sha256 != opened(single).sha256
    for one, other in zip((data.train, data.test), (opened(single).train, opened(single).test), strict=True):
        assert numbers(one) == numbers(other)
    np.savez(folder / "1.npz", x=np.ones((5, 3)), y=np.arange(5))
    with pytest.raises(DataError, match=r"1\.npz: array 'x' is float64\[N,3\], in 0\.npz float64\[N,2\]"):
        _ = opened(folder).train
    np.savez(folder / "1.npz", x=np.ones((5, 2)))
    with pytest.raises(DataError, match=r"1\.npz: array 'y' is not there, in 0\.npz int64\[N\]"):
        _ = opened(folder).train


def test_what_comes_into_a_folder_once_it_is_open_is_seen_by_the_next_who_opens_it(tmp_path: Path) -> None:
    for place in range(3):
        np.savez(tmp_path / f"{place}.npz", x=np.ones((10, 2)), y=np.arange(10))
    data = opened(tmp_path)
    np.savez(tmp_path / "3.npz", x=np.ones((10, 2)), y=np.arange(10))
    later = opened(tmp_path)
    assert [sum(map(len, (one.train, one.validation, one.test))) for one in (data, later)] == [30, 40]
    assert data.sha256 != later.sha256
    (tmp_path / "t10k-labels.idx1-ubyte").touch()  # nor is it taken for another kind of folder
    assert len(later.scored) == 4
    with pytest.raises(DataError, match="no train-images"):
        opened(tmp_path)


@pytest.mark.parametrize("split", [False, True])
def test_so_it_is_with_pictures(split: bool, tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 4))
    before = Before((chains.Image(input="x", height=2, width=2, color="gray", layout="flat"),), [spec], None)
    places = [tmp_path / name for name in ("train", "test")] if split else [tmp_path]

    def draw(*names: str) -> None:
        for place in places:
            for name in names:
                (place / name).mkdir(parents=True, exist_ok=True)
                for shade in range(5):
                    Image.new("L", (2, 2), 50 * shade).save(place / name / f"{shade}.png")

    def count(data: Data) -> int:
        return sum(map(len, (data.train, data.validation, data.test)))

    draw("cat", "dog")
    (tmp_path / ".hidden").mkdir()
    data = open_data(str(tmp_path), [spec], 0, (), Declared(before, None))
    draw("eel")
    later = open_data(str(tmp_path), [spec], 0, (), Declared(before, None))
    assert (count(data), count(later)) == (10 * len(places), 15 * len(places))
    assert data.sha256 != later.sha256
    assert later.test.labels is not None and set(later.test.labels.tolist()) <= {0, 1, 2}


def test_a_target_is_a_column_of_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names a column of a table"):
        opened(numbered(tmp_path / "a.npz"), "#target=x")


def test_the_same_samples_come_from_memory_and_from_files(tmp_path: Path, kept: str) -> None:
    data = opened(numbered(tmp_path / "a.npz"))
    assert data.train.is_held == (kept == "held")
    assert numbers(data.train)[:5] == [82, 36, 20, 5, 93]
    assert data.train.inputs["x"].dtype == np.float32
