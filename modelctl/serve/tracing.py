"""Where a request stands in a trace, and the spans that tell of it.

Contexts come and go as `traceparent` (W3C Trace Context, level 1: version, trace id, parent's span id, flags). One that
is malformed is none; a `tracestate` is kept with the spans where its parent is good. The answer's `traceparent` names
the server's span. Without a context a request begins a trace if it is recorded, and else is in none.

A span of the server has two children, the wait for the model and its run, and the attributes of OpenTelemetry's
semantic conventions for HTTP. A request is recorded if its parent was, as the flag says; of traces that begin here, so
many as `--trace-share` says, which its id decides.
"""

import random
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.serve.otlp import Exporter, Span

if TYPE_CHECKING:
    from modelctl.serve.visits import Visit

PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}"
)
MEMBERS = 32
STATE_BYTES = 512
SERVER, INTERNAL = 2, 1
GRPC = "GRPC"  # the method of a call's head


class Context(NamedTuple):
    """A trace's id, the server's span in it and the parent's, whether it is recorded, and the `tracestate`."""

    trace: str
    span: str
    parent: str
    sampled: bool
    state: str

    @property
    def header(self) -> tuple[bytes, bytes]:
        """What the answer says of it."""
        return b"traceparent", f"00-{self.trace}-{self.span}-0{int(self.sampled)}".encode()


def context(headers: Mapping[bytes, bytes], tracer: "Tracer | None") -> Context | None:
    """The context of a request with these headers, the server's own span in it; None: it is in no trace."""
    found = headers.get(b"traceparent")
    if found is not None and (parent := read_parent(found)) is not None:
        trace, above, sampled = parent
        return Context(trace, _new_span(), above, sampled, read_state(headers.get(b"tracestate", b"")))
    if tracer is None:
        return None
    number = random.getrandbits(128) or 1
    return Context(f"{number:032x}", _new_span(), "", True, "") if tracer.draws(number) else None


def _new_span() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


def read_parent(value: bytes) -> tuple[str, str, bool] | None:
    """Trace id, span id and whether it is recorded, of a `traceparent`; None for what is none."""
    found = PARENT.fullmatch(value.strip(b" \t"))
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace, span = found[2].decode(), found[3].decode()
    if not trace.strip("0") or not span.strip("0"):
        return None
    return trace, span, bool(int(found[4], 16) & 1)


def read_state(value: bytes) -> str:
    """A `tracestate` as it came; empty if it is malformed or too long, for then it says nothing."""
    if not value or len(value) > STATE_BYTES:
        return ""
    members = [one.strip(" \t") for one in value.decode("latin-1").split(",")]
    members = [one for one in members if one]
    keys = {one.partition("=")[0] for one in members}
    if len(members) > MEMBERS or len(keys) != len(members) or not all(map(MEMBER.fullmatch, members)):
        return ""
    return ",".join(members)


class Tracer:
    """Makes spans of requests that are over."""

    def __init__(self, url: str, share: float) -> None:
        self._below = int(share * 2**64)
        self._exporter = Exporter(url)

    def begin(self, lost: Callable[[int], None]) -> None:
        """Start to send; `lost` is told how many spans could not be."""
        self._exporter.begin(lost)

    def end(self) -> None:
        """Send what waits, if that is soon done."""
        self._exporter.end()

    def draws(self, trace: int) -> bool:
        """Whether a trace that begins here is recorded."""
        return trace & (2**64 - 1) < self._below

    def record(self, visit: "Visit", status: int, size: int, took: tuple[float, float, float]) -> None:
        """The spans of a request that is over."""
        context = visit.context
        assert context is not None
        total, queue, compute = (int(one * 1e9) for one in took)
        ended = time.time_ns()
        began = ended - total
        mine = Span(
            context.trace, context.span, context.parent, context.state, _name(visit), SERVER, began, ended,
            _attributes(visit, status, size), status >= 500 or status == 499,
        )  # fmt: skip
        spans = [mine]
        if compute >= 0 and visit.arrived:
            arrived = began + int((visit.arrived - visit.began) * 1e9)
            facts = _model_facts(visit)
            for name, start, end in (
                ("queue", arrived, arrived + queue),
                ("compute", arrived + queue, arrived + queue + compute),
            ):
                spans.append(
                    Span(
                        context.trace,
                        _new_span(),
                        context.span,
                        context.state,
                        name,
                        INTERNAL,
                        start,
                        end,
                        facts,
                        False,
                    )
                )
        self._exporter.put(spans)


def _name(visit: "Visit") -> str:
    """What a span is called: of few names, so that those of one kind are found together."""
    head = visit.request.head
    if head.method == GRPC:
        return head.path[1:] if visit.routed else "grpc"
    return f"{head.method} {head.path}" if visit.routed else head.method


def _model_facts(visit: "Visit") -> dict[str, Any]:
    model = visit.request.model
    if model is None:
        return {}
    return {
        "modelctl.model.name": model.name,
        "modelctl.model.version": model.version,
        "modelctl.model.digest": f"sha256:{model.digest}",
    }


def _attributes(visit: "Visit", status: int, size: int) -> dict[str, Any]:
    head, guest = visit.request.head, visit.guest
    found: dict[str, Any] = {
        "http.request.method": "POST" if head.method == GRPC else head.method,
        "url.path": head.path,
        "url.scheme": guest.scheme,
        "http.response.status_code": status,
        "http.request.body.size": len(visit.request.body),
        "http.response.body.size": size,
        "client.address": guest.remote,
        "network.protocol.name": "http",
        **_model_facts(visit),
    }
    if visit.routed:
        found["http.route"] = head.path
    if head.method == GRPC:
        service, _, method = head.path[1:].rpartition("/")
        found |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    if (host := head.headers.get(b"host")) is not None:
        found["server.address"] = host.decode("latin-1").rpartition(":")[0] or host.decode("latin-1")
    if (agent := head.headers.get(b"user-agent")) is not None:
        found["user_agent.original"] = agent[:256].decode("latin-1")
    if visit.kind:
        found["error.type"] = visit.kind
    if visit.caller is not None:
        found["user.name"] = visit.caller.name
    return found
