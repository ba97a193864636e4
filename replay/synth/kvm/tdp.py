"""The TDP MMU: one tree of direct tables for the VM's own memory; every change of an SPTE is printed."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import (
    GET_PAGE,
    LOCKED,
    NEW,
    NOTHING,
    ZAP_PAGE,
    print_page,
    print_spte_changed,
)
from replay.synth.kvm.guest import ACC_ALL
from replay.synth.kvm.memory import host_level
from replay.synth.kvm.shadow_page import alloc_page, free_page, link_shadow_page
from replay.synth.kvm.spte import NONLEAF, REMOVED_SPTE, child_of, is_child, is_leaf, pages
from replay.synth.kvm.state import (
    CTL_STACK,
    NONE,
    ROOT_LEVEL,
    SLOT_BASE,
    SLOT_END,
    SP_GFN,
    SP_LEVEL,
    SP_SPT,
    SP_TDP,
    TABLE_SPTES,
    VM_TDP,
    Model,
)


@jit
def make_tdp_table(m: Model, vm: int, task: int, parent: int, index: int) -> int:
    """A new table below ``parent``; a huge SPTE in the way is split by the faults to come."""
    level = m.sp[parent, SP_LEVEL]
    base = m.sp[parent, SP_GFN] + index * pages(level)
    old = m.spte[parent, index]
    if is_leaf(old):
        print_spte_changed(m, task, base, level, old, REMOVED_SPTE)
    child = alloc_page(m, vm, base, level - 1, 1, ACC_ALL, 0)
    m.sp[child, SP_TDP] = 1
    print_page(m, task, LOCKED, GET_PAGE, child, NEW)
    print_spte_changed(m, task, base, level, 0, m.sp[child, SP_SPT] | NONLEAF)
    link_shadow_page(m, parent, index, child)
    return child


@jit
def remove_table(m: Model, task: int, sp: int) -> None:
    """handle_removed_pt(): the page, then every one of its entries."""
    top = level = m.sp[sp, SP_LEVEL]
    _begin_removal(m, task, sp)
    while level <= top:
        stack = CTL_STACK + 2 * level
        sp, index = m.ctl[stack], m.ctl[stack + 1]
        if index == TABLE_SPTES:
            free_page(m, sp)
            level += 1
            continue
        m.ctl[stack + 1] = index + 1
        spte = m.spte[sp, index]
        m.spte[sp, index] = 0
        old = m.sp[child_of(spte), SP_SPT] | NONLEAF if is_child(spte) else spte
        print_spte_changed(m, task, m.sp[sp, SP_GFN] + index * pages(level), level, old, REMOVED_SPTE)
        if is_child(spte):
            _begin_removal(m, task, child_of(spte))
            level -= 1


@jit
def _begin_removal(m: Model, task: int, sp: int) -> None:
    print_page(m, task, LOCKED, ZAP_PAGE, sp, NOTHING)
    stack = CTL_STACK + 2 * m.sp[sp, SP_LEVEL]
    m.ctl[stack], m.ctl[stack + 1] = sp, 0


@jit
def _remove_child(m: Model, task: int, parent: int, index: int, new: int) -> None:
    """The entry of a table becomes ``new``, and the table goes."""
    child = child_of(m.spte[parent, index])
    m.spte[parent, index] = 0
    old = m.sp[child, SP_SPT] | NONLEAF
    print_spte_changed(m, task, m.sp[child, SP_GFN], m.sp[parent, SP_LEVEL], old, new)
    remove_table(m, task, child)


@jit
def zap_collapsible_tables(m: Model, vm: int, task: int, slot: int) -> None:
    """zap_collapsible_spte_range(): tables below an entry that could be huge."""
    top = m.vm[vm, VM_TDP]
    gfn, end = m.slot[slot, SLOT_BASE], m.slot[slot, SLOT_END]
    while top >= 0 and gfn < end:
        sp, level = top, ROOT_LEVEL
        index = gfn >> 9 * (level - 1) & 511
        while level > 2 and is_child(m.spte[sp, index]) and not _could_be_huge(m, vm, slot, gfn, level):
            sp = child_of(m.spte[sp, index])
            level -= 1
            index = gfn >> 9 * (level - 1) & 511
        if is_child(m.spte[sp, index]) and _could_be_huge(m, vm, slot, gfn, level):
            _remove_child(m, task, sp, index, REMOVED_SPTE)
        gfn = (gfn & -pages(level)) + pages(level)


@jit
def _could_be_huge(m: Model, vm: int, slot: int, gfn: int, level: int) -> bool:
    return level < ROOT_LEVEL and level <= host_level(m, vm, slot, gfn & -pages(level))


@jit
def zap_tdp_root(m: Model, vm: int, task: int) -> None:
    """kvm_tdp_mmu_zap_invalidated_roots(): entries at level 3 of the tree, then at level 4."""
    top = m.vm[vm, VM_TDP]
    if top < 0:
        return
    for index in range(TABLE_SPTES):
        if is_child(m.spte[top, index]):
            _zap_entries(m, task, child_of(m.spte[top, index]))
    _zap_entries(m, task, top)
    m.vm[vm, VM_TDP] = NONE
    free_page(m, top)


@jit
def _zap_entries(m: Model, task: int, sp: int) -> None:
    """Every table below ``sp``, then every leaf in it."""
    for index in range(TABLE_SPTES):
        if is_child(m.spte[sp, index]):
            _remove_child(m, task, sp, index, 0)
    level = m.sp[sp, SP_LEVEL]
    for index in range(TABLE_SPTES):
        spte = m.spte[sp, index]
        if spte:
            m.spte[sp, index] = 0
            print_spte_changed(m, task, m.sp[sp, SP_GFN] + index * pages(level), level, spte, 0)
