"""Who is let in: by an API key, a JWT, or a certificate.

    401    it is not known who asks; `WWW-Authenticate` says how to tell
    403    it is, and he may not
    429    he asks too often; `Retry-After` says when he may again

This is found out from the head of a request, before its body is read; of a model that only the body names, before it
is asked. Who may not ask a model is told so whether it is there or not. Open to everybody are the two questions of
health checks, over REST and gRPC, what browsers ask before a page may, and the files of our own page.
"""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from modelctl.crypto.api_keys import KEY_LETTERS, PREFIX
from modelctl.options import May, ServeOptions
from modelctl.serve.access import keys, tls
from modelctl.serve.access.callers import EVERYTHING, REMEMBERED, Caller
from modelctl.serve.access.kept import Kept
from modelctl.serve.access.rates import Rates
from modelctl.serve.heads import Head
from modelctl.serve.page.assets import PATHS
from modelctl.serve.refusal import Refused

if TYPE_CHECKING:
    from modelctl.serve.access.tokens import Tokens

OPEN = frozenset(
    {
        "/v2/health/live",
        "/v2/health/ready",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        *PATHS,
    }
)
LOADS = re.compile(r"/v2/repository/models/.*/(un)?load|/inference\.GRPCInferenceService/RepositoryModel(Unl|L)oad")
MODEL = re.compile(r"/(?:v1/models|v2/models|v2/repository/models|predict)/([^/]+)")
THIS_MODEL = "ask this model, or there is none"  # the same is said of both
CHALLENGE = b'Bearer realm="modelctl"'
TOKEN_BYTES = 16 << 10


@dataclass(frozen=True)
class Gate:
    """Lets in whom keys, tokens and certificates tell of."""

    keys: Kept[keys.Keys] | None
    tokens: "Tokens | None"
    certificates: bool  # every client has one
    rates: Rates

    def open(self, path: str) -> bool:
        """Whether everybody may ask there."""
        return path in OPEN

    def admit(self, caller: Caller, head: Head) -> None:
        """`Refused` 403 or 429 for what he may not, or not so often."""
        if caller.step_s and (wait := self.rates.take(caller)):
            after = (b"retry-after", b"%d" % math.ceil(wait))
            raise Refused(f"more than {caller.rights.rate:g} requests a second", 429, "rate", (after,))
        path = head.path
        if path in caller.admitted:
            return
        if path == "/metrics" and May.METRICS not in caller.may:
            raise forbidden(caller, "see metrics")
        if LOADS.fullmatch(path) and May.LOAD not in caller.may:
            raise forbidden(caller, "load and unload models")
        if (named := MODEL.match(path)) is not None:
            check_model(caller, named[1].rpartition(":")[0] or named[1] if path.startswith("/v1/") else named[1])
        if len(caller.admitted) >= REMEMBERED:
            caller.admitted.clear()
        caller.admitted.add(path)

    def who(self, headers: dict[bytes, bytes], names: Sequence[str]) -> Caller:
        """Who asks; `names` are those of his certificate. `Refused` 400 or 401."""
        caller = self._who(headers, names)
        if caller.until is not None and caller.until < time.time():
            raise unknown("the key or token has expired", b'error="invalid_token"')
        return caller

    def _who(self, headers: dict[bytes, bytes], names: Sequence[str]) -> Caller:
        authorization, key = headers.get(b"authorization"), headers.get(b"x-api-key")
        if authorization is not None:
            if key is not None:
                raise Refused("both Authorization and X-Api-Key are given", 400)
            if authorization[:7].lower() != b"bearer ":
                raise unknown("Authorization is not Bearer and a key or token")
            key = authorization[7:]
        if key is not None:
            return self._whose(key.strip())
        if self.keys is not None:
            for name in names:
                if (found := self.keys.value.by_certificate.get(name)) is not None:
                    return found
        if self.certificates and self.keys is None and self.tokens is None:
            return certified(names[0] if names else "certificate")
        raise unknown("who asks? send Authorization: Bearer KEY, or X-Api-Key: KEY")

    def _whose(self, key: bytes) -> Caller:
        found: Caller | None = None
        if self.keys is not None and len(key) == KEY_LETTERS and key.startswith(PREFIX.encode()):
            found = self.keys.value.find(key)
        elif self.tokens is not None and len(key) <= TOKEN_BYTES:
            found = self.tokens.find(key)
        if found is None:
            raise unknown("the key or token is not known here", b'error="invalid_token"')
        return found


@lru_cache(maxsize=1024)
def certified(name: str) -> Caller:
    """Somebody whose certificate is enough."""
    return Caller(name, EVERYTHING, "certificate")


def check_model(caller: Caller, name: str) -> None:
    """`Refused` 403 unless he may ask the model of that name, or would if it were there."""
    if not caller.asks(name):
        raise forbidden(caller, THIS_MODEL)


def unknown(message: str, more: bytes = b"") -> Refused:
    """The refusal of somebody who has not shown who he is."""
    challenge = CHALLENGE + (b", " + more if more else b"")
    return Refused(message, 401, headers=((b"www-authenticate", challenge),))


def forbidden(caller: Caller, what: str) -> Refused:
    """The refusal of somebody who may not."""
    challenge = CHALLENGE + b', error="insufficient_scope"'
    return Refused(f"{caller.name} may not {what}", 403, headers=((b"www-authenticate", challenge),))


def kept(options: ServeOptions) -> dict[str, Kept[Any]]:
    """The files that say who may ask, by what they are; KeyFileError for what is not right."""
    found: dict[str, Kept[Any]] = {}
    if (path := options.api_keys) is not None:
        found["keys"] = Kept([path], lambda: keys.read(path))
    if (jwks := options.jwt_keys) is not None:
        from modelctl.serve.access import tokens

        found["tokens"] = Kept([jwks], lambda: tokens.read(jwks))
    cert, key = options.tls_cert, options.tls_key
    if cert is not None and key is not None:
        found["tls"] = Kept([cert, key, options.tls_client_ca], lambda: tls.context(cert, key, options.tls_client_ca))
    return found


def gate(options: ServeOptions, files: dict[str, Kept[Any]], rates: Rates) -> Gate | None:
    """The gate that these options ask for."""
    if not options.asks_who:
        return None
    known: Tokens | None = None
    if "tokens" in files:
        from modelctl.serve.access import tokens

        known = tokens.Tokens(files["tokens"], options.jwt_issuer or "", options.jwt_audience or "")
    return Gate(files.get("keys"), known, options.tls_client_ca is not None, rates)
