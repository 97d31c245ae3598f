"""Cases of products, normalization, recurrent layers and attention."""

import numpy as np

from gradients.case import Case, Held, between, positive, spread, whole

_STATISTICS = [Held(np.array([0.1, -0.2, 0.3])), Held(np.array([1.0, 0.5, 2.0]))]
_HEADS = {"q_num_heads": 4, "kv_num_heads": 2}
_LINEAR = [(2, 3, 8), (2, 3, 4), (2, 3, 4), (2, 2, 2, 2)]
_LENGTHS = Held(np.array([2, 3], np.int32))

CASES = [
    Case("MatMul", [(2, 3, 4), (4, 2)]),
    Case("MatMul", [(3,), (3,)]),
    Case("Gemm", [(3, 2), (4, 3), (4,)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [(2, 3), (3, 4)], {"alpha": 0.5}),
    Case("Einsum", [(2, 3, 4), (2, 4, 5)], {"equation": "bij, bjk -> bik"}),
    Case("MatMulInteger", [(2, 3), (3, 4), Held(np.array(1.0)), Held(np.array([1.0, 2, 3, 4]))]),
    Case("BatchNormalization", [(2, 3, 4), (3,), (3,), *_STATISTICS]),
    Case("BatchNormalization", [(2, 3, 4), (3,), (3,), *_STATISTICS], training=True),
    Case("BatchNormalization", [(2, 3, 4), (3,), (3,), *_STATISTICS], {"training_mode": 1}, outputs=3),
    Case("BatchNormalization", [(4, 3), (3,), (3,), *_STATISTICS], {"spatial": 0}, opset=7),
    Case("InstanceNormalization", [(2, 3, 4), (3,), (3,)]),
    Case("GroupNormalization", [(2, 4, 3), (4,), (4,)], {"num_groups": 2}),
    Case("GroupNormalization", [(2, 4, 3), (2,), (2,)], {"num_groups": 2}, opset=18),
    Case("LayerNormalization", [(2, 3, 4), (3, 4), (3, 4)], {"axis": 1}),
    Case("LayerNormalization", [(2, 3, 4), (4,)], {"stash_type": 11}, outputs=3),
    Case("RMSNormalization", [(2, 3, 4), (4,)]),
    Case("SimplifiedLayerNormalization", [(2, 3, 4), (4,)]),
    Case("LpNormalization", [spread(2, 3)], {"p": 1}),
    Case("LpNormalization", [spread(2, 3)], {"axis": 0}),
    Case("LRN", [(1, 5, 2, 2)], {"size": 4, "alpha": 0.1}),
    Case("MeanVarianceNormalization", [(2, 2, 2, 2)]),
    Case("LSTM", [(3, 2, 2), (2, 12, 2), (2, 12, 3), (2, 24)], {"hidden_size": 3, "direction": "bidirectional"}, 3),
    Case("LSTM", [(3, 2, 2), (1, 12, 2), (1, 12, 3), (1, 24), _LENGTHS], {"hidden_size": 3, "direction": "reverse"}, 3),
    Case(
        "LSTM",
        [(3, 2, 2), (1, 8, 2), (1, 8, 2), (1, 16), _LENGTHS, (1, 2, 2), (1, 2, 2), (1, 6)],
        {"hidden_size": 2, "clip": 3.0, "activations": ["HardSigmoid", "Softsign", "ScaledTanh"]},
        3,
    ),
    Case("GRU", [(3, 2, 2), (1, 6, 2), (1, 6, 2), (1, 12)], {"hidden_size": 2, "linear_before_reset": 1}, 2),
    Case("GRU", [(3, 2, 2), (1, 6, 2), (1, 6, 2), (1, 12), _LENGTHS, (1, 2, 2)], {"hidden_size": 2}, 2),
    Case("RNN", [(3, 2, 2), (1, 2, 2), (1, 2, 2), (1, 4)], {"hidden_size": 2}, 2),
    Case("RNN", [(2, 3, 2), (1, 2, 2), (1, 2, 2)], {"hidden_size": 2, "layout": 1, "activations": ["Elu"]}, 2),
    Case("Attention", [(1, 3, 8), (1, 4, 4), (1, 4, 4)], {**_HEADS, "is_causal": 1}),
    Case(
        "Attention", [(1, 2, 3, 2), (1, 2, 4, 2), (1, 2, 4, 2), (3, 4)], {"softcap": 2.0, "qk_matmul_output_mode": 3}, 4
    ),
    Case("Attention", [(1, 1, 2, 2), (1, 1, 2, 2), (1, 1, 2, 2), None, (1, 1, 3, 2), (1, 1, 3, 2)], {}, 3),
    Case("RotaryEmbedding", [(1, 2, 3, 4), (5, 2), (5, 2), whole([[0, 2, 4]])]),
    Case("RotaryEmbedding", [(1, 3, 8), (1, 3, 1), (1, 3, 1)], {"num_heads": 2, "rotary_embedding_dim": 2}),
    Case("LinearAttention", [*_LINEAR, between(-1, 0, 2, 3, 2), positive(2, 3, 2)], _HEADS, 2),
    Case("LinearAttention", [*_LINEAR, between(-1, 0, 2, 3, 4)], {**_HEADS, "update_rule": "gated"}, 2),
]

EXCEPTIONS: dict[str, str] = {}
