"""A model's tensors as JSON Schema (2020-12), and a request of each form that is answered when it is sent.

A dimension that is fixed has its size in the schema; a free one is of any size from 1 on, and in an example of the size
that the model was warmed up with. What a schema can't say is left to the server: that lists of a free length are
all of one length, that a free dimension is the same in all inputs, that `data` has as many elements as `shape` says.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from modelctl.manifest import TensorSpec
from modelctl.serve.models import Model
from modelctl.serve.tensors import datatype_of

Schema = dict[str, Any]

_SIGNATURE: Schema = {"enum": ["", "serving_default"]}
MOST_ELEMENTS = 1024  # of an example: a document is read by people, too
# The smallest numbers that are rounded to infinity: half a step above the largest that there is.
_ROUNDED_AWAY = {"FP32": (2 - 2**-24) * 2.0**127, "FP16": (2 - 2**-11) * 2.0**15}
JSON_LESS = "BF16"  # the datatype that has no form in JSON


def key(*parts: str) -> str:
    """A name as keys of components and operations may be: of other letters, their numbers."""
    return re.sub(r"[^A-Za-z0-9._-]", lambda found: f".{ord(found[0]):x}.", ".".join(parts))


def ref(model: Model, what: str) -> str:
    """Where a model's own schema stands in the document."""
    return f"#/components/schemas/{key(what, model.name, model.version)}"


def element(dtype: str, answered: bool = False) -> Schema:
    """One element of a tensor in JSON; where it is `answered`, a float may be null, for NaN or an infinity."""
    kind = datatype_of(dtype)
    assert kind is not None, dtype  # a model with another dtype is not taken in
    if kind.word == "BOOL":
        return {"type": "boolean"}
    if kind.word == "BYTES":
        return {"type": "string"}
    if kind.dtype.kind in "iu":
        bounds = np.iinfo(kind.dtype)
        return {"type": _numbers("integer", answered), "minimum": int(bounds.min), "maximum": int(bounds.max)}
    if answered:
        return {"type": ["number", "null"]}
    if kind.word not in _ROUNDED_AWAY:
        return {"type": _numbers("number")}
    return {
        "type": _numbers("number"),
        "exclusiveMinimum": -_ROUNDED_AWAY[kind.word],
        "exclusiveMaximum": _ROUNDED_AWAY[kind.word],
    }


def _numbers(word: str, answered: bool = False) -> Any:
    """The types of a number: a truth is taken for 0 or 1, as numpy takes it."""
    return word if answered else [word, "boolean"]


def nested(spec: TensorSpec, answered: bool = False, first: int = 0) -> Schema:
    """A tensor as nested lists, or what lies below its `first` dimensions."""
    schema = element(spec.dtype, answered)
    for size in reversed(spec.shape[first:]):
        schema = {"type": "array", "items": schema}
        if not answered:
            schema["minItems"] = 1
        if isinstance(size, int):
            schema |= {"minItems": size, "maxItems": size}
    return schema


def named(specs: Mapping[str, TensorSpec], answered: bool = False, first: int = 0) -> Schema:
    """Tensors by name."""
    found = {name: nested(spec, answered, first) for name, spec in specs.items()}
    return {"type": "object", "properties": found, "required": list(found), "additionalProperties": False}


def has_json(model: Model) -> bool:
    """Whether all that goes into a model can be said in JSON."""
    return all(_word(spec) != JSON_LESS for spec in model.inputs.values())


def has_rows(specs: Mapping[str, TensorSpec]) -> bool:
    """Whether all tensors have a first dimension, so that they can be given row by row."""
    return all(spec.shape for spec in specs.values())


def predict_request(model: Model) -> Schema:
    """The tensors of `/predict`: `instances`, else `inputs`, else the only input by itself."""
    rows, columns = instances(model), inputs(model)
    forms: list[Schema] = [{"type": "object", "required": ["inputs"], "properties": {"inputs": columns}}]
    if rows is not None:
        forms[0]["properties"]["instances"] = False
        forms.append({"type": "object", "required": ["instances"], "properties": {"instances": rows}})
    return {"anyOf": [*forms, nested(_only(model.inputs))] if len(model.inputs) == 1 else forms}


def tensorflow_predict(model: Model) -> Schema:
    """The body of TensorFlow Serving's `:predict`: either rows or columns."""
    properties: Schema = {"signature_name": _SIGNATURE, "inputs": inputs(model)}
    forms = [{"required": ["inputs"]}]
    rows = instances(model)
    if rows is not None:
        properties["instances"] = rows
        forms.append({"required": ["instances"]})
    return {"type": "object", "properties": properties, "oneOf": forms}


def tensorflow_examples(model: Model) -> Schema:
    """The body of TensorFlow Serving's `:classify` and `:regress`: features, in `context` those of all examples."""
    named = {name: _feature(spec) for name, spec in model.inputs.items()}
    features: Schema = {"type": "object", "properties": named, "additionalProperties": False}
    examples = {"type": "array", "minItems": 1, "items": features}
    properties = {"signature_name": _SIGNATURE, "context": features, "examples": examples}
    all_of_them, none_of_them = features | {"required": list(named)}, {"maxProperties": 0}
    forms = [
        {"properties": {"context": none_of_them, "examples": {"items": all_of_them}}},
        {"required": ["context"], "properties": {"context": all_of_them, "examples": {"items": none_of_them}}},
    ]
    return {"type": "object", "required": ["examples"], "properties": properties, "anyOf": forms}


def _feature(spec: TensorSpec) -> Schema:
    """A row of an input as a flat list, or a single number."""
    one = element(spec.dtype)
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    count = math.prod(sizes)
    if len(sizes) < len(spec.shape) - 1:
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": max(count, 1)}]}
    flat = {"type": "array", "items": one, "minItems": count, "maxItems": count}
    return {"anyOf": [one, flat]} if count == 1 else flat


def inputs(model: Model) -> Schema:
    """`inputs` as `/predict` and TensorFlow Serving's `:predict` take it: by name, or the only one by itself."""
    by_name = named(model.inputs)
    return {"anyOf": [by_name, nested(_only(model.inputs))]} if len(model.inputs) == 1 else by_name


def instances(model: Model) -> Schema | None:
    """`instances`: one row after the other, by name or, of a single input, by itself; None where there are no rows."""
    if not has_rows(model.inputs):
        return None
    by_name = named(model.inputs, first=1)
    rows: Schema = {"type": "array", "minItems": 1, "items": by_name}
    first = next(iter(model.inputs.values())).shape[0]
    if isinstance(first, int):
        rows |= {"minItems": first, "maxItems": first}
    if len(model.inputs) > 1:
        return rows
    return {"anyOf": [rows, rows | {"items": nested(_only(model.inputs), first=1)}]}


def infer_request(model: Model) -> Schema:
    """The JSON of an inference request of the Open Inference Protocol."""
    tensors = [_tensor(spec) for spec in model.inputs.values()]
    given: Schema = {"type": "array", "minItems": len(tensors), "maxItems": len(tensors)}
    given["items"] = tensors[0] if len(tensors) == 1 else {"oneOf": tensors}
    if len(tensors) > 1:
        given["allOf"] = [{"contains": {"properties": {"name": {"const": name}}}} for name in model.inputs]
    wanted = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": list(model.outputs)}, "parameters": {"type": ["object", "null"]}},
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"], "description": "comes back with the answer"},
            "parameters": {"type": ["object", "null"], "description": "`binary_data_output`: outputs as raw bytes"},
            "inputs": given,
            "outputs": {
                "type": ["array", "null"],
                "items": wanted,
                "description": "the outputs wanted; all of them by default",
            },
        },
    }


def _tensor(spec: TensorSpec) -> Schema:
    sizes = [{"const": one} if isinstance(one, int) else {"type": "integer", "minimum": 1} for one in spec.shape]
    shape: Schema = {"type": "array", "minItems": len(sizes), "maxItems": len(sizes)}
    if sizes:
        shape["prefixItems"] = sizes
    data = {"anyOf": [{"type": "array", "items": element(spec.dtype)}, nested(spec)]}
    return {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"const": spec.name},
            "shape": shape,
            "datatype": {"const": _word(spec)},
            "parameters": {"type": ["object", "null"], "description": "`binary_data_size`: bytes behind the JSON"},
            "data": data,
        },
    }


def infer_answer(model: Model) -> Schema:
    """The JSON of an inference answer."""
    tensors = [
        {
            "type": "object",
            "required": ["name", "datatype", "shape"],
            "properties": {
                "name": {"const": spec.name},
                "datatype": {"const": _word(spec)},
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                "data": {"type": "array", "items": element(spec.dtype, answered=True)},
                "parameters": {"type": "object"},
            },
        }
        for spec in model.outputs.values()
    ]
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": model.name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": tensors[0] if len(tensors) == 1 else {"oneOf": tensors}},
        },
    }


def sample(model: Model) -> dict[str, np.ndarray[Any, Any]] | None:
    """One row for each input that the model can be asked with; None where it is too long, or none is known."""
    shapes = {
        name: [
            one if isinstance(one, int) else 1 if axis == 0 else model.pace.free for axis, one in enumerate(spec.shape)
        ]
        for name, spec in model.inputs.items()
    }
    if not model.pace.free or sum(math.prod(shape) for shape in shapes.values()) > MOST_ELEMENTS:
        return None
    return {name: _filled(model.inputs[name], shape) for name, shape in shapes.items()}


def _filled(spec: TensorSpec, shape: list[int]) -> np.ndarray[Any, Any]:
    """Tenths from 0.1 to 0.9, ones, truths or words."""
    kind = datatype_of(spec.dtype)
    assert kind is not None
    count = math.prod(shape)
    if kind.word == "BYTES":
        return np.full(shape, "text", dtype=object)
    if kind.dtype.kind in "iub":
        return np.ones(shape, kind.dtype)
    return np.array([(place % 9 + 1) / 10 for place in range(count)]).reshape(shape)


def infer_example(model: Model) -> Any:
    """A whole inference request; None where there is no example."""
    rows = sample(model)
    if rows is None:
        return None
    told = []
    for name, row in rows.items():
        spec = model.inputs[name]
        told.append({"name": name, "shape": list(row.shape), "datatype": _word(spec), "data": row.reshape(-1).tolist()})
    return {"inputs": told}


def _only(specs: Mapping[str, TensorSpec]) -> TensorSpec:
    (spec,) = specs.values()
    return spec


def _word(spec: TensorSpec) -> str:
    kind = datatype_of(spec.dtype)
    assert kind is not None
    return kind.word


OF_MODEL = {
    "InferRequest": infer_request,
    "InferAnswer": infer_answer,
    "PredictRequest": predict_request,
    "TensorflowPredict": tensorflow_predict,
    "TensorflowExamples": tensorflow_examples,
}
