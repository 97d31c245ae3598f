"""Where two models part is told by the first value inside that differs."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from modelctl.artifact import Payload
from modelctl.errors import DataError
from modelctl.graph.closeness import Tolerance
from modelctl.graph.divergence import first_difference, inside
from modelctl.manifest import FileEntry, Manifest

FEEDS = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
MANIFEST = Manifest(name="m", format="onnx", files=(FileEntry(path="m.onnx", size=1, sha256="0" * 64),))


def payload(shift: float = 1.0, middle: str = "Abs", name: str = "absolute") -> Payload:
    """y = (|x + shift|) · 2, its values named."""
    nodes = [
        helper.make_node("Add", ["x", "shift"], ["moved"]),
        helper.make_node(middle, ["moved"], [name]),
        helper.make_node("Mul", [name, "two"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in held(shift).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return Payload(MANIFEST, {"m.onnx": model.SerializeToString()})


def held(shift: float) -> dict[str, Any]:
    return {"shift": np.float32(shift), "two": np.float32(2)}


def told(candidate: Payload, reference: Payload) -> str | None:
    return first_difference(candidate, inside(reference), FEEDS, Tolerance(), otherwise="nothing inside does")


def test_the_first_value_that_differs_is_named_with_its_operator() -> None:
    assert told(payload(1.5), payload()) == "first differs at 'moved' (Add)"
    assert told(payload(middle="Neg"), payload()) == "first differs at 'absolute' (Neg)"
    assert told(payload(middle="Sqrt"), payload(-3)) == "first differs at 'moved' (Add)"


def test_rounding_is_no_difference_and_values_without_a_partner_are_passed_over() -> None:
    assert told(payload(1 + 1e-7), payload()) == "nothing inside does"
    assert told(payload(middle="Neg", name="other"), payload()) == "first differs at 'y' (Mul)"


def test_nothing_is_said_where_it_can_not_be_told() -> None:
    def refuses(feeds: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        raise DataError("no")

    assert first_difference(payload(), refuses, FEEDS, Tolerance(), otherwise="nothing inside does") is None
    assert first_difference(payload(), lambda feeds, names: {}, FEEDS, Tolerance(), otherwise="nothing") is None
    wrong = {"moved": np.zeros((1, 1), np.float32)}
    assert first_difference(payload(), lambda feeds, names: wrong, FEEDS, Tolerance(), otherwise="nothing") is None
