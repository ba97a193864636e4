"""Zapping of shadow pages, and what makes room for new ones."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import LOCKED, NOTHING, SYNC_PAGE, ZAP_PAGE, print_page
from replay.synth.kvm.memory import disallow_huge
from replay.synth.kvm.shadow_page import free_page, unlink_parent
from replay.synth.kvm.spte import child_of, is_child
from replay.synth.kvm.state import (
    CHUNK_VALUE,
    CHUNK_WORDS,
    CTL_FOUND,
    CTL_LINK_FREE,
    CTL_STACK,
    LINK_NEXT,
    LINK_PLACE,
    NONE,
    ROOT_SP,
    SMALL,
    SP_DIRECT,
    SP_GFN,
    SP_GUEST_MODE,
    SP_INVALID,
    SP_LEVEL,
    SP_NEWER,
    SP_OLDER,
    SP_PARENTS,
    SP_ROOT,
    SP_ROOT_COUNT,
    SP_TABLE,
    SP_UNSYNC,
    SP_VM,
    TABLE_SHADOW,
    TABLE_SHIFT,
    TABLE_SPTES,
    VM_INVALID_ROOT,
    VM_LAST_INVALID_ROOT,
    VM_MAX,
    VM_NEWEST,
    VM_OLDEST,
    VM_REQUESTED,
    VM_UNSYNC,
    VM_USED,
    Model,
    make_chunk,
    remove,
)

KVM_MIN_FREE_MMU_PAGES, KVM_REFILL_PAGES = 5, 25


@jit
def next_unsync(m: Model, top: int, position: int) -> int:
    """mmu_unsync_walk(): the next place of an unsync page below ``top``, which is ``CTL_FOUND``; or -1.

    Places count pages of level 1.
    """
    if m.vm[m.sp[top, SP_VM], VM_UNSYNC] == 0:
        return NONE
    end = 1 << 9 * (m.sp[top, SP_LEVEL] - 1)
    while position < end:
        sp, level = top, m.sp[top, SP_LEVEL]
        while level > 1:
            level -= 1
            spte = m.spte[sp, position >> 9 * (level - 1) & 511]
            if not is_child(spte) or m.sp[child_of(spte), SP_DIRECT]:
                break
            sp = child_of(spte)
            if level == 1 and m.sp[sp, SP_UNSYNC]:
                m.ctl[CTL_FOUND] = sp
                return position
        size = 1 << 9 * (level - 1)
        position = (position & -size) + size
    return NONE


@jit
def prepare_zap_page(m: Model, task: int, sp: int) -> int:
    """__kvm_mmu_prepare_zap_page(); returns how many pages went."""
    zapped = _begin_zap(m, task, sp)
    level = top = m.sp[sp, SP_LEVEL]
    stack = CTL_STACK + 2 * level
    m.ctl[stack], m.ctl[stack + 1] = sp, 0
    while level <= top:
        stack = CTL_STACK + 2 * level
        sp, index = m.ctl[stack], m.ctl[stack + 1]
        if index == TABLE_SPTES:
            zapped += _end_zap(m, task, sp)
            level += 1
            continue
        m.ctl[stack + 1] = index + 1
        spte = m.spte[sp, index]
        m.spte[sp, index] = 0
        if is_child(spte):
            child = child_of(spte)
            unlink_parent(m, sp, index, child)
            if m.sp[child, SP_GUEST_MODE] and m.sp[child, SP_PARENTS] < 0:
                zapped += _begin_zap(m, task, child)
                level -= 1
                m.ctl[stack - 2], m.ctl[stack - 1] = child, 0
    return zapped


@jit
def _begin_zap(m: Model, task: int, sp: int) -> int:
    """The line of the page, and mmu_zap_unsync_children()."""
    print_page(m, task, LOCKED, ZAP_PAGE, sp, NOTHING)
    zapped = 0
    position = next_unsync(m, sp, 0)
    while position >= 0:
        child = m.ctl[CTL_FOUND]
        print_page(m, task, LOCKED, ZAP_PAGE, child, NOTHING)
        for index in range(TABLE_SPTES):
            m.spte[child, index] = 0
        zapped += _end_zap(m, task, child)
        position = next_unsync(m, sp, position + 1)
    return zapped


@jit
def _end_zap(m: Model, task: int, sp: int) -> int:
    """A page without entries leaves its parents and all lists; 1 if it is gone, 0 if it is a root in use."""
    vm = m.sp[sp, SP_VM]
    link = m.sp[sp, SP_PARENTS]
    while link >= 0:
        place = m.link[link, LINK_PLACE]
        m.spte[place >> TABLE_SHIFT, place & TABLE_SPTES - 1] = 0
        following = m.link[link, LINK_NEXT]
        m.link[link, LINK_NEXT] = m.ctl[CTL_LINK_FREE]
        m.ctl[CTL_LINK_FREE] = link
        link = following
    m.sp[sp, SP_PARENTS] = NONE
    if not m.sp[sp, SP_INVALID]:
        _unaccount(m, vm, sp)
        if m.sp[sp, SP_DIRECT]:
            remove(m.sp, m.page_heads, sp)
            if m.sp[sp, SP_LEVEL] == 1:
                chunk = make_chunk(m, SMALL, vm, m.sp[sp, SP_GFN] >> 18)
                m.chunk[chunk, CHUNK_VALUE] -= 1
                if m.chunk[chunk, CHUNK_VALUE] == 0:
                    for word in range(16):
                        m.chunk[chunk, CHUNK_WORDS + word] = 0
        else:
            m.table[m.sp[sp, SP_TABLE], TABLE_SHADOW] = NONE
            disallow_huge(m, vm, m.sp[sp, SP_GFN], -1)
    if m.sp[sp, SP_UNSYNC]:
        print_page(m, task, LOCKED, SYNC_PAGE, sp, NOTHING)
        m.sp[sp, SP_UNSYNC] = 0
        m.vm[vm, VM_UNSYNC] -= 1
    m.sp[sp, SP_INVALID] = 1
    if m.sp[sp, SP_ROOT_COUNT]:
        _keep_invalid_root(m, vm, sp)
        return 0
    m.vm[vm, VM_USED] -= 1
    free_page(m, sp)
    return 1


@jit
def _unaccount(m: Model, vm: int, sp: int) -> None:
    """The page is active no more."""
    older, newer = m.sp[sp, SP_OLDER], m.sp[sp, SP_NEWER]
    if older >= 0:
        m.sp[older, SP_NEWER] = newer
    else:
        m.vm[vm, VM_OLDEST] = newer
    if newer >= 0:
        m.sp[newer, SP_OLDER] = older
    else:
        m.vm[vm, VM_NEWEST] = older


@jit
def _keep_invalid_root(m: Model, vm: int, sp: int) -> None:
    """Append a root that is still in use to the VM's list of invalid roots."""
    m.root[m.sp[sp, SP_ROOT], ROOT_SP] = NONE
    last = m.vm[vm, VM_LAST_INVALID_ROOT]
    m.sp[sp, SP_NEWER] = NONE
    if last >= 0:
        m.sp[last, SP_NEWER] = sp
    else:
        m.vm[vm, VM_INVALID_ROOT] = sp
    m.vm[vm, VM_LAST_INVALID_ROOT] = sp


@jit
def zap_oldest_mmu_pages(m: Model, vm: int, task: int, count: int) -> None:
    """kvm_mmu_zap_oldest_mmu_pages(): from the tail of the active list, roots in use excepted."""
    zapped = 0
    while zapped < count:
        oldest = m.vm[vm, VM_OLDEST]
        while oldest >= 0 and m.sp[oldest, SP_ROOT_COUNT]:
            oldest = m.sp[oldest, SP_NEWER]
        if oldest < 0:
            return
        zapped += prepare_zap_page(m, task, oldest)


@jit
def make_mmu_pages_available(m: Model, vm: int, task: int) -> None:
    """Before a fault of the shadow MMU: at least five free pages, else 25."""
    available = max(0, m.vm[vm, VM_MAX] - m.vm[vm, VM_USED])
    if available < KVM_MIN_FREE_MMU_PAGES:
        zap_oldest_mmu_pages(m, vm, task, KVM_REFILL_PAGES - available)


@jit
def change_mmu_pages(m: Model, vm: int, task: int, goal: int) -> None:
    """kvm_mmu_change_mmu_pages(): pages above the goal go at once."""
    m.vm[vm, VM_REQUESTED] = goal
    if m.vm[vm, VM_USED] > goal:
        zap_oldest_mmu_pages(m, vm, task, m.vm[vm, VM_USED] - goal)
    m.vm[vm, VM_MAX] = max(goal, m.vm[vm, VM_USED])
