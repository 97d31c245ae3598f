"""Whole residual blocks: the parts of a graph without which x stays x, and the graph without them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import onnx

from modelctl.errors import UnsupportedError
from modelctl.graph.channels.groups import Channels, Group, spoken
from modelctl.graph.channels.shapes import Shapes
from modelctl.graph.channels.states import drop_unread
from modelctl.graph.straight import straight

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention", "Einsum"})
_ATTENDING = frozenset({"Softmax", "Attention", "MultiHeadAttention"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
# What gives no negative numbers, and what gives none where it is given none.
_POSITIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs"})
_KEEPING = frozenset({"Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Transpose"})


@dataclass(frozen=True)
class Block:
    """A branch beside a skip: without it, `after` (a value) is `before`.

    `kind` is "attention", "mlp" or "convolution" for what the branch does, or "layer" for an attention and what
    follows it. `nodes` are those that fall away, by name, or by their first output where they have none.
    """

    name: str
    kind: str
    before: str
    after: str
    nodes: tuple[str, ...]


def blocks(model: onnx.ModelProto, name: str = "model") -> list[Block]:
    """The residual blocks of a model, in the graph's order; then its transformer layers, which are two of them each.

    A Relu behind the sum falls away with the block where the skip is never negative, as does a normalization behind
    it where the skip has just been normalized. A block whose skip is changed on its way (a projection) is none.
    """
    model = straight(model, name)
    found = _Residuals(model).blocks()
    layers = []
    for first, second in pairwise(found):
        if first.kind == "attention" and second.kind != "attention" and second.before == first.after:
            nodes = tuple(dict.fromkeys(first.nodes + second.nodes))
            name = _shared_stem([first.name, second.name]) or f"{first.name}+{second.name}"
            layers.append(Block(name, "layer", first.before, second.after, nodes))
    return _named(found + layers)


def remove(model: onnx.ModelProto, *removed: Block) -> onnx.ModelProto:
    """A copy of a model without these blocks, and without what nothing reads any more."""
    made = onnx.ModelProto()
    made.CopyFrom(straight(model, "model"))
    graph = made.graph
    del graph.value_info[:]
    instead = {block.after: block.before for block in removed}
    for one in instead:
        while instead[one] in instead:
            instead[one] = instead[instead[one]]
    out = {value.name for value in graph.output}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    for after in out & set(instead):  # the name of an output stays
        node = makers[after]
        node.CopyFrom(onnx.helper.make_node("Identity", [instead[after]], [after], node.name))
    drop_unread(graph)
    return made


def around(channels: Channels, group: Group) -> Block:
    """The smallest residual block that all of a group lies in; UnsupportedError if there is none."""
    touched = {*group.producers, *group.consumers}
    fitting = [one for one in blocks(channels.model) if touched <= set(one.nodes)]
    if not fitting:
        raise UnsupportedError(
            f"{group.name}: can't lose all {group.size} {group.kind}, no residual block is around it"
        )
    return min(fitting, key=lambda one: len(one.nodes))


class _Residuals:
    """The sums of a graph of which one side is made from the other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._nodes = list(model.graph.node)
        self._held = {tensor.name for tensor in model.graph.initializer}
        self._shape = Shapes(model).shape
        self._makers = {name: at for at, node in enumerate(self._nodes) for name in node.output if name}
        self._out = {value.name for value in model.graph.output}
        self._readers: dict[str, list[int]] = {}
        for at, node in enumerate(self._nodes):
            for name in node.input:
                self._readers.setdefault(name, []).append(at)

    def blocks(self) -> list[Block]:
        """Each of them with what falls away."""
        found = []
        for at, node in enumerate(self._nodes):
            if node.op_type != "Add" or len(set(node.input)) < 2 or self._held & set(node.input):
                continue
            for skip, branch in (tuple(node.input), tuple(node.input)[::-1]):
                block = self._block(at, skip, branch)
                if block is not None:
                    found.append(block)
                    break
        return found

    def _block(self, at: int, skip: str, branch: str) -> Block | None:
        total = self._nodes[at].output[0]
        shape = self._shape.get(skip)
        if shape is None or shape != self._shape.get(total) or not self._leads(skip, branch):
            return None
        after = self._end(skip, total)
        gone = self._gone(skip, after)
        made = [self._nodes[one] for one in gone]
        weighted = [one for one in made if one.op_type in _WEIGHTED]
        if not any(self._held & set(one.input) for one in weighted):
            return None
        operators = {one.op_type for one in made}
        kind = "attention" if operators & _ATTENDING else "convolution" if "Conv" in operators else "mlp"
        if not self._is_between(skip, gone):
            return None
        stem = self._stem(gone) or spoken(self._nodes[at].name or total)
        return Block(stem, kind, skip, after, tuple(one.name or one.output[0] for one in made))

    def _leads(self, source: str, target: str) -> bool:
        """Whether a value is made from another one, its shape aside."""
        seen, waiting = {target}, [target]
        while waiting:
            name = waiting.pop()
            if name == source:
                return True
            if name in self._makers and self._nodes[self._makers[name]].op_type not in ("Shape", "Size"):
                new = set(self._nodes[self._makers[name]].input) - seen
                seen |= new
                waiting += new
        return False

    def _is_between(self, skip: str, gone: list[int]) -> bool:
        """Whether what goes reads the skip, and nothing else that is made from it."""
        inside = {name for at in gone for name in self._nodes[at].output}
        read = {name for at in gone for name in self._nodes[at].input if name in self._makers} - inside
        return not any(self._leads(skip, name) for name in read - {skip})

    def _end(self, skip: str, total: str) -> str:
        """The value that is the skip once the branch is gone."""
        readers = self._readers.get(total, [])
        if len(readers) != 1 or total in self._out:
            return total
        behind = self._nodes[readers[0]]
        if behind.op_type == "Relu" and self._is_positive(skip):
            return behind.output[0]
        before = self._makers.get(skip)
        if behind.op_type in _NORMS and before is not None and self._nodes[before].op_type in _NORMS:
            return behind.output[0]
        return total

    def _is_positive(self, name: str) -> bool:
        while name in self._makers:
            node = self._nodes[self._makers[name]]
            if node.op_type in _POSITIVE:
                return True
            if node.op_type not in _KEEPING:
                return False
            name = node.input[0]
        return False

    def _gone(self, skip: str, after: str) -> list[int]:
        """The nodes that nothing reads any more when `after` is the skip."""
        ends = (self._out - {after}) | ({skip} if after in self._out else set())
        alive = _alive(self._nodes, ends, {after: skip})
        return [at for at, lives in enumerate(alive) if not lives]

    def _stem(self, gone: Iterable[int]) -> str:
        """What the names of the weights that go have in common."""
        inside = Counter(name for at in gone for name in self._nodes[at].input)
        own = [
            name
            for name, count in inside.items()
            if name in self._held and count == len(self._readers[name]) and name[0] != "/"
        ]
        return _shared_stem([name.rpartition(".")[0] for name in own if "." in name])


def _shared_stem(names: list[str]) -> str:
    """The dotted words that names begin with alike."""
    found = []
    for words in zip(*(name.split(".") for name in names), strict=False):
        if len(set(words)) > 1:
            break
        found.append(words[0])
    return ".".join(found)


def _named(found: list[Block]) -> list[Block]:
    """The same blocks, each with a name of its own."""
    counts = Counter(one.name for one in found)
    seen: Counter[str] = Counter()
    named = []
    for one in found:
        name = one.name if counts[one.name] == 1 and one.name else f"{one.name or one.after}:{one.kind}"
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name}:{seen[name]}"
        named.append(Block(name, one.kind, one.before, one.after, one.nodes))
    return named


def _alive(
    nodes: Iterable[onnx.NodeProto], out: Iterable[str], instead: Mapping[str, str] = MappingProxyType({})
) -> list[bool]:
    """Which nodes the outputs need, where some values are read instead of others."""
    needed = set(out)
    found = []
    for node in reversed(list(nodes)):
        lives = not needed.isdisjoint(name for name in node.output if name)
        if lives:
            needed.update(instead.get(name, name) for name in node.input)
        found.append(lives)
    return found[::-1]
