"""An artifact that was made elsewhere and comes to lie here: files, manifest and signature just as they were.

`pull` brings them out of a store, `decrypt` out of a seal. Nothing is written through a link or over a folder; what
stands is replaced only where the caller has found that it may be.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from modelctl import manifest
from modelctl.errors import ArtifactError, UsageError
from modelctl.manifest import Manifest
from modelctl.staging import Stage, refuse_no_file


def paths_of(described: Manifest, *, signed: bool, name: str) -> list[str]:
    """The paths, below one folder, of all that is written: the primary file, the others, manifest, signature.

    ArtifactError, of the artifact called `name`, for files that no folder can hold beside each other.
    """
    paths = [entry.path for entry in described.files]
    paths += [paths[0] + suffix for suffix in (manifest.SUFFIX, manifest.SIGNATURE_SUFFIX)[: 1 + signed]]
    folders = {parent.as_posix().casefold() for path in paths for parent in Path(path).parents}
    if "/" in paths[0] or folders & {path.casefold() for path in paths}:
        raise ArtifactError(f"{name}: its manifest lists files that get in each other's way")
    return paths


def refuse(folder: Path, paths: Iterable[str], *, replace: bool) -> None:
    """UsageError where one of `paths` can't be written below `folder`, or stands and is not to be replaced."""
    for path in paths:
        target = folder / path
        for parent in list(target.parents)[: path.count("/")]:
            if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
                raise UsageError(f"{parent}: is not a plain folder, and {path} belongs into it")
        refuse_no_file(target)
        if target.exists() and not replace:
            raise UsageError(f"{target}: stands already and is not of this artifact", "add --force to replace it")


def settle(
    staged: Stage, described: Manifest, text: bytes, signature: bytes | None, stale: Callable[[], Sequence[str]]
) -> None:
    """Put manifest (`text`, its bytes) and signature beside the files in the stage, and commit all of it.

    `stale` is asked, as in `Stage.commit`, when nobody else can write into the folder any more.
    """
    names = [entry.path for entry in described.files]
    sidecar = names[0] + manifest.SUFFIX
    (staged.folder / sidecar).write_bytes(text)
    if signature is not None:
        names.append(names[0] + manifest.SIGNATURE_SUFFIX)
        (staged.folder / names[-1]).write_bytes(signature)

    def gone() -> Sequence[str]:
        found = stale()
        for name in names:
            (staged.target / name).parent.mkdir(parents=True, exist_ok=True)
        return found

    staged.commit(names, sidecar, stale=gone)
