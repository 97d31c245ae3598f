"""A teacher's answers, computed once, as what is learned from them: logits."""

import numpy as np

from modelctl.data import Samples
from modelctl.data.samples import Array
from modelctl.errors import UnsupportedError
from modelctl.graph import measure
from modelctl.graph.session import Session
from modelctl.progress import Progress, silent

SMALLEST = float(np.finfo(np.float32).tiny)  # of a probability, before its logarithm is taken


def logits(session: Session, samples: Samples, learner: str, progress: Progress = silent) -> tuple[Array, str]:
    """What a model answers to all samples, float32 [N, classes], and what its answers were: logits or probabilities.

    Of probabilities the logarithms serve as well. UnsupportedError, naming the step that learns, where they are
    neither.
    """
    found = measure.answers(session, samples, progress)
    if found.ndim != 2 or found.shape[1] < 2 or found.dtype.kind != "f":
        told = f"{found.dtype}[{','.join(map(str, found.shape))}]"
        raise UnsupportedError(f"{session.name}: answers {told}, and {learner} learns from [batch, classes]")
    found = found.astype(np.float32)
    if are_probabilities(found):
        return np.log(np.maximum(found, SMALLEST)), "probabilities"
    return found, "logits"


def are_probabilities(answers: Array) -> bool:
    """Whether answers [N, classes] are shares of one, and no logits."""
    return bool(answers.min() >= 0 and np.allclose(answers.sum(axis=1), 1, atol=1e-3))
