"""Keys and passphrases: where they come from, what they are called, how they are made.

A source is a path or `env:NAME`, never the secret itself. Public keys are PEM SubjectPublicKeyInfo, private ones PEM
PKCS#8, an AES key is one line, `modelctl-aes256:` and 43 letters of base64url. A file with a secret in it must be
closed to everyone but its owner. Secrets stand in no repr, message or traceback.

Key ids: sha256 of the DER SubjectPublicKeyInfo; for an AES key, sha256 of `modelctl/kid` ‖ key.
"""

import base64
import binascii
import getpass
import os
import re
import secrets
import shlex
import stat
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from Crypto.Hash import SHA256
from Crypto.PublicKey import ECC, RSA
from Crypto.Signature import eddsa, pss

from modelctl import digests
from modelctl.errors import KeyFileError, UsageError
from modelctl.options import EncryptOptions, KeyType, OpeningOptions
from modelctl.reading import Small

KEY = Small("a key file", 64 << 10, KeyFileError, "modelctl keygen -o key.pem", piped=True)
AES = replace(KEY, hint="modelctl keygen --type aes -o aes.key")
PASSPHRASE = replace(KEY, what="the file of a passphrase", hint="--passphrase prompt")
RSA_BITS = range(2048, 16385)
AES_PREFIX = "modelctl-aes256:"
PSS_SALT_BYTES = 32
PUBLIC = "-----BEGIN PUBLIC KEY-----"


@dataclass(frozen=True)
class PublicKey:
    """What one may give away: checks signatures; an RSA one also wraps content keys. `id` is its key id."""

    id: str
    type: KeyType
    material: Any = field(repr=False, compare=False)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `message`: Ed25519 (RFC 8032), or RSA-PSS with SHA-256, salt 32."""
        try:
            if self.type is KeyType.RSA:
                pss.new(self.material, salt_bytes=PSS_SALT_BYTES).verify(SHA256.new(message), signature)
            else:
                eddsa.new(self.material, "rfc8032").verify(message, signature)
        except ValueError:
            return False
        return True

    def pem(self) -> str:
        """The key as a PEM SubjectPublicKeyInfo."""
        return str(_text(self.material.export_key(format="PEM"))) + "\n"


@dataclass(frozen=True)
class PrivateKey:
    """What one must not give away: signs; an RSA one also opens what was sealed for its public half."""

    public: PublicKey
    material: Any = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """The id of its public half."""
        return self.public.id

    def sign(self, message: bytes) -> bytes:
        """The signature that `PublicKey.verifies` accepts."""
        if self.public.type is KeyType.RSA:
            return bytes(pss.new(self.material, salt_bytes=PSS_SALT_BYTES).sign(SHA256.new(message)))
        return bytes(eddsa.new(self.material, "rfc8032").sign(message))

    def pem(self) -> str:
        """The key as an unencrypted PEM PKCS#8."""
        more = {"pkcs": 8} if self.public.type is KeyType.RSA else {}
        return str(_text(self.material.export_key(format="PEM", **more))) + "\n"


@dataclass(frozen=True)
class AesKey:
    """A secret of 32 bytes that seals and opens."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Its key id."""
        return digests.of_bytes(b"modelctl/kid" + self.secret)

    def line(self) -> str:
        """The key as its file holds it."""
        return AES_PREFIX + base64.urlsafe_b64encode(self.secret).decode().rstrip("=") + "\n"


@dataclass(frozen=True)
class Passphrase:
    """A secret that a person can remember; it has no id, since one would help to guess it."""

    secret: str = field(repr=False)
    id: str = "passphrase"


Recipient = PublicKey | AesKey | Passphrase  # what a file is sealed for
OpeningKey = PrivateKey | AesKey | Passphrase  # what may open it


def generate(kind: KeyType, bits: int) -> PrivateKey | AesKey:
    """A new key; `bits` is the size of an RSA one."""
    if kind is KeyType.AES:
        return AesKey(secrets.token_bytes(32))
    return _private(RSA.generate(bits) if kind is KeyType.RSA else ECC.generate(curve="ed25519"))


def named(options: EncryptOptions) -> tuple[PublicKey | AesKey, ...]:
    """The keys that `options` name as those that may open the file, each once."""
    found: dict[str, PublicKey | AesKey] = {}
    for source in options.recipients:
        key = public_key(source)
        if key.type is not KeyType.RSA:
            raise KeyFileError(
                f"{source}: a key that signs; a recipient's is an RSA one", "modelctl keygen --type rsa -o key.pem"
            )
        found[key.id] = key
    if options.key_file:
        secret = aes_key(options.key_file)
        found[secret.id] = secret
    return tuple(found.values())


def recipients(options: EncryptOptions) -> tuple[Recipient, ...]:
    """All that may open the file; a passphrase is asked for here, twice."""
    return (*named(options), *((passphrase(options.passphrase, twice=True),) if options.passphrase else ()))


def opening(options: OpeningOptions) -> tuple[OpeningKey, ...]:
    """The keys that `options` name to open a sealed file with."""
    found: list[OpeningKey] = []
    for source in options.identities:
        key = private_key(source)
        if key.public.type is not KeyType.RSA:
            raise KeyFileError(f"{source}: a key that signs; what opens a sealed file is an RSA one")
        found.append(key)
    if options.key_file:
        found.append(aes_key(options.key_file))
    if options.passphrase:
        found.append(passphrase(options.passphrase))
    return tuple(found)


def public_key(source: str) -> PublicKey:
    """The RSA or Ed25519 public key at `source`; KeyFileError if it is none, or is a private one."""
    text = _read(source, KEY, secret=False)
    if "PRIVATE KEY-----" in text:
        raise KeyFileError(
            f"{source}: a private key where the public one is wanted",
            None if source.startswith("env:") else f"openssl pkey -in {source} -pubout",
        )
    return _public(_import(source, text))


def private_key(source: str) -> PrivateKey:
    """The RSA or Ed25519 private key at `source`; KeyFileError if it is none, or its file is open to others."""
    text = _read(source, KEY, secret=True)
    if "ENCRYPTED" in text:
        raise KeyFileError(
            f"{source}: is locked with a passphrase, and modelctl reads open keys", f"openssl pkey -in {source}"
        )
    if PUBLIC in text:
        raise KeyFileError(f"{source}: not a private key, but a public one")
    if "PRIVATE KEY-----" not in text:
        raise KeyFileError(f"{source}: not a private key in PEM", "modelctl keygen -o key.pem")
    return _private(_import(source, text))


def aes_key(source: str) -> AesKey:
    """The AES key at `source`; KeyFileError if it is none, or its file is open to others."""
    text = _read(source, AES, secret=True)
    found = re.fullmatch(AES_PREFIX + r"([A-Za-z0-9_-]{43})\s*", text)
    if not found:
        raise KeyFileError(f"{source}: not an AES key file", "modelctl keygen --type aes -o aes.key")
    secret = base64.urlsafe_b64decode(found[1] + "=")
    if AesKey(secret).line().strip() != text.strip():
        raise KeyFileError(f"{source}: not an AES key file: its last letter says more than 32 bytes")
    return AesKey(secret)


def passphrase(source: str, twice: bool = False) -> Passphrase:
    """The passphrase from `prompt`, `file:PATH` (one line) or `env:NAME`; `twice`: a prompt asks for it once more."""
    if source == "prompt":
        if not (sys.stdin and sys.stdin.isatty()):
            raise KeyFileError("--passphrase prompt: there is no terminal to ask on", "--passphrase file:PATH")
        word = getpass.getpass("passphrase: ")
        if twice and getpass.getpass("once more: ") != word:
            raise KeyFileError("--passphrase prompt: the two are not the same")
    elif source.startswith(("file:", "env:")):
        word = _read(source.removeprefix("file:"), PASSPHRASE, secret=True).removesuffix("\n").removesuffix("\r")
    else:
        raise UsageError(f"--passphrase {_start(source)}: not prompt, file:PATH or env:NAME", "--passphrase prompt")
    if not word:
        raise KeyFileError(f"--passphrase {source}: is empty", PASSPHRASE.hint)
    return Passphrase(word)


def _start(source: str) -> str:
    # Whoever typed the passphrase itself must not read it again in a log.
    return repr(source.partition(":")[0] + ":…") if ":" in source else "(hidden)"


def _read(source: str, file: Small, secret: bool) -> str:
    """The text at a source, bounded; the file of a secret must be its owner's alone."""
    if source.startswith("env:"):
        name = source.removeprefix("env:")
        if not os.environ.get(name):
            raise KeyFileError(f"{source}: no such environment variable, or an empty one")
        return os.environ[name]
    if source.startswith((AES_PREFIX, "-----BEGIN")):  # and is not repeated in a message
        raise KeyFileError("a key was typed where the path of its file is wanted", "chmod 600 key.pem")
    data, mode = file.read(Path(source))
    text = file.decoded(data, source)
    if secret and PUBLIC not in text and os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
        hint = f"chmod 600 {shlex.quote(source)}"
        raise KeyFileError(f"{source}: other users may read this secret (mode {mode & 0o777:o})", hint)
    return text


def _import(source: str, text: str) -> Any:
    """What pycryptodome makes of a PEM text; the libraries' errors may tell of the secret, so none is chained."""
    for kind in (RSA, ECC):
        try:
            material: Any = kind.import_key(text)
        except (ValueError, IndexError, TypeError, binascii.Error, NotImplementedError):
            continue
        if kind is RSA and material.size_in_bits() not in RSA_BITS:
            raise KeyFileError(
                f"{source}: an RSA key of {material.size_in_bits()} bits, {RSA_BITS[0]} to {RSA_BITS[-1]} are taken"
            )
        if kind is ECC and material.curve != "Ed25519":
            raise KeyFileError(f"{source}: a key on {material.curve}, only Ed25519 and RSA are taken")
        return material
    raise KeyFileError(f"{source}: not an RSA or Ed25519 key in PEM", "modelctl keygen -o key.pem")


def _public(material: Any) -> PublicKey:
    kind = KeyType.RSA if isinstance(material, RSA.RsaKey) else KeyType.ED25519
    return PublicKey(digests.of_bytes(material.export_key(format="DER")), kind, material)


def _private(material: Any) -> PrivateKey:
    return PrivateKey(_public(material.public_key()), material)


def _text(exported: str | bytes) -> str:
    return exported.decode() if isinstance(exported, bytes) else exported
