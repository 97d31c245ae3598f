"""The manifest: what an artifact is, how it was made, from what, and what was measured on the way.

`model.onnx` is described by `model.onnx.manifest.json` beside it. The text is JSON in UTF-8 with sorted keys, two-space
indent and one final newline, at most 4 MiB. Reading is strict: an unknown field, a duplicate key, a number that JSON
does not have, a path that leaves the folder or a schema we do not know is an ArtifactError. A manifest's identity is
the sha256 of its bytes as they stand.
"""

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from modelctl import digests
from modelctl.chains import Postprocess, Preprocess
from modelctl.errors import ArtifactError
from modelctl.reading import Small

SCHEMA = "modelctl/manifest/v1"
SUFFIX = ".manifest.json"
SIGNATURE_SUFFIX = ".dsse.json"
LIMIT_BYTES = 4 << 20
FILE = Small("a manifest", LIMIT_BYTES, ArtifactError)

# The lengths are there because `$` alone, in Python, lets a line break follow.
Digest = Annotated[
    str, Meta(pattern="^[0-9a-f]{64}$", min_length=64, max_length=64, description="lowercase hex sha256")
]


class FileEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of an artifact: its POSIX path relative to the manifest's folder, size in bytes, digest."""

    path: Annotated[str, Meta(min_length=1, max_length=1024)]
    size: Annotated[int, Meta(ge=0)]
    sha256: Digest


class TensorSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input or output: its name, element type (numpy's word), and shape; a free dimension is spelled by its name."""

    name: str
    dtype: str
    shape: tuple[Annotated[int, Meta(ge=0)] | str, ...]


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an artifact was made: enough to make the same bytes again."""

    step: str
    version: str
    options: dict[str, Any] = {}
    parents: tuple[Digest, ...] = ()
    seed: int | None = None
    environment: dict[str, str] = {}
    choices: dict[str, Any] = {}


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ancestor, as the lineage remembers it; `made_by` is null for a trained checkpoint."""

    name: str
    format: str
    digest: Digest
    made_by: Step | None = None
    metrics: dict[str, Any] = {}

    @property
    def parents(self) -> tuple[str, ...]:
        """The digests of what it was made from; none for a root."""
        return self.made_by.parents if self.made_by else ()


class Encryption(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a sealed artifact from outside: the cipher, who may open it, what is inside, by digest."""

    suite: str
    recipients: tuple[str, ...]
    manifest: Digest  # of the plain artifact's manifest
    digest: Digest  # of the plain artifact


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sidecar of an artifact, `schema` first; see the module's docstring for how it is written."""

    schema: Annotated[str, Meta(pattern=f"^{SCHEMA}$", max_length=len(SCHEMA))] = SCHEMA
    name: Annotated[str, Meta(min_length=1, max_length=255)]
    format: Annotated[str, Meta(min_length=1, max_length=64)]
    files: Annotated[tuple[FileEntry, ...], Meta(min_length=1)]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    preprocess: tuple[Preprocess, ...] = ()
    postprocess: tuple[Postprocess, ...] = ()
    made_by: Step | None = None
    metrics: dict[str, Any] = {}
    lineage: tuple[Record, ...] = ()
    annotations: dict[str, str] = {}
    encryption: Encryption | None = None

    @property
    def digest(self) -> str:
        """The artifact's digest: its file's sha256, or that of the `sha256sum` lines of its files, in order.

        For a sealed artifact it is the digest of the plain artifact inside.
        """
        if self.encryption is not None:
            return self.encryption.digest
        return digests.of_files((entry.path, entry.sha256) for entry in self.files)

    def record(self) -> Record:
        """This artifact as its descendants' lineage remembers it."""
        return Record(
            name=self.name, format=self.format, digest=self.digest, made_by=self.made_by, metrics=self.metrics
        )

    def history(self) -> tuple[Record, ...]:
        """The lineage with this artifact's own record at its end."""
        return (*self.lineage, self.record())

    def text(self) -> str:
        """The manifest as it is written; the same manifest always gives the same text."""
        plain = msgspec.to_builtins(self)
        return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def parse(data: bytes, name: str = "manifest") -> Manifest:
    """The manifest in `data`, strictly read; ArtifactError says what is wrong with the one called `name`."""
    plain = FILE.json(data, name)
    if isinstance(plain, dict) and plain.get("schema") != SCHEMA:
        raise ArtifactError(f"{name}: schema is {str(plain.get('schema'))[:80]!r}, this modelctl reads {SCHEMA}")
    try:
        manifest = msgspec.convert(plain, Manifest)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{name}: not a manifest: {error}") from error
    if not manifest.name.isprintable() or any(letter in "/\\" for letter in manifest.name):
        raise ArtifactError(f"{name}: the name {manifest.name!r} is no plain one")
    primary = manifest.files[0].path
    seen: set[str] = {(primary + suffix).casefold() for suffix in (SUFFIX, SIGNATURE_SUFFIX)}
    for entry in manifest.files:
        check_path(entry.path, name)
        if entry.path.casefold() in seen:
            raise ArtifactError(f"{name}: lists {entry.path!r} twice, or lists its own sidecar")
        seen.add(entry.path.casefold())
    return manifest


def check_path(path: str, name: str) -> None:
    """Refuse, with an ArtifactError of the manifest called `name`, a path that is not a plain one inside its folder.

    Plain is what every system can hold and every terminal can show: relative, no `.` or `..`, no hidden part, nothing
    that is not printable, none of the characters that Windows keeps for itself.
    """
    parts = path.split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or not path.isprintable()
        or any(letter in '\\:*?"<>|' for letter in path)
        or any(part.startswith(".") or part != part.strip() for part in parts)
    ):
        raise ArtifactError(f"{name}: lists the path {path!r}, which is not a plain one inside its folder")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the manifest, made from the types above; `schemas/` holds it for other languages."""
    schema = msgspec.json.schema(Manifest)
    schema["$defs"]["Manifest"]["required"].insert(0, "schema")  # it has a default for Python's sake only
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:modelctl:manifest:v1",
        "title": "modelctl manifest",
        **schema,
    }
