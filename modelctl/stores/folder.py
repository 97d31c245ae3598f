"""`file:///srv/models`: a store in a folder, on any file system that has hard links.

    modelctl-store.json     marks the folder as a store: {"schema": "modelctl/store/v1"}
    blobs/ …                an object under each key
    refs/name/tag/00000001  a ref's values, one file each; the highest number counts
    tmp/                    what is being written

An object is written beside, synced and renamed; a ref's value is linked to its number, which only one can do.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from modelctl.errors import StoreError, UsageError
from modelctl.staging import sync
from modelctl.stores.store import PIECE_BYTES, MissingStoreError

MARKER = "modelctl-store.json"
MARK = b'{"schema": "modelctl/store/v1"}\n'
MAKING = ".modelctl-store.tmp-"
ABANDONED_S = 3600.0
VALUE_LIMIT_BYTES = 64 << 10


def open_store(url: str, create: bool) -> "FolderStore":
    """The store in the folder that `url` names; see `stores.store.open_store`."""
    place = url.removeprefix("file://").removeprefix("localhost")
    if not place.startswith("/") or "?" in place or "#" in place or not unquote(place).isprintable():
        raise UsageError(f"{url}: not file:///FOLDER, an absolute path", f"file://{Path(place).absolute()}")
    root = Path(unquote(place))
    if not root.exists() and not create:
        raise MissingStoreError(f"{url}: no such store")
    with _told(root):
        if not (root / MARKER).is_file():
            _make(root, create)
        if _start(root / MARKER) != MARK:
            raise StoreError(f"{root}: not a store that this modelctl knows: {MARKER} says otherwise")
    return FolderStore(root)


def _make(root: Path, create: bool) -> None:
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root}: not a store: not a folder")
    if root.exists() and any(not one.name.startswith(MAKING) for one in root.iterdir()):
        if (root / MARKER).is_file():  # another process made it meanwhile
            return
        raise StoreError(f"{root}: not a store: a folder without {MARKER}", "choose an empty folder or a new one")
    if not create:
        raise MissingStoreError(f"{root}: not a store: an empty folder")
    if not root.parent.is_dir():
        raise StoreError(f"{root}: no such folder: {root.parent}", f"mkdir -p {root.parent}")
    root.mkdir(exist_ok=True)
    new = root / (MAKING + secrets.token_hex(6))
    try:
        _write(root, new, [MARK])
        new.replace(root / MARKER)
        sync(root)
        sync(root.parent)
    finally:
        new.unlink(missing_ok=True)


def _start(path: Path) -> bytes:
    """What a small file holds; the start of a large one."""
    with path.open("rb") as file:
        return file.read(VALUE_LIMIT_BYTES)


@contextlib.contextmanager
def _told(root: Path) -> Iterator[None]:
    """What the file system complains of, as a StoreError."""
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise StoreError(f"{where}: {(error.strerror or str(error)).lower()}") from error


@contextlib.contextmanager
def _told_of_writing(root: Path) -> Iterator[None]:
    """As `_told`, of the store as a whole: a file that is still being written has a name that says nothing."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{root}: can't be written: {(error.strerror or str(error)).lower()}") from error


class FolderStore:
    """A `Store` in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, key: str) -> bool:
        """See `Store.has`."""
        return (self.root / key).is_file()

    def read(self, key: str) -> Iterator[bytes]:
        """See `Store.read`."""
        if not self.has(key):
            raise KeyError(key)
        return self._pieces(key)

    def _pieces(self, key: str) -> Iterator[bytes]:
        with _told(self.root), (self.root / key).open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def write(self, key: str, pieces: Iterable[bytes]) -> None:
        """See `Store.write`."""
        with self._beside(pieces) as new, _told_of_writing(self.root):
            target = self.root / key
            _make_folders(self.root, target.parent)
            new.replace(target)
            sync(target.parent)

    def ref(self, name: str, tag: str) -> tuple[int, bytes] | None:
        """See `Store.ref`."""
        values = self._values(name, tag)
        if not values:
            return None
        with _told(self.root):
            return int(values[-1].name), _start(values[-1])

    def move(self, name: str, tag: str, number: int, value: bytes) -> bool:
        """See `Store.move`."""
        standing = self._values(name, tag)
        if number != (int(standing[-1].name) if standing else 0) + 1:
            return False
        with self._beside([value]) as new, _told_of_writing(self.root):
            target = self.root / "refs" / name / tag / f"{number:08d}"
            _make_folders(self.root, target.parent)
            try:
                os.link(new, target)
            except FileExistsError:
                return False
            sync(target.parent)
        return True

    def log(self, name: str, tag: str) -> list[bytes]:
        """See `Store.log`."""
        with _told(self.root):
            return [_start(value) for value in self._values(name, tag)]

    def refs(self) -> list[tuple[str, str]]:
        """See `Store.refs`."""
        found = {value.parent for value in self.root.glob("refs/*/*/*") if _is_number(value.name)}
        return sorted((tag.parent.name, tag.name) for tag in found)

    def close(self) -> None:
        """See `Store.close`."""

    def _values(self, name: str, tag: str) -> list[Path]:
        folder = self.root / "refs" / name / tag
        with _told(self.root):
            return sorted(one for one in folder.iterdir() if _is_value(one)) if folder.is_dir() else []

    @contextlib.contextmanager
    def _beside(self, pieces: Iterable[bytes]) -> Iterator[Path]:
        """A new file that holds `pieces`, synced, gone when the block ends unless it was renamed."""
        folder = self.root / "tmp"
        with _told_of_writing(self.root):
            folder.mkdir(exist_ok=True)
            if folder.is_symlink():  # a hostile store would have us sweep up somebody's folder
                raise StoreError(f"{folder}: is a link, and a store has none there", f"rm {folder}")
            _sweep(folder)
        new = folder / secrets.token_hex(16)
        try:
            _write(self.root, new, pieces)
            yield new
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)


def _is_value(file: Path) -> bool:
    return _is_number(file.name) and file.is_file()  # nor is a pipe one, which would be waited for


def _is_number(name: str) -> bool:
    return len(name) == 8 and name.isascii() and name.isdigit()


def _write(root: Path, path: Path, pieces: Iterable[bytes]) -> None:
    with _told_of_writing(root):
        file = path.open("xb", buffering=0)
    with file:
        for piece in pieces:  # what `pieces` raises is not the store's trouble
            rest = memoryview(piece)
            while rest:
                with _told_of_writing(root):
                    rest = rest[file.write(rest) :]
        with _told_of_writing(root):
            os.fsync(file.fileno())


def _sweep(folder: Path) -> None:
    """Remove what killed processes left: whoever is still writing has touched its file within the hour."""
    for left in folder.iterdir():
        if not re.fullmatch("[0-9a-f]{32}", left.name):
            continue
        with contextlib.suppress(FileNotFoundError):
            if left.lstat().st_mtime < time.time() - ABANDONED_S:
                left.unlink()


def _make_folders(root: Path, folder: Path) -> None:
    if not folder.is_dir():
        _make_folders(root, folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
