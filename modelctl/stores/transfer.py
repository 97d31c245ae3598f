"""Artifacts into a store and out of it, the same way for every store.

    blobs/ chunks/           the files and the signature, see `blobs`
    manifests/sha256/abcd…   a manifest's bytes as they stand
    the ref `name:tag`       {"at": "2026-01-31T12:00:00Z", "manifest": digest, "signatures": [digest of a blob]}

Blobs go first, then the manifest, then the ref: whoever sees a ref sees all that it stands for, and a push that was
killed leaves nothing but blobs that the next one need not send. A ref's former values are its log.
"""

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta, Struct

from modelctl import digests
from modelctl.artifact import Artifact, Payload, manifest_path, signature_path
from modelctl.errors import ArtifactError, CheckFailed, IntegrityError, StoreError
from modelctl.integrity import check_chain
from modelctl.manifest import FILE, Digest, FileEntry, Manifest, parse
from modelctl.progress import Progress, silent
from modelctl.stores import blobs
from modelctl.stores.blobs import CUT, Content, Cut
from modelctl.stores.ref import Ref
from modelctl.stores.store import MissingStoreError, Store, open_store

TRIES = 100


class Standing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a ref stands on: a manifest, its signatures, and since when (UTC)."""

    at: Annotated[str, Meta(max_length=32)]
    manifest: Digest
    signatures: Annotated[tuple[Digest, ...], Meta(max_length=1)] = ()

    def text(self) -> bytes:
        """The ref's value as stores keep it."""
        return (json.dumps(msgspec.to_builtins(self), sort_keys=True) + "\n").encode()


def standing(value: bytes, name: str) -> Standing:
    """What a ref's value says; StoreError when it is malformed."""
    try:
        return msgspec.convert(FILE.json(value, name), Standing)
    except (msgspec.ValidationError, ArtifactError) as error:
        raise StoreError(f"{name}: the ref is malformed: {error}") from error


@dataclass(frozen=True)
class Sent:
    """What a push did: bytes of content sent and in all, and whether the ref was moved or stood there already."""

    sent_bytes: int
    total_bytes: int
    moved: bool


class _Meter:
    """Counts bytes for a `Progress`."""

    def __init__(self, what: str, total: int, progress: Progress) -> None:
        self._what, self._total, self._progress = what, total, progress
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        self._progress.advance(self._what, self._done, self._total, "bytes")


def send(
    store: Store,
    ref: Ref,
    model: Artifact,
    sidecars: tuple[bytes, bytes | None],
    *,
    force: bool = False,
    progress: Progress = silent,
    cut: Cut = CUT,
) -> Sent:
    """Put an artifact into `store` under `ref`, with `sidecars`, the bytes of its manifest and of its signature.

    IntegrityError when a file is not what the manifest says; CheckFailed when the tag stands on another artifact, or
    another push comes first, unless `force`. Then the ref is where it was.
    """
    text, signature = sidecars
    manifest = Content(digests.of_bytes(text), len(text), str(manifest_path(model.path)))
    _refuse_moving(store, ref, manifest.sha256, force)
    meter = _Meter("push", model.size_bytes, progress)
    sent = 0
    for entry in model.manifest.files:
        with _opened(model, entry) as (content, source):
            sent += blobs.put(store, content, source, meter.add, cut)
    signatures: tuple[str, ...] = ()
    if signature is not None:
        signed = Content(digests.of_bytes(signature), len(signature), str(signature_path(model.path)))
        sent += blobs.put(store, signed, io.BytesIO(signature), lambda _: None)
        signatures = (signed.sha256,)
    if not store.has(_manifest_key(manifest.sha256)):
        store.write(_manifest_key(manifest.sha256), [text])
        sent += manifest.size
    moved = _move(store, ref, manifest.sha256, signatures, force)
    return Sent(sent, model.size_bytes + len(text) + len(signature or b""), moved)


def open_for(url: str, model: Artifact) -> Store:
    """The store at `url` to send `model` to: where there is none yet, it is made once the files are known to be sound.

    So what can't be pushed leaves no empty store behind.
    """
    try:
        return open_store(url)
    except MissingStoreError:
        for entry in model.manifest.files:
            with _opened(model, entry) as (content, source):
                blobs.check(content, source)
        return open_store(url, create=True)


@contextlib.contextmanager
def _opened(model: Artifact, entry: FileEntry) -> Iterator[tuple[Content, BinaryIO]]:
    file = model.file(entry)
    if not file.is_file():  # nor is a pipe one, which would be waited for
        raise ArtifactError(f"{file}: no such file, but the manifest lists it")
    with file.open("rb") as source:
        yield Content(entry.sha256, entry.size, str(file)), source


def _manifest_key(digest: str) -> str:
    return f"manifests/sha256/{digest}"


def _refuse_moving(store: Store, ref: Ref, manifest: str, force: bool) -> tuple[int, Standing | None]:
    """Where the ref stands; CheckFailed when that is another artifact and `force` is not given."""
    found = store.ref(ref.name, ref.tag)
    if found is None:
        return 0, None
    number, value = found
    stands = standing(value, str(ref))
    if stands.manifest != manifest and not force:
        raise CheckFailed(
            f"{ref}: stands on another artifact since {stands.at} (manifest {stands.manifest[:12]}…)",
            "push to another tag, or add --force to move this one",
        )
    return number, stands


def _move(store: Store, ref: Ref, manifest: str, signatures: tuple[str, ...], force: bool) -> bool:
    """Make the ref stand on `manifest`; False when it does already, with nothing to add."""
    for _ in range(TRIES):
        number, stands = _refuse_moving(store, ref, manifest, force)
        if stands and stands.manifest == manifest and signatures in ((), stands.signatures):
            return False
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        value = Standing(at=at, manifest=manifest, signatures=signatures)
        if store.move(ref.name, ref.tag, number + 1, value.text()):
            return True
    raise StoreError(f"{ref}: others moved it {TRIES} times meanwhile")


@dataclass(frozen=True)
class Stored:
    """An artifact in a store: its manifest, read and checked, its signature; the files' bytes come when asked for."""

    store: Store
    ref: Ref
    text: bytes  # the manifest's bytes
    manifest: Manifest
    signature: bytes | None

    @property
    def manifest_sha256(self) -> str:
        """The manifest's digest."""
        return digests.of_bytes(self.text)

    @property
    def size_bytes(self) -> int:
        """The size of all its files together."""
        return sum(entry.size for entry in self.manifest.files)

    def files(self, progress: Progress = silent) -> Iterator[tuple[FileEntry, Iterator[bytes]]]:
        """Each file's entry and its bytes as `blobs.get` gives them: they count once their iterator has ended."""
        meter = _Meter("pull", self.size_bytes, progress)
        for entry in self.manifest.files:
            content = Content(entry.sha256, entry.size, f"{self.ref}: {entry.path}")
            yield entry, blobs.get(self.store, content, meter.add)

    def load(self, progress: Progress = silent) -> Payload:
        """The verified bytes of all files, in memory."""
        files = {entry.path: b"".join(pieces) for entry, pieces in self.files(progress)}
        return Payload(self.manifest, files, self.signature)


def find(store: Store, ref: Ref) -> Stored:
    """What stands under `ref`: StoreError, with what there is, when nothing does; IntegrityError for wrong bytes."""
    found = store.ref(ref.name, ref.tag)
    if found is None:
        raise _missing(store, ref)
    stands = standing(found[1], str(ref))
    text = _exact(store, _manifest_key(stands.manifest), stands.manifest, f"{ref}: its manifest")
    signature = None
    for digest in stands.signatures:
        key = Content(digest, 0, "").key
        signature = _exact(store, key, digest, f"{ref}: its signature")
    described = parse(text, f"{ref}: its manifest")
    check_chain(described, str(ref))
    return Stored(store, ref, text, described, signature)


def _exact(store: Store, key: str, digest: str, name: str) -> bytes:
    data = blobs.read_small(store, key, name)
    if digests.of_bytes(data) != digest:
        raise IntegrityError(f"{name}: the bytes are not the ones that the ref names")
    return data


def _missing(store: Store, ref: Ref) -> StoreError:
    refs = store.refs()
    tags = [tag for name, tag in refs if name == ref.name]
    if tags:
        return StoreError(f"{ref}: no such tag; there are: {_some(tags)}", f"{ref.store}/{ref.name}:{tags[-1]}")
    names = sorted({name for name, _ in refs})
    if names:
        return StoreError(f"{ref}: no such name; there are: {_some([f'{name}:{tag}' for name, tag in refs])}")
    return StoreError(f"{ref}: no such ref; the store is empty", f"modelctl push MODEL {ref}")


def _some(words: list[str]) -> str:
    return ", ".join(words[-12:]) if len(words) <= 12 else ", ".join([*words[-12:], f"and {len(words) - 12} more"])


def fetch(ref: Ref, progress: Progress = silent) -> Payload:
    """What stands under `ref`, its bytes verified and in memory; nothing touches the disk."""
    with contextlib.closing(open_store(ref.store)) as store:
        return find(store, ref).load(progress)
