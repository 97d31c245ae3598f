"""What is inside a sealed file: an artifact's manifest, signature and files, one after the other.

    u32be length | index, a msgpack list of {path, sha256, size} | the files' bytes in that order:
    the manifest, its signature when there is one, the artifact's files

The manifest and signature are kept byte for byte. Every file is checked as it passes, on the way in and out.
"""

import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from modelctl import digests, manifest
from modelctl.artifact import Artifact
from modelctl.crypto import signing, stanza
from modelctl.crypto.buffers import Buffers
from modelctl.crypto.tally import Tally
from modelctl.errors import ArtifactError, IntegrityError
from modelctl.manifest import FileEntry, Manifest
from modelctl.progress import Progress

MOST_INDEX_BYTES = manifest.LIMIT_BYTES  # each entry stands in the manifest too

Sink = Callable[[Manifest, FileEntry], IO[bytes]]  # is told the manifest each time


@dataclass(frozen=True)
class Inside:
    """What a sealed file held beside the artifact's files: the manifest's bytes as they were, and its signature's."""

    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes | None


def blocks_of(
    model: Artifact, text: bytes, signature: bytes | None, size: int, progress: Progress
) -> Iterator[memoryview]:
    """The plaintext of the body in blocks of `size` bytes, the last one shorter; files are checked as they pass."""
    primary = model.path.name
    small = [(primary + manifest.SUFFIX, text)]
    if signature is not None:
        small.append((primary + manifest.SIGNATURE_SUFFIX, signature))
    index = [FileEntry(path=path, size=len(data), sha256=digests.of_bytes(data)) for path, data in small]
    encoded = stanza.encode((*index, *model.manifest.files))
    head = len(encoded).to_bytes(4, "big") + encoded + b"".join(data for _, data in small)

    total = len(head) + model.size_bytes
    buffers = Buffers(size)
    block, filled, done = buffers.take(size), 0, 0
    for part, check in _parts(model, head):
        while got := part.readinto(block[filled:]):
            check(block[filled : filled + got])
            filled += got
            done += got
            if filled == size:
                yield block
                progress.advance("encrypt", done, total, "bytes")
                block, filled = buffers.take(size), 0
    if filled:
        yield block[:filled]


def _parts(model: Artifact, head: bytes) -> Iterator[tuple[io.RawIOBase | io.BytesIO, Callable[[memoryview], None]]]:
    """What goes into the body, in order, each with what must be told of every piece that is read of it."""
    yield io.BytesIO(head), lambda _: None
    for entry in model.manifest.files:
        wrong = IntegrityError(f"{model.file(entry)}: the bytes are not the ones that its manifest describes")
        try:
            file = model.file(entry).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise ArtifactError(f"{model.file(entry)}: no such file, but the manifest lists it") from error
        with file, Tally() as read:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise wrong
            yield file, read.add
            if (read.size, read.sha256) != (entry.size, entry.sha256):
                raise wrong


class Reader:
    """Takes the plaintext of a body apart: index, manifest, signature, files; each checked as it passes."""

    def __init__(self, name: str, sink: Sink, progress: Progress) -> None:
        self.name, self.sink, self.progress = name, sink, progress
        self._blocks: Iterator[memoryview] = iter(())
        self._held = memoryview(b"")

    def read(self, blocks: Iterator[memoryview], most: int) -> Inside:
        """All of the body, to its verified end; `most` is the size of the sealed file, and bounds what is inside."""
        self._blocks = blocks
        length = int.from_bytes(self._take(4), "big")
        if length > MOST_INDEX_BYTES:
            raise self._wrong(f"an index of {length} bytes")
        index = stanza.decode(self._take(length), tuple[FileEntry, ...], f"{self.name}: index")
        if not index or sum(entry.size for entry in index) > most:
            raise self._wrong("an index of files that it can't hold")
        inside, files = self._sidecars(list(index))
        total = sum(entry.size for entry in files)
        done = 0
        for entry in files:
            with self.sink(inside.manifest, entry) as out, Tally() as tally:
                for piece in self._pieces(entry.size):
                    tally.add(piece)
                    out.write(piece)
                    done += len(piece)
                    self.progress.advance("decrypt", done, total, "bytes")
                if tally.sha256 != entry.sha256:
                    raise self._wrong(f"{entry.path} with other bytes than its manifest describes")
        if self._held or next(self._blocks, None) is not None:
            raise self._wrong("more than its index lists")
        return inside

    def _sidecars(self, index: list[FileEntry]) -> tuple[Inside, list[FileEntry]]:
        if len({entry.path.casefold() for entry in index}) != len(index):
            raise self._wrong("two files of one name")
        first = index.pop(0)
        text = self._small(first, manifest.LIMIT_BYTES)
        described = manifest.parse(text, f"{self.name}: the manifest inside")
        primary = described.files[0].path
        signature = None
        if index and index[0].path == primary + manifest.SIGNATURE_SUFFIX:
            signature = self._small(index.pop(0), signing.LIMIT_BYTES)
        if "/" in primary or first.path != primary + manifest.SUFFIX or index != list(described.files):
            raise self._wrong("other files than its manifest lists")
        return Inside(described, text, signature), index

    def _small(self, entry: FileEntry, limit: int) -> bytes:
        if entry.size > limit:
            raise self._wrong(f"{entry.path!r} of {entry.size} bytes")
        data = self._take(entry.size)
        if digests.of_bytes(data) != entry.sha256:
            raise self._wrong(f"{entry.path!r} with other bytes than its index says")
        return data

    def _take(self, count: int) -> bytes:
        return b"".join(self._pieces(count))

    def _pieces(self, count: int) -> Iterator[memoryview]:
        while count:
            if not self._held:
                block = next(self._blocks, None)
                if block is None:
                    raise self._wrong("less than its index lists")
                self._held = block
            piece = self._held[:count]
            self._held = self._held[len(piece) :]
            count -= len(piece)
            yield piece

    def _wrong(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self.name}: holds {what}")
