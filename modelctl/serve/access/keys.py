"""API keys as a server knows them: callers by the hash of what they send, or by what their certificates call them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from modelctl.crypto import api_keys
from modelctl.serve.access.callers import Caller


@dataclass(frozen=True)
class Keys:
    """The callers that a file of keys tells of."""

    by_hash: dict[bytes, Caller]
    by_certificate: dict[str, Caller]
    _shown: dict[bytes, Caller] = field(default_factory=dict, repr=False)  # good keys, which need no further hashing

    def find(self, key: bytes) -> Caller | None:
        """Whose key this is."""
        found = self._shown.get(key)
        if found is None:
            found = self.by_hash.get(hashlib.sha256(key).digest())
            if found is not None:
                self._shown[key] = found
        return found


def read(path: Path) -> Keys:
    """What a file of keys says; KeyFileError for what is not right."""
    _, entries = api_keys.read(path)
    by_hash: dict[bytes, Caller] = {}
    by_certificate: dict[str, Caller] = {}
    for name, entry in entries.items():
        caller = Caller(name, entry, "key", entry.expires.timestamp() if entry.expires is not None else None)
        if entry.hash is not None:
            by_hash[bytes.fromhex(entry.hash.removeprefix("sha256:"))] = caller
        if entry.certificate is not None:
            by_certificate[entry.certificate] = caller
    return Keys(by_hash, by_certificate)


def warning(path: Path) -> str | None:
    """What is to be said of a file of keys that others can read or, worse, write."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o022:
        return f"{path}: other users may write this file of keys (mode {mode:o}), and let themselves in"
    if mode & 0o004:
        return f"{path}: other users may read this file of keys (mode {mode:o}); it tells who may what"
    return None
