"""What weights are multiplied with, as samples tell it: the second moments of the rows that go into each sum.

For a product the rows are those of its input; for a convolution, the patches that its kernels lie on.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper

from modelctl.artifact import Payload
from modelctl.data.samples import Array
from modelctl.graph.session import Tensors
from modelctl.graph.watching import watch

MOST_ROWS = 8192  # of one batch: more of them tell the same


@dataclass(frozen=True)
class Patches:
    """How a convolution goes over its input; called with one [batch, channels, *map], it gives rows [n, channels * k].

    `pads` None: as many as keep the map's size divided by the stride, the odd one at the end, or `at_start`.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    at_start: bool = False

    def __call__(self, array: Array) -> Array:
        spans = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]
        pads = self.pads if self.pads is not None else self._same(array.shape[2:], spans)
        axes = tuple(range(2, array.ndim))
        windows = sliding_window_view(np.pad(array, ((0, 0), (0, 0), *pads)), spans, axis=axes)
        places = math.prod(
            -(-size // step) for size, step in zip(windows.shape[2 : array.ndim], self.strides, strict=True)
        )
        apart = math.ceil((len(array) * places / MOST_ROWS) ** (1 / len(axes)))
        steps = (*(step * apart for step in self.strides), *self.dilations)
        windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
        rows: Array = np.moveaxis(windows, 1, array.ndim - 1).reshape(-1, array.shape[1] * math.prod(self.kernel))
        return rows

    def _same(self, sizes: Sequence[int], spans: Sequence[int]) -> list[tuple[int, int]]:
        pads = []
        for size, span, step in zip(sizes, spans, self.strides, strict=True):
            total = max((-(-size // step) - 1) * step + span - size, 0)
            less, more = total // 2, total - total // 2
            pads.append((more, less) if self.at_start else (less, more))
        return pads


@dataclass(frozen=True)
class Source:
    """A value of a graph, and the patches that it is cut into; None: its rows are taken along its last axis."""

    value: str
    patches: Patches | None = None

    def rows(self, array: Array) -> Array:
        """What goes into each sum, float32 [n, K]."""
        found = array.reshape(-1, array.shape[-1]) if self.patches is None else self.patches(array)
        return found.astype(np.float32)


class Learning(Protocol):
    """Something that learns from sources, each with so many rows of moments."""

    @property
    def sources(self) -> tuple[Hashable, ...]: ...

    @property
    def rows(self) -> int: ...


Job = TypeVar("Job", bound=Learning)


def learn(
    model: onnx.ModelProto, like: Payload, sources: Collection[Source], batches: Iterable[Tensors], threads: int = 1
) -> dict[Source, Array]:
    """The sum of xᵀx over all rows x of each source, float64 [K, K].

    `like` tells what the model is called. DataError when a batch does not fit, or a value is NaN or infinite.
    """
    sums: dict[Source, Array] = {}
    of_value: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        of_value[source.value].append(source)

    def see(name: str, array: Array) -> None:
        for source in of_value[name]:
            rows = source.rows(array)
            found = rows.T @ rows
            sums[source] = sums[source] + found if source in sums else found.astype(np.float64)

    watch(model, like, sorted(of_value), batches, see, threads)
    return sums


def groups(jobs: Iterable[Job], limit_bytes: int) -> Iterator[list[Job]]:
    """The jobs in order, cut so that the moments of each group take no more than the limit."""
    group: list[Job] = []
    held: dict[Hashable, int] = {}
    for job in jobs:
        wanted = dict.fromkeys(job.sources, 8 * job.rows**2)
        if group and sum((held | wanted).values()) > limit_bytes:
            yield group
            group, held = [], {}
        group.append(job)
        held |= wanted
    if group:
        yield group


def patches(node: onnx.NodeProto, kernel: Sequence[int]) -> Patches | None:
    """How a Conv with kernels [out, in, *size] goes over its input; None where it does so in groups."""
    told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    size = tuple(kernel[2:])
    if told.get("group", 1) != 1 or not size:
        return None
    ones = (1,) * len(size)
    way = told.get("auto_pad", b"NOTSET").decode()
    flat = tuple(told.get("pads", (0,) * 2 * len(size))) if way == "NOTSET" else (0,) * 2 * len(size)
    pads = None if way.startswith("SAME") else tuple(zip(flat[: len(size)], flat[len(size) :], strict=True))
    steps, spread = tuple(told.get("strides", ones)), tuple(told.get("dilations", ones))
    return Patches(size, steps, spread, pads, at_start=way == "SAME_LOWER")
