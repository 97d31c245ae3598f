"""Windows that slide over the spatial axes: how their size, steps and padding are read (Conv, pooling)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from modelctl.graph.operators.node import Node

Pads = tuple[tuple[int, int], ...]  # before and after, an axis each


@dataclass(frozen=True)
class Windows:
    """The attributes of a sliding window; those that are not given are empty."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    ceil: bool

    @staticmethod
    def of(node: Node) -> "Windows":
        """As a node tells."""
        return Windows(
            node.integers("kernel_shape"),
            node.integers("strides"),
            node.integers("dilations"),
            node.integers("pads"),
            node.choice("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"),
            bool(node.integer("ceil_mode")),
        )

    def steps(self, rank: int) -> tuple[int, ...]:
        """The stride of each of `rank` axes."""
        return self.strides or (1,) * rank

    def gaps(self, rank: int) -> tuple[int, ...]:
        """The dilation of each of `rank` axes."""
        return self.dilations or (1,) * rank

    def padding(self, sizes: Sequence[int], kernel: Sequence[int]) -> Pads:
        """Zeros before and after each axis of an input of `sizes`."""
        rank = len(sizes)
        if self.auto_pad in ("NOTSET", ""):
            pads = self.pads or (0,) * 2 * rank
            return tuple(zip(pads[:rank], pads[rank:], strict=True))
        if self.auto_pad == "VALID":
            return ((0, 0),) * rank
        found = []
        for size, width, step, gap in zip(sizes, kernel, self.steps(rank), self.gaps(rank), strict=True):
            whole = max(0, (math.ceil(size / step) - 1) * step + (width - 1) * gap + 1 - size)
            small, large = whole // 2, whole - whole // 2
            found.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return tuple(found)

    def rounded_up(self, sizes: Sequence[int], kernel: Sequence[int], pads: Pads) -> Pads:
        """The same padding, with what `ceil_mode` needs after each axis for its last window to be whole."""
        rank = len(sizes)
        found = []
        for size, width, step, gap, (before, after) in zip(
            sizes, kernel, self.steps(rank), self.gaps(rank), pads, strict=True
        ):
            span = (width - 1) * gap + 1
            left = size + before + after - span
            count = math.ceil(left / step) if self.ceil else left // step
            if count * step >= size + before:  # that window would begin behind the input
                count -= 1
            found.append((before, max(after, count * step + span - size - before)))
        return tuple(found)


def symmetric(pads: Pads) -> tuple[int, ...] | None:
    """The padding an axis if before and after are the same everywhere, else None."""
    return tuple(before for before, _ in pads) if all(before == after for before, after in pads) else None


def padded(x: torch.Tensor, pads: Pads, value: float = 0.0) -> torch.Tensor:
    """The input with `value` around it; negative padding cuts."""
    if not any(one for pair in pads for one in pair):
        return x
    return functional.pad(x, [one for pair in reversed(pads) for one in pair], value=value)
