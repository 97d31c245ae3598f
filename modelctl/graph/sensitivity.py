"""How much the quantization of each node harms, told from one calibrated pass: nothing is quantized and run.

A node y = W·x computes (W + ΔW)·(x + Δx). To first order, with errors that have nothing to do with one another, the
noise in output channel c is Var(x)·Σ ΔW_c² + (E x)²·(Σ ΔW_c)² from the weights and E Δx²·Σ W_c² from the input: ΔW is
known, the rest is in the histogram of x. A sum has its inputs' errors, a product of activations their relative ones. If
no quantized node reads y, the error of quantizing y itself is added: else it is its reader's. The ratio of the output's
own variance to the noise, in decibels, is the usual SQNR (R. M. Gray and D. L. Neuhoff, Quantization, IEEE Trans. Inf.
Theory 44, 1998).

What that does to the model's answer is told by `pulls`: noise of power n on a value y adds n·Σ (∂o/∂y)² to the outputs
o, and Σ (∂o/∂y)² = E_v (∂(v·o)/∂y)² for random signs v (M. F. Hutchinson, Commun. Stat. Simul. Comput. 19, 1990): a
gradient a draw, for all values at once. No label is needed.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from modelctl.data.samples import Array, Samples
from modelctl.graph.histograms import Histogram, Range, expected_error

WEIGHTED = ("Conv", "Gemm", "MatMul")  # where the second input is constant
SUMS = ("Add", "Sub")
TYPES = (*WEIGHTED, *SUMS, "Mul")
DRAWS = 8


@dataclass(frozen=True, kw_only=True)
class Harm:
    """What quantizing one node costs.

    `from_weights`, `from_inputs`, `from_output`: power of the noise in its output, the mean over channels. `sqnr_db`:
    the variance of the output to all of them, −∞ where it can't be quantized. `share`: power of the noise in the
    model's outputs to their variance; None where no pull is known.
    """

    node: str
    op_type: str
    from_weights: float
    from_inputs: float
    from_output: float
    sqnr_db: float
    share: float | None = None


def rank(
    model: onnx.ModelProto,
    histograms: Mapping[str, Histogram],
    ranges: Mapping[str, Range],
    pulls: Mapping[str, Array] | None = None,
    types: Collection[str] = TYPES,
    weight_bits: int = 8,
    activation_bits: int = 8,
    per_channel: bool = True,
) -> list[Harm]:
    """The nodes of `TYPES`, the most harmed first: by `share` as far as `pulls` tell it, then by SQNR.

    `histograms` of inputs and outputs and the `ranges` to quantize them in; nodes without them are left out, and those
    that are not of the `types` to quantize (others than `TYPES` may be among these: they tell who reads a value in few
    bits). Where a value was infinite or NaN the node comes first. A constant first factor of a product counts as exact.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    passed_on = {name for node in model.graph.node if node.op_type in types for name in node.input}
    passed_on |= {one.name for one in model.graph.output}  # stay in float
    found = []
    for node in model.graph.node:
        values = [name for name in node.input[:2] if name not in held]
        known = all(name in histograms and name in ranges for name in (*values, node.output[0]))
        if node.op_type not in TYPES or node.op_type not in types or not values or not known:
            continue
        seen, out = [histograms[name] for name in values], histograms[node.output[0]]
        errors = [expected_error(one, ranges[name], activation_bits) for name, one in zip(values, seen, strict=True)]
        if node.op_type in WEIGHTED and node.input[1] in held:
            rows = _rows(node, numpy_helper.to_array(held[node.input[1]]))
            from_weights = _from_weights(rows, seen[0], weight_bits, per_channel)
            from_inputs = errors[0] * (rows**2).sum(-1)
        else:
            from_inputs = np.array([_joined(node, seen, errors, out)])
            from_weights = np.zeros(1)
        own = 0.0 if node.output[0] in passed_on else expected_error(out, ranges[node.output[0]], activation_bits)
        bounded = not any(one.unbounded for one in (*seen, out))
        found.append(_harm(node, from_weights, from_inputs, own, out, bounded, (pulls or {}).get(node.output[0])))
    return sorted(found, key=lambda one: (one.share is None, -(one.share or 0), one.sqnr_db))


def pulls(model: onnx.ModelProto, name: str, batch: Samples, seed: int = 0, draws: int = DRAWS) -> dict[str, Array]:
    """How strongly noise in what each node of `TYPES` puts out moves the model's outputs, by the value, by channel.

    Σ (∂o/∂y)² over positions and outputs, each output by its variance, to the number of outputs; the mean over `batch`.
    Channels are axis 1 of a Conv, else the last. Left out is what no learned weight has touched, or no output heeds.
    Needs torch; UnsupportedError for an operator that has no gradient here, DataError for a batch that does not fit.
    """
    import torch

    from modelctl.graph.tensors import tensor_of
    from modelctl.graph.trainable import TrainableGraph

    graph = TrainableGraph(model, name).eval()
    axes = {node.output[0]: 1 if node.op_type == "Conv" else -1 for node in graph.nodes if node.op_type in TYPES}
    with torch.enable_grad():
        given = [tensor_of(batch.inputs[one]) for one in graph.input_names]
        found = graph.values(given, dict.fromkeys((*axes, *graph.output_names)))
        learned = {one: value for one, value in found.items() if torch.is_tensor(value) and value.requires_grad}
        values = {one: learned[one] for one in axes if one in learned}
        outputs = [learned[one] for one in graph.output_names if one in learned]
        if not values or not outputs:
            return {}
        count = sum(one.numel() for one in outputs)
        variances = [float(one.detach().double().var(correction=0)) or 1.0 for one in outputs]
        random = torch.Generator().manual_seed(seed)
        sums: dict[str, Array] = {}
        for _ in range(draws):
            signs = [torch.randint(2, one.shape, generator=random) * 2 - 1 for one in outputs]
            weights = [sign / variance**0.5 for sign, variance in zip(signs, variances, strict=True)]
            slopes = torch.autograd.grad(outputs, list(values.values()), weights, retain_graph=True, allow_unused=True)
            for value, slope in zip(values, slopes, strict=True):
                if slope is not None:
                    sums[value] = sums.get(value, 0.0) + _by_channel(slope.double().numpy() ** 2, axes[value])
    return {value: found / (draws * count) for value, found in sums.items()}


def _by_channel(squares: Array, axis: int) -> Array:
    kept = axis % squares.ndim if squares.ndim else None
    return np.asarray(squares.sum(axis=tuple(one for one in range(squares.ndim) if one != kept)))


def _rows(node: onnx.NodeProto, weight: Array) -> Array:
    """The weights of each output channel in a row: [channels, inputs], before it the stack's axes if there are any."""
    weight = weight.astype(np.float64)
    facts = {one.name: one for one in node.attribute}
    if node.op_type == "Conv":
        return weight.reshape(weight.shape[0], -1)
    if node.op_type == "Gemm":
        alpha = facts["alpha"].f if "alpha" in facts else 1.0
        return alpha * (weight if "transB" in facts and facts["transB"].i else weight.T)
    return weight[None] if weight.ndim == 1 else np.swapaxes(weight, -1, -2)


def _from_weights(rows: Array, given: Histogram, bits: int, per_channel: bool) -> Array:
    """The noise that rounding the weights makes, max|w| / (2^(bits−1) − 1) a step: [channels]."""
    scale = np.abs(rows).max(axis=-1 if per_channel else None, keepdims=True) / ((1 << (bits - 1)) - 1)
    scale[scale == 0] = 1
    off = np.rint(rows / scale) * scale - rows
    mean = given.mean()
    noise = max(given.power() - mean**2, 0) * (off**2).sum(-1) + mean**2 * off.sum(-1) ** 2
    return np.asarray(noise)


def _joined(node: onnx.NodeProto, seen: Sequence[Histogram], errors: Sequence[float], out: Histogram) -> float:
    """The noise in a sum or product of activations, or of one and a constant."""
    if node.op_type in SUMS:
        return sum(errors)
    return out.power() * sum(error / one.power() for error, one in zip(errors, seen, strict=True) if one.power())


def _harm(
    node: onnx.NodeProto,
    from_weights: Array,
    from_inputs: Array,
    from_output: float,
    out: Histogram,
    bounded: bool,
    pull: Array | None,
) -> Harm:
    noise = from_weights + from_inputs + from_output
    signal, all_of_it = max(out.power() - out.mean() ** 2, 0), float(noise.mean())
    quality = 10 * math.log10(signal / all_of_it) if signal and all_of_it else -math.inf if all_of_it else math.inf
    share = None if pull is None else float((pull * noise.reshape(-1, noise.shape[-1]).mean(0)).sum())
    return Harm(
        node=node.name,
        op_type=node.op_type,
        from_weights=float(from_weights.mean()),
        from_inputs=float(from_inputs.mean()),
        from_output=from_output,
        sqnr_db=quality if bounded else -math.inf,
        share=share if bounded or share is None else math.inf,
    )
