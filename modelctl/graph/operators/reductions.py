"""Reductions along axes: sums, extremes and norms, where the extremes lie, and running sums and products.

Axes are an attribute at first, and an input from opset 13 (ReduceSum) or 18 (all others) on.
"""

from collections.abc import Callable

import torch

from modelctl.graph.operators.node import Call, Node, numbers_of, operator
from modelctl.graph.operators.wide import widened

Fold = Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]


def _sum(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _mean(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    return torch.mean(x.double(), axes, keep).to(x.dtype)


def _product(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _largest(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.amax(x, axes, keep) if x.numel() else _of_nothing(x, axes, keep, largest=True)


def _smallest(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.amin(x, axes, keep) if x.numel() else _of_nothing(x, axes, keep, largest=False)


def _of_nothing(x: torch.Tensor, axes: tuple[int, ...], keep: bool, *, largest: bool) -> torch.Tensor:
    """The extreme of no numbers: what every number of the type is beyond."""
    shape = torch.sum(x, axes, keep).shape
    if x.dtype == torch.bool:
        return torch.full(shape, not largest, device=x.device)
    if x.is_floating_point():
        return torch.full(shape, float("-inf" if largest else "inf"), dtype=x.dtype, device=x.device)
    ends = torch.iinfo(x.dtype)
    return torch.full(shape, ends.min if largest else ends.max, dtype=x.dtype, device=x.device)


def _l1(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    # vector_norm and not the root of a sum: its gradient at zero is zero, not NaN.
    found: torch.Tensor = torch.linalg.vector_norm(_as_float(x), 2, axes, keep)
    return found.to(x.dtype)


def _log_sum(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.log(_as_float(_sum(x, axes, keep))).to(x.dtype)


def _log_sum_exp(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.logsumexp(_as_float(x), axes, keep).to(x.dtype)


def _sum_square(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return _sum(x * x, axes, keep)


def _as_float(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() else x.double()


FOLDS: dict[str, Fold] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _largest,
    "ReduceMin": _smallest,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": _sum_square,
}


@operator(*FOLDS, host=(1,))
def reduce(node: Node) -> Call:
    """No axes are all axes, or with `noop_with_empty_axes` none."""
    fold, keep = FOLDS[node.proto.op_type], bool(node.integer("keepdims", 1))
    alone = bool(node.integer("noop_with_empty_axes"))

    def over(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        if axes:
            return fold(x, axes, keep)
        if alone:
            return fold(x.unsqueeze(-1), (-1,), False)
        return fold(x, tuple(range(x.dim())), keep)

    held = node.constant(1)
    if held is not None or not node.has(1):
        axes = node.integers("axes") if held is None else tuple(numbers_of(held))
        return widened(lambda x, *_: fold(x, axes, keep)) if axes else widened(lambda x, *_: over(x, ()))
    return lambda x, axes: over(x, tuple(numbers_of(axes)))


@operator("ArgMax", "ArgMin")
def arg_extreme(node: Node) -> Call:
    """The first place of the extreme, or with `select_last_index` the last."""
    call = torch.argmax if node.proto.op_type == "ArgMax" else torch.argmin
    axis, keep = node.integer("axis"), bool(node.integer("keepdims", 1))
    if not node.integer("select_last_index"):
        return widened(lambda x: call(x, axis, keep), keeps=False)
    return widened(lambda x: x.shape[axis] - 1 - call(x.flip(axis), axis, keep), keeps=False)


@operator("CumSum", "CumProd", host=(1,))
def cumulative(node: Node) -> Call:
    """`reverse` runs from the end; `exclusive` leaves a number's own out."""
    call, first = (torch.cumsum, 0) if node.proto.op_type == "CumSum" else (torch.cumprod, 1)
    exclusive, reverse = node.integer("exclusive"), node.integer("reverse")

    def run(x: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
        along = int(axis)
        x = x.flip(along) if reverse else x
        if exclusive and x.shape[along]:
            start = torch.full_like(x.narrow(along, 0, 1), first)
            x = torch.cat([start, x.narrow(along, 0, x.shape[along] - 1)], along)
        found = call(x, along, dtype=x.dtype)
        return found.flip(along) if reverse else found

    return run
