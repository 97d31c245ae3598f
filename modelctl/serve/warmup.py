"""What is found out about a model before it serves: how long it takes, and whether requests can share a run of it.

Rows of two requests may go through a model together only if the answer for a row does not depend on the rows beside it.
That is not to be read off the graph (a recurrent net's first dimension may be time; dynamic quantization scales by the
largest value of all rows), so it is tried: three different rows, of very different size, one by one and together.
"""

import time

import numpy as np

from modelctl.errors import DataError
from modelctl.manifest import TensorSpec
from modelctl.serve.batching import Pace, Run
from modelctl.serve.tensors import Array, datatype_of

ROWS = 3
OTHER_FREE = (8, 32, 224, 1)  # sizes tried for free dimensions that are not the number of rows
MEASURE_S = 0.05
TOLERANCE = 1e-4  # relative to the largest value of an output

Feeds = dict[str, Array]


def warm_up(inputs: tuple[TensorSpec, ...], run: Run) -> Pace:
    """Run a model on made-up inputs; what no made-up input suits gets a thread of its own and shares no run."""
    for size in OTHER_FREE:
        rows = [_made_up(inputs, size, seed) for seed in range(ROWS)]
        try:
            return Pace(
                run_s=_measured(run, rows[0]),
                elements=sum(one.size for one in rows[0].values()),
                rows_are_independent=_rows_named(inputs) is not None and _independent(run, rows),
                free=size,
            )
        except DataError:
            continue
    return Pace(run_s=float("inf"), elements=0, rows_are_independent=False)


def _rows_named(inputs: tuple[TensorSpec, ...]) -> str | None:
    """The free dimension that comes first in every input, and nowhere else."""
    names = {spec.shape[0] if spec.shape else 0 for spec in inputs}
    name = names.pop() if len(names) == 1 else 0
    if not isinstance(name, str) or any(name in spec.shape[1:] for spec in inputs):
        return None
    return name


def _made_up(inputs: tuple[TensorSpec, ...], other: int, seed: int) -> Feeds:
    """One row for each input, its values of a size that differs from seed to seed; whole numbers are 0 and 1."""
    chance = np.random.default_rng(seed)
    feeds: Feeds = {}
    for spec in inputs:
        shape = [size if isinstance(size, int) else (1 if axis == 0 else other) for axis, size in enumerate(spec.shape)]
        kind = datatype_of(spec.dtype)
        assert kind is not None, spec
        if kind.word == "BYTES":
            feeds[spec.name] = np.full(shape, "01"[seed % 2], dtype=object)
        elif kind.dtype.kind in "iub":
            feeds[spec.name] = np.asarray(chance.integers(0, 2, shape), dtype=kind.dtype)
        else:
            scale = (1.0, 10.0, 0.1)[seed % 3]
            feeds[spec.name] = np.asarray(chance.standard_normal(shape) * scale, dtype=kind.dtype)
    return feeds


def _measured(run: Run, feeds: Feeds) -> float:
    """The median time of one run, in seconds, the first one not counted."""
    run(feeds)
    taken: list[float] = []
    began = time.perf_counter()
    while not taken or (len(taken) < 50 and time.perf_counter() - began < MEASURE_S):
        start = time.perf_counter()
        run(feeds)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def _independent(run: Run, rows: list[Feeds]) -> bool:
    """Whether rows give together what they give one by one."""
    alone = [run(row) for row in rows]
    try:
        together = run({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    except DataError:
        return False
    return all(_same([one[name] for one in alone], whole) for name, whole in together.items())


def _same(parts: list[Array], whole: Array) -> bool:
    if any(part.ndim == 0 or part.shape[0] != 1 for part in parts):
        return False
    joined = np.concatenate(parts) if len({part.shape for part in parts}) == 1 else None
    if joined is None or joined.shape != whole.shape:
        return False
    if joined.dtype.kind in "OiubSU":
        return bool((joined == whole).all())
    return all(_close(part.astype(np.float64), row) for part, row in zip(joined, whole.astype(np.float64), strict=True))


def _close(part: Array, row: Array) -> bool:
    finite = np.abs(part[np.isfinite(part)])
    spread = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(part, row, rtol=0.0, atol=TOLERANCE * spread + 1e-9, equal_nan=True))
