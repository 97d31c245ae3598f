"""`pull`: an artifact out of a store, verified on the way in, all of its files or none."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from modelctl import artifact, manifest
from modelctl.artifact import Artifact, signature_path
from modelctl.crypto.keys import public_key
from modelctl.crypto.signing import check_signature
from modelctl.errors import ArtifactError, StoreError, UsageError
from modelctl.options import PullOptions
from modelctl.progress import Progress, silent
from modelctl.staging import Stage, stage
from modelctl.stores.ref import Ref
from modelctl.stores.store import open_store
from modelctl.stores.transfer import Stored, find


def pull(ref: str, out: Path, options: PullOptions, progress: Progress = silent) -> Artifact:
    """Bring what stands under `ref`, `[STORE/]name:tag`, into the folder `out`, which is made if it is not there.

    StoreError for a missing ref; IntegrityError for a wrong byte or a signature that `options.keys` ask for and that is
    not there; UsageError when files of another artifact stand in the way and `options.force` is not given.
    """
    wanted = Ref.parse(ref)
    keys = [(source, public_key(source)) for source in options.keys]
    with closing(open_store(wanted.store)) as store:
        found = find(store, wanted)
        primary = _names(found)[0]
        check_signature(found.text, found.signature, keys, str(wanted))
        with _folder(out):
            _refuse_overwriting(found, out, options.force)
            _refuse_filling(found, out)
            with stage(out, primary) as staged:
                _write(found, staged, progress)
                _commit(found, staged, options.force)
            return Artifact.open(out / primary)


def _names(found: Stored) -> list[str]:
    """The paths that will be written, the primary one first; ArtifactError for a manifest that can't be laid out."""
    paths = [entry.path for entry in found.manifest.files]
    paths.append(paths[0] + manifest.SUFFIX)
    if found.signature is not None:
        paths.append(paths[0] + manifest.SIGNATURE_SUFFIX)
    folders = {parent.as_posix().casefold() for path in paths for parent in Path(path).parents}
    if "/" in paths[0] or folders & {path.casefold() for path in paths}:
        raise ArtifactError(f"{found.ref}: its manifest lists files that get in each other's way")
    return paths


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """`out` as a folder to write into; one that was made for this is gone again if the block fails."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, not a folder to write into")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: no such folder: {out.parent}", f"mkdir -p {out}")
    made = not out.exists()
    out.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _refuse_overwriting(found: Stored, out: Path, force: bool) -> None:
    primary = out / found.manifest.files[0].path
    for name in _names(found):
        target = out / name
        for parent in list(target.parents)[: name.count("/")]:
            if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
                raise UsageError(f"{parent}: is not a plain folder, and {name} belongs into it")
        if target.is_symlink() or target.is_dir():
            raise UsageError(f"{target}: is a {'link' if target.is_symlink() else 'folder'}, not a file to write")
        if not target.exists() or force:
            continue
        if not _is_same(found, primary):
            raise UsageError(f"{target}: stands already and is not of this artifact", "add --force to replace it")
        if target == signature_path(primary) and target.read_bytes() != found.signature:
            raise UsageError(f"{target}: stands already and is another signature", "add --force to replace it")


def _is_same(found: Stored, primary: Path) -> bool:
    with contextlib.suppress(ArtifactError):
        return Artifact.open(primary).manifest_sha256 == found.manifest_sha256
    return False


def _refuse_filling(found: Stored, out: Path) -> None:
    free = shutil.disk_usage(out).free
    if found.size_bytes > free:
        raise StoreError(f"{out}: {found.ref} has {found.size_bytes} bytes, and there is room for {free}")


def _write(found: Stored, staged: Stage, progress: Progress) -> None:
    for entry, pieces in found.files(progress):
        file = staged.folder / entry.path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as out:
            for piece in pieces:
                out.write(piece)


def _commit(found: Stored, staged: Stage, force: bool) -> None:
    names = [entry.path for entry in found.manifest.files]
    primary, sidecar = staged.target / names[0], names[0] + manifest.SUFFIX
    (staged.folder / sidecar).write_bytes(found.text)
    if found.signature is not None:
        names.append(names[0] + manifest.SIGNATURE_SUFFIX)
        (staged.folder / names[-1]).write_bytes(found.signature)

    def stale() -> list[str]:
        _refuse_overwriting(found, staged.target, force)  # a last look, now that nobody else writes here
        for name in names:
            (staged.target / name).parent.mkdir(parents=True, exist_ok=True)
        # A signature that was made here for this very artifact is no leftover.
        return [] if _is_same(found, primary) and not force else artifact.left_behind(primary)

    staged.commit(names, sidecar, stale=stale)
