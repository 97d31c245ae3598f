"""TLS: the server's certificate, and what a client's calls its owner."""

import importlib.util
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelctl.errors import KeyFileError
from modelctl.reading import Small

FILE = Small("a file in PEM", 4 << 20, KeyFileError, "--tls-cert cert.pem --tls-key key.pem")


def context(cert: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with this certificate; with `client_ca`, for clients whose certificates it has signed.

    KeyFileError for files that are missing, malformed or do not belong together.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    made.set_alpn_protocols(["h2", "http/1.1"] if speaks_h2() else ["http/1.1"])
    for path in filter(None, (cert, key, client_ca)):
        FILE.data(path)
    try:
        made.load_cert_chain(cert, key, password=_locked)
    except _LockedError:
        raise KeyFileError(
            f"{key}: is locked with a passphrase, and modelctl reads open keys", f"openssl pkey -in {key}"
        ) from None
    except (ssl.SSLError, OSError, ValueError) as error:
        raise KeyFileError(f"{cert}: not the certificate that {key} is the key of: {_reason(error)}") from None
    if client_ca is not None:
        try:
            made.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise KeyFileError(f"{client_ca}: not certificates in PEM: {_reason(error)}") from None
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def speaks_h2() -> bool:
    """Whether there is somebody who understands HTTP/2."""
    return importlib.util.find_spec("modelctl.serve.http2.connection") is not None


def names_of(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """What a client's certificate, as `ssl` tells of it, calls its owner: URI:, DNS:, email:, CN=."""
    told = [f"{kind}:{name}" for kind, name in certificate.get("subjectAltName", ()) if kind in ("URI", "DNS", "email")]
    told += [f"CN={value}" for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return tuple(sorted(told, key=lambda one: not one.startswith("URI:")))


class _LockedError(Exception):
    pass


def _locked() -> str:
    raise _LockedError


def _reason(error: Exception) -> str:
    words = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(words).replace("_", " ").lower()
