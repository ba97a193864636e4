"""Large memory from the system: zeroed, allocated when used, in huge pages if that saves time."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

LARGE_PAGE = 2 << 20
"""Bytes of a huge page on x86-64: a fault that clears one takes as long as fifty that clear 4 KiB."""


def new_memory(size: int, *, reserve: bool = False) -> np.ndarray:
    """``size`` zeroed bytes, uint8, which are returned to the system with their last view.

    ``np.zeros`` would clear all of it if it was in use before, for example in the second of many replays.
    ``reserve``: addresses in huge pages, of which only a part will be used.  Raises ``MemoryError``.
    """
    return np.frombuffer(_mapped(size, reserve), np.uint8)


def _mapped(size: int, reserve: bool) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if reserve:
        flags |= getattr(mmap, "MAP_NORESERVE", 0)
        size = -(-size // LARGE_PAGE) * LARGE_PAGE  # Linux aligns whole large pages only
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise MemoryError from error
    if reserve and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # not in this kernel
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Arena:
    """Blocks of memory from one range of reserved addresses.

    Mapping each block separately would make threads that use the others wait, because the kernel joins
    neighbouring ranges.  All are returned to the system with the last view of any.  Raises ``MemoryError``.
    """

    def __init__(self, size: int) -> None:
        self._map = _mapped(size, reserve=True)
        self._memory = np.frombuffer(self._map, np.uint8)
        self._used = 0

    def take(self, size: int) -> np.ndarray | None:
        """``size`` zeroed bytes, uint8, aligned to a cache line; None if there is no room."""
        begin, end = self._used, self._used + -(-size // 64) * 64
        if end > len(self._memory):
            return None
        self._used = end
        return self._memory[begin : begin + size]

    def release(self, block: np.ndarray) -> None:
        """Return the pages of ``block``, which is no longer used, but not its addresses."""
        begin = block.ctypes.data - self._memory.ctypes.data
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (begin + len(block)) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
