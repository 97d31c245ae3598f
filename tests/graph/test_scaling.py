"""Weights of absolute sum one, in graphs that go on computing the same."""

from typing import Any

import nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.errors import ArtifactError
from modelctl.graph import scaling
from modelctl.graph.scaling import GivenBack, Scaled

make = helper.make_node


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: Any = np.float32) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal(shape) / 4).astype(dtype) for name, shape in shapes.items()}


def checked(model: onnx.ModelProto, x: Array) -> dict[str, Scaled]:
    """Scale a model, see that it answers as it did and that each scaled weight sums up to one; what became of them."""
    before = onnx.ModelProto()
    before.CopyFrom(model)
    found = {one.weight: one for one in scaling.l1_scale(model, "m.onnx")}
    onnx.checker.check_model(model, full_check=True)
    wanted = ort.InferenceSession(before.SerializeToString()).run(None, {"x": x})
    answers = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    for old, new in zip(wanted, answers, strict=True):
        spread = float(np.std(np.asarray(old, np.float64))) or 1.0
        assert np.abs(np.asarray(new, np.float64) - np.asarray(old, np.float64)).max() <= 1e-5 * spread
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    old_arrays = {one.name: numpy_helper.to_array(one) for one in before.graph.initializer}
    for name, one in found.items():
        assert one.norm == pytest.approx(np.abs(old_arrays[name].astype(np.float64)).sum(), nan_ok=True)
        if one.given_back is GivenBack.LEFT:
            assert one.reason
            assert np.array_equal(arrays[name], old_arrays[name], equal_nan=True)
        else:
            assert np.abs(arrays[name].astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    return found


def inputs(*shape: int) -> Array:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_convolutional_net_gets_one_multiplication() -> None:
    model = nets.convolutional()
    found = checked(model, nets.samples(20)[0])
    assert {name: (one.given_back, one.reason) for name, one in found.items()} == {
        "w1": (GivenBack.NEXT, "went on to scale"),
        "w2": (GivenBack.NEXT, "went on to w3"),
        "w3": (GivenBack.MUL, "is given back to logits"),
    }
    assert kinds(model).count("Mul") == 1
    assert kinds(model)[-1] == "Mul"


def test_an_mlp_of_products_and_sums() -> None:
    held = weights({"a": (6, 8), "b": (8,), "c": (8, 8), "d": (1, 8), "e": (8, 4), "slope": (8,)})
    held |= {"low": np.array(0, np.float32), "high": np.array(0.7, np.float32), "eight": np.array(8, np.float32)}
    nodes = [
        make("MatMul", ["x", "a"], ["1"]),
        make("Add", ["1", "b"], ["2"]),
        make("Clip", ["2", "low", "high"], ["3"]),
        make("Gemm", ["3", "c", "d"], ["4"], alpha=0.5, beta=2.0, transB=1),
        make("PRelu", ["4", "slope"], ["5"]),
        make("Div", ["5", "eight"], ["6"]),
        make("MatMul", ["6", "e"], ["logits"]),
    ]
    model = nets.model_of(nodes, held, ["n", 6], ["n", 4])
    found = checked(model, inputs(5, 6))
    assert [one.given_back for one in found.values()] == ["next", "next", "mul"]
    assert kinds(model).count("Mul") == 1


def test_branches_that_meet_are_brought_together() -> None:
    held = weights({"a": (4, 1, 3, 3), "b": (4,), "c": (4, 4, 3, 3), "d": (4,), "e": (4, 4, 1, 1), "f": (3, 4)})
    nodes = [
        make("Conv", ["x", "a", "b"], ["1"], pads=[1, 1, 1, 1]),
        make("Relu", ["1"], ["2"]),
        make("Conv", ["2", "c", "d"], ["3"], pads=[1, 1, 1, 1]),
        make("Add", ["3", "2"], ["4"]),
        make("Conv", ["4", "e"], ["5"]),
        make("Concat", ["5", "2"], ["6"], axis=1),
        make("Sub", ["5", "2"], ["7"]),
        make("GlobalAveragePool", ["7"], ["8"]),
        make("Flatten", ["8"], ["9"]),
        make("Gemm", ["9", "f"], ["10"], transB=1),
        make("Sigmoid", ["10"], ["logits"]),
    ]
    model = nets.model_of(nodes, held, ["n", 1, 5, 5], ["n", 3])
    kind = TensorProto.FLOAT
    model.graph.output.append(helper.make_tensor_value_info("6", kind, ["n", 8, 5, 5]))
    found = checked(model, inputs(3, 1, 5, 5))
    assert [one.given_back for one in found.values()] == ["mul", "next", "mul", "mul"]
    assert kinds(model).count("Mul") == 4  # on the skip for 3 and for 5, on the output 6, before the Sigmoid
    assert found["f"].reason == "is given back to 10_l1"


def test_what_normalizes_takes_the_factor_up() -> None:
    held = weights({"a": (4, 2, 3, 3), "g": (4,), "h": (4,), "m": (4,), "f": (4, 3)})
    held["v"] = np.array([1e-6, 1e-5, 1, 2], np.float32)  # where ε counts
    nodes = [
        make("Conv", ["x", "a"], ["1"]),
        make("BatchNormalization", ["1", "g", "h", "m", "v"], ["2"], epsilon=1e-5),
        make("BatchNormalization", ["2", "g", "h", "m", "v"], ["3"], epsilon=1e-5),
        make("ReduceMean", ["3"], ["4"], axes=[2, 3], keepdims=0),
        make("MatMul", ["4", "f"], ["5"]),
        make("Softmax", ["5"], ["logits"]),
    ]
    model = nets.model_of(nodes, held, ["n", 2, 5, 5], ["n", 3])
    found = checked(model, inputs(3, 2, 5, 5))
    assert [one.given_back for one in found.values()] == ["next", "mul"]
    assert len([one for one in model.graph.initializer if one.name in ("g_l1", "m_l1")]) == 2  # the second has its own


def test_attention_and_tied_weights() -> None:
    held = weights({"table": (9, 4), "q": (4, 4), "k": (4, 4)})
    held["ids"] = np.arange(6).reshape(2, 3)
    nodes = [
        make("Gather", ["table", "ids"], ["e"]),
        make("MatMul", ["x", "q"], ["1"]),
        make("MatMul", ["e", "k"], ["2"]),
        make("Transpose", ["2"], ["3"], perm=[0, 2, 1]),
        make("MatMul", ["1", "3"], ["4"]),
        make("Softmax", ["4"], ["5"], axis=-1),
        make("MatMul", ["5", "2"], ["6"]),
        make("Transpose", ["table"], ["turned"], perm=[1, 0]),
        make("MatMul", ["6", "turned"], ["logits"]),
    ]
    model = nets.model_of(nodes, held, [2, 3, 4], [2, 3, 9])
    found = checked(model, inputs(2, 3, 4))
    assert {one.given_back for one in found.values()} == {GivenBack.MUL}
    assert set(found) == {"table", "q", "k"}


def test_what_can_not_be_scaled_is_left_and_named() -> None:
    held = weights({"a": (4, 4), "b": (4, 4), "c": (4, 4), "s": (2, 2), "big": (4, 4)})
    held |= {"zero": np.zeros((4, 4), np.float32), "nan": np.full((4, 4), np.nan, np.float32)}
    branch = helper.make_graph(
        [make("MatMul", ["1", "s"], ["in"])], "b", [], [helper.make_tensor_value_info("in", 1, None)]
    )
    held["big"] = held["big"] * np.float32(1e20)
    held["yes"] = np.array(True)
    nodes = [
        make("MatMul", ["x", "a"], ["0"]),
        make("Tanh", ["a"], ["other"]),
        make("MatMul", ["0", "zero"], ["z"]),
        make("MatMul", ["x", "nan"], ["unused"]),
        make("MatMul", ["x", "b"], ["m"]),
        make("MatMul", ["x", "big"], ["huge"]),
        make("Slice", ["0", "start", "end", "axis"], ["1"]),
        make("MatMul", ["1", "s"], ["2"]),
        make("If", ["yes"], ["3"], then_branch=branch, else_branch=branch),
        make("Identity", ["c"], ["out"]),
        make("MatMul", ["0", "c"], ["4"]),
        make("Sum", ["2", "3"], ["logits"]),
    ]
    held |= {"start": np.array([0]), "end": np.array([2]), "axis": np.array([1])}
    model = nets.model_of(nodes, held, [2, 4], [2, 2])
    for name in ("b", "out"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]))
    found = checked(model, inputs(2, 4))
    assert {name: one.reason for name, one in found.items()} == {
        "a": "is read by Tanh too",
        "zero": "holds nothing but zeros",
        "nan": "holds NaN or infinity",
        "b": "is an output of the graph, or read in a subgraph",
        "s": "is an output of the graph, or read in a subgraph",
        "c": "is an output of the graph, or read in a subgraph",
        "big": f"its absolute sum {found['big'].norm:g} is out of the range of its type",
    }


def test_half_precision_keeps_its_digits() -> None:
    def of(array: Array) -> onnx.ModelProto:
        nodes = [
            make("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            make("MatMul", ["h", "w"], ["1"]),
            make("Cast", ["1"], ["logits"], to=TensorProto.FLOAT),
        ]
        return nets.model_of(nodes, {"w": array}, ["n", len(array)], ["n", array.shape[1]])

    (found,) = scaling.l1_scale(of(weights({"w": (6, 4)}, dtype=np.float16)["w"]), "m")
    assert found.given_back is GivenBack.MUL
    (found,) = scaling.l1_scale(of(np.full((1000, 4), 0.01, np.float16)), "m")
    assert found.given_back is GivenBack.MUL
    many = (weights({"w": (400, 400)})["w"] / 100).astype(np.float16)  # brought to about 6e-6, below the normal numbers
    for array, reason in ((many, "would lose digits"), (np.full((40, 400), 2, np.float16), "out of the range")):
        (found,) = scaling.l1_scale(of(array), "m")
        assert found.given_back is GivenBack.LEFT
        assert reason in found.reason


def test_a_deep_net_stays_in_range() -> None:
    held = weights({f"w{place}": (32, 32) for place in range(40)})
    nodes = []
    for place in range(40):
        last = "logits" if place == 39 else f"r{place}"
        nodes += [
            make("MatMul", [f"r{place - 1}" if place else "x", f"w{place}"], [f"m{place}"]),
            make("LeakyRelu", [f"m{place}"], [last], alpha=0.5),
        ]
    model = nets.model_of(nodes, held, ["n", 32], ["n", 32])
    found = checked(model, inputs(4, 32))
    assert all(one.given_back is not GivenBack.LEFT for one in found.values())
    assert 2 <= kinds(model).count("Mul") < 20


def test_nodes_out_of_order_are_refused() -> None:
    model = nets.linear()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(ArtifactError, match=r"m\.onnx: its nodes are not in the order"):
        scaling.l1_scale(model, "m.onnx")


def test_an_old_opset_is_left() -> None:
    model = nets.linear()
    model.opset_import[0].version = 6
    (found,) = scaling.l1_scale(model, "m")
    assert (found.given_back, found.reason) == (GivenBack.LEFT, "opset 6 is older than 7")


UNARY = ("Relu", "Sigmoid", "LeakyRelu", "Abs", "Neg", "Identity", "Tanh", "Softmax")
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Sum")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_graph_answers_the_same(data: st.DataObject) -> None:
    """Random nets of products, sums and bends over values [n, 6], some of which are outputs."""
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    values, nodes, held = ["x"], list[onnx.NodeProto](), dict[str, np.ndarray]()
    for place in range(data.draw(st.integers(2, 12))):
        made, source = f"v{place}", data.draw(st.sampled_from(values))
        what = data.draw(st.sampled_from(("weight", "weight", "unary", "binary", "constant", "bias")))
        if what in ("weight", "bias"):
            name = data.draw(st.sampled_from([f"w{place}", *(one for one in held if one[0] == "w")]))
            held.setdefault(name, (random.standard_normal((6, 6)) / 2).astype(np.float32))
            held.setdefault("bias", random.standard_normal(6).astype(np.float32))
            other = data.draw(st.sampled_from(["bias", source]))
            nodes.append(
                make("MatMul", [source, name], [made])
                if what == "weight"
                else make("Gemm", [source, name, other], [made], transB=1)
            )
        elif what == "unary":
            nodes.append(make(data.draw(st.sampled_from(UNARY)), [source], [made]))
        else:
            held.setdefault("row", random.standard_normal((1, 6)).astype(np.float32))
            other = "row" if what == "constant" else data.draw(st.sampled_from(values))
            nodes.append(make(data.draw(st.sampled_from(BINARY)), [source, other], [made]))
        values.append(made)
    nodes.append(make("Identity", [values[-1]], ["logits"]))
    model = nets.model_of(nodes, held, ["n", 6], ["n", 6])
    for value in data.draw(st.lists(st.sampled_from(values[1:]), unique=True, max_size=2)):
        model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", 6]))
    checked(model, inputs(3, 6))
