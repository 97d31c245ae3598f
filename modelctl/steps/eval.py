"""`eval`: accuracy with its interval, latency, size, parameters, beside a baseline; gates turn a no into exit 1."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from modelctl import record
from modelctl.artifact import Artifact, Payload
from modelctl.data.samples import Array
from modelctl.errors import CheckFailed, DataError, UnsupportedError, UsageError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import chance, classes, drawing, intervals, measure, plots, scores, slices
from modelctl.graph.channels import costs
from modelctl.graph.feeding import data_for
from modelctl.graph.opening import opened
from modelctl.graph.session import Session
from modelctl.options import EvalOptions, Metric
from modelctl.progress import Progress, silent
from modelctl.report import Report

MEGABYTE = 10**6
# Of each gate that wants at least so much, and of each that wants at most so much, where the found is in the facts.
LOWEST = {"min_accuracy": ("accuracy", "value"), "min_speedup": ("latency", "speedup", "value")}
HIGHEST = {
    "max_latency_ms": ("latency", "p50_ms"),
    "max_size_mb": ("size_bytes",),
    "max_drop": ("drop_pp",),
    "max_gap": ("slices", "gap_pp"),
}


def eval(model: Artifact, options: EvalOptions, progress: Progress = silent) -> Report:
    """What `model` is worth, by itself or beside `--baseline`, timed in turns with it.

    CheckFailed, with all that was measured, when a gate is not met; DataError when samples don't fit the model, or
    have no labels where a score is asked for; UsageError for an accuracy asked of an rmse; UnsupportedError for what is
    not onnx; of a sealed model, what `envelope.open_sealed` raises; of a metric of one's own, what `scores.own` does.
    """
    if options.plot is not None:
        drawing.check_place(Path(options.plot), plots.KIND)
    payload = opened(model, options, "eval", progress)
    graph = onnx_format.parse(payload)  # says what is wrong with a file that is none better than onnxruntime does
    session = Session(payload, provider=options.provider)
    trial = _trial(payload, session, options)
    seen = _Seen(trial, options)
    trial = replace(trial, look=seen.look)
    facts: dict[str, Any] = {"model": str(model.path), "digest": payload.manifest.digest}
    if options.baseline is None:
        found = measure.examine(payload, trial, progress)
    else:
        baseline = Artifact.open(options.baseline)
        other = opened(baseline, options, "eval", progress)
        facts |= {"baseline": {"model": str(baseline.path), "digest": other.manifest.digest}}
        found = measure.compare(other, payload, trial, progress)
    facts |= _macs(graph, session, trial) | found | seen.notes(found.get("accuracy"))
    gates = _gates(facts, options)
    facts |= {"gates": gates} if gates else {}
    if options.plot is not None:
        drawing.write(Path(options.plot), plots.report(model.path.name, seen.confusion, _latencies(facts)))
        facts["plot"] = options.plot
    missed = [
        f"{name} wanted {gate['wanted']:g}, found {gate['found']:.6g}"
        for name, gate in gates.items()
        if not gate["met"]
    ]
    if missed:
        raise CheckFailed(f"{model.path}: {'; '.join(missed)}", facts=facts)
    return Report(subject=str(model.path), facts=facts)


def _trial(payload: Payload, session: Session, options: EvalOptions) -> measure.Trial:
    batch, *more = options.batches()
    if options.output is not None and options.output not in (names := [one.name for one in session.outputs]):
        raise UsageError(f"--output {options.output}: no output of {session.name}; it has {', '.join(names)}")
    trial = measure.Trial(
        batch=batch,
        more_batches=tuple(more),
        threads=options.thread_count(),
        timed_threads=options.timed_threads(),
        more_threads=options.thread_counts()[1:],
        provider=options.provider,
        output=options.output,
        seed=options.seed,
    )
    if options.data is None:
        return trial
    columns = (options.slices,) if options.slices is not None else ()
    data = data_for(options.data, payload, session, options.seed, columns)
    samples = data.scored
    scored = {options.min_accuracy, options.max_drop, options.slices} != {None} or options.metric != Metric.AUTO
    if samples.labels is None and (scored or options.baseline is None):
        raise DataError(f"{data.name}: has no labels 'y' to score answers against")
    metric = Metric(options.metric) if options.metric in set(Metric) else scores.own(options.metric)
    if options.min_accuracy is not None and scores.chosen(metric, samples) is Metric.RMSE:
        raise UsageError("--min-accuracy is a share from 0 to 1, and an rmse is none", "--metric top1")
    return replace(trial, samples=samples, data=data.sha256, metric=metric)


class _Seen:
    """What `eval` tells of the answers beyond their score; the confusion matrix is kept for the plot."""

    def __init__(self, trial: measure.Trial, options: EvalOptions) -> None:
        self.trial = trial
        self.options = options
        self.answers: Array | None = None
        self.confusion: Array | None = None

    def look(self, before: Array | None, answers: Array) -> dict[str, Any]:
        """The facts; `before` are the baseline's answers."""
        facts: dict[str, Any] = {}
        self.answers, samples = answers, self.trial.samples
        if samples is None:
            return facts
        if isinstance(self.trial.metric, scores.Own):
            facts["metric_code"] = record.factory(self.trial.metric.name)
        if before is not None and before.ndim == 2 and before.shape[1] > 1:
            alike = int((before.argmax(axis=1) == answers.argmax(axis=1)).sum())
            facts["agreement_low"], facts["agreement_high"] = intervals.wilson(alike, len(samples))
            near = scores.cosines(before, answers)
            mean = intervals.bootstrap(lambda one, _: float(one.mean()), near, near, self.trial.seed)
            facts["cosine_low"], facts["cosine_high"] = mean
        labels = samples.labels
        if labels is not None and classes.fit(answers, labels):
            facts |= self._of_classes(before, answers, labels)
        if self.options.slices is not None:
            column, seed = self.options.slices, self.trial.seed
            facts["slices"] = slices.told(self.trial.metric, answers, samples, column, seed, before)
        return facts

    def _of_classes(self, before: Array | None, answers: Array, labels: Array) -> dict[str, Any]:
        self.confusion = classes.confusion(answers, labels)
        facts: dict[str, Any] = {"flips": classes.flips(before, answers, labels)} if before is not None else {}
        sure = classes.calibration(answers, labels)
        facts |= {"calibration": sure} if sure else {}
        facts["classes"] = classes.by_class(answers, labels)
        return facts

    def notes(self, score: dict[str, Any] | None) -> dict[str, list[str]]:
        """`notes`, where a score tells nothing: all labels are the same, or it is not above chance."""
        labels = None if self.trial.samples is None else self.trial.samples.labels
        if score is None or labels is None:
            return {}
        said = chance.only_class(labels)
        if said is None and not chance.is_above(score, labels, self.answers):
            said = chance.told(score, labels)
        return {} if said is None else {"notes": [said]}


def _macs(graph: onnx.ModelProto, session: Session, trial: measure.Trial) -> dict[str, int]:
    """Multiply-accumulates for one sample, free axes as long as where it is timed; nothing if none can tell."""
    feeds = measure.feeds(session, trial)
    sizes = {
        size: np.shape(feeds[spec.name])[axis]
        for spec in session.inputs
        for axis, size in enumerate(spec.shape)
        if axis > 0 and isinstance(size, str)
    }
    try:
        return {"macs": costs.macs(graph, sizes)}
    except UnsupportedError:
        return {}


def _gates(facts: dict[str, Any], options: EvalOptions) -> dict[str, dict[str, Any]]:
    """Each gate that was asked for: `{wanted, found, met}`."""
    gates = {}
    for name, place in (LOWEST | HIGHEST).items():
        wanted = getattr(options, name)
        if wanted is None:
            continue
        found: Any = facts
        for key in place:
            found = found[key]
        found = found / MEGABYTE if name == "max_size_mb" else found
        gates[name] = {"wanted": wanted, "found": found, "met": found >= wanted if name in LOWEST else found <= wanted}
    return gates


def _latencies(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each batch that was timed."""
    rows: list[dict[str, Any]] = facts.get("latencies", [facts["latency"]])
    return rows
