"""A node as the rules see it, and the table of rules: what an operator says about the axes around it.

A rule is a function of a `Site` that unifies axes of the node's inputs, says which leaves can't be cut, and returns the
axes of the outputs, a list of dims each:

    @rule("Softmax")
    def softmax(site: Site) -> Outputs:
        axes = site.dims(0)
        freeze(axes[site.axis(-1)], site.reason("are weighed against each other by"))
        return [axes]

What must change with an axis is said by `follow`: an attribute, or numbers of an input, that equal the sizes of dims.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from modelctl.graph.channels.dims import Dim, Reason, freeze, unify
from modelctl.graph.channels.shapes import MAIN, Shapes

Array = np.ndarray[Any, Any]
Axes = list[Dim]
Outputs = Sequence[Axes | None]
Rule = Callable[["Site"], Outputs]

RULES: dict[tuple[str, str], Rule] = {}


def rule(*names: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Enter a function as the rule of the named operators."""

    def enter(found: Rule) -> Rule:
        for name in names:
            RULES[domain, name] = found
        return found

    return enter


class Unknown(Exception):  # noqa: N818 - no error of anyone, but an answer: this node is not understood
    """A node uses its operator in a way that no rule covers; its text says which."""


@dataclass(frozen=True)
class Follower:
    """Numbers that equal the sizes of dims: an attribute by name, or the input at a place; None leaves a number."""

    node: int
    where: str | int
    dims: tuple[Dim | None, ...]


@dataclass
class Notes:
    """What the rules tell beside the axes: who makes and who uses channels, and of what kind leaves are."""

    produced: list[tuple[int, Dim]] = field(default_factory=list)
    consumed: list[tuple[int, Dim]] = field(default_factory=list)
    kinds: list[tuple[str, Dim]] = field(default_factory=list)
    statistics: list[tuple[int, Dim]] = field(default_factory=list)
    running: set[Dim] = field(default_factory=set)  # axes of running statistics, which are no weights
    scales: list[int] = field(default_factory=list)  # nodes that make a float of a number that is known
    followers: list[Follower] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """One node: the axes of its inputs, what is known of their numbers, and where to tell the rest."""

    index: int
    node: onnx.NodeProto
    opset: int
    given: Sequence[Axes | None]
    constant: Sequence[bool]
    shapes: Shapes
    notes: Notes

    def has(self, place: int) -> bool:
        """Whether the input at `place` is given."""
        return place < len(self.node.input) and bool(self.node.input[place])

    def dims(self, place: int) -> Axes:
        """The axes of an input; Unknown where its shape is not known."""
        found = self.given[place] if self.has(place) else None
        if found is None:
            raise Unknown("takes a value of unknown shape")
        return found

    def is_weight(self, place: int) -> bool:
        """Whether an input is made of initializers alone."""
        return self.has(place) and self.constant[place]

    def numbers(self, place: int) -> list[int] | None:
        """The whole numbers that an input holds; None where they are not known or it is not given."""
        found = self.shapes.numbers.get(self.node.input[place]) if self.has(place) else None
        return None if found is None else [int(one) for one in found.reshape(-1)]

    def sizes(self, place: int = 0) -> tuple[int, ...]:
        """The shape of an output; Unknown where it can't be inferred."""
        found = self.shapes.shape.get(self.node.output[place])
        if found is None:
            raise Unknown("gives a value of unknown shape")
        return found

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, as onnx.helper reads it."""
        found = next((one for one in self.node.attribute if one.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front, of a value of `rank` (that of the first input)."""
        rank = len(self.dims(0)) if rank is None else rank
        found = int(self.attribute("axis", default))
        if not -rank <= found < max(rank, 1):
            raise Unknown(f"names an axis {found} that is not there")
        return found + rank if found < 0 else found

    def listed(self, name: str, place: int) -> list[int] | None:
        """Whole numbers that older operator sets hold in an attribute, later ones in an input; None for neither."""
        found = self.attribute(name)
        if found is not None:
            return [int(one) for one in found]
        if self.has(place) and self.numbers(place) is None:
            raise Unknown(f"computes its {name}")
        return self.numbers(place)

    def reason(self, text: str) -> Reason:
        """Why something can't be cut, with this node's operator as its end: "are sorted by" TopK."""
        called = f" ({self.node.name})" if self.node.name else ""
        return Reason(f"{text} {self.node.op_type}{called}", self.node.name or self.node.output[0])

    def fixed(self, sizes: Sequence[int], text: str = "are positions of") -> Axes:
        """New axes of which nothing can be cut."""
        return [Dim(size, self.reason(text)) for size in sizes]

    def freeze(self, dims: Sequence[Dim], text: str) -> None:
        """Keep all of some axes, because of this node."""
        for one in dims:
            freeze(one, self.reason(text))

    def produce(self, dim: Dim) -> None:
        """Note that this node's weights make the channels on an axis, the very dim that its weight has there."""
        self.notes.produced.append((self.index, dim))

    def consume(self, dim: Dim) -> None:
        """Note that this node's weights take up the channels on an axis of theirs."""
        self.notes.consumed.append((self.index, dim))

    def follow(self, where: str | int, dims: Sequence[Dim | None]) -> None:
        """Note that an attribute, or the numbers of an input, are the sizes of these dims."""
        self.notes.followers.append(Follower(self.index, where, tuple(dims)))

    def summarize(self, dims: Sequence[Dim]) -> None:
        """Note that this node takes a mean over an axis, which is another one when the axis is cut."""
        self.notes.statistics += [(self.index, one) for one in dims]

    def kind(self, name: str, dim: Dim) -> None:
        """Note what the positions of an axis are."""
        self.notes.kinds.append((name, dim))


def broadcast(values: Sequence[Axes]) -> Axes:
    """The axes of what several values are broadcast to, those that meet made one."""
    rank = max(len(one) for one in values)
    found = []
    for place in range(rank, 0, -1):
        meeting = [one[-place] for one in values if len(one) >= place]
        wide = [one for one in meeting if one.size != 1] or meeting[:1]
        for one in wide[1:]:
            unify(wide[0], one)
        found.append(wide[0])
    return found


def rule_of(node: onnx.NodeProto) -> Rule | None:
    """The rule of a node's operator."""
    return RULES.get(("" if node.domain in MAIN else node.domain, node.op_type))


def opset_of(opsets: Mapping[str, int], node: onnx.NodeProto) -> int:
    """The version of the operator set that a node's operator is from."""
    return opsets.get("" if node.domain in MAIN else node.domain, 1)
