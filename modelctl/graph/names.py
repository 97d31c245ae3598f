"""Names within a graph: the graphs that it consists of, what is called how in them, and what nothing is called yet."""

from collections.abc import Iterator

import onnx


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs_of(inner)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Those that a node runs, without theirs."""
    return [part for one in node.attribute for part in (*([one.g] if one.HasField("g") else []), *one.graphs)]


def inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Those of the graphs that a node runs, and of theirs; what they take from outside, the node takes."""
    for part in subgraphs(node):
        for graph in graphs_of(part):
            yield from graph.node


def taken(graph: onnx.GraphProto) -> set[str]:
    """What values and nodes are called, in subgraphs too."""
    found: set[str] = set()
    for part in graphs_of(graph):
        found.update(one.name for one in (*part.input, *part.output))
        found.update(one.name for one in part.initializer)
        for node in part.node:
            found.update((node.name, *node.output))
    return found


def fresh(like: str, among: set[str]) -> str:
    """A name that is not yet taken, which it is from now on."""
    number = 0
    while (name := f"{like}{number or ''}") in among:
        number += 1
    among.add(name)
    return name
