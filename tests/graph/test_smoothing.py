from collections.abc import Iterator

import numpy as np
import onnx
import prunable
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import model_of
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.errors import UsageError
from modelctl.graph import smoothing
from modelctl.graph.smoothing import Smoothing

make = helper.make_node


def batches(net: str) -> Iterator[dict[str, Array]]:
    return (prunable.inputs(net, 32, seed) for seed in range(3))


def with_outliers(net: str) -> onnx.ModelProto:
    """A net whose normalizations make two channels far larger than the rest, as large transformers do."""
    model = prunable.exported(net)
    norms = {node.input[1] for node in model.graph.node if node.op_type == "LayerNormalization"}
    for tensor in model.graph.initializer:
        if tensor.name in norms:
            scale = numpy_helper.to_array(tensor).copy()
            scale[3::17] *= 40
            tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    return model


def smoothed(model: onnx.ModelProto, feeds: list[dict[str, Array]], insert: bool = False) -> list[Smoothing]:
    seen = smoothing.observe(model, prunable.payload(model), smoothing.values(model), feeds)
    return smoothing.smooth(model, seen, insert=insert)


@pytest.mark.parametrize(("net", "insert"), [("vit", False), ("vit", True), ("bert", False), ("bert", True)])
def test_a_smoothed_transformer_computes_the_same_with_less_error(net: str, insert: bool) -> None:
    """On fresh samples, with all that is multiplied rounded to 8 bits."""
    model = with_outliers(net)
    before = onnx.ModelProto.FromString(model.SerializeToString())
    told = smoothed(model, list(batches(net)), insert)
    fresh = prunable.inputs(net, 32, 99)
    wanted = prunable.run(before, fresh)
    assert np.abs(prunable.run(model, fresh) - wanted).max() < 1e-5 * wanted.std()
    done = [one for one in told if not one.reason]
    assert all(one.alpha in smoothing.ALPHAS and one.after < one.before for one in done)
    muls = sum(node.op_type == "Mul" for node in model.graph.node) - sum(
        node.op_type == "Mul" for node in before.graph.node
    )
    names = {node.name: node.op_type for node in before.graph.node}
    assert muls == sum(one.through not in names for one in done)
    assert not muls or insert
    if net == "vit":
        normalized = [one for one in done if names.get(one.through) == "LayerNormalization"]
        assert len(normalized) == 4
        assert all(one.after < one.before / 2 for one in normalized)
    else:  # its normalizations are read by sums, too
        assert bool(done) == insert
        assert any(one.reason == "is read by others too" for one in told) != insert
    assert_less_error(before, model, fresh)
    onnx.checker.check_model(model)


def assert_less_error(before: onnx.ModelProto, after: onnx.ModelProto, fresh: dict[str, Array]) -> None:
    """The products' error on fresh samples, over all values that are multiplied; never more."""
    errors = []
    for model in (before, after):
        held = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        products = [one for one in model.graph.node if one.op_type in ("MatMul", "Gemm") and one.input[1] in held]
        seen = smoothing.observe(model, prunable.payload(model), [one.input[0] for one in products], [fresh])
        found = 0.0
        for node in products:
            matrix = held[node.input[1]]
            matrix = matrix if node.op_type == "MatMul" else matrix.T
            found += smoothing.error_in_8_bits(seen[node.input[0]], [matrix], np.ones(len(matrix)))
        errors.append(found)
    assert errors[1] <= errors[0]


def test_factors_are_those_of_the_formula() -> None:
    seen = smoothing.Seen(np.array([-8.0, 0, -1, 0]), np.array([2.0, 4, 1, 0]), np.zeros((1, 4)))
    assert np.allclose(smoothing.factors(seen, np.array([2.0, 1, 0, 3]), 0.5), [2, 2, 1, 1])
    assert np.allclose(smoothing.factors(seen, np.array([2.0, 1, 0, 3]), 1.0), [8, 4, 1, 1])


def test_what_is_seen_does_not_grow() -> None:
    model = prunable.exported("bert")
    name = smoothing.values(model)[0]
    feeds = list(batches("bert"))
    seen = smoothing.observe(model, prunable.payload(model), [name], feeds)[name]
    again = smoothing.observe(model, prunable.payload(model), [name], feeds)[name]
    alone = [smoothing.observe(model, prunable.payload(model), [name], [one])[name] for one in feeds]
    assert seen.rows.shape == (smoothing.ROWS, 24)
    assert np.array_equal(seen.rows, again.rows)
    assert np.array_equal(seen.low, np.min([one.low for one in alone], 0))
    assert np.array_equal(seen.high, np.max([one.high for one in alone], 0))


def test_a_net_without_outliers_is_left() -> None:
    model = model_of([make("MatMul", ["x", "w"], ["logits"])], {"w": np.eye(8, dtype=np.float32)}, ["n", 8], ["n", 8])
    before = model.SerializeToString()
    x = np.random.default_rng(0).uniform(-1, 1, (100, 8)).astype(np.float32)
    assert [one.reason for one in smoothed(model, [{"x": x}])] == ["is an input of the graph"]
    assert [one.reason for one in smoothed(model, [{"x": x}], True)] == ["has no outliers worth the change"]
    assert model.SerializeToString() == before


def test_weights_with_other_readers_are_left() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    nodes = [
        make("Relu", ["x"], ["r"]),
        make("MatMul", ["r", "w"], ["1"]),
        make("MatMul", ["1", "w"], ["logits"]),
    ]
    model = model_of(nodes, {"w": weight}, ["n", 8], ["n", 8])
    assert {one.reason for one in smoothed(model, [{"x": weight}], True)} == {"its weight is read elsewhere too"}


def test_alpha_is_a_share() -> None:
    with pytest.raises(UsageError, match="alpha"):
        smoothing.smooth(prunable.exported("bert"), {}, (1.5,))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_chain_answers_the_same(data: st.DataObject) -> None:
    """Random nets over values [n, 6] with a huge channel; constants shared, values read twice or given out."""
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    values, nodes, held = ["x"], list[onnx.NodeProto](), dict[str, Array]()
    for place in range(data.draw(st.integers(2, 12))):
        made, source = f"v{place}", data.draw(st.sampled_from([values[-1], values[-1], *values]))
        what = data.draw(st.sampled_from(("MatMul", "MatMul", "Gemm", "norm", "Mul", "Add", "Relu", "Sigmoid", "Sum")))
        weight, row = data.draw(st.sampled_from([f"w{place}", *(one for one in held if one[0] == "w")])), "row"
        row = data.draw(st.sampled_from([f"r{place}", *(one for one in held if one[0] == "r")]))
        shape = data.draw(st.sampled_from([(6,), (1, 6), (1,), ()])) if what in ("Mul", "Add", "Gemm") else (6,)
        if what in ("MatMul", "Gemm"):
            held.setdefault(weight, (random.standard_normal((6, 6)) / 2).astype(np.float32))
        if what in ("Gemm", "Mul", "Add", "norm"):
            held.setdefault(row, random.uniform(0.5, 1.5, shape).astype(np.float32))
        if what == "norm" and held[row].shape != (6,):
            row = f"n{place}"
            held[row] = (10 ** random.uniform(-1, 2, 6)).astype(np.float32)
        others = {"MatMul": [weight], "Gemm": [weight, row], "norm": [row, row], "Mul": [row], "Add": [row]}
        kind = "LayerNormalization" if what == "norm" else what
        given_to = [source, *others.get(what, ())]
        nodes.append(make(kind, given_to, [made], transB=1) if what == "Gemm" else make(kind, given_to, [made]))
        values.append(made)
    nodes.append(make("Identity", [values[-1]], ["logits"]))
    model = model_of(nodes, held, ["n", 6], ["n", 6])
    for value in data.draw(st.lists(st.sampled_from(values[1:]), unique=True, max_size=1)):
        model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    x = random.standard_normal((30, 6)).astype(np.float32) * np.array([30, 1, 1, 1, 1, 0.1], np.float32)
    wanted = prunable.run(model, {"x": x})
    smoothed(model, [{"x": x}], data.draw(st.booleans()))
    found = prunable.run(model, {"x": x})
    assert np.abs(found - wanted).max() <= 1e-4 * max(1.0, float(np.abs(wanted).max()))
