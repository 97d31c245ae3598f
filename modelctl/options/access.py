"""The knobs of `serve` that say who may ask, and what is told of it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modelctl.errors import UsageError
from modelctl.knobs import Knob, Remembered
from modelctl.options.shared import OpeningOptions

ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


@dataclass(frozen=True, kw_only=True)
class AccessOptions(OpeningOptions):
    """Who may ask a server, and what is told of it; files are read anew when they change."""

    api_keys: Annotated[
        Path | None,
        Knob("who may ask: the file that `keygen --type api` adds keys to", remembered=Remembered.NOT),
    ] = None
    jwt_keys: Annotated[
        Path | None, Knob("who may ask: a JWKS file of the public keys that sign JWTs", remembered=Remembered.NOT)
    ] = None
    jwt_issuer: Annotated[str | None, Knob("issuer that JWTs must have")] = None
    jwt_audience: Annotated[str | None, Knob("audience that JWTs must be for")] = None
    tls_cert: Annotated[
        Path | None, Knob("the server's certificates in PEM, its own first: answer over TLS", remembered=Remembered.NOT)
    ] = None
    tls_key: Annotated[
        Path | None, Knob("private key of the server's certificate, in PEM", remembered=Remembered.NOT)
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Knob("who may ask: certificates in PEM by which a client's must be signed", remembered=Remembered.NOT),
    ] = None
    cors_origins: Annotated[
        tuple[str, ...],
        Knob(
            "origin, such as https://app.example.com, whose pages may ask from a browser; repeatable; '*': any",
            flag="--cors-origin",
        ),
    ] = ()
    log_requests: Annotated[
        str | None, Knob("write a line of JSON for each request to this file, -: to stdout; SIGHUP opens it anew")
    ] = None
    log_payloads: Annotated[
        int, Knob("bytes of each body, at most, that are written with it; 0: none", low=0, high=1 << 20)
    ] = 0
    otlp: Annotated[
        str | None,
        Knob(
            "OTLP collector that spans are sent to, such as http://host:4318/v1/traces; by default "
            "$OTEL_EXPORTER_OTLP_ENDPOINT"
        ),
    ] = None
    trace_share: Annotated[float, Knob("share of the traces begun here that is recorded, 0 to 1", low=0, high=1)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({self.jwt_keys is None, self.jwt_issuer is None, self.jwt_audience is None}) != 1:
            raise UsageError(
                "--jwt-keys, --jwt-issuer and --jwt-audience go together",
                "--jwt-keys jwks.json --jwt-issuer https://issuer.example --jwt-audience modelctl",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together", "--tls-cert cert.pem --tls-key key.pem")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise UsageError("--tls-client-ca needs TLS", "add --tls-cert cert.pem --tls-key key.pem")
        for origin in self.cors_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise UsageError(f"--cors-origin {origin}: not scheme://host[:port]", "https://app.example.com")
        if self.log_payloads and self.log_requests is None:
            raise UsageError("--log-payloads needs a log", "add --log-requests requests.jsonl")
        if self.otlp is not None and not re.match("https?://[^/]", self.otlp):
            raise UsageError(f"--otlp {self.otlp}: not an http URL", "--otlp http://127.0.0.1:4318/v1/traces")

    @property
    def asks_who(self) -> bool:
        """Whether a client has to show who it is."""
        return not (self.api_keys is None and self.jwt_keys is None and self.tls_client_ca is None)

    @property
    def has_visits(self) -> bool:
        """Whether there is anything that is not done for a request of itself."""
        return self.asks_who or any((self.tls_cert, self.cors_origins, self.log_requests, self.collector))

    @property
    def collector(self) -> str | None:
        """Where spans are sent: as the options say, else as OpenTelemetry's own environment variables do."""
        said = os.environ.get
        off = said("OTEL_SDK_DISABLED", "").lower() == "true" or said("OTEL_TRACES_EXPORTER") == "none"
        if self.otlp is not None or off:
            return self.otlp
        base = said("OTEL_EXPORTER_OTLP_ENDPOINT")
        return said("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (f"{base.rstrip('/')}/v1/traces" if base else None)
