"""The parity gate from raw input to answer: what is declared before and after a model, run with source and result.

Made-up instances go through the declared chain into both; the tensors that come out are held to the same tolerance as
in `graph.parity`, and the answers that are made of them are counted where they name the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelctl.errors import DataError, UsageError
from modelctl.graph.closeness import Answered, Judge, Tolerance
from modelctl.graph.parity import Function
from modelctl.manifest import TensorSpec
from modelctl.processing import made_up
from modelctl.processing.declared import Declared

INSTANCES = 12
BATCHES = (1, 3, 8)  # which are as many


def check(
    around: Declared,
    reference: Function,
    candidate: Function,
    inputs: Sequence[TensorSpec],
    tolerance: Tolerance,
    *,
    name: str,
    seed: int,
) -> dict[str, Any]:
    """What was measured: `instances`, and of their answers the share `alike`; CheckFailed where tensors differ.

    Something is declared before the model.

    UsageError where the source can't take what is made of an instance, or nothing can be made of its outputs;
    UnsupportedError for an extra that is missing.
    """
    before, after = around.before, around.after
    assert before is not None
    _ = before.makers  # an extra that is missing is told before anything is made up
    fixed = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)}
    batches = BATCHES if not fixed else (int(fixed.pop()),) * 3
    instances = made_up.instances(before.entries, sum(batches), seed)
    judged, alike, first = Judge(name, Tolerance(rtol=tolerance.rtol, atol=tolerance.atol, allow_vacuous=True)), 0, 0
    for size in batches:
        feeds = before.feeds(instances[first : first + size])
        first += size
        try:
            wanted = reference(feeds)
            found = candidate(feeds)
            answers = [after.predictions(one, feeds) for one in (wanted, found)] if after else [[], []]
        except DataError as error:
            raise UsageError(f"--preprocess, --postprocess: do not fit {name}: {error.message}") from error
        judged.add([Answered(f"{size} raw instances", feeds, dict(wanted), dict(found))])
        alike += sum(map(_alike, *answers))
    told: dict[str, Any] = {"instances": first}
    return told | ({"alike": round(alike / first, 6)} if after else {})


def _alike(one: Any, other: Any) -> bool:
    """Whether two predictions name the same; numbers were judged before."""
    if isinstance(one, Mapping):
        keys = [key for key in one if key != "score"]
        return all(_alike(one[key], other.get(key)) for key in keys)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return True if isinstance(one, np.ndarray | np.generic) else bool(one == other)
