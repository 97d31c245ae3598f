"""A graph with roundings and the integers that are written for it compute the same, whatever the graph is like."""

from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference

from modelctl.graph import normalization
from modelctl.graph.quantizing import fakes
from modelctl.graph.quantizing.placing import Plan, plan
from modelctl.graph.trainable import TrainableGraph

Array = np.ndarray[Any, Any]


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], output.upper(), **attributes)


def net_of(
    nodes: list[onnx.NodeProto], outputs: list[str], shape: tuple[int, ...] = (4, 6, 6), **weights: tuple[int, ...]
) -> onnx.ModelProto:
    """A graph from `x` [batch, *shape] with random weights of these shapes."""
    random = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(random.normal(0, 0.3, size).astype("f4"), name) for name, size in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return shape_inference.infer_shapes(model)


def put(model: onnx.ModelProto, x: Array, bits: int) -> tuple[onnx.ModelProto, Plan]:
    """A graph with roundings in the ranges that its values have on these samples."""
    chosen = plan(model)
    values = sorted(set(chosen.ranges.values()))
    with torch.no_grad():
        found = TrainableGraph(model).eval().values([torch.from_numpy(x)], values)
    ranges = {value: (float(one.min()), float(one.max())) for value, one in found.items()}
    return fakes.put(model, chosen, ranges, bits), chosen


def both(model: onnx.ModelProto, bits: int = 4) -> tuple[onnx.ModelProto, list[Array], list[Array]]:
    """What is written, and the answers of the rounding graph and of that, unoptimized, on the same samples."""
    shape = [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(1).standard_normal((8, *shape)).astype("f4")
    rounding, chosen = put(model, x, bits)
    with torch.no_grad():
        wanted = [one.numpy() for one in TrainableGraph(rounding).eval()(torch.from_numpy(x))]
    made, _ = fakes.written(rounding, chosen, bits)
    onnx.checker.check_model(made, full_check=True)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        assert [one.name for one in session.get_outputs()] == [one.name for one in model.graph.output]
        got = [np.asarray(one) for one in session.run(None, {"x": x})]
        for mine, theirs in zip(got, wanted, strict=True):
            assert np.abs(mine - theirs).mean() < 0.01 * theirs.std()
    return made, wanted, got


CASES = {
    "a convolution's answer is the graph's": net_of(
        [node("Conv", "x w b", "y", pads=[1, 1, 1, 1])], ["y"], w=(5, 4, 3, 3), b=(5,)
    ),
    "an answer that is read inside, too": net_of(
        [node("Conv", "x w b", "y"), node("Relu", "y", "r"), node("Conv", "r v", "z")],
        ["z", "y"],
        w=(5, 4, 3, 3),
        b=(5,),
        v=(3, 5, 1, 1),
    ),
    "depthwise, no bias": net_of([node("Conv", "x w", "y", group=4), node("Relu", "y", "z")], ["z"], w=(8, 1, 3, 3)),
    "one weight used twice, with biases of their own": net_of(
        [node("Conv", "x w b", "a"), node("Conv", "a w c", "y")], ["y"], w=(4, 4, 1, 1), b=(4,), c=(4,)
    ),
    "rows of one dimension": net_of([node("Conv", "x w b", "y")], ["y"], (4, 20), w=(6, 4, 5), b=(6,)),
    "a Gemm that does not transpose": net_of(
        [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r v", "y")],
        ["y"],
        (12,),
        w=(12, 7),
        b=(7,),
        v=(7, 3),
    ),
    "a product of three axes": net_of(
        [node("MatMul", "x w", "h"), node("Add", "h b", "y")], ["y"], (5, 12), w=(12, 7), b=(7,)
    ),
    "a sum of branches, pooled": net_of(
        [
            node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
            node("Conv", "x v", "b"),
            node("Add", "a b", "s"),
            node("Relu", "s", "r"),
            node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", "p", "f"),
            node("Gemm", "f u c", "y"),
        ],
        ["y"],
        w=(4, 4, 3, 3),
        v=(4, 4, 1, 1),
        u=(36, 5),
        c=(5,),
    ),
}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("case", CASES)
def test_both_compute_the_same(case: str, bits: int) -> None:
    both(CASES[case], 7 if bits == 8 else bits)  # eight bits overflow on processors that add in sixteen


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    model = net_of([node("Conv", "x w b", "y"), node("Relu", "y", "z")], ["z"], w=(3, 4, 3, 3), b=(3,))
    weight, bias = (numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer)
    weight[1], bias[1] = 0, 0.7
    for tensor, values in zip(model.graph.initializer, (weight, bias), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    _, wanted, got = both(model)
    assert wanted[0][:, 1] == pytest.approx(0.7, abs=0.02)
    assert got[0][:, 1] == pytest.approx(0.7, abs=0.02)


def test_a_clip_needs_no_node_of_its_own(tmp_path: Path) -> None:
    model = net_of(
        [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Clip", "c low high", "r"), node("Conv", "r v", "y")],
        ["y"],
        w=(8, 4, 3, 3),
        v=(3, 8, 1, 1),
    )
    for name, number in (("low", 0), ("high", 0.5)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
    made, _, _ = both(model)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [one.op_type for one in onnx.load(tmp_path / "loaded.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2 and not {"Clip", "Conv"} & set(kinds)


def test_a_normalization_that_turned_a_channel_round_is_folded() -> None:
    pictures, _ = nets.samples(32)
    model = nets.convolutional()
    model.opset_import[0].version, model.ir_version = 21, 10
    del model.graph.node[1]  # the batch norm: `insert` puts its own in
    model.graph.node[1].input[0] = "c1"
    ready = normalization.insert(model, "net", [torch.from_numpy(pictures)])
    for tensor in ready.graph.initializer:
        if tensor.name == "c2_scale":
            values = numpy_helper.to_array(tensor) * np.where(np.arange(64) % 3, 1, -0.5)
            tensor.CopyFrom(numpy_helper.from_array(values.astype("f4"), tensor.name))
    rounding, chosen = _put_after_plan(model, ready, pictures)
    with torch.no_grad():
        wanted = TrainableGraph(rounding).eval()(torch.from_numpy(pictures))[0].numpy()
    made, _ = fakes.written(rounding, chosen, 4)
    assert "BatchNormalization" not in {node.op_type for node in made.graph.node}
    got = nets.run(made, pictures)
    assert np.abs(got - wanted).max() < 0.05 * wanted.std()


def _put_after_plan(model: onnx.ModelProto, ready: onnx.ModelProto, x: Array) -> tuple[onnx.ModelProto, Plan]:
    chosen = plan(model)
    with torch.no_grad():
        found = TrainableGraph(ready).eval().values([torch.from_numpy(x)], sorted(set(chosen.ranges.values())))
    return fakes.put(ready, chosen, {name: (float(one.min()), float(one.max())) for name, one in found.items()}, 4), (
        chosen
    )


def test_shares_of_a_range_lessen_the_error_and_never_exceed_it() -> None:
    weight = np.random.default_rng(0).standard_normal((5, 200)).astype("f4")
    weight[0, 0] = 40  # an outlier
    shares = fakes.best_shares(weight, 0, 3)
    assert ((shares >= 0.3) & (shares <= 1)).all() and shares[0] == pytest.approx(
        1
    )  # all else would be lost either way
    assert shares[1:].max() < 1
