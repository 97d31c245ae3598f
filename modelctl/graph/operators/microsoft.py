"""onnxruntime's fused operators (domain com.microsoft) that compute in floats, as its optimizer writes them.

Their meaning is that of the operator schemas in onnxruntime's ContribOperators.md. Masks of attention: 1 for what is
seen and 0 for padding, [batch, keys] or [batch, queries, keys], or the sequences' ends [batch], or ends and starts
[2 * batch]; what is hidden gets `mask_filter_value`, so that a query that may see nothing sees everything alike.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modelctl.graph.operators.attention import attend, heads_of, packed, rotated
from modelctl.graph.operators.convolution import convolution
from modelctl.graph.operators.node import Call, Node, operator
from modelctl.graph.operators.products import gemm

MICROSOFT = "com.microsoft"


def _fused(*names: str, host: tuple[int, ...] = (), fixed: tuple[int, ...] = ()) -> Callable[[Any], Any]:
    return operator(*names, domain=MICROSOFT, host=host, fixed=fixed)


@_fused("Gelu", "BiasGelu")
def _gelu(_: Node) -> Call:
    return lambda x, bias=None: functional.gelu(x if bias is None else x + bias)


@_fused("FastGelu")
def _fast_gelu(_: Node) -> Call:
    return lambda x, bias=None: functional.gelu(x if bias is None else x + bias, approximate="tanh")


@_fused("QuickGelu")
def _quick_gelu(node: Node) -> Call:
    alpha = node.number("alpha", 1.702)
    return lambda x: x * torch.sigmoid(alpha * x)


@_fused("FusedMatMul", "TransposeMatMul")
def _product(node: Node) -> Call:
    alpha = node.number("alpha", 1.0)
    turns = [(node.integer(f"transBatch{one}"), node.integer(f"trans{one}")) for one in "AB"]

    def turned(x: Tensor, batch: int, last: int) -> Tensor:
        if batch and x.dim() > 2:  # the rows come before the batch
            x = x.movedim(0, -2)
        return x.transpose(-1, -2) if last and x.dim() > 1 else x

    def call(a: Tensor, b: Tensor) -> Tensor:
        y = torch.matmul(turned(a, *turns[0]), turned(b, *turns[1]))
        return y if alpha == 1 else alpha * y

    return call


def _activation(node: Node) -> Callable[[Tensor], Tensor]:
    """The activation that a fused node ends in, with its parameters."""
    name = node.text("activation")
    values = node.numbers("activation_params") or tuple(
        node.number(one) for one in ("activation_alpha", "activation_beta", "activation_gamma") if node.given(one)
    )
    known: dict[str, Callable[..., Tensor]] = {
        "": lambda x: x,
        "Relu": torch.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "LeakyRelu": functional.leaky_relu,
        "Clip": torch.clamp,
        "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
        "Softplus": functional.softplus,
        "Softsign": functional.softsign,
        "Elu": functional.elu,
        "ThresholdedRelu": lambda x, alpha=1.0: torch.where(x > alpha, x, 0.0),
    }
    if name not in known:
        raise node.refuse(f"ends in {name}, which is not known here")
    return lambda x: known[name](x, *values)


@_fused("FusedConv")
def _convolution(node: Node) -> Call:
    convolved, activation = convolution(node), _activation(node)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        y: Tensor = convolved(x, weight, bias)
        return activation(y if added is None else y + added)

    return call


@_fused("FusedGemm")
def _gemm(node: Node) -> Call:
    product, activation = gemm(node), _activation(node)
    return lambda *given: activation(product(*given))


@_fused("SkipLayerNormalization")
def _skip_layer(node: Node) -> Call:
    epsilon = node.number("epsilon", 1e-12)

    def call(
        x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        total = x + skip if bias is None else x + skip + bias
        return functional.layer_norm(total, scale.shape, scale, shift, epsilon), None, None, total

    return call


@_fused("SkipSimplifiedLayerNormalization")
def _skip_root_mean_square(node: Node) -> Call:
    epsilon = node.number("epsilon", 1e-12)

    def call(x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor | None, ...]:
        total = x + skip if bias is None else x + skip + bias
        return functional.rms_norm(total, scale.shape, scale, epsilon), None, None, total

    return call


@_fused("EmbedLayerNormalization")
def _embeddings(node: Node) -> Call:
    epsilon = node.number("epsilon", 1e-12)

    def call(
        words: Tensor,
        segments: Tensor | None,
        by_word: Tensor,
        by_place: Tensor,
        by_segment: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        mask: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        total = functional.embedding(words, by_word)
        total = total + (by_place[: words.shape[1]] if places is None else functional.embedding(places, by_place))
        if segments is not None and by_segment is not None:
            total = total + functional.embedding(segments, by_segment)
        seen = torch.zeros_like(words[:, 0]) if mask is None else mask.sum(1).to(mask.dtype)
        return functional.layer_norm(total, scale.shape, scale, shift, epsilon), seen, total

    return call


@_fused("RotaryEmbedding", fixed=(2, 3))
def _rotary(node: Node) -> Call:
    heads, size = node.integer("num_heads"), node.integer("rotary_embedding_dim")
    interleaved, scale = bool(node.integer("interleaved")), node.number("scale", 1.0)

    def call(x: Tensor, places: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        flat = x.dim() == 3
        width = cosine.shape[1] * 2
        apart = heads_of(x, heads or x.shape[-1] // width).transpose(1, 2)
        if places.dim() == 1:  # where the first one stands
            places = places.view(-1, 1) + torch.arange(apart.shape[1], device=x.device)
        y = rotated(scale * apart, cosine[places], sine[places], interleaved, size)
        return y.flatten(2) if flat else y.transpose(1, 2)

    return call


@_fused("Attention", fixed=(5,))
def _attention(node: Node) -> Call:
    heads, sizes = node.integer("num_heads"), node.integers("qkv_hidden_sizes")
    if node.integer("do_rotary") or node.integer("past_present_share_buffer"):
        raise node.refuse("turns by position inside, or shares buffers of the past")
    answer = _answer(node)

    def call(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        past: Tensor | None = None,
        added: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        y = x @ weight if bias is None else x @ weight + bias
        q, k, v = (heads_of(one, heads) for one in torch.split(y, list(sizes) or [y.shape[-1] // 3] * 3, -1))
        before = (None, None) if past is None else (past[0], past[1])
        out, k, v = answer(q, k, v, mask, before, added)
        return out, torch.stack((k, v)) if node.gives(1) else k

    return call


@_fused("MultiHeadAttention", fixed=(5,))
def _multi_head(node: Node) -> Call:
    heads, answer = node.integer("num_heads"), _answer(node)
    if node.gives(3) or node.has(9):
        raise node.refuse("gives its weights, or looks up the past")

    def call(
        q: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        added: Tensor | None = None,
        past_k: Tensor | None = None,
        past_v: Tensor | None = None,
        _: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if k is None:
            q, k, v = (one.flatten(2) for one in q.unbind(3))
        elif v is None:
            k, v = (one.flatten(2) for one in k.unbind(3))
        if bias is not None:
            width = q.shape[-1]
            q = q + bias[:width]
            k = k + bias[width : 2 * width] if k.dim() == 3 else k
            v = v + bias[2 * width :] if v.dim() == 3 else v
        q, k, v = heads_of(q, heads), heads_of(k, heads), heads_of(v, heads)
        return answer(q, k, v, mask, (past_k, past_v), added)

    return call


def _answer(node: Node) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Attention of heads with all that the fused ones add: output [batch, length, hidden], keys and values so far."""
    causal, hidden = bool(node.integer("unidirectional")), node.number("mask_filter_value", -10000.0)
    scale = node.number("scale") or None

    def answer(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        past: tuple[Tensor | None, Tensor | None],
        added: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if past[0] is not None and past[1] is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        bias = None if mask is None else _seen(mask, q.shape[0], k.shape[2], node).logical_not().to(q.dtype) * hidden
        if added is not None:
            bias = added if bias is None else bias + added
        if causal:
            ahead = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            ahead = ahead.triu(k.shape[2] - q.shape[2] + 1)
            lowest = torch.finfo(q.dtype).min
            bias = (q.new_zeros(()) if bias is None else bias).masked_fill(ahead, lowest)
        if bias is not None and bias.dim() == 2:
            bias = bias[None, None]
        return packed(attend(q, k, v, bias, scale)), k, v

    return answer


def _seen(mask: Tensor, batch: int, keys: int, node: Node) -> Tensor:
    """A mask in any of its forms as booleans that go with [batch, heads, queries, keys]."""
    if mask.dim() == 1 and len(mask) in (batch, 2 * batch):
        at = torch.arange(keys, device=mask.device)
        seen = at < mask[:batch, None]
        seen = seen if len(mask) == batch else seen & (at >= mask[batch:, None])
        return seen[:, None, None]
    if mask.dim() == 2:
        return (mask > 0)[:, None, None]
    if mask.dim() == 3:
        return (mask > 0)[:, None]
    raise node.refuse("has a mask of a form that only CUDA kernels take")
