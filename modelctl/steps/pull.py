"""`pull`: an artifact out of a store, verified on the way in, all of its files or none."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from modelctl import arrival, artifact
from modelctl.artifact import Artifact, signature_path
from modelctl.crypto.keys import public_key
from modelctl.crypto.signing import SIGNATURE, check_signature
from modelctl.errors import ArtifactError, StoreError, UsageError
from modelctl.options import PullOptions
from modelctl.progress import Progress, silent
from modelctl.staging import Stage, refuse_no_folder, stage
from modelctl.stores.ref import Ref
from modelctl.stores.store import open_store
from modelctl.stores.transfer import Stored, find


def pull(ref: str, out: Path, options: PullOptions, progress: Progress = silent) -> Artifact:
    """Bring what stands under `ref`, `[STORE/]name:tag`, into the folder `out`, which is made if it is not there.

    StoreError for a missing ref, or a disk too small for it; IntegrityError for a wrong byte or a signature that
    `options.keys` ask for and that is not there; ArtifactError for a manifest that can't be laid out; UsageError when
    files of another artifact stand in the way and `options.force` is not given; KeyFileError for a key of no use.
    """
    wanted = Ref.parse(ref)
    keys = [(source, public_key(source)) for source in options.keys]
    with closing(open_store(wanted.store)) as store:
        found = find(store, wanted)
        paths = arrival.paths_of(found.manifest, signed=found.signature is not None, name=str(wanted))
        check_signature(found.text, found.signature, keys, str(wanted))
        with _folder(out):
            _refuse_overwriting(found, out, paths, options.force)
            _refuse_filling(found, out)
            with stage(out, paths[0]) as staged:
                _write(found, staged, progress)
                stale = partial(_replaced, found, out, paths, options.force)
                arrival.settle(staged, found.manifest, found.text, found.signature, stale)
            return Artifact.open(out / paths[0])


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """`out` as a folder to write into; one that was made for this is gone again if the block fails."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, not a folder to write into")
    refuse_no_folder(out)
    made = not out.exists()
    out.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _refuse_overwriting(found: Stored, out: Path, paths: list[str], force: bool) -> None:
    arrival.refuse(out, paths, replace=force or _is_same(found, out / paths[0]))
    signature = signature_path(out / paths[0])
    matters = found.signature is not None and signature.exists() and not force
    if matters and SIGNATURE.data(signature) != found.signature:
        raise UsageError(f"{signature}: stands already and is another signature", "add --force to replace it")


def _replaced(found: Stored, out: Path, paths: list[str], force: bool) -> list[str]:
    """What an older version left in the way, after a last look whether that may be replaced."""
    _refuse_overwriting(found, out, paths, force)
    primary = out / paths[0]
    # A signature that was made here for this very artifact is no leftover.
    return [] if _is_same(found, primary) and not force else artifact.left_behind(primary)


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
