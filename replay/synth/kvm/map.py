"""Mapping of a page by a fault: tables down to it, its SPTE, and those of its neighbours."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import (
    LOCKED,
    LOCKED_TWICE,
    NOTHING,
    REQUESTED,
    REQUESTED_ACCESS,
    RWXU,
    SET_SPTE,
    UNSYNC_PAGE,
    print_event,
    print_page,
    print_spte_changed,
)
from replay.synth.kvm.guest import (
    find_mapping,
    find_table,
    mapped_gfn,
    shadow_of,
    walk_access,
)
from replay.synth.kvm.memory import gfn_to_memslot, host_level, host_pfn, is_resident, mark_page_dirty
from replay.synth.kvm.shadow_page import get_direct_page, get_indirect_page, link_shadow_page, unlink_parent
from replay.synth.kvm.spte import (
    ACC_ALL,
    ACC_EXEC,
    ACC_READ,
    ACC_USER,
    ACC_WRITE,
    EPT,
    FOUR_LETTERS,
    HOST_WRITABLE,
    PAGE_SHIFT,
    SPTE_PS,
    SPTE_W,
    USER,
    can_fetch,
    child_of,
    is_child,
    is_leaf,
    make_spte,
    pages,
)
from replay.synth.kvm.state import ROOT_LEVEL, Model, spte_index
from replay.synth.kvm.tdp import make_tdp_table, replace_table

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
    mode = m.root[root].mode
    leaf_level = m.mapping[mapping].level if mapping >= 0 else ROOT_LEVEL
    for level in range(ROOT_LEVEL - 1, leaf_level - 1, -1):
        index = spte_index(m, sp, addr)
        if not is_child(m.spte[sp, index]):
            table = find_table(m, root, level, addr)
            link_shadow_page(m, sp, index, get_indirect_page(m, vm, task, table, level, mode))
        sp = child_of(m.spte[sp, index])
    goal = _goal_level(m, vm, slot, gfn, min(3, leaf_level))
    _print_requested(m, task, slot, gfn, goal, access)
    while m.sp[sp].level > goal:
        level, index = m.sp[sp].level, spte_index(m, sp, addr)
        if is_child(m.spte[sp, index]) and m.sp[child_of(m.spte[sp, index])].access != access:
            # validate_direct_spte(): the guest's access has changed
            unlink_parent(m, sp, index, child_of(m.spte[sp, index]))
            m.spte[sp, index] = 0
        if not is_child(m.spte[sp, index]):
            base = gfn & -pages(level)
            child = get_direct_page(m, vm, task, base, level - 1, access, mode)
            link_shadow_page(m, sp, index, child)
        sp = child_of(m.spte[sp, index])
    index = spte_index(m, sp, addr)
    _set_spte(m, vm, task, sp, index, gfn, access, slot, False)
    if m.sp[sp].level == 1:
        if m.sp[sp].direct:
            _direct_prefetch(m, vm, task, sp, index, slot)
        else:
            _indirect_prefetch(m, vm, task, root, sp, index, addr)


@jit
def tdp_map(m: Model, vm: int, task: int, sp: int, slot: int, gfn: int) -> None:
    """kvm_tdp_mmu_map()."""
    goal = _goal_level(m, vm, slot, gfn, 3)
    access = m.layout[ACC_ALL]
    _print_requested(m, task, slot, gfn, goal, access)
    while m.sp[sp].level > goal:
        index = gfn >> 9 * (m.sp[sp].level - 1) & 511
        spte = m.spte[sp, index]
        sp = child_of(spte) if is_child(spte) else make_tdp_table(m, vm, task, sp, index)
    _set_spte(m, vm, task, sp, gfn >> 9 * (goal - 1) & 511, gfn, access, slot, False)


@jit
def _print_requested(m: Model, task: int, slot: int, gfn: int, level: int, access: int) -> None:
    """A kvm_mmu_spte_requested line, with the access where the kernel prints it."""
    event = REQUESTED_ACCESS if m.layout[FOUR_LETTERS] else REQUESTED
    print_event(m, task, LOCKED, event, gfn, host_pfn(m, slot, gfn), level, access, 0, 0, 0)


@jit
def _goal_level(m: Model, vm: int, slot: int, gfn: int, most: int) -> int:
    """kvm_mmu_hugepage_adjust(): 4K only while the slot's dirty log is on."""
    return 1 if m.slot[slot].dirty_log else min(most, host_level(m, vm, slot, gfn))


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
    level = m.sp[sp].level
    gfn &= -pages(level)
    host_writable = m.slot[slot].readonly == 0
    shadow = shadow_of(m, vm, gfn)
    if not host_writable or (shadow >= 0 and not _may_write(m, task, vm, shadow, access, prefetch)):
        access &= ~ACC_WRITE
    spte = make_spte(m.layout, host_pfn(m, slot, gfn), access, m.sp[sp].guest_mode, prefetch)
    if level > 1:
        spte |= SPTE_PS
    if host_writable:
        spte |= m.layout[HOST_WRITABLE]
    if access & ACC_WRITE:
        mark_page_dirty(m, slot, gfn)
    old = m.spte[sp, index]
    if old == spte:
        return
    m.spte[sp, index] = spte
    if m.sp[sp].tdp:
        if is_child(old):
            replace_table(m, task, child_of(old), level, spte)
        else:
            print_spte_changed(m, task, gfn, level, old, spte)
    elif is_child(old):
        unlink_parent(m, sp, index, child_of(old))
    sptep = m.sp[sp].spt + 8 * index
    print_event(m, task, LOCKED, SET_SPTE, gfn, spte, RWXU + _letters(m, spte), level, sptep, 0, 0)


@jit
def _may_write(m: Model, task: int, vm: int, shadow: int, access: int, prefetch: bool) -> bool:
    """mmu_try_to_unsync_pages(): a last-level guest page table may become writable, and unsync."""
    if not access & ACC_WRITE or prefetch or m.sp[shadow].level > 1:
        return False
    if not m.sp[shadow].unsync:
        print_page(m, task, LOCKED_TWICE, UNSYNC_PAGE, shadow, NOTHING)
        m.sp[shadow].unsync = 1
        m.vm[vm].unsync += 1
    return True


@jit
def _letters(m: Model, spte: int) -> int:
    """What kvm_mmu_set_spte prints of an SPTE, as ACC_* bits."""
    letters = ACC_WRITE if spte & SPTE_W else 0
    if can_fetch(m.layout, spte):
        letters |= ACC_EXEC
    if spte & m.layout[USER]:
        letters |= ACC_USER
    # shadow_present_mask has a bit but where EPT can be execute-only and #VE is not suppressed
    if not m.layout[EPT] or m.layout[FOUR_LETTERS] or spte & 1:
        letters |= ACC_READ
    return letters


@jit
def _direct_prefetch(m: Model, vm: int, task: int, sp: int, index: int, slot: int) -> None:
    """__direct_pte_prefetch(): resident neighbours in the aligned group of eight."""
    access, base = m.sp[sp].access, m.sp[sp].gfn
    if access & ACC_WRITE and m.slot[slot].dirty_log:
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
        if m.slot[slot].base_gfn > base + start or base + stop > m.slot[slot].end:
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
        if mapping < 0 or m.mapping[mapping].level > 1:
            return
        gfn = mapped_gfn(m, mapping, neighbour)
        slot = gfn_to_memslot(m, vm, gfn)
        access = walk_access(m, root, mapping, neighbour, False)
        if slot < 0 or (m.slot[slot].dirty_log and access & ACC_WRITE):
            return
        if not is_resident(m, slot, gfn):
            return
        _set_spte(m, vm, task, sp, i, gfn, access, slot, True)
