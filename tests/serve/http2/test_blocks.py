"""Header blocks: read as the library reads them, whatever they are, and written as it does."""

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.serve.http2.blocks import Blocks, fields_block, status_block
from modelctl.serve.http2.frames import Broken

NAMES = st.sampled_from([":path", ":method", "te", "x", "traceparent", "content-type", "a-name-of-some-length"])
VALUES = st.one_of(st.sampled_from(["POST", "trailers", "", "/a"]), st.text("abc059-/", max_size=200))
FIELDS = st.lists(st.tuples(NAMES, VALUES, st.sampled_from([True, False])), max_size=8)
CHANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2)


def theirs(decoder: Decoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except (HPACKError, IndexError):
        return None


def ours(blocks: Blocks[None], block: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        return blocks.fields(block)
    except Broken:
        return None


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(FIELDS, st.booleans(), CHANGES, st.sampled_from([0, 0, 0, 100, 4096])), max_size=12))
def test_blocks_are_read_as_by_the_library(
    sent: list[tuple[list[tuple[str, str, bool]], bool, list[tuple[int, int]], int]],
) -> None:
    encoder, decoder, blocks = Encoder(), Decoder(32 << 10), Blocks(lambda _: None)
    for fields, huffman, changes, table in sent:
        if table:
            encoder.header_table_size = table
        block = bytearray(encoder.encode(fields, huffman=huffman))
        for place, value in changes:
            if block:
                block[place % len(block)] = value
        expected = theirs(decoder, bytes(block))
        assert ours(blocks, bytes(block)) == expected
        if expected is None:
            return  # the connection ends
        assert list(blocks._table.dynamic_entries) == list(decoder.header_table.dynamic_entries)
        assert blocks._table._current_size == decoder.header_table._current_size


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_are_read_as_by_the_library(sent: list[bytes]) -> None:
    decoder, blocks = Decoder(32 << 10), Blocks(lambda _: None)
    for block in sent:
        expected = theirs(decoder, block)
        assert ours(blocks, block) == expected
        if expected is None:
            return
        assert list(blocks._table.dynamic_entries) == list(decoder.header_table.dynamic_entries)


def test_an_index_behind_what_drives_it_out_is_refused() -> None:
    decoder, blocks = Decoder(), Blocks(lambda _: None)
    fill = b"".join(b"\x40\x01a\x7e" + bytes((65 + one,)) * 126 for one in range(25))
    for block in (
        fill,
        b"\x40\x01b\x7e" + b"z" * 126 + b"\x80"[:0] + b"\xd7",
    ):  # the oldest entry, which is gone by then
        assert ours(blocks, block) == theirs(decoder, block)


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 300, 20_000])
@pytest.mark.parametrize("status", [200, 204, 404, 429, 503])
def test_answers_are_read_by_the_library(size: int, status: int) -> None:
    block = status_block(status, (b"x", b"y" * size), (b"content-type", b"application/grpc"))
    decoder = Decoder()
    assert theirs(decoder, block) == [
        (b":status", b"%d" % status),
        (b"x", b"y" * size),
        (b"content-type", b"application/grpc"),
    ]
    assert theirs(decoder, fields_block((b"a", b""))) == [(b"a", b"")]
    assert not decoder.header_table.dynamic_entries
