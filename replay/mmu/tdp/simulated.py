"""Tables of the TDP MMU that the simulation has and the recording may not have, or not yet.

A recorded line changes the tables of tdp.py.  Where a split of the simulation, or a recorded one that it
leaves out, makes the two part, the simulated table is a row of its own: its key is that of the recorded
table with SIMULATED.  With PageFlag.SPLIT it holds SPTEs; without, the huge SPTE (``first_spte``) is still
in its place.
Once dirty logging is off, both are taken to be one again.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.pages import CLEAR_DIRTY
from replay.mmu.kernel.role import ACC_ALL
from replay.mmu.kernel.shadow_page import (
    alloc_shadow_page,
    find_shadow_page,
    free_shadow_page,
    get_spte,
    set_spte,
)
from replay.mmu.kernel.spte import WRITE_PROTECTED, make_huge_page_split_spte, spte_clear_dirty
from replay.mmu.state.mmu import Mmu, alloc_table, free_table
from replay.mmu.state.records import KEY_VM_SHIFT, NO_TABLE, TDP_KEY, UNIFORM, PageFlag

KEY_AS_SHIFT = 32
SIMULATED = 1 << (KEY_AS_SHIFT + 1)


@jit
def table_key(vm: int, space: int, level: int) -> int:
    """The key of the table at ``level`` of address space ``space``, as recorded lines have it."""
    return TDP_KEY | (vm << KEY_VM_SHIFT) | (space << KEY_AS_SHIFT) | level


@jit
def find_simulated(m: Mmu, vm: int, space: int, level: int, gfn: int) -> int:
    """The simulated table at ``level`` whose range holds ``gfn``; -1 if it is as recorded."""
    if m.vm[vm].tdp_simulated == 0:
        return -1
    return find_shadow_page(m, gfn >> (9 * level) << (9 * level), table_key(vm, space, level) | SIMULATED)


@jit
def make_simulated(m: Mmu, vm: int, space: int, level: int, gfn: int, huge: int) -> int:
    """A simulated table for the range of the SPTE ``huge``, not split yet."""
    gfn = gfn >> (9 * level) << (9 * level)
    s = alloc_shadow_page(m, gfn, table_key(vm, space, level) | SIMULATED, PageFlag.LIVE)
    m.sp[s].first_spte = huge
    m.vm[vm].tdp_simulated += 1
    return s


@jit
def is_split(m: Mmu, s: int) -> bool:
    """True if there is a table at row ``s`` (-1 none is)."""
    return s >= 0 and m.sp[s].page_flags & PageFlag.SPLIT != 0


@jit
def fill_split(m: Mmu, s: int, level: int, layout: int) -> None:
    """Split the huge SPTE of row ``s`` into 512 at ``level`` (tdp_mmu_split_huge_page())."""
    m.sp[s].first_spte = make_huge_page_split_spte(m.sp[s].first_spte, 0, level, ACC_ALL, layout)
    m.sp[s].spt = UNIFORM
    m.sp[s].page_flags |= PageFlag.SPLIT


@jit
def fill_empty(m: Mmu, s: int, spte: int) -> None:
    """Zap the huge SPTE of row ``s``: a table of the non-present value ``spte`` takes its place."""
    t = alloc_table(m)
    for i in range(512):
        m.spt[t, i] = spte
    m.sp[s].spt = t
    m.sp[s].page_flags |= PageFlag.SPLIT


@jit
def note_split(m: Mmu, vm: int, space: int, gfn: int, level: int, huge: int) -> None:
    """An eager split of the simulation: ``huge`` at ``level`` becomes 512 SPTEs."""
    s = find_simulated(m, vm, space, level - 1, gfn)
    if s >= 0:
        if m.sp[s].spt >= 0:
            free_table(m, m.sp[s].spt)
        m.sp[s].page_flags = PageFlag.LIVE
        m.sp[s].first_spte = huge
    else:
        s = make_simulated(m, vm, space, level - 1, gfn, huge)
    fill_split(m, s, level - 1, m.vm[vm].layout)


@jit
def forget_table(m: Mmu, vm: int, space: int, level: int, gfn: int) -> None:
    """The table around ``gfn`` is as recorded from now on."""
    s = find_simulated(m, vm, space, level, gfn)
    if s >= 0:
        if m.sp[s].spt == UNIFORM:
            m.sp[s].spt = NO_TABLE
        free_shadow_page(m, s)
        m.vm[vm].tdp_simulated -= 1


@jit
def forget_range(m: Mmu, vm: int, space: int, gfn: int, end: int) -> None:
    """All tables that overlap [gfn, end) are as recorded from now on."""
    end = min(end, m.vm[vm].end)
    gfn = gfn >> 9 << 9
    while gfn < end and m.vm[vm].tdp_simulated:
        forget_table(m, vm, space, 1, gfn)
        if gfn + 512 >= end or (gfn + 512) & 0x3FFFF == 0:
            forget_table(m, vm, space, 2, gfn)
        gfn += 512


@jit
def passed(spte: int, kept: int, layout: int) -> int:
    """What a pass of dirty logging leaves of an SPTE."""
    return spte_clear_dirty(spte, False, layout) if kept == CLEAR_DIRTY else spte & kept


@jit
def protect_table(m: Mmu, s: int, kept: int, layout: int) -> None:
    """A pass over every SPTE of row ``s``."""
    m.sp[s].first_spte = passed(m.sp[s].first_spte, kept, layout)
    t = m.sp[s].spt
    if t >= 0:
        for i in range(512):
            m.spt[t, i] = passed(m.spt[t, i], kept, layout)


@jit
def protect_range(m: Mmu, vm: int, space: int, gfn: int, end: int, kept: int, huge: bool) -> None:
    """A pass over the 4K SPTEs of [gfn, end), ``kept`` as in protect_table(), -1 none.

    With ``huge`` it write-protects the larger ones, too (kvm_tdp_mmu_wrprot_slot()).
    """
    layout = m.vm[vm].layout
    end = min(end, m.vm[vm].end)
    gfn = gfn >> 9 << 9
    while gfn < end and m.vm[vm].tdp_simulated:
        if huge:
            protect_huge(m, vm, space, gfn)
        s = find_simulated(m, vm, space, 1, gfn)
        if is_split(m, s):
            protect_table(m, s, kept, layout)
        gfn += 512


@jit
def protect_huge(m: Mmu, vm: int, space: int, gfn: int) -> None:
    """Write-protect what maps ``gfn`` at 2M or above."""
    for level in range(1, 3):
        s = find_simulated(m, vm, space, level, gfn)
        if s >= 0 and (level == 2 or not is_split(m, s)):
            protect_table(m, s, WRITE_PROTECTED, 0)


@jit
def protect_cleared_pages(m: Mmu, vm: int, space: int, gfn: int, bits: int, kept: int) -> None:
    """The 4K SPTEs of gfn + n for each bit n of a word that KVM_CLEAR_DIRTY_LOG clears."""
    layout = m.vm[vm].layout
    s = find_simulated(m, vm, space, 1, gfn)
    whole = bits == -1 and gfn & 63 == 0 and kept == WRITE_PROTECTED
    if whole and s >= 0 and m.sp[s].spt == UNIFORM:
        m.sp[s].page_flags |= PageFlag.CLEARED << ((gfn >> 6) & 7)
        return
    for n in range(64):
        if n and (gfn + n) & 511 == 0:
            s = find_simulated(m, vm, space, 1, gfn + n)
        if (bits >> n) & 1 and is_split(m, s):
            i = (gfn + n) & 511
            set_spte(m, s, i, passed(get_spte(m, s, i), kept, layout))
