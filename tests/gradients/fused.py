"""Cases of onnxruntime's own operators (domain com.microsoft), and of quantized values."""

from typing import Any

import numpy as np

from gradients.case import Case, Held, whole

_SCALE, _ZERO = Held(np.array(0.5)), Held(np.array(3, np.uint8))
_STRAIGHT = "rounds, and its gradient is a chosen one: see tests/graph/test_stored_weights.py"


def fused(op: str, *inputs: Any, attributes: dict[str, Any] | None = None, outputs: int = 1) -> Case:
    return Case(op, inputs, attributes or {}, outputs, domain="com.microsoft")


_TWO_HEADS = {"num_heads": 2}
_MASK = Held(np.array([[1, 1, 0], [1, 1, 1]], np.int32))
_BYTES = Held(np.arange(2 * 1 * 8, dtype=np.uint8).reshape(2, 1, 8))
_MATRIX = Held(np.arange(12, dtype=np.uint8).reshape(3, 4))

CASES = [
    Case("DequantizeLinear", [(2, 3), _SCALE]),
    fused("Gelu", (2, 3)),
    fused("BiasGelu", (2, 3), (3,)),
    fused("FastGelu", (2, 3), (3,)),
    fused("QuickGelu", (2, 3)),
    fused("FusedMatMul", (4, 3), (2, 4), attributes={"transA": 1, "transB": 1, "alpha": 0.5}),
    fused("TransposeMatMul", (3, 2, 4), (2, 4, 5), attributes={"transBatchA": 1}),
    fused("FusedConv", (1, 1, 3, 3), (1, 1, 2, 2), (1,), attributes={"activation": "Tanh"}),
    fused("FusedGemm", (2, 3), (3, 4), (4,), attributes={"activation": "Sigmoid"}),
    fused("SkipLayerNormalization", (1, 2, 4), (1, 2, 4), (4,), (4,), (4,)),
    fused("SkipSimplifiedLayerNormalization", (1, 2, 4), (1, 2, 4), (4,), (4,)),
    fused(
        "EmbedLayerNormalization",
        *(whole([[0, 2]]), whole([[1, 0]]), (3, 4), (3, 4), (2, 4), (4,), (4,)),
        attributes={"epsilon": 1e-5},
    ),
    fused("Attention", (2, 3, 4), (4, 12), (12,), _MASK, attributes=_TWO_HEADS),
    fused("Attention", (1, 2, 4), (4, 12), (12,), attributes={**_TWO_HEADS, "unidirectional": 1}),
    fused("MultiHeadAttention", (2, 3, 4), (2, 3, 4), (2, 3, 4), (12,), _MASK, attributes=_TWO_HEADS),
    fused("RotaryEmbedding", (1, 3, 8), whole([1]), (5, 2), (5, 2)),
    fused("MatMulNBits", (3, 16), _BYTES, (2, 1), attributes={"K": 16, "N": 2, "bits": 4, "block_size": 16}),
    fused("GatherBlockQuantized", Held(np.zeros((3, 16), np.uint8)), whole([0, 2]), (3, 1), attributes={"bits": 8}),
    fused("MatMulIntegerToFloat", (2, 3), _MATRIX, _SCALE, _SCALE, Held(np.array(1.0)), Held(np.array(2.0)), (4,)),
    fused("QGemm", (2, 3), _SCALE, _ZERO, _MATRIX, _SCALE, _ZERO),
    fused(
        "DynamicQuantizeLSTM",
        *((2, 1, 2), Held(np.ones((1, 2, 8), np.uint8)), Held(np.ones((1, 2, 8), np.uint8)), (1, 16)),
        *(None, None, None, None, *[Held(np.array([0.1])), Held(np.array([0], np.uint8))] * 2),
        attributes={"hidden_size": 2},
        outputs=3,
    ),
]

EXCEPTIONS = {
    "QuantizeLinear": _STRAIGHT,
    "DynamicQuantizeLinear": _STRAIGHT,
    "QLinearConv": _STRAIGHT,
    "QLinearMatMul": _STRAIGHT,
    **{
        f"com.microsoft:{name}": _STRAIGHT
        for name in ("DynamicQuantizeMatMul", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu")
    },
    **{f"com.microsoft:{name}": _STRAIGHT for name in ("QLinearConcat", "QLinearGlobalAveragePool")},
}
