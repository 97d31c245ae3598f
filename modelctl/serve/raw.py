"""The bodies of `/predict` for a model that declares what comes before it: raw instances, by Content-Type.

    image/*                    a picture
    text/plain, text/csv       a text, in UTF-8; rows, the first line naming the columns
    multipart/form-data        pictures, or the fields of one instance
    application/json           {"instances": [instance, …]}, a list of instances, or one
    application/msgpack        the same; a picture may be bytes

An instance is what `processing.before` takes. `{"inputs": …}` are tensors as without a declaration. A body of a type
that says nothing is a picture if it begins as one, else JSON.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from modelctl import chains
from modelctl.errors import DataError
from modelctl.processing import tables
from modelctl.processing.before import Before
from modelctl.serve import packed
from modelctl.serve.multipart import Part, parts
from modelctl.serve.refusal import Refused, told
from modelctl.serve.tensors import parse_json

_SAYS_NOTHING = frozenset({b"", b"application/octet-stream", b"application/x-www-form-urlencoded"})
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")


class Asked(NamedTuple):
    """What a body asks: raw instances, or a document with tensors in it."""

    instances: list[Any] | None
    document: Any = None


def media_type(content_type: bytes) -> bytes:
    """`text/csv` of `Text/CSV; header=absent`."""
    return content_type.partition(b";")[0].strip().lower()


def read(body: bytes, content_type: bytes, before: Before | None) -> Asked:
    """What a body of that type asks; `Refused` 400 where it is not sound, 415 for a type that is not read."""
    kind = media_type(content_type)
    if kind in _SAYS_NOTHING and before is not None and "image" in before.kinds and body.startswith(_PICTURES):
        kind = b"image/*"
    if kind == b"application/json" or kind in _SAYS_NOTHING or kind.endswith(b"+json"):
        return _document(parse_json(body), before)
    if kind in packed.NAMES:
        return _document(packed.parse(body), before)
    reader = _READERS.get(b"image/*" if kind.startswith(b"image/") else kind)
    if reader is None or before is None:
        known = "JSON or MessagePack" if before is None else "pictures, forms, text, CSV, JSON and MessagePack"
        raise Refused(f"a body of type {told(kind.decode('latin-1'))} is not read here, but {known}", 415)
    try:
        return Asked(reader(body, content_type, before))
    except DataError as error:
        raise Refused(error.message) from error


def _document(asked: Any, before: Before | None) -> Asked:
    if before is None:
        return Asked(None, asked)
    if type(asked) is dict:
        if "instances" in asked:
            instances = asked["instances"]
            if type(instances) is not list:
                raise Refused('"instances" is not a list')
            return Asked(instances)
        return Asked(None, asked) if "inputs" in asked else Asked([asked])
    if type(asked) is list and (before.kinds != ["table"] or (asked and type(asked[0]) in (list, dict))):
        return Asked(asked)
    return Asked([asked])


def _picture(body: bytes, _: bytes, before: Before) -> list[Any]:
    if before.kinds != ["image"]:
        raise Refused(f"a picture alone is not what the model takes: {_told_of(before)}", 415)
    return [body]


def _text(body: bytes, _: bytes, before: Before) -> list[Any]:
    if before.kinds != ["text"]:
        raise Refused(f"a text alone is not what the model takes: {_told_of(before)}", 415)
    return [_decoded(body)]


def _csv(body: bytes, content_type: bytes, before: Before) -> list[Any]:
    found = [one for one in before.entries if isinstance(one, chains.Table)]
    if len(found) != len(before.entries):
        raise Refused(f"rows alone are not what the model takes: {_told_of(before)}", 415)
    said = content_type.lower().replace(b" ", b"")
    header = False if b"header=absent" in said else True if b"header=present" in said else None
    return list(tables.of_csv(_decoded(body), found, header))


def _form(body: bytes, content_type: bytes, before: Before) -> list[Any]:
    fields = parts(body, content_type)
    if before.kinds == ["image"]:
        typed = [one.name for one in fields if one.filename is None]
        if typed:
            raise Refused(f"the field {told(typed[0])} is no file, and the model takes pictures")
        return [one.content for one in fields]
    if before.kinds == ["text"]:
        return [one.text for one in fields]
    if before.kinds == ["table"] and len(fields) == 1 and fields[0].filename is not None:
        return _csv(fields[0].content, b"", before)
    return [_instance(fields, before)]


def _instance(fields: list[Part], before: Before) -> dict[str, Any]:
    """One instance out of the fields of a form."""
    pictures = {one.input for one in before.entries if isinstance(one, chains.Image)}
    numbers = before.numbers
    found: dict[str, Any] = {}
    for one in fields:
        if one.name in found:
            raise Refused(f"the field {told(one.name)} is given twice")
        if one.name in pictures:
            found[one.name] = one.content
        else:
            found[one.name] = tables.number(one.text) if one.name in numbers else one.text
    return found


def _told_of(before: Before) -> str:
    return ", ".join(f"{kind} {entry.input}" for kind, entry in zip(before.kinds, before.entries, strict=True))


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("the text is not UTF-8") from error


_READERS: dict[bytes, Callable[[bytes, bytes, Before], list[Any]]] = {
    b"image/*": _picture,
    b"text/plain": _text,
    b"text/csv": _csv,
    b"multipart/form-data": _form,
}
