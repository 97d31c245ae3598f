"""A graph that learns to be rounded: as good as before, and in the file what was trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
import torch
from listening import Listener
from onnx import TensorProto, helper, numpy_helper

from modelctl.data import Data, open_data
from modelctl.errors import CheckFailed, DataError, UnsupportedError, UsageError
from modelctl.graph import weights
from modelctl.graph.quantizing import fakes, qat
from modelctl.graph.session import Session
from modelctl.graph.trainable import TrainableGraph

Array = np.ndarray[Any, Any]


def opened(model: onnx.ModelProto, path: Path, **arrays: Array) -> tuple[Session, Data]:
    session = Session(prunable.payload(model))
    return session, open_data(str(nets.save_npz(path / "samples.npz", 1000, **arrays)), session.inputs, 0)


def learned(model: onnx.ModelProto, path: Path, arrays: dict[str, Array] | None = None, **course: Any) -> qat.Trained:
    session, data = opened(model, path, **(arrays or {}))
    asked: dict[str, Any] = {"batch_size": 64, "lr": 0.02, **course}
    return qat.train(model, session, data, qat.Course(**asked), path)


def accuracy(model: onnx.ModelProto) -> float:
    pictures, labels = nets.samples(2000, seed=9)
    return float((nets.run(model, pictures).argmax(1) == labels).mean())


def loaded(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The graph that onnxruntime makes of a model when it loads it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path / "loaded.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path / "loaded.onnx")


def unfolded(model: onnx.ModelProto) -> list[str]:
    """Nodes that compute in float with a weight or bias that is dequantized in every run."""
    held = {tensor.name for tensor in model.graph.initializer}
    stored = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in held
    }
    return [node.op_type for node in model.graph.node if stored & set(node.input)]


@contextmanager
def caught(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TrainableGraph]]:
    """Graphs that round, as they are before they are written in integers."""
    graphs: list[TrainableGraph] = []
    write = fakes.written

    def noted(model: onnx.ModelProto, *others: Any) -> Any:
        graphs.append(TrainableGraph(model))
        return write(model, *others)

    with monkeypatch.context() as patch:
        patch.setattr(fakes, "written", noted)
        yield graphs


@pytest.mark.parametrize(("bits", "lost", "kept"), [(4, 0.01, 0.9), (3, 0.1, 0.88), (2, 0.3, 0.85)])
def test_learning_brings_back_what_rounding_costs(tmp_path: Path, bits: int, lost: float, kept: float) -> None:
    model = nets.convolutional()
    rounded, taught = (learned(model, tmp_path, bits=bits, epochs=epochs) for epochs in (0, 5))
    assert accuracy(model) - accuracy(rounded.model) > lost
    assert accuracy(taught.model) > kept
    assert rounded.losses == [] and len(taught.losses) == 5


@pytest.mark.parametrize(
    ("bits", "kind"), [(2, TensorProto.INT2), (3, TensorProto.INT4), (4, TensorProto.INT4), (5, TensorProto.INT8)]
)
def test_weights_are_stored_in_their_bits_and_computed_with_as_integers(tmp_path: Path, bits: int, kind: int) -> None:
    made = learned(nets.convolutional(), tmp_path, bits=bits, epochs=1)
    onnx.checker.check_model(made.model, full_check=True)
    held = {tensor.name: tensor for tensor in made.model.graph.initializer}
    assert [held[f"{name}_quantized"].data_type for name in ("w2", "w3")] == [kind, kind]
    assert np.abs(numpy_helper.to_array(held["w2_quantized"]).astype(int)).max() == 2 ** (bits - 1) - 1
    assert made.stored_bits == {2: 2, 3: 4, 4: 4, 5: 8}[bits]
    assert made.floats == ["conv1"]
    found = loaded(made.model, tmp_path)
    assert [node.op_type for node in found.graph.node if node.op_type in ("QLinearConv", "QGemm")] == [
        "QLinearConv",
        "QGemm",
    ]
    assert unfolded(found) == []


def test_the_file_shrinks_by_the_bits_and_its_weights_are_counted(tmp_path: Path) -> None:
    model = nets.convolutional()
    eight, four = (learned(model, tmp_path, bits=bits, epochs=0).model for bits in (8, 4))
    assert eight.ByteSize() - four.ByteSize() == pytest.approx((64 * 72 + 1024) / 2, rel=0.1)
    assert weights.count(four).parameters == weights.count(eight).parameters == weights.count(model).parameters - 32


def compared(
    model: onnx.ModelProto, path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Array], **course: Any
) -> tuple[list[Array], list[Array]]:
    """Train, and run the trained graph in torch and the file in onnxruntime, on samples of their own.

    How far apart they are, in steps of each rounded value where each node runs by itself; and in the standard deviation
    of each output where integer kernels run.
    """
    with caught(monkeypatch) as graphs:
        made = learned(model, path, given, **course)
    assert [(one.name, one.type) for one in (*made.model.graph.input, *made.model.graph.output)] == [
        (one.name, one.type) for one in (*model.graph.input, *model.graph.output)
    ]
    assert unfolded(loaded(made.model, path)) == []
    feeds = {key: array[:16] for key, array in given.items() if key != "y"}
    graph = graphs[-1].eval()
    makers = {node.output[0]: node for node in made.model.graph.node}
    held = {tensor.name for tensor in made.model.graph.initializer}
    values = [
        value
        for value, node in makers.items()
        if node.op_type == "DequantizeLinear" and node.input[0] not in held and makers[node.input[0]].op_type != "Cast"
    ]
    with torch.no_grad():
        tensors = [torch.from_numpy(feeds[one]) for one in graph.input_names]
        wanted = graph.values(tensors, [*values, *graph.output_names])
    shown = onnx.ModelProto()
    shown.CopyFrom(made.model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    scales = {tensor.name: float(numpy_helper.to_array(tensor).flat[0]) for tensor in shown.graph.initializer}
    steps = [
        np.abs(got - wanted[value].numpy()) / scales[makers[value].input[1]]
        for value, got in zip(values, session.run(values, feeds), strict=True)
    ]
    outputs = [
        np.abs(got - wanted[name].numpy()) / wanted[name].numpy().std()
        for name, got in zip(graph.output_names, answers(made.model, feeds), strict=True)
    ]
    return steps, outputs


def test_the_file_answers_what_was_trained_to_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = nets.samples(600)
    steps, outputs = compared(nets.convolutional(), tmp_path, monkeypatch, {"x": pictures, "y": labels}, bits=4)
    assert len(steps) == 4
    assert max(one.max() for one in steps) < 1.01
    assert max((one > 0.01).mean() for one in steps) < 0.01  # two roundings, where a number lies just in between
    assert outputs[0].max() < 0.01


NETS = [
    *("residual", "vit", "bert"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("mobilenet", "unet", "dense", "shuffle", "grouped", "norms", "lstm", "gru-both", "rotary", "mlp")
    ),
]


@pytest.mark.parametrize("name", NETS)
def test_any_net_learns_and_its_file_answers_what_was_trained(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    size = 28 if name in ("residual", "vit") else 12
    pictures = {"x": random.standard_normal((80, 1, size, size)).astype("f4")}
    given = {**(prunable.inputs(name, 80, 0) if name == "bert" else pictures), "y": random.integers(0, 4, 80)}
    steps, outputs = compared(prunable.exported(name), tmp_path, monkeypatch, given, bits=4, samples=64, lr=0.005)
    assert steps
    assert max(one.mean() for one in steps) < 0.2 and max(one.max() for one in steps) < 6.01  # they add up with depth
    assert max(one.max() for one in outputs) < 0.06


def answers(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """What onnxruntime answers with its integer kernels."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(one) for one in session.run(None, feeds)]


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = onnx.shape_inference.infer_shapes(nets.convolutional())
    before = model.SerializeToString()
    made = [learned(model, tmp_path, bits=3, seed=seed).model.SerializeToString() for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert model.SerializeToString() == before


def test_without_labels_the_answers_are_learned(tmp_path: Path) -> None:
    model = nets.convolutional()
    pictures, _ = nets.samples(1000)
    rounded, taught = (
        learned(model, tmp_path, {"x": pictures}, bits=3, epochs=epochs, lr=None).model for epochs in (0, 5)
    )
    right = nets.run(model, pictures)
    apart = [float(((nets.run(one, pictures) - right) ** 2).mean() / right.var()) for one in (rounded, taught)]
    assert apart[1] < 0.1 < apart[0]


@pytest.mark.parametrize(("batch", "epochs"), [(4, 1), (32, 4)])
def test_a_fixed_batch_is_kept(tmp_path: Path, batch: int, epochs: int) -> None:
    model = nets.convolutional(batch)
    made = learned(model, tmp_path, bits=3, epochs=epochs, lr=None)
    pictures, labels = nets.samples(40 * batch, seed=9)
    found = np.concatenate([nets.run(made.model, one) for one in np.split(pictures, 40)])
    assert (found.argmax(1) == labels).mean() > 0.8
    few = {"x": pictures[:20], "y": labels[:20]}
    if batch == 32:
        with pytest.raises(DataError, match="takes 32 at a time"):
            learned(model, tmp_path, few)


def test_several_inputs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    held = {
        "w": random.standard_normal((8, 16)),
        "v": random.standard_normal((4, 16)),
        "u": random.standard_normal((16, 3)),
    }
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["p"], "p"),
        helper.make_node("MatMul", ["b", "v"], ["q"], "q"),
        helper.make_node("Add", ["p", "q"], ["s"], "s"),
        helper.make_node("Tanh", ["s"], ["t"], "t"),
        helper.make_node("MatMul", ["t", "u"], ["logits"], "logits"),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["n", size]) for one, size in (("a", 8), ("b", 4))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array.astype("f4"), name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    given = {name: random.standard_normal((600, size)).astype("f4") for name, size in (("a", 8), ("b", 4))}
    right = answers(model, given)[0]
    arrays = {**given, "y": right.argmax(1)}
    agree = [
        (answers(learned(model, tmp_path, arrays, bits=3, epochs=epochs, lr=0.003).model, given)[0]).argmax(1)
        == right.argmax(1)
        for epochs in (0, 10)
    ]
    assert agree[1].mean() > agree[0].mean()
    assert agree[1].mean() > 0.91


def test_what_learning_made_worse_is_learned_again_more_slowly_or_not_at_all(tmp_path: Path) -> None:
    listener = Listener()
    model = nets.convolutional()
    session, data = opened(model, tmp_path)
    rounded = qat.train(model, session, data, qat.Course(bits=4, epochs=0), tmp_path).model
    course = qat.Course(bits=4, epochs=1, batch_size=64, lr=0.1)
    slower = qat.train(model, session, data, course, tmp_path, listener).model
    assert [one.split(":")[0] for one in listener.told] == ["learning made it worse on samples held out"]
    assert accuracy(slower) > accuracy(rounded)
    kept = qat.train(model, session, data, replace(course, lr=2.0), tmp_path, listener).model
    assert listener.told[-1] == "the rounded model is kept as it was before it learned"
    assert accuracy(kept) == accuracy(rounded)


def test_what_is_excluded_stays_and_nothing_else(tmp_path: Path) -> None:
    made = learned(nets.convolutional(), tmp_path, epochs=0, excluded=["conv2"])
    assert made.floats == ["conv2"]


def test_what_can_not_be_learned_is_refused_by_name(tmp_path: Path) -> None:
    model = nets.convolutional()
    quantized = learned(model, tmp_path, epochs=0).model
    with pytest.raises(UnsupportedError, match="is quantized already"):
        learned(quantized, tmp_path)
    with pytest.raises(UnsupportedError, match="no convolution, Gemm or MatMul"):
        learned(model, tmp_path, excluded=["conv1", "conv2", "dense"])
    with pytest.raises(UsageError, match="2 to 8 bits, not 1"):
        qat.Course(bits=1)
    with pytest.raises(CheckFailed, match="diverged"):
        learned(model, tmp_path, lr=1e9)
    model.graph.node.insert(0, helper.make_node("Bernoulli", ["x"], ["drawn"], "drawing"))
    model.graph.node[1].input[0] = "drawn"
    with pytest.raises(UnsupportedError, match=r"Bernoulli.*can be run, not trained"):
        learned(model, tmp_path)


def test_what_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    class Stopped:
        def advance(self, what: str, done: int, total: int | None = None, unit: str = "") -> None:
            if what.startswith("learning") and done == 3:
                raise KeyboardInterrupt

        def note(self, text: str) -> None:
            pass

    model = nets.convolutional()
    session, data = opened(model, tmp_path)
    before = sorted(tmp_path.iterdir()), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        qat.train(model, session, data, qat.Course(batch_size=64, threads=1), tmp_path, Stopped())
    assert (sorted(tmp_path.iterdir()), torch.get_num_threads()) == before
