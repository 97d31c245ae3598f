"""FLOE against the published vectors, and against whoever flips, cuts, moves and splices."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.crypto import aead, floe
from modelctl.crypto.floe import Floe, FloeError, Parameters

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "floe" / "kats"
NAMES = sorted(path.name.removesuffix("_ct.txt") for path in VECTORS.glob("*_ct.txt"))
SMALL = Parameters(segment_bytes=64, rotation_bits=2)
KEY = bytes(range(32))


def reader(data: bytes) -> "Reader":
    return Reader(data)


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __call__(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece


def sealed(data: bytes, parameters: Parameters = SMALL, key: bytes = KEY, threads: int = 2) -> bytes:
    stream = Floe(key, b"aad", os.urandom(32), parameters)
    size = parameters.plain_bytes
    blocks = [data[start : start + size] for start in range(0, len(data), size)]
    return stream.header + b"".join(floe.encrypt(stream, blocks, threads))


def opened(data: bytes, parameters: Parameters = SMALL, key: bytes = KEY, aad: bytes = b"aad") -> bytes:
    stream = Floe.resume(key, aad, data[: floe.HEADER_BYTES], parameters)
    return b"".join(floe.decrypt(stream, reader(data[floe.HEADER_BYTES :]), 2))


@pytest.mark.skipif(not NAMES, reason="the published FLOE vectors are not beside the project")
def test_all_published_vectors_are_there() -> None:
    assert len(NAMES) == 17


@pytest.mark.parametrize("name", NAMES or [pytest.param("", marks=pytest.mark.skip(reason="no vectors beside us"))])
def test_published_vector_opens_and_is_made_again_byte_for_byte(name: str) -> None:
    secret = bytes.fromhex((VECTORS / f"{name}_ct.txt").read_text())
    plain = bytes.fromhex((VECTORS / f"{name}_pt.txt").read_text())
    size = int.from_bytes(secret[2:6], "big")
    parameters = Parameters(size, 2 if "rotation" in name else 20)
    key, aad = bytes(32), b"This is AAD"
    stream = Floe.resume(key, aad, secret[: floe.HEADER_BYTES], parameters)
    body = secret[floe.HEADER_BYTES :]
    assert b"".join(floe.decrypt(stream, reader(body), 2)) == plain

    again = Floe(key, aad, secret[10:42], parameters)
    made = again.header
    at = 0
    segments = [body[start : start + size] for start in range(0, len(body), size)]
    for number, segment in enumerate(segments):
        block = plain[at : at + len(segment) - floe.OVERHEAD_BYTES]
        at += len(block)
        made += again.seal(number, block, number == len(segments) - 1, nonce=segment[4:16])
    assert made == secret


@settings(max_examples=60, deadline=None)
@given(segments=st.integers(0, 6), offset=st.integers(-1, 1), threads=st.integers(1, 3))
def test_sizes_around_segment_borders_come_back(segments: int, offset: int, threads: int) -> None:
    data = os.urandom(max(0, segments * SMALL.plain_bytes + offset))
    assert opened(sealed(data, threads=threads)) == data


def test_full_size_segments_come_back() -> None:
    parameters = Parameters()
    for size in (0, parameters.plain_bytes, parameters.plain_bytes + 1):
        data = os.urandom(size)
        assert opened(sealed(data, parameters), parameters) == data


def test_any_flipped_bit_is_refused() -> None:
    secret = sealed(os.urandom(100))
    for index in range(len(secret)):
        changed = bytearray(secret)
        changed[index] ^= 1 << index % 8
        with pytest.raises(FloeError):
            opened(bytes(changed))


def test_any_truncation_and_any_addition_is_refused() -> None:
    secret = sealed(os.urandom(100))
    for length in range(len(secret)):
        with pytest.raises(FloeError):
            opened(secret[:length])
    for more in (b"\0", b"\xff" * 4, secret[-40:], secret[floe.HEADER_BYTES :]):
        with pytest.raises(FloeError):
            opened(secret + more)


@settings(max_examples=60, deadline=None)
@given(order=st.lists(st.integers(0, 4), max_size=6))
def test_segments_in_any_other_order_are_refused(order: list[int]) -> None:
    data = os.urandom(SMALL.plain_bytes * 4 + 5)
    secret = sealed(data)
    header, body = secret[: floe.HEADER_BYTES], secret[floe.HEADER_BYTES :]
    segments = [body[start : start + SMALL.segment_bytes] for start in range(0, len(body), SMALL.segment_bytes)]
    mixed = header + b"".join(segments[number] for number in order)
    if order == [0, 1, 2, 3, 4]:
        assert opened(mixed) == data
    else:
        with pytest.raises(FloeError):
            opened(mixed)


def test_a_segment_of_another_stream_under_the_same_key_is_refused() -> None:
    one, other = sealed(bytes(100)), sealed(bytes(100))
    start = floe.HEADER_BYTES + SMALL.segment_bytes
    spliced = one[:start] + other[start : start + SMALL.segment_bytes] + one[start + SMALL.segment_bytes :]
    with pytest.raises(FloeError):
        opened(spliced)


def test_wrong_key_aad_or_parameters_are_refused() -> None:
    secret = sealed(b"x")
    with pytest.raises(FloeError):
        opened(secret, key=bytes(32))
    with pytest.raises(FloeError):
        opened(secret, aad=b"other")
    with pytest.raises(FloeError):
        opened(secret, parameters=Parameters(segment_bytes=128, rotation_bits=2))


def test_a_block_that_is_no_full_segment_is_refused_but_at_the_end() -> None:
    stream = Floe(KEY, b"", bytes(32), SMALL)
    with pytest.raises(ValueError, match="do not fit"):
        stream.seal(0, b"short", last=False)
    with pytest.raises(ValueError, match="do not fit"):
        stream.seal(0, bytes(SMALL.plain_bytes + 1), last=True)


def test_a_stream_beyond_the_most_segments_is_refused() -> None:
    stream = Floe(KEY, b"", bytes(32), SMALL)
    with pytest.raises(FloeError, match="too long"):
        stream.seal(floe.MOST_SEGMENTS, b"", last=True)


@given(data=st.binary(max_size=200), aad=st.binary(max_size=20))
def test_both_libraries_make_and_open_the_same_bytes(data: bytes, aad: bytes) -> None:
    nonce = bytes(12)
    one, other = bytearray(len(data) + 16), bytearray(len(data) + 16)
    aead.seal(KEY, nonce, data, aad, memoryview(one))
    aead.portable_seal(KEY, nonce, data, aad, memoryview(other))
    assert one == other
    for way in (aead.open_, aead.portable_open):
        plain = bytearray(len(data))
        way(KEY, nonce, one, aad, memoryview(plain))
        assert plain == data
    one[0] ^= 1
    for way in (aead.open_, aead.portable_open):
        with pytest.raises(aead.BadTag):
            way(KEY, nonce, one, aad, memoryview(plain))
