"""Memory that is used again: a stream of fresh buffers costs more in page faults than its encryption.

A buffer goes back by itself when the last view of it is gone, so that nobody can see it change.
"""

import ctypes
import weakref


class Buffers:
    """Buffers of one size, as many as are looked at at one time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lent = ctypes.c_char * size
        self._spare: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        """A buffer's first `size` bytes, whatever they hold."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = bytearray(self._size)
        lent = self._lent.from_buffer(memory)  # every view, and view of a view, keeps this alive
        weakref.finalize(lent, self._spare.append, memory)
        return memoryview(lent).cast("B")[:size]
