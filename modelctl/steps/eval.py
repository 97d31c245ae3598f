"""`eval`: accuracy with its interval, latency, size, parameters, beside a baseline; gates turn a no into exit 1."""

from dataclasses import replace
from typing import Any

from modelctl.artifact import Artifact, Payload
from modelctl.data import open_data
from modelctl.errors import CheckFailed, DataError, UsageError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import measure, scores
from modelctl.graph.session import Session
from modelctl.options import EvalOptions, Metric
from modelctl.progress import Progress, silent
from modelctl.report import Report

MEGABYTE = 10**6


def eval(model: Artifact, options: EvalOptions, progress: Progress = silent) -> Report:
    """What `model` is worth, by itself or beside `--baseline`, timed in turns with it.

    CheckFailed, with all that was measured, when a gate is not met; DataError when samples don't fit the model, or
    have no labels where a score is asked for; UsageError for an accuracy asked of an rmse; UnsupportedError for what is
    not onnx; of a sealed model, what `envelope.open_sealed` raises.
    """
    payload = _opened(model, options, progress)
    onnx_format.parse(payload)  # says what is wrong with a file that is none better than onnxruntime does
    trial = _trial(Session(payload), options)
    facts: dict[str, Any] = {"model": str(model.path), "digest": payload.manifest.digest}
    if options.baseline is None:
        facts |= measure.examine(payload, trial, progress)
    else:
        baseline = Artifact.open(options.baseline)
        other = _opened(baseline, options, progress)
        facts |= {"baseline": {"model": str(baseline.path), "digest": other.manifest.digest}}
        facts |= measure.compare(other, payload, trial, progress)
    gates = _gates(facts, options)
    facts |= {"gates": gates} if gates else {}
    missed = [
        f"{name} wanted {gate['wanted']:g}, found {gate['found']:.6g}"
        for name, gate in gates.items()
        if not gate["met"]
    ]
    if missed:
        raise CheckFailed(f"{model.path}: {'; '.join(missed)}", facts=facts)
    return Report(subject=str(model.path), facts=facts)


def _opened(model: Artifact, options: EvalOptions, progress: Progress) -> Payload:
    """The bytes of a model, a sealed one opened in memory only."""
    if model.manifest.format == "sealed":
        from modelctl.crypto import envelope, keys

        payload = envelope.open_sealed(model, keys.opening(options), progress=progress)
    else:
        payload = model.load()
    onnx_format.refuse_other(payload.manifest, model.path, "eval")
    return payload


def _trial(session: Session, options: EvalOptions) -> measure.Trial:
    trial = measure.Trial(
        batch=options.batch,
        threads=options.thread_count(),
        timed_threads=options.timed_threads(),
        seed=options.seed,
    )
    if options.data is None:
        return trial
    data = open_data(options.data, session.inputs, options.seed)
    samples = data.scored
    scored = {options.min_accuracy, options.max_drop} != {None} or options.metric is not Metric.AUTO
    if samples.labels is None and (scored or options.baseline is None):
        raise DataError(f"{data.name}: has no labels 'y' to score answers against")
    if options.min_accuracy is not None and scores.chosen(options.metric, samples) is Metric.RMSE:
        raise UsageError("--min-accuracy is a share from 0 to 1, and an rmse is none", "--metric top1")
    return replace(trial, samples=samples, data=data.sha256, metric=options.metric)


def _gates(facts: dict[str, Any], options: EvalOptions) -> dict[str, dict[str, Any]]:
    """Each gate that was asked for: `{wanted, found, met}`."""
    accuracy, latency = facts.get("accuracy", {}), facts["latency"]
    lowest = {
        "min_accuracy": (options.min_accuracy, accuracy.get("value")),
        "min_speedup": (options.min_speedup, latency.get("speedup", {}).get("value")),
    }
    highest = {
        "max_latency_ms": (options.max_latency_ms, latency["p50_ms"]),
        "max_size_mb": (options.max_size_mb, facts["size_bytes"] / MEGABYTE),
        "max_drop": (options.max_drop, facts.get("drop_pp")),
    }
    gates = {}
    for name, (wanted, found) in (*lowest.items(), *highest.items()):
        if wanted is not None:
            met = found >= wanted if name in lowest else found <= wanted
            gates[name] = {"wanted": wanted, "found": found, "met": met}
    return gates
