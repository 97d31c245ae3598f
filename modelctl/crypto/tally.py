"""The size and sha256 of a stream, computed on a thread of its own while the stream goes on."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

MOST_WAITING = 4


class Tally:
    """Give it each piece as it passes; a piece must not change once it is given. Used in a `with` block."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()
        self._waiting: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tally")

    def add(self, piece: bytes | bytearray | memoryview) -> None:
        """Count `piece` in."""
        self.size += len(piece)
        self._waiting.append(self._pool.submit(self._hash.update, piece))
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popleft().result()

    @property
    def sha256(self) -> str:
        """The digest of all that was added so far."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
