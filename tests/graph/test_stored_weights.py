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

from modelctl.errors import DataError
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


def one_node(op: str, inputs: list[str], held: dict[str, Any], domain: str = "", **attributes: Any) -> TrainableGraph:
    """y = op(inputs), of which `x` is given and the others are held."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], domain=domain, **attributes)],
        "g",
        [value("x", 1, None)],
        [value("y", 1, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return TrainableGraph(helper.make_model(graph, opset_imports=opsets)).eval()


GRID: dict[str, Any] = {"s": np.float32(0.1), "z": np.uint8(100)}
MATRIX: dict[str, Any] = {"w": np.arange(6, dtype=np.uint8).reshape(3, 2), "ws": np.float32(0.5), "wz": np.uint8(2)}


def test_rounding_lets_gradients_through_and_the_ends_of_a_type_stop_them() -> None:
    graph = one_node("QuantizeLinear", ["x", "s", "z"], GRID)
    x = torch.tensor([-11.0, -9.96, 0.03, 15.46, 16.0], requires_grad=True)
    (y,) = graph(x)
    assert y.tolist() == [0, 0, 100, 255, 255]
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(grad, torch.tensor([0.0, 10, 10, 10, 0]))
    with torch.no_grad():
        assert graph(x)[0].dtype == torch.uint8


def test_gradients_pass_products_of_integers() -> None:
    x = torch.tensor([[0.5, -1.0, 0.25]], requires_grad=True)
    dense = (torch.tensor(MATRIX["w"]).float() - 2) * 0.5
    graph = one_node("DynamicQuantizeMatMul", ["x", "w", "ws", "wz"], MATRIX, "com.microsoft")
    (y,) = graph(x)
    assert torch.allclose(y, x @ dense, atol=0.02)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(grad, dense.sum(1)[None], rtol=1e-5)
    held = GRID | MATRIX | {"os": np.float32(0.2), "oz": np.uint8(50)}
    whole = torch.tensor([[103.0, 90, 101]], requires_grad=True)  # as QuantizeLinear gives it where a graph learns
    (y,) = one_node("QLinearMatMul", ["x", "s", "z", "w", "ws", "wz", "os", "oz"], held)(whole)
    (grad,) = torch.autograd.grad(y.sum(), whole)
    assert torch.allclose(grad, 0.1 * dense.sum(1)[None] / 0.2, rtol=1e-5)
    kernel = held | {"w": held["w"].reshape(2, 3, 1)}
    spread = torch.tensor([[[103.0], [90], [101]]], requires_grad=True)
    (y,) = one_node("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "os", "oz"], kernel)(spread)
    (grad,) = torch.autograd.grad(y.sum(), spread)
    assert torch.allclose(grad.flatten(), 0.1 * ((torch.tensor(kernel["w"]).float() - 2) * 0.5).sum(0).flatten() / 0.2)


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearConcat"])
def test_gradients_pass_functions_of_stored_values(op: str) -> None:
    x = torch.tensor([[103.0, 90, 101]], requires_grad=True)
    held = GRID | {"b": np.array([[110, 120, 130]], np.uint8), "os": np.float32(0.2), "oz": np.uint8(50)}
    out, first, second = ["os", "oz"], ["x", "s", "z"], ["b", "s", "z"]
    inputs = [*first, *out]
    if op in ("QLinearAdd", "QLinearMul"):
        inputs = [*first, *second, *out]
    if op == "QLinearConcat":
        inputs = [*out, *first, *second]
    attributes = {"axis": 1} if op == "QLinearConcat" else {}
    (y,) = one_node(op, inputs, held, "com.microsoft", **attributes)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert bool((grad > 0).all())


@pytest.mark.parametrize(
    ("axis", "block", "shape"), [(5, 0, (4,)), (1, 0, (3,)), (0, 4, (3, 4)), (0, -1, (3, 4)), (0, 2**40, (2, 4))]
)
def test_scales_that_do_not_fit_are_refused_as_bad_input(axis: int, block: int, shape: tuple[int, ...]) -> None:
    model = stored_product("INT8", per_axis=True)
    node = model.graph.node[0]
    del node.input[2:], node.attribute[:]
    node.attribute.extend([helper.make_attribute("axis", axis), helper.make_attribute("block_size", block)])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), "scale"))
    with pytest.raises(DataError, match="DequantizeLinear failed"):
        TrainableGraph(model)
