"""LSTM, GRU and RNN: by torch's own kernels in their ordinary form, else step by step.

Ordinary are the default activations, no clip, no peepholes and, in a GRU, `linear_before_reset`. torch has the gates in
another order: an LSTM's are i, f, g, o there and i, o, f, c in ONNX, a GRU's r, z, n and z, r, h. Sequences of several
lengths are packed. W is [directions, gates * hidden, features], R the same over hidden, B [directions, 2 * gates *
hidden], P [directions, 3 * hidden]; Y is [steps, directions, batch, hidden], or with `layout` 1 [batch, steps,
directions, hidden].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules import rnn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from modelctl.graph.operators.node import Call, Node, operator

_FUSED: Any = vars(rnn)["_VF"]
_ORDERS = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # of ONNX's gates, as torch has them
_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}

# The default values of alpha and beta (ONNX, RNN), of those that have them, and the function.
_ACTIVATIONS: dict[str, tuple[tuple[float, ...], Callable[..., Tensor]]] = {
    "relu": ((), torch.relu),
    "tanh": ((), torch.tanh),
    "sigmoid": ((), torch.sigmoid),
    "softsign": ((), functional.softsign),
    "softplus": ((), functional.softplus),
    "elu": ((1.0,), functional.elu),
    "leakyrelu": ((0.01,), functional.leaky_relu),
    "thresholdedrelu": ((1.0,), lambda x, alpha: torch.where(x > alpha, x, 0.0)),
    "affine": ((1.0, 0.0), lambda x, alpha, beta: alpha * x + beta),
    "scaledtanh": ((1.0, 1.0), lambda x, alpha, beta: alpha * torch.tanh(beta * x)),
    "hardsigmoid": ((0.2, 0.5), lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1)),
}

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]  # [batch, hidden] each: h, and c of an LSTM


@dataclass(frozen=True)
class Cell:
    """What one direction computes in a step: from gates that the input has filled, the states and recurrent weights."""

    kind: str
    activations: tuple[Activation, ...]
    clip: float
    coupled: bool
    linear_first: bool

    def step(self, gates: Tensor, states: States, weight: Tensor, bias: Tensor | None, peep: Tensor | None) -> States:
        """The next states."""
        if self.kind == "LSTM":
            return self._lstm(gates if bias is None else gates + bias, states, weight, peep)
        if self.kind == "GRU":
            return self._gru(gates, states[0], weight, bias)
        return (self.activations[0](self._clipped(_plus(gates + states[0] @ weight.t(), bias))),)

    def _lstm(self, gates: Tensor, states: States, weight: Tensor, peep: Tensor | None) -> States:
        hidden, cell = states
        i, o, f, c = (gates + hidden @ weight.t()).chunk(4, -1)
        pi, po, pf = (None, None, None) if peep is None else peep.chunk(3, -1)
        first, second, third = self.activations
        i = first(self._clipped(i if pi is None else i + pi * cell))
        f = 1 - i if self.coupled else first(self._clipped(f if pf is None else f + pf * cell))
        cell = f * cell + i * second(self._clipped(c))
        o = first(self._clipped(o if po is None else o + po * cell))
        return o * third(cell), cell

    def _gru(self, gates: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> States:
        size = hidden.shape[-1]
        first, second = self.activations
        both = gates[..., : 2 * size] + hidden @ weight[: 2 * size].t()
        z, r = first(self._clipped(_plus(both, None if bias is None else bias[: 2 * size]))).chunk(2, -1)
        inner = weight[2 * size :].t()
        rest = None if bias is None else bias[2 * size :]
        seen = r * _plus(hidden @ inner, rest) if self.linear_first else _plus((r * hidden) @ inner, rest)
        h = second(self._clipped(gates[..., 2 * size :] + seen))
        return ((1 - z) * h + z * hidden,)

    def _clipped(self, x: Tensor) -> Tensor:
        return x.clamp(-self.clip, self.clip) if self.clip else x


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


@operator("LSTM", host=(4,))
def _lstm(node: Node) -> Call:
    run = recurrent(node)

    def call(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h: Tensor | None = None,
        c: Tensor | None = None,
        p: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        return run(x, w, r, b, lengths, (h, c), p)

    return call


@operator("GRU", "RNN", host=(4,))
def _gru(node: Node) -> Call:
    run = recurrent(node)

    def call(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        return run(x, w, r, b, lengths, (h,), None)

    return call


def recurrent(node: Node) -> Callable[..., tuple[Tensor, ...]]:
    """The layer's call (x, w, r, b, lengths, initial states, peepholes): Y and the last states."""
    kind, direction = (
        node.proto.op_type.removeprefix("DynamicQuantize"),
        node.choice("direction", "forward", "reverse", "bidirectional"),
    )
    directions = 2 if direction == "bidirectional" else 1
    batch_first = bool(node.integer("layout"))
    names = tuple(one.lower() for one in node.texts("activations")) or _DEFAULTS[kind] * directions
    cells = _cells(node, kind, names, directions)
    usual = names == _DEFAULTS[kind] * directions or (kind == "RNN" and set(names) == {"relu"})
    ordinary = usual and not (cells[0].clip or cells[0].coupled) and (kind != "GRU" or cells[0].linear_first)

    def run(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        lengths: Tensor | None,
        states: Sequence[Tensor | None],
        peep: Tensor | None,
    ) -> tuple[Tensor, ...]:
        x = x.transpose(0, 1) if batch_first else x
        shape = (directions, x.shape[1], r.shape[-1])
        begun = tuple(
            x.new_zeros(shape) if one is None else one.transpose(0, 1).contiguous() if batch_first else one
            for one in states
        )
        if lengths is not None and bool((lengths == len(x)).all()):
            lengths = None
        if ordinary and peep is None and len(x) and (lengths is None or int(lengths.min()) > 0):
            y, ended = _fused(kind, names[0], direction, x, (w, r, b), lengths, begun)
        else:
            y, ended = _stepped(cells, direction, x, (w, r, b, peep), lengths, begun)
        if batch_first:
            return y.permute(2, 0, 1, 3), *(one.transpose(0, 1) for one in ended)
        return y, *ended

    return run


def _cells(node: Node, kind: str, names: Sequence[str], directions: int) -> list[Cell]:
    """A cell for each direction, with the activations that are told one after another."""
    alphas, betas = iter(node.numbers("activation_alpha")), iter(node.numbers("activation_beta"))
    found: list[Activation] = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise node.refuse(f"has the activation {name}, which ONNX has not")
        usual, function = _ACTIVATIONS[name]
        found.append(
            _with(function, [next(source, value) for source, value in zip((alphas, betas), usual, strict=False)])
        )
    each = len(found) // directions
    clip, coupled = node.number("clip"), bool(node.integer("input_forget"))
    linear = bool(node.integer("linear_before_reset"))
    parts = [tuple(found[place * each : (place + 1) * each]) for place in range(directions)]
    return [Cell(kind, part, clip, coupled, linear) for part in parts]


def _with(function: Callable[..., Tensor], values: Sequence[float]) -> Activation:
    return lambda x: function(x, *values)


def _fused(
    kind: str,
    activation: str,
    direction: str,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None],
    lengths: Tensor | None,
    begun: States,
) -> tuple[Tensor, States]:
    w, r, b = weights
    order, both = _ORDERS[kind], direction == "bidirectional"
    flat = []
    for at in range(len(w)):
        ins, back = (None, None) if b is None else b[at].chunk(2)
        flat += [_ordered(one, order) for one in (w[at], r[at], ins, back) if one is not None]
    call = getattr(_FUSED, {"LSTM": "lstm", "GRU": "gru"}.get(kind, f"rnn_{activation}"))
    hidden: Any = begun if kind == "LSTM" else begun[0]
    if direction == "reverse":
        x = _turned(x, lengths)
    steps, batch, size = len(x), x.shape[1], r.shape[-1]
    if lengths is None:
        out, *ended = call(x, hidden, flat, b is not None, 1, 0.0, False, both, False)
    else:
        packed = pack_padded_sequence(x, lengths.to(torch.int64), enforce_sorted=False)
        sorted_, unsorted = packed.sorted_indices, packed.unsorted_indices
        if sorted_ is None or unsorted is None:
            raise AssertionError("sequences that need no order are given one")
        begun = tuple(one.index_select(1, sorted_) for one in begun)
        hidden = begun if kind == "LSTM" else begun[0]
        data, *ended = call(packed.data, packed.batch_sizes, hidden, flat, b is not None, 1, 0.0, False, both)
        ended = [one.index_select(1, unsorted) for one in ended]
        out, _ = pad_packed_sequence(packed._replace(data=data), total_length=steps)
    if direction == "reverse":
        out = _turned(out, lengths)
    return out.view(steps, batch, len(w), size).transpose(1, 2), tuple(ended)


def _ordered(gates: Tensor, order: Sequence[int]) -> Tensor:
    """Weights of gates [gates * hidden, ...] in another order."""
    parts = gates.chunk(len(order))
    return torch.cat([parts[one] for one in order]) if len(order) > 1 else gates.contiguous()


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Sequences [steps, batch, ...] from their end to their beginning; what is behind the end stays."""
    if lengths is None:
        return x.flip(0)
    at = torch.arange(len(x), device=x.device).unsqueeze(1)
    ends = lengths.to(x.device, torch.int64)
    places = torch.where(at < ends, ends - 1 - at, at)
    return x.gather(0, places.unsqueeze(-1).expand(x.shape))


def _stepped(
    cells: Sequence[Cell],
    direction: str,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    lengths: Tensor | None,
    begun: States,
) -> tuple[Tensor, States]:
    """Step by step; behind the end of a sequence its states stay and zeros come out."""
    w, r, b, peep = weights
    outs, ended = [], []
    for at, cell in enumerate(cells):
        back = direction == "reverse" or at == 1
        ins, rest = (None, None) if b is None else b[at].chunk(2)
        gates = functional.linear(_turned(x, lengths) if back else x, w[at], ins)
        states: States = tuple(one[at] for one in begun)
        found = []
        for step in range(len(x)):
            new = cell.step(gates[step], states, r[at], rest, None if peep is None else peep[at])
            out = new[0]
            if lengths is not None:
                on = (step < lengths).to(x.device).unsqueeze(-1)
                new = tuple(torch.where(on, one, old) for one, old in zip(new, states, strict=True))
                out = torch.where(on, out, 0.0)
            states = new
            found.append(out)
        y = torch.stack(found) if found else x.new_zeros(0, x.shape[1], r.shape[-1])
        outs.append(_turned(y, lengths) if back else y)
        ended.append(states)
    return torch.stack(outs, 1), tuple(torch.stack(one) for one in zip(*ended, strict=True))
