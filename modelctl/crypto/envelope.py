"""The sealed file: an artifact, its manifest and its signature in one file that only the chosen can open.

    magic "MCTLSEAL" | version u8 = 1 | header length u32be, at most 65,536 | header (see `stanza`)
    | header MAC, 32 bytes | FLOE header, 74 bytes | FLOE segments of 1 MiB

A random content key of 32 bytes gives, by HKDF-SHA-256 without salt (RFC 5869), under `modelctl/sealed/v1/header` the
key of the MAC (HMAC-SHA-256 of all before it) and under `modelctl/sealed/v1/body` the key of FLOE, whose associated
data is `modelctl/sealed/v1`. What is inside the body: see `contents`.

Both ways are one pass in constant memory. What is opened is good only when `unseal` has returned.
"""

import contextlib
import hmac
import io
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from modelctl import digests
from modelctl.artifact import Artifact, Payload
from modelctl.crypto import floe, stanza
from modelctl.crypto.contents import Inside, Reader, Sink, blocks_of
from modelctl.crypto.floe import Floe, FloeError
from modelctl.crypto.keys import OpeningKey, Recipient
from modelctl.crypto.stanza import Header
from modelctl.crypto.tally import Tally
from modelctl.errors import ArtifactError, IntegrityError, KeyFileError
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

        def write(piece: bytes | bytearray) -> None:
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
    head = MAGIC + VERSION.to_bytes(1, "big") + len(encoded).to_bytes(4, "big") + encoded
    return head + hmac.digest(_derived(content_key, "header"), head, "sha256")


def header_of(path: Path) -> Header:
    """The header of a sealed file, not yet known to be unchanged; ArtifactError when the file is not one."""
    with path.open("rb") as file:
        return _read_head(file.read, str(path))[1]


def open_sealed(
    sealed: Path | Artifact, keys: Sequence[OpeningKey], *, threads: int = 0, progress: Progress = silent
) -> Payload:
    """The artifact in a sealed one, in memory only, every byte of it checked; errors as `unseal` raises them.

    Holds the plaintext once, and `threads` (0: as many as are granted) few segments beside it.
    """
    artifact = sealed if isinstance(sealed, Artifact) else Artifact.open(sealed)
    with artifact.path.open("rb", buffering=0) as file:
        return _opened(file, artifact.manifest, str(artifact.path), keys, threads, progress)


def open_sealed_payload(
    sealed: Payload, name: str, keys: Sequence[OpeningKey], *, threads: int = 0, progress: Progress = silent
) -> Payload:
    """The artifact in a sealed one that is in memory already, out of a store; `name` is what messages call it."""
    return _opened(io.BytesIO(sealed.primary), sealed.manifest, name, keys, threads, progress)


def _opened(
    file: IO[bytes], described: Manifest, name: str, keys: Sequence[OpeningKey], threads: int, progress: Progress
) -> Payload:
    files: dict[str, io.BytesIO] = {}

    def sink(_: Manifest, entry: FileEntry) -> IO[bytes]:
        files[entry.path] = _Kept(entry.size)
        return files[entry.path]

    inside = _checked(file, described, Reader(name, sink, progress), keys, threads or granted_threads())
    return Payload(inside.manifest, {path: kept.getvalue() for path, kept in files.items()}, inside.signature)


class _Kept(io.BytesIO):
    """A buffer of its final size from the start, whose bytes are not copied when they are asked for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size:
            self.seek(size - 1)
            self.write(b"\0")
            self.seek(0)

    def __exit__(self, *_: object) -> None:
        pass  # stays readable


def unseal(
    sealed: Artifact, keys: Sequence[OpeningKey], sink: Sink, *, threads: int, progress: Progress = silent
) -> Inside:
    """Open a sealed artifact with the first of `keys` that fits: `sink` gives a place to write for each of its files.

    What was written there is good only when this has returned. UsageError without keys, KeyFileError when none fits,
    ArtifactError for what is no sealed file; IntegrityError when the bytes are not those that were sealed, or not those
    that the sealed artifact's own manifest describes.
    """
    with sealed.path.open("rb", buffering=0) as file:
        return _checked(file, sealed.manifest, Reader(str(sealed.path), sink, progress), keys, threads)


def _checked(file: IO[bytes], described: Manifest, reader: Reader, keys: Sequence[OpeningKey], threads: int) -> Inside:
    """Unseal a stream, and hold what was read, and what was inside, against the sealed artifact's own manifest."""
    name, entry = reader.name, described.files[0]
    with Tally() as read:

        def pull(count: int) -> bytes:
            data = file.read(count) or b""
            read.add(data)
            return data

        try:
            inside = _unseal(pull, entry.size, keys, reader, threads)
        except FloeError as error:
            raise IntegrityError(f"{name}: {error}") from error
        except (KeyFileError, ArtifactError) as error:
            # Only whole bytes can tell of a wrong key; of changed ones nothing else can be told.
            while pull(digests.CHUNK_BYTES):
                pass
            if read.sha256 != entry.sha256:
                raise IntegrityError(f"{name}: the bytes are not the ones that its manifest describes") from error
            raise
        if (read.size, read.sha256) != (entry.size, entry.sha256):
            raise IntegrityError(f"{name}: the bytes are not the ones that its manifest describes")
    promised = described.encryption
    if promised is not None and promised.manifest != digests.of_bytes(inside.manifest_bytes):
        raise IntegrityError(f"{name}: what is inside is not what its manifest says")
    if promised is not None and promised.digest != inside.manifest.digest:
        raise IntegrityError(f"{name}: what is inside is not what its manifest says")
    return inside


def _unseal(
    pull: Callable[[int], bytes], size: int, keys: Sequence[OpeningKey], reader: Reader, threads: int
) -> Inside:
    head, header, mac = _read_head(pull, reader.name)
    content_key = stanza.unwrap(header, keys, reader.name)
    if not hmac.compare_digest(hmac.digest(_derived(content_key, "header"), head, "sha256"), mac):
        raise IntegrityError(f"{reader.name}: the header has been changed")
    body = Floe.resume(_derived(content_key, "body"), AAD, pull(floe.HEADER_BYTES))
    with contextlib.closing(floe.decrypt(body, pull, threads)) as blocks:
        return reader.read(blocks, size)


def _read_head(pull: Callable[[int], bytes], name: str) -> tuple[bytes, Header, bytes]:
    """The bytes that the MAC covers, the header in them, and the MAC; sizes are looked at before anything is read."""
    start = pull(len(MAGIC) + 5)
    if len(start) != len(MAGIC) + 5 or not start.startswith(MAGIC):
        raise ArtifactError(f"{name}: not a sealed file")
    version, length = start[len(MAGIC)], int.from_bytes(start[-4:], "big")
    if version != VERSION:
        raise ArtifactError(f"{name}: a sealed file of version {version}, this modelctl reads {VERSION}")
    if length > MOST_HEADER_BYTES:
        raise ArtifactError(f"{name}: a header of {length} bytes, at most {MOST_HEADER_BYTES} are read")
    encoded, mac = pull(length), pull(MAC_BYTES)
    if len(encoded) != length or len(mac) != MAC_BYTES:
        raise IntegrityError(f"{name}: is cut short")
    return start + encoded, stanza.parse(encoded, name), mac
