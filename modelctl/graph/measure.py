"""What a model is worth, before and after a step: accuracy, agreement, latency, size; and the law that a step keeps.

The law: no step writes an output that can't be loaded, that is over the budget it was given, or, unless that is
allowed, slower or larger than its input. `compare` measures, `judge` says no.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modelctl.artifact import Payload
from modelctl.data import Data
from modelctl.data.samples import Array, Samples
from modelctl.errors import CheckFailed, DataError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import latency, outputs, providers, scores, weights
from modelctl.graph.session import Session, Tensors
from modelctl.options import MeasuredOptions, Metric
from modelctl.progress import Progress, silent

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Trial:
    """On what a model is measured: samples (None: random inputs), their data's digest, the metric, and how to time.

    Answers are computed on `threads` threads, run times taken on `timed_threads`: on one unless asked otherwise, as a
    server runs a model. On several, a small model's time is mostly that of threads waiting for each other. Both are of
    `provider` (`graph.providers`). `output` is the one that is scored, by default the first. Models are also timed at
    `more_batches`, and each of them on `more_threads`. `look` is asked what else is to be told of the answers, those of
    the model before (None if there is none) and those of the model.
    """

    samples: Samples | None = None
    data: str = ""
    metric: Metric | scores.Own = Metric.AUTO
    batch: int = 1
    more_batches: tuple[int, ...] = ()
    threads: int = 1
    timed_threads: int = 1
    more_threads: tuple[int, ...] = ()
    provider: str = providers.CPU
    seed: int = 0
    seconds: float = field(default_factory=lambda: latency.SECONDS)
    output: str | None = None
    look: Callable[[Array | None, Array], dict[str, Any]] = lambda _before, _after: {}


def answers(model: Session, samples: Samples, progress: Progress = silent, output: str | None = None) -> Array:
    """The model's first output, or another, for all samples, [N, …]; CheckFailed if there is NaN or infinity in it.

    Where the model takes batches of a fixed size only, the last one is filled up with the first samples.
    """
    fixed = model.inputs[0].shape[0]
    name = output or model.outputs[0].name
    found: list[Array] = []
    for batch in samples.filled_batches(fixed) if isinstance(fixed, int) else samples.batches(BATCH):
        out = np.asarray(model.run(batch.inputs)[name])
        if out.shape[:1] != (len(batch),):
            raise DataError(f"{model.name}: {len(batch)} samples give an output {name!r} of shape {list(out.shape)}")
        found.append(out)
        progress.advance(f"running {model.name}", min(len(found) * len(batch), len(samples)), len(samples), "samples")
    all_of_them = np.concatenate(found)[: len(samples)]
    if all_of_them.dtype.kind == "f" and not np.isfinite(all_of_them).all():
        raise CheckFailed(f"{model.name}: answers NaN or infinity")
    return all_of_them


def describe(payload: Payload) -> dict[str, Any]:
    """What needs no running: `{size_bytes, parameters, sparsity}`."""
    counted = weights.count(onnx_format.outline(payload), payload.files)
    size = sum(map(len, payload.files.values()))
    return {"size_bytes": size, "parameters": counted.parameters, "sparsity": round(counted.sparsity, 6)}


def examine(model: Payload, trial: Trial, progress: Progress = silent) -> dict[str, Any]:
    """One model by itself: `describe`, `accuracy` where there are labels, and `latency` (`latencies` if at several)."""
    session = Session(model, trial.threads, trial.provider)
    facts = describe(model)
    if trial.samples is not None and trial.samples.labels is not None:
        found = answers(session, trial.samples, progress, trial.output)
        facts["accuracy"] = scores.score(trial.metric, found, trial.samples, trial.data, trial.seed)
        facts |= trial.look(None, found)

    def timed(trial: Trial) -> dict[str, Any]:
        found = latency.alone(_timed(model, trial), feeds(session, trial), trial.seconds)
        return found | machine(session, trial)

    return facts | _by_batch(timed, session, trial, progress)


def compare(before: Payload, after: Payload, trial: Trial, progress: Progress = silent) -> dict[str, Any]:
    """Two models on the same samples, timed in turns: the metrics of a step that makes `after` from `before`.

    `describe` of `after`, `size_bytes_before` and `size_ratio` (before to after); with samples what
    `scores.agreement` says, and of other outputs than the scored one what `outputs.apart` does; with labels also
    `accuracy`, `accuracy_before`, `drop_pp`; `latency` with `before` and `speedup` inside. DataError if the two don't
    take and give the same.
    """
    old, new = (Session(one, trial.threads, trial.provider) for one in (before, after))
    _check_alike(old, new)
    facts = describe(after)
    facts["size_bytes_before"] = sum(map(len, before.files.values()))
    facts["size_ratio"] = round(facts["size_bytes_before"] / facts["size_bytes"], 3)
    if trial.samples is not None:
        was_told, now_told = (answers(one, trial.samples, progress, trial.output) for one in (old, new))
        facts |= _score(was_told, now_told, trial)
        others = outputs.apart(old, new, trial.samples, trial.output)
        facts |= {"outputs": others} if others else {}

    def timed(trial: Trial) -> dict[str, Any]:
        was, now, speedup = latency.in_turns(
            lambda: _timed(before, trial),
            lambda: _timed(after, trial),
            feeds(old, trial),
            feeds(new, trial),
            trial.seconds,
        )
        return now | machine(new, trial) | {"before": was, "speedup": speedup.facts()}

    return facts | _by_batch(timed, new, trial, progress)


def _timed(model: Payload, trial: Trial) -> Session:
    return Session(model, trial.timed_threads, trial.provider)


def _by_batch(
    timed: Callable[[Trial], dict[str, Any]], model: Session, trial: Trial, progress: Progress
) -> dict[str, Any]:
    """`latency` at the first batch and number of threads, and where there are more `latencies`, a row each.

    The throughput is that of the median.
    """
    sizes = sorted({_batch(model, replace(trial, batch=one)) for one in (trial.batch, *trial.more_batches)})
    settings = [(size, threads) for threads in sorted({trial.timed_threads, *trial.more_threads}) for size in sizes]
    found = {}
    for done, (size, threads) in enumerate(settings):
        progress.advance("timing", done, len(settings), "settings")
        one = timed(replace(trial, batch=size, timed_threads=threads))
        found[size, threads] = one | {"samples_per_s": round(1e3 * size / max(one["p50_ms"], 1e-4), 1)}
    facts: dict[str, Any] = {"latency": found[_batch(model, trial), trial.timed_threads]}
    if len(settings) > 1:
        facts["latencies"] = [_latency_row(found[one]) for one in settings]
    return facts


def _latency_row(timed: dict[str, Any]) -> dict[str, Any]:
    """One setting's latency in a row of plain values."""
    row = {key: timed[key] for key in ("batch", "threads", "p50_ms", "p95_ms", "p99_ms", "samples_per_s")}
    if "before" in timed:
        row["before_p50_ms"] = timed["before"]["p50_ms"]
        row |= {f"speedup_{key}" if key != "value" else "speedup": one for key, one in timed["speedup"].items()}
    return row


def judge(name: str, facts: dict[str, Any], options: MeasuredOptions, same_graph: bool = False) -> None:
    """Hold what `compare` found against the law; CheckFailed names every gate that was not met, wanted and found.

    `same_graph`: only values changed, so that a speed below the input's can be nothing but the machine's noise.
    """
    speedup = facts["latency"]["speedup"]
    missed = []
    if options.max_drop is not None and facts["drop_pp"] > options.max_drop:
        missed.append(
            f"loses {facts['drop_pp']:.2f} points of {facts['accuracy']['metric']}, at most {options.max_drop:g}"
        )
    if options.min_agreement is not None and facts["alike"] < options.min_agreement:
        missed.append(f"answers {facts['alike']:.6g} like its input, at least {options.min_agreement:g} was asked for")
    if options.min_speedup is not None and speedup["value"] < options.min_speedup:
        missed.append(f"runs at ×{speedup['value']:.2f} of the input, at least ×{options.min_speedup:g} was asked for")
    elif not (options.allow_regression or same_graph) and latency.Speedup(**speedup).is_slower:
        missed.append(
            f"is slower than its input: ×{speedup['value']:.2f} (×{speedup['low']:.2f} to ×{speedup['high']:.2f})"
        )
    if not options.allow_regression and facts["size_bytes"] > facts["size_bytes_before"]:
        missed.append(f"is larger than its input: {facts['size_bytes']} bytes, was {facts['size_bytes_before']}")
    if missed:
        raise CheckFailed(f"{name}: not accepted: the result {'; it '.join(missed)}", facts=facts)


def trial_on(data: Data | None, options: MeasuredOptions, provider: str = providers.CPU) -> Trial:
    """How a step measures: on the test part of `data`; DataError if a budget needs labels and there are none.

    Of a provider that is not there, what `providers.resolve` raises.
    """
    providers.resolve(provider)
    samples = None if data is None else data.test
    if data is not None and data.test.labels is None and options.max_drop is not None:
        raise DataError(f"{data.name}: has no labels 'y', which --max-drop needs", "leave out --max-drop")
    digest = "" if data is None else data.sha256
    return Trial(
        samples=samples,
        data=digest,
        threads=options.thread_count(),
        timed_threads=options.timed_threads(),
        provider=provider,
        seed=options.seed,
    )


def feeds(model: Session, trial: Trial) -> Tensors:
    """One batch to time a model on: the first samples, again from the start if they are too few, or random inputs."""
    size = _batch(model, trial)
    if trial.samples is None:
        return latency.runnable_feeds(model, size, trial.seed)
    return trial.samples.pick(np.arange(size) % len(trial.samples)).inputs


def machine(model: Session, trial: Trial) -> dict[str, Any]:
    """Under which conditions a latency was taken."""
    told = {"batch": _batch(model, trial), "threads": trial.timed_threads, "cpu": latency.cpu_name()}
    return told | {"provider": model.provider}


def _batch(model: Session, trial: Trial) -> int:
    fixed = model.inputs[0].shape[:1] if model.inputs else ()
    return fixed[0] if fixed and isinstance(fixed[0], int) else trial.batch


def _score(before: Array, after: Array, trial: Trial) -> dict[str, Any]:
    if before.shape != after.shape:
        raise DataError(f"the two models answer differently: {list(before.shape)} and {list(after.shape)}")
    facts: dict[str, Any] = dict(scores.agreement(before, after))
    facts["alike"] = scores.alike(before, after, None if trial.samples is None else trial.samples.labels)
    if trial.samples is not None and trial.samples.labels is not None:
        was = scores.score(trial.metric, before, trial.samples, trial.data, trial.seed)
        now = scores.score(trial.metric, after, trial.samples, trial.data, trial.seed)
        lost = round(scores.drop_pp(was, now, trial.samples), 4)
        facts = {"accuracy": now, "accuracy_before": was, "drop_pp": lost} | facts
    return facts | trial.look(before, after)


def _check_alike(old: Session, new: Session) -> None:
    was, now = ([(one.name, one.dtype, len(one.shape)) for one in side.inputs] for side in (old, new))
    if was != now:
        told = " and ".join(", ".join(f"{one[0]} ({one[1]})" for one in side) or "nothing" for side in (was, now))
        raise DataError(f"{new.name}: takes other inputs than {old.name}, so the two can't be compared: {told}")
