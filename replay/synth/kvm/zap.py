"""Zapping of shadow pages, and what makes room for new ones."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import LOCKED, NOTHING, SYNC_PAGE, ZAP_PAGE, print_page
from replay.synth.kvm.memory import disallow_huge
from replay.synth.kvm.shadow_page import free_page, unlink_parent
from replay.synth.kvm.spte import child_of, is_child
from replay.synth.kvm.state import NONE, SMALL, TABLE_SHIFT, TABLE_SPTES, Model, make_chunk, remove

KVM_MIN_FREE_MMU_PAGES, KVM_REFILL_PAGES = 5, 25


@jit
def next_unsync(m: Model, top: int, position: int) -> int:
    """mmu_unsync_walk(): the next place of an unsync page below ``top``, which is ``m.ctl.found``; or -1.

    Places count pages of level 1.
    """
    if m.vm[m.sp[top].vm].unsync == 0:
        return NONE
    end = 1 << 9 * (m.sp[top].level - 1)
    while position < end:
        sp, level = top, m.sp[top].level
        while level > 1:
            level -= 1
            spte = m.spte[sp, position >> 9 * (level - 1) & 511]
            if not is_child(spte) or m.sp[child_of(spte)].direct:
                break
            sp = child_of(spte)
            if level == 1 and m.sp[sp].unsync:
                m.ctl.found = sp
                return position
        size = 1 << 9 * (level - 1)
        position = (position & -size) + size
    return NONE


@jit
def prepare_zap_page(m: Model, task: int, sp: int) -> int:
    """__kvm_mmu_prepare_zap_page(); returns how many pages went."""
    zapped = _begin_zap(m, task, sp)
    level = top = m.sp[sp].level
    place = 2 * level
    m.ctl.stack[place], m.ctl.stack[place + 1] = sp, 0
    while level <= top:
        place = 2 * level
        sp, index = m.ctl.stack[place], m.ctl.stack[place + 1]
        if index == TABLE_SPTES:
            zapped += _end_zap(m, task, sp)
            level += 1
            continue
        m.ctl.stack[place + 1] = index + 1
        spte = m.spte[sp, index]
        m.spte[sp, index] = 0
        if is_child(spte):
            child = child_of(spte)
            unlink_parent(m, sp, index, child)
            if m.sp[child].guest_mode and m.sp[child].parents < 0:
                zapped += _begin_zap(m, task, child)
                level -= 1
                m.ctl.stack[place - 2], m.ctl.stack[place - 1] = child, 0
    return zapped


@jit
def _begin_zap(m: Model, task: int, sp: int) -> int:
    """The line of the page, and mmu_zap_unsync_children()."""
    print_page(m, task, LOCKED, ZAP_PAGE, sp, NOTHING)
    zapped = 0
    position = next_unsync(m, sp, 0)
    while position >= 0:
        child = m.ctl.found
        print_page(m, task, LOCKED, ZAP_PAGE, child, NOTHING)
        for index in range(TABLE_SPTES):
            m.spte[child, index] = 0
        zapped += _end_zap(m, task, child)
        position = next_unsync(m, sp, position + 1)
    return zapped


@jit
def _end_zap(m: Model, task: int, sp: int) -> int:
    """A page without entries leaves its parents and all lists; 1 if it is gone, 0 if it is a root in use."""
    vm = m.sp[sp].vm
    link = m.sp[sp].parents
    while link >= 0:
        place = m.link[link].place
        m.spte[place >> TABLE_SHIFT, place & TABLE_SPTES - 1] = 0
        following = m.link[link].next
        m.link[link].next = m.ctl.link_free
        m.ctl.link_free = link
        link = following
    m.sp[sp].parents = NONE
    if not m.sp[sp].invalid:
        _unaccount(m, vm, sp)
        if m.sp[sp].direct:
            remove(m.sp, m.page_heads, sp)
            if m.sp[sp].level == 1:
                chunk = make_chunk(m, SMALL, vm, m.sp[sp].gfn >> 18)
                m.chunk[chunk].value -= 1
                if m.chunk[chunk].value == 0:
                    for word in range(16):
                        m.chunk[chunk].words[word] = 0
        else:
            m.table[m.sp[sp].table].shadow = NONE
            disallow_huge(m, vm, m.sp[sp].gfn, -1)
    if m.sp[sp].unsync:
        print_page(m, task, LOCKED, SYNC_PAGE, sp, NOTHING)
        m.sp[sp].unsync = 0
        m.vm[vm].unsync -= 1
    m.sp[sp].invalid = 1
    if m.sp[sp].root_count:
        _keep_invalid_root(m, vm, sp)
        return 0
    m.vm[vm].n_used_mmu_pages -= 1
    free_page(m, sp)
    return 1


@jit
def _unaccount(m: Model, vm: int, sp: int) -> None:
    """The page is active no more."""
    older, newer = m.sp[sp].older, m.sp[sp].newer
    if older >= 0:
        m.sp[older].newer = newer
    else:
        m.vm[vm].oldest = newer
    if newer >= 0:
        m.sp[newer].older = older
    else:
        m.vm[vm].newest = older


@jit
def _keep_invalid_root(m: Model, vm: int, sp: int) -> None:
    """Append a root that is still in use to the VM's list of invalid roots."""
    m.root[m.sp[sp].root].sp = NONE
    last = m.vm[vm].last_invalid_root
    m.sp[sp].newer = NONE
    if last >= 0:
        m.sp[last].newer = sp
    else:
        m.vm[vm].invalid_root = sp
    m.vm[vm].last_invalid_root = sp


@jit
def zap_oldest_mmu_pages(m: Model, vm: int, task: int, count: int) -> None:
    """kvm_mmu_zap_oldest_mmu_pages(): from the tail of the active list, roots in use excepted."""
    zapped = 0
    while zapped < count:
        oldest = m.vm[vm].oldest
        while oldest >= 0 and m.sp[oldest].root_count:
            oldest = m.sp[oldest].newer
        if oldest < 0:
            return
        zapped += prepare_zap_page(m, task, oldest)


@jit
def make_mmu_pages_available(m: Model, vm: int, task: int) -> None:
    """Before a fault of the shadow MMU: at least five free pages, else 25."""
    available = max(0, m.vm[vm].n_max_mmu_pages - m.vm[vm].n_used_mmu_pages)
    if available < KVM_MIN_FREE_MMU_PAGES:
        zap_oldest_mmu_pages(m, vm, task, KVM_REFILL_PAGES - available)


@jit
def change_mmu_pages(m: Model, vm: int, task: int, goal: int) -> None:
    """kvm_mmu_change_mmu_pages(): pages above the goal go at once."""
    m.vm[vm].requested = goal
    if m.vm[vm].n_used_mmu_pages > goal:
        zap_oldest_mmu_pages(m, vm, task, m.vm[vm].n_used_mmu_pages - goal)
    m.vm[vm].n_max_mmu_pages = max(goal, m.vm[vm].n_used_mmu_pages)
