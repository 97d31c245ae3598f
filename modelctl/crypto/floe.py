"""FLOE: authenticated encryption of a stream in segments, with AES-256-GCM and HKDF-Expand of SHA-384.

After the public specification (c2sp.org/FLOE; IACR ePrint 2025/2275). With params = 0x00 0x00 ‖ u32be(segment length) ‖
u32be(32) and derive(key, purpose, n) = HKDF-Expand(key, params ‖ iv ‖ purpose ‖ associated data, n):

    header      = params ‖ iv, 32 bytes ‖ derive(key, "HEADER_TAG:", 32)
    message key = derive(key, "MESSAGE_KEY:", 48)
    segment key = derive(message key, "DEK:" ‖ u64be(number with its low 20 bits cleared), 32)
    segment     = u32be(0xFFFFFFFF, or the segment's whole length in the last) ‖ nonce, 12 ‖ ciphertext ‖ tag, 16

with u64be(number) ‖ (1 in the last, else 0) as the associated data of a segment. What `decrypt` yields may be used up
only when it has ended: until then nobody has promised that nothing was cut off.
"""

import hmac
import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from modelctl.crypto import aead
from modelctl.crypto.buffers import Buffers

IV_BYTES = 32
HEADER_BYTES = 10 + IV_BYTES + 32
MARK_BYTES = 4
NOT_LAST = b"\xff\xff\xff\xff"
OVERHEAD_BYTES = MARK_BYTES + aead.NONCE_BYTES + aead.TAG_BYTES
MOST_SEGMENTS = 1 << 40  # of one stream, by the specification


class FloeError(ValueError):
    """The bytes are not a stream that was sealed with this key and associated data."""


@dataclass(frozen=True)
class Parameters:
    """The length of a whole segment in bytes, and the number of low bits of its number that its key does not see."""

    segment_bytes: int = 1 << 20
    rotation_bits: int = 20

    @property
    def plain_bytes(self) -> int:
        """Plaintext in a full segment."""
        return self.segment_bytes - OVERHEAD_BYTES

    def encoded(self) -> bytes:
        """The ten bytes that a header begins with."""
        return b"\x00\x00" + self.segment_bytes.to_bytes(4, "big") + IV_BYTES.to_bytes(4, "big")


class Floe:
    """One stream: its header, and how each segment of it is sealed and opened."""

    def __init__(self, key: bytes, aad: bytes, iv: bytes, parameters: Parameters = Parameters()) -> None:
        self.parameters = parameters
        self._bound = parameters.encoded() + iv
        self._aad = aad
        self._buffers = Buffers(parameters.segment_bytes)
        self.header = self._bound + self._derive(key, b"HEADER_TAG:", 32)
        self._message_key = self._derive(key, b"MESSAGE_KEY:", 48)

    @classmethod
    def start(cls, key: bytes, aad: bytes) -> "Floe":
        """A new stream under a fresh initialization vector."""
        return cls(key, aad, secrets.token_bytes(IV_BYTES))

    @classmethod
    def resume(cls, key: bytes, aad: bytes, header: bytes, parameters: Parameters = Parameters()) -> "Floe":
        """The stream that begins with `header`; FloeError if it is not one of this key, `aad` and parameters."""
        if len(header) != HEADER_BYTES or not header.startswith(parameters.encoded()):
            raise FloeError("the stream's header is not one that is read here")
        found = cls(key, aad, header[10 : 10 + IV_BYTES], parameters)
        if not hmac.compare_digest(found.header, header):
            raise FloeError("the stream's header has been changed")
        return found

    def _derive(self, key: bytes, purpose: bytes, length: int) -> bytes:
        # HKDF-Expand (RFC 5869) of at most one block of SHA-384, 48 bytes, is one HMAC.
        return hmac.digest(key, self._bound + purpose + self._aad + b"\x01", "sha384")[:length]

    def _segment_key(self, number: int) -> bytes:
        if number >= MOST_SEGMENTS:
            raise FloeError("the stream is too long")
        group = number >> self.parameters.rotation_bits << self.parameters.rotation_bits
        return self._derive(self._message_key, b"DEK:" + group.to_bytes(8, "big"), 32)

    def seal(self, number: int, data: aead.Bytes, last: bool, nonce: bytes | None = None) -> memoryview:
        """Segment `number` of the stream; `data` is a full segment's worth, or less if it is the last."""
        if len(data) > self.parameters.plain_bytes or (len(data) < self.parameters.plain_bytes and not last):
            raise ValueError(f"{len(data)} bytes do not fit a segment")
        nonce = nonce or secrets.token_bytes(aead.NONCE_BYTES)
        segment = self._buffers.take(len(data) + OVERHEAD_BYTES)
        segment[:MARK_BYTES] = len(segment).to_bytes(4, "big") if last else NOT_LAST
        segment[MARK_BYTES : MARK_BYTES + aead.NONCE_BYTES] = nonce
        out = segment[MARK_BYTES + aead.NONCE_BYTES :]
        aead.seal(self._segment_key(number), nonce, data, _place(number, last), out)
        return segment

    def open(self, number: int, segment: aead.Bytes, last: bool) -> memoryview:
        """The plaintext of segment `number`; FloeError if it is not that segment, unchanged."""
        view = memoryview(segment)
        mark = len(view).to_bytes(4, "big") if last else NOT_LAST
        if len(view) < OVERHEAD_BYTES or view[:MARK_BYTES] != mark:
            raise FloeError(f"segment {number} is not whole")
        nonce = bytes(view[MARK_BYTES : MARK_BYTES + aead.NONCE_BYTES])
        sealed = view[MARK_BYTES + aead.NONCE_BYTES :]
        plain = self._buffers.take(len(view) - OVERHEAD_BYTES)
        try:
            aead.open_(self._segment_key(number), nonce, sealed, _place(number, last), plain)
        except aead.BadTag:
            raise FloeError(f"segment {number} has been changed") from None
        return plain


def _place(number: int, last: bool) -> bytes:
    return number.to_bytes(8, "big") + (b"\x01" if last else b"\x00")


def encrypt(floe: Floe, blocks: Iterable[aead.Bytes], threads: int) -> Generator[memoryview, None, None]:
    """The segments of a stream, its header aside, in order; `blocks` are full segments' worths, the last may be less.

    Holds a few segments a thread in memory, however long the stream is. A block must not change once it is given.
    """
    return _in_order(floe.seal, _marked(blocks), threads)


def decrypt(floe: Floe, read: Callable[[int], aead.Bytes], threads: int) -> Generator[memoryview, None, None]:
    """The plaintext of the segments that `read(n)` gives, n bytes at a time and fewer only at the end of the stream.

    FloeError as soon as a segment is found changed, moved or cut short, and at the end if the last one is missing.
    """
    return _in_order(floe.open, _segments(floe.parameters.segment_bytes, read), threads)


def _marked(blocks: Iterable[aead.Bytes]) -> Iterator[tuple[int, aead.Bytes, bool]]:
    number = 0
    held: aead.Bytes | None = None
    for block in blocks:
        if held is not None:
            yield number, held, False
            number += 1
        held = block
    yield number, held or b"", True


def _segments(size: int, read: Callable[[int], aead.Bytes]) -> Iterator[tuple[int, aead.Bytes, bool]]:
    number = 0
    while (segment := read(size))[:MARK_BYTES] == NOT_LAST:
        if len(segment) != size:
            raise FloeError("the stream is cut short")
        yield number, segment, False
        number += 1
    if not segment:
        raise FloeError("the stream is cut short")
    if int.from_bytes(segment[:MARK_BYTES], "big") != len(segment) or read(1):
        raise FloeError("the stream does not end where its last segment says")
    yield number, segment, True


def _in_order(work: Callable[..., Any], items: Iterable[tuple[Any, ...]], threads: int) -> Generator[Any, None, None]:
    """What `work` makes of each item, in order, on `threads` threads and never more than twice as many ahead."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="floe") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, *item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
