"""What a store is: objects under keys, and refs that move by compare-and-swap; and how one is chosen by its URL.

A store knows keys and bytes, nothing of models; what goes under which key is `blobs` and `transfer`'s to say. A ref is
a list of values that only ever grows: the last one counts, all of them together are the ref's log, and to move a ref is
to add the value with the next number, which at most one of several movers can do.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Protocol

from modelctl.errors import StoreError, UsageError

PIECE_BYTES = 256 << 10
"""Files are read in pieces of this many bytes: small enough to be hashed and written out of the processor's cache."""

MOST_PIECE_BYTES = 4 << 20
"""A store may be given, and may give, pieces of up to this many bytes."""

STORES = {
    "sqlite": "modelctl.stores.sqlite",
    "file": "modelctl.stores.folder",
}


class MissingStoreError(StoreError):
    """There is no store at this URL, and nothing else either: it could be made."""


class Store(Protocol):
    """A place for objects and refs, safe for many processes and threads at once; what fails is a StoreError."""

    def has(self, key: str) -> bool:
        """Whether the object is there, whole."""

    def read(self, key: str) -> Iterator[bytes]:
        """The object's bytes in pieces; KeyError when it is not there."""

    def write(self, key: str, pieces: Iterable[bytes]) -> None:
        """Keep an object, whole or not at all: when `pieces` raises, nothing is kept. One that is there stays."""

    def ref(self, name: str, tag: str) -> tuple[int, bytes] | None:
        """The number and the value at which a ref stands; None when there is no such ref."""

    def move(self, name: str, tag: str, number: int, value: bytes) -> bool:
        """Add a ref's value with that number, the first being 1, and all before it kept; False if it was taken."""

    def log(self, name: str, tag: str) -> list[bytes]:
        """All values that a ref has had, oldest first."""

    def refs(self) -> list[tuple[str, str]]:
        """All refs as (name, tag), sorted."""

    def close(self) -> None:
        """Let go of the store."""


def open_store(url: str, create: bool = False) -> Store:
    """The store at `url`; with `create` it is made if it is not there.

    UsageError for a URL that makes no sense; MissingStoreError where nothing is; StoreError for what is not a store,
    and it is left as it was.
    """
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in STORES:
        known = " ".join(f"{one}://" for one in STORES)
        raise UsageError(f"{url}: no store goes by the scheme {scheme!r}", f"one of {known}")
    store: Store = import_module(STORES[scheme]).open_store(url, create)
    return store
