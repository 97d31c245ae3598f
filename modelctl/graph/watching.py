"""Values inside a graph, seen batch by batch while onnxruntime runs it, so that memory does not grow with samples."""

from collections.abc import Callable, Collection, Iterable

import numpy as np
import onnx

from modelctl.artifact import Payload
from modelctl.data.samples import Array
from modelctl.errors import DataError
from modelctl.formats import onnx as onnx_format
from modelctl.graph.session import Session, Tensors

Batches = Callable[[], Iterable[Tensors]]  # all batches from the start, each time it is called


def watch(
    model: onnx.ModelProto,
    like: Payload,
    values: Collection[str],
    batches: Iterable[Tensors],
    see: Callable[[str, Array], None],
    threads: int = 1,
) -> None:
    """Give `see` the name and the numbers of each of `values`, for one batch after another.

    `like` tells what the model is called. DataError when a batch does not fit, or a value is NaN or infinite.
    """
    inputs = {one.name for one in model.graph.input}
    inner = [name for name in values if name not in inputs]
    session = Session(_cut(model, like, inner), threads) if inner else None
    for feeds in batches:
        seen = {name: feeds[name] for name in values if name in inputs}
        for name, array in (seen | (session.run(feeds) if session else {})).items():
            if not np.isfinite(array).all():
                raise DataError(f"{like.manifest.files[0].path}: {name!r} is NaN or infinite on these samples")
            see(name, array)


def moments(
    model: onnx.ModelProto, like: Payload, values: Collection[str], batches: Iterable[Tensors], threads: int = 1
) -> dict[str, Array]:
    """The sum of xᵀx over all rows x of each value, float64 [K, K] for a value [..., K], as `watch` sees it."""
    sums: dict[str, Array] = {}

    def see(name: str, array: Array) -> None:
        rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
        if name not in sums:
            sums[name] = np.zeros((rows.shape[1],) * 2)
        sums[name] += rows.T @ rows

    watch(model, like, values, batches, see, threads)
    return sums


def _cut(model: onnx.ModelProto, like: Payload, values: Collection[str]) -> Payload:
    """The model with these values for its outputs; the model itself is as before afterwards."""
    outputs = list(model.graph.output)
    del model.graph.output[:]
    try:
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
        return onnx_format.payload_of(model, like)
    finally:
        del model.graph.output[:]
        model.graph.output.extend(outputs)
