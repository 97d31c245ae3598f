"""What every store promises: whole objects, refs that move by compare-and-swap, and that nothing else is touched."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelctl.errors import StoreError, UsageError
from modelctl.stores.store import MOST_PIECE_BYTES, Store, open_store


def read(store: Store, key: str) -> bytes:
    return b"".join(store.read(key))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_objects_come_back_as_they_went_in(store: Store) -> None:
    store.write("blobs/a", [b"x" * MOST_PIECE_BYTES, b"", b"y"])
    store.write("blobs/deep/er/b", [])
    assert read(store, "blobs/a") == b"x" * MOST_PIECE_BYTES + b"y"
    assert read(store, "blobs/deep/er/b") == b""
    assert store.has("blobs/a") and store.has("blobs/deep/er/b") and not store.has("blobs/c")
    with pytest.raises(KeyError):
        store.read("blobs/c")


def test_an_object_whose_source_fails_is_not_there(store: Store, url: str) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * MOST_PIECE_BYTES
        raise InterruptedError

    with pytest.raises(InterruptedError):
        store.write("blobs/a", broken())
    assert not store.has("blobs/a")
    store.write("blobs/a", [b"whole"])
    assert read(store, "blobs/a") == b"whole"


def test_objects_outlive_the_process(store: Store, url: str) -> None:
    store.write("a", [b"1"])
    assert store.move("n", "t", 1, b"value")
    store.close()
    again = open_store(url)
    assert read(again, "a") == b"1" and again.ref("n", "t") == (1, b"value")
    again.close()


def test_a_ref_moves_only_from_where_it_stands_and_keeps_its_log(store: Store) -> None:
    assert store.ref("digits", "1") is None and store.refs() == [] and store.log("digits", "1") == []
    assert not store.move("digits", "1", 2, b"too early")
    assert store.move("digits", "1", 1, b"first")
    assert not store.move("digits", "1", 1, b"late")
    assert store.move("digits", "1", 2, b"second")
    assert store.move("digits", "latest", 1, b"other")
    assert store.ref("digits", "1") == (2, b"second")
    assert store.log("digits", "1") == [b"first", b"second"]
    assert store.refs() == [("digits", "1"), ("digits", "latest")]


def test_of_many_threads_that_move_a_ref_one_wins_each_time(store: Store) -> None:
    won: list[tuple[int, int]] = []

    def mover(who: int) -> None:
        for _ in range(8):
            standing = store.ref("n", "t")
            number = (standing[0] if standing else 0) + 1
            if store.move("n", "t", number, b"%d" % who):
                won.append((number, who))

    threads = [threading.Thread(target=mover, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(number for number, _ in won)
    assert numbers == list(range(1, len(won) + 1))
    assert store.log("n", "t") == [b"%d" % who for _, who in sorted(won)]


MOVER = """
import sys
from modelctl.stores.store import open_store
store = open_store(sys.argv[1], create=True)
for turn in range(20):
    store.write(f"shared/{turn}", [b"x" * 70000])
    while True:
        standing = store.ref("n", "t")
        number = (standing[0] if standing else 0) + 1
        if store.move("n", "t", number, f"{sys.argv[2]} {turn}".encode()):
            break
store.close()
"""


def test_processes_that_make_and_fill_one_store_at_once_lose_nothing(url: str) -> None:
    running = [subprocess.Popen([sys.executable, "-c", MOVER, url, str(who)]) for who in range(3)]
    assert [one.wait(60) for one in running] == [0, 0, 0]
    store = open_store(url)
    values = [value.decode() for value in store.log("n", "t")]
    assert sorted(values) == sorted(f"{who} {turn}" for who in range(3) for turn in range(20))
    for who in range(3):
        mine = [value for value in values if value.startswith(f"{who} ")]
        assert mine == [f"{who} {turn}" for turn in range(20)]
    assert all(read(store, f"shared/{turn}") == b"x" * 70000 for turn in range(20))
    store.close()


def test_a_store_that_is_not_there_is_not_made_by_looking(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store"):
        open_store(url)
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_a_folder_that_is_not_there_is_an_error(url: str) -> None:
    with pytest.raises(StoreError, match="no such folder") as caught:
        open_store(url.replace("models", "not/there/models"), create=True)
    assert caught.value.hint and caught.value.hint.startswith("mkdir -p")


def foreign_sqlite(place: Path) -> None:
    db = sqlite3.connect(place)
    db.execute("CREATE TABLE objects (id)")
    db.commit()
    db.close()


def half_sqlite(place: Path) -> None:
    foreign_sqlite(place)
    db = sqlite3.connect(place)
    db.execute(f"PRAGMA application_id = {int.from_bytes(b'MCTL', 'big')}")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()


def newer_sqlite(place: Path) -> None:
    half_sqlite(place)
    db = sqlite3.connect(place)
    db.execute("PRAGMA user_version = 2")
    db.commit()
    db.close()


NOT_STORES: dict[str, Callable[[Path], object]] = {
    "text": lambda place: place.write_text("hello"),
    "empty file": lambda place: place.write_bytes(b""),
    "magic only": lambda place: place.write_bytes(b"SQLite format 3\0" + b"\0" * 84),
    "truncated": lambda place: place.write_bytes(b"SQLite format 3\0"),
    "foreign": foreign_sqlite,
    "half": half_sqlite,
    "newer": newer_sqlite,
    "folder": lambda place: place.mkdir(),
}


@pytest.mark.parametrize("what", NOT_STORES)
def test_a_file_that_is_no_sqlite_store_is_refused_and_left_alone(tmp_path: Path, what: str) -> None:
    NOT_STORES[what](tmp_path / "models.db")
    before = snapshot(tmp_path)
    for create in (False, True):
        with pytest.raises(StoreError, match=r"models.db: (not a store|a store of version 2)"):
            open_store(f"sqlite:///{tmp_path}/models.db", create)
    assert snapshot(tmp_path) == before


def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "modelctl-store.json").write_text('{"schema": "modelctl/store/v2"}\n')
    before = snapshot(tmp_path)
    for name in ("mine", "file", "newer"):
        for create in (False, True):
            with pytest.raises(StoreError, match="not a store"):
                open_store(f"file://{tmp_path}/{name}", create)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="not a store"):
        open_store(f"file://{tmp_path}/empty")
    assert snapshot(tmp_path) == before
    open_store(f"file://{tmp_path}/empty", create=True).close()


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/x",
        "models.db",
        "sqlite://models.db",
        "sqlite:///",
        "sqlite:///a?mode=memory",
        "file://a/b",
        "file:x",
    ],
)
def test_a_url_that_makes_no_sense_is_refused_with_a_hint(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url, create=True)
    assert caught.value.hint


def test_a_damaged_sqlite_store_is_one_clear_line(tmp_path: Path) -> None:
    place = tmp_path / "models.db"
    store = open_store(f"sqlite:///{place}", create=True)
    store.write("a", [b"x" * MOST_PIECE_BYTES])
    store.close()
    data = bytearray(place.read_bytes())
    data[65536:] = b"\xff" * (len(data) - 65536)
    place.write_bytes(data)
    with pytest.raises(StoreError, match=r"models\.db: is damaged"):
        read(open_store(f"sqlite:///{place}"), "a")


HOSTILE = """
DROP TABLE objects; DROP TABLE rows; DROP TABLE refs;
CREATE TABLE objects (id, key); CREATE TABLE rows (object, number, data); CREATE TABLE refs (name, tag, number, value);
INSERT INTO objects VALUES (1, 'number'), ('x', 'text'), (2, 'null');
INSERT INTO rows VALUES (1, 0, 1152921504606846976), ('x', 0, 'text'), (2, 0, NULL);
INSERT INTO refs VALUES ('n', 't', 'three', NULL), (1, NULL, NULL, 4), ('n', 'u', NULL, NULL);
"""


def test_a_hostile_sqlite_store_with_other_types_in_its_columns_gives_bytes_or_an_error(tmp_path: Path) -> None:
    place = tmp_path / "models.db"
    open_store(f"sqlite:///{place}", create=True).close()
    db = sqlite3.connect(place)
    db.executescript(HOSTILE)
    db.close()
    store = open_store(f"sqlite:///{place}")
    assert read(store, "number") == b"1152921504606846976"
    assert read(store, "text") == b"text" and read(store, "null") == b""
    assert store.ref("n", "t") == (0, b"") and store.ref("n", "u") == (0, b"")
    assert store.refs() == [("1", ""), ("n", "t"), ("n", "u")]
    store.close()


FILLS = """
import resource, sys
from modelctl.errors import ModelctlError
from modelctl.stores.store import open_store
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
try:
    store.write("big", [bytes(1 << 20)] * 4)
except ModelctlError as error:
    print(type(error).__name__, error.exit_code, error.message)
print(store.has("big"))
store.close()
"""


def test_a_disk_that_takes_no_more_is_one_clear_line_and_leaves_no_object(store: Store, url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-c", FILLS, url], capture_output=True, text=True, timeout=60, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("StoreError 2 ") and "models" in first
    assert second == "False"
    store.write("big", [b"fits"])
    assert read(store, "big") == b"fits"


READS = """
import os, sys
from modelctl.errors import ModelctlError
from modelctl.stores import folder, sqlite
from modelctl.stores.store import open_store
os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = open_store(sys.argv[1])
print(b"".join(store.read("a")).decode(), store.ref("n", "t"))
for act in (lambda: store.write("b", [b"2"]), lambda: store.move("n", "t", 2, b"w"), lambda: store.close(),
            lambda: open_store(sys.argv[1] + "-new", create=True)):
    try:
        act()
        print("done")
    except ModelctlError as error:
        print(type(error).__name__, error.message)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_a_store_that_one_may_only_read_can_be_read(scheme: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/models.db" if scheme == "sqlite" else f"file://{folder}/models"
        store = open_store(url, create=True)
        store.write("a", [b"1"])
        store.move("n", "t", 1, b"v")
        store.close()
        Path(folder).chmod(0o755)
        before = snapshot(Path(folder))
        done = subprocess.run([sys.executable, "-c", READS, url], capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        read_back, write, move, close, make = done.stdout.splitlines()
        assert read_back == "1 (1, b'v')"
        assert write.startswith("StoreError") and move.startswith("StoreError") and close == "done"
        assert make.startswith("StoreError") and "permission denied" in make
        assert snapshot(Path(folder)) == before


def test_a_hostile_folder_can_not_have_files_elsewhere_swept_up(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("thesis.txt", "0" * 32):
        (mine / name).write_text("years of work")
        os.utime(mine / name, (1, 1))
    store = open_store(f"file://{tmp_path}/models", create=True)
    (tmp_path / "models" / "tmp").symlink_to(mine)
    with pytest.raises(StoreError, match="is a link"):
        store.write("blobs/a", [b"x"])
    assert len(list(mine.iterdir())) == 2


def test_only_what_a_store_left_is_swept_up(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/models", create=True)
    (tmp_path / "models" / "tmp").mkdir()
    for name in ("thesis.txt", "0" * 32):
        (tmp_path / "models" / "tmp" / name).write_text("old")
        os.utime(tmp_path / "models" / "tmp" / name, (1, 1))
    store.write("blobs/a", [b"x"])
    assert [one.name for one in (tmp_path / "models" / "tmp").iterdir()] == ["thesis.txt"]


def test_a_pipe_in_place_of_a_ref_is_not_waited_for(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/models", create=True)
    (tmp_path / "models" / "refs" / "a" / "1").mkdir(parents=True)
    os.mkfifo(tmp_path / "models" / "refs" / "a" / "1" / "00000001")
    assert store.ref("a", "1") is None


def test_a_url_with_what_can_not_be_printed_is_refused() -> None:
    with pytest.raises(UsageError):
        open_store("file:///tmp/%00/models")
