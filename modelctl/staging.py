"""Files that appear together or not at all: a hidden folder beside the target, and renames in a careful order.

`stage` yields a hidden folder beside the target, to be written into; `Stage.commit` syncs what is there, removes the
old manifest, renames the files into place and the new manifest last. So whoever sees a manifest sees the files that it
describes. However the block ends, the hidden folder is gone; what a killed process leaves is swept the next time
something is written under that name, told apart from a living one's by the lock that the living hold.
"""

import contextlib
import errno
import os
import re
import secrets
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelctl.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows has no flock: leftovers of a killed process are then left to the user
    fcntl = None  # type: ignore[assignment]

# What a full disk, a quota, a size limit and a read-only folder say: they are the matter of the file to be written.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@dataclass(frozen=True)
class Stage:
    """A hidden folder in which files take shape, and the folder in which they will stand."""

    folder: Path
    target: Path

    def commit(self, names: Sequence[str], last: str, stale: Sequence[str] | Callable[[], Sequence[str]] = ()) -> None:
        """Move the files called `names` into the target folder, and the one called `last` after all others.

        `stale` are names that must not stand beside the new files: those of an older version, its signature. Given as
        a function, it is asked when nobody else can commit into the folder any more, and may refuse by raising.
        """
        for name in (*names, last):
            sync(self.folder / name)
        with _locked(self.target), undisturbed():
            gone = stale() if callable(stale) else stale
            # Old manifest first: a crash in between leaves files without a manifest.
            (self.target / last).unlink(missing_ok=True)
            for name in set(gone) - set(names):
                (self.target / name).unlink(missing_ok=True)
            for name in (*names, last):
                (self.folder / name).replace(self.target / name)
            sync(self.target)


@contextlib.contextmanager
def stage(target: Path, name: str, check: Callable[[], object] = lambda: None) -> Iterator[Stage]:
    """A `Stage` for files to appear in the folder `target`, under the lead of the one called `name`.

    `check` is called before anything is written, while nobody can commit into the folder; it may refuse by raising.
    UsageError when there is no such folder; an OSError of a full disk or a read-only folder names `target / name`.
    """
    refuse_no_folder(target / name)
    folder = target / f".{name}.tmp-{secrets.token_hex(6)}"
    handle = -1
    try:
        with _locked(target):
            check()
            for left in target.iterdir():
                if re.fullmatch(re.escape(f".{name}.tmp-") + "[0-9a-f]{12}", left.name):
                    _sweep(left)
            folder.mkdir(mode=0o700)
            handle = os.open(folder, os.O_RDONLY)
            _try_lock(handle)
        yield Stage(folder, target)
    except OSError as error:
        inside = error.filename is None or str(folder) in str(error.filename)
        if inside and (error.errno in _CANNOT_WRITE or handle < 0):
            raise OSError(error.errno, error.strerror, str(target / name)) from error
        raise
    finally:
        with undisturbed():  # people press Ctrl-C twice
            shutil.rmtree(folder, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def refuse_no_folder(path: Path) -> None:
    """UsageError unless the folder is there in which `path` is to be written."""
    if path.parent.is_dir():
        return
    stands = next(one for one in path.parents if os.path.lexists(one))
    if not stands.is_dir():
        raise UsageError(f"{path}: {stands} is no folder")
    raise UsageError(f"{path}: no such folder: {path.parent}", f"mkdir -p {shlex.quote(str(path.parent))}")


def refuse_no_file(path: Path) -> None:
    """UsageError where a file is to be written, but a link or a folder stands."""
    if path.is_symlink() or path.is_dir():
        raise UsageError(f"{path}: is a {'link' if path.is_symlink() else 'folder'}, not a file to write")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and a request to end until the block is through, so that renames happen together."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are answered in the main thread only
        return
    heard: list[int] = []
    usual = {number: signal.getsignal(number) for number in _STOPPING}
    try:
        for number in usual:
            signal.signal(number, lambda number, _frame: heard.append(number))
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    for number in heard:
        signal.raise_signal(number)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(left: Path) -> None:
    """Remove what a killed process left; what a living one still holds stays."""
    if left.is_symlink() or not left.is_dir():
        return
    try:
        handle = os.open(left, os.O_RDONLY)
    except FileNotFoundError:  # its owner was quicker
        return
    try:
        if _try_lock(handle):
            shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Return when a file, or the list of names that a folder is, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
