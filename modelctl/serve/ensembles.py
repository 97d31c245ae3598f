"""An ensemble: models in a row that answer as one, declared in a TOML file, which is served like a model's.

    name = "reader"                # by default the file's own
    version = "1"
    outputs = ["label"]            # by default all that the last model gives

    [[model]]
    source = "find.onnx"           # a file beside this one, sealed or not, or a ref
    inputs = { x = "picture" }     # which tensors its inputs are; by default those of their own names
    outputs = { y = "patch" }      # what its outputs are called from here on; by default as they are

A tensor that no model before gives is an input of the ensemble. Here the file is read; `links` runs what it says.
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from modelctl.errors import UsageError
from modelctl.reading import Small
from modelctl.stores.ref import looks_like_ref

SUFFIX = ".toml"
FILE = Small("an ensemble", 1 << 20, UsageError, '[[model]] with source = "a.onnx"')
MOST_MODELS = 64
FIRST_VERSION = "1"  # of a model that comes from a file; one from a store has its tag

Name = Annotated[str, Meta(min_length=1, max_length=1024)]


class Link(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of an ensemble; see the module's docstring."""

    source: Name
    inputs: dict[Name, Name] = {}
    outputs: dict[Name, Name] = {}


class Ensemble(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says."""

    name: Name | None = None
    version: Name = FIRST_VERSION
    outputs: Annotated[tuple[Name, ...], Meta(min_length=1)] | None = None
    model: Annotated[tuple[Link, ...], Meta(min_length=1, max_length=MOST_MODELS)]


def is_ensemble(source: str) -> bool:
    """Whether a source names an ensemble's file."""
    return source.endswith(SUFFIX) and not looks_like_ref(source)


def read(path: Path) -> tuple[Ensemble, bytes]:
    """What the file at `path` says, and its bytes; UsageError when it is not there, or says what we don't know."""
    text = FILE.data(path)
    plain = FILE.toml(FILE.decoded(text, path), path)
    try:
        told = msgspec.convert(plain, Ensemble)
    except msgspec.ValidationError as error:
        raise FILE.refused(path, f"no ensemble: {error}") from error
    for link in told.model:
        if is_ensemble(link.source):
            raise UsageError(f"{path}: {link.source} is an ensemble itself", "name its models instead")
    return told, text


def source_of(link: Link, path: Path) -> str:
    """Where the model of a link lies, for an ensemble that lies at `path`."""
    return link.source if looks_like_ref(link.source) else str(path.parent / link.source)
