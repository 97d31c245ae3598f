"""`export`: a trained model, wherever it comes from, as ONNX, with proof that it is the same model.

A source is `module:factory` (its weights from a state dict), a `.pt2` exported program, or an `.onnx` file to adopt.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from modelctl import record
from modelctl.artifact import Artifact, Payload, format_of
from modelctl.chains import TOKENIZER_SUFFIX, Text, spelling
from modelctl.data import Data, open_data
from modelctl.errors import DataError, UnsupportedError, UsageError, missing_extra
from modelctl.formats import onnx as onnx_format
from modelctl.graph import clean, divergence, measure, parity, raw_parity
from modelctl.graph.closeness import Arrays
from modelctl.graph.ranges import Range, integer_ranges
from modelctl.graph.session import Session
from modelctl.graph.signature import EXAMPLE, agree, parse_inputs
from modelctl.making import Draft, Origin, create
from modelctl.manifest import TensorSpec
from modelctl.options import ExportOptions
from modelctl.processing import fitting
from modelctl.processing.after import After
from modelctl.processing.before import Before
from modelctl.processing.declared import Declared
from modelctl.progress import Progress, silent

if TYPE_CHECKING:
    from modelctl.formats.program import Traced

_BRANCH = "what torch traced does the same, so the code takes another way at these sizes or numbers"

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a factory, or a file of a format that we read."""

    text: str
    format: str  # "factory", "pt2", "onnx"

    @classmethod
    def parse(cls, text: str) -> "Source":
        """The source that a user typed; UsageError or UnsupportedError when it is none that can be exported."""
        if record.is_factory(text):
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
            hint = f"modelctl decrypt {shlex.quote(text)} -o . --identity key.pem" if found == "sealed" else None
            raise UnsupportedError(f"{path}: export reads module:factory, .pt2 and .onnx, this is {found}", hint)
        return cls(text, found)

    @property
    def path(self) -> Path:
        """The file, where it is one."""
        return Path(self.text)


def origin(source: Source, options: ExportOptions) -> Origin:
    """What an export is made from: the factory's files and the weights, or the file.

    UsageError for a factory that can't be read or weights that nothing takes, ArtifactError for a file that is none.
    """
    libraries = LIBRARIES if source.format == "onnx" else ("torch", *LIBRARIES)
    if source.format == "factory":
        parents = (Artifact.open(options.weights),) if options.weights is not None else ()
        return Origin("export", options, parents, {"source": record.factory(source.text)}, libraries)
    if options.weights is not None:
        raise UsageError("--weights: only a module:factory takes weights from a file")
    parent = onnx_format.open_model(source.path) if source.format == "onnx" else Artifact.open(source.path)
    return Origin("export", options, (parent,), {}, libraries)


def export(source: Source, out: Path, options: ExportOptions, progress: Progress = silent) -> Artifact:
    """`out`: the source as ONNX, clean, the same bytes each time, and proven equal to it.

    CheckFailed when it is not equal or a dimension that was to be free is not; ArtifactError when the source is not
    sound; UnsupportedError when it can't be written as ONNX, or torch is needed and missing; UsageError for inputs that
    are not the source's, what is declared and does not fit them, or an `out` that would be lost; DataError for samples
    that don't fit.
    """
    onnx_format.refuse_other_out(out, "export")
    made_from = origin(source, options)
    _refuse_losing(out, made_from)
    with create(out, made_from) as draft:
        is_raw = bool(options.preprocess) or any(one.manifest.preprocess for one in made_from.parents)
        early = bool(options.inputs) and not is_raw
        data = _samples(options, parse_inputs(options.inputs)) if early else None  # a wrong shape is told now
        progress.advance("reading and translating", 0, 1)
        found = (
            _adopted(made_from.parents[0], options)
            if source.format == "onnx"
            else _translated(source, made_from, options, progress)
        )
        onnx_format.save(found.model, draft.path)
        payload = onnx_format.written(draft.path)
        session = Session(payload, options.thread_count())
        draft.inputs, draft.outputs = session.inputs, session.outputs
        tokenizer = _declare(draft, made_from, options)
        after = After(draft.postprocess) if draft.postprocess else None
        around = Declared(Before(draft.preprocess, draft.inputs, tokenizer), after)
        known = data is not None and data.inputs == found.inputs
        data = data if known else _samples(options, found.inputs, around if draft.preprocess else None)
        proof = _prove(found, payload, session.run, data, options, progress)
        if draft.preprocess:
            proof["raw"] = raw_parity.check(
                around,
                found.reference,
                session.run,
                draft.inputs,
                _tolerance(options),
                name=out.name,
                seed=options.seed,
            )
        draft.metrics = _figures(payload, data, options, progress) | {"parity": proof}
        if tokenizer is not None:
            draft.path.with_name(out.name + TOKENIZER_SUFFIX).write_bytes(tokenizer)
    return Artifact.open(out)


@dataclass(frozen=True)
class _Found:
    """A source made into ONNX: how the source itself is run, on what, at which sizes of its free dimensions."""

    model: onnx.ModelProto
    reference: parity.Function
    inputs: tuple[TensorSpec, ...]
    sizes: Mapping[str, int]
    ranges: Mapping[str, Range]  # of integer inputs that are indices
    inside: divergence.Inside
    otherwise: str | None = None  # what it must be when answers differ, but nothing inside does


def _refuse_losing(out: Path, made_from: Origin) -> None:
    """The weights of an ONNX file may lie in several files, and none of them may be written over."""
    written = {out.resolve(), out.with_name(out.name + onnx_format.DATA_SUFFIX).resolve()}
    for parent in made_from.parents:
        for entry in parent.manifest.files:
            if parent.file(entry).resolve() in written:
                raise UsageError(f"{out}: would be written over {parent.file(entry)}", "choose another name with -o")


def _samples(options: ExportOptions, inputs: tuple[TensorSpec, ...], around: Declared | None = None) -> Data | None:
    """The user's samples for a model of these inputs, read and fitted; None where there are none."""
    if options.data is None:
        return None
    data = open_data(options.data, inputs, options.seed, declared=around)
    if not len(data.scored):
        raise DataError(f"{data.name}: holds no samples")
    return data


def _figures(payload: Payload, data: Data | None, options: ExportOptions, progress: Progress) -> dict[str, Any]:
    """What is known of the result by itself; with samples, how right and how fast it is, for later steps to hold."""
    if data is None:
        return measure.describe(payload)
    trial = measure.Trial(
        samples=data.scored,
        data=data.sha256,
        threads=options.thread_count(),
        timed_threads=options.timed_threads(),
        seed=options.seed,
    )
    return measure.examine(payload, trial, progress)


def _prove(
    found: _Found,
    made: Payload,
    candidate: parity.Function,
    data: Data | None,
    options: ExportOptions,
    progress: Progress,
) -> dict[str, Any]:
    """The parity gate; see `graph.parity`."""
    tolerance = _tolerance(options)

    def explain(feeds: Arrays) -> str | None:
        return divergence.first_difference(
            made, found.inside, feeds, tolerance, threads=options.thread_count(), otherwise=found.otherwise
        )

    return parity.check(
        found.reference,
        candidate,
        found.inputs,
        found.sizes,
        tolerance,
        name=made.manifest.files[0].path,
        seed=options.seed,
        ranges=found.ranges,
        explain=explain,
        samples=None if data is None else data.scored.inputs,
        progress=progress,
    )


def _tolerance(options: ExportOptions) -> parity.Tolerance:
    return parity.Tolerance(rtol=options.rtol, atol=options.atol, allow_vacuous=options.allow_vacuous)


def _declare(draft: Draft, made_from: Origin, options: ExportOptions) -> bytes | None:
    """What is declared before and after the model: as asked, else as its source has it; and the tokenizer, if any.

    UsageError where it does not fit the inputs and outputs of the draft.
    """
    tokenizer = None
    for parent in made_from.parents[:1]:
        known = {entry.path: entry for entry in parent.manifest.files}
        entry = known.get(parent.path.name + TOKENIZER_SUFFIX)
        tokenizer = parent.file(entry).read_bytes() if entry is not None else None
    if options.preprocess:
        drafts = spelling.parse("preprocess", options.preprocess)
        draft.preprocess = fitting.settled_before(drafts, draft.inputs)
        texts = [one for one in drafts if "tokenizer" in one.files]
        tokenizer = fitting.tokenizer_bytes(texts[0]) if texts else None
    if options.postprocess:
        drafts = spelling.parse("postprocess", options.postprocess)
        draft.postprocess = fitting.settled_after(drafts, draft.preprocess, draft.inputs, draft.outputs)
    fitting.check_before(draft.preprocess, draft.inputs)
    fitting.check_after(draft.postprocess, draft.inputs, draft.outputs)
    return tokenizer if any(isinstance(one, Text) for one in draft.preprocess) else None


def _adopted(parent: Artifact, options: ExportOptions) -> _Found:
    """An ONNX file of someone else, checked and clean, its weights taken in, its operator set as it was or as asked."""
    payload = parent.load()
    name = str(parent.path)
    model = onnx_format.parse(payload)
    clean.adopt(model, name)
    if options.opset is not None:
        model = clean.raised(model, options.opset, name)
    reference = Session(payload, options.thread_count())
    # The source's own unnamed dimensions have their names only in what is made of it.
    inputs = Session(onnx_format.payload_of(model, payload), options.thread_count()).inputs
    if options.inputs:
        inputs = agree(inputs, parse_inputs(options.inputs), name)
        clean.name_dimensions(model, inputs)
    clean.strip(model)
    clean.check(model, name)
    ranges = integer_ranges(model)
    onnx_format.keep_packed(model, payload)
    sizes = parity.find_sizes(reference.run, inputs, options.seed, ranges)
    return _Found(model, reference.run, inputs, sizes, ranges, divergence.inside(payload, options.thread_count()))


def _translated(source: Source, made_from: Origin, options: ExportOptions, progress: Progress) -> _Found:
    """A torch module or exported program as ONNX."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra(f"{source.text}: export from torch needs torch", "torch") from error
    from modelctl.formats import pt2
    from modelctl.graph import lower

    torch.set_num_threads(options.thread_count())
    opset = options.opset or lower.OPSET
    if source.format == "pt2":
        program = pt2.read(made_from.parents[0], options.unsafe_pickle)
        traced = pt2.traced(program, source.text)
        if options.inputs:
            traced = traced.called(agree(traced.inputs, parse_inputs(options.inputs), source.text, rename=True))
        sizes = parity.find_sizes(traced.run, traced.inputs, options.seed)
        lowered = lower.lower_program(traced, program, sizes, opset)
    else:
        traced = _built(source, made_from, options, progress)
        sizes = parity.find_sizes(traced.run, traced.inputs, options.seed)
        lowered = lower.lower(traced, sizes, opset)
    return _Found(
        lowered.model, traced.run, traced.inputs, sizes, integer_ranges(lowered.model), lowered.inside, _BRANCH
    )


def _built(source: Source, made_from: Origin, options: ExportOptions, progress: Progress) -> "Traced":
    """What the factory returns, with the weights in it, in evaluation mode."""
    import torch

    from modelctl import factory
    from modelctl.formats import checkpoint, program

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)  # so that a model without weights is the same each time
        module, home = factory.build(source.text)
    program.check_module(module, source.text)
    if made_from.parents:
        checkpoint.fill(module, made_from.parents[0], options.unsafe_pickle)
    if program.is_training(module):
        progress.note(f"{source.text}: put into evaluation mode; dropout or batch norm work otherwise in training")
    module.eval()
    inputs = parse_inputs(options.inputs) if options.inputs else program.example_specs(module, home)
    if not inputs:
        raise UsageError(f"{source.text}: the shapes of its inputs are not known", f"add {EXAMPLE}")
    return program.Traced(source.text, module, inputs, program.bind(module, inputs))
