"""`keygen`: keys to encrypt for and to sign with."""

import os
from pathlib import Path

from modelctl.crypto import keys
from modelctl.errors import UsageError
from modelctl.options import KeygenOptions
from modelctl.progress import Progress, silent
from modelctl.report import Report
from modelctl.staging import refuse_no_file, stage


def public_path(out: Path) -> Path:
    """Where the public half of the key at `out` lies: `key.pem` → `key.pub.pem`."""
    return out.with_name(out.name.removesuffix(".pem") + ".pub.pem")


def keygen(out: Path, options: KeygenOptions, progress: Progress = silent) -> Report:  # noqa: ARG001 - as every step
    """Write a new key to `out`, readable by its owner only from the first byte on, and its public half beside it.

    UsageError when a key stands there and `options.force` is not given.
    """
    refuse_no_file(out)
    made = keys.generate(options.type, options.bits)
    texts = {out: made.line()} if isinstance(made, keys.AesKey) else {out: made.pem()}
    if isinstance(made, keys.PrivateKey):
        texts[public_path(out)] = made.public.pem()
    for path in texts:
        refuse_no_file(path)
        if path.exists() and not options.force:
            raise UsageError(f"{path}: stands already, and a key once overwritten is lost", "choose another name")
    with stage(out.parent, out.name) as staged:
        for path, text in texts.items():
            mode = 0o600 if path == out else 0o644
            handle = os.open(staged.folder / path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(text)
        *first, last = (path.name for path in texts)
        staged.commit(first, last)
    facts = {
        "type": options.type.value,
        "id": made.id,
        "private" if isinstance(made, keys.PrivateKey) else "key": str(out),
        **({"public": str(public_path(out))} if isinstance(made, keys.PrivateKey) else {}),
    }
    return Report(subject=str(out), facts=facts)
