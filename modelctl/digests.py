"""sha256 of files and of lists of files, as `sha256sum` would write them.

A *digest* in modelctl is lowercase hex sha256. One file's digest is that of its bytes. Several files' digest is the
sha256 of their `sha256sum` lines, `<hex>  <path>\\n`, in the order given.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

CHUNK_BYTES = 1 << 20


def of_bytes(data: bytes | memoryview) -> str:
    """The digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    """The digest of a file's bytes, in constant memory; OSError as `open` raises it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_lines(entries: Iterable[tuple[str, str]]) -> str:
    """The digest of several files, given as (path, digest of the file) in their order."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in entries)
    return of_bytes(lines.encode(errors="surrogateescape"))  # as the bytes that an odd name has on disk


def of_files(entries: Iterable[tuple[str, str]]) -> str:
    """The digest of what the (path, digest) entries describe together: the file's own if there is only one."""
    entries = list(entries)
    return entries[0][1] if len(entries) == 1 else of_lines(entries)


def of_path(path: Path) -> str:
    """The digest of a file, or of all files below a folder in the order of their POSIX paths."""
    if not path.is_dir():
        return of_file(path)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    return of_lines((name, of_file(file)) for name, file in files)
