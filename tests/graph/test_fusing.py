"""Folding: what is made of constants takes their place where that takes no more bytes."""

import nets
import numpy as np
import onnx
import prunable
from onnx import helper

from modelctl.graph import fusing
from modelctl.graph.prepare import prepare
from modelctl.graph.quantizing import integers
from modelctl.graph.quantizing.recipe import DYNAMIC, Recipe
from modelctl.options import Method

make = helper.make_node
WIDE, DEEP = 12, 6  # units, inputs
ORDER = (0, 3, 1, 2)  # torch's gates (input, forget, cell, output) as ONNX has them (input, output, forget, cell)


def recurrent(tail: list[onnx.NodeProto]) -> onnx.ModelProto:
    """An LSTM as exporters write it: the gates cut out of torch's weights, and put together in ONNX's order."""
    random = np.random.default_rng(0)
    weights: dict[str, nets.Array] = {
        "w": random.standard_normal((4 * WIDE, DEEP)).astype(np.float32),
        "r": random.standard_normal((4 * WIDE, WIDE)).astype(np.float32),
        "zero": np.array([0], np.int64),
        **{f"at{gate}": np.array([gate * WIDE], np.int64) for gate in range(5)},
    }
    nodes = []
    for name in ("w", "r"):
        nodes += [make("Slice", [name, f"at{gate}", f"at{gate + 1}", "zero"], [f"{name}{gate}"]) for gate in range(4)]
        nodes.append(make("Concat", [f"{name}{gate}" for gate in ORDER], [f"{name}_put"], axis=0))
        nodes.append(make("Unsqueeze", [f"{name}_put", "zero"], [f"{name}_all"]))
    nodes.append(make("LSTM", ["x", "w_all", "r_all"], ["each"], "lstm", hidden_size=WIDE))
    return nets.model_of([*nodes, *tail], weights, ["steps", "batch", DEEP], ["a", "b", "c", "d"])


LAST = [make("Relu", ["each"], ["logits"])]


def test_gates_cut_out_of_one_weight_are_put_together_for_good() -> None:
    model = recurrent(LAST)
    folded = fusing.fold(model)
    assert [node.op_type for node in folded.graph.node] == ["LSTM", "Relu"]
    assert len(folded.SerializeToString()) <= len(model.SerializeToString())
    x = np.random.default_rng(1).standard_normal((5, 2, DEEP)).astype(np.float32)
    assert np.array_equal(prunable.run(folded, {"x": x}), prunable.run(model, {"x": x}))


def test_a_weight_that_something_else_reads_is_not_there_twice() -> None:
    tail = [
        make("ReduceMax", ["x"], ["most"], keepdims=0),
        make("Cast", ["most"], ["place"], to=onnx.TensorProto.INT64),
        make("Gather", ["w", "place"], ["row"]),
        make("ReduceSum", ["row"], ["sum"], keepdims=0),
        make("Add", ["each", "sum"], ["logits"]),
    ]
    folded = fusing.fold(recurrent(tail))
    weights = sum(len(one.raw_data) for one in folded.graph.initializer)
    assert weights < 4 * (4 * WIDE * DEEP * 2 + 4 * WIDE * WIDE)


def test_such_a_layer_computes_in_integers() -> None:
    ready = prepare(recurrent(LAST), "m")
    made = integers.dynamic(ready, integers.shapes(ready), Recipe(method=Method.DYNAMIC, types=DYNAMIC))
    assert "DynamicQuantizeLSTM" in {node.op_type for node in made.graph.node}
