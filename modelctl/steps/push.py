"""`push`: an artifact into a store, under a tag."""

from contextlib import closing

from modelctl.artifact import Artifact
from modelctl.crypto import signing
from modelctl.options import PushOptions
from modelctl.progress import Progress, silent
from modelctl.report import Report
from modelctl.stores import transfer
from modelctl.stores.ref import Ref


def push(model: Artifact, to: str, options: PushOptions, progress: Progress = silent) -> Report:
    """Send the artifact, its signature with it, to `to`, `[STORE/]name:tag`; only what the store lacks is sent.

    UsageError for a foreign file, IntegrityError when its bytes are not the manifest's, StoreError for a store that
    is not one, CheckFailed when the tag stands on another artifact and `options.force` is not given.
    """
    ref = Ref.parse(to)
    text, signature = signing.sidecars(model)
    signing.check_signature(text, signature, [], str(model.path))
    with closing(transfer.open_for(ref.store, model)) as store:
        sent = transfer.send(store, ref, model, (text, signature), force=options.force, progress=progress)
    facts = {
        "ref": str(ref),
        "name": ref.name,
        "tag": ref.tag,
        "store": ref.store,
        "digest": model.digest,
        "manifest": model.manifest_sha256,
        "moved": sent.moved,
        "sent_bytes": sent.sent_bytes,
        "total_bytes": sent.total_bytes,
    }
    did = "pushed" if sent.moved else "stands already"
    line = f"{ref}  {did}, {sent.sent_bytes} of {sent.total_bytes} bytes sent  sha256:{model.digest}"
    return Report(subject=str(ref), facts=facts, lines=(line,))
