"""`optimize`: the same function in fewer nodes, proven the same, and accepted only when measured good."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from modelctl.artifact import Artifact, Payload
from modelctl.data.samples import Samples
from modelctl.errors import ArtifactError, CheckFailed, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import clean, divergence, fusing, halves, measure, parity
from modelctl.graph.closeness import Arrays
from modelctl.graph.feeding import data_for
from modelctl.graph.ranges import integer_ranges
from modelctl.graph.session import Session
from modelctl.making import Origin, create
from modelctl.options import OptimizeOptions
from modelctl.progress import Progress, silent

LIBRARIES = ("onnxruntime", "onnx", "onnxscript", "numpy")
_CALLED = {
    "FastGelu": "Gelu",
    "FusedMatMul": "product",
    "Gelu": "Gelu",
    "LayerNormalization": "layer norm",
    "MultiHeadAttention": "attention",
}


def origin(model: Artifact, options: OptimizeOptions) -> Origin:
    """What the result is made from: the model, and the samples. UnsupportedError for what is not onnx."""
    onnx_format.refuse_other(model.manifest, model.path, "optimize")
    return Origin("optimize", options, (model,), libraries=LIBRARIES)


def optimize(model: Artifact, out: Path, options: OptimizeOptions, progress: Progress = silent) -> Artifact:
    """`out`: the same model with constants and batch norms folded and operators fused, if asked in float16.

    A fusion after which answers differ is left out and named; CheckFailed when they differ without any, or in float16,
    or when the result is slower or larger than its input (`measure.judge`). UnsupportedError for a model that can't be
    rewritten, or that onnxruntime has no kernels for in float16; ArtifactError for one that is unsound; DataError for
    samples that don't fit.
    """
    made_from = origin(model, options)
    onnx_format.refuse_other_out(out, "optimize")
    with create(out, made_from) as draft:
        payload = model.load()
        graph = onnx_format.parse(payload)
        clean.hide_weights(graph)
        session = Session(payload, options.thread_count())
        data = data_for(options.data, payload, session, options.seed) if options.data else None
        trial = measure.trial_on(data, options, options.provider)
        proof = _Proof(str(model.path), payload, session, graph, trial.samples, options, progress)
        made, told = _Work(graph, proof).run()
        clean.strip(made)
        onnx_format.keep_packed(made, payload)
        onnx_format.save(made, draft.path)
        draft.choices = {key: told[key] for key in ("fused", "left_out")}
        draft.inputs, draft.outputs = draft.inputs or session.inputs, draft.outputs or session.outputs
        draft.metrics = measure.compare(payload, onnx_format.written(draft.path), trial, progress)
        draft.metrics |= {"optimized": told, "parity": proof.last}
        progress.note(_summary(told, draft.metrics))
        measure.judge(str(out), draft.metrics, options)
    return Artifact.open(out)


@dataclass
class _Proof:
    """Holds what is made of a model against it."""

    name: str
    payload: Payload
    session: Session
    graph: onnx.ModelProto
    samples: Samples | None
    options: OptimizeOptions
    progress: Progress
    last: dict[str, Any] = field(default_factory=dict)  # what the last proof that held measured

    def __post_init__(self) -> None:
        self.ranges = integer_ranges(self.graph)
        run, seed = self.session.run, self.options.seed
        self.inputs, self.sizes = parity.find_inputs(run, self.session.inputs, seed, self.ranges)

    def check(self, made: onnx.ModelProto, rtol: float) -> None:
        """CheckFailed unless `made` answers as the model does; ArtifactError or UnsupportedError if it can't be run."""
        clean.check(made, self.name)
        tolerance = parity.Tolerance(rtol=rtol, atol=self.options.atol, allow_vacuous=self.options.allow_vacuous)
        candidate, threads = onnx_format.payload_of(made, self.payload), self.options.thread_count()

        def explain(feeds: Arrays) -> str | None:
            inside = divergence.inside(self.payload, threads)
            return divergence.first_difference(candidate, inside, feeds, tolerance, threads=threads)

        self.last = parity.check(
            self.session.run,
            Session(candidate, threads).run,
            self.inputs,
            self.sizes,
            tolerance,
            name=self.name,
            seed=self.options.seed,
            ranges=self.ranges,
            samples=None if self.samples is None else self.samples.inputs,
            explain=explain,
            progress=self.progress,
        )


@dataclass
class _Work:
    """A model, rewritten as far as it stays the same."""

    graph: onnx.ModelProto
    proof: _Proof

    def run(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The result, proven; and what was done: `{nodes_before, nodes, batch_norms, fused, left_out, float16}`."""
        options, before = self.proof.options, fusing.operators(self.graph)
        try:
            made = fusing.fold(self.graph)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.proof.name}: {error.message}", error.hint) from error
        self.proof.check(made, options.tolerance)
        made, left_out = self._fused(made)
        fused = fusing.newly_fused(before, fusing.operators(made))
        if options.float16:
            made = halves.computing(made, self.proof.name)
            self.proof.check(made, options.float16_tolerance)
        after = fusing.operators(made)
        return made, {
            "nodes_before": before.total(),
            "nodes": after.total(),
            "batch_norms": before["BatchNormalization"] - after["BatchNormalization"],
            "fused": fused,
            "left_out": left_out,
            "float16": options.float16,
        }

    def _fused(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
        """The model after every fusion that leaves it the same, and why the others were left out, by name."""
        left_out: dict[str, str] = {}
        for name, rewrite in fusing.FUSIONS.items():
            try:
                made = rewrite(model)
                if fusing.operators(made) != fusing.operators(model):
                    self.proof.check(made, self.proof.options.tolerance)
                    model = made
            except (CheckFailed, UnsupportedError, ArtifactError) as error:
                left_out[name] = error.message
        return model, left_out


def _summary(told: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What was folded and fused, and what that did to size and speed."""
    counts: Counter[str] = Counter()
    for kind, count in told["fused"].items():
        counts[_CALLED[kind]] += count
    done = [f"{_counted(count, what)} fused" for what, count in counts.items()]
    done += [f"{_counted(told['batch_norms'], 'batch norm')} folded"] if told["batch_norms"] else []
    done += [f"{told['nodes_before']} → {told['nodes']} nodes"]
    done += ["float16"] if told["float16"] else []
    speed, size = facts["latency"]["speedup"]["value"], facts["size_ratio"]
    left = f"; left out: {', '.join(told['left_out'])}" if told["left_out"] else ""
    return f"{', '.join(done)}, size ×{size:g}, speed ×{speed:.2f}{left}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
