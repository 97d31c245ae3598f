"""Weights that are stored in few bits learn as floats, and are written back in the bits that they came in."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from nets import convolutional, samples
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from modelctl.graph.chatter import hushed
from modelctl.graph.trainable import TrainableGraph

KINDS = ["INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "INT32", "FLOAT8E4M3FN"]
value = helper.make_tensor_value_info


def stored_product(kind: str, per_axis: bool, block: int = 0) -> onnx.ModelProto:
    """y = x @ (w - zero) * scale, with w [6, 4] of a kind."""
    element = getattr(TensorProto, kind)
    random = np.random.default_rng(5)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    signed = not kind.startswith("U")
    whole = random.integers(-7 if signed else 0, 8 if signed else 15, (6, 4))
    if kind == "INT32":
        whole *= 123_456_789
    shape: tuple[int, ...] = (6 // block, 4) if block else (4,) if per_axis else ()
    scale = random.uniform(0.5, 1.5, shape).astype(np.float32) * (1e-9 if kind == "INT32" else 0.1)
    zeros = kind not in ("INT32", "FLOAT8E4M3FN")
    weights = [
        numpy_helper.from_array(whole.astype(dtype), "w"),
        numpy_helper.from_array(np.asarray(scale, np.float32), "scale"),
    ]
    if zeros:
        weights.append(numpy_helper.from_array(np.full(shape, 0 if signed else 7).astype(dtype), "zero"))
    attributes: dict[str, Any] = {"axis": 0 if block else 1} | ({"block_size": block} if block else {})
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", *(["zero"] if zeros else [])], ["f"], **attributes),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["n", 6])], [value("y", 1, ["n", 4])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def as_it_stands(model: onnx.ModelProto, x: Any) -> Any:
    """What onnxruntime answers without fusing, which would round the input to eight bits, too."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return np.asarray(ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("kind", "per_axis", "block"),
    [*((*one, 0) for one in itertools.product(KINDS, (False, True))), ("INT4", False, 3), ("INT8", False, 2)],
)
def test_stored_weights_learn_and_come_back_in_their_bits(kind: str, per_axis: bool, block: int) -> None:
    model = stored_product(kind, per_axis, block)
    graph = TrainableGraph(model).eval()
    assert list(graph.parameter_names.values()) == ["w"]
    assert graph.to_onnx() == model
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    (y,) = graph(x)
    wanted = as_it_stands(model, x.numpy())
    np.testing.assert_allclose(y.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    (weight,) = graph.parameters()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, x.sum(0).unsqueeze(1).expand(6, 4)), "rounding lets the gradient through"
    with torch.no_grad():
        weight.add_(0.35 * weight.abs().max())
        (moved,) = graph(x)
    made = graph.to_onnx()
    assert made.graph.initializer[0].data_type == model.graph.initializer[0].data_type
    assert made.graph.initializer[0] != model.graph.initializer[0]
    np.testing.assert_allclose(moved.numpy(), as_it_stands(made, x.numpy()), rtol=1e-5, atol=1e-5)


def test_what_lies_outside_the_type_gets_no_gradient_and_is_stored_as_its_end() -> None:
    graph = TrainableGraph(stored_product("INT8", per_axis=False))
    (weight,) = graph.parameters()
    with torch.no_grad():
        weight[0] = 1e3
    graph(torch.ones(1, 6))[0].sum().backward()
    assert weight.grad is not None
    assert weight.grad[0].tolist() == [0.0] * 4
    assert weight.grad[1].tolist() == [1.0] * 4
    assert numpy_helper.to_array(graph.to_onnx().graph.initializer[0])[0].tolist() == [127] * 4


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """A few samples to calibrate with."""

    def __init__(self) -> None:
        self.left = iter(np.split(samples(64)[0], 4))

    def get_next(self) -> dict[str, Any] | None:
        found = next(self.left, None)
        return None if found is None else {"x": found}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layout", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_quantized_net_answers_as_in_onnxruntime_and_learns(
    tmp_path: Path, per_channel: bool, layout: QuantFormat
) -> None:
    onnx.save(convolutional(), tmp_path / "net.onnx")
    with hushed():
        quantize_static(
            tmp_path / "net.onnx",
            tmp_path / "q.onnx",
            Pictures(),
            quant_format=layout,
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(tmp_path / "q.onnx")
    x = samples(50, seed=9)[0]
    wanted = as_it_stands(model, x)
    graph = TrainableGraph(model).eval()
    with torch.no_grad():
        found = graph(torch.tensor(x))[0].numpy()
    steps = abs(found - wanted).max() / (np.diff(np.unique(wanted)).min() + 1e-12)
    assert (found == wanted).mean() > 0.98, f"off by {steps} steps"
    if layout == QuantFormat.QDQ:
        images = torch.tensor(x, requires_grad=True)
        (y,) = graph(images)
        assert torch.equal(y.detach(), torch.tensor(found)), "learning computes the same numbers"
        y.square().sum().backward()
        assert all(one.grad is not None and bool((one.grad != 0).any()) for one in graph.parameters())
        assert images.grad is not None
        for one, other in zip(graph.to_onnx().graph.initializer, model.graph.initializer, strict=True):
            assert np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other)), one.name
