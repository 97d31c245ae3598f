"""`keygen`: keys to encrypt for, to sign with, and to be let in by a server."""

import os
import stat
from pathlib import Path

from modelctl.crypto import api_keys, keys
from modelctl.errors import UsageError
from modelctl.options import KeygenOptions, KeyType
from modelctl.progress import Progress, silent
from modelctl.report import Report
from modelctl.staging import refuse_no_file, stage


def public_path(out: Path) -> Path:
    """Where the public half of the key at `out` lies: `key.pem` → `key.pub.pem`."""
    return out.with_name(out.name.removesuffix(".pem") + ".pub.pem")


def keygen(out: Path, options: KeygenOptions, progress: Progress = silent) -> Report:  # noqa: ARG001 - as every step
    """Write a new key to `out`, readable by its owner only from the first byte on, and its public half beside it.

    An API key's public half is what a server's file of keys says of it. UsageError when a key stands there and
    `options.force` is not given.
    """
    refuse_no_file(out)
    if options.type is KeyType.API:
        return _api_key(out, options)
    made = keys.generate(options.type, options.bits)
    texts = {out: made.line()} if isinstance(made, keys.AesKey) else {out: made.pem()}
    if isinstance(made, keys.PrivateKey):
        texts[public_path(out)] = made.public.pem()
    for path in texts:
        refuse_no_file(path)
        _refuse_standing(path, options)
    with stage(out.parent, out.name) as staged:
        for path, text in texts.items():
            _write(staged.folder / path.name, text, 0o600 if path == out else 0o644)
        *first, last = (path.name for path in texts)
        staged.commit(first, last)
    facts = {
        "type": options.type.value,
        "id": made.id,
        "private" if isinstance(made, keys.PrivateKey) else "key": str(out),
        **({"public": str(public_path(out))} if isinstance(made, keys.PrivateKey) else {}),
    }
    return Report(subject=str(out), facts=facts)


def _refuse_standing(path: Path, options: KeygenOptions) -> None:
    if path.exists() and not options.force:
        raise UsageError(f"{path}: stands already, and a key once overwritten is lost", "choose another name")


def _api_key(out: Path, options: KeygenOptions) -> Report:
    """Write a new API key to `out`, and what it may into a server's file of keys."""
    _refuse_standing(out, options)
    place = options.keys or out.with_name("keys.toml")
    refuse_no_file(place)
    name = options.name or out.name.removesuffix(".key")
    text, known = api_keys.read(place) if place.exists() else ("", {})
    if name in known:
        raise UsageError(f"{place}: knows a key of {name} already", "--name OTHER")
    key = api_keys.generate()
    rights = api_keys.Rights(models=options.models or ("*",), may=options.mays, rate=options.rate, burst=options.burst)
    told = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{chr(10) if text else ''}"
    told += api_keys.block(name, rights, key)
    api_keys.parse(told, place)

    def unchanged() -> tuple[str, ...]:
        if (api_keys.FILE.text(place) if place.exists() else "") != text:
            raise UsageError(f"{place}: somebody else has just changed it", "the same command again")
        return ()

    mode = stat.S_IMODE(place.stat().st_mode) if place.exists() else 0o600
    with stage(out.parent, out.name) as secret, stage(place.parent, place.name) as public:
        _write(secret.folder / out.name, key + "\n", 0o600)
        _write(public.folder / place.name, told, mode)
        # The key first: one that no server knows harms nobody.
        secret.commit([], out.name)
        public.commit([], place.name, unchanged)
    facts = {"type": options.type.value, "name": name, "id": api_keys.hash_of(key.encode()), "key": str(out)}
    return Report(subject=str(out), facts=facts | {"keys": str(place)})


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file that has this mode from the first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
