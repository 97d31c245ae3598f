"""The header of a sealed file: who made it, and the content key, wrapped once for each who may open it.

It is a msgpack map with sorted keys in the one shortest encoding; any other is refused, and so are unknown and
duplicate keys. A stanza is, by its `type`:

    rsa-oaep-sha256   the content key under an RSA public key, label `modelctl/sealed/v1`     (RFC 8017)
    aes256            the content key under a shared AES key, AES-KWP                         (RFC 5649)
    scrypt            the same under a key derived from a passphrase, r 8, p 1; stands alone  (RFC 7914)
"""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from Crypto.Cipher import AES, PKCS1_OAEP
from Crypto.Hash import SHA256
from msgspec import Meta, Struct

from modelctl import __version__
from modelctl.crypto.keys import AesKey, OpeningKey, Passphrase, PrivateKey, PublicKey, Recipient
from modelctl.errors import ArtifactError, IntegrityError, KeyFileError, UsageError
from modelctl.manifest import Digest

LABEL = b"modelctl/sealed/v1"
KEY_BYTES = 32
SALT_BYTES = 16
LOG_N = 17  # 128 MiB of memory
MOST_LOG_N = 20
MOST_STANZAS = 64

T = TypeVar("T")

Wrapped = Annotated[bytes, Meta(min_length=16, max_length=2048)]


class RsaStanza(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="rsa-oaep-sha256"):
    """For the holder of an RSA private key."""

    kid: Digest
    wrapped: Wrapped


class AesStanza(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="aes256"):
    """For the holder of an AES key file."""

    kid: Digest
    wrapped: Wrapped


class ScryptStanza(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="scrypt"):
    """For whoever knows the passphrase; `log_n` is bounded, so that no file makes us work long or hold much."""

    kid: Annotated[str, Meta(pattern="^passphrase$")] = "passphrase"
    log_n: Annotated[int, Meta(ge=1, le=MOST_LOG_N)]
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    wrapped: Wrapped


Stanza = RsaStanza | AesStanza | ScryptStanza


class Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands readable at the head of a sealed file."""

    created_by: Annotated[str, Meta(max_length=256)] = f"modelctl {__version__}"
    stanzas: Annotated[tuple[Stanza, ...], Meta(min_length=1, max_length=MOST_STANZAS)]

    @property
    def ids(self) -> tuple[str, ...]:
        """The key ids of those who may open the file."""
        return tuple(one.kid for one in self.stanzas)


def encode(value: Any) -> bytes:
    """The one encoding: msgpack, shortest forms, sorted keys."""
    return msgspec.msgpack.encode(value, order="sorted")


def decode(data: bytes, kind: type[T], name: str) -> T:
    """What `encode` made `data` of; ArtifactError if it is of another type or stands in another encoding."""
    try:
        value = msgspec.msgpack.decode(data, type=kind)
        if encode(value) != data:
            raise ArtifactError(f"{name}: not in the one encoding (sorted, shortest, each key once)")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{name}: malformed: {error}") from error
    return value


def parse(data: bytes, name: str) -> Header:
    """The header in `data`; ArtifactError says what is wrong with the file called `name`, before any work is done."""
    header = decode(data, Header, f"{name}: header")
    if len(header.stanzas) > 1 and any(isinstance(one, ScryptStanza) for one in header.stanzas):
        raise ArtifactError(f"{name}: header: malformed: a passphrase's stanza must stand alone")
    return header


def wrap(content_key: bytes, recipients: Sequence[Recipient], beside: Sequence[Stanza] = ()) -> Header:
    """A header that lets each of `recipients` have the content key, and those whose stanzas stand in it already.

    UsageError for more than can be, for none, and for a passphrase that does not stand alone.
    """
    standing = {one.kid for one in beside}
    new = list({one.id: one for one in recipients if one.id not in standing}.values())
    count = len(new) + len(beside)
    if not 1 <= count <= MOST_STANZAS:
        raise UsageError(f"a file is sealed for 1 to {MOST_STANZAS} recipients, not for {count}")
    words = sum(isinstance(one, Passphrase) for one in new) + sum(isinstance(one, ScryptStanza) for one in beside)
    if words and count > 1:
        raise UsageError("a passphrase stands alone: no other recipient can be beside it")
    return Header(stanzas=(*beside, *(_wrapped(content_key, one) for one in new)))


def _wrapped(content_key: bytes, recipient: Recipient) -> Stanza:
    match recipient:
        case PublicKey():
            cipher = PKCS1_OAEP.new(recipient.material, hashAlgo=SHA256, label=LABEL)
            return RsaStanza(kid=recipient.id, wrapped=cipher.encrypt(content_key))
        case AesKey():
            return AesStanza(kid=recipient.id, wrapped=_kwp(recipient.secret).seal(content_key))
        case Passphrase():
            salt = secrets.token_bytes(SALT_BYTES)
            derived = _derived(recipient, salt, LOG_N)
            return ScryptStanza(salt=salt, log_n=LOG_N, wrapped=_kwp(derived).seal(content_key))


def unwrap(header: Header, keys: Iterable[OpeningKey], name: str) -> bytes:
    """The content key, by the first of `keys` that a stanza is for.

    UsageError with no keys at all, KeyFileError when none of them fits, IntegrityError when one fits and yet the
    wrapped key can't be what was written; `name` is the file's.
    """
    keys = tuple(keys)
    if not keys:
        raise UsageError(f"{name}: is sealed, for {told(header)}", _flag(header))
    for key in keys:
        for one in header.stanzas:
            found = _unwrapped(one, key, name)
            if found is not None:
                if len(found) != KEY_BYTES:
                    raise IntegrityError(f"{name}: the header has been changed")
                return found
    raise KeyFileError(f"{name}: is not sealed for a key that was given, but for {told(header)}", _flag(header))


def told(header: Header) -> str:
    """Who may open the file, in words."""
    words = {RsaStanza: "RSA key", AesStanza: "AES key", ScryptStanza: ""}
    return ", ".join(f"{words[type(one)]} {one.kid}".strip() for one in header.stanzas)


def _flag(header: Header) -> str:
    flags = {RsaStanza: "--identity KEY", AesStanza: "--key-file KEY", ScryptStanza: "--passphrase prompt"}
    return " or ".join(dict.fromkeys(flags[type(one)] for one in header.stanzas))


def _unwrapped(stanza: Stanza, key: OpeningKey, name: str) -> bytes | None:
    """The content key, or None when the stanza is another's."""
    try:
        match stanza, key:
            case RsaStanza(), PrivateKey() if stanza.kid == key.id:
                cipher = PKCS1_OAEP.new(key.material, hashAlgo=SHA256, label=LABEL)
                return bytes(cipher.decrypt(stanza.wrapped))
            case AesStanza(), AesKey() if stanza.kid == key.id:
                return bytes(_kwp(key.secret).unseal(stanza.wrapped))
            case ScryptStanza(), Passphrase():
                derived = _derived(key, stanza.salt, stanza.log_n)
                try:
                    return bytes(_kwp(derived).unseal(stanza.wrapped))
                except ValueError:
                    raise KeyFileError(f"{name}: the passphrase is not the one that it was sealed with") from None
    except ValueError:
        raise IntegrityError(f"{name}: the header has been changed") from None
    return None


def _kwp(key: bytes) -> Any:
    return AES.new(key, AES.MODE_KWP)


def _derived(word: Passphrase, salt: bytes, log_n: int) -> bytes:
    # OpenSSL asks to be allowed the memory: 128 r N bytes and a little.
    most = (128 * 8 << log_n) + (1 << 20)
    return hashlib.scrypt(word.secret.encode(), salt=salt, n=1 << log_n, r=8, p=1, maxmem=most, dklen=32)
