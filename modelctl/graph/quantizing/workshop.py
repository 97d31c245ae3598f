"""What is needed to quantize a graph in one way or another: made ready once, calibrated once, then carried out at will.

Ranges of activations come from histograms that one pass over the calibration samples fills, whatever method asks for
them; the smoothed form of the graph has its own. What nodes cost, in harm and in time, is found when it is asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import onnx

from modelctl.artifact import Payload
from modelctl.data.samples import Samples
from modelctl.errors import ArtifactError, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import (
    calibration,
    halves,
    histograms,
    names,
    sensitivity,
    smoothing,
    unpacking,
    weight_only,
    weights,
)
from modelctl.graph.blocks import Decision
from modelctl.graph.histograms import Histogram, Range
from modelctl.graph.prepare import prepare, products, small_convolutions
from modelctl.graph.quantizing import integers, terse
from modelctl.graph.quantizing.explain import stored
from modelctl.graph.quantizing.recipe import ALL, CHAINS, HALVES, INTEGER_METHODS, PRODUCTS, SUMS, USUAL, Recipe
from modelctl.graph.sensitivity import Harm
from modelctl.graph.session import Session, Tensors
from modelctl.graph.weight_only import Form
from modelctl.options import Calibration, Method, QuantizeOptions
from modelctl.progress import Progress, silent

BATCH = 32
PULLED_ON = 32  # samples

_RANGES: Mapping[Calibration, Callable[[Histogram], Range]] = {
    Calibration.MINMAX: histograms.minmax,
    Calibration.PERCENTILE: histograms.percentile,
    Calibration.ENTROPY: histograms.entropy,
    Calibration.MSE: histograms.mse,
}


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A float graph, the shapes of its values, and how activations are spread on the calibration samples."""

    model: onnx.ModelProto
    shapes: integers.Shapes
    seen: Mapping[str, Histogram]
    _known: dict[Calibration, dict[str, Range]] = field(default_factory=dict)

    def ranges(self, method: Calibration) -> Mapping[str, Range]:
        """The range of each activation that has one."""
        if method not in self._known:
            found = {name: _RANGES[method](one) for name, one in self.seen.items() if not one.unbounded}
            self._known[method] = found
        return self._known[method]


class Workshop:
    """A float model, and samples to calibrate on (None: there are none)."""

    def __init__(
        self,
        graph: onnx.ModelProto,
        payload: Payload,
        session: Session,
        samples: Samples | None,
        folder: Path,
        options: QuantizeOptions,
        progress: Progress = silent,
    ) -> None:
        """`graph` is what was parsed of `payload`, and may be changed; `session` runs it.

        Files in between go below `folder`, and are gone afterwards. UnsupportedError for an opset that can't be raised.
        """
        self.payload, self.session, self.samples = payload, session, samples
        self.decisions: dict[Recipe, list[Decision]] = {}
        self._last: tuple[Recipe, tuple[onnx.ModelProto, Recipe]] | None = None
        self._folder, self._threads, self._progress = folder, options.thread_count(), progress
        self._seed, self._provider = options.seed, options.provider
        self._types, self._excluded = options.op_types, options.excludes
        self.ready = prepare(graph, session.name)

    @cached_property
    def plain(self) -> Calibrated:
        """The graph as it is."""
        return self._calibrated(self.ready)

    @cached_property
    def smoothed(self) -> Calibrated | None:
        """The graph with outliers of activations moved into weights; None where nothing can be moved."""
        model = onnx.ModelProto()
        model.CopyFrom(self.ready)
        values = smoothing.values(model)
        if not values or self.samples is None:
            return None
        seen = smoothing.observe(model, self.payload, values, self.feeds(), self._threads)
        told = smoothing.smooth(model, seen, insert=True)
        return self._calibrated(model) if any(not one.reason for one in told) else None

    @property
    def has_outliers(self) -> bool:
        """Whether there are outliers of activations that could be moved into weights."""
        return self.smoothed is not None

    @cached_property
    def harms(self) -> dict[str, Harm]:
        """What it costs to quantize each node, by its name, the most harmful first.

        How strongly noise at a node moves the answers is told where torch is there and the graph has gradients.
        """
        pulls = None
        try:
            if self.samples is not None and not onnx_format.is_large(self.ready):
                pulls = sensitivity.pulls(self.ready, self.session.name, self._batch(PULLED_ON), self._seed)
        except (ImportError, UnsupportedError):
            pulls = None
        ranges = self.plain.ranges(Calibration.MINMAX)
        found = sensitivity.rank(self.plain.model, self.plain.seen, ranges, pulls, self.sets[-1])
        return {one.node: one for one in found}

    @cached_property
    def sets(self) -> tuple[tuple[str, ...], ...]:
        """Sets of operator types that integers may run through, the smallest first.

        What is computed between the products of a transformer is too small for integers to pay.
        """
        return (PRODUCTS, CHAINS, SUMS, ALL) if self.convolutional else (PRODUCTS, CHAINS, SUMS)

    @property
    def convolutional(self) -> bool:
        """Whether the graph convolves anything."""
        return any(node.op_type == "Conv" for node in self.ready.graph.node)

    @cached_property
    def unfit(self) -> dict[str, str]:
        """The names of the products that stay as they are, and why: of two activations, or quantized already."""
        makers = {name: node for node in self.ready.graph.node for name in node.output}
        held = {tensor.name: tensor for tensor in self.ready.graph.initializer}
        found = dict.fromkeys(products(self.ready), "multiplies two activations")
        for node in self.ready.graph.node:
            if node.op_type in PRODUCTS and stored(makers.get(node.input[1]), makers, held) is not None:
                found[node.name] = "is quantized already"
        return found

    def usual(self, recipe: Recipe) -> Recipe:
        """The recipe, with the operator types that gain in most nets of this kind, but for the nodes that do not."""
        if recipe.types:
            return recipe
        types = USUAL if self.convolutional else CHAINS
        floats = dict.fromkeys((*small_convolutions(self.ready), *self.unfit, *recipe.floats))
        return replace(recipe, types=types, floats=tuple(floats))

    def make(self, recipe: Recipe) -> tuple[onnx.ModelProto, Recipe]:
        """The graph as the recipe says, known to load, and the recipe that was carried out.

        That has one scale a tensor where one a channel can't be made or run. UnsupportedError or ArtifactError when it
        can't be made, or nothing of it is quantized then. The last one is kept, not to be changed: what is found to be
        best is timed again, explained and written.
        """
        if self._last is None or self._last[0] != recipe:
            self._last = None  # before another one takes its room
            self._last = recipe, self._newly_made(recipe)
        return self._last[1]

    def _newly_made(self, recipe: Recipe) -> tuple[onnx.ModelProto, Recipe]:
        try:
            return self._loaded(recipe), recipe
        except (UnsupportedError, ArtifactError):
            coarser = replace(recipe, per_channel=False)
            if not recipe.per_channel or recipe.method not in INTEGER_METHODS:
                raise
            return self._loaded(coarser), coarser

    def _loaded(self, recipe: Recipe) -> onnx.ModelProto:
        made = self._made(recipe)
        if recipe.stores_rest:
            made = self._stored(made, replace(recipe, bits=8, form=Form.STORED, types=(), floats=self._excluded))
        if not weights.is_quantized(made) and recipe.method not in HALVES:
            raise UnsupportedError(f"{self.session.name}: holds nothing that {recipe.method} could quantize")
        if recipe.method is Method.STATIC:
            terse.shorten(made, names.taken(self.ready.graph))
        Session(onnx_format.payload_of(made, self.payload), self._threads)
        return made

    def _made(self, recipe: Recipe) -> onnx.ModelProto:
        name = self.session.name
        match recipe.method:
            case Method.STATIC:
                form = self.smoothed if recipe.smooth else self.plain
                if form is None:
                    raise UnsupportedError(f"{name}: has no outliers that could be moved into weights")
                return integers.static(form.model, form.shapes, form.ranges(recipe.calibration), recipe)
            case Method.DYNAMIC:
                return integers.dynamic(self.ready, integers.shapes(self.ready), recipe)
            case Method.FLOAT16 | Method.BFLOAT16 if recipe.form is Form.STORED:
                return halves.stored(self.ready, name, recipe.method)[0]
            case Method.FLOAT16 | Method.BFLOAT16:
                return halves.computing(self.ready, name, recipe.method, self._provider)
            case _:
                return self._stored(self.ready, recipe)

    def _stored(self, model: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
        """The graph with weights in few bits, rounded so that products come out closest where four bits are few."""
        corrects = recipe.bits < 8 and self.samples is not None
        made, self.decisions[recipe] = weight_only.quantize(
            model,
            self.session.name,
            bits=recipe.bits,
            form=recipe.form,
            types=recipe.types or unpacking.TYPES,
            excluded=recipe.floats,
            per_channel=recipe.per_channel,
            batches=self.feeds if corrects else None,
            threads=self._threads,
        )
        return made

    def _calibrated(self, model: onnx.ModelProto) -> Calibrated:
        wanted = calibration.activations(model, {*self.sets[-1], *self._types})
        if self.samples is None:
            return Calibrated(model, integers.shapes(model), {})
        name = self.session.name
        calibrator = calibration.Calibrator(model, name, wanted, self._folder, self._threads)
        total = -(-len(self.samples) // self._size)
        calibrator.watch(self.samples.filled_batches(self._size), self._progress, total)
        return Calibrated(model, integers.shapes(model), calibrator.histograms)

    def feeds(self) -> Iterator[Tensors]:
        """All calibration samples, from the start, in batches; UnsupportedError if there are none."""
        return (batch.inputs for batch in self._samples.filled_batches(self._size))

    def _batch(self, count: int) -> Samples:
        """One batch of about so many samples, as many as the model takes where that is fixed."""
        fixed = self.session.inputs[0].shape[0]
        return next(self._samples.filled_batches(fixed if isinstance(fixed, int) else min(count, len(self._samples))))

    @property
    def _samples(self) -> Samples:
        if self.samples is None:
            raise UnsupportedError(f"{self.session.name}: no samples to calibrate on")
        return self.samples

    @property
    def _size(self) -> int:
        """Samples in a batch of calibration."""
        fixed = self.session.inputs[0].shape[0]
        return fixed if isinstance(fixed, int) else min(BATCH, len(self._samples))
