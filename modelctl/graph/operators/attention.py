"""Attention, rotary positions, and the recurrences that stand in for attention.

Heads are [batch, heads, length, size] here; where an operator has them packed as [batch, length, heads * size],
`heads_of` and `packed` go there and back.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, operator


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * size] as [batch, heads, length, size]; what has four axes already stays."""
    return x if x.dim() == 4 else _parted(x, heads).transpose(1, 2)


def _parted(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def packed(x: Tensor) -> Tensor:
    """[batch, heads, length, size] as [batch, length, heads * size]."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """Attention under a boolean mask or an additive bias; a query that may look at nothing gets zeros."""
    if k.shape[1] != q.shape[1]:
        k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], 1) for one in (k, v))
    return functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)


@operator("Attention", fixed=(3,))
def _attention(node: Node) -> Call:
    heads, kv_heads = node.integer("q_num_heads"), node.integer("kv_num_heads")
    scale = node.number("scale") if node.given("scale") else None
    bounds = _bounds(node)
    cap, tells, mode = node.number("softcap"), node.gives(3), node.integer("qk_matmul_output_mode")
    explicit = bool(cap) or tells or node.given("softmax_precision")
    answer = _told(node, cap, mode) if explicit else None

    def call(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        past_k: Tensor | None = None,
        past_v: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        flat = q.dim() == 3
        q, k, v = heads_of(q, heads), heads_of(k, kv_heads), heads_of(v, kv_heads)
        offset: int | Tensor = 0
        if past_k is not None and past_v is not None:
            offset = past_k.shape[2]
            k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
        elif lengths is not None:
            offset = (lengths - q.shape[2]).view(-1, 1, 1, 1)
        allowed = bounds(q, k, offset)
        if lengths is not None:
            inside = torch.arange(k.shape[2], device=q.device) < lengths.view(-1, 1, 1, 1)
            allowed = inside if allowed is None else allowed & inside
        bias = _joined(mask, allowed, q, k.shape[2])
        if answer is None:
            y, matrix = attend(q, k, v, bias, scale), None
        else:
            y, matrix = answer(q, k, v, bias, scale)
        return packed(y) if flat else y, k, v, matrix

    return call


def _bounds(node: Node) -> Callable[[Tensor, Tensor, int | Tensor], Tensor | None]:
    """Which keys a query may see by its place: those before it, or in a window around it."""
    causal = bool(node.integer("is_causal"))
    left, right = node.integer("left_window_size", -1), node.integer("right_window_size", -1)

    def bounds(q: Tensor, k: Tensor, offset: int | Tensor) -> Tensor | None:
        if not causal and left < 0 and right < 0:
            return None
        ahead = torch.arange(k.shape[2], device=q.device) - torch.arange(q.shape[2], device=q.device).unsqueeze(1)
        ahead = ahead - offset
        allowed = (
            ahead <= (0 if causal else right) if causal or right >= 0 else torch.ones_like(ahead, dtype=torch.bool)
        )
        if causal and right >= 0:
            allowed = allowed & (ahead <= right)
        return allowed & (ahead >= -left) if left >= 0 else allowed

    return bounds


def _joined(mask: Tensor | None, allowed: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """One mask of the given one, which may end early, and what is allowed by place."""
    if mask is None:
        return allowed
    if mask.shape[-1] < keys:
        nothing = False if mask.dtype == torch.bool else -math.inf
        mask = functional.pad(mask, (0, keys - mask.shape[-1]), value=nothing)
    if mask.dtype == torch.bool:
        return mask if allowed is None else mask & allowed
    mask = mask.to(q.dtype)
    return mask if allowed is None else mask.masked_fill(~allowed, -math.inf)


def _told(node: Node, cap: float, mode: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """Attention with a cap, or one that gives its matrix: scores, those capped, those under the mask, or weights."""
    precision = node.dtype("softmax_precision")

    def capped(x: Tensor) -> Tensor:
        return cap * torch.tanh(x / cap) if cap > 0 else x

    def answer(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
        root = math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if k.shape[1] != q.shape[1]:
            k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], 1) for one in (k, v))
        scores = (q * root) @ (k * root).transpose(-1, -2)
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(~bias, -math.inf)
        raw = scores
        first = capped(scores)
        full = first if bias is None else first + bias
        weights = torch.softmax(full if precision is None else full.to(precision), -1).to(q.dtype)
        if bias is not None:
            weights = weights.masked_fill((bias == -math.inf).all(-1, keepdim=True), 0.0)
        return weights @ v, (raw, first, full, weights)[mode]

    return answer


def rotated(x: Tensor, cosine: Tensor, sine: Tensor, interleaved: bool, size: int = 0) -> Tensor:
    """[batch, length, heads, size] with its first `size` numbers (0: all) turned by angles [batch, length, size/2]."""
    turned, rest = (x[..., :size], x[..., size:]) if size else (x, None)
    cosine, sine = cosine.unsqueeze(-2), sine.unsqueeze(-2)
    one, other = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    parts = (cosine * one - sine * other, sine * one + cosine * other)
    y = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    return y if rest is None else torch.cat((y, rest), -1)


@operator("RotaryEmbedding", fixed=(1, 2))
def _rotary(node: Node) -> Call:
    interleaved, size = bool(node.integer("interleaved")), node.integer("rotary_embedding_dim")
    heads = node.integer("num_heads")

    def call(x: Tensor, cosine: Tensor, sine: Tensor, places: Tensor | None = None) -> Tensor:
        if places is not None:
            cosine, sine = cosine[places], sine[places]
        if x.dim() == 4:
            return rotated(x.transpose(1, 2), cosine, sine, interleaved, size).transpose(1, 2)
        return rotated(_parted(x, heads), cosine, sine, interleaved, size).flatten(2)

    return call


@operator("LinearAttention")
def _linear_attention(node: Node) -> Call:
    heads, kv_heads = node.integer("q_num_heads"), node.integer("kv_num_heads")
    rule, scale = node.choice("update_rule", "gated_delta", "linear", "gated", "delta"), node.number("scale")

    def call(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor | None = None,
        decay: Tensor | None = None,
        rate: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        kind = q.dtype
        q, k, v = heads_of(q, heads), heads_of(k, kv_heads), heads_of(v, kv_heads)
        q = q * (scale or 1 / math.sqrt(q.shape[-1]))
        now = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
        fades = None if decay is None else heads_of(decay, kv_heads).exp().unsqueeze(-1)
        rates = None if rate is None else rate.transpose(1, 2).unsqueeze(-1)
        found = []
        for step in range(q.shape[2]):
            key, value = k[:, :, step], v[:, :, step]
            if fades is not None and rule in ("gated", "gated_delta"):
                now = now * fades[:, :, step]
            if rates is not None and rule in ("delta", "gated_delta"):
                value = rates[:, :, step] * (value - (key.unsqueeze(-2) @ now).squeeze(-2))
            now = now + key.unsqueeze(-1) * value.unsqueeze(-2)
            seen = now if heads == kv_heads else now.repeat_interleave(heads // kv_heads, 1)
            found.append((q[:, :, step].unsqueeze(-2) @ seen).squeeze(-2))
        return packed(torch.stack(found, 2)).to(kind), now

    return call


@operator("CausalConvWithState")
def _causal_convolution(node: Node) -> Call:
    activates = node.choice("activation", "none", "silu", "swish") in ("silu", "swish")

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None, state: Tensor | None = None) -> Any:
        before = weight.shape[-1] - 1
        whole = functional.pad(x, (before, 0)) if state is None else torch.cat((state, x), -1)
        y = functional.conv1d(whole, weight, bias, groups=weight.shape[0])
        return functional.silu(y) if activates else y, whole[..., whole.shape[-1] - before :]

    return call
