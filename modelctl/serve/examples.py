"""Examples of features, which TensorFlow Serving's REST API and its gRPC classify and regress: the rules of both.

An example is a row. Its features are flat lists, by the names of the inputs, with as many values as a row of those has.
A context's features are in every example. Classes and numbers are what is answered, in the order of the examples.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from modelctl.chains import Argmax, Sigmoid, Softmax, Threshold, TopK
from modelctl.manifest import TensorSpec
from modelctl.processing.after import After
from modelctl.serve.http import Outputs
from modelctl.serve.models import Model
from modelctl.serve.refusal import Refused, told
from modelctl.serve.tensors import Array

REPEATED_BYTES = 32 << 20  # of a context, as often as there are examples: a short request could ask for any memory

Value = TypeVar("Value")


def rows(
    context: Mapping[str, Value], size_bytes: int, examples: Sequence[Mapping[str, Value]]
) -> list[dict[str, Value]]:
    """The features of each example, those of the context, of so many bytes, among them.

    `Refused` where a feature is given twice, 413 where a large context is given to many.
    """
    if size_bytes * len(examples) > REPEATED_BYTES:
        raise Refused("the context is too large for so many examples", 413)
    twice = [name for one in examples for name in one if name in context]
    if twice:
        raise Refused(f"feature {told(twice[0])} is in the context and in an example")
    return [{**context, **one} for one in examples]


def shape_of(name: str, count: int, spec: TensorSpec) -> list[int]:
    """The shape of one row of an input, for a feature of so many values; `Refused` where they do not fit."""
    row = spec.shape[1:]
    fixed = math.prod(one for one in row if isinstance(one, int))
    free = sum(not isinstance(one, int) for one in row)
    if not count or free > 1 or (fixed != count if not free else not fixed or count % fixed):
        raise Refused(f"feature {told(name)} has {count} values, a row of the input has the shape {list(row)}")
    return [one if isinstance(one, int) else count // fixed for one in row]


def classes(model: Model, outputs: Outputs) -> tuple[Sequence[str], Iterable[Any]]:
    """The label of each class, empty where none is declared, and of each example the scores, scaled as declared."""
    name, scores = _floats(model, outputs, "classify", lambda one: one.ndim == 2)
    entries = [one for one in model.manifest.postprocess if one.output == name]
    scaling = [one for one in entries if isinstance(one, Softmax | Sigmoid)]
    found = After(scaling).predictions(outputs, {}) if scaling else scores
    labels = [one.labels for one in entries if isinstance(one, Argmax | TopK | Threshold)]
    fits = labels and len(labels[0]) == scores.shape[1]
    return labels[0] if fits else [""] * scores.shape[1], found


def numbers(model: Model, outputs: Outputs) -> Array:
    """One number for each example."""
    _, values = _floats(model, outputs, "regress", lambda one: one.ndim > 0 and one.size == len(one))
    return np.ascontiguousarray(values.reshape(-1))


def _floats(model: Model, outputs: Outputs, verb: str, fits: Callable[[Array], bool]) -> tuple[str, Array]:
    """The first output of floats that has the shape which a verb answers with."""
    for name in model.outputs:
        if outputs[name].dtype.kind == "f" and fits(outputs[name]):
            return name, outputs[name]
    raise Refused(f"{model.name} has no output to {verb} with; ask for a prediction")


def answers(verb: str, model: Model) -> bool:
    """Whether a model has an output that a verb can answer with."""
    shapes = [spec.shape for spec in model.outputs.values() if spec.dtype.startswith("float")]
    if verb == "classify":
        return any(len(shape) == 2 for shape in shapes)
    if verb == "regress":
        return any(shape and all(size == 1 for size in shape[1:]) for shape in shapes)
    return True
