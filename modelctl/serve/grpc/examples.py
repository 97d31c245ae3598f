"""Classify and Regress of TensorFlow Serving's `PredictionService`: features in, labels and scores or numbers out.

The rules are those of its REST API (`serve.examples`). A feature's list is of the kind that its input's datatype has in
TensorFlow's records: floats, integers and truths (0 or 1) in `int64_list`, texts. Sources: classification.proto,
regression.proto and input.proto of TensorFlow Serving, example.proto and feature.proto of TensorFlow.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from modelctl.serve import examples
from modelctl.serve.grpc.calls import METHOD, CallRequest
from modelctl.serve.grpc.contents import from_list
from modelctl.serve.grpc.inference import kind_of, time_left, well
from modelctl.serve.grpc.messages import message, parsed
from modelctl.serve.grpc.tensorflow import SIGNATURE, check_signature, lead, tell
from modelctl.serve.http import Answer, App, Handler, Outputs, Request, Route
from modelctl.serve.models import Model
from modelctl.serve.predict import check_names
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import Array, Datatype

LISTS = {"f": "float_list", "V": "float_list", "i": "int64_list", "u": "int64_list", "b": "int64_list"}  # V: BF16
Write = Callable[[Model, Outputs], Answer]


def routes(app: App) -> Iterable[Route]:
    """The methods of the service."""
    for verb, kind, write in (
        ("Classify", "ClassificationRequest", _classes),
        ("Regress", "RegressionRequest", _numbers),
    ):
        path = f"/tensorflow.serving.PredictionService/{verb}"
        yield Route(METHOD, path, lead(app, kind, partial(_asked, kind, f"tensorflow/serving/{verb.lower()}", write)))


def _asked(kind: str, method: str, write: Write, app: App, model: Model) -> Handler:
    def ask(request: Request) -> None:
        assert isinstance(request, CallRequest)
        request.model = model
        asked = parsed(message(f"tensorflow.serving.{kind}"), request.body)
        check_signature(asked.model_spec, method)
        app.run(model, read(asked.input, model), request, partial(write, model), time_left(request))

    return ask


def read(given: Any, model: Model) -> dict[str, Array]:
    """The inputs that a message's examples give, a row each; `Refused` says what is wrong."""
    held, context = given.example_list_with_context, given.example_list_with_context.context
    alone = [one.features.feature for one in given.example_list.examples or held.examples]
    rows = examples.rows(context.features.feature, context.ByteSize(), alone)
    if not rows:
        raise Refused("there are no examples")
    for row in rows:
        check_names(row, model)
    return {name: _input(name, [row[name] for row in rows], model) for name in model.inputs}


def _input(name: str, features: list[Any], model: Model) -> Array:
    spec = model.inputs[name]
    kind = kind_of(spec.dtype)
    lists = [_values(name, one, kind) for one in features]
    counts = {len(one) for one in lists}
    if len(counts) > 1:
        raise Refused(f"feature {name!r} has {min(counts)} values in one example and {max(counts)} in another")
    shape = (len(lists), *examples.shape_of(name, counts.pop(), spec))
    flat = list(chain.from_iterable(lists))
    with np.errstate(over="ignore"):
        array = from_list(name, flat, kind, shape)
    if kind.dtype.kind in "fV" and np.isfinite(array).sum() != np.isfinite(flat).sum():
        raise Refused(f"feature {name!r}: a value is out of {kind.word}'s range")
    return array


def _values(name: str, feature: Any, kind: Datatype) -> Any:
    """The values of a feature, in the list that its input's datatype goes into."""
    wanted = "bytes_list" if kind.word == "BYTES" else LISTS[kind.dtype.kind]
    if feature.WhichOneof("kind") != wanted:
        raise Refused(
            f"feature {name!r}: {kind.word} goes into {wanted}, not into {feature.WhichOneof('kind') or 'none'}"
        )
    values = getattr(feature, wanted).value
    if kind.word == "BOOL" and not {*values} <= {0, 1}:
        raise Refused(f"feature {name!r}: a BOOL is neither 0 nor 1")
    return values


def _classes(model: Model, outputs: Outputs) -> Answer:
    """Of each example every class."""
    answer = message("tensorflow.serving.ClassificationResponse")()
    tell(answer.model_spec, model, SIGNATURE)
    labels, rows = examples.classes(model, outputs)
    for row in rows:
        found = answer.result.classifications.add().classes
        for label, score in zip(labels, row, strict=True):
            found.add(label=label, score=score)
    return well(answer)


def _numbers(model: Model, outputs: Outputs) -> Answer:
    """One number for each example."""
    answer = message("tensorflow.serving.RegressionResponse")()
    tell(answer.model_spec, model, SIGNATURE)
    for value in examples.numbers(model, outputs).tolist():
        answer.result.regressions.add(value=value)
    return well(answer)
