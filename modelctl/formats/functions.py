"""How large a model is once its functions are unfolded, told before anything unfolds them.

A function of an ONNX model may call others, so that a few hundred bytes can stand for more nodes than any machine can
hold; onnxruntime unfolds them all when it loads the model. `ModelProto.functions` is field 25 (onnx/onnx.proto).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import ArtifactError
from modelctl.formats import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

MOST_NODES = 1_000_000
_FIELD = 25

_Key = tuple[str, str, str]


def present(data: bytes) -> bool:
    """Whether the bytes of a model hold functions, told from its outermost fields; True where that can't be told."""
    try:
        return any(one.number == _FIELD for one in wire.fields(data))
    except ValueError:
        return True


def refuse_unfolding(model: onnx.ModelProto, name: str) -> None:
    """ArtifactError if the model called `name` unfolds to more than `MOST_NODES` nodes, or without an end."""
    held = {(one.domain, one.name, one.overload): one for one in model.functions}
    sizes: dict[_Key, int] = {}
    begun: set[_Key] = set()
    waiting: list[_Key] = list(held)
    while waiting:
        key = waiting[-1]
        called = [one for one in _called(held[key].node) if one in held]
        missing = {one for one in called if one not in sizes}
        if not missing:
            sizes[key] = min(MOST_NODES + 1, _count(held[key].node) + sum(sizes[one] for one in called))
            begun.discard(key)
            waiting.pop()
        elif key in begun:
            raise ArtifactError(f"{name}: its function {key[1]!r} calls itself")
        else:
            begun.add(key)
            waiting += missing
    total = _count(model.graph.node) + sum(sizes.get(one, 0) for one in _called(model.graph.node))
    if total > MOST_NODES:
        raise ArtifactError(f"{name}: its functions unfold to more than {MOST_NODES} nodes")


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """The nodes and those of their subgraphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += attribute.g.node
            for graph in attribute.graphs:
                waiting += graph.node


def _called(nodes: Iterable[onnx.NodeProto]) -> list[_Key]:
    return [(node.domain, node.op_type, node.overload) for node in _nodes(nodes)]


def _count(nodes: Iterable[onnx.NodeProto]) -> int:
    return sum(1 for _ in _nodes(nodes))
