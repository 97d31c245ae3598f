"""Changes of element type.

Numbers of 4 and 2 bits, for which torch has no type, are held in larger ones (`HELD`) and rounded as theirs would be.
"""

from collections.abc import Callable

import onnx
import torch

from modelctl.graph.operators.node import DTYPES, HELD, Call, Node, operator

_E4M3FN_ENDS = 464  # halfway from its largest number, 448, to the next one that it has not
_SATURATING = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})


@operator("Cast")
def cast(node: Node) -> Call:
    """To the type of the attribute `to`."""
    kind = node.integer("to")
    if kind not in HELD and node.dtype("to") is None:
        raise node.refuse("does not say to which type")
    return to_kind(kind, saturate=bool(node.integer("saturate", 1)), rounding=_rounding(node))


def to_kind(kind: int, *, saturate: bool = True, rounding: str = "up") -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes numbers of an element type (of onnx.proto, in DTYPES or HELD)."""
    return _held(kind) if kind in HELD else _to(DTYPES[kind], saturate=saturate, rounding=rounding)


@operator("CastLike")
def cast_like(node: Node) -> Call:
    """To the type of the second input."""
    saturate, rounding = bool(node.integer("saturate", 1)), _rounding(node)
    if node.kind(1) in HELD:
        made = _held(node.kind(1))
        return lambda x, _: made(x)
    return lambda x, like: _to(like.dtype, saturate=saturate, rounding=rounding)(x)


@operator("BitCast")
def bit_cast(node: Node) -> Call:
    """The same bits read as another type of the same size."""
    wanted = node.dtype("to")
    if wanted is None:
        raise node.refuse("does not say as which type")
    return lambda x: x.view(wanted)


def _rounding(node: Node) -> str:
    return node.choice("round_mode", "up", "down", "nearest")


def _to(wanted: torch.dtype, *, saturate: bool, rounding: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if wanted == torch.float8_e8m0fnu:
        return lambda x: _power_of_two(x, rounding)
    if wanted in _SATURATING and saturate:
        most = torch.finfo(wanted).max
        return lambda x: x.clamp(-most, most).to(wanted)
    if wanted == torch.float8_e4m3fn:  # torch itself saturates
        return lambda x: torch.where(x.abs() > _E4M3FN_ENDS, torch.nan, x).to(wanted)
    return lambda x: x.to(wanted)


def _power_of_two(x: torch.Tensor, rounding: str) -> torch.Tensor:
    """A float8e8m0, which is nothing but an exponent: 2**-127 to 2**127, and 255 for what is no number."""
    part, exponent = torch.frexp(x.float())  # x = part * 2**exponent, with 0.5 <= part < 1
    least = {"up": 0.5, "down": 1.0, "nearest": 0.75}[rounding]
    above = part > least if rounding == "up" else part >= least
    bits = torch.where(x == 0, 0, (exponent - 1 + above + 127).clamp(0, 254))
    return torch.where(torch.isfinite(x) & (x >= 0), bits, 255).to(torch.uint8).view(torch.float8_e8m0fnu)


def _held(kind: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Whole numbers keep their last bits; a float4 is the nearest of its fifteen numbers, ties to even."""
    wanted = HELD[kind]
    if kind == onnx.TensorProto.FLOAT4E2M1:
        return lambda x: _float4(x.to(wanted))
    size = 16 if kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 4
    lowest = size // 2 if kind in (onnx.TensorProto.INT4, onnx.TensorProto.INT2) else 0
    return lambda x: ((x.to(torch.int32) + lowest) % size - lowest).to(wanted)


def _float4(x: torch.Tensor) -> torch.Tensor:
    """One bit after the leading one: steps of 0.5 up to 2, of 1 up to 4, of 2 up to 6."""
    x = x.nan_to_num(0.0, torch.inf, -torch.inf)
    size = x.abs().clamp(max=6)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(torch.round(size / step) * step, x)
