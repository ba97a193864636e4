"""How many shadow pages a VM has and may have: n_used_mmu_pages and n_max_mmu_pages (mmu.c)."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.layout import (
    CTL_BIRTH,
    CTL_SLOT_TOP,
    SLOT_LIVE,
    SLOT_NPAGES,
    SLOT_VM,
    SP32_BIRTH,
    VM_AVAILABLE_SHOWN,
    VM_GOAL_TASK,
    VM_HAS_RMAPS,
    VM_KEPT,
    VM_MAX,
    VM_PEAK,
    VM_TOLD_BIRTH,
    VM_UNSEEN,
    VM_USED,
)
from replay.mmu.state import Mmu
from replay.mmu.window import C_UNCOUNTED, C_USED_DIFFER, count

KVM_MIN_ALLOC_MMU_PAGES = 64
KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO = 50


@jit
def available_pages(m: Mmu, vm: int) -> int:
    """kvm_mmu_available_pages()."""
    return max(m.vm[vm, VM_MAX] - m.vm[vm, VM_USED], 0)


@jit
def add_used_page(m: Mmu, vm: int, is_older: bool) -> None:
    """A page is made, or, where it ``is_older`` than the trace, seen for the first time."""
    m.vm[vm, VM_HAS_RMAPS] = 1
    if is_older and m.vm[vm, VM_UNSEEN]:
        m.vm[vm, VM_UNSEEN] -= 1  # counted already
        return
    if is_older:
        learn_older_page(m, vm)
    m.vm[vm, VM_USED] += 1
    m.vm[vm, VM_PEAK] = max(m.vm[vm, VM_PEAK], m.vm[vm, VM_USED])


@jit
def drop_used_page(m: Mmu, vm: int, sp: int) -> None:
    """The page ``sp`` is zapped; one that n_used_mmu_pages did not count when it was told stays uncounted."""
    if m.sp32[sp, SP32_BIRTH] > m.vm[vm, VM_TOLD_BIRTH]:
        m.vm[vm, VM_USED] -= 1
    elif m.vm[vm, VM_KEPT]:
        m.vm[vm, VM_KEPT] -= 1
        m.vm[vm, VM_USED] -= 1
    else:
        count(m, C_UNCOUNTED, 1)


@jit
def drop_unknown_page(m: Mmu, vm: int) -> None:
    """A page is zapped that was never seen: counted if the kernel told that there were such pages."""
    if m.vm[vm, VM_UNSEEN]:
        m.vm[vm, VM_UNSEEN] -= 1
        m.vm[vm, VM_USED] -= 1


@jit
def tell_used_pages(m: Mmu, vm: int, used: int) -> None:
    """The kernel tells n_used_mmu_pages: which pages are too many, or too few, it does not tell."""
    if m.vm[vm, VM_USED] == used:
        return
    count(m, C_USED_DIFFER, 1)
    seen = m.vm[vm, VM_USED] - m.vm[vm, VM_UNSEEN]
    m.vm[vm, VM_KEPT] = min(used, seen)
    m.vm[vm, VM_UNSEEN] = used - m.vm[vm, VM_KEPT]
    m.vm[vm, VM_TOLD_BIRTH] = m.ctl[CTL_BIRTH]
    m.vm[vm, VM_USED] = used
    m.vm[vm, VM_PEAK] = max(m.vm[vm, VM_PEAK], used)
    if used:
        m.vm[vm, VM_HAS_RMAPS] = 1


@jit
def change_mmu_pages(m: Mmu, vm: int, t: int, goal: int) -> None:
    """kvm_mmu_change_mmu_pages(): what it zaps is in the trace, see :func:`settle_limit`."""
    m.vm[vm, VM_MAX] = goal
    m.vm[vm, VM_GOAL_TASK] = t + 1


@jit
def settle_limit(m: Mmu, vm: int) -> None:
    """The zaps of change_mmu_pages are over: pages that could not be zapped raise the limit."""
    m.vm[vm, VM_GOAL_TASK] = 0
    m.vm[vm, VM_MAX] = max(m.vm[vm, VM_MAX], m.vm[vm, VM_USED])


@jit
def learn_available(m: Mmu, vm: int, more: int) -> None:
    """The kernel prints kvm_mmu_available_pages(): ``more`` than the model has, or fewer."""
    m.vm[vm, VM_MAX] += more
    m.vm[vm, VM_AVAILABLE_SHOWN] = 1


@jit
def learn_older_page(m: Mmu, vm: int) -> None:
    """One of the used pages is seen for the first time: as many are available as before."""
    if m.vm[vm, VM_AVAILABLE_SHOWN]:
        m.vm[vm, VM_MAX] += 1


@jit
def default_limit(m: Mmu, vm: int) -> int:
    """kvm_mmu_calculate_default_mmu_pages(): a fiftieth of the memslots' pages."""
    pages = 0
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if m.slot[s, SLOT_LIVE] and m.slot[s, SLOT_VM] == vm:
            pages += m.slot[s, SLOT_NPAGES]
    return max(pages // KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO, KVM_MIN_ALLOC_MMU_PAGES)
