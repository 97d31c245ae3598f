"""onnxruntime's fused operators compute what its own kernels compute, on random values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from modelctl.graph.operators import OPERATORS
from modelctl.graph.trainable import TrainableGraph

Array = np.ndarray[Any, Any]
random = np.random.default_rng(17)


def floats(*shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return random.uniform(0.01, 0.05, shape).astype(np.float32)


def whole(high: int, *shape: int, kind: Any = np.uint8, low: int = 0) -> Array:
    return random.integers(low, high, shape).astype(kind)


def number(value: Any, kind: Any) -> Array:
    return np.asarray(value, kind)


@dataclass(frozen=True)
class Kernel:
    """A node of com.microsoft, its inputs, and how far from the kernel's answer is right."""

    op: str
    inputs: tuple[Array | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    within: float = 2e-5
    domain: str = "com.microsoft"


HIDDEN = 8
heads = {"num_heads": 2}
qkv = (floats(2, 5, HIDDEN), floats(HIDDEN, 3 * HIDDEN), floats(3 * HIDDEN))
three = (floats(2, 5, HIDDEN), floats(2, 5, HIDDEN), floats(2, 5, HIDDEN))
past = floats(2, 2, 2, 3, 4)
mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
layer = (floats(2, 5, HIDDEN), floats(2, 5, HIDDEN), floats(HIDDEN))
eight = (whole(256, 3, 4), number(0.03, np.float32), number(120, np.uint8))
other = (whole(256, 3, 4), number(0.05, np.float32), number(99, np.uint8))
result = (number(0.04, np.float32), number(110, np.uint8))
angles = (np.cos(floats(16, 2)), np.sin(floats(16, 2)))

KERNELS = [
    Kernel("Gelu", (floats(3, 5),)),
    Kernel("BiasGelu", (floats(3, 5), floats(5))),
    Kernel("FastGelu", (floats(3, 5), floats(5)), within=1e-4),
    Kernel("FastGelu", (floats(3, 5),), within=1e-4),
    Kernel("QuickGelu", (floats(3, 5),), {"alpha": 1.5}),
    Kernel("FusedMatMul", (floats(2, 4, 3), floats(2, 5, 4)), {"transA": 1, "transB": 1, "alpha": 0.3}),
    Kernel("FusedMatMul", (floats(4, 2, 3), floats(3, 2, 5)), {"transBatchA": 1, "transBatchB": 1}),
    Kernel("FusedMatMul", (floats(3, 2, 4), floats(2, 3, 5)), {"transBatchA": 1, "transA": 1}),
    Kernel("FusedConv", (floats(1, 2, 6, 6), floats(3, 2, 3, 3), floats(3)), {"activation": "Relu"}),
    Kernel("FusedConv", (floats(1, 2, 6, 6), floats(3, 2, 3, 3), None, floats(1, 3, 4, 4)), {"activation": "Relu"}),
    *(
        Kernel("FusedConv", (floats(1, 2, 6, 6), floats(3, 2, 3, 3)), {"activation": name, "activation_params": params})
        for name, params in (("LeakyRelu", [0.2]), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.3, 0.4]))
    ),
    Kernel("FusedConv", (floats(1, 2, 6, 6), floats(3, 2, 3, 3)), {"activation": "Tanh"}),
    Kernel("FusedConv", (floats(1, 2, 6, 6), floats(3, 2, 3, 3)), {"activation": "Sigmoid"}),
    Kernel("FusedGemm", (floats(3, 4), floats(5, 4), floats(5)), {"transB": 1, "alpha": 0.5, "activation": "Relu"}),
    Kernel("FusedGemm", (floats(3, 4), floats(4, 5), floats(5)), {"activation": "LeakyRelu", "activation_alpha": 0.2}),
    Kernel("SkipLayerNormalization", (*layer, floats(HIDDEN), floats(HIDDEN)), {}, ("y", "", "", "sum")),
    Kernel("SkipLayerNormalization", layer, {"epsilon": 1e-5}),
    Kernel("SkipSimplifiedLayerNormalization", (*layer, floats(HIDDEN)), {}, ("y", "", "", "sum")),
    Kernel("SimplifiedLayerNormalization", (layer[0], layer[2]), {"epsilon": 1e-6}, domain=""),
    Kernel(
        "EmbedLayerNormalization",
        (
            *(whole(9, 2, 5, kind=np.int32), whole(2, 2, 5, kind=np.int32)),
            *(floats(9, HIDDEN), floats(7, HIDDEN), floats(2, HIDDEN), floats(HIDDEN), floats(HIDDEN), mask),
        ),
        {"epsilon": 1e-5},
        ("y", "mask_index"),
    ),
    Kernel("Attention", qkv, heads),
    Kernel("Attention", (*qkv, mask), heads),
    Kernel("Attention", (*qkv, np.array([3, 5], np.int32)), heads),
    Kernel("Attention", (*qkv, np.array([4, 5, 1, 0], np.int32)), heads),
    Kernel("Attention", (*qkv, whole(2, 2, 5, 5, kind=np.int32)), {**heads, "unidirectional": 1}),
    Kernel("Attention", (*qkv, None, None, floats(1, 2, 5, 5)), {**heads, "scale": 0.3}),
    Kernel("Attention", (*qkv, None, past), {**heads, "unidirectional": 1}, ("y", "present")),
    Kernel("Attention", (qkv[0], floats(HIDDEN, 20), floats(20)), {**heads, "qkv_hidden_sizes": [8, 8, 4]}),
    Kernel("MultiHeadAttention", three, heads),
    Kernel("MultiHeadAttention", (*three, floats(24), mask), heads),
    Kernel("MultiHeadAttention", (*three, None, None, floats(1, 1, 5, 5)), {**heads, "unidirectional": 1}),
    Kernel(
        "MultiHeadAttention",
        (*three, None, None, None, floats(2, 2, 3, 4), floats(2, 2, 3, 4)),
        heads,
        ("y", "key", "value"),
    ),
    Kernel("RotaryEmbedding", (floats(2, 5, 12), whole(16, 2, 5, kind=np.int64), *angles), {}),
    Kernel("RotaryEmbedding", (floats(2, 3, 5, 4), number([2], np.int64), *angles), {"interleaved": 1}),
    *(
        Kernel(
            "MatMulNBits",
            (floats(3, 40), whole(256, 6, 3, 16 * bits // 8), positive(6, 3), zero),
            {"K": 40, "N": 6, "bits": bits, "block_size": 16},
            within=1e-4,
        )
        for bits, zero in ((4, None), (4, whole(256, 6, 2)), (8, whole(256, 6, 3)), (8, None))
    ),
    Kernel(
        "GatherBlockQuantized",
        (whole(256, 7, 32), whole(7, 2, 3, kind=np.int64), positive(7, 2), whole(256, 7, 2)),
        {"bits": 8, "block_size": 16},
    ),
    Kernel(
        "GatherBlockQuantized",
        (whole(256, 7, 32), whole(7, 4, kind=np.int64), positive(7, 4)),
        {"bits": 4, "block_size": 16},
    ),
    Kernel("MatMulIntegerToFloat", (whole(256, 3, 4), whole(256, 4, 5), positive(), positive(5), number(7, np.uint8))),
    Kernel("DynamicQuantizeMatMul", (floats(3, 4), whole(256, 4, 5), positive(5), whole(256, 5), floats(5))),
    Kernel("QLinearAdd", (*eight, *other, *result), within=1.01),
    Kernel("QLinearMul", (*eight, *other, *result), within=1.01),
    Kernel("QLinearSigmoid", (*eight, number(1 / 256, np.float32), number(0, np.uint8)), within=1.01),
    Kernel("QLinearLeakyRelu", (*eight, *result), {"alpha": 0.2}, within=1.01),
    Kernel("QLinearConcat", (*result, *eight, *other), {"axis": 1}, within=1.01),
    Kernel("QLinearGlobalAveragePool", (whole(256, 1, 3, 4, 4), *eight[1:], *result), within=1.01),
    Kernel(
        "QGemm",
        (*eight, whole(100, 4, 5, kind=np.int8), positive(5), whole(1, 5, kind=np.int8), whole(99, 5, kind=np.int32)),
        {"alpha": 1.0},
    ),
    Kernel(
        "QGemm",
        (
            *(*eight, whole(100, 5, 4, kind=np.int8), number(0.01, np.float32), number(0, np.int8), None),
            *result,
        ),
        {"transB": 1},
        within=1.01,
    ),
    Kernel(
        "DynamicQuantizeLSTM",
        (
            *(floats(4, 2, 3), whole(256, 1, 3, 16), whole(256, 1, 4, 16), floats(1, 32), None, None, None, None),
            *(positive(1) / 8, whole(256, 1), positive(1) / 8, whole(256, 1)),
        ),
        {"hidden_size": 4},
        ("y", "h", "c"),
        within=0.02,
    ),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda one: one.op)
def test_a_fused_operator_computes_what_its_kernel_computes(kernel: Kernel) -> None:
    names = ["" if one is None else f"x{place}" for place, one in enumerate(kernel.inputs)]
    held = {name: one for name, one in zip(names, kernel.inputs, strict=True) if one is not None}
    node = helper.make_node(kernel.op, names, kernel.outputs, domain=kernel.domain, **kernel.attributes)
    value = helper.make_tensor_value_info
    weights = kernel.op in ("MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeLSTM", "QGemm")
    constants = {name: one for name, one in held.items() if weights and name != "x0"}
    if kernel.op == "GatherBlockQuantized":
        constants = {name: one for name, one in held.items() if name != "x1"}
    graph = helper.make_graph(
        [node],
        "kernel",
        [
            value(name, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape)
            for name, one in held.items()
            if name not in constants
        ],
        [helper.make_empty_tensor_value_info(name) for name in kernel.outputs if name],
        [numpy_helper.from_array(one, name) for name, one in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    given = {name: one for name, one in held.items() if name not in constants}
    wanted = ort.InferenceSession(model.SerializeToString()).run(None, given)
    trainable = TrainableGraph(model).eval()
    with torch.no_grad():
        found = trainable(*(torch.tensor(one) for one in given.values()))
    for one, right in zip(found, wanted, strict=True):
        right = np.asarray(right)
        assert one.numpy().dtype == right.dtype
        assert one.shape == right.shape
        np.testing.assert_allclose(one.numpy().astype(float), right.astype(float), rtol=1e-4, atol=kernel.within)


def test_every_fused_operator_is_compared() -> None:
    claimed = {name for domain, name in OPERATORS if domain == "com.microsoft"}
    assert claimed - {kernel.op for kernel in KERNELS} == {"TransposeMatMul"}, "onnxruntime's older name of FusedMatMul"
