"""Spans on their way to a collector: OTLP over HTTP, in its JSON form (OpenTelemetry Protocol, 1.x).

That form is a few lines of `orjson`; OpenTelemetry's SDK would bring protobuf, requests and a tenth of a millisecond
of Python for each request, and its threads would have to be kept away from forks.

Spans wait in a bounded queue, which a thread empties every second or sooner when it is half full. What does not fit in,
or is not taken by the collector, is lost and counted; no request waits for it, or fails with it.

Of OpenTelemetry's environment variables these count: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
OTEL_EXPORTER_OTLP[_TRACES]_ENDPOINT, …_HEADERS, …_TIMEOUT (milliseconds), …_CERTIFICATE.
"""

import http.client
import logging
import os
import platform
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import orjson

from modelctl import __version__
from modelctl.errors import UsageError

logger = logging.getLogger("modelctl.serve")

WAITING = 8192  # spans in the queue
BATCH = 512  # spans in one message
PAUSE_S = 1.0
TIMEOUT_S = 10.0
END_S = 2.0
AGAIN = (429, 502, 503, 504)  # a collector that says so may be asked once more
AGAIN_S = 5.0  # how long that is waited for, at most


class Span(NamedTuple):
    """Something that took time; ids in hex, times in nanoseconds since 1970."""

    trace: str
    span: str
    parent: str
    state: str
    name: str
    kind: int
    began: int
    ended: int
    attributes: dict[str, Any]
    failed: bool


class Exporter:
    """Sends spans."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--otlp {url}: not an http URL", "--otlp http://127.0.0.1:4318/v1/traces")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"content-type": "application/json", "user-agent": f"modelctl/{__version__}"}
        self._headers |= _pairs(_variable("HEADERS"), lower=True)
        self._timeout_s = _seconds(_variable("TIMEOUT"))
        self._waiting: deque[Span] = deque()
        self._lost: Callable[[int], None] = lambda _: None
        self._wake = threading.Event()
        self._ends = False
        self._complained = False
        self._thread: threading.Thread | None = None

    def begin(self, lost: Callable[[int], None]) -> None:
        """Start to send; `lost` is told how many spans could not be."""
        self._lost = lost
        self._thread = threading.Thread(target=self._work, name="modelctl-traces", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Send what waits, if that is soon done."""
        self._ends = True
        self._timeout_s = min(self._timeout_s, END_S)
        self._wake.set()
        if self._thread is not None:
            self._thread.join(END_S)

    def put(self, spans: list[Span]) -> None:
        """Queue spans."""
        if len(self._waiting) + len(spans) > WAITING:
            self._lost(len(spans))
            return
        self._waiting.extend(spans)
        if len(self._waiting) > WAITING // 2:
            self._wake.set()

    def _work(self) -> None:
        while True:
            ends = self._ends
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                if not self._sent(message(batch)):
                    self._lost(len(batch))
            if ends:
                return
            self._wake.wait(PAUSE_S)
            self._wake.clear()

    def _sent(self, body: bytes) -> bool:
        """Whether the collector has taken a message."""
        try:
            status, after = self._post(body)
            if status in AGAIN and not self._ends:
                self._wake.wait(min(float(after) if after.isdigit() else 1.0, AGAIN_S))
                status, _ = self._post(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._complain(str(error) or type(error).__name__)
            return False
        if not 200 <= status < 300:
            self._complain(f"answered {status}")
            return False
        self._complained = False
        return True

    def _post(self, body: bytes) -> tuple[int, str]:
        if self._secure:
            trust = ssl.create_default_context(cafile=_variable("CERTIFICATE") or None)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=trust
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", self._target, body, self._headers)
            response = connection.getresponse()
            response.read(1 << 16)
            return response.status, response.headers.get("retry-after", "")
        finally:
            connection.close()

    def _complain(self, what: str) -> None:
        """Say once that the collector does not take spans, until it has taken some again."""
        if not self._complained:
            self._complained = True
            logger.warning("traces can't be sent to %s: %s; spans are lost", self._host, what.lower())


def message(spans: Iterable[Span]) -> bytes:
    """An ExportTraceServiceRequest of spans, in OTLP's JSON: ids in hex, 64-bit numbers as strings."""
    document = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource())},
                "scopeSpans": [{"scope": {"name": "modelctl", "version": __version__}, "spans": [*map(_span, spans)]}],
            }
        ]
    }
    return orjson.dumps(document)


def _span(one: Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        "traceId": one.trace,
        "spanId": one.span,
        "name": one.name,
        "kind": one.kind,
        "startTimeUnixNano": str(one.began),
        "endTimeUnixNano": str(one.ended),
        "attributes": _attributes(one.attributes),
        "status": {"code": 2} if one.failed else {},
    }
    if one.parent:
        found["parentSpanId"] = one.parent
    if one.state:
        found["traceState"] = one.state
    return found


def _attributes(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in facts.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}


def resource() -> dict[str, Any]:
    """Who sends: the service's name, and what the environment tells of it."""
    found: dict[str, Any] = {
        "service.name": "modelctl",
        "service.version": __version__,
        "host.name": platform.node(),
        "process.pid": os.getpid(),
    }
    found |= _pairs(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if name := os.environ.get("OTEL_SERVICE_NAME"):
        found["service.name"] = name
    return found


def _variable(name: str) -> str:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "")


def _pairs(text: str, *, lower: bool = False) -> dict[str, str]:
    """`a=b,c=d` with percent-encoded values, as OpenTelemetry writes it; what is malformed is left out."""
    found = {}
    for one in text.split(","):
        key, equals, value = one.strip().partition("=")
        plain = unquote(value.strip())
        if equals and key.strip() and plain.isprintable():
            found[key.strip().lower() if lower else key.strip()] = plain
    return found


def _seconds(text: str) -> float:
    return max(0.1, int(text) / 1000) if text.isdigit() else TIMEOUT_S
