"""Content under its digest: cut, sent once, checked on the way back, whatever a store makes of it."""

import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.errors import IntegrityError
from modelctl.stores import blobs
from modelctl.stores.blobs import Content, Cut
from modelctl.stores.store import PIECE_BYTES, Store, open_store

CUT = Cut(whole_bytes=64, chunk_bytes=16)


def content(data: bytes) -> Content:
    return Content(hashlib.sha256(data).hexdigest(), len(data), "digits.onnx")


def put(store: Store, data: bytes, told: list[int] | None = None, claimed: Content | None = None) -> int:
    tell = told.append if told is not None else lambda _: None
    return blobs.put(store, claimed or content(data), io.BytesIO(data), tell, CUT)


def get(store: Store, wanted: Content) -> bytes:
    return b"".join(blobs.get(store, wanted))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 79, 80, 81, 250])
def test_every_size_around_the_borders_comes_back(store: Store, size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    told: list[int] = []
    assert put(store, data, told) == size
    assert get(store, content(data)) == data
    assert sum(told) == size
    assert store.has(content(data).key) == (size <= 64)
    assert store.has(content(data).list_key) == (size > 64)
    assert put(store, data) == 0


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_any_file_comes_back_and_what_is_there_is_not_sent_again(scheme: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = f"sqlite:///{folder}" if scheme == "sqlite" else f"file://{folder}"
        stores = (open_store(f"{base}/{number}", create=True) for number in count())

        @settings(deadline=None, max_examples=15)
        @given(st.lists(st.sampled_from([bytes(16), b"a" * 16, b"b" * 16, b"tail", b""]), max_size=9), st.binary())
        def check(parts: list[bytes], end: bytes) -> None:
            store = next(stores)
            data = b"".join(parts) + end
            assert put(store, data) <= len(data)
            assert get(store, content(data)) == data
            assert put(store, data) == 0
            changed = data[:48] + b"!" + data[48:]
            assert put(store, changed) <= len(changed)
            assert get(store, content(changed)) == changed
            store.close()

        check()


def test_chunks_that_two_versions_share_are_kept_once(store: Store) -> None:
    old = b"".join(bytes([index]) * 16 for index in range(10))
    new = old[:48] + b"!" * 16 + old[64:]
    assert put(store, old) == 160
    assert put(store, new) == 16
    assert get(store, content(old)) == old and get(store, content(new)) == new


@pytest.mark.parametrize("size", [10, 64, 200])
@pytest.mark.parametrize("change", ["flipped", "cut", "longer"])
def test_a_file_that_is_not_what_its_manifest_says_is_not_kept(store: Store, size: int, change: str) -> None:
    data = bytes(range(size))
    wrong = {"flipped": bytes([1]) + data[1:], "cut": data[:-1], "longer": data + b"x"}[change]
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"digits.onnx: the bytes are not the ones"):
            put(store, wrong, claimed=content(data))
        assert not store.has(content(data).key) and not store.has(content(data).list_key)
    put(store, data)
    with pytest.raises(IntegrityError):  # also where nothing would have to be sent
        put(store, wrong, claimed=content(data))


def keep(store: Store, data: bytes, key: str) -> None:
    store.write(key, [data])


def chunk_list(*chunks: tuple[str, int], **more: object) -> bytes:
    listed = [{"sha256": sha256, "size": size} for sha256, size in chunks]
    return json.dumps({"schema": "modelctl/chunks/v1", "chunks": listed, **more}).encode()


WHOLE = bytes(range(100))
PART = content(WHOLE[:50])
REST = content(WHOLE[50:])

LISTS: dict[str, bytes] = {
    "not json": b"\xff\xfe",
    "empty": b"",
    "another schema": chunk_list((PART.sha256, 50), (REST.sha256, 50), schema="modelctl/chunks/v2"),
    "unknown field": chunk_list((PART.sha256, 50), (REST.sha256, 50), extra=1),
    "truncated": chunk_list((PART.sha256, 50)),
    "truncated text": chunk_list((PART.sha256, 50), (REST.sha256, 50))[:-5],
    "swapped": chunk_list((REST.sha256, 50), (PART.sha256, 50)),
    "sizes that lie": chunk_list((PART.sha256, 51), (REST.sha256, 49)),
    "negative": chunk_list((PART.sha256, -50), (REST.sha256, 150)),
    "huge": chunk_list((PART.sha256, 2**62), (REST.sha256, 50)),
    "no digest": chunk_list(("../../etc/passwd", 50), (REST.sha256, 50)),
    "missing chunk": chunk_list((PART.sha256, 50), ("0" * 64, 50)),
    "a list as its own chunk": chunk_list((content(WHOLE).sha256, 100)),
    "five megabytes": b" " * (5 << 20),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("what", LISTS)
def test_a_chunk_list_that_lies_is_refused(store: Store, what: str) -> None:
    keep(store, WHOLE[:50], PART.key)
    keep(store, WHOLE[50:], REST.key)
    keep(store, LISTS[what], content(WHOLE).list_key)
    with pytest.raises(IntegrityError, match=r"digits\.onnx"):
        get(store, content(WHOLE))


def test_chunks_of_any_size_are_read(store: Store) -> None:
    parts = [WHOLE[:1], WHOLE[1:60], WHOLE[60:]]
    for part in parts:
        keep(store, part, content(part).key)
    keep(store, chunk_list(*((content(part).sha256, len(part)) for part in parts)), content(WHOLE).list_key)
    assert get(store, content(WHOLE)) == WHOLE


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "gone": lambda data: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_blob_with_wrong_bytes_is_refused(store: Store, change: str) -> None:
    keep(store, CHANGES[change](WHOLE), content(WHOLE).key)
    with pytest.raises(IntegrityError, match=r"digits\.onnx"):
        get(store, content(WHOLE))


def test_a_blob_without_end_is_refused_before_it_is_read(store: Store) -> None:
    keep(store, b"x" * PIECE_BYTES, "pattern")

    class Endless:
        def has(self, key: str) -> bool:
            return True

        def read(self, key: str) -> object:
            while True:
                yield from store.read("pattern")

    with pytest.raises(IntegrityError):
        for _ in blobs.get(Endless(), content(WHOLE)):  # type: ignore[arg-type]
            pass


def test_a_missing_blob_is_told_by_name(store: Store) -> None:
    with pytest.raises(IntegrityError, match=rf"digits\.onnx: the store lacks the blob {PART.sha256}"):
        get(store, PART)


def test_our_cut_is_that_of_the_design() -> None:
    assert Cut() == Cut(whole_bytes=64 << 20, chunk_bytes=16 << 20)
    assert blobs.CUT.chunk_bytes % PIECE_BYTES == 0


def test_a_real_large_file_is_kept_in_chunks_of_16_mib(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "large"
    with place.open("wb") as file:  # sparse but for its last byte: 65 MiB, whose chunks are but two
        file.truncate((65 << 20) - 1)
        file.seek(0, 2)
        file.write(b"x")
    with place.open("rb") as file:
        large = Content(hashlib.file_digest(file, "sha256").hexdigest(), 65 << 20, "large")
        file.seek(0)
        sent = blobs.put(store, large, file, lambda _: None)
    assert sent == (16 << 20) + (1 << 20)
    seen = hashlib.sha256()
    for piece in blobs.get(store, large):
        seen.update(piece)
    assert seen.hexdigest() == large.sha256
