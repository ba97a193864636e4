"""Large memory from the system: zeroed, taken as it is used, in large pages where that saves time."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

LARGE_PAGE = 2 << 20
"""Bytes of a large page on x86-64: a fault that clears one takes as long as fifty that clear 4 KiB do."""


def new_memory(size: int, *, large_pages: bool = False, reserve: bool = False) -> np.ndarray:
    """``size`` zeroed bytes, uint8, which go back to the system with the last view of them.

    That of ``np.zeros`` is cleared as a whole where it was in use before, as in the second of many replays,
    and begins in the middle of a large page.  ``reserve``: addresses that will hardly be used all.  Raises
    ``MemoryError``.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if reserve:
        flags |= getattr(mmap, "MAP_NORESERVE", 0)
    if large_pages:
        size = -(-size // LARGE_PAGE) * LARGE_PAGE  # Linux aligns whole large pages only
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise MemoryError from error
    if large_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # not in this kernel
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
