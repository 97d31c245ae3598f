"""Where served models come from: a file, with a manifest or foreign; a ref in a store; a sealed artifact in either.

An ensemble is the file that says so, and all models that it names.

The bytes are checked as they are read. What was sealed is opened in memory and stays there.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from modelctl.artifact import Artifact, Payload, manifest_path
from modelctl.errors import IntegrityError
from modelctl.manifest import Manifest
from modelctl.options import ServeOptions
from modelctl.progress import Progress, silent
from modelctl.serve import ensembles
from modelctl.serve.ensembles import FIRST_VERSION, Ensemble
from modelctl.stores.ref import Ref, looks_like_ref
from modelctl.stores.store import open_store
from modelctl.stores.transfer import find

if TYPE_CHECKING:  # the ciphers are loaded only for those who need them
    from modelctl.crypto.keys import OpeningKey, PublicKey


@dataclass(frozen=True)
class Opened:
    """A model that was found: the name and version to serve it under, and its plain bytes."""

    name: str
    version: str
    payload: Payload


@dataclass(frozen=True)
class Gathered:
    """An ensemble that was found: what its file says, its bytes, and its models in their order."""

    path: Path
    told: Ensemble
    text: bytes
    members: tuple[Opened, ...]

    @property
    def name(self) -> str:
        """The name to serve it under."""
        return self.told.name or self.path.stem

    @property
    def version(self) -> str:
        """The version to serve it under."""
        return self.told.version


@dataclass(frozen=True)
class Secrets:
    """What opens sealed models, and who must have signed them all; read when first needed."""

    options: ServeOptions

    @cached_property
    def keys(self) -> "tuple[OpeningKey, ...]":
        """The keys to open with; KeyFileError when one can't be read."""
        from modelctl.crypto.keys import opening

        return opening(self.options)

    @cached_property
    def signer(self) -> "tuple[str, PublicKey] | None":
        """The key that must have signed, if any must."""
        if self.options.require_signature is None:
            return None
        from modelctl.crypto.keys import public_key

        return self.options.require_signature, public_key(self.options.require_signature)

    def check(self, source: str, text: bytes | None, signature: bytes | None) -> None:
        """IntegrityError unless the manifest with these bytes is signed as it must be."""
        if self.signer is None:
            return
        if text is None:
            raise IntegrityError(f"{source}: is not signed: it has no manifest")
        from modelctl.crypto.signing import check_signature

        check_signature(text, signature, [self.signer], source)


def found(source: str, secrets: Secrets, progress: Progress = silent) -> Opened | Gathered:
    """The model, or the ensemble, that a source stands for; UsageError for one that is not sound, else as `opened`."""
    if not ensembles.is_ensemble(source):
        return opened(source, secrets, progress)
    path = Path(source)
    told, text = ensembles.read(path)
    members = [opened(ensembles.source_of(link, path), secrets, progress) for link in told.model]
    return Gathered(path, told, text, tuple(members))


def opened(source: str, secrets: Secrets, progress: Progress = silent) -> Opened:
    """The model that a file's path or a ref, `[STORE/]name:tag`, stands for.

    IntegrityError for wrong bytes, or a signature that must be there and is not right; KeyFileError, UsageError when
    no key opens it; ArtifactError, StoreError when it can't be found or read.
    """
    return _from_store(source, secrets, progress) if looks_like_ref(source) else _from_file(source, secrets, progress)


def mark(source: str) -> str:
    """What changes when a source comes to stand for something else; raises what `opened` does when it is not there."""
    if looks_like_ref(source):
        ref = Ref.parse(source)
        with closing(open_store(ref.store)) as store:
            return find(store, ref).manifest_sha256
    path = Path(source)
    files = (path, manifest_path(path))
    states = [file.stat() for file in files if file.exists() or file is path]
    mine = " ".join(f"{one.st_ino}:{one.st_size}:{one.st_mtime_ns}" for one in states)
    links = ensembles.read(path)[0].model if ensembles.is_ensemble(source) else ()
    return " ".join([mine, *(mark(ensembles.source_of(link, path)) for link in links)])


def _from_store(source: str, secrets: Secrets, progress: Progress) -> Opened:
    ref = Ref.parse(source)
    with closing(open_store(ref.store)) as store:
        stored = find(store, ref)
        text: bytes | None = stored.text
        signature = stored.signature
        if stored.manifest.format != "sealed":  # whose signature lies inside
            secrets.check(source, text, signature)
        payload = stored.load(progress)
    if stored.manifest.format == "sealed":
        from modelctl.crypto.envelope import open_sealed_payload

        inside = open_sealed_payload(payload, source, secrets.keys, progress=progress)
        payload = _checked_inside(inside, source, stored.manifest, secrets, text, signature)
    return Opened(ref.name, ref.tag, payload)


def _from_file(source: str, secrets: Secrets, progress: Progress) -> Opened:
    artifact = Artifact.open(Path(source))
    text: bytes | None = None
    signature: bytes | None = None
    if secrets.signer is not None and artifact.manifest_sha256 is not None:
        from modelctl.crypto.signing import sidecars

        text, signature = sidecars(artifact)
    if artifact.manifest.format == "sealed":
        from modelctl.crypto.envelope import open_sealed

        inside = open_sealed(artifact, secrets.keys, progress=progress)
        payload = _checked_inside(inside, source, artifact.manifest, secrets, text, signature)
    else:
        secrets.check(source, text, signature)
        payload = artifact.load()
    return Opened(artifact.name, FIRST_VERSION, payload)


def _checked_inside(
    payload: Payload, source: str, outside: Manifest, secrets: Secrets, text: bytes | None, signature: bytes | None
) -> Payload:
    """What was sealed, signed as it must be: by the signature that was sealed with it, else by the one outside.

    Without what was sealed to be kept private: a server tells its manifest to whoever asks the model.
    """
    if payload.signature is not None:
        text, signature = payload.manifest_bytes, payload.signature
    secrets.check(source, text, signature)
    if outside.made_by is None or not outside.made_by.options.get("private"):
        return payload
    told = msgspec.structs.replace(payload.manifest, made_by=None, lineage=(), metrics={})
    return replace(payload, manifest=told)
