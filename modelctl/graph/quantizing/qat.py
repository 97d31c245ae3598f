"""Quantization-aware training: a float graph that learns to answer as before, though it is rounded.

What is rounded is planned (`placing`), ranges of values come from calibration, and then the graph learns from the float
model that it was, rounding in every step (`fakes`, `rounding`, `tutoring`). Its convolutions have a normalization while
they learn, as in healing, which goes into their scales and biases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import version_converter
from onnx.shape_inference import InferenceError

from modelctl.data import Data
from modelctl.errors import CheckFailed, UnsupportedError, UsageError
from modelctl.graph import histograms, normalization, training, weights
from modelctl.graph.calibration import Calibrator
from modelctl.graph.histograms import Range
from modelctl.graph.prepare import pool_before_relu, prepare, products, small_convolutions
from modelctl.graph.quantizing import fakes
from modelctl.graph.quantizing.placing import Plan, plan
from modelctl.graph.session import Session
from modelctl.graph.straight import straight
from modelctl.graph.tutoring import Tutor, tensors
from modelctl.options import Optimizer
from modelctl.progress import Progress, silent

BATCH = 32  # samples that ranges are found on at a time
NORMALIZED_ON = 512  # samples
SHARES = (1.0, 0.1)  # of the rate: it learns again, more slowly, if learning made it worse
LEAST_BATCH = 16  # samples that tell enough of a mean to normalize by it


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long and by what recipe a graph learns to be rounded to `bits` bits of a weight, 2 to 8; see `Tutor`.

    Without epochs it is only rounded. `samples` of the training part are calibrated on. Where `excluded` (names of
    nodes that stay in float) is None, those stay that gain nothing from integers. Where a processor adds products of
    uint8 and int8 in 16 bits (AVX2), 8 bits overflow, and 7 do not.
    """

    bits: int = 4
    epochs: int = 1
    batch_size: int = 128
    optimizer: Optimizer | None = None
    lr: float | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    flip: bool = False
    samples: int = 512
    excluded: Sequence[str] | None = None
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"a weight learns to be rounded to 2 to 8 bits, not {self.bits}", "--bits 4")


@dataclass(frozen=True)
class Trained:
    """A graph in integers, the mean loss of each epoch, how many bits a weight takes, and the nodes left in float."""

    model: onnx.ModelProto
    losses: list[float]
    stored_bits: int
    floats: list[str]


def train(
    model: onnx.ModelProto, session: Session, data: Data, course: Course, folder: Path, progress: Progress = silent
) -> Trained:
    """`model` with weights of few bits and values in uint8, taught by the float model that it is, loaded in `session`.

    Learns on the training part of `data`, from the labels too where they are classes that the model tells. What must
    be written in between goes below `folder`. UnsupportedError for a graph that is quantized already, that can't be
    trained, or where there is nothing to round; DataError for samples that don't fit; CheckFailed when the loss is not
    a number any more. What has become worse by learning, at a tenth of the rate too, is kept as it was.
    """
    name = session.name
    ready = _ready(model, name, course.bits, progress)
    chosen, ranges = _planned(ready, session, data, course, folder, progress)
    losses: list[float] = []
    if not course.epochs:
        made = fakes.put(ready, chosen, ranges, course.bits)
    else:
        with training.reproducible(course.seed, course.threads):
            tutor = Tutor(session, data, course, "quantize", progress)
            if len(session.outputs) > 1:
                progress.note(f"only the output {session.outputs[0].name!r} is taught, the others follow")
            if tutor.batch is None or tutor.batch >= LEAST_BATCH:
                seen = data.train.first(tutor.batch or NORMALIZED_ON)
                ready = normalization.insert(ready, name, tensors(seen))
            made, losses = _taught(fakes.put(ready, chosen, ranges, course.bits), tutor, course.epochs, progress)
    rounded = {one.weight for one in chosen.weighted}
    left = {tensor.name for tensor in weights.prunable(ready)} - rounded
    floats = [node.name for node in ready.graph.node if left & set(node.input)]
    written, stored = fakes.written(made, chosen, course.bits)
    return Trained(written, losses, stored, floats)


def _taught(
    rounding: onnx.ModelProto, tutor: Tutor, epochs: int, progress: Progress
) -> tuple[onnx.ModelProto, list[float]]:
    """The graph once it has learned, and its losses; the graph as it was if learning made it worse twice."""
    for share in SHARES:
        graph, learner = tutor.learner(rounding)
        before = tutor.held_out(graph, learner)
        try:
            history = tutor.teach(graph, learner, epochs, share=share)
        except CheckFailed as error:
            if share == SHARES[-1]:
                raise
            progress.note(f"{error.message}; learning again at a tenth of the rate")
            continue
        after = tutor.held_out(graph, learner)
        if after < before:
            return graph.to_onnx(), history.losses
        progress.note(f"learning made it worse on samples held out: the loss was {before:.4g} and is {after:.4g}")
    progress.note("the rounded model is kept as it was before it learned")
    return rounding, history.losses


def _ready(model: onnx.ModelProto, name: str, bits: int, progress: Progress) -> onnx.ModelProto:
    """The graph folded, without detours, every node with a name of its own, in an opset that knows such weights."""
    if weights.is_quantized(model):
        raise UnsupportedError(f"{name}: is quantized already; quantize the float model that it was made from")
    ready = onnx.ModelProto()
    ready.CopyFrom(straight(model, name))
    ready = prepare(ready, name)
    wanted = fakes.OPSETS.get(bits, 0)
    version = next(one.version for one in ready.opset_import if one.domain in ("", "ai.onnx"))
    if version < wanted:
        try:
            ready = version_converter.convert_version(ready, wanted)
            ready.ir_version = max(ready.ir_version, fakes.IR_VERSIONS[bits])
        except (RuntimeError, version_converter.ConvertError, InferenceError) as error:
            progress.note(f"weights take eight bits each: opset {version} can't be raised to {wanted}: {error}")
    taken: set[str] = set()
    for place, node in enumerate(ready.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}_{node.output[0]}"
        taken.add(node.name)
    return ready


def _planned(
    ready: onnx.ModelProto, session: Session, data: Data, course: Course, folder: Path, progress: Progress
) -> tuple[Plan, dict[str, Range]]:
    """What is rounded, and the ranges of its values; what is infinite somewhere stays as it is, and what reads it."""
    excluded = list(course.excluded or ())
    if course.excluded is None:
        small = small_convolutions(ready)
        pool_before_relu(ready, small)
        excluded = [*small, *products(ready)]
    chosen = plan(ready, excluded)
    _refuse_nothing(chosen, session.name)
    fixed = session.inputs[0].shape[0]
    samples = data.train.take(course.samples, course.seed)
    size = fixed if isinstance(fixed, int) else min(BATCH, len(samples))
    calibrator = Calibrator(ready, session.name, sorted(set(chosen.ranges.values())), folder, course.threads)
    calibrator.watch(samples.filled_batches(size), progress, -(-len(samples) // size))
    unbounded = set(calibrator.unbounded())
    if unbounded:
        touching = [node.name for node in ready.graph.node if unbounded & {*node.input, *node.output}]
        chosen = plan(ready, [*excluded, *touching])
        _refuse_nothing(chosen, session.name)
    return chosen, {value: histograms.mse(found) for value, found in calibrator.histograms.items()}


def _refuse_nothing(chosen: Plan, name: str) -> None:
    if not chosen.weighted:
        raise UnsupportedError(f"{name}: has no convolution, Gemm or MatMul of float32 weights to round")
