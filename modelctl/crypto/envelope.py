"""The sealed file: an artifact, its manifest and its signature in one file that only the chosen can open.

    magic "MCTLSEAL" | version u8 = 1 | header length u32be, at most 65,536 | header (see `stanza`)
    | header MAC, 32 bytes | FLOE header, 74 bytes | FLOE segments of 1 MiB

A random content key of 32 bytes gives, by HKDF-SHA-256 without salt (RFC 5869), under `modelctl/sealed/v1/header` the
key of the MAC (HMAC-SHA-256 of all before it) and under `modelctl/sealed/v1/body` the key of FLOE, whose associated
data is `modelctl/sealed/v1`. What is inside the body: see `contents`.

Both ways are one pass in constant memory. What is opened is good only when `unseal` has returned.
"""

import contextlib
import hashlib
import hmac
import io
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from modelctl import digests
from modelctl.artifact import Artifact, Payload
from modelctl.crypto import floe, stanza
from modelctl.crypto.buffers import Buffers
from modelctl.crypto.contents import Inside, Reader, Sink, blocks_of
from modelctl.crypto.floe import Floe, FloeError
from modelctl.crypto.keys import OpeningKey, Recipient
from modelctl.crypto.stanza import Header
from modelctl.crypto.tally import Tally
from modelctl.errors import ArtifactError, IntegrityError, KeyFileError, UsageError
from modelctl.manifest import FileEntry, Manifest
from modelctl.options import granted_threads
from modelctl.progress import Progress, silent

MAGIC = b"MCTLSEAL"
VERSION = 1
AAD = b"modelctl/sealed/v1"
SUITE = "floe-aes-256-gcm-hkdf-sha-384"
MOST_HEADER_BYTES = 65_536
MAC_BYTES = 32


def seal(
    model: Artifact,
    out: Path,
    recipients: Sequence[Recipient],
    *,
    sidecars: tuple[bytes, bytes | None],
    threads: int,
    progress: Progress = silent,
) -> tuple[int, str]:
    """Write `out`, sealed for `recipients`, and return its size in bytes and its digest.

    `sidecars` are the bytes of the manifest and of its signature. The files are hashed as they are read; IntegrityError
    when they are not those of the manifest, and `out` must then be thrown away.
    """
    content_key = secrets.token_bytes(stanza.KEY_BYTES)
    body = Floe.start(_derived(content_key, "body"), AAD)
    with out.open("xb") as file, Tally() as written:

        def write(piece: bytes | memoryview) -> None:
            file.write(piece)
            written.add(piece)

        write(_head(content_key, stanza.wrap(content_key, recipients)) + body.header)
        blocks = blocks_of(model, *sidecars, body.parameters.plain_bytes, progress)
        with contextlib.closing(floe.encrypt(body, blocks, threads)) as segments:
            for segment in segments:
                write(segment)
        return written.size, written.sha256


def _derived(content_key: bytes, purpose: str) -> bytes:
    key: bytes = HKDF(content_key, 32, b"", SHA256, context=AAD + b"/" + purpose.encode())
    return key


def _head(content_key: bytes, header: Header) -> bytes:
    encoded = stanza.encode(header)
    if len(encoded) > MOST_HEADER_BYTES:
        raise UsageError(f"so many recipients with so long keys need {len(encoded)} bytes, {MOST_HEADER_BYTES} can be")
    head = MAGIC + VERSION.to_bytes(1, "big") + len(encoded).to_bytes(4, "big") + encoded
    return head + hmac.digest(_derived(content_key, "header"), head, "sha256")


def header_of(path: Path) -> Header:
    """The header of a sealed file, not yet known to be unchanged; ArtifactError when the file is not one."""
    with path.open("rb") as file:
        return _read_head(file.read, str(path))[1]


def rewrap(
    sealed: Path, out: Path, keys: Sequence[OpeningKey], *, add: Sequence[Recipient] = (), remove: Sequence[str] = ()
) -> tuple[int, str]:
    """Write `out`: `sealed` for other recipients, its body untouched; its size in bytes and its digest are returned.

    `keys` open it, `remove` are key ids. Who could open it before can still open the file as it was, and knows the
    content key of this one if they kept it: to shut somebody out, seal anew. The body is not looked at. UsageError for
    an id that is not there, else as `unseal` and `stanza.wrap`.
    """
    with sealed.open("rb") as file, out.open("xb") as made, Tally() as written:
        head, header, mac = _read_head(file.read, str(sealed))
        content_key = _content_key(head, header, mac, keys, str(sealed))
        for kid in remove:
            if kid not in header.ids:
                raise UsageError(f"{sealed}: is not sealed for {kid}, but for {stanza.told(header)}")
        kept = [one for one in header.stanzas if one.kid not in remove]
        piece = _head(content_key, stanza.wrap(content_key, add, kept))
        while piece:
            made.write(piece)
            written.add(piece)
            piece = file.read(digests.CHUNK_BYTES)
        return written.size, written.sha256


def open_sealed(
    sealed: Artifact | Path, keys: Sequence[OpeningKey], *, threads: int = 0, progress: Progress = silent
) -> Payload:
    """The artifact that is sealed in a file, in memory only, every byte of it checked; errors as `unseal` raises them.

    Holds the plaintext once, and a few segments for each of `threads` (0: as many as are granted) beside it.
    """
    outer = Artifact.open(sealed) if isinstance(sealed, Path) else sealed
    with outer.path.open("rb", buffering=0) as file:
        return _in_memory(_Outer(str(outer.path), file, outer.manifest), keys, threads, progress)


def open_sealed_payload(
    payload: Payload, name: str, keys: Sequence[OpeningKey], *, threads: int = 0, progress: Progress = silent
) -> Payload:
    """`open_sealed` for a sealed artifact whose bytes are in memory already, called `name` in messages."""
    return _in_memory(_Outer(name, io.BytesIO(payload.primary), payload.manifest), keys, threads, progress)


def unseal(
    sealed: Artifact, keys: Sequence[OpeningKey], sink: Sink, *, threads: int, progress: Progress = silent
) -> Inside:
    """Open a sealed artifact with the first of `keys` that fits: `sink` gives a place to write for each of its files.

    What was written there is good only when this has returned. UsageError without keys, KeyFileError when none fits,
    ArtifactError for what is no sealed file; IntegrityError when the bytes are not those that were sealed, or not those
    that the sealed artifact's own manifest describes.
    """
    with sealed.path.open("rb", buffering=0) as file:
        return _checked(_Outer(str(sealed.path), file, sealed.manifest), keys, sink, threads, progress)


@dataclass(frozen=True)
class _Outer:
    """A sealed file: its name in messages, its bytes from the first one on, what its manifest says of it."""

    name: str
    file: io.RawIOBase | io.BytesIO
    manifest: Manifest


def _in_memory(outer: _Outer, keys: Sequence[OpeningKey], threads: int, progress: Progress) -> Payload:
    files: dict[str, _Kept] = {}

    def sink(_: Manifest, entry: FileEntry) -> IO[bytes]:
        files[entry.path] = _Kept()
        return files[entry.path]

    inside = _checked(outer, keys, sink, threads or granted_threads(), progress)
    held = {name: file.getvalue() for name, file in files.items()}
    return Payload(inside.manifest, held, inside.signature, inside.manifest_bytes)


class _Kept(io.BytesIO):
    """A buffer that can be asked for its bytes, which it does not copy, after the block that filled it."""

    def __exit__(self, *_: object) -> None:
        pass


def _checked(outer: _Outer, keys: Sequence[OpeningKey], sink: Sink, threads: int, progress: Progress) -> Inside:
    """What is in a sealed file, once it is known that file, seal and contents are what they say."""
    name, entry, promised = outer.name, outer.manifest.files[0], outer.manifest.encryption
    other = IntegrityError(f"{name}: the bytes are not the ones that its manifest describes")
    buffers = Buffers(max(MOST_HEADER_BYTES, floe.Parameters.segment_bytes))
    with Tally() as read:

        def pull(count: int) -> memoryview:
            data = buffers.take(count)
            data = data[: outer.file.readinto(data) or 0]
            read.add(data)
            return data

        try:
            inside = _unseal(pull, entry.size, keys, Reader(name, sink, progress), threads)
        except FloeError as error:
            raise IntegrityError(f"{name}: {error}") from error
        except (KeyFileError, ArtifactError) as error:
            # Only whole bytes can tell of a wrong key; of changed ones nothing else can be told.
            outer.file.seek(0)
            if hashlib.file_digest(outer.file, "sha256").hexdigest() != entry.sha256:
                raise other from error
            raise
        if (read.size, read.sha256) != (entry.size, entry.sha256):
            raise other
    told = (digests.of_bytes(inside.manifest_bytes), inside.manifest.digest)
    if promised is not None and told != (promised.manifest, promised.digest):
        raise IntegrityError(f"{name}: what is inside is not what its manifest says")
    return inside


def _unseal(
    pull: Callable[[int], memoryview], size: int, keys: Sequence[OpeningKey], reader: Reader, threads: int
) -> Inside:
    content_key = _content_key(*_read_head(pull, reader.name), keys, reader.name)
    body = Floe.resume(_derived(content_key, "body"), AAD, bytes(pull(floe.HEADER_BYTES)))
    with contextlib.closing(floe.decrypt(body, pull, threads)) as blocks:
        return reader.read(blocks, size)


def _content_key(head: bytes, header: Header, mac: bytes, keys: Sequence[OpeningKey], name: str) -> bytes:
    content_key = stanza.unwrap(header, keys, name)
    if not hmac.compare_digest(hmac.digest(_derived(content_key, "header"), head, "sha256"), mac):
        raise IntegrityError(f"{name}: the header has been changed")
    return content_key


def _read_head(pull: Callable[[int], bytes | memoryview], name: str) -> tuple[bytes, Header, bytes]:
    """The bytes that the MAC covers, the header in them, and the MAC; sizes are looked at before anything is read."""
    start = bytes(pull(len(MAGIC) + 5))
    if len(start) != len(MAGIC) + 5 or not start.startswith(MAGIC):
        raise ArtifactError(f"{name}: not a sealed file")
    version, length = start[len(MAGIC)], int.from_bytes(start[-4:], "big")
    if version != VERSION:
        raise ArtifactError(f"{name}: a sealed file of version {version}, this modelctl reads {VERSION}")
    if length > MOST_HEADER_BYTES:
        raise ArtifactError(f"{name}: a header of {length} bytes, at most {MOST_HEADER_BYTES} are read")
    encoded, mac = bytes(pull(length)), bytes(pull(MAC_BYTES))
    if len(encoded) != length or len(mac) != MAC_BYTES:
        raise IntegrityError(f"{name}: is cut short")
    return start + encoded, stanza.parse(encoded, name), mac
