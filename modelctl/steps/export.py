"""`export`: a trained model, wherever it comes from, as ONNX, with proof that it is the same model.

A source is `module:factory` (its weights from a state dict), a `.pt2` exported program, or an `.onnx` file to adopt.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from modelctl import record
from modelctl.artifact import Artifact, Origin, Payload, create, format_of
from modelctl.data import open_data
from modelctl.errors import UnsupportedError, UsageError, missing_extra
from modelctl.formats import onnx as onnx_format
from modelctl.graph import clean, measure, parity
from modelctl.graph.session import Session
from modelctl.graph.signature import EXAMPLE, parse_inputs
from modelctl.manifest import FileEntry, Manifest, TensorSpec
from modelctl.options import ExportOptions
from modelctl.progress import Progress, silent

if TYPE_CHECKING:
    from modelctl.formats.program import Traced

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a factory, or a file of a format that we read."""

    text: str
    format: str  # "factory", "pt2", "onnx"

    @classmethod
    def parse(cls, text: str) -> "Source":
        """The source that a user typed; UsageError or UnsupportedError when it is none that can be exported."""
        module, colon, factory = text.partition(":")
        if colon and factory.isidentifier() and all(part.isidentifier() for part in module.split(".")):
            return cls(text, "factory")
        path = Path(text)
        if not path.is_file():
            Artifact.open(path)  # says what is wrong
        found = format_of(path)
        if found in ("checkpoint", "safetensors"):
            raise UsageError(
                f"{path}: holds weights, but not the model that they are for",
                f"modelctl export net:make --weights {path} -o net.onnx {EXAMPLE}",
            )
        if found not in ("pt2", "onnx"):
            raise UnsupportedError(f"{path}: export reads module:factory, .pt2 and .onnx, this is {found}")
        return cls(text, found)

    @property
    def path(self) -> Path:
        """The file, where it is one."""
        return Path(self.text)


def origin(source: Source, options: ExportOptions) -> Origin:
    """What an export is made from: the factory's files and the weights, or the file."""
    libraries = LIBRARIES if source.format == "onnx" else ("torch", *LIBRARIES)
    if source.format == "factory":
        parents = (Artifact.open(options.weights),) if options.weights is not None else ()
        also = {"source": record.factory(source.text)}
        return Origin("export", options, parents, also, libraries)
    if options.weights is not None:
        raise UsageError("--weights: only a module:factory takes weights from a file")
    parent = _adopted(source.path) if source.format == "onnx" else Artifact.open(source.path)
    return Origin("export", options, (parent,), {}, libraries)


def export(source: Source, out: Path, options: ExportOptions, progress: Progress = silent) -> Artifact:
    """`out`: the source as ONNX, clean, the same bytes each time, and proven equal to it.

    CheckFailed when it is not equal or a dimension that was to be free is not; ArtifactError when the source is not
    sound; UnsupportedError when it can't be written as ONNX, or torch is needed and missing.
    """
    if format_of(out) != "onnx":
        raise UnsupportedError(f"{out}: export writes .onnx", f"-o {out.with_suffix('.onnx').name}")
    made_from = origin(source, options)
    with create(out, made_from) as draft:
        if source.format == "onnx":
            model, reference, inputs = _adopt(made_from.parents[0], options)
        else:
            model, reference, inputs = _from_torch(source, made_from, options, progress)
        onnx_format.save(model, draft.path)
        payload = _payload(draft.path)
        session = Session(payload, options.thread_count())
        draft.inputs, draft.outputs = session.inputs, session.outputs
        draft.metrics = measure.describe(payload)
        draft.metrics["parity"] = _prove(reference, session, inputs, out, options, progress)
    return Artifact.open(out)


def _prove(
    reference: parity.Function,
    candidate: Session,
    inputs: tuple[TensorSpec, ...],
    out: Path,
    options: ExportOptions,
    progress: Progress,
) -> dict[str, Any]:
    samples = None
    if options.data is not None:
        samples = open_data(options.data, inputs, options.seed).scored.inputs
    tolerance = parity.Tolerance(rtol=options.rtol, atol=options.atol, allow_vacuous=options.allow_vacuous)
    sizes = parity.find_sizes(reference, inputs, options.seed)
    return parity.check(
        reference,
        candidate.run,
        inputs,
        sizes,
        tolerance,
        name=out.name,
        seed=options.seed,
        samples=samples,
        progress=progress,
    )


def _payload(path: Path) -> Payload:
    """What was written, in memory, as it will be."""
    files = {file.name: file.read_bytes() for file in sorted(path.parent.iterdir())}
    entries = tuple(FileEntry(path=name, size=len(data), sha256="0" * 64) for name, data in files.items())
    first = sorted(entries, key=lambda entry: entry.path != path.name)
    return Payload(Manifest(name=path.stem, format="onnx", files=tuple(first)), files)


def _from_torch(
    source: Source, made_from: Origin, options: ExportOptions, progress: Progress
) -> tuple[onnx.ModelProto, parity.Function, tuple[TensorSpec, ...]]:
    try:
        import torch  # noqa: F401 - only to say which extra it is in
    except ImportError as error:
        raise missing_extra(f"{source.text}: export of this source needs torch", "torch") from error
    from modelctl.graph import lower

    progress.advance("tracing", 0, 1)
    model = _traced_factory(source, made_from, options, progress)
    return lower.lower(model, options.opset, options.seed), model.run, model.inputs


def _traced_factory(source: Source, made_from: Origin, options: ExportOptions, progress: Progress) -> "Traced":
    from modelctl.formats import checkpoint, factory, program

    module, home = factory.build(source.text)
    program.check_module(module, source.text)
    if made_from.parents:
        checkpoint.fill(module, made_from.parents[0], options.unsafe_pickle)
    if program.is_training(module):
        progress.note(f"{source.text}: put into evaluation mode; dropout or batch norm work otherwise in training")
    module.eval()
    inputs = parse_inputs(options.inputs) if options.inputs else program.example_specs(module, home)
    if not inputs:
        raise UsageError(f"{source.text}: takes inputs of unknown shape", f"add {EXAMPLE}")
    return program.Traced(source.text, module, inputs, program.bind(module, inputs))


def _adopted(path: Path) -> Artifact:
    """The foreign file, and the files beside it that hold its weights, as one parent."""
    return Artifact.open(path)


def _adopt(parent: Artifact, options: ExportOptions) -> tuple[onnx.ModelProto, parity.Function, tuple[TensorSpec, ...]]:
    """An ONNX file of someone else, checked and clean, its opset as it was."""
    payload = parent.load()
    reference = Session(payload, options.thread_count())
    model = onnx_format.parse(payload)
    clean.strip(model)
    return model, reference.run, reference.inputs
