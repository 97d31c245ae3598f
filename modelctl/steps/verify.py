"""`verify`: are these the bytes, is the lineage a chain down to the checkpoint, and have they signed who must?"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelctl import digests, integrity, lineage
from modelctl.artifact import Artifact, manifest_path
from modelctl.crypto import keys, signing
from modelctl.errors import ArtifactError, IntegrityError, UsageError
from modelctl.manifest import Manifest
from modelctl.options import VerifyOptions
from modelctl.progress import Progress, silent
from modelctl.report import Report


def verify(path: Path, options: VerifyOptions, progress: Progress = silent) -> Report:  # noqa: ARG001 - as every step
    """Check everything that can be checked of the artifact at `path`; of a sealed one, from outside.

    A path that is not there is an ArtifactError or UsageError (2), a key that can't be read a KeyFileError (2); content
    that is not right, a malformed manifest included, is an IntegrityError (1).
    """
    public = [(source, keys.public_key(source)) for source in options.keys]
    roots = {_digest(root): str(root) for root in options.roots}
    model = _opened(path)
    try:
        text, envelope = signing.sidecars(model)
    except ArtifactError as error:
        raise IntegrityError(error.message) from error
    integrity.check(model)
    begins = integrity.roots(model.manifest)
    _check_roots(path, begins, roots)
    checked = signing.check_signature(text, envelope, public, str(path))
    facts: dict[str, Any] = {
        "path": str(path),
        "files": len(model.manifest.files),
        "bytes": model.size_bytes,
        "digest": model.digest,
        "manifest": model.manifest_sha256,
        "chain": lineage.steps(model.manifest),
        "roots": [{"name": name, "digest": digest, "file": roots.get(digest)} for digest, name in begins.items()],
        "signatures": [{"keyid": one.keyid, "verified_by": one.verified_by} for one in checked],
    }
    return Report(subject=str(path), facts=facts, lines=_lines(model.manifest, facts, bool(public)))


def _opened(path: Path) -> Artifact:
    if not path.is_file():
        return Artifact.open(path)  # says what is there instead
    try:
        return Artifact.open(path)
    except ArtifactError as error:
        if not os.path.lexists(manifest_path(path)):
            raise  # a foreign file of no format that we know
        raise IntegrityError(error.message) from error


def _digest(root: Path) -> str:
    if not root.exists():
        raise UsageError(f"{root}: no such file")
    if root.is_file() and manifest_path(root).exists():
        return Artifact.open(root).digest
    return digests.of_path(root)


def _check_roots(path: Path, begins: dict[str, str], given: dict[str, str]) -> None:
    if not given:
        return
    for digest, name in given.items():
        if digest not in begins:
            raise IntegrityError(f"{path}: does not come from {name} (sha256:{digest})")
    for digest, name in begins.items():
        if digest not in given:
            raise IntegrityError(f"{path}: comes from {name} too (sha256:{digest}), which is none of the roots given")


def _lines(described: Manifest, facts: dict[str, Any], asked: bool) -> tuple[str, ...]:
    signatures: Sequence[dict[str, Any]] = facts["signatures"]
    lines = [
        f"{facts['path']}  {facts['files']} file{'s'[: facts['files'] != 1]}, {facts['bytes']} bytes  "
        f"sha256:{facts['digest']}",
        *(f"  {line}" for line in lineage.chain(described)),
    ]
    for root in facts["roots"]:
        proof = f"is {root['file']}" if root["file"] else "not checked"
        lines.append(f"  root: {root['name']}  sha256:{root['digest']}  {proof}")
    for one in signatures:
        proof = f"good, {one['verified_by']}" if one["verified_by"] else "not checked"
        lines.append(f"  signature: {one['keyid']}  {proof}")
    if not asked:
        lines.append("  signature not checked: no --key was given" if signatures else "  not signed")
    return tuple(lines)
