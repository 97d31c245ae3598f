"""HTTP/2: requests are what their frames say, answers wait for leave, and who breaks the protocol is told how."""

import random

import pytest
from h2peer import CALL, END_HEADERS, END_STREAM, GET, POST, START, Echo, Fields, Peer
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.serve.http import Answer
from modelctl.serve.http2 import control, frames, receiving
from modelctl.serve.http2.frames import Code, frame


def data(number: int, payload: bytes = b"", flags: int = END_STREAM) -> bytes:
    return frame(frames.DATA, flags, number, payload)


def test_requests_are_the_same_wherever_they_are_split() -> None:
    def stream(peer: Peer) -> bytes:
        first = peer.headers(1, GET, END_HEADERS | END_STREAM)
        block = peer.block([*POST, ("x", "y" * 50)])
        split = frame(frames.HEADERS, 0, 3, block[:5]) + frame(frames.CONTINUATION, END_HEADERS, 3, block[5:])
        padded = frame(frames.DATA, frames.PADDED, 3, b"\x03hel\0\0\0") + data(3, b"lo")
        priority = frame(frames.HEADERS, END_HEADERS | frames.WITH_PRIORITY, 5, b"\0\0\0\0\x10" + peer.block(POST))
        trailers = peer.headers(5, [("trailer", "yes")], END_HEADERS | END_STREAM)
        unknown = frame(0x2A, 0xFF, 5, b"what is this")
        return first + split + padded + priority + data(5, b"hello", 0) + unknown + trailers

    seen = [("GET", "/echo", b""), ("POST", "/echo", b"hello"), ("POST", "/echo", b"hello")]
    whole = Peer()
    whole.feed(sent := stream(Peer()))
    assert whole.app.seen == seen
    assert [whole.reply(number).body for number in (1, 3, 5)] == [b"", b"hello", b"hello"]
    assert whole.reply(3).headers[":status"] == "200"
    assert whole.reply(3).headers["content-length"] == "5"
    for place in range(1, len(sent)):
        peer = Peer().feed(sent[:place], sent[place:])
        assert peer.app.seen == seen, place
    start = START + sent
    assert Peer(start=b"").feed(*(start[one : one + 1] for one in range(len(start)))).app.seen == seen


def test_a_block_that_is_remembered_means_what_the_table_says_now() -> None:
    peer = Peer()
    for number, path in ((1, "/a"), (3, "/a"), (5, "/a")):
        peer.ask(number, [*POST[:2], (":path", path), POST[3]])
    once = peer.encoder.encode([*POST[:2], (":path", "/a"), POST[3]])
    # One more entry moves all others: the same bytes are another path now, or none.
    peer.feed(frame(frames.HEADERS, END_HEADERS | END_STREAM, 7, once))
    peer.ask(9, [*POST[:2], (":path", "/b"), POST[3]])
    peer.feed(
        frame(frames.HEADERS, END_HEADERS | END_STREAM, 11, peer.encoder.encode([*POST[:2], (":path", "/b"), POST[3]]))
    )
    assert [path for _, path, _ in peer.app.seen] == ["/a"] * 4 + ["/b"] * 2
    shifted = Peer()
    add = [b"\x44\x02/a", b"\x44\x02/b"]  # literals of :path with incremental indexing
    indexed = b"\x83\x86\x41\x01x\xbf"  # POST http, :authority new each time, and what was the table's second entry
    shifted.feed(frame(frames.HEADERS, 0x5, 1, b"\x83\x86\x41\x01x" + add[0]))
    shifted.feed(frame(frames.HEADERS, 0x5, 3, indexed))
    shifted.feed(frame(frames.HEADERS, 0x5, 5, b"\x83\x86\x41\x01x" + add[1]))
    shifted.feed(frame(frames.HEADERS, 0x5, 7, indexed))
    assert [path for _, path, _ in shifted.app.seen] == ["/a", "/a", "/b", "/b"]


def test_a_resized_table_is_forgotten() -> None:
    peer = Peer()
    peer.ask(1)
    known = peer.block(POST)
    peer.feed(frame(frames.HEADERS, END_HEADERS | END_STREAM, 3, known))
    peer.feed(frame(frames.HEADERS, END_HEADERS | END_STREAM, 5, known))
    peer.feed(frame(frames.HEADERS, END_HEADERS | END_STREAM, 7, b"\x20\x83\x86\x04\x02/c\x01\x01x"))
    assert peer.app.seen[-1] == ("POST", "/c", b"")
    peer.feed(frame(frames.HEADERS, END_HEADERS | END_STREAM, 9, known))  # it points into a table that is empty
    assert peer.goaway == Code.COMPRESSION_ERROR


MALFORMED: dict[str, Fields] = {
    "no method": POST[1:],
    "no path": [*POST[:2], POST[3]],
    "an empty path": [*POST[:2], (":path", ""), POST[3]],
    "a path that is none": [*POST[:2], (":path", "echo"), POST[3]],
    "no scheme": [POST[0], *POST[2:]],
    "no authority": POST[:3],
    "two methods": [POST[0], *POST],
    "an unknown pseudo-header": [(":protocol", "websocket"), *POST],
    "a pseudo-header of answers": [(":status", "200"), *POST],
    "a pseudo-header behind others": [("x", "y"), *POST],
    "another host": [*POST, ("host", "y")],
    "connection": [*POST, ("connection", "close")],
    "transfer-encoding": [*POST, ("transfer-encoding", "chunked")],
    "upgrade": [*POST, ("upgrade", "h2c")],
    "te": [*POST, ("te", "gzip")],
    "two lengths": [*POST, ("content-length", "0"), ("content-length", "1")],
    "a length that is none": [*POST, ("content-length", "+0")],
    "another length": [*POST, ("content-length", "7")],
    "capitals": [*POST, ("X", "y")],
    "a space in a name": [*POST, ("x y", "y")],
    "an empty name": [*POST, ("", "y")],
    "a line within a value": [*POST, ("x", "y\r\nz: a")],
    "a nul": [*POST, ("x", "\0")],
    "a space before a value": [*POST, ("x", " y")],
    "a line in a path": [*POST[:2], (":path", "/a\r\nb"), POST[3]],
    "a space in a path": [*POST[:2], (":path", "/a b"), POST[3]],
    "our own method": [(":method", "GRPC"), *POST[1:]],
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_reset_and_others_go_on(fields: Fields) -> None:
    peer = Peer()
    peer.feed(peer.headers(1, fields, END_HEADERS | END_STREAM))
    assert peer.app.seen == []
    assert peer.reply(1).reset == Code.PROTOCOL_ERROR
    assert peer.ask(3, body=b"hello").reply(3).body == b"hello"


BROKEN = {
    "no settings first": (frames.PREFACE + frame(frames.PING, 0, 0, b"01234567"), Code.PROTOCOL_ERROR),
    "another preface": (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Code.PROTOCOL_ERROR),
    "a frame too long": (START + b"\x01\x00\x01\x00\x00\x00\x00\x00\x01", Code.FRAME_SIZE_ERROR),
    "data for no stream": (START + data(1), Code.PROTOCOL_ERROR),
    "data for the connection": (START + data(0), Code.PROTOCOL_ERROR),
    "headers for the connection": (START + frame(frames.HEADERS, 0x5, 0, b"\x82"), Code.PROTOCOL_ERROR),
    "an even stream": (START + frame(frames.HEADERS, 0x5, 2, b"\x82"), Code.PROTOCOL_ERROR),
    "continuation of nothing": (START + frame(frames.CONTINUATION, 0x4, 1, b"\x82"), Code.PROTOCOL_ERROR),
    "something within a block": (
        START + frame(frames.HEADERS, 0x1, 1, b"\x82") + frame(frames.PING, 0, 0, b"01234567"),
        Code.PROTOCOL_ERROR,
    ),
    "another stream within a block": (
        START + frame(frames.HEADERS, 0x1, 1, b"\x82") + frame(frames.CONTINUATION, 0x4, 3, b"\x82"),
        Code.PROTOCOL_ERROR,
    ),
    "padding longer than its frame": (START + frame(frames.HEADERS, 0xD, 1, b"\x05\x82"), Code.PROTOCOL_ERROR),
    "a priority cut off": (START + frame(frames.HEADERS, 0x25, 1, b"\x05\x82"), Code.FRAME_SIZE_ERROR),
    "a push": (START + frame(frames.PUSH_PROMISE, 0x4, 1, b"\0\0\0\x02\x82"), Code.PROTOCOL_ERROR),
    "settings of a stream": (START + frame(frames.SETTINGS, 0, 1, b""), Code.PROTOCOL_ERROR),
    "half a setting": (START + frame(frames.SETTINGS, 0, 0, b"\0\0\0"), Code.FRAME_SIZE_ERROR),
    "an acknowledgement with settings": (START + frame(frames.SETTINGS, 1, 0, b"\0" * 6), Code.FRAME_SIZE_ERROR),
    "a wrong push setting": (START + frames.settings({frames.ENABLE_PUSH: 2}), Code.PROTOCOL_ERROR),
    "a wide window": (START + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 31}), Code.FLOW_CONTROL_ERROR),
    "small frames": (START + frames.settings({frames.MAX_FRAME_SIZE: 1000}), Code.PROTOCOL_ERROR),
    "large frames": (START + frames.settings({frames.MAX_FRAME_SIZE: 1 << 24}), Code.PROTOCOL_ERROR),
    "a short ping": (START + frame(frames.PING, 0, 0, b"0"), Code.FRAME_SIZE_ERROR),
    "a ping of a stream": (START + frame(frames.PING, 0, 1, b"01234567"), Code.PROTOCOL_ERROR),
    "no more window": (START + frames.window_update(0, 0), Code.PROTOCOL_ERROR),
    "too much window": (START + frames.window_update(0, (1 << 31) - 1), Code.FLOW_CONTROL_ERROR),
    "a window of no stream": (START + frames.window_update(1, 1), Code.PROTOCOL_ERROR),
    "half a window": (START + frame(frames.WINDOW_UPDATE, 0, 0, b"\0"), Code.FRAME_SIZE_ERROR),
    "the reset of no stream": (START + frames.rst_stream(1, Code.CANCEL), Code.PROTOCOL_ERROR),
    "goaway of a stream": (START + frame(frames.GOAWAY, 0, 1, b"\0" * 8), Code.PROTOCOL_ERROR),
    "a block that is none": (START + frame(frames.HEADERS, 0x5, 1, b"\xff\xff\xff\xff\xff"), Code.COMPRESSION_ERROR),
    "a block cut off": (START + frame(frames.HEADERS, 0x5, 1, b"\x83\x40\x05ab"), Code.COMPRESSION_ERROR),
    "an index beyond the table": (START + frame(frames.HEADERS, 0x5, 1, b"\xbe"), Code.COMPRESSION_ERROR),
    "a table larger than ours": (START + frame(frames.HEADERS, 0x5, 1, b"\x3f\xe2\x1f\x83"), Code.COMPRESSION_ERROR),
}


@pytest.mark.parametrize(("sent", "code"), BROKEN.values(), ids=BROKEN)
def test_who_breaks_the_protocol_is_told_how(sent: bytes, code: Code) -> None:
    peer = Peer(start=sent)
    assert peer.goaway == code
    assert peer.pipe.closed
    assert peer.app.seen == []
    assert not peer.wire.open - {peer.server}


def test_headers_that_come_again_must_be_trailers() -> None:
    peer = Peer()
    peer.feed(peer.headers(1, POST), data(1, b"x", 0), peer.headers(1, POST), data(1))
    assert peer.reply(1).reset == Code.PROTOCOL_ERROR
    assert peer.app.seen == []
    peer.feed(peer.headers(3, POST), peer.headers(3, [("connection", "close")], 0x5))
    assert peer.reply(3).reset == Code.PROTOCOL_ERROR
    peer.feed(peer.headers(5, POST, 0x5), data(5))
    assert peer.app.seen == [("POST", "/echo", b"")]


def test_answers_that_may_not_be_sent_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "UNSENT_BYTES", 200_000)
    peer = Peer(start=frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    for number in range(1, 11, 2):
        peer.ask(number, body=b"x" * 90_000)
    assert [peer.reply(number).reset for number in (5, 7, 9)] == [None, Code.REFUSED_STREAM, Code.REFUSED_STREAM]


def test_an_answer_waits_for_leave() -> None:
    peer = Peer(start=frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 10}))
    body = bytes(range(256)) * 390
    peer.ask(1, body=body)
    peer.ask(3, GET, b"second")
    assert peer.reply(1).body == body[:10]
    assert peer.reply(3).body == b"second"
    peer.feed(frames.window_update(1, 5))
    assert peer.reply(1).body == body[:15]
    peer.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))  # what was sent may be more than there is leave for
    peer.feed(frames.window_update(1, 10))
    assert peer.reply(1).body == body[:15]
    peer.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
    assert len(peer.reply(1).body) == frames.FIRST_WINDOW - len(b"second")  # that of the connection
    assert not peer.reply(1).ended
    peer.feed(frames.window_update(0, 1 << 20))
    assert peer.reply(1).body == body
    assert peer.reply(1).ended
    assert all(len(payload) <= frames.SMALLEST_FRAME for *_, payload in peer.frames)


def test_streams_take_turns() -> None:
    peer = Peer(start=START + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
    body = b"x" * 100_000
    for number in (1, 3, 5):
        peer.ask(number, body=body)
    peer.feed(frames.window_update(0, 120_000))
    assert all(len(peer.reply(number).body) > 0 for number in (1, 3, 5))
    peer.feed(frames.window_update(0, 1 << 20))
    assert all(peer.reply(number).body == body and peer.reply(number).ended for number in (1, 3, 5))


def test_a_body_may_be_longer_than_a_window() -> None:
    app = Echo()
    app.limit_bytes = 10 << 20
    peer = Peer(app)
    peer.feed(peer.headers(1, POST), *[data(1, b"x" * 60_000, 0)] * 100)
    updates = [payload for kind, _, number, payload in peer.read() if kind == frames.WINDOW_UPDATE and number == 1]
    assert sum(frames.number_in(one) for one in updates) >= 6_000_000 - (1 << 20)
    peer.feed(data(1))
    assert len(app.seen[0][2]) == 6_000_000
    assert app._held_bytes == 0


def test_more_than_there_is_leave_for_is_refused() -> None:
    app = Echo()
    app.keeps = True
    peer = Peer(app)
    call = [*CALL[:2], (":path", "/inference.GRPCInferenceService/ModelStreamInfer"), *CALL[3:]]
    app.limit_bytes = 10 << 20
    peer.feed(peer.headers(1, call))  # nobody takes its messages in
    message = b"\0\0\0\x04\0" + b"x" * 1024
    for _ in range(1200):
        peer.feed(data(1, message, 0))
    assert peer.reply(1).reset == Code.FLOW_CONTROL_ERROR


def test_a_body_too_long_is_refused_once_and_read_over() -> None:
    peer = Peer()
    peer.feed(peer.headers(1, POST), *[data(1, b"x" * 60_000, 0)] * 3)
    assert peer.reply(1).headers[":status"] == "413"
    assert peer.reply(1).ended
    assert peer.reply(1).reset == Code.NO_ERROR
    peer.feed(data(1, b"x" * 60_000))
    assert peer.app._held_bytes == 0
    assert peer.app.seen == []
    assert peer.ask(3, body=b"hello").reply(3).body == b"hello"
    announced = [*POST, ("content-length", "200000")]
    assert Peer().feed(Peer().headers(1, announced)).reply(1).headers[":status"] == "413"


def test_who_resets_a_stream_has_left_it() -> None:
    app = Echo()
    app.keeps = True
    peer = Peer(app)
    peer.ask(1)
    peer.feed(frames.rst_stream(1, Code.CANCEL))
    assert app.left == app.kept
    app.kept[0].reply(Answer(b"late"))
    assert peer.reply(1).headers == {}
    peer.ask(3)
    peer.server.connection_lost(None)
    assert app.left == app.kept
    assert not peer.wire.open


def test_streams_at_once_are_bounded() -> None:
    app = Echo()
    app.keeps = True
    peer = Peer(app)
    for index in range(receiving.STREAMS + 1):
        peer.ask(2 * index + 1)
    assert peer.reply(2 * receiving.STREAMS + 1).reset == Code.REFUSED_STREAM
    assert len(app.kept) == receiving.STREAMS
    app.kept[0].reply(Answer(b""))
    peer.ask(2 * receiving.STREAMS + 3)
    assert len(app.kept) == receiving.STREAMS + 1


FLOODS = {
    "ping": frame(frames.PING, 0, 0, b"01234567"),
    "settings": frames.settings({}),
    "acknowledgements": frame(frames.SETTINGS, 1, 0),
    "empty data": data(1, b"", 0),
    "priorities": frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\0"),
    "unknown frames": frame(0x50, 0, 1, b""),
    "frames for streams that are over": data(3, b"x"),
}


@pytest.mark.parametrize("sent", FLOODS.values(), ids=FLOODS)
def test_floods_are_cut_off(sent: bytes) -> None:
    peer = Peer()
    peer.ask(3)
    peer = Peer().ask(3)
    peer.feed(peer.headers(5, POST))
    sent = sent.replace(b"\0\0\0\0\0\0\0\0\x01", b"\0\0\0\0\0\0\0\0\x05")
    for _ in range(control.IDLE_FRAMES - 10):
        peer.feed(sent)
    assert peer.goaway is None
    assert peer.server.owed() is not None  # the sweep has been here
    for _ in range(control.IDLE_FRAMES + 1):
        peer.feed(sent)
    assert peer.goaway == Code.ENHANCE_YOUR_CALM


def test_rapid_resets_are_cut_off() -> None:
    app = Echo()
    app.keeps = True
    peer = Peer(app)
    for index in range(control.RESETS + 1):
        peer.feed(peer.headers(2 * index + 1, GET, 0x5), frames.rst_stream(2 * index + 1, Code.CANCEL))
    assert peer.goaway == Code.ENHANCE_YOUR_CALM
    assert len(app.left) == control.RESETS + 1


def test_resets_that_we_are_made_to_send_are_cut_off() -> None:
    app = Echo()
    app.keeps = True
    peer = Peer(app)
    for index in range(control.RESETS + 1):
        peer.feed(peer.headers(2 * index + 1, GET, 0x5), frames.window_update(2 * index + 1, 0))
    assert peer.goaway == Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("piece", [b"", b"x", b"y" * 16_000])
def test_endless_headers_are_cut_off(piece: bytes) -> None:
    peer = Peer()
    peer.feed(frame(frames.HEADERS, END_STREAM, 1, b"\x82"))
    for _ in range(20):
        peer.feed(frame(frames.CONTINUATION, 0, 1, piece))
    assert peer.goaway == Code.ENHANCE_YOUR_CALM


def test_a_bomb_of_headers_is_cut_off() -> None:
    peer = Peer()
    bomb = b"\x40\x01a\x7f\x80\x1e" + b"x" * 3967 + b"\xbe" * 10_000  # one entry of 4,000 bytes, told again and again
    peer.feed(frame(frames.HEADERS, 0x5, 1, bomb))
    assert peer.goaway == Code.ENHANCE_YOUR_CALM


def test_the_end_is_told_twice_and_nothing_is_lost() -> None:
    app = Echo()
    app.keeps = True
    peer = Peer(app)
    peer.ask(1)
    peer.server.end()
    peer.server.end()
    pings = [payload for kind, _, _, payload in peer.read() if kind == frames.PING]
    assert peer.goaway == Code.NO_ERROR
    assert len(pings) == 1
    peer.ask(3)  # sent before it has heard of the end
    peer.feed(frame(frames.PING, frames.ACK, 0, pings[0]))
    last = [payload for kind, _, _, payload in peer.read() if kind == frames.GOAWAY][-1]
    assert int.from_bytes(last[:4], "big") == 3
    peer.ask(5)
    assert len(app.kept) == 2
    for request in app.kept:
        assert not peer.pipe.closed
        request.reply(Answer(b"done"))
    assert [peer.reply(number).body for number in (1, 3)] == [b"done", b"done"]
    assert peer.pipe.closed


def test_who_says_nothing_at_the_end_is_not_waited_for() -> None:
    peer = Peer()
    for _ in range(control.FAREWELL_TURNS):
        peer.server.end()
    assert peer.pipe.closed
    early = Peer(start=b"PRI *")
    early.server.end()
    assert early.pipe.closed


def test_what_is_owed_is_seen() -> None:
    peer = Peer(start=b"")
    assert peer.server.owed() == ("head", 0)
    peer.feed(START)
    assert (peer.server.owed() or ("",))[0] == "idle"
    peer.feed(peer.headers(1, POST))
    (stream,) = peer.wire.open - {peer.server}
    assert stream.owed() == ("body", 0)
    stream.give_up("body")
    assert peer.reply(1).headers[":status"] == "408"
    assert peer.wire.open == {peer.server}
    peer.feed(b"\0\0\0")
    assert (peer.server.owed() or ("",))[0] == "head"


def test_a_silent_peer_is_asked_whether_it_is_there() -> None:
    app = Echo()
    app.keeps = True
    peer = Peer(app)
    peer.ask(1)
    peer.server.give_up("idle")
    (ping,) = [payload for kind, _, _, payload in peer.read() if kind == frames.PING]
    assert (peer.server.owed() or ("",))[0] == "pong"
    peer.feed(frame(frames.PING, frames.ACK, 0, ping))
    assert (peer.server.owed() or ("",))[0] == "idle"
    peer.server.give_up("idle")
    peer.server.give_up("pong")
    assert peer.pipe.closed


def traffic() -> bytes:
    """What a client might send in a while."""
    peer = Peer()
    message = b"\0\0\0\0\x05hello"
    parts = [
        peer.headers(1, GET, 0x5),
        peer.headers(3, [*POST, ("content-length", "5")]),
        data(3, b"hello"),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 100, frames.MAX_FRAME_SIZE: 20_000}),
        peer.headers(5, CALL),
        data(5, message),
        frames.window_update(0, 1000),
        peer.headers(7, CALL),
        frame(frames.DATA, frames.PADDED, 7, b"\x02" + message[:4] + b"\0\0"),
        frames.rst_stream(7, Code.CANCEL),
        frame(frames.PING, 0, 0, b"01234567"),
        peer.headers(9, [*POST, ("x", "y" * 300)]),
        data(9, b"z" * 500),
        frames.window_update(9, 1000),
    ]
    return START + b"".join(parts)


TRAFFIC = traffic()


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 8))
def test_whatever_comes_is_met_with_an_answer_or_an_end(chance: random.Random, changes: int) -> None:
    sent = bytearray(TRAFFIC)
    for _ in range(changes):
        place = chance.randrange(len(sent))
        what = chance.randrange(4)
        if what == 0:
            sent[place] = chance.randrange(256)
        elif what == 1:
            del sent[place : place + chance.randrange(1, 20)]
        elif what == 2:
            sent[place:place] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
        else:
            other = chance.randrange(len(sent))
            sent[place:place] = sent[other : other + chance.randrange(1, 60)]
    pieces = []
    while sent:
        size = chance.randrange(1, 200)
        pieces.append(bytes(sent[:size]))
        del sent[:size]
    peer = Peer(start=b"").feed(*pieces)
    peer.read()
    if peer.pipe.closed:
        assert peer.goaway is not None
        assert peer.server.receiver._buffer == b""
    peer.server.owed()
    peer.server.connection_lost(None)
    assert not peer.wire.open
    assert peer.app._held_bytes == 0
