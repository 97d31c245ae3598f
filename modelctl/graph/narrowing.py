"""Which channels and blocks to take out of a graph, so that it costs so much less and answers as little otherwise.

One step after the other is taken: every group of channels one step narrower, and every residual block gone, is tried
for what it saves and for how far it takes the answers from the original's; what saves most for the least harm stays.
Harm is measured on the graph that is left, so that what belongs together is seen together. Multiply-accumulates and
measured run time count alike in what a step saves, because each alone misleads: kernels run some widths no faster than
wider ones, and run times are noisy. Where only parameters are still too many, these alone count.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from modelctl.artifact import Payload
from modelctl.data.samples import Array
from modelctl.errors import CheckFailed, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import latency
from modelctl.graph.channels import costs, removing
from modelctl.graph.channels.cutting import aligned, cut
from modelctl.graph.channels.groups import Channels, Group, find
from modelctl.graph.session import Session, Tensors
from modelctl.progress import Progress

MOST_STEPS = 6  # from a group's whole width to its narrowest
TIMED_S = 0.06
LEAST_SAVING = 0.004  # of the whole: a step that saves less is none
LEAST_HARM = 1e-4
BEYOND = 0.1  # of the whole: a step that saves more than this beyond the goal
LAST_RESORT = 1e6  # is only taken where no other one saves anything
LATENCY, MACS, PARAMETERS = "latency", "macs", "params"
_WHOLE_UNITS = frozenset({"heads", "groups"})  # units that are many channels each

Harm = Callable[[onnx.ModelProto], float]
Keep = dict[str, Array]  # by group: the units that are left, none where the block around it is gone


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is to become less (latency, macs, params), each to which share of the whole, and by which steps."""

    shares: Mapping[str, float]
    block: int
    narrow: bool = True
    alike: bool = False  # the same share of every group, in place of a search

    def missed(self, left: Mapping[str, float]) -> list[str]:
        """What is still more than its share."""
        return [what for what, share in self.shares.items() if left[what] > share]


@dataclass(frozen=True)
class Narrowed:
    """A smaller graph: what is left of each group that lost units, and what it costs of the whole."""

    model: onnx.ModelProto
    keep: Keep
    left: Mapping[str, float]
    harm: float

    def told(self) -> dict[str, object]:
        """For the manifest: widths by group (0: gone, with its block), and costs."""
        return {"widths": {name: len(kept) for name, kept in self.keep.items()}, "left": dict(self.left)}


class Search:
    """The way from a graph to one that costs a share of it."""

    def __init__(
        self,
        model: onnx.ModelProto,
        like: Payload,
        *,
        harm: Harm,
        ranks: Callable[[Channels], Mapping[str, Array]],
        feeds: Tensors,
        threads: int,
        progress: Progress,
    ) -> None:
        """Look at a graph. `like` names it; `feeds` is the batch that it is timed on.

        `ranks` tells of each group, by name, how much every unit counts. UnsupportedError when nothing can be taken
        out, naming what stands in the way.
        """
        self._like, self._harm, self._feeds, self._threads, self._progress = like, harm, feeds, threads, progress
        self._channels = find(model, like.manifest.files[0].path)
        self._prices: dict[tuple[str, int], float] = {}  # of a group at a width, when that was last tried
        self._removable = {one.name for one in self._channels.groups if self._has_block(one)}
        if not self._channels.groups:
            raise UnsupportedError(f"{self._name}: has no channels that could go{self._in_the_way()}")
        self._ranks = ranks(self._channels)
        self._whole_macs, self._whole_parameters = costs.macs(model), costs.parameters(model)
        self._whole = onnx_format.payload_of(model, like)

    def reach(self, goal: Goal, whole: Mapping[str, float]) -> Narrowed:
        """The graph that meets the goal. `whole` is what this graph costs already of the one that the goal is meant of.

        CheckFailed when taking out all that can go is not enough: it says how far that is.
        """
        now = self._narrowed({}, whole, goal)
        if goal.alike:
            return self._reach_alike(goal, whole, now)
        while missed := goal.missed(now.left):
            what = missed[0]
            self._progress.advance(f"narrowing to {what}={goal.shares[what]:g}", round(100 * now.left[what]), None, "%")
            best = self._best_move(now, goal, whole)
            if best is None:
                raise self._stuck(goal, now)
            now = best
        return now

    def _reach_alike(self, goal: Goal, whole: Mapping[str, float], now: Narrowed) -> Narrowed:
        """As `reach`, with the same share of every group, the largest that meets the goal."""
        for percent in range(99, 0, -1):
            counts = {
                one: aligned(one.size * percent / 100, one.size, _block(one, goal.block))
                for one in self._channels.groups
            }
            keep = {one.name: self._best(one, count) for one, count in counts.items() if count < one.size}
            if keep.keys() == now.keep.keys() and all(len(keep[name]) == len(now.keep[name]) for name in keep):
                continue
            now = self._narrowed(keep, whole, goal)
            if not goal.missed(now.left):
                return now
        raise self._stuck(goal, now)

    def _best_move(self, now: Narrowed, goal: Goal, whole: Mapping[str, float]) -> Narrowed | None:
        """What saves most for the least harm; None if nothing saves.

        A move is tried anew only while it was, when it was last tried, better than the best that has been tried now:
        what was dear before seldom becomes cheap (lazy evaluation; M. Minoux, "Accelerated greedy algorithms for
        maximizing submodular set functions", 1978).
        """
        moves = {(name, len(keep[name])): keep for name, keep in self._moves(now.keep, goal)}
        best, least = None, math.inf
        for move in sorted(moves, key=lambda one: self._prices.get(one, 0.0)):
            if self._prices.get(move, 0.0) > least:
                break
            found = self._narrowed(moves[move], whole, goal)
            saved = _saved(now, found, goal)
            useful = _needed(now, found, goal)
            price = max(found.harm - now.harm, LEAST_HARM) / (saved * useful) if saved > LEAST_SAVING else math.inf
            if saved * (1 - useful) > BEYOND:
                price *= LAST_RESORT
            self._prices[move] = price
            if price < least:
                best, least = found, price
        return best

    def _moves(self, keep: Keep, goal: Goal) -> Iterator[tuple[str, Keep]]:
        """What could be taken out next: a step of a group, by name, or the block around it."""
        for group in self._channels.groups:
            width = len(keep.get(group.name, range(group.size)))
            if width == 0:
                continue
            block = _block(group, goal.block)
            step = max(block, math.ceil(group.size / MOST_STEPS / block) * block)
            narrower = aligned(width - step, group.size, block) if width > block else width
            if goal.narrow and 0 < narrower < width:
                yield group.name, keep | {group.name: self._best(group, narrower)}
            if group.name in self._removable:
                yield group.name, keep | {group.name: np.zeros(0, np.int64)}

    def _best(self, group: Group, count: int) -> Array:
        """The `count` units that count most; of equal ones those that come first."""
        order = np.argsort(-self._ranks[group.name], kind="stable")
        return np.sort(order[:count])

    def _narrowed(self, keep: Keep, whole: Mapping[str, float], goal: Goal) -> Narrowed:
        """What a cut leaves; without a search run times and harm are taken only where the goal asks for them."""
        model = cut(self._channels, keep)
        left = {
            MACS: costs.macs(model) / self._whole_macs,
            PARAMETERS: costs.parameters(model) / self._whole_parameters,
        }
        if not goal.alike or LATENCY in goal.shares:
            left[LATENCY] = self._time(model) if keep else 1.0
        harm = 0.0 if goal.alike else self._harm(model)
        return Narrowed(model, keep, {name: share * whole.get(name, 1.0) for name, share in left.items()}, harm)

    def _time(self, model: onnx.ModelProto) -> float:
        """The run time as a share of the whole graph's."""
        made = onnx_format.payload_of(model, self._like)
        _, _, speedup = latency.in_turns(
            lambda: Session(self._whole, self._threads),
            lambda: Session(made, self._threads),
            self._feeds,
            self._feeds,
            TIMED_S,
        )
        return 1 / speedup.value

    def _has_block(self, group: Group) -> bool:
        try:
            removing.around(self._channels, group)
        except UnsupportedError:
            return False
        return True

    @property
    def _name(self) -> str:
        return self._like.manifest.files[0].path

    def _in_the_way(self) -> str:
        told = [f"the channels of {one.name} {one.reason}" for one in self._channels.blocked[:3]]
        return ": " + "; ".join(told) if told else ""

    def _stuck(self, goal: Goal, now: Narrowed) -> CheckFailed:
        what = goal.missed(now.left)[0]
        reached = now.left[what]
        return CheckFailed(
            f"{self._name}: {what} can't be brought to {goal.shares[what]:g} of the input's:"
            f" {reached:.3f} is as far as it goes{self._in_the_way()}",
            f"--target {what}={math.ceil(reached * 100) / 100:g}",
            facts={"left": dict(now.left)},
        )


def _block(group: Group, block: int) -> int:
    return 1 if group.kind in _WHOLE_UNITS else block


def _saved(now: Narrowed, found: Narrowed, goal: Goal) -> float:
    """What a step saves by the measures that the goal is not met in, on average; run time with multiply-accumulates."""
    missed = goal.missed(now.left)
    counted = {MACS if what == LATENCY else what for what in missed}
    saved = [now.left[what] - found.left[what] for what in counted]
    if MACS in counted:
        saved.append(now.left[LATENCY] - found.left[LATENCY])
    return sum(saved) / len(saved)


def _needed(now: Narrowed, found: Narrowed, goal: Goal) -> float:
    """Which part of what a step saves brings it nearer to the goal; what goes beyond does harm for nothing."""
    shares = []
    for what in goal.missed(now.left):
        saved, wanted = now.left[what] - found.left[what], now.left[what] - goal.shares[what]
        shares.append(min(1.0, wanted / saved) if saved > 0 else 1.0)
    return max(shares)
