"""Where two ways to run a model part: the first value inside the graph that differs.

Asked only when answers have turned out to differ: it costs one run of each with more outputs. Values are found by their
names; where the two have no names in common there is nothing to say.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx

from modelctl.artifact import Payload
from modelctl.errors import ArtifactError, DataError, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph.closeness import Array, Arrays, Tolerance, step_of
from modelctl.graph.session import Session

# From inputs, and the names that are asked for, to the values that have one of those names; not all of them need be.
Inside = Callable[[Arrays, Collection[str]], Mapping[str, Array]]


def inside(payload: Payload, threads: int = 1) -> Inside:
    """The values inside an ONNX model, by their names."""

    def values(feeds: Arrays, names: Collection[str]) -> Mapping[str, Array]:
        model = onnx_format.parse(payload)
        made = sorted(set(_makers(model)).intersection(names))
        if not made or model.ByteSize() > onnx_format.INLINE_LIMIT_BYTES:
            return {}
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        return Session(onnx_format.payload_of(model, payload), threads).run(feeds)

    return values


def _makers(model: onnx.ModelProto) -> dict[str, str]:
    """The operators that make the values inside, by the values' names, in the order of the graph."""
    return {name: node.op_type for node in model.graph.node for name in node.output if name}


def first_difference(
    payload: Payload,
    reference: Inside,
    feeds: Arrays,
    tolerance: Tolerance,
    *,
    threads: int = 1,
    otherwise: str | None = None,
) -> str | None:
    """Which value inside a model is the first to differ from the reference's of that name, and what operator makes it.

    None when that can't be told; `otherwise` when all values that both have, the outputs among them, are the same.
    """
    model = onnx_format.parse(payload)
    makers = _makers(model)
    try:
        wanted = reference(feeds, makers)
        found = inside(payload, threads)(feeds, wanted)
    except (DataError, ArtifactError, UnsupportedError):
        return None
    shared = [name for name in makers if name in wanted and name in found and _alike(wanted[name], found[name])]
    first = next((name for name in shared if _differs(wanted[name], found[name], tolerance)), None)
    if first is not None:
        return f"first differs at {first!r} ({makers[first]})"
    return otherwise if {value.name for value in model.graph.output} <= set(shared) else None


def _alike(wanted: Array, found: Array) -> bool:
    return (wanted.shape, wanted.dtype) == (found.shape, found.dtype)


def _differs(wanted: Array, found: Array, tolerance: Tolerance) -> bool:
    """Whether two values are further apart than answers may be, their spread that of all their numbers."""
    step = step_of(wanted.dtype)
    if not step:
        return not np.array_equal(wanted, found)
    left, right = wanted.astype(np.float64), found.astype(np.float64)
    good = np.isfinite(left)
    if not np.array_equal(left[~good], right[~good], equal_nan=True):
        return True
    left, right = left[good], right[good]
    if not left.size:
        return False
    allowed = tolerance.allowed(step, float(left.std()), float(np.abs(left).max()))
    return not float(np.abs(left - right).max()) <= allowed
