"""`quantize`: fewer bits, within a budget that is proven on samples no search has seen, or no file."""

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from modelctl.artifact import Artifact, Payload
from modelctl.errors import CheckFailed, UnsupportedError, UsageError, missing_extra
from modelctl.formats import onnx as onnx_format
from modelctl.graph import drawing, fixed_point, measure, names, unpacking, weights
from modelctl.graph.feeding import data_for
from modelctl.graph.prepare import small_convolutions
from modelctl.graph.quantizing import frontier, terse
from modelctl.graph.quantizing.recipe import DYNAMIC, Recipe
from modelctl.graph.quantizing.search import Search
from modelctl.graph.quantizing.trials import Trials
from modelctl.graph.quantizing.workshop import Workshop
from modelctl.graph.session import Session
from modelctl.graph.weight_only import Form
from modelctl.making import Origin, create
from modelctl.options import Calibration, Method, QuantizeOptions
from modelctl.progress import Progress, silent

LIBRARIES = ("onnxruntime", "onnx", "onnxscript", "numpy")
CHOSEN_ON = 4096  # samples of the validation part
PARTLY = 0.1  # of the weights in float: with less of them a graph is quantized already


def extra(options: QuantizeOptions) -> str | None:
    """The extra without which these options can't be carried out: to learn, or to round to so few bits."""
    learns = options.chosen is Method.QAT or (options.chosen is Method.STATIC and options.weight_bits < 8)
    return "torch" if learns else None


def origin(model: Artifact, options: QuantizeOptions) -> Origin:
    """What the result is made from: the float model, and the samples to calibrate on; UnsupportedError if not onnx."""
    onnx_format.refuse_other(model.manifest, model.path, "quantize")
    return Origin("quantize", options, (model,), libraries=LIBRARIES)


def quantize(model: Artifact, out: Path, options: QuantizeOptions, progress: Progress = silent) -> Artifact:
    """`out`: the same model in fewer bits.

    Ranges come from the training part of the data, what is chosen is chosen by the validation part, and the figures are
    those of the test part. CheckFailed when the result is not what was asked for (`measure.judge`), or nothing is;
    UnsupportedError when the model is quantized already, or can't be; UsageError for a node to exclude that is not
    there; DataError for samples that don't fit.
    """
    made_from = origin(model, options)
    onnx_format.refuse_other_out(out, "quantize")
    needed = extra(options)
    if needed and find_spec(needed) is None:
        raise missing_extra(f"{model.path}: quantize needs torch for so few bits", needed)
    if options.plot is not None:
        drawing.check_place(Path(options.plot), frontier.KIND)
    with create(out, made_from) as draft:
        payload = model.load()
        work = _Work(model, payload, options, draft.path.parent, progress)
        made, draft.choices = work.run()
        onnx_format.keep_packed(made, payload)
        onnx_format.save(made, draft.path)
        inputs, outputs, trial, told = work.session.inputs, work.session.outputs, work.trial, work.told
        del work, made  # a large model is not held beside those that are compared
        draft.inputs, draft.outputs = draft.inputs or inputs, draft.outputs or outputs
        draft.metrics = measure.compare(payload, onnx_format.written(draft.path), trial, progress) | told
        if trial.samples is None:
            progress.note(
                "without --data only size and speed are compared, on random inputs; the accuracy is not known"
            )
        measure.judge(str(out), draft.metrics, options)
    return Artifact.open(out)


class _Work:
    """A float model, and what is needed to find and make its quantized form; files in between go below `folder`."""

    def __init__(
        self, model: Artifact, payload: Payload, options: QuantizeOptions, folder: Path, progress: Progress
    ) -> None:
        self.payload, self.options, self.folder, self.progress = payload, options, folder, progress
        graph = onnx_format.parse(payload)
        _check(graph, model, options)
        self.session = Session(payload, options.thread_count(), options.provider)
        self.data = data_for(options.data, payload, self.session, options.seed) if options.data else None
        self.trial = measure.trial_on(self.data, options, options.provider)
        self.told: dict[str, Any] = {}
        samples = None if self.data is None else self.data.train.take(options.samples, options.seed)
        self.workshop = Workshop(graph, payload, self.session, samples, folder, options, progress)

    def run(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The graph in fewer bits, known to load and to run; and what was chosen."""
        match self.options.chosen:
            case Method.QAT:
                return self._taught(self.options.epochs)
            case Method.STATIC if self.options.weight_bits < 8:
                return self._taught(0)
            case Method.FIXED_POINT:
                return self._fixed()
        asked = self._asked()
        if len(asked) == 1:
            made, recipe = self.workshop.make(asked[0])
            return made, recipe.facts()
        return self._searched(asked)

    def _asked(self) -> list[Recipe]:
        """The ways to quantize that the options ask for; none: all that a search finds."""
        options = self.options
        shared: dict[str, Any] = {
            "method": options.chosen,
            "types": options.op_types,
            "floats": options.excludes,
            "bits": options.weight_bits,
            "per_channel": options.per_channel,
        }
        match options.chosen:
            case Method.STATIC:
                calibration = options.calibration or Calibration.MINMAX
                return [self.workshop.usual(Recipe(**shared, calibration=calibration, smooth=bool(options.smooth)))]
            case Method.DYNAMIC:
                return [replace(Recipe(**shared), types=options.op_types or DYNAMIC)]
            case Method.WEIGHT_ONLY:
                return [Recipe(**shared, form=form) for form in Form]
            case Method.FLOAT16 | Method.BFLOAT16:
                return [Recipe(**shared, form=form) for form in (Form.STORED, Form.BLOCKS)]
        return []

    def _searched(self, asked: list[Recipe]) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The best of what is asked for, or of all."""
        search = Search(self.workshop, self._trials(), self.options, self.progress)
        best = search.run(asked)
        if self.options.explain:
            self.told["candidates"] = search.table()
        if self.options.plot is not None:
            drawing.write(Path(self.options.plot), frontier.drawn(self.session.name, search.table()))
        if best is None:
            raise CheckFailed(f"{self.session.name}: {search.why_not()}", facts={"candidates": search.table()})
        made, recipe = self.workshop.make(best.recipe)
        if self.options.explain:
            self.told["nodes"] = search.explanation(made)
        return made, recipe.facts() | {"candidates_tried": len(search.tried)}

    def _trials(self) -> Trials:
        """How candidates are compared: on samples that are neither learned from nor reported on."""
        if self.data is None:
            return Trials(self.payload, self.session, self.trial, self.options, self.progress)
        trial = replace(self.trial, samples=self.data.validation.first(CHOSEN_ON))
        trials = Trials(self.payload, self.session, trial, self.options, self.progress)
        if self.options.max_drop is not None:
            trials.refuse_chance(self.data.name)
        return trials

    def _taught(self, epochs: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Weights of few bits, learned with the float model as teacher; only rounded without epochs."""
        from modelctl.graph.quantizing import qat

        options, ready = self.options, self.workshop.ready
        excluded = [*small_convolutions(ready), *self.workshop.unfit, *options.excludes]
        if options.op_types:
            excluded += [node.name for node in ready.graph.node if node.op_type not in options.op_types]
        course = qat.Course(
            bits=options.weight_bits,
            epochs=epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            flip=options.flip,
            samples=options.samples,
            excluded=excluded if options.excludes or options.op_types else None,
            seed=options.seed,
            threads=options.thread_count(),
        )
        assert self.data is not None
        done = qat.train(ready, self.session, self.data, course, self.folder, self.progress)
        terse.shorten(done.model, names.taken(ready.graph))
        choices = {"method": str(options.chosen), "bits": options.weight_bits, "stored_bits": done.stored_bits}
        return done.model, choices | {"activations": "uint8", "float_nodes": done.floats, "losses": done.losses}

    def _fixed(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """round(w·2^p), and round(x·255) where inputs are known to lie in 0…1."""
        options = self.options
        made, points = fixed_point.quantize(
            self.workshop.ready,
            self.session.name,
            bits=options.weight_bits,
            p=options.fraction_bits,
            types=options.op_types or unpacking.TYPES,
            excluded=options.excludes,
            batches=self.workshop.feeds if self.data is not None else None,
        )
        told = [{"tensor": one.tensor, "p": one.p, "error": one.error, "reason": one.reason} for one in points]
        if options.explain:
            self.told["fixed_point"] = told
        kept = {one.tensor: one.p for one in points if not one.reason}
        return made, {"method": str(options.chosen), "bits": options.weight_bits, "p": kept}


def _check(graph: onnx.ModelProto, model: Artifact, options: QuantizeOptions) -> None:
    held = sum(math.prod(tensor.dims) for tensor in weights.prunable(graph))
    if weights.is_quantized(graph) and held < PARTLY * weights.count(graph).parameters:
        raise UnsupportedError(f"{model.path}: is quantized already; quantize the float model that it was made from")
    there = {node.name for node in weights.nodes_of(graph.graph)}
    for name in options.excludes:
        if name not in there:
            raise UsageError(f"--exclude {name}: {model.path} has no node of that name")
