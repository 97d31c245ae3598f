"""The models that a server has: where they come from, what is known of them, how they are run.

A model comes from a file (with a manifest or foreign), a ref in a store, or a sealed artifact in either; the bytes are
checked as they are read, and what was sealed stays in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modelctl.artifact import Artifact, Payload
from modelctl.errors import IntegrityError, UnsupportedError, UsageError
from modelctl.graph.session import Session
from modelctl.manifest import Manifest, TensorSpec
from modelctl.options import ServeOptions
from modelctl.progress import Progress, silent
from modelctl.serve.batching import Pace, Runner
from modelctl.serve.metrics import Tally
from modelctl.serve.refusal import Refused, told
from modelctl.serve.tensors import datatype_of
from modelctl.serve.warmup import warm_up
from modelctl.stores.ref import Ref, looks_like_ref
from modelctl.stores.store import open_store
from modelctl.stores.transfer import find

if TYPE_CHECKING:
    from modelctl.crypto.keys import OpeningKey, PublicKey

FIRST_VERSION = "1"  # of a model that comes from a file; one from a store has its tag


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that answers: its name, version and digest, what goes in and out, and its runner."""

    name: str
    version: str
    manifest: Manifest
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    runner: Runner
    pace: Pace
    tally: Tally = field(default_factory=Tally)

    @property
    def digest(self) -> str:
        """The digest of the artifact that answers; of the plain one, when it came sealed."""
        return self.manifest.digest

    @property
    def told(self) -> str:
        """How answers name their model: `name@sha256:<digest>`."""
        return f"{self.name}@sha256:{self.digest}"

    @property
    def labels(self) -> dict[str, str]:
        """How `/metrics` names it."""
        return {"model": self.name, "version": self.version, "digest": self.digest}


class Models:
    """Models by name and version; of several versions, the one given last answers where none is asked for."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, Model]] = {}

    def add(self, model: Model) -> None:
        """Take a model in; UsageError if one of that name and version is there."""
        versions = self._versions.setdefault(model.name, {})
        if model.version in versions:
            raise UsageError(
                f"two models would be served as {model.name} version {model.version}",
                "modelctl serve one of them under another --name",
            )
        versions[model.version] = model

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._versions.values() for model in versions.values())

    def names(self) -> list[str]:
        """The names that are served."""
        return list(self._versions)

    def versions(self, name: str) -> list[str]:
        """The versions of a model."""
        return list(self._versions[name])

    def get(self, name: str, version: str | None = None) -> Model:
        """The model of that name, and version if one is given; `Refused` 404 tells what there is."""
        versions = self._versions.get(name)
        if versions is None:
            raise Refused(f"no model {told(name)}; served: {', '.join(self._versions)}", 404)
        if version is None:
            return next(reversed(versions.values()))
        if version not in versions:
            raise Refused(f"no version {told(version)} of {name}; served: {', '.join(versions)}", 404)
        return versions[version]

    def only(self) -> Model:
        """The model that is meant where none is named; `Refused` 404 when there are several."""
        if len(self._versions) != 1:
            raise Refused(f"several models are served, name one of: {', '.join(self._versions)}", 404)
        return self.get(next(iter(self._versions)))


def load_all(sources: Sequence[str], options: ServeOptions, progress: Progress = silent) -> Models:
    """The models that `sources`, files and refs, stand for: loaded, checked, warmed up.

    UsageError for names that clash; IntegrityError for wrong bytes or a signature that is missing or not right;
    ArtifactError, UnsupportedError, StoreError, KeyFileError for what can't be read, run or opened.
    """
    if options.name is not None and len(sources) != 1:
        raise UsageError("--name is for a single model", "modelctl serve one model, or leave --name out")
    signer = _signer(options)
    keys: tuple[OpeningKey, ...] | None = None
    models = Models()
    for done, source in enumerate(sources):
        progress.advance("loading models", done, len(sources), "models")
        name, version, found = _found(source, progress)
        if found.needs_keys and keys is None:
            from modelctl.crypto.keys import opening

            keys = opening(options)
        payload = found.opened(keys or (), signer, progress)
        models.add(_ready(options.name or name, version, payload, options))
    return models


def _signer(options: ServeOptions) -> "tuple[str, PublicKey] | None":
    if options.require_signature is None:
        return None
    from modelctl.crypto.keys import public_key

    return options.require_signature, public_key(options.require_signature)


@dataclass(frozen=True)
class _Found:
    """An artifact that was found: its manifest, and where the bytes are."""

    source: str
    artifact: Artifact | None  # a file's
    payload: Payload | None  # a store's
    text: bytes | None  # the manifest's bytes as they stand; None: it has none
    signature: bytes | None

    @property
    def needs_keys(self) -> bool:
        """Whether it is sealed."""
        return self._manifest.format == "sealed"

    @property
    def _manifest(self) -> Manifest:
        held = self.artifact or self.payload
        assert held is not None
        return held.manifest

    def opened(
        self, keys: "Sequence[OpeningKey]", signer: "tuple[str, PublicKey] | None", progress: Progress
    ) -> Payload:
        """The plain bytes, in memory; a sealed artifact may be signed inside or outside."""
        payload = self._plain(keys, progress)
        if signer is not None:
            from modelctl.crypto.signing import check_signature

            inside = self.needs_keys and payload.signature is not None
            text = payload.manifest.text().encode() if inside else self.text
            signature = payload.signature if inside else self.signature
            if text is None:
                raise IntegrityError(f"{self.source}: is not signed: it has no manifest")
            check_signature(text, signature, [signer], self.source)
        return payload

    def _plain(self, keys: "Sequence[OpeningKey]", progress: Progress) -> Payload:
        if not self.needs_keys:
            return self.payload or (self.artifact.load() if self.artifact else self._nothing())
        from modelctl.crypto import envelope

        if self.artifact is not None:
            return envelope.open_sealed(self.artifact, keys, progress=progress)
        return envelope.open_sealed_payload(self.payload or self._nothing(), self.source, keys, progress=progress)

    def _nothing(self) -> Payload:
        raise AssertionError(self.source)


def _found(source: str, progress: Progress) -> tuple[str, str, _Found]:
    """Name, version and artifact of what the command line calls `source`."""
    if looks_like_ref(source):
        ref = Ref.parse(source)
        with closing(open_store(ref.store)) as store:
            stored = find(store, ref)
            payload = stored.load(progress)
        return ref.name, ref.tag, _Found(source, None, payload, stored.text, stored.signature)
    artifact = Artifact.open(Path(source))
    if artifact.manifest_sha256 is None:
        return artifact.name, FIRST_VERSION, _Found(source, artifact, None, None, None)
    from modelctl.crypto.signing import sidecars

    return artifact.name, FIRST_VERSION, _Found(source, artifact, None, *sidecars(artifact))


def _ready(name: str, version: str, payload: Payload, options: ServeOptions) -> Model:
    """A model that can answer at once."""
    if payload.manifest.format != "onnx":
        kept = payload.manifest.files[0].path
        hint = f"modelctl export {kept} -o {name}.onnx"
        raise UnsupportedError(f"{kept}: serve runs onnx, this is {payload.manifest.format}", hint)
    session = Session(payload, threads=options.thread_count())
    for spec in (*session.inputs, *session.outputs):
        if datatype_of(spec.dtype) is None:
            raise UnsupportedError(f"{session.name}: {spec.name} is {spec.dtype}, which the protocol has no word for")
    pace = warm_up(session, session.run)
    tally = Tally()
    runner = Runner(session.run, pace, tally, max_batch=options.max_batch, max_queue=options.max_queue)
    return Model(
        name=name,
        version=version,
        manifest=payload.manifest,
        inputs={spec.name: spec for spec in session.inputs},
        outputs={spec.name: spec for spec in session.outputs},
        runner=runner,
        pace=pace,
        tally=tally,
    )
