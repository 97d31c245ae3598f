"""A call as gRPC has it over HTTP/2 (grpc/grpc, doc/PROTOCOL-HTTP2.md): what its head asks, how it ends, its messages.

A message on the wire is `compressed:u8 length:u32` (big-endian) and its bytes. A call ends with trailers:
`grpc-status`, `grpc-message` (percent-encoded), and `modelctl-model` where a model answered. To the application a call
is a request of the method GRPC, whose body is the message alone; so is its answer's.
"""

import re
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from modelctl.serve.heads import Head
from modelctl.serve.http import Answer, Request
from modelctl.serve.refusal import Refused

METHOD = "GRPC"
CONTENT_TYPE = b"application/grpc"
WEB, WEB_TEXT = b"application/grpc-web", b"application/grpc-web-text"
KINDS = frozenset(one + more for one in (CONTENT_TYPE, WEB, WEB_TEXT) for more in (b"", b"+proto"))
PREFIX_BYTES = 5
ENCODINGS = b"identity, gzip"
MESSAGE_BYTES = 1024  # of a status, longer ones are cut

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED = range(8)
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = range(8, 15)
UNAUTHENTICATED = 16

# Calls in which messages come one after the other, either way.
STREAMED = frozenset(
    {
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)

_CODES = {
    400: INVALID_ARGUMENT,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: NOT_FOUND,
    405: UNIMPLEMENTED,
    408: DEADLINE_EXCEEDED,
    409: ABORTED,
    413: RESOURCE_EXHAUSTED,
    415: UNIMPLEMENTED,
    429: RESOURCE_EXHAUSTED,
    431: RESOURCE_EXHAUSTED,
    499: CANCELLED,
    500: INTERNAL,
    501: UNIMPLEMENTED,
    503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_UNSAFE = re.compile(rb"[^\x20-\x24\x26-\x7e]")


@dataclass(frozen=True, slots=True)
class Call:
    """What the head of a call asks: within which time, in which encoding; or why there is no such call."""

    timeout_s: float | None = None
    encoding: bytes = b"identity"
    refused: Refused | None = None

    def deadline(self) -> float | None:
        """Until when the answer is waited for, by the clock of `time.monotonic`, if the call begins now."""
        return None if self.timeout_s is None else time.monotonic() + self.timeout_s


class Talk(Protocol):
    """The server's side of a call in which messages come one after the other."""

    @property
    def full(self) -> bool:
        """Whether no further message is to be taken in for now."""

    def heard(self, message: bytes) -> None:
        """A message has come."""

    def ended(self) -> None:
        """No more will come."""

    def lost(self) -> None:
        """Nobody waits for anything any more."""

    def wind_down(self) -> None:
        """The server ends; called again and again."""


class Line(Protocol):
    """The way back to the client of such a call."""

    def push(self, message: bytes) -> None:
        """Send a message."""

    def close(self) -> None:
        """End the call; all was well."""

    def resume(self) -> None:
        """Go on taking messages in."""

    def enter(self, request: Request) -> None:
        """Meet a message that is a request of its own, where somebody wants to know who asks."""


class CallRequest(Request):
    """A call, or a message of one; `deadline` is by the clock of `time.monotonic`."""

    # What most calls have not got is told by the class, and costs them nothing.
    deadline: float | None = None
    line: Line | None = None  # there is one where messages come one after the other
    talk: Talk | None = None

    def refused(self, error: Refused) -> Answer:
        """The answer to a call that failed."""
        return Answer(b"", CONTENT_TYPE, error.status, trailers_of(error))


def kind_of(head: Head) -> bytes:
    """A request's type of content, without what more is said of it."""
    return head.headers.get(b"content-type", b"").partition(b";")[0].strip()


def call_of(head: Head) -> Call:
    """What a head asks."""
    headers = head.headers
    encoding = headers.get(b"grpc-encoding", b"identity")
    if kind_of(head) not in KINDS:
        return Call(refused=Refused("calls are in protobuf: application/grpc", 415))
    if encoding not in (b"identity", b"gzip"):
        more = ((b"grpc-accept-encoding", ENCODINGS),)
        return Call(refused=Refused("messages are read as they are, or in gzip", 501, "media_type", more))
    given = headers.get(b"grpc-timeout")
    if given is None:
        return Call(None, encoding)
    found = _TIMEOUT.fullmatch(given)
    if found is None:
        return Call(refused=Refused("grpc-timeout is no time"))
    return Call(int(found[1]) * _SECONDS[found[2]], encoding)


def code_of(status: int) -> int:
    """gRPC's code for a status of HTTP."""
    return _CODES.get(status, UNKNOWN)


def trailers_of(error: Refused) -> tuple[tuple[bytes, bytes], ...]:
    """What a call ends with that failed."""
    message = error.message.encode()[:MESSAGE_BYTES]
    escaped = _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], message)
    more = [(name.lower(), value) for name, value in error.headers]
    for name, value in error.headers:
        if name.lower() == b"retry-after" and value.isdigit():  # gRFC A6 has a word of its own for it
            more.append((b"grpc-retry-pushback-ms", b"%d000" % int(value)))
    return ((b"grpc-status", b"%d" % code_of(error.status)), (b"grpc-message", escaped), *more)


def framed(message: bytes) -> bytes:
    """A message as it goes over the wire."""
    return b"\0%b%b" % (len(message).to_bytes(4, "big"), message)


def trailers_frame(trailers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Trailers as gRPC-Web has them, the last frame of a body."""
    lines = b"".join(b"%b: %b\r\n" % one for one in trailers)
    return b"\x80" + len(lines).to_bytes(4, "big") + lines


def only_message(body: bytes, call: Call, limit_bytes: int) -> bytes:
    """The one message of a call that has but one."""
    if len(body) < PREFIX_BYTES or int.from_bytes(body[1:PREFIX_BYTES], "big") != len(body) - PREFIX_BYTES:
        raise Refused("the call has not exactly one message, whole")
    return unpacked(body[0], body[PREFIX_BYTES:], call, limit_bytes)


def unpacked(flag: int, data: bytes, call: Call, limit_bytes: int) -> bytes:
    """A message out of its bytes on the wire, `flag` before them."""
    if not flag:
        return data
    if flag != 1 or call.encoding != b"gzip":
        raise Refused("a message is compressed, and grpc-encoding does not say how")
    unzip = zlib.decompressobj(wbits=31)
    try:
        message = unzip.decompress(data, limit_bytes + 1)
    except zlib.error as error:
        raise Refused("a message is not gzip") from error
    if len(message) > limit_bytes:
        raise Refused(f"the body is larger than {limit_bytes} bytes", 413)
    if not unzip.eof or unzip.unused_data:
        raise Refused("a message is not gzip from its beginning to its end")
    return message
