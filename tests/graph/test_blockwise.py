from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import prunable
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import model_of
from onnx import TensorProto, helper
from onnxruntime.capi import _pybind_state

from modelctl.data.samples import Array
from modelctl.errors import DataError, UsageError
from modelctl.graph import blocks, blockwise, correction, measure, watching, weights
from modelctl.graph.blocks import Coding
from modelctl.graph.blockwise import Packing
from modelctl.graph.trainable import TrainableGraph

make = helper.make_node


def batches(net: str) -> Iterator[dict[str, Array]]:
    return (prunable.inputs(net, 64, seed) for seed in range(4))


def product(rows: int = 64, columns: int = 8, x: tuple[int | str, ...] = ("n",)) -> onnx.ModelProto:
    weight = np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)
    return model_of([make("MatMul", ["x", "w"], ["logits"], "m")], {"w": weight}, [*x, rows], [*x, columns])


def bytes_of(held: dict[str, Array]) -> int:
    return sum(one.nbytes for one in held.values())


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_stored_is_what_onnxruntime_computes_with(data: st.DataObject) -> None:
    """Both operators, and torch, give back exactly the values that the error was measured on."""
    rows, columns = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 9))
    coding = Coding(
        data.draw(st.sampled_from(blocks.BITS)), data.draw(st.sampled_from(blocks.BLOCKS)), data.draw(st.booleans())
    )
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    weight = (random.standard_normal((rows, columns)) * 3 + data.draw(st.sampled_from((0, 2)))).astype(np.float32)
    weight[:, 0] = 0
    coded = blocks.plainly(weight, coding, weight.dtype)
    shared: dict[str, Any] = {"bits": coding.bits, "block_size": coding.block}
    stored, scale, zero = blocks.for_product(coded)
    held = {"q": stored, "s": scale} | ({} if zero is None else {"z": zero})
    node = make("MatMulNBits", ["x", *held], ["logits"], domain="com.microsoft", K=rows, N=columns, **shared)
    model = model_of([node], held, ["n", rows], ["n", columns])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    x = np.eye(rows, dtype=np.float32)
    assert np.array_equal(prunable.run(model, {"x": x}), coded.values())
    assert np.array_equal(TrainableGraph(model, "m")(torch.from_numpy(x))[0].detach().numpy(), coded.values())
    assert bytes_of(held) == coding.size_bytes(rows, columns, 4, filled=True)
    assert weights.count(model).parameters == rows * columns
    assert weights.count(model).sparsity == pytest.approx(np.mean(coded.values() == 0))
    assert np.array_equal(coded.values()[:, 0], weight[:, 0])
    if rows * coding.bits % 8:
        return
    stored, scale, zero = blocks.for_lookup(coded)
    held = {"q": stored, "s": scale} | ({} if zero is None else {"z": zero})
    node = make("GatherBlockQuantized", ["q", "i", *list(held)[1:]], ["logits"], domain="com.microsoft", **shared)
    node.attribute.extend([helper.make_attribute("quantize_axis", 1), helper.make_attribute("gather_axis", 0)])
    model = model_of([make("Cast", ["x"], ["i"], to=TensorProto.INT64), node], held, ["n"], ["n", rows])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert np.array_equal(prunable.run(model, {"x": np.arange(columns, dtype=np.float32)}), coded.values().T)
    assert bytes_of(held) == coding.size_bytes(rows, columns, 4, filled=False)
    assert weights.count(model).parameters == rows * columns
    assert weights.count(model).sparsity == pytest.approx(np.mean(coded.values() == 0))


@pytest.mark.parametrize("bits", blocks.BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_plain_rounding_is_as_close_as_onnxruntimes_own(bits: int, symmetric: bool) -> None:
    weight = np.random.default_rng(2).standard_normal((100, 6)).astype(np.float32)
    coding = Coding(bits, 32, symmetric)
    ours = blocks.plainly(weight, coding, weight.dtype)
    shapes = [one.shape for one in blocks.for_product(ours) if one is not None]
    stored, scale = np.zeros(shapes[0], np.uint8), np.zeros(shapes[1], np.float32)
    zero = np.zeros((6, -(-4 * bits // 8)), np.uint8)
    padded = np.pad(weight, ((0, 28), (0, 0)))
    quantize: Any = getattr(_pybind_state, f"quantize_matmul_{bits}bits")
    quantize(stored, padded, scale, zero, 32, 6, 100, symmetric)
    assert np.allclose(blocks.for_product(ours)[1], scale, rtol=0.01)
    numbers = blocks.parted(stored.reshape(6, -1), bits)[:, :100].T
    points = blocks.parted(zero, bits)[:, :4].T if not symmetric else np.full((4, 6), coding.middle, np.uint8)
    theirs = blocks.Coded(coding, numbers, scale.T, points).values()
    ratio = np.linalg.norm(ours.values() - weight) / np.linalg.norm(theirs - weight)
    assert 0.9 < ratio < 1.05


@pytest.mark.parametrize("net", ["bert", "vit", "rotary"])
def test_error_correction_brings_answers_nearer(net: str) -> None:
    """On samples that the correction never saw; and every reader of the result agrees on what it is."""
    model, plain, corrected = (prunable.exported(net) for _ in range(3))
    before = Counter(kinds(model))
    fresh = prunable.inputs(net, 64, seed=99)
    wanted = prunable.run(model, fresh)
    told = blockwise.pack(plain, Packing())
    assert all(one.coding and not one.reason and not one.corrected for one in told)
    told = blockwise.pack_learning(corrected, Packing(), prunable.payload(corrected), lambda: batches(net))
    assert all(one.corrected == (one.kind != "Gather") for one in told)
    errors = [float(np.std(prunable.run(one, fresh) - wanted) / np.std(wanted)) for one in (plain, corrected)]
    assert errors[1] < 0.75 * errors[0] < 0.1
    packed = Counter(kinds(corrected))
    assert packed["MatMulNBits"] == before["MatMul"] + before["Gemm"] - packed["MatMul"]
    onnx.checker.check_model(corrected)
    assert measure.describe(prunable.payload(corrected))["parameters"] == weights.count(model).parameters
    assert weights.is_quantized(corrected)
    saved = sum(one.bytes_before - one.bytes_after for one in told)
    assert abs(model.ByteSize() - corrected.ByteSize() - saved) < 200 * len(told)
    graph = TrainableGraph(corrected, "m").eval()
    found = graph(torch.from_numpy(fresh["x"]))[0].detach().numpy()
    assert np.allclose(found, prunable.run(corrected, fresh), atol=1e-5 * float(np.std(wanted)))


def test_correction_lessens_the_error_of_a_product() -> None:
    """With inputs that go together, as a net's do; in either order, and with inputs that are always zero."""
    random = np.random.default_rng(3)
    mixing = random.standard_normal((20, 160)) + np.eye(20, 160)
    mixing[:, 7] = 0
    seen, fresh = (random.standard_normal((500, 20)) @ mixing for _ in range(2))
    weight = random.standard_normal((160, 12)).astype(np.float32)
    coding = Coding(4, 32, True)
    hessian = fresh.T @ fresh
    plain = correction.relative_error(weight, blocks.plainly(weight, coding, weight.dtype).values(), hessian)
    for by_size in (True, False):
        found = correction.corrected(weight, seen.T @ seen, coding, weight.dtype, by_size)
        assert correction.relative_error(weight, found.values(), hessian) < plain / 2
        assert np.abs(found.values()[7] - weight[7]).max() < np.abs(weight).max() / 4


def test_moments_are_summed_over_batches() -> None:
    model = prunable.exported("bert")
    before = model.SerializeToString()
    first = [node.input[0] for node in model.graph.node if node.op_type == "MatMul"][:2]
    parts = [watching.moments(model, prunable.payload(model), first, [feeds]) for feeds in batches("bert")]
    whole = watching.moments(model, prunable.payload(model), first, batches("bert"))
    for name in first:
        assert np.allclose(whole[name], np.sum([one[name] for one in parts], 0))
    assert model.SerializeToString() == before


def test_moments_are_taken_a_few_at_a_time() -> None:
    """Within a limit of bytes the samples are run again, and the next weights learn from what is packed already."""
    passes = 0

    def counted() -> Iterator[dict[str, Array]]:
        nonlocal passes
        passes += 1
        return batches("bert")

    model = prunable.exported("bert")
    wanted = prunable.run(model, prunable.inputs("bert", 64, 99))
    told = blockwise.pack_learning(model, Packing(), prunable.payload(model), counted, limit_bytes=2 * 8 * 24**2)
    assert passes > 4
    assert all(one.coding for one in told)
    assert np.std(prunable.run(model, prunable.inputs("bert", 64, 99)) - wanted) < 0.05 * np.std(wanted)


def test_the_smallest_form_within_the_error_is_taken() -> None:
    found = []
    for limit in (None, 0.1, 0.09, 0.01):
        model = product(1024, 64)
        (told,) = blockwise.pack(model, Packing(max_error=limit))
        assert limit is None or (told.coding is None) == (told.error > limit)
        found.append(told)
    assert [one.coding and (one.coding.block, one.coding.symmetric) for one in found] == [
        (128, True),
        (64, True),
        (32, True),
        None,
    ]
    assert found[-1].reason.endswith("above 0.01")
    assert model.graph.node[0].op_type == "MatMul"
    sizes = [one.bytes_after for one in found]
    assert sizes == sorted(sizes)


def test_dense_layers_keep_their_bias() -> None:
    model = prunable.exported("mlp")
    wanted = prunable.run(model, prunable.inputs("mlp", 20, 0))
    blockwise.pack(model, Packing(bits=8, accuracy_level=0))
    assert kinds(model)[1:3] == ["MatMulNBits", "Add"]
    assert model.graph.node[1].name == "node_linear"
    assert np.std(prunable.run(model, prunable.inputs("mlp", 20, 0)) - wanted) < 0.01 * np.std(wanted)


def test_half_precision_is_packed() -> None:
    weight = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float16)
    nodes = [
        make("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        make("MatMul", ["h", "w"], ["y"]),
        make("Cast", ["y"], ["logits"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, {"w": weight}, ["n", 64], ["n", 8])
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    wanted = prunable.run(model, {"x": x})
    (told,) = blockwise.pack(model, Packing(bits=8))
    assert told.node == "y"
    assert np.std(prunable.run(model, {"x": x}) - wanted) < 0.02 * np.std(wanted)


def test_a_weight_with_several_readers_is_packed_once() -> None:
    random = np.random.default_rng(4)
    held: dict[str, Array] = {"w": random.standard_normal((64, 64)).astype(np.float32)}
    nodes = [make("MatMul", ["x", "w"], ["1"], "a"), make("MatMul", ["1", "w"], ["logits"], "b")]
    model = model_of(nodes, held, ["n", 64], ["n", 64])
    x = random.standard_normal((50, 64)).astype(np.float32)
    wanted = prunable.run(model, {"x": x})
    told = blockwise.pack_learning(model, Packing(), prunable.payload(model), lambda: [{"x": x}])
    assert [(one.node, one.corrected, one.bytes_after > 0) for one in told] == [("a", True, True), ("b", True, False)]
    assert len(model.graph.initializer) == 2
    assert np.std(prunable.run(model, {"x": x}) - wanted) < 0.3 * np.std(wanted)


def test_what_can_not_be_packed_is_left_and_named() -> None:
    random = np.random.default_rng(5)
    names = ("tied", "odd", "across", "nan", "out", "turned", "scaled", "other", "inner", "named")
    held: dict[str, Array] = {name: random.standard_normal((64, 64)).astype(np.float32) for name in names}
    held |= {"odd": held["odd"][:, :33], "tiny": held["odd"][:2, :2], "fixed": held["odd"], "yes": np.array(True)}
    held["nan"] = held["nan"] * np.float32(np.nan)
    branch = helper.make_graph(
        [make("MatMul", ["x", "inner"], ["in"])], "b", [], [helper.make_tensor_value_info("in", 1, None)]
    )
    nodes = [
        make("Cast", ["x"], ["i"], to=TensorProto.INT64),
        make("Gather", ["tied", "i"], ["g1"], "tied1"),
        make("MatMul", ["x", "tied"], ["g2"], "tied2"),
        make("Gather", ["odd", "i"], ["g3"], "odd"),
        make("Gather", ["across", "i"], ["g4"], "across", axis=1),
        make("MatMul", ["x", "nan"], ["g5"], "nan"),
        make("MatMul", ["x", "out"], ["g6"], "out"),
        make("Gemm", ["x", "turned"], ["g7"], "turned", transA=1),
        make("Gemm", ["x", "scaled"], ["g8"], "scaled", alpha=0.5),
        make("MatMul", ["x", "other"], ["g9"], "other"),
        make("Neg", ["other"], ["g10"]),
        make("MatMul", ["fixed", "tiny"], ["g11"], "tiny"),
        make("MatMul", ["x", "inner"], ["g12"], "inner"),
        make("If", ["yes"], ["g13"], then_branch=branch, else_branch=branch),
        make("MatMul", ["x", "named"], ["logits"], "named"),
    ]
    model = model_of(nodes, held, [64, 64], [64, 64])
    model.graph.output.append(helper.make_tensor_value_info("out", 1, [64, 64]))
    before = model.SerializeToString()
    told = blockwise.pack(model, Packing(exclude=("named",)))
    assert {one.node: one.reason for one in told} == {
        "tied1": "is read in two ways",
        "tied2": "is read in two ways",
        "odd": "has rows of an odd length",
        "across": "is looked up along another axis",
        "nan": "holds NaN or infinity",
        "out": "is an input or output of the graph",
        "turned": "multiplies what is turned first",
        "scaled": "has a factor beside it",
        "other": "is read by Neg too",
        "tiny": "is multiplied with a constant",
        "inner": "is read in a subgraph",
        "named": "is excluded",
    }
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("shape", "number", "trouble"), [((2, 3), 0, "can't take"), ((2, 64), np.nan, "is NaN")])
def test_samples_that_do_not_fit_are_refused(shape: tuple[int, int], number: float, trouble: str) -> None:
    held = {"w": np.ones((64, 8), np.float32)}
    nodes = [make("Relu", ["x"], ["r"]), make("MatMul", ["r", "w"], ["logits"])]
    model = model_of(nodes, held, ["n", 64], ["n", 8])
    bad = [{"x": np.full(shape, number, np.float32)}]
    with pytest.raises(DataError, match=trouble):
        blockwise.pack_learning(model, Packing(), prunable.payload(model), lambda: bad)
    assert kinds(model) == ["Relu", "MatMul"]
    assert [one.name for one in model.graph.output] == ["logits"]


@pytest.mark.parametrize("options", [{"bits": 3}, {"block": 48}])
def test_other_bits_and_blocks_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="blocks of"):
        Packing(**options)  # type: ignore[arg-type]
