"""JWTs (RFC 7519): signed by one of the keys of a JWKS file (RFC 7517), of one issuer, for one audience.

With which algorithm a token may be signed is settled by the key that it names, never by the token (RFC 8725, 3.1): so
`none` is no algorithm, and a public key is no secret of an HMAC. Secrets (`oct`) are not taken at all. A token must
have `exp` and `sub`, which is the caller's name; `nbf` and `iat` count where they are there.

What its bearer may stands in the claim `modelctl`, an object of `models`, `may`, `rate` and `burst` as in a file of
keys; without it he may ask all models. The words `modelctl:load` and `modelctl:metrics` in `scope` add to it.

A token that was found good is remembered until it expires or the keys change.
"""

import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from modelctl.crypto.api_keys import Rights
from modelctl.errors import KeyFileError, missing_extra
from modelctl.options import May
from modelctl.reading import Small
from modelctl.serve.access.callers import Caller
from modelctl.serve.access.gate import unknown
from modelctl.serve.access.kept import Kept
from modelctl.serve.refusal import Refused

try:
    import jwt
except ImportError:
    raise missing_extra("JWTs are read by PyJWT", "jwt") from None

FILE = Small("a JWKS file", 1 << 20, KeyFileError, "--jwt-keys jwks.json")
LEEWAY_S = 30.0  # by which clocks may differ
REMEMBERED = 4096
RSA_BITS = 2048
NAME = re.compile(r"[\x20-\x7e]{1,128}")
ALGORITHMS = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
TYPES = ("jwt", "at+jwt", "application/at+jwt")
TWO_PARTS = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class SigningKey:
    """A public key, and the algorithms that may have signed with its private half."""

    key: Any
    algorithms: tuple[str, ...]


SigningKeys = dict[str | None, SigningKey]  # by key id


def read(path: Path) -> SigningKeys:
    """The keys of a JWKS file; KeyFileError for what is not right, or is of no use to check signatures."""
    plain = FILE.json(FILE.data(path), path)
    keys = plain.get("keys") if isinstance(plain, dict) else None
    if not isinstance(keys, list) or not all(isinstance(one, dict) for one in keys):
        raise FILE.refused(path, 'not a JWKS file, which is {"keys": [{…}, …]}')
    found: SigningKeys = {}
    for one in keys:
        if one.get("use", "sig") != "sig":
            continue
        name = one.get("kid")
        if name is not None and not isinstance(name, str):
            raise KeyFileError(f"{path}: a kid that is no text")
        if name in found:
            raise KeyFileError(f"{path}: two keys with the kid {name!r}")
        found[name] = _key(one, f"{path}: key {name!r}")
    if not found:
        raise KeyFileError(f"{path}: has no key that signs")
    return found


def _key(one: dict[str, Any], what: str) -> SigningKey:
    if one.get("kty") == "oct":
        raise KeyFileError(f"{what}: a shared secret; whoever checks with it could sign with it")
    if "d" in one:
        raise KeyFileError(f"{what}: a private key, and only the public half is wanted here")
    algorithms = ALGORITHMS.get((str(one.get("kty")), one["crv"] if isinstance(one.get("crv"), str) else None))
    if algorithms is not None and "alg" in one:
        algorithms = (one["alg"],) if one["alg"] in algorithms else None
    if algorithms is None:
        raise KeyFileError(f"{what}: of a kind that is not taken; RSA, EC P-256, P-384, P-521 and Ed25519 are")
    try:
        key = jwt.PyJWK(one, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise KeyFileError(f"{what}: {str(error)[:100].lower() or 'malformed'}") from None
    if one["kty"] == "RSA" and key.key_size < RSA_BITS:
        raise KeyFileError(f"{what}: an RSA key of {key.key_size} bits, {RSA_BITS} are the least")
    return SigningKey(key, algorithms)


class Tokens:
    """Checks tokens, and remembers who sent good ones."""

    def __init__(self, keys: Kept[SigningKeys], issuer: str, audience: str) -> None:
        self._keys = keys
        self._of = keys.value
        self._issuer = issuer
        self._audience = audience
        self._known: dict[bytes, Caller] = {}

    def find(self, token: bytes) -> Caller:
        """Who a token says that its bearer is; `Refused` 401."""
        if self._of is not self._keys.value:
            self._of = self._keys.value
            self._known.clear()
        found = self._known.get(token)
        if found is None:
            found = self._read(token)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[token] = found
        return found

    def _read(self, token: bytes) -> Caller:
        if not TWO_PARTS.fullmatch(token):
            raise _invalid("neither a key nor a JWT")
        text = token.decode("ascii")
        try:
            header = jwt.get_unverified_header(text)
            key = self._signer(header)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                claims = jwt.decode(
                    text,
                    key.key,
                    algorithms=list(key.algorithms),
                    issuer=self._issuer,
                    audience=self._audience,
                    leeway=LEEWAY_S,
                    options={"require": ["exp", "iss", "aud", "sub"]},
                )
            return _caller(claims)
        except jwt.ExpiredSignatureError:
            raise _invalid("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise _invalid("the token is not yet good") from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            raise _invalid("the token is of another issuer, or for somebody else") from None
        except jwt.MissingRequiredClaimError as error:
            raise _invalid(f"the token has no {error.claim}") from None
        # What the library does not expect of a header or a claim: nested too deep, an infinite time.
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise _invalid("the token is malformed, or not signed by a key that is known here") from None

    def _signer(self, header: dict[str, Any]) -> SigningKey:
        """The key that a token's header names, if it is fit for what else the header says."""
        name = header.get("kid")
        keys = self._keys.value
        if name is None and len(keys) == 1:
            (key,) = keys.values()
        else:
            found = keys.get(name) if name is None or isinstance(name, str) else None
            if found is None:
                raise _invalid("the token is signed by a key that is not known here")
            key = found
        if header.get("alg") not in key.algorithms:
            raise _invalid("the token is signed in a way that is not that of its key")
        if "crit" in header or str(header.get("typ", "JWT")).lower() not in TYPES:
            raise _invalid("the token is of a kind that is not understood here")
        return key


def _invalid(message: str) -> Refused:
    return unknown(message, b'error="invalid_token"')


def _caller(claims: dict[str, Any]) -> Caller:
    """The caller that verified claims tell of."""
    name = claims["sub"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _invalid("the token's sub is not a plain name")
    try:
        rights = msgspec.convert(claims.get("modelctl", {}), Rights)
    except msgspec.ValidationError as error:
        raise _invalid(f"the token's claim modelctl: {str(error)[:100]}") from None
    scope = claims.get("scope", "")
    words = scope.split() if isinstance(scope, str) else []
    added = tuple(may for may in May if f"modelctl:{may.value}" in words)
    rights = msgspec.structs.replace(rights, may=(*rights.may, *added))
    until = float(claims["exp"]) + LEEWAY_S
    if not until < time.time() + 1e10:
        raise _invalid("the token never expires")
    return Caller(name, rights, "jwt", until)
