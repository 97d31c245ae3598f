"""`sqlite:///models.db`: a store in one SQLite file, three slashes for a relative path, four for an absolute one.

Tables: `objects` (id, key); `rows` (object, number, data), an object's bytes in rows of at most 4 MiB, one for each
piece written; `refs` (name, tag, number, value), to which rows are only ever added. Pages of 64 KiB, write-ahead log,
`application_id` "MCTL", `user_version` 1. A new file is made whole under another name and linked into place, so there
is never half a store.
"""

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from modelctl.errors import StoreError, UsageError
from modelctl.stores.ref import data_folder
from modelctl.stores.store import MOST_PIECE_BYTES, MissingStoreError

MAGIC = b"SQLite format 3\0"
APPLICATION_ID = int.from_bytes(b"MCTL", "big")
VERSION = 1
PAGE_BYTES = 64 << 10
BUSY_S = 60.0

SCHEMA = f"""
PRAGMA page_size = {PAGE_BYTES};
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE objects (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE rows (object INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (object, number));
CREATE TABLE refs (name TEXT NOT NULL, tag TEXT NOT NULL, number INTEGER NOT NULL, value BLOB NOT NULL,
                   PRIMARY KEY (name, tag, number));
COMMIT;
PRAGMA journal_mode = WAL;
"""
TABLES = {"objects", "rows", "refs"}

# Casts, because a hostile file may hold anything in any column.
VALUE = "CAST(value AS BLOB)"
DATA = "CAST(data AS BLOB)"

TROUBLE = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "can't be written",
    sqlite3.SQLITE_CANTOPEN: "can't be opened",
    sqlite3.SQLITE_BUSY: f"another process has been writing to it for {BUSY_S:.0f} s",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_NOTADB: "is damaged",
}


def open_store(url: str, create: bool) -> "SqliteStore":
    """The store in the SQLite file that `url` names; see `stores.store.open_store`."""
    place = url.removeprefix("sqlite://")
    if not place.startswith("/") or place == "/" or "?" in place or "#" in place:
        raise UsageError(f"{url}: not sqlite:///FILE", "sqlite:///models.db, or sqlite:////srv/models.db")
    path = Path(place[1:])
    if not path.exists():
        if not create:
            raise MissingStoreError(f"{url}: no such store")
        _make(path)
    _probe(path)
    return SqliteStore(path)


def _make(path: Path) -> None:
    if path.parent == data_folder():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.parent.is_dir():
        raise StoreError(f"{path}: no such folder: {path.parent}", f"mkdir -p {path.parent}")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.tmp-", dir=path.parent) as folder:
            new = Path(folder, path.name)
            with _told(path), contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
                db.executescript(SCHEMA)
            with contextlib.suppress(FileExistsError):  # another process was faster, and its file is as good
                os.link(new, path)
    except OSError as error:
        raise StoreError(f"{path}: can't be made: {(error.strerror or str(error)).lower()}") from error


def _probe(path: Path) -> None:
    """StoreError unless the file's header is that of a store; looks without opening it as a database.

    Layout of the header: https://www.sqlite.org/fileformat2.html#the_database_header
    """
    if not path.is_file():
        raise StoreError(f"{path}: not a store: not a file")
    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(MAGIC) or len(header) < 100:
        raise StoreError(f"{path}: not a store: not an SQLite file", "choose a name where nothing stands yet")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise StoreError(f"{path}: not a store: an SQLite file of another program", "choose another name")
    version = int.from_bytes(header[60:64], "big")
    if version != VERSION:
        raise StoreError(f"{path}: a store of version {version}, this modelctl knows {VERSION}")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SQLite complains of, as a StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise StoreError(f"{path}: {TROUBLE.get(code) or error}") from error


class SqliteStore:
    """A `Store` in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with _told(path):
            where = path.absolute().as_uri() + _mode(path)
            self._db = sqlite3.connect(where, BUSY_S, isolation_level=None, check_same_thread=False, uri=True)
        try:
            with _told(path):
                self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * MOST_PIECE_BYTES)
                self._db.execute("PRAGMA trusted_schema = OFF")
                # Cheap for objects; the move of a ref syncs, and with it all that was written before.
                self._db.execute("PRAGMA synchronous = NORMAL")
                tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables >= TABLES:
                raise StoreError(f"{path}: not a store: it lacks the table {min(TABLES - tables)}")
        except BaseException:
            self._db.close()
            raise

    def has(self, key: str) -> bool:
        """See `Store.has`."""
        return self._object(key) is not None

    def read(self, key: str) -> Iterator[bytes]:
        """See `Store.read`."""
        found = self._object(key)
        if found is None:
            raise KeyError(key)
        return self._rows(found)

    def _rows(self, found: int) -> Iterator[bytes]:
        number = 0
        while rows := self._all(f"SELECT {DATA} FROM rows WHERE object = ? AND number = ?", found, number):
            yield rows[0][0] or b""
            number += 1

    def write(self, key: str, pieces: Iterable[bytes]) -> None:
        """See `Store.write`."""
        with self._writing():
            there = self.has(key)
            if not there:
                with _told(self.path):
                    added = self._db.execute("INSERT INTO objects (key) VALUES (?)", (key,)).lastrowid
            for number, piece in enumerate(pieces):
                if not there:
                    with _told(self.path):
                        self._db.execute("INSERT INTO rows VALUES (?, ?, ?)", (added, number, piece))

    def ref(self, name: str, tag: str) -> tuple[int, bytes] | None:
        """See `Store.ref`."""
        query = (
            f"SELECT CAST(number AS INTEGER), {VALUE} FROM refs WHERE name = ? AND tag = ? ORDER BY number DESC LIMIT 1"
        )
        return next(((number or 0, value or b"") for number, value in self._all(query, name, tag)), None)

    def move(self, name: str, tag: str, number: int, value: bytes) -> bool:
        """See `Store.move`."""
        with self._lock, _told(self.path):
            self._db.execute("PRAGMA synchronous = FULL")
            try:
                with self._writing():
                    standing = self.ref(name, tag)
                    if number != (standing[0] if standing else 0) + 1:
                        return False
                    self._db.execute("INSERT INTO refs VALUES (?, ?, ?, ?)", (name, tag, number, value))
                return True
            finally:
                self._db.execute("PRAGMA synchronous = NORMAL")

    def log(self, name: str, tag: str) -> list[bytes]:
        """See `Store.log`."""
        query = f"SELECT {VALUE} FROM refs WHERE name = ? AND tag = ? ORDER BY number"
        return [value or b"" for (value,) in self._all(query, name, tag)]

    def refs(self) -> list[tuple[str, str]]:
        """See `Store.refs`."""
        found = self._all("SELECT DISTINCT CAST(name AS TEXT), CAST(tag AS TEXT) FROM refs")
        return sorted((name or "", tag or "") for name, tag in found)

    def close(self) -> None:
        """See `Store.close`."""
        with self._lock, _told(self.path):
            self._db.close()

    def _object(self, key: str) -> int | None:
        return next((found for (found,) in self._all("SELECT id FROM objects WHERE key = ?", key)), None)

    def _all(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        with self._lock, _told(self.path):
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, which waits for its turn to write and is undone if the block fails."""
        with self._lock:
            with _told(self.path):
                self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                with _told(self.path):
                    self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")


def _mode(path: Path) -> str:
    """How to open the file: where neither it nor its log can be written, as one that does not change."""
    log = path.with_name(path.name + "-wal")
    frozen = not os.access(path.parent, os.W_OK) and not log.exists()
    return "?immutable=1&mode=ro" if frozen else "?mode=rw"
