"""Pictures at other sizes: Resize and Upsample by tables of weights, GridSample and AffineGrid.

What torch's own interpolation computes alike goes there; everything else is, axis by axis, a choice of places, or a
weighted sum of a few (ONNX, Resize).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, operator

Array = np.ndarray[Any, Any]
_HALVES = ("half_pixel", "pytorch_half_pixel")
_TRANSFORMS = (
    *("pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric"),
    *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
)
_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@dataclass(frozen=True)
class Method:
    """How new numbers are found from old ones; the words are those of the attributes."""

    mode: str
    transform: str
    rounding: str
    cubic: float
    exclude: bool
    antialias: bool
    beyond: float


@dataclass(frozen=True)
class Axis:
    """One axis: its size, the new one, their ratio, and the part that is looked at (of 0 to 1)."""

    size: int
    wanted: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@operator("Resize", host=(1, 2, 3))
def _resize(node: Node) -> Call:
    if node.opset < 11:
        method = Method(node.choice("mode", "nearest", "linear"), "asymmetric", "simple", -0.75, False, False, 0.0)
        return lambda x, scales: resized(x, _scaled(x, scales.tolist(), range(x.dim()), None), method)
    method = Method(
        node.choice("mode", "nearest", "linear", "cubic"),
        node.choice("coordinate_transformation_mode", "half_pixel", *_TRANSFORMS),
        node.choice("nearest_mode", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
        node.number("cubic_coeff_a", -0.75),
        bool(node.integer("exclude_outside")),
        bool(node.integer("antialias")),
        node.number("extrapolation_value"),
    )
    chosen, policy = (
        node.integers("axes"),
        node.choice("keep_aspect_ratio_policy", "stretch", "not_larger", "not_smaller"),
    )
    crops = method.transform == "tf_crop_and_resize"

    def call(x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        axes = [one % x.dim() for one in chosen] or list(range(x.dim()))
        part = roi.tolist() if crops and roi is not None else None
        if sizes is not None and sizes.numel():
            return resized(x, _sized(x, sizes.tolist(), axes, part, policy), method)
        if scales is None or not scales.numel():
            raise node.refuse("has neither scales nor sizes")
        return resized(x, _scaled(x, scales.tolist(), axes, part), method)

    return call


@operator("Upsample", host=(1,))
def _upsample(node: Node) -> Call:
    mode = node.choice("mode", "nearest", "linear")
    method = Method(mode, "asymmetric", "floor", -0.75, False, False, 0.0)
    given = node.numbers("scales")

    def call(x: Tensor, scales: Tensor | None = None) -> Tensor:
        return resized(x, _scaled(x, given if scales is None else scales.tolist(), range(x.dim()), None), method)

    return call


def _scaled(x: Tensor, scales: Sequence[float], axes: Sequence[int], part: list[float] | None) -> dict[int, Axis]:
    found = {}
    for place, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        start, end = (part[place], part[place + len(axes)]) if part else (0.0, 1.0)
        wanted = math.floor(float(np.float32(x.shape[axis] * scale * (end - start) if part else x.shape[axis] * scale)))
        found[axis] = Axis(x.shape[axis], wanted, scale, start, end)
    return found


def _sized(
    x: Tensor, sizes: Sequence[int], axes: Sequence[int], part: list[float] | None, policy: str
) -> dict[int, Axis]:
    ratios = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if policy != "stretch":
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        ratios = [ratio] * len(axes)
        sizes = [math.floor(ratio * x.shape[axis] + 0.5) for axis in axes]
    found = {}
    for place, (axis, size, ratio) in enumerate(zip(axes, sizes, ratios, strict=True)):
        start, end = (part[place], part[place + len(axes)]) if part else (0.0, 1.0)
        found[axis] = Axis(x.shape[axis], int(size), ratio, start, end)
    return found


def resized(x: Tensor, axes: dict[int, Axis], method: Method) -> Tensor:
    """A tensor at other sizes."""
    axes = {at: one for at, one in axes.items() if one.wanted != one.size or one.scale != 1 or one.end != 1}
    if not axes:
        return x
    kind = x.dtype
    direct = _torchs_own(axes, method, x.dim())
    if direct is not None and x.is_floating_point():
        return direct(x)
    if not x.is_floating_point() and method.mode != "nearest":
        return torch.round(resized(x.to(torch.float32), axes, method)).to(kind)
    outside: Tensor | None = None
    for at, one in axes.items():
        places, weights, out = _table(one, method, x.device)
        shape = [1] * x.dim()
        shape[at] = -1
        if weights is None:
            x = x.index_select(at, places[0])
        else:
            taps = zip(places, weights.to(x.dtype), strict=True)
            x = torch.stack([x.index_select(at, tap) * weight.view(shape) for tap, weight in taps]).sum(0)
        if out is not None:
            outside = out.view(shape) if outside is None else outside | out.view(shape)
    return x if outside is None else x.masked_fill(outside, method.beyond)


def _torchs_own(axes: dict[int, Axis], method: Method, dims: int) -> Callable[[Tensor], Tensor] | None:
    """torch's interpolation where it means the same, else None."""
    if dims not in _LINEAR or min(axes) < 2 or method.antialias or method.exclude:
        return None
    if any(one.scale * one.size != one.wanted for one in axes.values()):
        return None

    def sizes(x: Tensor) -> list[int]:
        return [axes[at].wanted if at in axes else x.shape[at] for at in range(2, dims)]

    if method.mode == "nearest":
        whole = all(one.wanted % one.size == 0 for one in axes.values())
        floors = method.transform == "asymmetric" and method.rounding in ("floor", "simple")
        rounds = method.transform in _HALVES and method.rounding.startswith("round")
        return (lambda x: functional.interpolate(x, sizes(x), mode="nearest")) if whole and (floors or rounds) else None
    corners = method.transform == "align_corners"
    if not corners and not (
        method.transform == "half_pixel" or (method.transform in _HALVES and all(a.wanted > 1 for a in axes.values()))
    ):
        return None
    if method.mode == "linear":
        return lambda x: functional.interpolate(x, sizes(x), mode=_LINEAR[dims], align_corners=corners)
    if method.mode == "cubic" and dims == 4 and method.cubic == -0.75:
        return lambda x: functional.interpolate(x, sizes(x), mode="bicubic", align_corners=corners)
    return None


@lru_cache(maxsize=256)
def _table(one: Axis, method: Method, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The old places [taps, wanted] that new ones come from, their weights if they are several, and what is outside."""
    old = _coordinates(one, method.transform).astype(np.float64)
    outside = (old < 0) | (old > one.size - 1) if method.transform == "tf_crop_and_resize" else None
    out = torch.tensor(outside, device=device) if outside is not None and outside.any() else None
    if method.mode == "nearest":
        places = np.clip(_rounded(old, method.rounding, one.scale), 0, one.size - 1).astype(np.int64)
        return torch.tensor(places[None], device=device), None, out
    if not one.wanted:
        return torch.empty((1, 0), dtype=torch.int64, device=device), None, out
    reach = 1 if method.mode == "linear" else 2
    stretch = min(one.scale, 1.0) if method.antialias else 1.0  # narrower steps see more neighbours
    reach_each = math.ceil(reach / stretch)
    first = np.floor(old).astype(np.int64) - reach_each + 1
    taps = first[:, None] + np.arange(2 * reach_each)
    away = (taps - old[:, None]) * stretch
    weights = np.maximum(0, 1 - abs(away)) if method.mode == "linear" else _cubic(away, method.cubic)
    if method.exclude:
        weights = np.where((taps < 0) | (taps >= one.size), 0, weights)
    if method.exclude or method.antialias:
        weights = weights / weights.sum(1, keepdims=True)
    used = weights.any(0)
    taps, weights = np.clip(taps[:, used], 0, one.size - 1), weights[:, used]
    return torch.tensor(taps.T, device=device), torch.tensor(weights.T, dtype=torch.float64, device=device), out


def _coordinates(one: Axis, transform: str) -> Array:
    """Where each new place lies on the old axis; in float32, so that ties are those of onnxruntime."""
    new, scale = np.arange(one.wanted, dtype=np.float32), np.float32(one.scale)
    exact = one.scale * one.size  # which need not be whole
    if transform == "asymmetric":
        return new / scale
    if transform == "align_corners":
        return new * ((one.size - 1) / (exact - 1)) if one.wanted > 1 and exact != 1 else new * 0.0
    if transform == "tf_crop_and_resize":
        first, last = one.start * (one.size - 1), one.end * (one.size - 1)
        if one.wanted > 1:
            return first + new * ((last - first) / (one.wanted - 1))
        return np.full(one.wanted, (first + last) / 2)
    if transform == "tf_half_pixel_for_nn":
        return (new + np.float32(0.5)) / scale
    if transform == "pytorch_half_pixel" and one.wanted <= 1:
        return new * 0.0
    halves = (new + np.float32(0.5)) / scale - np.float32(0.5)
    if transform == "half_pixel_symmetric":
        return halves + one.size / 2 * (1 - one.wanted / exact)
    return halves


def _rounded(places: Array, how: str, scale: float) -> Array:
    if how == "round_prefer_floor":
        return np.ceil(places - 0.5)
    if how == "round_prefer_ceil":
        return np.floor(places + 0.5)
    if how == "ceil" or (how == "simple" and scale < 1):  # before opset 11, as onnxruntime reads it
        return np.ceil(places)
    return np.floor(places)


def _cubic(away: Array, a: float) -> Array:
    """Keys' kernel of two pieces (Cubic convolution interpolation, 1981)."""
    x = abs(away)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@operator("GridSample")
def _grid_sample(node: Node) -> Call:
    word = node.choice("mode", "linear", "nearest", "cubic", "bilinear", "bicubic")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(word, word)
    padding, corners = node.choice("padding_mode", "zeros", "border", "reflection"), bool(node.integer("align_corners"))
    return lambda x, grid: functional.grid_sample(x, grid.to(x.dtype), mode, padding, align_corners=corners)


@operator("AffineGrid", host=(1,))
def _affine_grid(node: Node) -> Call:
    corners = bool(node.integer("align_corners"))
    return lambda theta, size: functional.affine_grid(theta, size.tolist(), align_corners=corners)
