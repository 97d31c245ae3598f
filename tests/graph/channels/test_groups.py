"""Which channels belong together, and what stands in the way of the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl.errors import UnsupportedError
from modelctl.graph.channels.cutting import cut
from modelctl.graph.channels.groups import Channels, find

node = helper.make_node
Array = np.ndarray[Any, Any]


def weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model_of(
    nodes: Sequence[onnx.NodeProto],
    held: dict[str, Array],
    shape: Sequence[int | str] = ("batch", 4),
    opset: int = 18,
    domains: Sequence[str] = (),
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A model from `x` to `y`, whose shape is left to be inferred."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def answer(model: onnx.ModelProto, shape: Sequence[int]) -> Array:
    x = np.random.default_rng(1).random(shape, np.float32)
    return np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])


def sizes(channels: Channels) -> dict[str, int]:
    return {group.name: group.size for group in channels.groups}


def test_a_residual_net_has_its_stages_and_the_inner_widths_of_its_blocks() -> None:
    channels = find(prunable.exported("residual", old=True))
    assert list(sizes(channels).items()) == [
        *(("0", 16), ("3.conv1", 16), ("4.conv1", 16), ("5.conv1", 32), ("5.conv2", 32), ("6.conv1", 32)),
        *(("7.conv1", 64), ("7.conv2", 64), ("8.conv1", 64)),
    ]
    stage = channels.group("5.conv2")
    assert stage.producers == ("/5/conv2/Conv", "/5/shortcut/shortcut.0/Conv", "/6/conv2/Conv")
    assert stage.consumers == ("/6/conv1/Conv", "/7/conv1/Conv", "/7/shortcut/shortcut.0/Conv")
    assert [(one.name, one.reason) for one in channels.blocked] == [
        ("11", f"go out as {channels.model.graph.output[0].name}")
    ]


def test_a_transformer_has_heads_their_widths_and_the_widths_of_its_mlps() -> None:
    channels = find(prunable.exported("vit", old=True))
    layer = ("q:heads", "q:head_dim", "v:head_dim")
    expected = {"patches": 32}
    for at in range(2):
        expected |= {f"layers.{at}.attention.{one}": size for one, size in zip(layer, (4, 8, 8), strict=True)}
        expected[f"layers.{at}.mlp.0"] = 128
    assert sizes(channels) == expected
    heads = channels.group("layers.0.attention.q:heads")
    assert [(one.tensor, one.side) for one in heads.members if one.tensor.endswith("bias")] == [
        (f"layers.0.attention.{one}.bias", "along") for one in "qkv"
    ]
    bias = next(one for one in heads.members if one.tensor == "layers.0.attention.q.bias")
    assert bias.units.tolist() == [at // 8 for at in range(32)]
    assert len(channels.group("patches").statistics) == 5
    assert heads.statistics == ()


def test_each_recurrent_layer_has_a_width_of_its_own() -> None:
    channels = find(prunable.exported("lstm-both", old=True))
    assert [(group.kind, group.size) for group in channels.groups] == [("channels", 9), ("hidden", 11), ("hidden", 11)]


def test_a_flattened_map_is_rows_of_the_dense_layer_for_each_channel() -> None:
    channels = find(prunable.exported("mobilenet", old=True))
    last = next(one for one in channels.group("0").members if one.tensor == "5.weight")
    assert (last.axis, last.side, last.units.tolist()) == (1, "in", [at // 9 for at in range(72)])


def test_a_weight_that_two_layers_share_is_cut_for_both() -> None:
    held = weights(w=(4, 4), out=(4, 2))
    nodes = [
        node("MatMul", ["x", "p"], ["a"]),
        node("MatMul", ["a", "w"], ["b"]),
        node("Relu", ["b"], ["r"]),
        node("MatMul", ["r", "w"], ["c"]),
        node("MatMul", ["c", "out"], ["y"]),
    ]
    channels = find(model_of(nodes, held | weights(p=(4, 4))))
    (group,) = channels.groups
    made = cut(channels, {group.name: [0, 3]})
    assert {one.name: list(one.dims) for one in made.graph.initializer} == {"w": [2, 2], "out": [2, 2], "p": [4, 2]}
    assert answer(made, (2, 4)).shape == (2, 2)


def test_a_vector_that_two_layers_happen_to_share_is_cut_for_each() -> None:
    held = weights(a=(4, 6), b=(6, 6), c=(6, 2)) | {"bias": np.arange(6, dtype=np.float32)}
    nodes = [
        node("Gemm", ["x", "a", "bias"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "b", "bias"], ["i"]),
        node("Gemm", ["i", "c"], ["y"]),
    ]
    channels = find(model_of(nodes, held))
    assert len(channels.groups) == 2
    first, second = channels.groups
    made = cut(channels, {first.name: [1, 5], second.name: [0, 1, 2]})
    found = {one.name: numpy_helper.to_array(one).tolist() for one in made.graph.initializer if one.name[:4] == "bias"}
    assert sorted(found.values()) == [[0, 1, 2], [1, 5]]
    assert answer(made, (2, 4)).shape == (2, 2)


def test_group_normalization_loses_whole_groups_or_as_much_of_each() -> None:
    held = weights(a=(12, 4, 1, 1), scale=(12,), bias=(12,), b=(2, 12, 1, 1))
    nodes = [
        node("Conv", ["x", "a"], ["c"]),
        node("GroupNormalization", ["c", "scale", "bias"], ["n"], num_groups=3),
        node("Conv", ["n", "b"], ["y"]),
    ]
    channels = find(model_of(nodes, held, ("batch", 4, 5, 5), opset=21))
    assert [(one.kind, one.size, bool(one.statistics)) for one in channels.groups] == [
        ("groups", 3, False),
        ("channels", 4, True),
    ]
    made = cut(channels, {channels.groups[0].name: [0, 2], channels.groups[1].name: [1, 2]})
    assert answer(made, (2, 4, 5, 5)).shape == (2, 2, 5, 5)
    (normed,) = (one for one in made.graph.node if one.op_type == "GroupNormalization")
    assert [(one.name, one.i) for one in normed.attribute] == [("num_groups", 2)]


def test_a_quantized_weight_is_cut_with_its_scales() -> None:
    held: dict[str, Array] = {
        "w": np.arange(-10, 10, dtype=np.int8).reshape(4, 5),
        "scale": np.linspace(0.1, 0.5, 5, dtype=np.float32),
        "zero": np.zeros(5, np.int8),
        **weights(out=(5, 2)),
    }
    nodes = [
        node("DequantizeLinear", ["w", "scale", "zero"], ["f"], axis=1),
        node("MatMul", ["x", "f"], ["h"]),
        node("MatMul", ["h", "out"], ["y"]),
    ]
    channels = find(model_of(nodes, held))
    made = cut(channels, {channels.groups[0].name: [0, 4]})
    whole = {**held, "w": held["w"].copy()}
    whole["w"][:, 1:4] = 0
    np.testing.assert_allclose(answer(made, (3, 4)), answer(model_of(nodes, whole), (3, 4)), rtol=1e-5)


DENSE = weights(a=(4, 6), b=(6, 2))
LAST = node("MatMul", ["i", "b"], ["y"])
ATTENTION = weights(q=(8, 12), k=(8, 12), v=(8, 12), o=(12, 3))
PROJECTED = [node("MatMul", ["x", one], [f"{one}x"]) for one in "qkv"]
PACKED = weights(w=(8, 36), b=(36,), o=(12, 3))
FUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], str]] = {
    "Attention": (
        [
            *PROJECTED,
            node("Attention", ["qx", "kx", "vx"], ["a"], q_num_heads=3, kv_num_heads=3),
            node("MatMul", ["a", "o"], ["y"]),
        ],
        ATTENTION,
        "",
    ),
    "MultiHeadAttention": (
        [
            *PROJECTED,
            node("MultiHeadAttention", ["qx", "kx", "vx", "b"], ["a"], num_heads=3, domain="com.microsoft"),
            node("MatMul", ["a", "o"], ["y"]),
        ],
        ATTENTION | weights(b=(36,)),
        "com.microsoft",
    ),
    "packed": (
        [
            node("Attention", ["x", "w", "b"], ["a"], num_heads=3, domain="com.microsoft"),
            node("MatMul", ["a", "o"], ["y"]),
        ],
        PACKED,
        "com.microsoft",
    ),
}


@pytest.mark.parametrize("kind", list(FUSED))
def test_heads_of_one_operator_go_with_its_attribute(kind: str) -> None:
    nodes, held, domain = FUSED[kind]
    whole = model_of(nodes, held, ("batch", 5, 8), 23, [domain] if domain else [])
    channels = find(whole)
    heads = next(one for one in channels.groups if one.kind == "heads")
    assert heads.size == 3
    made = cut(channels, {heads.name: [0, 2]})
    without = dict(held, o=held["o"].copy())
    without["o"][4:8] = 0
    expected = answer(model_of(nodes, without, ("batch", 5, 8), 23, [domain] if domain else []), (2, 5, 8))
    np.testing.assert_allclose(answer(made, (2, 5, 8)), expected, rtol=1e-4, atol=1e-5)


def test_operators_that_optimizers_fuse_are_understood() -> None:
    held = weights(a=(4, 6), bias=(6,), b=(4, 6), beta=(4,), c=(2, 4)) | {"gamma": np.ones(4, np.float32)}
    microsoft: Any = {"domain": "com.microsoft"}
    nodes = [
        node("FusedMatMul", ["x", "a"], ["h"], alpha=0.5, **microsoft),
        node("BiasGelu", ["h", "bias"], ["g"], **microsoft),
        node("FusedMatMul", ["g", "b"], ["r"], transB=1, **microsoft),
        node("SkipLayerNormalization", ["x", "r", "gamma", "beta"], ["n"], **microsoft),
        node("FusedMatMul", ["n", "c"], ["y"], transB=1, **microsoft),
    ]
    channels = find(model_of(nodes, held, ("batch", 3, 4), domains=["com.microsoft"]))
    (group,) = channels.groups
    assert (group.size, len(group.members)) == (6, 3)
    made = cut(channels, {group.name: [1, 2, 5]})
    silent = {name: array.copy() for name, array in held.items()}
    silent["b"][:, [0, 3, 4]] = 0
    expected = answer(model_of(nodes, silent, ("batch", 3, 4), domains=["com.microsoft"]), (2, 3, 4))
    np.testing.assert_allclose(answer(made, (2, 3, 4)), expected, rtol=1e-4, atol=1e-5)
    assert "come in as x" in {one.reason for one in channels.blocked}


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT4])
def test_weights_of_any_type_are_cut(kind: int) -> None:
    numbers = [1.0, 2, 3, 4, 5, 6, 7, -8]
    model = model_of(
        [
            node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
            node("MatMul", ["x", "f"], ["h"]),
            node("MatMul", ["h", "out"], ["y"]),
        ],
        weights(out=(4, 1)),
        ("batch", 2),
        opset=21,
    )
    model.graph.initializer.append(helper.make_tensor("w", kind, [2, 4], numbers))
    made = cut(model, {find(model).groups[0].name: [1, 3]})
    (cut_weight,) = (one for one in made.graph.initializer if one.name == "w")
    assert cut_weight.data_type == kind
    assert numpy_helper.to_array(cut_weight).astype(np.float32).tolist() == [[2, 4], [6, -8]]
    assert answer(made, (3, 2)).shape == (3, 1)


def test_an_initializer_that_is_an_input_too_stays_one() -> None:
    """As every initializer was in files of the first versions of ONNX."""
    model = model_of(
        [node("Gemm", ["x", "a", "v"], ["h"]), node("Mul", ["h", "v"], ["i"]), LAST], DENSE | weights(v=(6,)), (1, 4), 9
    )
    model.ir_version = 3
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2]))
    for name, shape in (("a", [4, 6]), ("b", [6, 2]), ("v", [6])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    made = cut(model, {find(model).groups[0].name: [0, 4]})
    onnx.checker.check_model(made, full_check=True)
    assert answer(made, (1, 4)).shape == (1, 2)


def test_an_einsum_says_by_its_letters_what_belongs_together() -> None:
    nodes = [node("Einsum", ["x", "w"], ["h"], equation="bi,ij->bj"), node("MatMul", ["h", "o"], ["y"])]
    channels = find(model_of(nodes, weights(w=(4, 6), o=(6, 2))))
    (group,) = channels.groups
    assert (group.size, [(one.tensor, one.axis, one.side) for one in group.members]) == (
        6,
        [("w", 1, "out"), ("o", 0, "in")],
    )
    assert answer(cut(channels, {group.name: [2]}), (2, 4)).shape == (2, 2)


def test_numbers_beside_a_padded_shortcut_can_be_cut_the_zeros_not() -> None:
    """As in the first residual nets: a shortcut that gets more channels is filled up with zeros."""
    held = weights(a=(6, 4, 1, 1), b=(10, 6, 1, 1), c=(2, 10, 1, 1)) | {"pads": np.array([0, 2, 0, 0, 0, 2, 0, 0])}
    nodes = [
        node("Conv", ["x", "a"], ["h"]),
        node("Conv", ["h", "b"], ["i"]),
        node("Pad", ["h", "pads"], ["p"]),
        node("Add", ["p", "i"], ["s"]),
        node("Conv", ["s", "c"], ["y"]),
    ]
    channels = find(model_of(nodes, held, ("batch", 4, 3, 3)))
    assert sizes(channels) == {"h": 6}
    assert [one.tensor for one in channels.groups[0].members] == ["a", "b", "b", "c"]
    assert answer(cut(channels, {"h": [1, 2]}), (2, 4, 3, 3)).shape == (2, 2, 3, 3)


BLOCKS: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], str]] = {
    "unknown": ([node("Det", ["h"], ["i"])], {}, "go through the unknown operator Det (n)"),
    "softmax": ([node("Softmax", ["h"], ["i"])], {}, "are weighed against each other by Softmax (n)"),
    "order": ([node("CumSum", ["h", "one"], ["i"])], {"one": np.array(1)}, "are summed up in order by CumSum (n)"),
    "extreme": ([node("ReduceMax", ["h", "ax"], ["m"]), node("Sub", ["h", "m"], ["i"])], {"ax": np.array([1])},
                "are reduced by ReduceMax (n)"),
    "look-up": ([node("Gather", ["h", "ix"], ["i"], axis=1)], {"ix": np.array([5, 4, 3, 2, 1, 0])},
                "are looked up by Gather (n)"),
    "every other": (
        [node("Slice", ["h", "s", "e", "one", "t"], ["j"]), node("Concat", ["j", "j"], ["i"], axis=1)],
        {"s": np.array([0]), "e": np.array([6]), "one": np.array([1]), "t": np.array([2])},
        "are cut at an uneven place by Slice (n)",
    ),
    "input": ([node("Split", ["x"], ["l", "r"], axis=1, num_outputs=2), node("Concat", ["x", "l"], ["j"], axis=1),
               node("Add", ["h", "j"], ["i"])], {}, "come in as x"),
    "reflected": ([node("Pad", ["h", "p"], ["j"], mode="reflect"), node("Slice", ["j", "s", "e", "one"], ["i"])],
                  {"p": np.array([0, 1, 0, 0]), "s": np.array([0]), "e": np.array([6]), "one": np.array([1])},
                  "are padded by Pad (n)"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BLOCKS))
def test_what_stands_in_the_way_is_told(case: str) -> None:
    between, more, reason = BLOCKS[case]
    between[0].name = "n"
    nodes = [node("MatMul", ["x", "a"], ["h"], "first"), *between, LAST]
    channels = find(model_of(nodes, DENSE | more, (1, 4)))
    assert channels.groups == ()
    assert channels.blocked[0].name == "first"
    assert channels.blocked[0].reason == reason
    assert channels.blocked[0].node == ("" if case == "input" else "n")


def test_a_value_that_goes_out_keeps_its_channels_and_all_that_is_added_to_it() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["h"], "first"),
        node("MatMul", ["x", "c"], ["g"], "second"),
        node("Add", ["h", "g"], ["i"]),
        LAST,
    ]
    channels = find(model_of(nodes, DENSE | weights(c=(4, 6)), outputs=("y", "h")))
    assert {one.name: one.reason for one in channels.blocked} == {
        "first": "go out as h",
        "second": "go out as h",
        "y": "go out as y",
    }


def test_control_flow_is_refused_by_name() -> None:
    body = helper.make_graph([node("Identity", ["c"], ["d"])], "b", [], [])
    loop = node("Loop", ["", "", "x"], ["y"], "again", body=body)
    with pytest.raises(UnsupportedError, match=r"net\.onnx: Loop \(again\)"):
        find(model_of([loop], {}), "net.onnx")


def test_a_file_can_not_make_it_allocate_without_measure() -> None:
    """The numbers of a range or an expansion are followed only where they are few."""
    held = DENSE | {"zero": np.array(0), "many": np.array(10**13), "one": np.array(1), "shape": np.array([10**13])}
    nodes = [
        node("Range", ["zero", "many", "one"], ["r"]),
        node("ConstantOfShape", ["shape"], ["e"]),
        node("Expand", ["one", "shape"], ["f"]),
        node("Add", ["e", "e"], ["g"]),
        node("MatMul", ["x", "a"], ["h"], "first"),
        node("Relu", ["h"], ["i"]),
        LAST,
    ]
    channels = find(model_of(nodes, held))
    assert sizes(channels) == {"first": 6}
    assert len(cut(channels, {"first": [0]}).graph.node) == len(nodes)


def test_the_model_is_left_as_it_is() -> None:
    model = prunable.exported("lstm", old=True)
    before = model.SerializeToString(deterministic=True)
    channels = find(model)
    cut(channels, {group.name: [0] for group in channels.groups})
    assert model.SerializeToString(deterministic=True) == before
