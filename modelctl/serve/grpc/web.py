"""gRPC-Web (grpc/grpc, doc/PROTOCOL-WEB.md): calls by POST, for browsers, over whatever HTTP there is.

    application/grpc-web[+proto]         messages as gRPC frames them, then the trailers as another frame, flag 0x80
    application/grpc-web-text[+proto]    the same in base64, of which each piece may be padded by itself

Trailers are lines, `name: value` and CRLF. To the services such a call looks like any other. In one whose messages come
one after the other all of them are read before the first is answered, and answered before anything is sent. What never
ends (Health.Watch) is sent as it comes: see `endless`.
"""

import base64
import binascii
import re
from collections import deque
from collections.abc import Iterator

from modelctl.serve.grpc.calls import (
    METHOD,
    PREFIX_BYTES,
    STREAMED,
    WEB,
    WEB_TEXT,
    Call,
    CallRequest,
    call_of,
    framed,
    kind_of,
    trailers_frame,
    unpacked,
)
from modelctl.serve.http import Answer, App, Request
from modelctl.serve.refusal import Refused

MESSAGES = 1000  # of one call
ENDLESS = {"/grpc.health.v1.Health/Watch"}

_PIECE = re.compile(rb"[^=]+={0,2}")


def ask(app: App, request: Request) -> None:
    """Have a call answered that came by POST."""
    kind = kind_of(request.head)
    text = kind.startswith(WEB_TEXT)
    if kind.removesuffix(b"+proto") not in (WEB, WEB_TEXT):
        raise Refused("this is called by gRPC over HTTP/2, or by gRPC-Web: application/grpc-web", 415)
    inner = CallRequest(request.head._replace(method=METHOD), b"", lambda _, answer: line.finish(answer))
    inner.visit = request.visit
    line = inner.line = _line_of(request)(app, request, inner, kind)
    try:
        call = call_of(request.head)
        if call.refused is not None:
            raise call.refused
        messages = deque(_messages(_decoded(request.body) if text else request.body, call, app.limit_bytes))
        if request.head.path not in STREAMED and len(messages) != 1:
            raise Refused("the call has not exactly one message, whole")
        line.begin(messages, call)
    except Refused as refused:
        app.refuse(inner, refused)


def _line_of(request: Request) -> "type[WebLine]":
    if request.head.path not in ENDLESS:
        return WebLine
    from modelctl.serve.grpc.endless import EndlessLine

    return EndlessLine


def _decoded(body: bytes) -> bytes:
    try:
        return b"".join(base64.b64decode(one, validate=True) for one in _PIECE.findall(body.translate(None, b"\r\n")))
    except binascii.Error as error:
        raise Refused("the body is not base64") from error


def _messages(body: bytes, call: Call, limit_bytes: int) -> Iterator[bytes]:
    """The messages of a body; `Refused` where it is cut off, or has too many."""
    place = count = 0
    while place < len(body):
        end = place + PREFIX_BYTES + int.from_bytes(body[place + 1 : place + PREFIX_BYTES], "big")
        count += 1
        if end > len(body) or place + PREFIX_BYTES > len(body) or count > MESSAGES:
            raise Refused("the last message is cut off" if count <= MESSAGES else "too many messages in one call")
        yield unpacked(body[place], body[place + PREFIX_BYTES : end], call, limit_bytes)
        place = end


class WebLine:
    """The way back to the client: what is sent is kept until all of it is there."""

    def __init__(self, app: App, request: Request, inner: CallRequest, kind: bytes) -> None:
        self._app = app
        self._request = request
        self._inner = inner
        self._kind = kind
        self._sent: list[bytes] = []
        self._inbox: deque[bytes] = deque()
        self._delivering = self._ended = self._over = False

    def begin(self, messages: deque[bytes], call: Call) -> None:
        """Have the messages of the client answered."""
        inner = self._inner
        inner.deadline = call.deadline()
        self._inbox = messages
        if messages:
            inner.body = messages[0]
        self._app.handle(inner)
        if inner.talk is not None:
            self.resume()
        if not self._over:
            self._request.job = inner.job  # so that it is cancelled when the client leaves

    def enter(self, request: Request) -> None:
        """Meet a message: whoever asks was met with the call."""
        request.visit = self._inner.visit

    def push(self, message: bytes) -> None:
        """Send a message."""
        self._sent.append(framed(message))

    def close(self) -> None:
        """End the call; all was well."""
        self.finish(Answer(b""))

    def resume(self) -> None:
        """Hand on what has come, as long as it is wanted."""
        talk = self._inner.talk
        if talk is None or self._delivering or self._over:
            return
        self._delivering = True
        while self._inbox and not talk.full and not self._over:
            talk.heard(self._inbox.popleft())
        self._delivering = False
        if not self._inbox and not self._ended and not self._over:
            self._ended = True
            talk.ended()

    def finish(self, answer: Answer) -> None:
        """Send all there is: messages, then trailers."""
        if self._over:
            return
        self._over = True
        talk, model = self._inner.talk, self._inner.model
        if talk is not None:
            talk.lost()
        elif answer.status == 200:
            self.push(answer.body)
        trailers = [*answer.headers] if answer.status != 200 else [(b"grpc-status", b"0"), *answer.headers]
        if model is not None:
            trailers.append(model.header)
        self._request.model = model
        self._request.job = None
        self._request.reply(Answer(self._written(b"".join(self._sent) + trailers_frame(trailers)), self._kind))

    def _written(self, data: bytes) -> bytes:
        """Some of the body, as it is sent."""
        return base64.b64encode(data) if self._kind.startswith(WEB_TEXT) else data
