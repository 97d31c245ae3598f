"""Signatures: a DSSE envelope over an in-toto Statement about an artifact's files and manifest.

`model.onnx.dsse.json` is `{"payload", "payloadType", "signatures": [{"keyid", "sig"}]}`, payload and sig in base64.
What is signed is the pre-authentication encoding (secure-systems-lab/dsse, protocol.md)

    "DSSEv1" SP length(type) SP type SP length(payload) SP payload

of a Statement (in-toto/attestation, spec/v1/statement.md) whose subjects are the files and the manifest, by sha256, and
whose predicate is the manifest. A keyid is the sha256 of the key's DER SubjectPublicKeyInfo. The statement follows from
the manifest's bytes, so an envelope is checked by making it again and comparing.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from modelctl import digests, manifest
from modelctl.artifact import Artifact, manifest_path, signature_path
from modelctl.crypto.keys import PrivateKey, PublicKey
from modelctl.errors import ArtifactError, IntegrityError, UsageError
from modelctl.manifest import Digest
from modelctl.reading import Small

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:modelctl:manifest:v1"
MOST_SIGNATURES = 64
LIMIT_BYTES = 4 * manifest.LIMIT_BYTES  # of the envelope: a manifest, its files once more, and all in base64
SIGNATURE = Small("a signature", LIMIT_BYTES, ArtifactError)

Base64 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]*={0,2}\Z")]


class Signature(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature over the payload, and the id of the key that made it."""

    keyid: Digest
    sig: Annotated[Base64, Meta(min_length=64, max_length=4096)]


class Envelope(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payload and the signatures over it, one a key."""

    payload: Base64
    payload_type: Literal["application/vnd.in-toto+json"] = msgspec.field(name="payloadType", default=PAYLOAD_TYPE)
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=MOST_SIGNATURES)]

    def text(self) -> bytes:
        """The envelope as it is written."""
        return json.dumps(msgspec.to_builtins(self), indent=2, sort_keys=True).encode() + b"\n"


@dataclass(frozen=True)
class Checked:
    """What is known of one signature: whose it says it is, and whether a key that was given bears it out."""

    keyid: str
    verified_by: str | None  # the source of that key, as it was given


def encoded(payload: bytes) -> bytes:
    """The pre-authentication encoding of `payload`: what is signed."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def statement(manifest_bytes: bytes, name: str) -> dict[str, Any]:
    """The in-toto Statement about the artifact that a manifest describes; `name` is the manifest's in messages."""
    described = manifest.parse(manifest_bytes, name)
    subjects = [(entry.path, entry.sha256) for entry in described.files]
    subjects.append((described.files[0].path + manifest.SUFFIX, digests.of_bytes(manifest_bytes)))
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": path, "digest": {"sha256": sha256}} for path, sha256 in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": manifest.FILE.json(manifest_bytes, name),
    }


def sign(manifest_bytes: bytes, key: PrivateKey, standing: bytes | None, name: str) -> bytes:
    """An envelope with `key`'s signature, beside those of other keys in the envelope `standing`.

    IntegrityError when `standing` is about another manifest, ArtifactError when it is no envelope.
    """
    if standing is not None:
        envelope = _covering(manifest_bytes, standing, name)
        payload = _decoded(envelope.payload, name)
        others = tuple(one for one in envelope.signatures if one.keyid != key.id)
    else:
        payload = json.dumps(statement(manifest_bytes, name), sort_keys=True, ensure_ascii=False).encode()
        others = ()
    mine = Signature(keyid=key.id, sig=base64.b64encode(key.sign(encoded(payload))).decode())
    if len(others) >= MOST_SIGNATURES:
        raise UsageError(f"{name}: has {len(others)} signatures, and no more are taken")
    made = Envelope(payload=base64.b64encode(payload).decode(), signatures=(*others, mine)).text()
    if len(made) > LIMIT_BYTES:
        raise UsageError(f"{name}: the manifest is too large to be signed")
    return made


def check_signature(
    manifest_bytes: bytes, envelope_bytes: bytes | None, keys: Sequence[tuple[str, PublicKey]], name: str
) -> list[Checked]:
    """Whether an envelope is about this manifest, and every one of `keys`, (source, key), has signed it.

    The manifest's bytes and the envelope's are taken as they were loaded; whether the files are those of the manifest
    is for the caller to see to. Without an envelope and without keys nothing is checked. IntegrityError says what is
    not so, and calls the artifact `name`.
    """
    if envelope_bytes is None:
        if keys:
            raise IntegrityError(f"{name}: is not signed, and {keys[0][0]} must have signed it")
        return []
    try:
        envelope = _covering(manifest_bytes, envelope_bytes, name)
        payload = encoded(_decoded(envelope.payload, name))
    except ArtifactError as error:
        raise IntegrityError(error.message) from error
    sources: dict[str, str] = {}
    for source, key in keys:
        mine = [one for one in envelope.signatures if one.keyid == key.id]
        if not mine:
            raise IntegrityError(f"{name}: is not signed by {source} (key {key.id})")
        if not all(key.verifies(payload, _decoded(one.sig, name)) for one in mine):
            raise IntegrityError(f"{name}: the signature of {source} (key {key.id}) is not right")
        sources[key.id] = source
    return [Checked(one.keyid, sources.get(one.keyid)) for one in envelope.signatures]


def _covering(manifest_bytes: bytes, envelope_bytes: bytes, name: str) -> Envelope:
    """The envelope, when it is one and about this manifest; the signatures in it are not checked here."""
    where = f"{name}: signature"
    plain = SIGNATURE.json(envelope_bytes, where)
    try:
        envelope = msgspec.convert(plain, Envelope)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{where}: not a DSSE envelope of ours: {error}") from error
    if len({one.keyid for one in envelope.signatures}) != len(envelope.signatures):
        raise ArtifactError(f"{where}: a key has signed twice")
    told = SIGNATURE.json(_decoded(envelope.payload, where), where)
    if told != statement(manifest_bytes, name):
        raise IntegrityError(f"{where}: is about another artifact, or an older version of this one")
    return envelope


def _decoded(text: str, name: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ArtifactError(f"{name}: not base64: {error}") from error
    if base64.b64encode(data).decode() != text:
        raise ArtifactError(f"{name}: not base64 in the one spelling")
    return data


def sidecars(model: Artifact) -> tuple[bytes, bytes | None]:
    """The bytes of the manifest that `model` was opened with, and of its signature if it has one.

    UsageError for a foreign file, which has no manifest; IntegrityError when the manifest has changed since.
    """
    if model.manifest_sha256 is None:
        raise UsageError(f"{model.path}: has no manifest", f"modelctl export {model.path} -o {_adopted(model)}")
    text = manifest.FILE.data(manifest_path(model.path))
    if digests.of_bytes(text) != model.manifest_sha256:
        raise IntegrityError(f"{manifest_path(model.path)}: changed while it was read")
    envelope = signature_path(model.path)
    if envelope.is_symlink():
        raise IntegrityError(f"{envelope}: is a link, and an artifact holds none")
    return text, SIGNATURE.data(envelope) if envelope.is_file() else None


def _adopted(model: Artifact) -> str:
    return "model.onnx" if model.path.name != "model.onnx" else "adopted.onnx"
