"""The parser of hostile input: what is a request, where it ends, and what is refused because there is a doubt."""

import asyncio
import random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wires import Pipe

from modelctl.options import ServeOptions
from modelctl.serve.connections import Connection
from modelctl.serve.heads import CHUNKED, Heads
from modelctl.serve.http import Answer, App, Request
from modelctl.serve.metrics import Board
from modelctl.serve.models import Models
from modelctl.serve.refusal import Refused
from modelctl.serve.wire import Wire

GET = b"GET /v2?a=b HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKS = (
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;name=value\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: yes\r\n\r\n"
)
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Echo(App):
    """Answers with what it understood, so that a test can see where each request began and ended."""

    def __init__(self) -> None:
        super().__init__(Models(Board()), ServeOptions(max_body_mb=0.001))
        self.seen: list[tuple[str, str, bytes]] = []

    def handle(self, request: Request) -> None:
        self.seen.append((request.head.method, request.head.path, request.body))
        request.reply(Answer(request.body))


def fed(*pieces: bytes) -> tuple[Echo, Pipe, Connection]:
    """What a connection makes of bytes that arrive in these pieces."""
    app, pipe = Echo(), Pipe()
    connection = Connection(Wire(app))
    connection.connection_made(cast(asyncio.Transport, pipe))
    for piece in pieces:
        if not pipe.closed:
            connection.data_received(piece)
    return app, pipe, connection


def without_date(sent: bytes) -> bytes:
    return b"\r\n".join(line for line in sent.split(b"\r\n") if not line.startswith(b"date:"))


def test_requests_are_the_same_wherever_they_are_split() -> None:
    stream = GET + b"\r\n" + POST + CHUNKS + POST + LAST
    whole, pipe, _ = fed(stream)
    assert whole.seen == [
        ("GET", "/v2", b""),
        *[("POST", "/echo", b"hello")] * 3,
        ("GET", "/last", b""),
    ]
    assert pipe.closed
    for place in range(1, len(stream)):
        app, other, _ = fed(stream[:place], stream[place:])
        assert app.seen == whole.seen, place
        assert without_date(other.sent) == without_date(pipe.sent)
    app, other, _ = fed(*(stream[place : place + 1] for place in range(len(stream))))
    assert app.seen == whole.seen


SMUGGLED = {
    "both lengths": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, turned round": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "the same length twice": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": b"Content-Length: 5, 5\r\n\r\nhello",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a list of codings": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding with a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"X: y\r\n Content-Length: 5\r\n\r\nhello",
    "a folded coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a bare lf": b"X: y\nContent-Length: 5\r\n\r\nhello",
    "a bare cr": b"X: y\rContent-Length: 5\r\n\r\nhello",
    "an end by bare lf": b"X: y\n\nGET /hidden HTTP/1.1\r\nHost: x\r\n\r\n",
    "a nul": b"X: y\0\r\n\r\n",
    "a signed length": b"Content-Length: +5\r\n\r\nhello",
    "a negative length": b"Content-Length: -5\r\n\r\nhello",
    "a hex length": b"Content-Length: 0x5\r\n\r\nhello",
    "an underscore": b"Content-Length: 1_0\r\n\r\nhellohello",
    "other digits": b"Content-Length: \xd9\xa5\r\n\r\nhello",
    "a length beyond numbers": b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "an empty length": b"Content-Length: \r\n\r\nhello",
    "two hosts": b"Host: y\r\n\r\n",
    "a name with a space": b"Content Length: 5\r\n\r\nhello",
    "no name": b": 5\r\n\r\nhello",
    "no colon": b"Content-Length\r\n\r\nhello",
    "a chunk's size with a sign": b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size with 0x": b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size with a space": b"Transfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size of many digits": b"Transfer-Encoding: chunked\r\n\r\n000000005\r\nhello\r\n0\r\n\r\n",
    "a chunk's line by bare lf": b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "an extension with a bare lf": b"Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than it says": b"Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
    "a chunk without an end": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
    "a trailer without a colon": b"Transfer-Encoding: chunked\r\n\r\n0\r\nGET /hidden HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("case", SMUGGLED)
def test_what_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_a_request(case: str) -> None:
    stream = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + SMUGGLED[case] + LAST
    for pieces in ([stream], [stream[place : place + 1] for place in range(len(stream))]):
        app, pipe, _ = fed(*pieces)
        assert app.seen == []
        assert pipe.closed
        assert pipe.sent.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"not an HTTP request" in pipe.sent
        assert pipe.sent.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/9.9\r\nHost: x\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n",
        b"GET /\r\nHost: x\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n",
        b"G\x01T / HTTP/1.1\r\nHost: x\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n",
        b"GET /%ff HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.1\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.1\r\n",
    ],
)
def test_what_is_no_request_of_http_1_is_refused(start: bytes) -> None:
    app, pipe, _ = fed(start + b"\r\n")
    assert app.seen == []
    assert pipe.closed
    assert pipe.sent.startswith(b"HTTP/1.1 400 ")


def test_long_heads_lines_and_trailers_are_cut_off() -> None:
    start = b"GET / HTTP/1.1\r\nHost: x\r\nX: "
    _, pipe, connection = fed(start, *[b"y" * 1000] * 70)
    assert pipe.closed
    assert pipe.sent.startswith(b"HTTP/1.1 431 ")
    assert connection._buffer == b""
    chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for rest in (b"5;" + b"x" * 5000, b"0\r\n" + b"X: y\r\n" * 5000, b"0\r\n" + b"X: " + b"y" * 5000):
        app, pipe, _ = fed(chunked, *[rest[place : place + 100] for place in range(0, len(rest), 100)])
        assert app.seen == []
        assert pipe.sent.startswith(b"HTTP/1.1 400 ")


def test_a_body_that_is_too_long_is_read_over_and_the_next_request_answered() -> None:
    long = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + b"y" * 2000
    chunked = (
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"190\r\n%b\r\n" % (b"z" * 400) * 3
    )
    for data in (long, chunked + b"0\r\n\r\n"):
        for cut in (len(data), 100, 1):
            app, pipe, _ = fed(*(data[place : place + cut] for place in range(0, len(data), cut)), LAST)
            assert app.seen == [("GET", "/last", b"")]
            assert pipe.sent.count(b"HTTP/1.1 413 ") == 1
            assert pipe.sent.count(b"HTTP/1.1 200 ") == 1
            assert app._held_bytes == 0


def test_who_asks_first_is_told_to_go_on_unless_the_body_is_not_wanted() -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    app, pipe, connection = fed(head % 5)
    assert pipe.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(b"hello")
    assert app.seen == [("POST", "/echo", b"hello")]
    _, pipe, _ = fed(head % 5000)
    assert pipe.sent.startswith(b"HTTP/1.1 413 ")


def test_the_client_of_http_1_0_is_answered_and_the_connection_closed() -> None:
    app, pipe, _ = fed(b"GET /v2 HTTP/1.0\r\n\r\n" + LAST)
    assert app.seen == [("GET", "/v2", b"")]
    assert pipe.closed


def test_a_head_request_has_no_body() -> None:
    _, pipe, _ = fed(b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert pipe.sent.endswith(b"content-length: 0\r\n\r\n")


def test_heads_that_are_remembered_stay_few() -> None:
    heads = Heads()
    for number in range(2000):
        heads.read(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
        heads.read(b"GET / HTTP/1.1\r\nHost: x\r\nX: %d%b\r\n\r\n" % (number, b"y" * 3000))
    assert len(heads._known) <= 512
    assert max(map(len, heads._known)) <= 2048


def test_heads_that_differ_in_their_length_alone_are_told_apart() -> None:
    heads = Heads()
    for name in (b"Content-Length", b"content-length", b"CONTENT-length"):
        start = b"POST /?a=Content-Length:%%201 HTTP/1.1\r\nHost: x\r\nX: Content-Length: 3\r\n%b: %b\r\nY: z\r\n\r\n"
        for length in (5, 0, 77, 5, 123456789):
            for known in (heads, Heads()):
                found = known.read(start % (name, b"%d" % length))
                assert (found.length, found.headers[b"y"]) == (length, b"z")
                assert found.headers[b"x"] == b"Content-Length: 3"
        for wrong in (b"", b"-1", b"+1", b"1 1", b"1,1", b"0x1", b"\xb2", b"9" * 16, b"1\r\nContent-Length: 1", b"1\n"):
            with pytest.raises(Refused):
                heads.read(start % (name, wrong))


def test_what_a_head_says_is_read() -> None:
    found = Heads().read(
        b"POST http://x:80/a%20b?c=%20d HTTP/1.1\r\nHOST: x\r\nX-A:  1 \r\nX-a: 2\r\nTransfer-Encoding: Chunked\r\n\r\n"
    )
    assert (found.method, found.path, found.query, found.length) == ("POST", "/a b", b"c=%20d", CHUNKED)
    assert found.headers[b"x-a"] == b"2"
    assert (found.keep_alive, found.expects) == (True, False)
    upgrade = Heads().read(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert upgrade.path == "/"


PARTS = st.sampled_from(
    [
        b"GET ",
        b"POST /echo",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"\r",
        b"Host: x\r\n",
        b"Content-Length: ",
        b"5",
        b"hello",
        b"0",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n\r\n",
        b": ",
        b" ",
        b"\t",
        b"\0",
        GET,
        POST,
        CHUNKS,
        LAST,
        b"5\r\nhello\r\n",
    ]
) | st.binary(max_size=6)


@settings(deadline=None, max_examples=300)
@given(st.lists(PARTS, max_size=12).map(b"".join), st.integers(0, 2**32 - 1))
def test_any_bytes_mean_the_same_however_they_arrive(stream: bytes, seed: int) -> None:
    whole, pipe, _ = fed(stream)
    chance = random.Random(seed)
    pieces, place = [], 0
    while place < len(stream):
        size = chance.randint(1, 20)
        pieces.append(stream[place : place + size])
        place += size
    app, other, _ = fed(*pieces)
    assert app.seen == whole.seen
    assert other.closed == pipe.closed
    assert [line for line in other.sent.split(b"\r\n") if line.startswith(b"HTTP/")] == [
        line for line in pipe.sent.split(b"\r\n") if line.startswith(b"HTTP/")
    ]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([GET, POST, CHUNKS]), st.data())
def test_a_request_with_a_byte_changed_is_understood_or_refused(request_: bytes, data: Any) -> None:
    place = data.draw(st.integers(0, len(request_) - 1))
    changed = request_[:place] + data.draw(st.binary(min_size=0, max_size=2)) + request_[place + 1 :]
    app, pipe, connection = fed(changed, b"", LAST)
    assert len(app.seen) + pipe.sent.count(b"HTTP/1.1 400 ") + pipe.sent.count(b"HTTP/1.1 413 ") <= 3
    assert len(connection._buffer) <= len(changed) + len(LAST)
    try:
        Heads().read(changed.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    except Refused as refused:
        assert (refused.status, refused.kind) == (400, "not_http")
