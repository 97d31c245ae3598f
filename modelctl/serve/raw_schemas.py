"""What `/predict` takes and answers where a manifest declares what comes before and after the model, as JSON Schema."""

import base64
import struct
import zlib
from typing import Any

from modelctl import chains
from modelctl.processing.after import After
from modelctl.processing.before import Before
from modelctl.serve import schemas
from modelctl.serve.models import Model
from modelctl.serve.schemas import Schema

MSGPACK = "application/msgpack"
SIDE = 8  # pixels of the picture in an example


def request(model: Model) -> dict[str, Any]:
    """The content of a request, by media type."""
    before = model.declared.before if model.declared is not None else None
    if before is None:
        return {"application/json": {"schema": {"$ref": schemas.ref(model, "PredictRequest")}}, MSGPACK: {"schema": {}}}
    one = instance(before)
    rows = {"type": "array", "minItems": 1, "items": one}
    named = {"type": "object", "required": ["instances"], "properties": {"instances": rows}}
    tensors = {"inputs": schemas.inputs(model), "instances": False}
    columns = {"type": "object", "required": ["inputs"], "properties": tensors}
    whole = {"value": {"instances": [example(before)]}}
    found: dict[str, Any] = {
        "application/json": {"schema": {"anyOf": [named, columns, one]}, "examples": {"instances": whole}},
        MSGPACK: {"schema": {}},
        "multipart/form-data": {"schema": {"type": "object", "description": "pictures, or the fields of one instance"}},
    }
    if before.kinds == ["image"]:
        found["image/*"] = {"schema": {"description": "a picture"}}
    elif before.kinds == ["text"]:
        found["text/plain"] = {"schema": {"type": "string"}}
    elif set(before.kinds) == {"table"}:
        found["text/csv"] = {"schema": {"type": "string", "description": "the first line names the columns"}}
    return found


def answer(model: Model) -> Schema:
    """An answer: `predictions` where something is declared after the model, else its `outputs`."""
    after = model.declared.after if model.declared is not None else None
    if after is None:
        told: Schema = {"outputs": schemas.named(model.outputs, answered=True)}
    else:
        told = {"predictions": {"type": "array", "items": prediction(after)}}
    properties = {"model": {"$ref": "#/components/schemas/ModelDigest"}, **told}
    return {"type": "object", "required": list(properties), "properties": properties}


def instance(before: Before) -> Schema:
    """An instance: what the only entry takes, or an object with what all of them take."""
    if len(before.entries) == 1:
        return _taken(before.entries[0])
    properties: dict[str, Schema] = {}
    for entry in before.entries:
        properties |= _cells(entry) if isinstance(entry, chains.Table) else {entry.input: _taken(entry)}
    return {"type": "object", "properties": properties, "required": _needed(before), "additionalProperties": False}


def _needed(before: Before) -> list[str]:
    needed: list[str] = []
    for entry in before.entries:
        columns = entry.columns if isinstance(entry, chains.Table) else ()
        needed += [one.name for one in columns if one.missing is None] if columns else [entry.input]
    return needed


def _taken(entry: chains.Preprocess) -> Schema:
    if isinstance(entry, chains.Text):
        return {"type": "string"}
    if isinstance(entry, chains.Image):
        told = {"type": "string", "contentEncoding": "base64", "description": "a picture, or a data URL of one"}
        return {"type": "object", "required": ["b64"], "properties": {"b64": told}, "additionalProperties": False}
    cells = _cells(entry)
    needed = [one.name for one in entry.columns if one.missing is None]
    by_name = {"type": "object", "properties": cells, "required": needed, "additionalProperties": False}
    in_order = {"type": "array", "prefixItems": [*cells.values()], "minItems": len(cells), "maxItems": len(cells)}
    return {"anyOf": [by_name, in_order]}


def _cells(entry: chains.Table) -> dict[str, Schema]:
    return {column.name: _cell(column) for column in entry.columns}


def _cell(column: chains.Number | chains.Category) -> Schema:
    if isinstance(column, chains.Number):
        return {"type": "number" if column.missing is None else ["number", "null"]}
    if column.others:
        return {"type": ["string", "integer", "boolean", *(["null"] if column.missing is not None else [])]}
    return {"enum": [*column.values, *([None] if column.missing is not None else [])]}


def prediction(after: After) -> Schema:
    """What one row's answer looks like."""
    each = {name: _made(name, after) for name in after.outputs}
    if len(each) == 1:
        return next(iter(each.values()))
    return {"type": "object", "properties": each, "required": [*each]}


def _made(name: str, after: After) -> Schema:
    for entry in after.entries:
        if entry.output == name and isinstance(entry, chains.Argmax | chains.TopK | chains.Threshold):
            told: Schema = {
                "index": {"type": "integer"},
                "label": {"type": "string"},
                "score": {"type": ["number", "null"]},
            }
            one = {"type": "object", "required": ["index", "score"], "properties": told}
            many = {"type": "array", "items": one}
            return (
                one
                if isinstance(entry, chains.Argmax)
                else many
                if isinstance(entry, chains.TopK)
                else {"anyOf": [one, many]}
            )
    return {}


def example(before: Before) -> Any:
    """An instance that can be sent."""
    if len(before.entries) == 1:
        return _sample(before.entries[0])
    found: dict[str, Any] = {}
    for entry in before.entries:
        found |= _sample(entry) if isinstance(entry, chains.Table) else {entry.input: _sample(entry)}
    return found


def _sample(entry: chains.Preprocess) -> Any:
    if isinstance(entry, chains.Text):
        return "An example."
    if isinstance(entry, chains.Image):
        return {"b64": base64.b64encode(_picture()).decode()}
    return {one.name: _ordinary(one) if isinstance(one, chains.Number) else one.values[0] for one in entry.columns}


def _ordinary(column: chains.Number) -> float:
    """A number from the middle of a column."""
    if column.min is not None and column.max is not None:
        return (column.min + column.max) / 2
    return column.mean


def _picture() -> bytes:
    """A small gray picture, dark on the left, as PNG (RFC 2083)."""
    row = b"\0" + bytes(place * 255 // (SIDE - 1) for place in range(SIDE))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(row * SIDE)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
