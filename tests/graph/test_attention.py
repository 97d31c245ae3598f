"""A mask that hides everything gives zeros; other patterns are left alone."""

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl.graph.attention import mask_whole_rows


def attention(lost: float, test: str = "IsNaN") -> onnx.ModelProto:
    """Softmax under a mask, as onnxscript writes it."""
    nodes = [
        helper.make_node("Where", ["mask", "zero", "lost"], ["bias"]),
        helper.make_node("Add", ["scores", "bias"], ["total"]),
        helper.make_node("Softmax", ["total"], ["weights"], axis=-1),
        helper.make_node(test, ["weights"], ["test"]),
        helper.make_node("Where", ["test", "zero", "weights"], ["y"]),
    ]
    taken = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [3, 4]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, [3, 4]),
    ]
    given = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])]
    held = {"zero": np.float32(0), "lost": np.float32(lost)}
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    return helper.make_model(helper.make_graph(nodes, "graph", taken, given, weights))


@pytest.mark.parametrize("lost", [float(np.finfo(np.float32).min), float("-inf")])
def test_a_row_that_is_masked_altogether_is_zero(lost: float) -> None:
    model = attention(lost)
    assert mask_whole_rows(model) == 1
    onnx.checker.check_model(model, full_check=True)
    scores = np.arange(12, dtype=np.float32).reshape(3, 4)
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], np.bool_)
    with np.errstate(invalid="ignore"):
        (found,) = onnx.reference.ReferenceEvaluator(model).run(None, {"scores": scores, "mask": mask})
    exp = np.exp(scores - scores.max(1, keepdims=True)) * mask
    np.testing.assert_allclose(np.asarray(found), exp / np.maximum(exp.sum(1, keepdims=True), 1e-9), rtol=1e-5)
    assert mask_whole_rows(model) == 0


def test_what_is_no_such_mask_is_left_alone() -> None:
    assert mask_whole_rows(attention(-1.0)) == 0
    assert mask_whole_rows(attention(float("-inf"), "IsInf")) == 0
