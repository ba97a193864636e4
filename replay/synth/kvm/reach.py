"""Which leaf SPTEs map a range of gfns: found by the addresses and shadow pages that can lead there.

A direct page is known by its gfn and role; an indirect one shadows a guest page table, whose
addresses and hence gfns are those of the guest's mappings.  The TDP MMU has one tree.
"""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import print_spte_changed
from replay.synth.kvm.guest import find_table
from replay.synth.kvm.memory import host_level
from replay.synth.kvm.spte import (
    MMU_WRITABLE,
    PAGE_SHIFT,
    SPTE_W,
    child_of,
    clear_dirty,
    is_child,
    is_leaf,
    pages,
)
from replay.synth.kvm.state import NONE, ROOT_LEVEL, SMALL, TABLE_SPTES, Model, find, find_chunk, page_key

PROTECT, CLEAR_WRITABLE, DROP, COLLAPSE, CLEAR_DIRTY = range(5)
"""What becomes of a leaf: it loses W and MMU-writable; W alone; goes; goes if it could be huge; it loses D,
or W where PML does not log it.
"""
HUGEST = 3
_ROLE_BITS = 48


@jit
def change_leaves(
    m: Model, vm: int, slot: int, first: int, last: int, min_level: int, max_level: int, action: int
) -> None:
    """Leaves of the shadow MMU that map anything from gfn ``first`` to ``last``; nothing is printed.

    ``slot`` is that of the range, where ``action`` is COLLAPSE, which is for direct pages.
    """
    for role in range(_ROLE_BITS):
        if m.vm[vm].roles >> role & 1:
            for level in range(min_level, max_level + 1):
                _change_direct(m, vm, slot, first, last, level, role, action)
    if action == COLLAPSE:
        return
    for root in range(m.vm[vm].root, m.vm[vm].root_end):
        for mapping in range(m.root[root].map, m.root[root].map_end):
            gfn = m.mapping[mapping].gfn
            inside = gfn < last and first < gfn + (m.mapping[mapping].length >> PAGE_SHIFT)
            if inside and min_level <= m.mapping[mapping].level <= max_level:
                _change_mapped(m, slot, root, mapping, first, last, action)


@jit
def _change_direct(
    m: Model, vm: int, slot: int, first: int, last: int, level: int, role: int, action: int
) -> None:
    """Leaves in direct pages of one level and role."""
    shift = 9 * (level - 1)
    number, end = first >> shift + 9, (last - 1 >> shift + 9) + 1
    gib, chunk = NONE, NONE
    while number < end:
        if level == 1:
            if gib != number >> 9:
                gib = number >> 9
                chunk = find_chunk(m, SMALL, vm, gib)
            if chunk < 0 or m.chunk[chunk].value == 0:
                number = (number | 511) + 1
                continue
            if not m.chunk[chunk].words[number >> 5 & 15] >> (number & 31) & 1:
                number += 1
                continue
        base = number << shift + 9
        sp = find(m.sp, m.page_heads, page_key(vm, base, level, role))
        if sp >= 0:
            low = max(0, first - base >> shift)
            high = min(TABLE_SPTES, (last - 1 - base >> shift) + 1)
            _change_entries(m, slot, sp, low, high, action)
        number += 1


@jit
def _change_mapped(m: Model, slot: int, root: int, mapping: int, first: int, last: int, action: int) -> None:
    """Leaves in pages that shadow the last table of walks through one mapping."""
    level, gfn = m.mapping[mapping].level, m.mapping[mapping].gfn
    start = m.mapping[mapping].addr
    addr = start + (max(0, first - gfn) << PAGE_SHIFT)
    end = start + min(m.mapping[mapping].length, last - gfn << PAGE_SHIFT)
    shift = PAGE_SHIFT + 9 * (level - 1)
    while addr < end:
        table, met = find_table(m, root, level, addr), level
        if table >= 0 and m.table[table].shadow >= 0:
            base = m.table[table].addr
            high = min(TABLE_SPTES, (end - 1 - base >> shift) + 1)
            sp = m.table[table].shadow
            _change_entries(m, slot, sp, addr - base >> shift, high, action)
        while table < 0 and met + 1 < ROOT_LEVEL and find_table(m, root, met + 1, addr) < 0:
            met += 1
        addr = ((addr >> PAGE_SHIFT + 9 * met) + 1) << PAGE_SHIFT + 9 * met


@jit
def _change_entries(m: Model, slot: int, sp: int, low: int, high: int, action: int) -> None:
    """Leaves of one page, of indexes ``low`` to ``high``."""
    vm, level = m.sp[sp].vm, m.sp[sp].level
    for index in range(low, high):
        spte = m.spte[sp, index]
        if is_leaf(spte):
            if action != COLLAPSE:
                m.spte[sp, index] = _changed(m, spte, action)
            elif level < host_level(m, vm, slot, m.sp[sp].gfn + index * pages(level)):
                m.spte[sp, index] = 0


@jit
def _changed(m: Model, spte: int, action: int) -> int:
    """``spte`` after DROP, CLEAR_DIRTY or PROTECT (fast page faults stay off); otherwise without W."""
    if action == DROP:
        return 0
    if action == CLEAR_DIRTY:
        return clear_dirty(m.layout, spte)
    return spte & ~(SPTE_W | m.layout[MMU_WRITABLE]) if action == PROTECT else spte & ~SPTE_W


@jit
def change_tdp_leaves(
    m: Model, vm: int, task: int, first: int, last: int, min_level: int, max_level: int, action: int
) -> None:
    """Leaves of the TDP MMU that map anything from gfn ``first`` to ``last``, by ascending gfn, printed."""
    top = m.vm[vm].tdp
    gfn = first
    while top >= 0 and gfn < last:
        sp, level = top, ROOT_LEVEL
        spte = m.spte[sp, gfn >> 9 * (level - 1) & 511]
        while is_child(spte):
            sp = child_of(spte)
            level -= 1
            spte = m.spte[sp, gfn >> 9 * (level - 1) & 511]
        base = gfn & -pages(level)
        if is_leaf(spte) and min_level <= level <= max_level:
            new = _changed(m, spte, action)
            if new != spte:
                m.spte[sp, gfn >> 9 * (level - 1) & 511] = new
                print_spte_changed(m, task, base, level, spte, new)
        gfn = base + pages(level)
