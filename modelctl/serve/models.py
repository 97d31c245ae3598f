"""The models that a server has: by name and version, loaded and warmed up, each with what runs it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from modelctl.errors import UnsupportedError, UsageError
from modelctl.graph.session import Session
from modelctl.manifest import Manifest, TensorSpec
from modelctl.options import ServeOptions
from modelctl.processing import declared
from modelctl.processing.declared import Declared
from modelctl.progress import Progress, silent
from modelctl.serve.batching import Pace, Runner
from modelctl.serve.links import Ensemble, onnx_of
from modelctl.serve.metrics import Board, Tally
from modelctl.serve.refusal import Refused, told
from modelctl.serve.sources import Gathered, Opened, Secrets, found
from modelctl.serve.tensors import datatype_of
from modelctl.serve.warmup import warm_up


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
    tally: Tally
    row: int  # of the board that the tally stands on
    declared: Declared | None = None  # what comes before and after it, where its manifest says so

    @cached_property
    def digest(self) -> str:
        """The digest of the artifact that answers; of the plain one, when it came sealed."""
        return self.manifest.digest

    @cached_property
    def told(self) -> str:
        """How answers name their model: `name@sha256:<digest>`."""
        return f"{self.name}@sha256:{self.digest}"

    @cached_property
    def header(self) -> tuple[bytes, bytes]:
        """The header that says so."""
        return b"modelctl-model", self.told.encode()

    @property
    def labels(self) -> dict[str, str]:
        """How `/metrics` names it."""
        return {"model": self.name, "version": self.version, "digest": self.digest}


class Models:
    """Models by name and version; of several versions, the one given last answers where none is asked for."""

    def __init__(self, board: Board, worker: int = 0) -> None:
        self.board = board
        self.worker = worker
        self._places: dict[int, Model] = {}
        self._versions: dict[str, dict[str, Model]] = {}

    def at(self, place: int) -> Model | None:
        """The model of the source at that place of the command line, if it is loaded."""
        return self._places.get(place)

    def name_at(self, place: int) -> str:
        """The name of the model at that place, which is loaded."""
        return self._places[place].name

    def put(self, place: int, model: Model | None) -> None:
        """Serve another model, or none, for a source; UsageError if another one has that name and version."""
        places = {**self._places}
        if model is not None:
            places[place] = model
        else:
            places.pop(place, None)
        versions: dict[str, dict[str, Model]] = {}
        for _, one in sorted(places.items()):
            known = versions.setdefault(one.name, {})
            if one.version in known:
                raise UsageError(
                    f"two models would be served as {one.name} version {one.version}",
                    "modelctl serve MODEL --name OTHER",
                )
            known[one.version] = one
        self._places, self._versions = places, versions

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
        if not self._versions:
            raise Refused("no model is loaded", 404)
        if len(self._versions) != 1:
            raise Refused(f"several models are served, name one of: {', '.join(self._versions)}", 404)
        return self.get(next(iter(self._versions)))


def load_all(
    sources: Sequence[str],
    options: ServeOptions,
    progress: Progress = silent,
    models: Models | None = None,
    places: Mapping[int, int] | None = None,
) -> Models:
    """The models that `sources`, files and refs, stand for: loaded, checked, warmed up.

    `places` says which of them are, and on which rows of the board they count; by default all, in order. UsageError for
    names that clash, UnsupportedError for what can't be run or spoken of; and what `opened` raises.
    """
    if options.name is not None and len(sources) != 1:
        raise UsageError("--name is for a single model, and here are several", "modelctl serve MODEL --name NAME")
    secrets = Secrets(options)
    models = Models(Board()) if models is None else models
    places = {place: place + 1 for place in range(len(sources))} if places is None else places
    for done, (place, row) in enumerate(places.items()):
        progress.advance("loading models", done, len(places), "models")
        source = found(sources[place], secrets, progress)
        models.put(place, ready(source, options, models.board, models.worker, row))
    _check_versions(models, options)
    return models


def _check_versions(models: Models, options: ServeOptions) -> None:
    """UsageError for a share or a shadow of a version that is not there."""
    wanted = [("--route", name, version) for name, shares in options.shares().items() for version in shares]
    wanted += [("--shadow", name, version) for name, version in options.shadowed().items()]
    for flag, name, version in wanted:
        try:
            models.get(name, version)
        except Refused as refused:
            raise UsageError(f"{flag} {name}:{version}: {refused.message}") from refused


def ready(source: Opened | Gathered, options: ServeOptions, board: Board, worker: int, row: int) -> Model:
    """A model, or an ensemble, that can answer at once."""
    threads = options.thread_count()
    if isinstance(source, Gathered):
        ensemble = Ensemble(source, threads, options.provider)
        session: Ensemble | Session = ensemble
        payload = ensemble.payload
    else:
        payload = onnx_of(source.payload)
        session = Session(payload, threads, options.provider)
    name = options.name or source.name
    if not name.isprintable() or "/" in name:
        raise UsageError(f"{told(name)}: no name to be served under", "add --name NAME")
    for spec in (*session.inputs, *session.outputs):
        if datatype_of(spec.dtype) is None:
            raise UnsupportedError(f"{session.name}: {spec.name} is {spec.dtype}, which the protocol has no word for")
    around = declared.of(payload, session.inputs, session.outputs)
    if around is not None and around.before is not None:
        _ = around.before.makers  # an extra that is missing is told now
    pace = warm_up(session.inputs, session.run)
    tally = board.tally(worker, row)
    runner = Runner(
        session.run,
        pace,
        tally,
        board.breaker(row),
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        max_delay_s=options.max_delay_ms / 1000,
    )
    return Model(
        name=name,
        version=source.version,
        manifest=payload.manifest,
        inputs={spec.name: spec for spec in session.inputs},
        outputs={spec.name: spec for spec in session.outputs},
        runner=runner,
        pace=pace,
        tally=tally,
        row=row,
        declared=around,
    )
