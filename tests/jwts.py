"""JWTs made by hand (RFC 7515), so that who reads them is not asked about itself."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER = "https://issuer.example"
AUDIENCE = "modelctl"


def b64(data: bytes) -> str:
    """base64url without its padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def number(value: int) -> str:
    """A number as a JWK holds it."""
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def claims(**more: Any) -> dict[str, Any]:
    """Claims that are in order, and others; one that is None is left out."""
    now = int(time.time())
    found = {"iss": ISSUER, "aud": AUDIENCE, "sub": "dora", "exp": now + 600, **more}
    return {name: value for name, value in found.items() if value is not None}


class Signer:
    """A private key: RSA, Ed25519 or EC P-256, by the name of its algorithm."""

    def __init__(self, alg: str, kid: str | None = "one") -> None:
        self.alg, self.kid = alg, kid
        self.key: Any
        if alg == "RS256":
            self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        elif alg == "ES256":
            self.key = ec.generate_private_key(ec.SECP256R1())
        else:
            self.key = ed25519.Ed25519PrivateKey.generate()

    def jwk(self, **more: Any) -> dict[str, Any]:
        """The public half."""
        public = self.key.public_key()
        found: dict[str, Any] = {"kid": self.kid, "use": "sig"} if self.kid is not None else {}
        if self.alg == "RS256":
            numbers = public.public_numbers()
            return {**found, "kty": "RSA", "n": number(numbers.n), "e": number(numbers.e), **more}
        if self.alg == "ES256":
            numbers = public.public_numbers()
            x, y = (b64(one.to_bytes(32, "big")) for one in (numbers.x, numbers.y))
            return {**found, "kty": "EC", "crv": "P-256", "x": x, "y": y, **more}
        return {**found, "kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw()), **more}

    def token(self, payload: Any = None, header: dict[str, Any] | None = None) -> str:
        """A token with these claims, and what else its header says."""
        head = {"alg": self.alg, "typ": "JWT"} | ({"kid": self.kid} if self.kid is not None else {}) | (header or {})
        body = payload if isinstance(payload, bytes) else json.dumps(claims() if payload is None else payload).encode()
        signed = f"{b64(json.dumps(head).encode())}.{b64(body)}"
        return f"{signed}.{b64(self.sign(signed.encode()))}"

    def sign(self, data: bytes) -> bytes:
        """The signature of bytes."""
        if self.alg == "RS256":
            made: bytes = self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        elif self.alg == "ES256":
            r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
            made = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        else:
            made = self.key.sign(data)
        return made


def by_secret(secret: bytes, header: dict[str, Any]) -> str:
    """A token that is signed by HMAC with `secret`, whatever that is."""
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims()).encode())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def jwks(*keys: dict[str, Any]) -> str:
    """The text of a JWKS file."""
    return json.dumps({"keys": list(keys)})
