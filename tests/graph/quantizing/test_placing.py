"""Which weights and values of a graph are rounded, and which share a range."""

from typing import Any

import nets
import numpy as np
import onnx
import prunable
from onnx import TensorProto, helper, numpy_helper

from modelctl.graph.prepare import prepare
from modelctl.graph.quantizing.placing import Plan, plan


def planned(model: onnx.ModelProto, *excluded: str) -> Plan:
    return plan(prepare(model, "net"), excluded)


def net_of(nodes: list[onnx.NodeProto], outputs: list[str], **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A graph from `x` [batch, 4, 8, 8] with random weights of these shapes."""
    random = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(random.random(shape).astype("f4"), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], output.upper(), **attributes)


def test_what_moves_numbers_shares_their_range_up_to_the_dense_layer() -> None:
    found = planned(nets.convolutional(), "conv1")
    assert {(one.node, one.weight, one.axis) for one in found.weighted} == {("conv2", "w2", 0), ("dense", "w3", 0)}
    assert found.ranges == {"p1": "p1", "r2": "r2", "p2": "r2", "f": "r2"}
    assert found.whole == {"r2", "p2", "f"}
    assert found.readers == {"p1": {"conv2"}}


def test_sums_of_a_residual_net_are_rounded_once_a_relu_has_seen_them() -> None:
    found = planned(prunable.exported("residual"))
    graph = prepare(prunable.exported("residual"), "net").graph
    maker = {node.output[0]: node for node in graph.node}
    sums = [value for value in found.whole if maker[maker[value].input[0]].op_type == "Add"]
    assert len(sums) == 6 and all(maker[value].op_type == "Relu" for value in sums)
    assert not any(node.op_type == "Relu" and node.input[0] in found.ranges for node in graph.node)


def test_residuals_of_a_transformer_stay_in_float() -> None:
    model = prepare(prunable.exported("vit"), "net")
    found = plan(model)
    assert {one.axis for one in found.weighted if "linear" in one.node.lower()} <= {0, 1}
    maker = {node.output[0]: node.op_type for node in model.graph.node}
    assert not any(maker[value] == "Add" for value in found.whole)
    assert len(found.weighted) == 2 * 6 + 2  # and the patches, and the head


def test_a_clip_at_zero_and_a_constant_is_part_of_the_rounding() -> None:
    model = net_of(
        [
            node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
            node("Clip", "c low high", "y"),
            node("Conv", "y v", "z"),
        ],
        ["z"],
        w=(8, 4, 3, 3),
        v=(8, 8, 1, 1),
    )
    for name, number in (("low", 0), ("high", 6)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
    found = plan(model)
    assert found.bounds == {"y": 6.0}
    assert found.whole == {"y", "z"}


def test_weights_that_others_read_too_stay() -> None:
    model = net_of(
        [
            node("Conv", "x w", "a"),
            node("Conv", "x shared", "b"),
            node("Mul", "shared shared", "m"),
            node("ReduceMean", "m", "n"),
            node("Conv", "x twice", "c"),
            node("Conv", "x twice", "d"),
            node("Sum", "a b n c d", "y"),
        ],
        ["y"],
        w=(4, 4, 1, 1),
        shared=(4, 4, 1, 1),
        twice=(4, 4, 1, 1),
    )
    assert [one.weight for one in plan(model).weighted] == ["w", "twice", "twice"]


def test_products_that_integers_do_not_compute_stay() -> None:
    model = net_of(
        [
            node("Flatten", "x", "f"),
            node("Gemm", "f w", "a", alpha=0.5),
            node("Gemm", "f w b", "c", beta=2.0),
            node("MatMul", "f w", "d"),
            node("MatMul", "t f", "e"),
            node("Add", "a c", "g"),
        ],
        ["g", "d", "e"],
        w=(256, 5),
        b=(5,),
        t=(3, 3),
    )
    assert not plan(model).weighted  # Gemms with factors; their weight is the MatMul's too; a weight on the left
