"""The search for the best way to quantize a graph: what is tried, in which order, and when nothing can win any more.

First the sets of operator types that integers may run through, each timed; of the fastest, nodes that are slower in
integers than in float (told by onnxruntime's profile) go back to float. Then what changes the answers and not the
speed: how ranges are found, smoothing, a bit of head room in the weights. If the answers are still not kept, the nodes
that harm most go back to float, as many as needed, found by halving; and of those the ones that were not needed come
back. Beside that stand the methods that find ranges while running, or store in fewer bits and compute in float.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import onnx

from modelctl.errors import ArtifactError, CheckFailed, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph.quantizing import explain, profile
from modelctl.graph.quantizing.recipe import DYNAMIC, PRODUCTS, Recipe
from modelctl.graph.quantizing.trials import TIE, Trials, Tried
from modelctl.graph.quantizing.workshop import Workshop
from modelctl.graph.weight_only import Form
from modelctl.options import Calibration, Goal, Method, QuantizeOptions
from modelctl.progress import Progress, silent

MOST_RETURNED = 6  # nodes that are tried to be brought back from float
WORTH = 1.05  # the speed below which a file that is only smaller may be better
UNKNOWN = (ArtifactError, UnsupportedError, CheckFailed)


class Search:
    """What has been tried so far, and the best of it."""

    def __init__(
        self, workshop: Workshop, trials: Trials, options: QuantizeOptions, progress: Progress = silent
    ) -> None:
        self.tried: dict[Recipe, Tried] = {}
        self.reasons = workshop.unfit | dict.fromkeys(options.excludes, "is excluded")
        self.float_us: dict[str, float] = {}
        self.integer_us: dict[str, float] = {}
        self._workshop, self._trials, self._options, self._progress = workshop, trials, options, progress
        self._ends_at = time.monotonic() + options.time_budget_s

    @property
    def best(self) -> Tried | None:
        """The best of what was tried; None if nothing keeps what it must."""
        return self._trials.best(list(self.tried.values()))

    def run(self, asked: Sequence[Recipe] = ()) -> Tried | None:
        """The best of those `asked` for, or of all until nothing can win any more; at most until the time is spent."""
        parts = [iter(asked)] if asked else [self._safe(), self._integers(), self._stored(), self._rest()]
        for recipe in chain.from_iterable(parts):
            if self.tried and self._is_over:
                self._progress.note(f"the search has spent its {self._options.time_budget_s:g} s")
                break
            self.attempt(recipe)
        return self._confirmed()

    def _confirmed(self) -> Tried | None:
        """The best once it has been timed again: the fastest of many owes some of that to chance."""
        again: set[Recipe] = set()
        while (best := self.best) is not None and best.recipe not in again and not self._is_over:
            made, _ = self._workshop.make(best.recipe)
            speedup = self._trials.time(onnx_format.payload_of(made, self._workshop.payload))
            for recipe, one in self.tried.items():
                if one.speedup is best.speedup:
                    again.add(recipe)
                    self.tried[recipe] = replace(one, speedup=speedup)
        return self.best

    @property
    def _is_over(self) -> bool:
        """Whether the time to search is spent."""
        return time.monotonic() > self._ends_at

    def attempt(self, recipe: Recipe, as_fast_as: Tried | None = None, timed: bool = True) -> Tried:
        """Make, load and score a candidate, and time it, unless it is known to be as fast as another one."""
        known = self.tried.get(recipe)
        if known is not None and (known.trouble or known.speedup is not None or not timed):
            return known
        try:
            known, payload = self._trials.score(*self._workshop.make(recipe))
            if timed:
                known = replace(known, speedup=as_fast_as.speedup if as_fast_as else self._trials.time(payload))
        except UNKNOWN as error:
            known = Tried(recipe=recipe, trouble=error.message)
        self.tried[recipe] = known
        self._progress.advance(f"searching, {self._told()}", len(self.tried), None, "candidates")
        return known

    def table(self) -> list[dict[str, Any]]:
        """All that was tried, a row each, in the order in which it was tried."""
        best = self.best
        return [one.facts("chosen" if one is best else self._trials.verdict(one)) for one in self.tried.values()]

    def explanation(self, made: onnx.ModelProto) -> list[dict[str, Any]]:
        """What was decided for each node, `made` being the graph that came of it; see `explain`."""
        left = self.best.recipe.floats if self.best is not None else ()
        why = {name: reason for name, reason in self.reasons.items() if name in left}
        return explain.decisions(self._workshop.ready, made, why, self._workshop.harms, self.float_us, self.integer_us)

    def why_not(self) -> str:
        """Why nothing was found, in one line."""
        known = [one for one in self.tried.values() if not one.trouble]
        if not known:
            return f"nothing could be quantized: {next(iter(self.tried.values())).trouble}"
        true = [one for one in known if self._trials.keeps_answers(one)]
        if true:
            near = max(true, key=lambda one: one.speed)
            return (
                f"not accepted: none of {len(known)} candidates that keep the answers is fast and small enough; the "
                f"fastest, {near.recipe.name}, runs at ×{near.speed:.2f} and is ÷{near.size_ratio:.2f}"
            )
        near = min(known, key=lambda one: one.error)
        lost = f"loses {near.drop_pp:.2f} points" if near.drop_pp is not None else f"is {near.agreement:.4f} alike"
        return f"not accepted: none of {len(known)} candidates keeps the budget; the truest, {near.recipe.name}, {lost}"

    def _told(self) -> str:
        best = self.best
        if best is None:
            return "nothing within the budget yet"
        lost = f", {best.drop_pp:+.2f} points lost" if best.drop_pp is not None else f", {best.agreement:.4f} alike"
        return f"best {best.recipe.name}: ×{best.speed:.2f}, ÷{best.size_ratio:.2f}{lost}"

    def _safe(self) -> Iterator[Recipe]:
        """What hardly any model loses by, and none is slower for: that much is had whenever the search has to end."""
        if self._options.bits != 4:
            yield self._weight_only

    @property
    def _weight_only(self) -> Recipe:
        """Weights alone, stored in eight bits."""
        options = self._options
        return Recipe(
            method=Method.WEIGHT_ONLY, types=options.op_types, floats=options.excludes, per_channel=options.per_channel
        )

    # In integers.

    def _integers(self) -> Iterator[Recipe]:
        options = self._options
        if options.bits == 4:
            return
        base = Recipe(
            method=Method.STATIC,
            floats=(*self._workshop.unfit, *options.excludes),
            per_channel=options.per_channel,
            calibration=options.calibration or Calibration.MINMAX,
            smooth=bool(options.smooth),
        )
        yield self._workshop.usual(replace(base, types=options.op_types))
        yield from (replace(base, types=types) for types in self._sets_of_types())
        if not self._workshop.convolutional:
            yield from (replace(base, types=types, gives_float=True) for types in self._sets_of_types()[:1])
        top = self._fastest()
        if top is not None:
            yield from self._without_slow(top)
            top = self._truest(self._fastest() or top)
            if options.smooth is None and self._workshop.has_outliers:
                yield replace(top.recipe, smooth=True)
                top = self._fastest() or top
            if not self._trials.keeps_answers(top):
                yield from self._fewer(top.recipe)
        if self._can_win_by(DYNAMIC):
            types = tuple(one for one in options.op_types or DYNAMIC)
            yield Recipe(method=Method.DYNAMIC, types=types, floats=options.excludes, per_channel=options.per_channel)

    def _sets_of_types(self) -> list[tuple[str, ...]]:
        """Sets of operator types that differ on this graph, the smallest first."""
        if self._options.op_types:
            return [self._options.op_types]
        there = {node.op_type for node in self._workshop.ready.graph.node}
        found = {frozenset(there & set(types)): types for types in reversed(self._workshop.sets)}
        return [types for kinds, types in sorted(found.items(), key=lambda one: len(one[0])) if kinds & set(PRODUCTS)]

    def _fastest(self) -> Tried | None:
        """The fastest in ranges that are known, whatever its answers; of equally fast ones that with the truest."""
        found = [one for one in self.tried.values() if one.recipe.method is Method.STATIC and one.speedup is not None]
        top = max((one.speed for one in found), default=0.0)
        return min((one for one in found if one.speed >= top * (1 - TIE)), key=lambda one: one.error, default=None)

    def _without_slow(self, top: Tried) -> Iterator[Recipe]:
        """The recipe without the nodes that run slower in integers."""
        ready, feeds, threads = self._workshop.ready, self._trials.feeds, self._options.timed_threads()
        if onnx_format.is_large(ready):
            return
        self.float_us = profile.times(ready, feeds, ready, threads)
        self.integer_us = profile.times(self._workshop.make(top.recipe)[0], feeds, ready, threads)
        products = [node.name for node in ready.graph.node if node.op_type in PRODUCTS]
        slow = {
            name: f"takes {self.integer_us[name]:.0f} µs in integers, {self.float_us[name]:.0f} in float"
            for name in products
            if name not in top.recipe.floats and self.integer_us.get(name, 0.0) > self.float_us.get(name, float("inf"))
        }
        if slow and len(slow) + len(top.recipe.floats) < len(products):
            self.reasons |= slow
            yield _floated(top.recipe, list(slow))

    def _truest(self, top: Tried) -> Tried:
        """What answers most truly of `top` and those that differ only in numbers, and so are as fast."""
        recipe = top.recipe
        if self._options.calibration is None:
            others = [replace(recipe, calibration=one) for one in Calibration if one is not recipe.calibration]
            top = min([top, *(self.attempt(one, as_fast_as=top) for one in others)], key=lambda one: one.error)
        roomy = self.attempt(replace(top.recipe, weight_bits=7), as_fast_as=top)
        return min(top, roomy, key=lambda one: one.error)

    def _fewer(self, recipe: Recipe) -> Iterator[Recipe]:
        """The recipe with the most harmful nodes in float, as few as keep the answers."""
        harmful = [name for name, one in self._workshop.harms.items() if one.op_type in recipe.types]
        kept = self._halved(recipe, [name for name in harmful if name not in recipe.floats])
        for name in reversed(kept[:-1][-MOST_RETURNED:]):
            fewer = [one for one in kept if one != name]
            if not self._is_over and self._trials.keeps_answers(self.attempt(_floated(recipe, fewer), timed=False)):
                kept = fewer
        if kept:
            self.reasons |= dict.fromkeys(kept, "harms the answers most")
            yield _floated(recipe, kept)

    def _halved(self, recipe: Recipe, order: Sequence[str]) -> list[str]:
        """As few of the first of these nodes, left out, as keep the answers; none if not even nearly all of them do."""
        low, high = 0, len(order)  # `low` nodes left out are too few
        while high - low > 1 and not self._is_over:
            middle = (low + high) // 2
            tried = self.attempt(_floated(recipe, order[:middle]), timed=False)
            low, high = (low, middle) if self._trials.keeps_answers(tried) else (middle, high)
        return list(order[:high]) if high < len(order) and high - low == 1 else []

    def _can_win_by(self, types: Sequence[str]) -> bool:
        """Whether a method could still be the fastest if nodes of these types took no time at all."""
        best = self.best
        if best is None or self._options.target is not Goal.LATENCY or not self.float_us:
            return True
        kinds = {node.name: node.op_type for node in self._workshop.ready.graph.node}
        whole = sum(self.float_us.values())
        left = sum(micros for name, micros in self.float_us.items() if kinds.get(name) not in types)
        return whole > best.speed * left

    # Stored in fewer bits, computed in float or as stored.

    def _stored(self) -> Iterator[Recipe]:
        options, goal, base = self._options, self._options.target, self._weight_only
        bits = (options.bits,) if options.bits else (8, 4)
        multiplies = any(node.op_type in ("MatMul", "Gemm") for node in self._workshop.ready.graph.node)
        if multiplies and self._can_win_by(("MatMul", "Gemm")):
            yield from (replace(base, bits=one, form=Form.INTEGERS) for one in bits)
        if goal is not Goal.LATENCY:
            for one in bits:
                yield from (replace(base, bits=one, form=form) for form in (Form.STORED, Form.BLOCKS))
            if 4 in bits:
                yield from self._mixed(replace(base, bits=4, form=Form.STORED))
        best = self.best
        if best is None or best.speed < WORTH:
            yield from (replace(base, bits=one) for one in bits)
        if self.best is None:
            yield from (Recipe(method=Method.FLOAT16, form=form) for form in (Form.STORED, Form.BLOCKS))

    def _mixed(self, recipe: Recipe) -> Iterator[Recipe]:
        """Four bits where they keep the answers, and eight where rounding to four would cost most."""
        if self._trials.keeps_answers(self.attempt(recipe)):
            return
        told = sorted(self._workshop.decisions.get(recipe, ()), key=lambda one: -one.error)
        order = list(dict.fromkeys(one.node for one in told if one.coding))
        kept = self._halved(replace(recipe, stores_rest=True), order)
        if kept:
            yield replace(_floated(recipe, kept), stores_rest=True)

    def _rest(self) -> Iterator[Recipe]:
        """The best one, with what it leaves in float stored in fewer bits."""
        best = self.best
        if best is not None and best.recipe.method in (Method.STATIC, Method.DYNAMIC):
            yield replace(best.recipe, stores_rest=True)


def _floated(recipe: Recipe, names: Sequence[str]) -> Recipe:
    return replace(recipe, floats=(*recipe.floats, *names))
