"""`encrypt`: an artifact, with its manifest and signature, sealed into one file for those who may open it."""

from pathlib import Path

from modelctl import digests
from modelctl.artifact import Artifact, format_of
from modelctl.crypto import envelope, keys, signing
from modelctl.errors import UnsupportedError, UsageError
from modelctl.making import Origin, create
from modelctl.manifest import Encryption
from modelctl.options import EncryptOptions
from modelctl.progress import Progress, silent


def origin(model: Artifact, options: EncryptOptions) -> Origin:
    """What the sealed file is made from: the artifact as it is signed now, and the ids of those who may open it.

    A passphrase has no id: a changed one is not seen as a change. Errors as `encrypt` raises them.
    """
    return _origin(model, options, signing.sidecars(model))


def _origin(model: Artifact, options: EncryptOptions, sidecars: tuple[bytes, bytes | None]) -> Origin:
    named = keys.named(options)
    secret = [one.id for one in named if isinstance(one, keys.AesKey)]
    signature = sidecars[1]
    also = {
        "recipients": sorted(one.id for one in named if isinstance(one, keys.PublicKey)),
        "key_file": secret[0] if secret else None,
        "passphrase": options.passphrase is not None,
        "signature": None if signature is None else digests.of_bytes(signature),
        "manifest": model.manifest_sha256,
    }
    return Origin("encrypt", options, (model,), also=also)


def encrypt(model: Artifact, out: Path, options: EncryptOptions, progress: Progress = silent) -> Artifact:
    """Seal `model` into `out`, checking its bytes as they are read.

    UsageError for a foreign file, UnsupportedError for a sealed one, IntegrityError when bytes or signature are not
    those of the manifest, KeyFileError for a key that can't be used.
    """
    if model.manifest.encryption is not None:
        raise UnsupportedError(f"{model.path}: is sealed already", f"modelctl decrypt {model.path} -o .")
    if format_of(out) != "sealed":
        raise UsageError(f"{out}: encrypt writes .sealed", f"-o {out.name}.sealed")
    text, signature = sidecars = signing.sidecars(model)
    signing.check_signature(text, signature, [], str(model.path))
    with create(out, _origin(model, options, sidecars)) as draft:
        recipients = keys.recipients(options)
        draft.known[out.name] = envelope.seal(
            model, draft.path, recipients, sidecars=sidecars, threads=options.thread_count(), progress=progress
        )
        draft.metrics = dict(model.manifest.metrics)
        draft.private = options.private
        draft.encryption = Encryption(
            suite=envelope.SUITE,
            recipients=tuple(one.id for one in recipients),
            manifest=digests.of_bytes(text),
            digest=model.digest,
        )
    return Artifact.open(out)
