"""Channels and layers taken out of a graph, and the model healed."""

from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import prunable
import pytest
from artifacts import names
from onnx import helper

from modelctl.artifact import Artifact
from modelctl.errors import CheckFailed, UnsupportedError, UsageError
from modelctl.graph.session import Session
from modelctl.options import (
    DistillOptions,
    Importance,
    Method,
    PruneMethod,
    PruneOptions,
    QuantizeOptions,
    Scope,
)
from modelctl.steps.distill import distill
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize


def asked(**options: Any) -> PruneOptions:
    held: dict[str, Any] = {"threads": 1, "align": "8", "batch_size": 64, "allow_regression": True}
    return PruneOptions(**(held | options))


def widths(made: Artifact) -> dict[str, int]:
    step = made.manifest.made_by
    assert step is not None
    found: dict[str, int] = step.choices["rounds"][-1]["widths"]
    return found


def residual() -> onnx.ModelProto:
    """Two residual blocks of 16 channels, the second of which adds next to nothing, and a dense layer."""
    random = np.random.default_rng(4)

    def kernel(out: int, into: int, size: float = 0.3) -> Any:
        return (size * random.standard_normal((out, into, 3, 3))).astype(np.float32)

    weights = {"stem": kernel(16, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["s"], "stem", pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["r0"]),
    ]
    for block, size in ((1, 0.1), (2, 0.001)):
        weights |= {f"a{block}": kernel(16, 16, 0.1), f"b{block}": kernel(16, 16, size)}
        nodes += [
            helper.make_node("Conv", [f"r{block - 1}", f"a{block}"], [f"u{block}"], f"a{block}", pads=[1] * 4),
            helper.make_node("Relu", [f"u{block}"], [f"v{block}"]),
            helper.make_node("Conv", [f"v{block}", f"b{block}"], [f"w{block}"], f"b{block}", pads=[1] * 4),
            helper.make_node("Add", [f"w{block}", f"r{block - 1}"], [f"y{block}"]),
            helper.make_node("Relu", [f"y{block}"], [f"r{block}"]),
        ]
    weights |= {"dense": (0.3 * random.standard_normal((4, 16))).astype(np.float32)}
    nodes += [
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "dense"], ["logits"], "dense", transB=1),
    ]
    return nets.model_of(nodes, weights, ["batch", 1, 8, 8], ["batch", 4])


def test_without_samples_what_changes_the_answers_least_goes(net: Artifact, tmp_path: Path) -> None:
    made = prune(net, tmp_path / "p.onnx", asked(target="macs=0.6"))
    found = made.manifest.metrics["pruned"]
    assert 0 < found["macs"] <= 0.6 * found["macs_before"]
    assert all(width % 8 == 0 for width in widths(made).values())
    assert made.manifest.metrics["size_ratio"] > 1
    session = Session(made.load())
    assert session.run({"x": np.zeros((5, 1, 8, 8), np.float32)})["logits"].shape == (5, 4)


@pytest.mark.parametrize("importance", Importance)
def test_healed_with_the_input_as_teacher(net: Artifact, data: str, tmp_path: Path, importance: Importance) -> None:
    options = asked(target="params=0.5", data=data, importance=importance, epochs=6, alpha=0.5, max_drop=10)
    made = prune(net, tmp_path / "p.onnx", options)
    step = made.manifest.made_by
    assert step is not None
    assert step.choices["rounds"][-1]["left"]["params"] <= 0.5
    assert step.choices["importance"] == importance
    assert len(made.manifest.metrics["pruned"]["loss"]) == 1
    # Normalization that was put in for the training is gone again, and what was there stays.
    assert [one.op_type for one in onnx.load(made.path).graph.node].count("BatchNormalization") == 1


def test_the_same_share_of_every_layer(net: Artifact, tmp_path: Path) -> None:
    made = prune(net, tmp_path / "p.onnx", asked(target="params=0.6", scope=Scope.LAYER, align="2"))
    assert set(widths(made)) == {"conv1", "conv2"}


def test_the_block_that_matters_least_goes(tmp_path: Path) -> None:
    model = Artifact.open(nets.save(residual(), tmp_path / "residual.onnx"))
    made = prune(model, tmp_path / "p.onnx", asked(method=PruneMethod.LAYER, target="macs=0.6"))
    assert {one.name for one in onnx.load(made.path).graph.initializer} == {"stem", "a1", "b1", "dense"}
    x = {"x": nets.samples(50)[0]}
    right, found = (Session(one.load()).run(x)["logits"] for one in (model, made))
    assert np.abs(found - right).max() < 0.05 * right.std()
    assert list(widths(made).values()) == [0]


def test_a_target_out_of_reach_says_how_far_it_went(net: Artifact, data: str, tmp_path: Path) -> None:
    before = names(tmp_path)
    with pytest.raises(CheckFailed, match=r"macs can't be brought to 0\.01 of the input's: 0\.\d+ is as far") as caught:
        prune(net, tmp_path / "p.onnx", asked(target="macs=0.01", data=data, epochs=0, align="32"))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("--target macs=0.")
    with pytest.raises(CheckFailed, match="as far as it goes"):
        prune(net, tmp_path / "p.onnx", asked(method=PruneMethod.LAYER, target="macs=0.5"))
    assert names(tmp_path) == before


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    model = Artifact.open(nets.save(nets.linear(), tmp_path / "linear.onnx"))
    with pytest.raises(UnsupportedError, match="has no channels that could go: the channels of dense go out as logits"):
        prune(model, tmp_path / "p.onnx", asked(target="macs=0.5"))
    model = Artifact.open(nets.save(_looping(), tmp_path / "loop.onnx"))
    with pytest.raises(UnsupportedError, match=r"loop\.onnx: If \(choice\) decides while it runs"):
        prune(model, tmp_path / "p.onnx", asked(target="macs=0.5"))


def _looping() -> onnx.ModelProto:
    """A choice that depends on the input."""
    value = helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None)
    branches: Any = {
        name: helper.make_graph([helper.make_node(kind, ["r"], ["c"])], name, [], [value])
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["r"]),
        helper.make_node("ReduceSum", ["r"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["test"], to=onnx.TensorProto.BOOL),
        helper.make_node("If", ["test"], ["chosen"], "choice", **branches),
        helper.make_node("Relu", ["chosen"], ["logits"]),
    ]
    weights = {"w": np.ones((8, 1, 3, 3), np.float32)}
    return nets.model_of(nodes, weights, ["batch", 1, 8, 8], ["batch", 8, 6, 6])


def test_a_pruned_model_is_an_ordinary_one(net: Artifact, data: str, tmp_path: Path) -> None:
    small = prune(net, tmp_path / "small.onnx", asked(target="macs=0.6", data=data, epochs=1, lr=0.02))
    smaller = prune(small, tmp_path / "smaller.onnx", asked(sparsity=0.5, data=data))
    static = QuantizeOptions(method=Method.STATIC, data=data, allow_regression=True, max_drop=10)
    int8 = quantize(small, tmp_path / "int8.onnx", static)
    student = distill(
        small,
        tmp_path / "student.onnx",
        DistillOptions(data=data, student_size=400, epochs=1, allow_regression=True, threads=1),
    )
    for made in (smaller, int8, student):
        assert small.digest in {one.digest for one in made.manifest.lineage}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "flops=0.5"}, "--target flops=0.5: not macs=, params= or latency="),
        ({"target": "macs=1.5"}, "a share between 0 and 1"),
        ({"target": "macs=0.5", "align": "x"}, "--align x: not auto or a number"),
        ({"target": "macs=0.5", "epochs": 1}, "--epochs needs samples"),
        ({"target": "macs=0.5", "importance": Importance.TAYLOR}, "--importance taylor needs samples"),
        ({"target": "macs=0.5", "method": PruneMethod.MAGNITUDE}, "--method magnitude takes --sparsity, not --target"),
        ({"pattern": "4:2"}, "--pattern 4:2: not N:M"),
        ({"method": PruneMethod.CHANNEL}, "exactly one of"),
        ({"method": PruneMethod.L1_SCALE, "keep": 3}, "--method l1-scale takes no amount, not --keep"),
    ],
)
def test_what_does_not_go_together_is_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        asked(**options)


@pytest.mark.parametrize("kind", ["gru-both", "vit"])
def test_hidden_units_and_heads_go_too(kind: str, tmp_path: Path) -> None:
    model = Artifact.open(nets.save(prunable.exported(kind), tmp_path / "net.onnx"))
    made = prune(model, tmp_path / "p.onnx", asked(target="params=0.6", scope=Scope.LAYER, align="1"))
    found = made.manifest.metrics["pruned"]
    assert 0 < found["parameters"] <= 0.6 * found["parameters_before"]
