"""Mapping of a page by a fault: tables down to it, its SPTE, and those of its neighbours."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import (
    LOCKED,
    LOCKED_TWICE,
    NOTHING,
    REQUESTED,
    RWXU,
    SET_SPTE,
    UNSYNC_PAGE,
    print_event,
    print_page,
    print_spte_changed,
)
from replay.synth.kvm.guest import (
    ACC_ALL,
    ACC_EXEC,
    ACC_USER,
    ACC_WRITE,
    find_mapping,
    find_table,
    mapped_gfn,
    shadow_of,
    walk_access,
)
from replay.synth.kvm.memory import gfn_to_memslot, host_level, host_pfn, is_resident, mark_page_dirty
from replay.synth.kvm.shadow_page import get_direct_page, get_indirect_page, link_shadow_page, unlink_parent
from replay.synth.kvm.spte import (
    NONLEAF,
    SPTE_A,
    SPTE_D,
    SPTE_HOST_W,
    SPTE_MMU_PRESENT,
    SPTE_MMU_W,
    SPTE_NX,
    SPTE_P,
    SPTE_PS,
    SPTE_U,
    SPTE_W,
    child_of,
    is_child,
    is_leaf,
    pages,
)
from replay.synth.kvm.state import (
    KIND_NESTED,
    MAP_LEVEL,
    PAGE_SHIFT,
    ROOT_KIND,
    ROOT_LEVEL,
    SLOT_BASE,
    SLOT_DIRTY_LOG,
    SLOT_END,
    SLOT_READONLY,
    SP_ACCESS,
    SP_DIRECT,
    SP_GFN,
    SP_LEVEL,
    SP_SPT,
    SP_TDP,
    SP_UNSYNC,
    VM_UNSYNC,
    Model,
    spte_index,
)
from replay.synth.kvm.tdp import make_tdp_table, remove_table

PTE_PREFETCH_NUM = 8


@jit
def shadow_map(
    m: Model,
    vm: int,
    task: int,
    root: int,
    sp: int,
    slot: int,
    mapping: int,
    access: int,
    gfn: int,
    addr: int,
) -> None:
    """FNAME(fetch)() with a walk through ``mapping``, __direct_map() without."""
    guest_mode = 1 if m.root[root, ROOT_KIND] == KIND_NESTED else 0
    leaf_level = m.mapping[mapping, MAP_LEVEL] if mapping >= 0 else ROOT_LEVEL
    for level in range(ROOT_LEVEL - 1, leaf_level - 1, -1):
        index = spte_index(m, sp, addr)
        if not is_child(m.spte[sp, index]):
            table = find_table(m, root, level, addr)
            link_shadow_page(m, sp, index, get_indirect_page(m, vm, task, table, level, guest_mode))
        sp = child_of(m.spte[sp, index])
    goal = _goal_level(m, vm, slot, gfn, min(3, leaf_level))
    _print_requested(m, task, slot, gfn, goal)
    while m.sp[sp, SP_LEVEL] > goal:
        level, index = m.sp[sp, SP_LEVEL], spte_index(m, sp, addr)
        if not is_child(m.spte[sp, index]):
            base = gfn & -pages(level)
            child = get_direct_page(m, vm, task, base, level - 1, access, guest_mode)
            link_shadow_page(m, sp, index, child)
        sp = child_of(m.spte[sp, index])
    index = spte_index(m, sp, addr)
    _set_spte(m, vm, task, sp, index, gfn, access, slot, False)
    if m.sp[sp, SP_LEVEL] == 1:
        if m.sp[sp, SP_DIRECT]:
            _direct_prefetch(m, vm, task, sp, index, slot)
        else:
            _indirect_prefetch(m, vm, task, root, sp, index, addr)


@jit
def tdp_map(m: Model, vm: int, task: int, sp: int, slot: int, gfn: int) -> None:
    """kvm_tdp_mmu_map()."""
    goal = _goal_level(m, vm, slot, gfn, 3)
    _print_requested(m, task, slot, gfn, goal)
    while m.sp[sp, SP_LEVEL] > goal:
        index = gfn >> 9 * (m.sp[sp, SP_LEVEL] - 1) & 511
        spte = m.spte[sp, index]
        sp = child_of(spte) if is_child(spte) else make_tdp_table(m, vm, task, sp, index)
    _set_spte(m, vm, task, sp, gfn >> 9 * (goal - 1) & 511, gfn, ACC_ALL, slot, False)


@jit
def _print_requested(m: Model, task: int, slot: int, gfn: int, level: int) -> None:
    print_event(m, task, LOCKED, REQUESTED, gfn, host_pfn(m, slot, gfn), level, 0, 0, 0, 0)


@jit
def _goal_level(m: Model, vm: int, slot: int, gfn: int, most: int) -> int:
    """kvm_mmu_hugepage_adjust(): 4K only while the slot's dirty log is on."""
    return 1 if m.slot[slot, SLOT_DIRTY_LOG] else min(most, host_level(m, vm, slot, gfn))


@jit
def _set_spte(
    m: Model,
    vm: int,
    task: int,
    sp: int,
    index: int,
    gfn: int,
    access: int,
    slot: int,
    prefetch: bool,
) -> None:
    """mmu_set_spte() and make_spte(), or their TDP MMU counterpart."""
    level = m.sp[sp, SP_LEVEL]
    gfn &= -pages(level)
    host_writable = m.slot[slot, SLOT_READONLY] == 0
    shadow = shadow_of(m, vm, gfn)
    if not host_writable or (shadow >= 0 and not _may_write(m, task, vm, shadow, access, prefetch)):
        access &= ~ACC_WRITE
    spte = _make_spte(host_pfn(m, slot, gfn), access, level > 1, prefetch, host_writable)
    if access & ACC_WRITE:
        mark_page_dirty(m, slot, gfn)
    old = m.spte[sp, index]
    if old == spte:
        return
    m.spte[sp, index] = spte
    if m.sp[sp, SP_TDP]:
        was_table = is_child(old)
        child = child_of(old)
        if was_table:
            old = m.sp[child, SP_SPT] | NONLEAF
        print_spte_changed(m, task, gfn, level, old, spte)
        if was_table:
            remove_table(m, task, child)
    elif is_child(old):
        unlink_parent(m, sp, index, child_of(old))
    sptep = m.sp[sp, SP_SPT] + 8 * index
    print_event(m, task, LOCKED, SET_SPTE, gfn, spte, RWXU + access, level, sptep, 0, 0)


@jit
def _may_write(m: Model, task: int, vm: int, shadow: int, access: int, prefetch: bool) -> bool:
    """mmu_try_to_unsync_pages(): a last-level guest page table may become writable, and unsync."""
    if not access & ACC_WRITE or prefetch or m.sp[shadow, SP_LEVEL] > 1:
        return False
    if not m.sp[shadow, SP_UNSYNC]:
        print_page(m, task, LOCKED_TWICE, UNSYNC_PAGE, shadow, NOTHING)
        m.sp[shadow, SP_UNSYNC] = 1
        m.vm[vm, VM_UNSYNC] += 1
    return True


@jit
def _make_spte(pfn: int, access: int, huge: bool, prefetch: bool, host_writable: bool) -> int:
    """make_spte()"""
    spte = pfn << PAGE_SHIFT | SPTE_P | SPTE_MMU_PRESENT
    if not prefetch:
        spte |= SPTE_A
    if huge:
        spte |= SPTE_PS
    if access & ACC_USER:
        spte |= SPTE_U
    if not access & ACC_EXEC:
        spte |= SPTE_NX
    if host_writable:
        spte |= SPTE_HOST_W
    if access & ACC_WRITE:
        spte |= SPTE_W | SPTE_MMU_W | SPTE_D
    return spte


@jit
def _direct_prefetch(m: Model, vm: int, task: int, sp: int, index: int, slot: int) -> None:
    """__direct_pte_prefetch(): resident neighbours in the aligned group of eight."""
    access, base = m.sp[sp, SP_ACCESS], m.sp[sp, SP_GFN]
    if access & ACC_WRITE and m.slot[slot, SLOT_DIRTY_LOG]:
        return
    start = index & -PTE_PREFETCH_NUM
    end = start + PTE_PREFETCH_NUM
    while start < end:
        if is_leaf(m.spte[sp, start]):
            start += 1
            continue
        stop = start + 1
        while stop < end and not is_leaf(m.spte[sp, stop]):
            stop += 1
        if m.slot[slot, SLOT_BASE] > base + start or base + stop > m.slot[slot, SLOT_END]:
            return
        if not is_resident(m, slot, base + start):
            return
        for i in range(start, stop):
            if not is_resident(m, slot, base + i):
                break
            _set_spte(m, vm, task, sp, i, base + i, access, slot, True)
        start = stop


@jit
def _indirect_prefetch(m: Model, vm: int, task: int, root: int, sp: int, index: int, addr: int) -> None:
    """FNAME(pte_prefetch)(): the same, by the guest's entries; ends at the first that cannot be had."""
    first = index & -PTE_PREFETCH_NUM
    for i in range(first, first + PTE_PREFETCH_NUM):
        if is_leaf(m.spte[sp, i]):
            continue
        neighbour = addr + (i - index << PAGE_SHIFT)
        mapping = find_mapping(m, root, neighbour)
        if mapping < 0 or m.mapping[mapping, MAP_LEVEL] > 1:
            return
        gfn = mapped_gfn(m, mapping, neighbour)
        slot = gfn_to_memslot(m, vm, gfn)
        access = walk_access(m, root, mapping)
        if slot < 0 or (m.slot[slot, SLOT_DIRTY_LOG] and access & ACC_WRITE):
            return
        if not is_resident(m, slot, gfn):
            return
        _set_spte(m, vm, task, sp, i, gfn, access, slot, True)
