"""`sign`: a DSSE envelope over an artifact's files and manifest, beside them."""

from modelctl import integrity
from modelctl.artifact import Artifact, signature_path
from modelctl.crypto import keys, signing
from modelctl.errors import ArtifactError, IntegrityError, UsageError
from modelctl.options import SignOptions
from modelctl.progress import Progress, silent
from modelctl.report import Report
from modelctl.staging import stage, sync


def sign(model: Artifact, options: SignOptions, progress: Progress = silent) -> Report:  # noqa: ARG001 - as every step
    """Sign `model` with one more key, or again with the same one; what is signed is re-hashed first.

    UsageError without a key or for a foreign file, IntegrityError when the files are not those of the manifest or when
    the signature that stands is about something else.
    """
    if options.key is None:
        raise UsageError("sign needs a private key", "--key key.pem")
    key = keys.private_key(options.key)
    text, standing = signing.sidecars(model)
    integrity.check(model)
    try:
        made = signing.sign(text, key, standing, str(model.path))
    except (ArtifactError, IntegrityError) as error:
        # What stands there may be of use to somebody; whoever signs decides that it is not.
        error.hint = error.hint or f"rm {signature_path(model.path)}"
        raise
    checked = signing.check_signature(text, made, [(options.key, key.public)], str(model.path))
    out = signature_path(model.path)
    with stage(out.parent, out.name) as staged:
        (staged.folder / out.name).write_bytes(made)
        sync(staged.folder / out.name)
        # One rename: whoever looks finds the old signatures or the new ones, never none.
        (staged.folder / out.name).replace(out)
    facts = {
        "path": str(model.path),
        "signature": str(out),
        "keyid": key.id,
        "manifest": model.manifest_sha256,
        "signed_by": [one.keyid for one in checked],
    }
    return Report(subject=str(model.path), facts=facts, lines=(f"{out}  signed by {key.id}",))
