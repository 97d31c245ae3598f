"""API keys: what a client says to be let in, and the file by which a server knows its clients.

A key is `mctl_` and 43 letters of base64url, 256 random bits. The file is TOML, says what each key may, and holds none:

    [keys.alice]
    hash = "sha256:9f86…"              of the key as it is sent
    certificate = "CN=alice"           or what her certificate calls her: CN=, DNS:, URI: or email:
    models = ["digits*"]               patterns of the models that she may ask
    may = ["load", "metrics"]          and what else
    rate = 100.0                       requests a second, from then on 429; without it, as many as she likes
    burst = 200                        requests at once; by default those of a second
    expires = 2027-01-01T00:00:00Z

A plain SHA-256 is enough: of 2^256 keys nobody can try so many that a slow hash would hinder him, as it does with
passwords. Nor can the time of looking a hash up in a dict tell of other keys: whoever sends a key does not choose its
hash.
"""

import base64
import datetime
import hashlib
import math
import re
import secrets
from pathlib import Path
from typing import Annotated

import msgspec

from modelctl.errors import KeyFileError
from modelctl.options import May
from modelctl.reading import Small

PREFIX = "mctl_"
KEY_LETTERS = len(PREFIX) + 43
FILE = Small("a file of keys", 4 << 20, KeyFileError, "modelctl keygen --type api -o me.key --keys keys.toml")
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
CERTIFICATE = re.compile(r"(CN=|DNS:|URI:|email:)[\x20-\x7e]{1,255}")

Rate = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Burst = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Rights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody may: models by patterns (`*` any letters), requests a second and at once, and what else."""

    models: tuple[str, ...] = ("*",)
    may: tuple[May, ...] = ()
    rate: Rate | None = None
    burst: Burst | None = None

    @property
    def at_once(self) -> int:
        """Requests that may come at once."""
        return self.burst or max(1, math.ceil(self.rate or 1))


class Entry(Rights, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client that the file tells of."""

    models: tuple[str, ...]
    hash: str | None = None
    certificate: str | None = None
    expires: datetime.datetime | None = None


def generate() -> str:
    """A new key."""
    return PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")


def hash_of(key: bytes) -> str:
    """What the file knows a key by."""
    return "sha256:" + hashlib.sha256(key).hexdigest()


def read(path: Path) -> tuple[str, dict[str, Entry]]:
    """The text of a file of keys, and the clients that it tells of, by name; KeyFileError for what is not right."""
    text = FILE.text(path)
    return text, parse(text, path)


def parse(text: str, path: Path) -> dict[str, Entry]:
    """The clients that the text of a file of keys tells of, by name."""
    plain = FILE.toml(text, path)
    try:
        tables = msgspec.convert(plain, dict[str, dict[str, dict[str, object]]])
    except msgspec.ValidationError as error:
        raise FILE.refused(path, f"not a file of keys: {str(error)[:200]}") from None
    if unknown := sorted(set(tables) - {"keys"}):
        raise KeyFileError(f"{path}: not a file of keys: it has {unknown[0]!r}, and [keys.NAME] is known")
    found: dict[str, Entry] = {}
    taken: dict[str, str] = {}
    for name, table in tables.get("keys", {}).items():
        found[name] = entry = _entry(name, table, path)
        for word in filter(None, (entry.hash, entry.certificate)):
            if word in taken:
                raise KeyFileError(f"{path}: keys.{name} has the {word.partition(':')[0]} of keys.{taken[word]}")
            taken[word] = name
    return found


def _entry(name: str, table: dict[str, object], path: Path) -> Entry:
    if not NAME.fullmatch(name):
        raise KeyFileError(f"{path}: {name!r} is no name of a key: letters, digits and . _ @ -, 64 at most")
    try:
        found = msgspec.convert(table, Entry)
    except msgspec.ValidationError as error:
        raise KeyFileError(f"{path}: keys.{name}: {str(error)[:200].replace('$', name)}") from None
    if found.hash is None and found.certificate is None:
        raise KeyFileError(f"{path}: keys.{name} has neither hash nor certificate, so nobody could be it")
    if found.hash is not None and not re.fullmatch("sha256:[0-9a-f]{64}", found.hash):
        raise KeyFileError(f"{path}: keys.{name}: hash is not sha256: and 64 digits", "modelctl keygen --type api")
    if found.certificate is not None and not CERTIFICATE.fullmatch(found.certificate):
        raise KeyFileError(f"{path}: keys.{name}: certificate does not begin with CN=, DNS:, URI: or email:")
    if found.expires is not None and found.expires.tzinfo is None:
        raise KeyFileError(f"{path}: keys.{name}: expires has no time zone, write 2027-01-01T00:00:00Z")
    return found


def block(name: str, rights: Rights, key: str) -> str:
    """The lines of a file of keys that tell of a new key."""
    lines = [f"[keys.{_quoted(name)}]", f'hash = "{hash_of(key.encode())}"']
    lines.append(f"models = [{', '.join(map(_quoted_text, rights.models))}]")
    if rights.may:
        lines.append(f"may = [{', '.join(_quoted_text(word.value) for word in rights.may)}]")
    lines += [f"rate = {float(rights.rate)!r}"] if rights.rate is not None else []
    lines += [f"burst = {rights.burst}"] if rights.burst is not None else []
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted_text(name)


def _quoted_text(text: str) -> str:
    """A TOML basic string, which JSON's strings are, too."""
    return msgspec.json.encode(text).decode()
