"""Dependency groups: the channels of a graph that stay or go together, and what keeps the others where they are.

A group is a set of units, and a unit is all that one channel (attention head, hidden unit, …) is over all tensors that
it runs through: the row of the weight that makes it, its numbers in normalizations, the column of each weight that
takes it up. Groups are the leaves of `dims` that weights make and nothing freezes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from modelctl.graph.channels.dims import Dim, Reason, factors_of, leaves_of, units
from modelctl.graph.channels.labelling import Labelling, label

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of an initializer along which a group's units lie.

    `units` tells for each position of the axis which unit it belongs to, int64 [length], -1 for none. `side` is "out"
    where a weight makes the units, "in" where one takes them up, "along" for what each has of its own (biases,
    scales, states), "running" for statistics and quantization scales, which are no weights.
    """

    tensor: str
    axis: int
    units: Array
    side: str


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are kept or removed each as a whole.

    `kind` is "channels", "groups" (whole groups of a grouped convolution), "heads", "head_dim" (a width that every
    head has) or "hidden" (of a recurrent layer). `producers` and `consumers` are the nodes whose weights are cut on
    that side. `statistics` are nodes that take a mean over the units: with some gone it is another one.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    statistics: tuple[str, ...]
    leaf: Dim = field(repr=False)


@dataclass(frozen=True)
class Blocked:
    """A layer whose channels all have to stay: why, as in "its channels `reason`", and the node in the way."""

    name: str
    reason: str
    node: str


@dataclass(frozen=True, eq=False)
class Channels:
    """A graph (straightened), its groups in the order of their first makers, and its blocked layers."""

    labelling: Labelling = field(repr=False)
    groups: tuple[Group, ...]
    blocked: tuple[Blocked, ...]

    @property
    def model(self) -> onnx.ModelProto:
        """The graph that the groups are of, not to be changed."""
        return self.labelling.model

    def group(self, name: str) -> Group:
        """The group of a name; KeyError if there is none."""
        for one in self.groups:
            if one.name == name:
                return one
        raise KeyError(name)


def find(model: onnx.ModelProto, name: str = "model", sizes: Mapping[str, int] | None = None) -> Channels:
    """The groups of a model, which is left as it is.

    `name` is for messages; `sizes` are those of free dimensions by name to look at the graph with, where 1 (first
    axis) and 64 won't do. UnsupportedError for control flow.
    """
    labelling = label(model, name, sizes)
    return _Finder(labelling).found()


class _Finder:
    """What `find` knows while it puts leaves and notes together."""

    def __init__(self, labelling: Labelling) -> None:
        self._labelling = labelling
        notes = labelling.notes
        self._producers = _by_leaf(notes.produced)
        self._consumers = _by_leaf(notes.consumed)
        self._statistics = _by_leaf(notes.statistics)
        self._out = {id(dim) for _, dim in notes.produced}
        self._in = {id(dim) for _, dim in notes.consumed}
        self._running = {id(dim) for dim in notes.running}
        self._kinds = dict.fromkeys((leaf for _, dim in notes.produced for leaf in _slow(dim)), "groups")
        self._kinds |= {leaf: kind for kind, dim in notes.kinds[::-1] for leaf in leaves_of(dim)}
        self._names = _Names(labelling)
        self._places: dict[Dim, list[tuple[str, int, Dim]]] = {}
        for use in labelling.uses:
            for axis, dim in enumerate(use.dims):
                for leaf in dict.fromkeys(leaves_of(dim)):
                    self._places.setdefault(leaf, []).append((use.initializer, axis, dim))

    def found(self) -> Channels:
        """Groups and blocked layers."""
        groups = []
        for leaf in self._producers:
            if leaf.size < 2 or leaf.reason is not None:
                continue
            members = self._members(leaf)
            if members is None:
                leaf.reason = Reason("meet themselves in a product")
                continue
            groups.append(self._group(leaf, members))
        return Channels(self._labelling, tuple(groups), tuple(self._blocked()))

    def _group(self, leaf: Dim, members: list[Member]) -> Group:
        kind = self._kinds.get(leaf, "channels")
        return Group(
            name=self._names.group(self._producers[leaf][0], kind),
            kind=kind,
            size=leaf.size,
            members=tuple(members),
            producers=tuple(map(self._names.node, self._producers[leaf])),
            consumers=tuple(map(self._names.node, self._consumers.get(leaf, ()))),
            statistics=tuple(map(self._names.node, self._statistics.get(leaf, ()))),
            leaf=leaf,
        )

    def _members(self, leaf: Dim) -> list[Member] | None:
        """Where the units lie; None where a position belongs to two of them."""
        members = []
        for initializer, axis, dim in self._places.get(leaf, ()):
            found = units(dim, leaf)
            if found is None:
                return None
            members.append(Member(initializer, axis, found, self._side(dim)))
        return members

    def _side(self, dim: Dim) -> str:
        if id(dim) in self._running:
            return "running"
        return "out" if id(dim) in self._out else "in" if id(dim) in self._in else "along"

    def _blocked(self) -> list[Blocked]:
        """The layers of which no channel is in a group."""
        made: dict[int, list[Dim]] = {}
        for leaf, nodes in self._producers.items():
            for node in nodes:
                made.setdefault(node, []).append(leaf)
        found = []
        for node, leaves in sorted(made.items()):
            wide = [leaf for leaf in leaves if leaf.size > 1]
            reasons = [leaf.reason for leaf in sorted(wide, key=lambda one: -one.size) if leaf.reason is not None]
            if reasons and len(reasons) == len(wide):
                found.append(Blocked(self._names.layer(node), *reasons[0]))
        return found


def _by_leaf(notes: Sequence[tuple[int, Dim]]) -> dict[Dim, list[int]]:
    """The nodes that told of each leaf, in the graph's order."""
    found: dict[Dim, set[int]] = {}
    for node, dim in notes:
        for leaf in leaves_of(dim):
            found.setdefault(leaf, set()).add(node)
    return {leaf: sorted(nodes) for leaf, nodes in sorted(found.items(), key=lambda one: min(one[1]))}


def _slow(dim: Dim) -> Iterator[Dim]:
    """The leaves of a product that stand for several channels each, which can be removed one by one too."""
    dim = dim.root()
    for part in dim.parts if dim.how == "+" else ():
        yield from _slow(part)
    factors = factors_of(dim)
    for place, factor in enumerate(factors):
        if any(leaf.reason is None and leaf.size > 1 for fast in factors[place + 1 :] for leaf in leaves_of(fast)):
            yield from leaves_of(factor)


class _Names:
    """Readable names: of layers after their weights where these are named as torch names them."""

    def __init__(self, labelling: Labelling) -> None:
        self._nodes = labelling.model.graph.node
        self._own: dict[int, list[str]] = {}
        counts = Counter(use.initializer for use in labelling.uses for _ in use.readers)
        for use in labelling.uses:
            for node, _ in use.readers if counts[use.initializer] == 1 else ():
                self._own.setdefault(node, []).append(use.initializer)
        self._readers = {name: at for at, node in reversed(list(enumerate(self._nodes))) for name in node.input}
        self._given: set[str] = set()

    def node(self, index: int) -> str:
        """A node's name, or its output's where it has none."""
        return self._nodes[index].name or self._nodes[index].output[0]

    def layer(self, index: int) -> str:
        """What a layer is called: `conv1` where its weight is `conv1.weight`."""
        after = self._readers.get(self._nodes[index].output[0], -1)
        adding = after if after >= 0 and self._nodes[after].op_type == "Add" else index
        for place in dict.fromkeys((index, adding)):
            for initializer in self._own.get(place, ()):
                stem, dot, last = initializer.rpartition(".")
                if dot and last.split("_")[0] in ("weight", "bias"):
                    return stem
        return spoken(self.node(index))

    def group(self, index: int, kind: str) -> str:
        """A name that no other group has."""
        wanted = self.layer(index) + ("" if kind in ("channels", "hidden") else f":{kind}")
        name, count = wanted, 1
        while name in self._given:
            count += 1
            name = f"{wanted}:{count}"
        self._given.add(name)
        return name


def spoken(name: str) -> str:
    """A node's name without its operator: `layers.0.conv1` for `/layers/layers.0/conv1/Conv` of torch's older exporter.

    Names of another kind are left as they are.
    """
    if not name.startswith("/"):
        return name
    parts: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts) or name
