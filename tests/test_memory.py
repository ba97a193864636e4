"""Large memory and blocks of it."""

from __future__ import annotations

import numpy as np
import pytest

from replay.memory import LARGE_PAGE, Arena, new_memory


def test_new_memory_is_zeroed_and_writable() -> None:
    for reserve in (False, True):
        memory = new_memory(5000, reserve=reserve)
        assert len(memory) >= 5000
        assert not memory.any()
        memory[:] = 1


def test_more_memory_than_there_can_be() -> None:
    with pytest.raises(MemoryError):
        new_memory(1 << 62)


def test_blocks_of_an_arena() -> None:
    arena = Arena(LARGE_PAGE)
    first, second = arena.take(100_000), arena.take(1)
    assert first is not None
    assert second is not None
    assert (len(first), len(second)) == (100_000, 1)
    assert second.ctypes.data == first.ctypes.data + 100_032, "a cache line begins"
    assert arena.take(LARGE_PAGE) is None
    first[:], second[:] = 7, 8
    arena.release(first)
    assert second[0] == 8
    assert not first[4096:90_000].any(), "its pages are new ones"
    assert arena.take(50_000) is not None, "those of a block that was released are not taken again"


def test_an_arena_lives_as_long_as_its_blocks() -> None:
    block = Arena(1000).take(1000)
    assert block is not None
    block[:] = np.arange(1000) % 251
    assert block.sum() == (np.arange(1000) % 251).sum()
