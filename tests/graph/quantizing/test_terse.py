"""The same graph in fewer bytes: same answers, same kernels, shorter."""

from collections import Counter
from pathlib import Path

import nets
import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized import static

from modelctl.graph import names
from modelctl.graph.prepare import prepare
from modelctl.graph.quantizing.terse import shorten


def kernels(model: onnx.ModelProto, path: Path) -> Counter[str]:
    """How often onnxruntime runs which operator."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def shortened(model: onnx.ModelProto, given: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto.FromString(model.SerializeToString())
    shorten(made, names.taken(given.graph))
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize("per_channel", [True, False])
def test_it_is_the_same_in_fewer_bytes(tmp_path: Path, per_channel: bool) -> None:
    x = nets.samples(50)[0]
    long = static(nets.convolutional(), x, per_channel=per_channel)
    ready = prepare(nets.convolutional(), "net")
    short = shortened(long, ready)
    assert kernels(short, tmp_path / "short.onnx") == kernels(long, tmp_path / "long.onnx")
    assert kernels(short, tmp_path / "short.onnx")["QGemm"] == 1
    np.testing.assert_array_equal(prunable.run(short, {"x": x}), prunable.run(long, {"x": x}))
    weights = sum(len(one.raw_data) for one in long.graph.initializer if len(one.dims) > 1)
    assert short.ByteSize() - weights < 0.75 * (long.ByteSize() - weights)
    assert {node.name for node in short.graph.node} - {""} <= {
        node.name for node in prepare(nets.convolutional(), "n").graph.node
    }
    assert {one.name for one in short.graph.initializer} >= {"w1_quantized", "w2_quantized", "w3_quantized"}
    assert Counter(one.name for one in short.graph.initializer).most_common(1)[0][1] == 1


def test_zero_points_that_are_not_zero_or_must_be_there_stay() -> None:
    points = {"a": 3, "b": 0, "c": 0}
    held = {f"{one}_quantized": np.ones((4, 4), np.int8) for one in points}
    held |= {f"{one}_point": np.array(value, np.int8) for one, value in points.items()}
    nodes = [
        helper.make_node("DequantizeLinear", [f"{one}_quantized", "scale", f"{one}_point"], [one], f"read_{one}")
        for one in points
    ]
    nodes += [
        helper.make_node("MatMul", ["x", "a"], ["q0"], "first"),
        helper.make_node("MatMul", ["q0", "b"], ["h"], "second"),
        helper.make_node("MatMul", ["h", "c"], ["logits"], "third"),
    ]
    model = nets.model_of(nodes, held | {"scale": np.array(0.5, np.float32)}, ["n", 4], ["n", 4])
    before = prunable.run(model, {"x": np.ones((2, 4), np.float32)})
    shorten(model, {"x", "logits", "q0", "h", "first", "second", "third"})
    assert [len(node.input) for node in model.graph.node if node.op_type == "DequantizeLinear"] == [3, 3, 3]
    assert [node.output[0] for node in model.graph.node if node.op_type == "MatMul"] == ["q0", "h", "logits"]
    assert [node.name for node in model.graph.node] == ["", "", "", "first", "second", "third"]
    np.testing.assert_array_equal(prunable.run(model, {"x": np.ones((2, 4), np.float32)}), before)


def test_names_within_subgraphs_are_the_same_outside(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["outer_added", "inner_added"], ["branch"], "inner_sum")],
        "branch",
        [],
        [helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(4, np.float32), "inner_added")],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["outer_added"], "added"),
        helper.make_node("If", ["yes"], ["logits"], "if", then_branch=inner, else_branch=inner),
    ]
    model = nets.model_of(nodes, {}, ["n", 4], ["n", 4])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    x = np.arange(8, dtype=np.float32).reshape(2, 4) - 4
    shorten(model, {"x", "logits", "yes", "if"})
    assert b"added" not in model.SerializeToString()
    np.testing.assert_array_equal(prunable.run(model, {"x": x}), np.maximum(x, 0) + 1)
