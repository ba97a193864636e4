"""The rmap histogram: how many SPTEs map a gfn, by level, as KVM's debugfs file mmu_rmaps_stat counts them.

Source: arch/x86/kvm/debugfs.c, kvm_mmu_rmaps_stat_show().  It looks at every head of every memslot
and picks the column by ffs() of the list's length up to 7.1, which shows three entries under
"1", and by fls() from 7.2 on, as the columns are labelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replay.jit import by_reference, jit, kernel
from replay.mmu.kernel.rmap import pte_list_count
from replay.mmu.kernel.spte import EPT, LEGACY
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import NO_TABLE, UNIFORM

if TYPE_CHECKING:
    from replay.kernel import KernelVersion

RMAP_LOG_SIZE = 11
LEVELS = 3
COLUMNS_BY = ("auto", "fls", "ffs")
"""What picks the column of a list by its length; ``auto``: what the kernel that recorded took."""
FIRST_BY_FLS = (7, 2)


def columns_by(word: str, layout: int, kernel: KernelVersion | None) -> str:
    """``fls`` or ``ffs`` for a word of ``COLUMNS_BY``.

    The layout of EPT tells the kernel's age as well as its version does; where neither is known, ``fls``.
    """
    if word != "auto":
        return word
    if layout != LEGACY:
        return "ffs" if layout == EPT else "fls"
    return "ffs" if kernel and kernel.series < FIRST_BY_FLS else "fls"


@dataclass(frozen=True)
class RmapHistogram:
    """The rmaps of one VM at one moment."""

    at: str
    """The moment as it was asked for."""
    vm: int
    ts_ns: int | None
    """Time of the last event before the moment, None where there is none."""
    line: int | None
    columns_by: str
    counts: np.ndarray | None
    """Heads, int64 [level - 1, column]; column 0 is -1 where the memslots are unknown.

    None where the VM has no rmaps, as long as the TDP MMU alone maps its memory: the file is empty then.
    """


# -- counting ----------------------------------------------------------------------------------------------


@jit
def ffs(word: int) -> int:
    """Number of the lowest bit that is set, from 1; 0 if there is none."""
    bit = 0
    while word >> bit:
        if word >> bit & 1:
            return bit + 1
        bit += 1
    return 0


@jit
def fls(word: int) -> int:
    """Number of the highest bit that is set, from 1; 0 if there is none."""
    bit = 0
    while word >> bit:
        bit += 1
    return bit


@jit
def count_head(m: Mmu, head: int, level: int, by_ffs: bool, counts: np.ndarray) -> None:
    """A head that was counted as empty gets its column."""
    if head == 0:
        return
    length = pte_list_count(m, head)
    column = ffs(length) if by_ffs else fls(length)
    counts[level - 1, 0] -= 1
    counts[level - 1, min(column, RMAP_LOG_SIZE - 1)] += 1


@jit
def count_gib(m: Mmu, g: int, first: int, last: int, by_ffs: bool, counts: np.ndarray) -> None:
    """All heads of row ``g`` of ``m.gib`` that gfns ``first`` to ``last`` have."""
    start = m.gib[g].key >> 16 << 18
    first = max(first - start, 0)
    last = min(last - start, (1 << 18) - 1)
    if first > last:
        return
    count_head(m, m.gib[g].head, 3, by_ffs, counts)
    for r in range(first >> 9, (last >> 9) + 1):
        region = m.region[m.gib[g].region + r]
        count_head(m, region.head, 2, by_ffs, counts)
        low, high = max(first - (r << 9), 0), min(last - (r << 9), 511)
        if region.block == UNIFORM:
            counts[0, 0] -= high - low + 1
            counts[0, 1] += high - low + 1
        elif region.block != NO_TABLE:
            for i in range(low, high + 1):
                count_head(m, m.block[region.block, i], 1, by_ffs, counts)


@jit
def count_range(m: Mmu, vm: int, first: int, last: int, by_ffs: bool, counts: np.ndarray) -> None:
    """All heads of ``vm`` that gfns ``first`` to ``last`` have and that are not empty."""
    for g in range(m.gib.shape[0]):
        if m.gib[g].key >= 0 and m.gib[g].key & 0xFFFF == vm:
            count_gib(m, g, first, last, by_ffs, counts)


@jit
def count_slot(m: Mmu, vm: int, s: int, by_ffs: bool, counts: np.ndarray) -> None:
    """All heads of slot ``s``; those of address space 1 (SMM), whose rmaps are not modelled, are empty."""
    first = m.slot[s].base_gfn
    last = first + m.slot[s].npages - 1
    for level in range(LEVELS):
        counts[level, 0] += (last >> (9 * level)) - (first >> (9 * level)) + 1
    if m.slot[s].id >> 16 == 0:
        count_range(m, vm, first, last, by_ffs, counts)


@kernel
def count_rmaps(m: Mmu, vm: int, slots_known: bool, by_ffs: bool, counts: np.ndarray) -> None:
    """Fill the zeroed ``counts`` int64 [LEVELS, RMAP_LOG_SIZE] as in :class:`RmapHistogram`.

    Without memslots column 0 means nothing.
    """
    state = by_reference(m)
    if not slots_known:
        count_range(state, vm, 0, 1 << 52, by_ffs, counts)
        return
    for s in range(m.ctl.slot_top):
        if m.slot[s].is_live and m.slot[s].vm == vm:
            count_slot(state, vm, s, by_ffs, counts)


def rmap_counts(m: Mmu, vm: int, slots_known: bool, columns_by: str) -> np.ndarray | None:
    """``counts`` of an :class:`RmapHistogram` of one VM."""
    if m.vm[vm].has_tdp and not m.vm[vm].has_rmaps:  # kvm_memslots_have_rmaps()
        return None
    counts = np.zeros((LEVELS, RMAP_LOG_SIZE), np.int64)
    count_rmaps(m, vm, slots_known, columns_by == "ffs", counts)
    if not slots_known:
        counts[:, 0] = -1
    return counts
