"""Memory is lent again when nobody looks at it any more, and never before."""

from concurrent.futures import ThreadPoolExecutor

from modelctl.crypto.buffers import Buffers


def test_a_buffer_is_lent_again_only_when_its_last_view_is_gone() -> None:
    buffers = Buffers(8)
    first = buffers.take(8)
    first[:] = b"original"
    part = first[2:4]
    del first
    other = buffers.take(8)
    other[:] = b"changed!"
    assert bytes(part) == b"ig"
    del part
    assert bytes(buffers.take(8)) == b"original"  # the same memory, as it was left
    assert bytes(other) == b"changed!"


def test_a_buffer_can_be_shorter_than_its_memory() -> None:
    buffers = Buffers(8)
    assert [len(buffers.take(size)) for size in (0, 3, 8)] == [0, 3, 8]


def test_threads_are_lent_different_memory() -> None:
    buffers = Buffers(64)

    def use(number: int) -> bool:
        view = buffers.take(64)
        view[:] = bytes([number % 256]) * 64
        return bytes(view) == bytes([number % 256]) * 64

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(2000)))
