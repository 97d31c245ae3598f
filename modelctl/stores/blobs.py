"""Content under its digest: files as blobs, large ones as chunks under a chunk list, checked on the way out and in.

    blobs/sha256/ab/abcd…    the bytes with that digest: a file of at most 64 MiB, a chunk, a signature
    chunks/sha256/ab/abcd…   the chunk list of a larger file with that digest:
                             {"schema": "modelctl/chunks/v1", "chunks": [{"sha256", "size"}, …]}

We cut every 16 MiB; a reader takes chunks of any size up to 64 MiB. A chunk list is written after its chunks.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta, Struct

from modelctl import digests
from modelctl.errors import ArtifactError, IntegrityError
from modelctl.manifest import FILE, LIMIT_BYTES, Digest
from modelctl.stores.store import PIECE_BYTES, Store

LIST_SCHEMA = "modelctl/chunks/v1"

Tell = Callable[[int], None]


@dataclass(frozen=True)
class Cut:
    """How files are cut: those above `whole_bytes` into chunks of `chunk_bytes`."""

    whole_bytes: int = 64 << 20
    chunk_bytes: int = 16 << 20


CUT = Cut()


class Chunk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a file, which is a blob of its own."""

    sha256: Digest
    size: Annotated[int, Meta(ge=1, le=64 << 20)]


class ChunkList(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parts of a file, in order."""

    schema: Annotated[str, Meta(pattern=f"^{LIST_SCHEMA}$")] = LIST_SCHEMA
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Content:
    """Which bytes are meant: their digest and size, and what to call them when they are not the ones."""

    sha256: str
    size: int
    name: str

    @property
    def key(self) -> str:
        """The key of the blob that is these bytes."""
        return f"blobs/sha256/{self.sha256[:2]}/{self.sha256}"

    @property
    def list_key(self) -> str:
        """The key of their chunk list, if they are kept in chunks."""
        return f"chunks/sha256/{self.sha256[:2]}/{self.sha256}"


def put(store: Store, content: Content, source: BinaryIO, tell: Tell, cut: Cut = CUT) -> int:
    """Keep what `source` holds, send only what the store lacks, and return how many of its bytes that was.

    Every byte is hashed as it is read, sent or not. IntegrityError when they are not the ones that `content` names; its
    key then holds nothing. `tell` is called with the number of bytes done, piece by piece.
    """
    if store.has(content.key) or store.has(content.list_key):
        check(content, source, tell)
        return 0
    if content.size <= cut.whole_bytes:
        store.write(content.key, _checked(_read(source, PIECE_BYTES), content, tell))
        return content.size
    sent = 0
    chunks = []
    for data in _checked(_read(source, cut.chunk_bytes), content, tell):
        chunk = Content(digests.of_bytes(data), len(data), content.name)
        if not store.has(chunk.key):
            store.write(chunk.key, _split(data))
            sent += chunk.size
        chunks.append(Chunk(sha256=chunk.sha256, size=chunk.size))
    listed = json.dumps(msgspec.to_builtins(ChunkList(chunks=tuple(chunks))), sort_keys=True).encode()
    store.write(content.list_key, _split(listed))
    return sent


def check(content: Content, source: BinaryIO, tell: Tell | None = None) -> None:
    """IntegrityError unless `source` holds the bytes that `content` names."""
    for _ in _checked(_read(source, PIECE_BYTES), content, tell):
        pass


def get(store: Store, content: Content, tell: Tell | None = None) -> Iterator[bytes]:
    """The bytes that `content` names, in pieces, each chunk's digest checked at its end and the whole's at the end.

    IntegrityError as soon as it is known that they are others, or that the store lacks some: what was yielded counts
    only once the iterator has ended. Never more than `content.size` bytes come.
    """
    if store.has(content.key) or not store.has(content.list_key):
        return _blob(store, content, tell)
    return _checked(_chunked(store, content), content, tell)


def _chunked(store: Store, content: Content) -> Iterator[bytes]:
    for chunk in _chunks(store, content):
        yield from _blob(store, Content(chunk.sha256, chunk.size, content.name), None)


def _chunks(store: Store, content: Content) -> tuple[Chunk, ...]:
    name = f"{content.name}: its chunk list"
    try:
        chunks = msgspec.convert(FILE.json(read_small(store, content.list_key, name), name), ChunkList).chunks
    except (msgspec.ValidationError, ArtifactError) as error:
        raise IntegrityError(f"{name} is malformed: {error}") from error
    if sum(chunk.size for chunk in chunks) != content.size:
        raise IntegrityError(f"{name} does not add up to {content.size} bytes")
    return chunks


def read_small(store: Store, key: str, name: str) -> bytes:
    """An object of at most 4 MiB as it stands in the store, unchecked; IntegrityError if there is none."""
    data = bytearray()
    try:
        for piece in store.read(key):
            data += piece
            if len(data) > LIMIT_BYTES:
                raise IntegrityError(f"{name} is larger than {LIMIT_BYTES} bytes")
    except KeyError as error:
        raise IntegrityError(f"{name} is not in the store") from error
    return bytes(data)


def _blob(store: Store, content: Content, tell: Tell | None) -> Iterator[bytes]:
    try:
        pieces = store.read(content.key)
    except KeyError as error:
        raise IntegrityError(f"{content.name}: the store lacks the blob {content.sha256}") from error
    yield from _checked(pieces, content, tell)


def _checked(pieces: Iterator[bytes], content: Content, tell: Tell | None) -> Iterator[bytes]:
    """`pieces`, and at their end IntegrityError unless together they are what `content` names."""
    seen = hashlib.sha256()
    left = content.size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        seen.update(piece)
        yield piece
        if tell:
            tell(len(piece))
    if left or seen.hexdigest() != content.sha256:
        raise IntegrityError(f"{content.name}: the bytes are not the ones that its manifest describes")


def _read(source: BinaryIO, piece_bytes: int) -> Iterator[bytes]:
    while piece := source.read(piece_bytes):
        yield piece


def _split(data: bytes) -> Iterator[bytes]:
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))
