"""Is an artifact what its manifest says: its files, nothing beside them, and a lineage that is a chain?

What checks here asks of content is answered with IntegrityError (exit status 1); signatures are `crypto.signing`'s.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from modelctl import digests, manifest
from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, IntegrityError
from modelctl.manifest import Manifest

SIDECARS = (manifest.SUFFIX, manifest.SIGNATURE_SUFFIX)


def check(model: Artifact) -> None:
    """Re-hash every file, refuse links, missing and unlisted files, check the lineage; IntegrityError says which."""
    check_files(model)
    check_chain(model.manifest, str(model.path))


def check_files(model: Artifact) -> None:
    """Every listed file is there, a plain file, with the bytes that its entry promises, and none is there unlisted."""
    listed = {entry.path for entry in model.manifest.files}
    for entry in model.manifest.files:
        file = model.file(entry)
        if file.is_symlink() or any(parent.is_symlink() for parent in _between(model, entry.path)):
            raise IntegrityError(f"{file}: is a link, and an artifact holds none")
        if not file.is_file():
            raise IntegrityError(f"{file}: is missing, but the manifest lists it")
        if file.stat().st_size != entry.size or digests.of_file(file) != entry.sha256:
            raise IntegrityError(f"{file}: the bytes are not the ones that its manifest describes")
    for name in sorted(_unlisted(model, listed)):
        raise IntegrityError(
            f"{model.path.with_name(name)}: lies beside the artifact, but its manifest does not list it"
        )


def _between(model: Artifact, path: str) -> Iterable[Path]:
    folder = model.path.parent
    parts = path.split("/")[:-1]
    return [folder.joinpath(*parts[: index + 1]) for index in range(len(parts))]


def _unlisted(model: Artifact, listed: set[str]) -> set[str]:
    """Names that begin as the primary file's does and a dot, but are neither listed, sidecars, nor other artifacts'."""
    prefix = model.path.name + "."
    found = {file.name for file in model.path.parent.iterdir() if file.name.startswith(prefix)}
    found -= listed | {model.path.name + suffix for suffix in SIDECARS}
    for sidecar in sorted(name for name in found if name.endswith(manifest.SUFFIX)):
        other = sidecar.removesuffix(manifest.SUFFIX)
        with contextlib.suppress(ArtifactError):
            described = Artifact.open(model.path.with_name(other)).manifest
            found -= {entry.path for entry in described.files} | {other + suffix for suffix in SIDECARS}
    return found


def check_chain(described: Manifest, name: str) -> None:
    """Each record's parents are digests of records before it, no digest stands twice, and ours come from among them."""
    earlier: set[str] = set()
    for one in described.lineage:
        if set(one.parents) - earlier:
            raise IntegrityError(
                f"{name}: the lineage is broken: {one.name} has a parent that is not told of before it"
            )
        if one.digest in earlier:
            raise IntegrityError(f"{name}: the lineage is broken: it tells of {one.name} twice")
        earlier.add(one.digest)
    if set(described.record().parents) - earlier:
        raise IntegrityError(f"{name}: the lineage is broken: a parent of {described.name} is not told of")


def roots(described: Manifest) -> dict[str, str]:
    """Where the lineage begins: the name by digest of each record that has no parents; the artifact itself if none."""
    records = described.history() if described.encryption is None else described.lineage
    return {one.digest: one.name for one in records if not one.parents}
