"""`inspect`: what is this file, told by its manifest, its signature and its head; its content is not looked at."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from modelctl import lineage
from modelctl.artifact import Artifact
from modelctl.crypto import envelope, signing
from modelctl.errors import IntegrityError
from modelctl.manifest import TensorSpec
from modelctl.progress import Progress, silent
from modelctl.report import Report


def inspect(path: Path, progress: Progress = silent) -> Report:  # noqa: ARG001 - as every step
    """What can be told of the file at `path` without a key and without reading its bytes; whether it is so: `verify`.

    A foreign file is told to be one; of a sealed file, what its outer manifest tells and who may open it.
    ArtifactError when there is no such file, or it or its manifest is malformed; IntegrityError for a signature that is
    a link.
    """
    model = Artifact.open(path)
    told = msgspec.to_builtins(model.manifest)
    facts: dict[str, Any] = {
        "path": str(path),
        "kind": _kind(model),
        "name": model.name,
        "format": model.manifest.format,
        "digest": model.digest,
        "size_bytes": model.size_bytes,
        "parameters": model.manifest.metrics.get("parameters"),
        "manifest": model.manifest_sha256,
        "files": [told_file | {"found_bytes": _found_bytes(model, told_file["path"])} for told_file in told["files"]],
        "signature": _signature(model),
        "sealed": _sealed(model),
    }
    for name in ("inputs", "outputs", "preprocess", "postprocess", "made_by", "metrics", "annotations"):
        facts[name] = told[name]
    facts["chain"] = lineage.steps(model.manifest)
    return Report(subject=str(path), facts=facts, lines=tuple(_lines(model, facts)))


def _kind(model: Artifact) -> str:
    if model.manifest.format == "sealed":
        return "sealed artifact" if model.manifest_sha256 else "sealed file without a manifest"
    return "artifact" if model.manifest_sha256 else "foreign file"


def _found_bytes(model: Artifact, name: str) -> int | None:
    file = model.path.parent / name
    return file.stat().st_size if file.is_file() else None


def _signature(model: Artifact) -> dict[str, Any] | None:
    """Whose signatures there are, none of them checked; None when there is no signature."""
    if model.manifest_sha256 is None:
        return None
    text, signature = signing.sidecars(model)
    if signature is None:
        return None
    try:
        checked = signing.check_signature(text, signature, [], str(model.path))
    except IntegrityError as error:
        return {"keyids": [], "trouble": error.message}
    return {"keyids": [one.keyid for one in checked], "trouble": None}


def _sealed(model: Artifact) -> dict[str, Any] | None:
    """Who may open a sealed file, as its head says, and what its outer manifest says is inside."""
    if model.manifest.format != "sealed":
        return None
    header = envelope.header_of(model.path)
    stanzas = [{"type": one.__struct_config__.tag, "kid": one.kid} for one in header.stanzas]
    encryption = model.manifest.encryption
    inside = {
        "suite": encryption.suite if encryption else None,
        "manifest": encryption.manifest if encryption else None,
        "digest": encryption.digest if encryption else None,
    }
    return {"created_by": header.created_by, "recipients": stanzas, **inside}


def _lines(model: Artifact, facts: dict[str, Any]) -> Iterator[str]:
    size = lineage.megabytes(model.size_bytes)
    yield f"{model.path}  {facts['kind']}, {facts['format']}, {size}  sha256:{model.digest}"
    for file in facts["files"]:
        found = file["found_bytes"]
        odd = "" if found == file["size"] else "  missing" if found is None else f"  has {found} bytes"
        yield f"  file: {file['path']}  {file['size']} bytes{odd}"
    yield from (f"  input: {_spec(one)}" for one in model.manifest.inputs)
    yield from (f"  output: {_spec(one)}" for one in model.manifest.outputs)
    yield from (f"  before: {_entry(one)}" for one in facts["preprocess"])
    yield from (f"  after: {_entry(one)}" for one in facts["postprocess"])
    if made := model.manifest.made_by:
        yield f"  made by: {made.step} {made.version}"
        yield from (f"  {line}" for line in lineage.chain(model.manifest))
    if figures := lineage.figures(model.manifest.metrics):
        yield f"  figures: {', '.join(figures)}"
    yield from (f"  annotation: {key}={value}" for key, value in model.manifest.annotations.items())
    if facts["sealed"]:
        yield from (f"  opened by: {one['type']} {one['kid']}" for one in facts["sealed"]["recipients"])
    yield from _signature_lines(facts["signature"], model.manifest_sha256)


def _entry(entry: dict[str, Any]) -> str:
    """An entry of what is declared before or after the model, its lists by their length."""
    told = [f"{name}={value}" for name, value in entry.items() if name != "do" and not isinstance(value, list | tuple)]
    told += [f"{name}={len(value)}" for name, value in entry.items() if isinstance(value, list | tuple) and value]
    return " ".join([entry["do"], *(one for one in told if not one.endswith(("=None", "=False")))])


def _signature_lines(signature: dict[str, Any] | None, manifest: str | None) -> Iterator[str]:
    if manifest is None:
        yield "  no manifest: nothing is known of how it was made"
    elif signature is None:
        yield "  not signed"
    elif signature["trouble"]:
        yield f"  signature: not good: {signature['trouble']}"
    else:
        yield from (f"  signature: {keyid}  not checked" for keyid in signature["keyids"])


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name}  {spec.dtype}[{','.join(map(str, spec.shape))}]"
