import nets
import numpy as np
import onnx
from onnx import helper

from modelctl.data.samples import Array
from modelctl.graph import prepare, unpacking, weight_only, weights


def test_weights_are_counted_whether_quantized_or_not() -> None:
    model = nets.convolutional()
    before = weights.count(model)
    packed, _ = weight_only.quantize(model, "net.onnx")
    assert weights.count(packed).parameters == before.parameters
    assert weights.is_quantized(packed)
    assert not weights.is_quantized(model)
    assert packed.ByteSize() < model.ByteSize() / 2


def test_zeros_are_those_of_the_zero_point() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
    ]
    held: dict[str, Array] = {
        "q": np.array([[3, 3, 0], [5, 0, 0]], np.uint8),
        "s": np.ones(2, np.float32),
        "z": np.array([3, 5], np.uint8),
    }
    found = weights.count(nets.model_of(nodes, held, ["n", 2], ["n", 3]))
    assert (found.parameters, found.sparsity) == (6, 0.5)


def test_only_what_is_multiplied_or_looked_up_is_prunable() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["m"]),
        helper.make_node("Add", ["m", "mask"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["logits"]),
    ]
    held = {name: np.ones(shape, np.float32) for name, shape in (("w", (3, 2)), ("mask", (1, 3)), ("bias", (3,)))}
    assert [one.name for one in weights.prunable(nets.model_of(nodes, held, ["n", 2], ["n", 3]))] == ["w"]


def test_packed_weights_are_within_half_a_step() -> None:
    values = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    values[2] = 0
    for axis in (0, 1, None):
        packed, scale = unpacking.pack(values, axis)
        assert np.all(np.abs(packed * scale - values) <= scale / 2 + 1e-7)
        assert np.all(packed[2] == 0)


def test_a_prepared_graph_computes_the_same() -> None:
    model = nets.convolutional()
    ready = prepare.prepare(model, "net")
    kinds = [node.op_type for node in ready.graph.node]
    assert "BatchNormalization" not in kinds
    small = prepare.small_convolutions(ready)
    assert len(small) == 1
    prepare.pool_before_relu(ready, small)
    assert [node.op_type for node in ready.graph.node][:4] == ["Conv", "MaxPool", "Relu", "Conv"]
    assert [node.op_type for node in ready.graph.node][4:6] == ["Relu", "MaxPool"]
    pictures, _ = nets.samples(50)
    assert np.allclose(nets.run(model, pictures), nets.run(ready, pictures), atol=1e-5)


def test_an_old_opset_is_raised() -> None:
    model = nets.linear(opset=9)
    ready = prepare.prepare(model, "old")
    assert next(one.version for one in ready.opset_import if one.domain == "") >= 13
    assert model.opset_import[0].version == 9
    onnx.checker.check_model(ready)
    pictures, _ = nets.samples(5)
    assert np.allclose(nets.run(model, pictures), nets.run(ready, pictures), atol=1e-5)
