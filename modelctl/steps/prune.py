"""`prune`: single weights, whole channels or whole blocks taken out, healed with the input as teacher, and measured.

How much goes is the user's to say, what goes is chosen by what it costs (`sparsity`, `narrowing`), and how well the
rest gets over it is a matter of training (`healing`). No choice sees the test part of the data.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from modelctl.artifact import Artifact, Payload
from modelctl.data import Data
from modelctl.data.samples import Array
from modelctl.errors import ArtifactError, UnsupportedError, missing_extra
from modelctl.formats import onnx as onnx_format
from modelctl.formats import packing
from modelctl.graph import alignment, latency, measure, narrowing, scaling, sparsity, weights
from modelctl.graph.channels import costs, importance
from modelctl.graph.channels.groups import Channels
from modelctl.graph.feeding import data_for
from modelctl.graph.session import Session
from modelctl.graph.straight import straight
from modelctl.making import Origin, create
from modelctl.options import Importance, PruneMethod, PruneOptions, PruneSchedule, Scope
from modelctl.progress import Progress, silent

if TYPE_CHECKING:
    from modelctl.graph.healing import Healer

LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")
HEALED_EPOCHS = 2
DRAWN = 64  # random inputs that stand in for samples
_CUTTING = frozenset({PruneMethod.CHANNEL, PruneMethod.LAYER})


def origin(model: Artifact, options: PruneOptions) -> Origin:
    """What the result is made from: the model and the samples. UnsupportedError for what is not onnx."""
    onnx_format.refuse_other(model.manifest, model.path, "prune")
    return Origin("prune", options, (model,), libraries=LIBRARIES)


def extra(options: PruneOptions) -> str | None:
    """The extra without which these options can't be carried out: to learn, or to rank channels by samples."""
    cuts = options.chosen_method() in _CUTTING
    return "torch" if options.epochs or (cuts and options.data is not None) else None


def prune(model: Artifact, out: Path, options: PruneOptions, progress: Progress = silent) -> Artifact:
    """`out`: the same model with fewer weights, channels or layers.

    CheckFailed when a target can't be met, or when the test part of the data shows a larger loss than allowed, or the
    result is slower or larger than its input; UnsupportedError when there is nothing to prune, naming what stands in
    the way, and when torch is missing for fine-tuning; ArtifactError for weights that are no numbers, DataError for
    samples that don't fit. Zeros don't change how fast a model runs, and the step says so.
    """
    made_from = origin(model, options)
    onnx_format.refuse_other_out(out, "prune")
    method = options.chosen_method()
    needed = extra(options)
    if needed and importlib.util.find_spec(needed) is None:
        raise missing_extra(f"{model.path}: prune needs torch to learn from samples", needed)
    with create(out, made_from) as draft:
        payload = model.load()
        graph = _read(payload, str(model.path))
        session = Session(payload, options.thread_count())
        data = data_for(options.data, payload, session, options.seed) if options.data else None
        trial = measure.trial_on(data, options)
        work = _Pruning(str(model.path), payload, session, data, options, progress)
        made, told = work.pruned(graph)
        if not options.densify:
            packing.pack(made)
        onnx_format.save(made, draft.path)
        draft.choices = work.choices
        draft.inputs, draft.outputs = draft.inputs or session.inputs, draft.outputs or session.outputs
        draft.metrics = measure.compare(payload, onnx_format.written(draft.path), trial, progress)
        draft.metrics["pruned"] = told
        progress.note(_summary(method, told, draft.metrics))
        if method is PruneMethod.L1_SCALE:  # it takes nothing away, and may have to add a Mul
            options = replace(options, allow_regression=True)
        measure.judge(str(out), draft.metrics, options, same_graph=method not in _CUTTING)
    return Artifact.open(out)


def _read(payload: Payload, name: str) -> onnx.ModelProto:
    """The model; UnsupportedError if it has no weights to prune, ArtifactError if they are no numbers."""
    graph = onnx_format.parse(payload)
    tensors = weights.prunable(graph)
    if not tensors:
        quantized = "is quantized; prune the float model" if weights.is_quantized(graph) else "nothing to prune"
        raise UnsupportedError(f"{name}: has no float weights of rank 2 or more: {quantized}")
    for tensor in tensors:
        if not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise ArtifactError(f"{name}: weight {tensor.name!r} holds NaN or infinity")
    return graph


@dataclass
class _Pruning:
    """A model that is to be pruned, and what is needed for it."""

    name: str
    payload: Payload
    session: Session
    data: Data | None
    options: PruneOptions
    progress: Progress

    def __post_init__(self) -> None:
        self.choices: dict[str, Any] = {}
        self.losses: list[float] = []

    def pruned(self, graph: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The pruned model, and what was done to it."""
        method = self.options.chosen_method()
        if method is PruneMethod.L1_SCALE:
            scaled = scaling.l1_scale(graph, self.name)
            return graph, {"scaled": [asdict(one) for one in scaled]}
        if not self.epochs:
            return self._taken(graph, method)
        from modelctl.graph import training

        with training.reproducible(self.options.seed, self.options.thread_count()):
            return self._taken(graph, method)

    def _taken(self, graph: onnx.ModelProto, method: PruneMethod) -> tuple[onnx.ModelProto, dict[str, Any]]:
        made, told = self._cut(graph) if method in _CUTTING else self._zeroed(graph)
        return made, told | ({"loss": [round(one, 6) for one in self.losses]} if self.losses else {})

    @property
    def epochs(self) -> int:
        """Passes of fine-tuning in each round."""
        if self.options.epochs is not None:
            return self.options.epochs
        return HEALED_EPOCHS if self.data is not None and self.options.chosen_method() in _CUTTING else 0

    @property
    def rounds(self) -> int:
        """How often something is taken away."""
        return self.options.rounds if self.options.schedule == PruneSchedule.ITERATIVE else 1

    @cached_property
    def healer(self) -> "Healer":
        """The input as teacher."""
        from modelctl.graph.healing import Healer

        assert self.data is not None  # the options ask for it
        return Healer(self.session, self.data, self.options, self.progress)

    def _zeroed(self, graph: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Weights set to zero, and held there while the others learn."""
        for turn in range(1, self.rounds + 1):
            tensors = weights.prunable(graph)
            masks = sparsity.masks(tensors, self._rule(turn), sparsity.summed_axes(graph))
            told = sparsity.apply(tensors, masks)
            for emptied in (name for name, mask in masks.items() if not mask.any()):
                self.progress.note(f"{emptied}: none of its weights is left; --scope layer ranks each layer by itself")
            if self.epochs:
                graph, loss = self.healer.heal(graph, self.epochs, masks)
                self.losses.append(loss)
        return graph, dict(told)

    def _rule(self, turn: int) -> sparsity.Rule:
        options = self.options
        share = options.sparsity
        return sparsity.Rule(
            sparsity=None if share is None else sparsity.share_at(turn, self.rounds, share),
            threshold=options.threshold,
            keep=options.keep,
            pattern=options.kept_of_neighbours() if options.pattern else None,
            each=options.scope is Scope.LAYER,
        )

    def _cut(self, graph: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Channels and blocks taken out, round by round, until the target is met."""
        wanted = self.options.wanted_shares()
        block = self.options.block() or alignment.measured_block(self.options.timed_threads())
        self.choices |= {"align": block, "importance": str(self._importance)}
        graph = straight(graph, self.name)
        before = costs.macs(graph), costs.parameters(graph)
        left: Mapping[str, float] = {}
        rounds = []
        for turn in range(1, self.rounds + 1):
            goal = narrowing.Goal(
                shares={what: 1 - (1 - share) * turn / self.rounds for what, share in wanted.items()},
                block=block,
                narrow=self.options.chosen_method() is PruneMethod.CHANNEL,
                alike=self.options.scope is Scope.LAYER,
            )
            found = self._search(graph).reach(goal, left)
            graph, left = found.model, found.left
            rounds.append(found.told())
            if self.epochs:
                graph, loss = self.healer.heal(graph, self.epochs)
                self.losses.append(loss)
            elif self.data is not None:
                graph = self.healer.recalibrated(graph)
        self.choices["rounds"] = rounds
        after = costs.macs(graph), costs.parameters(graph)
        names = ("macs_before", "parameters_before", "macs", "parameters")
        return graph, dict(zip(names, (*before, *after), strict=True))

    def _search(self, graph: onnx.ModelProto) -> narrowing.Search:
        feeds = measure.feeds(self.session, measure.trial_on(self.data, self.options))
        return narrowing.Search(
            graph,
            self.payload,
            harm=self.healer.harm if self.data is not None else self._harm,
            ranks=self._ranks,
            feeds=feeds,
            threads=self.options.timed_threads(),
            progress=self.progress,
        )

    @property
    def _importance(self) -> Importance:
        return self.options.importance or (Importance.MAGNITUDE if self.data is None else Importance.TAYLOR)

    def _ranks(self, channels: Channels) -> Mapping[str, Array]:
        """How much each unit of each group counts."""
        held = {one.name: numpy_helper.to_array(one) for one in channels.model.graph.initializer}
        if self._importance is Importance.MAGNITUDE:
            return {one.name: importance.magnitude(held, one) for one in channels.groups}
        if self._importance is Importance.ACTIVATION:
            seen = self.healer.activations(channels.model)
            return {one.name: importance.from_activations(seen, one) for one in channels.groups}
        gradients = self.healer.gradients(channels.model)
        return {
            one.name: np.sum([importance.from_gradients(held, each, one) for each in gradients], axis=0)
            for one in channels.groups
        }

    @cached_property
    def _drawn(self) -> tuple[Mapping[str, Array], Array]:
        """Random inputs, and what the input answers to them."""
        feeds = latency.random_feeds(self.session.inputs, DRAWN, self.options.seed)
        return feeds, np.asarray(self.session.run(feeds)[self.session.outputs[0].name], np.float64)

    def _harm(self, model: onnx.ModelProto) -> float:
        """Without samples: the relative squared error of the answers to random inputs."""
        feeds, right = self._drawn
        session = Session(onnx_format.payload_of(model, self.payload), self.options.thread_count())
        found = np.asarray(session.run(feeds)[session.outputs[0].name], np.float64)
        return float(np.mean((found - right) ** 2) / max(float(right.var()), 1e-12))


def _summary(method: PruneMethod, told: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What was done, and what that did to size and speed."""
    speed, size = facts["latency"]["speedup"]["value"], facts["size_ratio"]
    if method is PruneMethod.L1_SCALE:
        left = [one["weight"] for one in told["scaled"] if one["given_back"] == "left"]
        kept = f"; left as they are: {', '.join(left)}" if left else ""
        return f"{len(told['scaled']) - len(left)} weights have an absolute sum of 1 now (speed ×{speed:.2f}){kept}"
    if method in _CUTTING:
        macs, parameters = told["macs"] / told["macs_before"], told["parameters"] / told["parameters_before"]
        return f"{macs:.1%} of the multiply-accumulates, {parameters:.1%} of the parameters, speed ×{speed:.2f}"
    zeroed = told["weights"] - told["kept"]
    smaller = (
        f"packed, the file is ×{size:g} smaller" if size > 1 else f"a plain file is no smaller for it (size ×{size:g})"
    )
    return (
        f"{zeroed:.0f} of {told['weights']:.0f} weights are zero now; {smaller} and runs no faster (speed ×{speed:.2f})"
    )
