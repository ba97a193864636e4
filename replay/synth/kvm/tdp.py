"""The TDP MMU: one tree of direct tables for the VM's own memory; every change of an SPTE is printed.

Since 7.2 (``FOUR_LETTERS``) a table that goes is printed before its entries, and these before its parent;
a fault splits a huge page as eager splitting does; and a table that could be huge is replaced in place.
"""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import (
    GET_PAGE,
    LOCKED,
    NEW,
    NOTHING,
    SPLIT,
    ZAP_PAGE,
    print_event,
    print_page,
    print_spte_changed,
)
from replay.synth.kvm.memory import host_level
from replay.synth.kvm.shadow_page import alloc_page, free_page, link_shadow_page
from replay.synth.kvm.spte import (
    ACC_ALL,
    FOUR_LETTERS,
    L1,
    NONLEAF,
    PAGE_SHIFT,
    REMOVED,
    SPTE_PS,
    child_of,
    is_child,
    is_leaf,
    pages,
)
from replay.synth.kvm.state import NONE, ROOT_LEVEL, TABLE_SPTES, Model


@jit
def make_tdp_table(m: Model, vm: int, task: int, parent: int, index: int) -> int:
    """A new table below ``parent``; a huge SPTE in the way is split by the faults to come."""
    level = m.sp[parent].level
    base = m.sp[parent].gfn + index * pages(level)
    old = m.spte[parent, index]
    split = is_leaf(old) and m.layout[FOUR_LETTERS] != 0
    if is_leaf(old) and not split:
        print_spte_changed(m, task, base, level, old, m.layout[REMOVED])
    child = alloc_page(m, vm, base, level - 1, 1, m.layout[ACC_ALL], L1)
    m.sp[child].tdp = 1
    print_page(m, task, LOCKED, GET_PAGE, child, NEW)
    print_spte_changed(m, task, base, level, old if split else 0, m.sp[child].spt | m.layout[NONLEAF])
    link_shadow_page(m, parent, index, child)
    if split:
        _fill_child(m, child, old)
        print_event(m, task, LOCKED, SPLIT, base, old, level, 0, 0, 0, 0)
    return child


@jit
def _fill_child(m: Model, child: int, huge: int) -> None:
    """tdp_mmu_split_huge_page(): the entries of a new table map what the huge SPTE mapped."""
    level = m.sp[child].level
    small = huge & ~SPTE_PS if level == 1 else huge
    for index in range(TABLE_SPTES):
        m.spte[child, index] = small + (index * pages(level) << PAGE_SHIFT)


@jit
def remove_table(m: Model, task: int, sp: int) -> None:
    """handle_removed_pt(): the page, then every one of its entries."""
    top = level = m.sp[sp].level
    _begin_removal(m, task, sp)
    while level <= top:
        place = 2 * level
        sp, index = m.ctl.stack[place], m.ctl.stack[place + 1]
        if index == TABLE_SPTES:
            if m.layout[FOUR_LETTERS] and level < top:
                _print_removed(m, task, sp, level + 1, m.layout[REMOVED])
            free_page(m, sp)
            level += 1
            continue
        m.ctl.stack[place + 1] = index + 1
        spte = m.spte[sp, index]
        m.spte[sp, index] = 0
        if not is_child(spte):
            gfn = m.sp[sp].gfn + index * pages(level)
            print_spte_changed(m, task, gfn, level, spte, m.layout[REMOVED])
            continue
        child = child_of(spte)
        if not m.layout[FOUR_LETTERS]:
            _print_removed(m, task, child, level, m.layout[REMOVED])
        _begin_removal(m, task, child)
        level -= 1


@jit
def _print_removed(m: Model, task: int, child: int, level: int, new: int) -> None:
    """The entry at ``level`` that led to a table becomes ``new``."""
    old = m.sp[child].spt | m.layout[NONLEAF]
    print_spte_changed(m, task, m.sp[child].gfn, level, old, new)


@jit
def _begin_removal(m: Model, task: int, sp: int) -> None:
    """Print the table as zapped and put it on the stack of its level, from its first entry on."""
    print_page(m, task, LOCKED, ZAP_PAGE, sp, NOTHING)
    place = 2 * m.sp[sp].level
    m.ctl.stack[place], m.ctl.stack[place + 1] = sp, 0


@jit
def _remove_child(m: Model, task: int, parent: int, index: int, new: int) -> None:
    """The entry of a table becomes ``new``, and the table goes."""
    child = child_of(m.spte[parent, index])
    replace_table(m, task, child, m.sp[parent].level, new)
    m.spte[parent, index] = new if is_leaf(new) else 0


@jit
def replace_table(m: Model, task: int, child: int, level: int, new: int) -> None:
    """A table goes, and its entry at ``level`` becomes ``new``: the lines of both."""
    if not m.layout[FOUR_LETTERS]:
        _print_removed(m, task, child, level, new)
        remove_table(m, task, child)
        return
    gfn, old = m.sp[child].gfn, m.sp[child].spt | m.layout[NONLEAF]
    remove_table(m, task, child)
    print_spte_changed(m, task, gfn, level, old, new)


@jit
def zap_collapsible_tables(m: Model, vm: int, task: int, slot: int) -> None:
    """zap_collapsible_spte_range(): tables below an entry that could be huge."""
    top = m.vm[vm].tdp
    gfn, end = m.slot[slot].base_gfn, m.slot[slot].end
    while top >= 0 and gfn < end:
        sp, level = top, ROOT_LEVEL
        index = gfn >> 9 * (level - 1) & 511
        while level > 2 and is_child(m.spte[sp, index]) and not _could_be_huge(m, vm, slot, gfn, level):
            sp = child_of(m.spte[sp, index])
            level -= 1
            index = gfn >> 9 * (level - 1) & 511
        if is_child(m.spte[sp, index]) and _could_be_huge(m, vm, slot, gfn, level):
            if not m.layout[FOUR_LETTERS]:
                _remove_child(m, task, sp, index, m.layout[REMOVED])
            else:
                huge = _huge_spte(m, top, gfn & -pages(level), level)
                if huge:
                    _remove_child(m, task, sp, index, huge)
        gfn = (gfn & -pages(level)) + pages(level)


@jit
def _could_be_huge(m: Model, vm: int, slot: int, gfn: int, level: int) -> bool:
    """Whether the host's pages allow one SPTE of ``level`` at ``gfn``."""
    return level < ROOT_LEVEL and level <= host_level(m, vm, slot, gfn & -pages(level))


@jit
def _huge_spte(m: Model, top: int, first: int, level: int) -> int:
    """make_huge_spte(): of the first leaf from gfn ``first`` on, or 0 where none is left."""
    gfn, end = first, first + pages(level)
    while gfn < end:
        sp, at = top, ROOT_LEVEL
        spte = m.spte[sp, gfn >> 9 * (at - 1) & 511]
        while is_child(spte):
            sp = child_of(spte)
            at -= 1
            spte = m.spte[sp, gfn >> 9 * (at - 1) & 511]
        if is_leaf(spte):
            return (spte | SPTE_PS) & ~(pages(level) - 1 << PAGE_SHIFT)
        gfn = (gfn & -pages(at)) + pages(at)
    return 0


@jit
def zap_tdp_root(m: Model, vm: int, task: int) -> None:
    """kvm_tdp_mmu_zap_invalidated_roots(): entries at level 3 of the tree, then at level 4."""
    top = m.vm[vm].tdp
    if top < 0:
        return
    if m.layout[FOUR_LETTERS]:
        for level in range(1, ROOT_LEVEL + 1):
            _zap_level(m, task, top, level)
    else:
        for index in range(TABLE_SPTES):
            if is_child(m.spte[top, index]):
                _zap_entries(m, task, child_of(m.spte[top, index]))
        _zap_entries(m, task, top)
    m.vm[vm].tdp = NONE
    free_page(m, top)


@jit
def _zap_entries(m: Model, task: int, sp: int) -> None:
    """Every table below ``sp``, then every leaf in it."""
    for index in range(TABLE_SPTES):
        if is_child(m.spte[sp, index]):
            _remove_child(m, task, sp, index, 0)
    level = m.sp[sp].level
    for index in range(TABLE_SPTES):
        spte = m.spte[sp, index]
        if spte:
            m.spte[sp, index] = 0
            print_spte_changed(m, task, m.sp[sp].gfn + index * pages(level), level, spte, 0)


@jit
def _zap_level(m: Model, task: int, top: int, level: int) -> None:
    """Every entry at one level, as 7.2 zaps a root."""
    gfn, end = 0, pages(ROOT_LEVEL + 1)
    while gfn < end:
        sp, at = top, ROOT_LEVEL
        index = gfn >> 9 * (at - 1) & 511
        while at > level and is_child(m.spte[sp, index]):
            sp = child_of(m.spte[sp, index])
            at -= 1
            index = gfn >> 9 * (at - 1) & 511
        spte = m.spte[sp, index]
        if at == level and is_child(spte):
            _remove_child(m, task, sp, index, 0)
        elif at == level and is_leaf(spte):
            m.spte[sp, index] = 0
            print_spte_changed(m, task, gfn & -pages(level), level, spte, 0)
        gfn = (gfn & -pages(at)) + pages(at)
