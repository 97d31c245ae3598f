"""How far indices may reach is read from the graph, through what only moves numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl.graph.ranges import integer_ranges

ROWS = 11


def model(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Any], dtype: int = TensorProto.INT64
) -> onnx.ModelProto:
    """A graph of one input `x` and a table `t` of 11 rows and 3 columns."""
    held: dict[str, Any] = {"t": np.zeros((ROWS, 3), np.float32), **constants}
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", dtype, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph)


def node(operator: str, takes: str, gives: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, takes.split(), [gives], **attributes)


LOOKUP = node("Gather", "t a", "y")
N = np.array
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, int] | None]] = {
    "a lookup": ([node("Gather", "t x", "y")], {}, (0, 10)),
    "columns": ([node("Gather", "t x", "y", axis=-1)], {}, (0, 2)),
    "moved": ([node("Cast", "x b", "c", to=6), node("Unsqueeze", "c z", "a"), LOOKUP], {"z": N([0])}, (0, 10)),
    "shifted": ([node("Add", "two x", "a"), LOOKUP], {"two": N(2)}, (-2, 8)),
    "a table for each column": ([node("Add", "x two", "a"), LOOKUP], {"two": N([0, 5])}, (0, 5)),
    "shifted down": ([node("Sub", "x two", "a"), LOOKUP], {"two": N([1, 2])}, (2, 11)),
    "joined": ([node("Concat", "x x", "a", axis=1), LOOKUP], {}, (0, 10)),
    "chosen": ([node("Where", "c x z", "a"), LOOKUP], {"c": N([True]), "z": N([0])}, (0, 10)),
    "looked up twice": ([node("Gather", "t x", "b"), node("Gather", "u x", "y")], {"u": N([1, 2, 3])}, (0, 2)),
    "one hot": ([node("OneHot", "x d v", "y")], {"d": N([4]), "v": N([0, 1])}, (0, 3)),
    "a number, not an index": ([node("Cast", "x", "y", to=1)], {}, None),
    "changed on the way": ([node("Mul", "x x", "a"), LOOKUP], {}, None),
    "of a table that is not constant": ([node("Gather", "x x", "y")], {}, None),
    "nothing is left": ([node("Add", "x two", "a"), LOOKUP], {"two": N([0, 50])}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_range_of_an_input_is_that_of_what_it_picks_from(case: str) -> None:
    nodes, constants, wanted = CASES[case]
    assert integer_ranges(model(nodes, constants)) == ({} if wanted is None else {"x": wanted})


def test_a_range_ends_where_the_element_type_does() -> None:
    assert integer_ranges(model([node("Add", "x two", "a"), LOOKUP], {"two": N(2)}, TensorProto.UINT8)) == {"x": (0, 8)}
    long = N(range(1000))
    assert integer_ranges(model([node("Gather", "u x", "y")], {"u": long}, TensorProto.INT8)) == {"x": (0, 127)}


def test_lookups_inside_a_branch_count() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node("Gather", "t x", name)], name, [], [out])

    made = model(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("b"), else_branch=branch("d"))], {"c": N(True)}
    )
    assert integer_ranges(made) == {"x": (0, 10)}


def test_a_graph_that_doubles_at_each_step_is_read_at_once() -> None:
    nodes = [node("Identity", "x", "v0")]
    for step in range(50):
        nodes += [
            node("Add", f"v{step} c{step}", f"w{step}"),
            node("Concat", f"v{step} w{step}", f"v{step + 1}", axis=1),
        ]
    constants = {f"c{step}": N(2**step) for step in range(50)}
    assert integer_ranges(model([*nodes, node("Gather", "t v50", "y")], constants)) == {}
