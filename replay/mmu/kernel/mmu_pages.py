"""How many shadow pages a VM has and may have: n_used_mmu_pages and n_max_mmu_pages (mmu.c)."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.split.window import count
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu

KVM_MIN_ALLOC_MMU_PAGES = 64
KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO = 50


@jit
def available_pages(m: Mmu, vm: int) -> int:
    """kvm_mmu_available_pages()."""
    return max(m.vm[vm].n_max_mmu_pages - m.vm[vm].n_used_mmu_pages, 0)


@jit
def add_used_page(m: Mmu, vm: int, is_older: bool) -> None:
    """A page is made, or, where it ``is_older`` than the trace, seen for the first time."""
    m.vm[vm].has_rmaps = 1
    if is_older and m.vm[vm].unseen:
        m.vm[vm].unseen -= 1  # counted already
        return
    if is_older:
        learn_older_page(m, vm)
    m.vm[vm].n_used_mmu_pages += 1
    m.vm[vm].peak = max(m.vm[vm].peak, m.vm[vm].n_used_mmu_pages)


@jit
def drop_used_page(m: Mmu, vm: int, sp: int) -> None:
    """The page ``sp`` is zapped; one that n_used_mmu_pages did not count when it was told stays uncounted."""
    if m.sp[sp].birth > m.vm[vm].told_birth:
        m.vm[vm].n_used_mmu_pages -= 1
    elif m.vm[vm].kept:
        m.vm[vm].kept -= 1
        m.vm[vm].n_used_mmu_pages -= 1
    else:
        count(m, Counter.UNCOUNTED_PAGES, 1)


@jit
def drop_unknown_page(m: Mmu, vm: int) -> None:
    """A page is zapped that was never seen: counted if the kernel told that there were such pages."""
    if m.vm[vm].unseen:
        m.vm[vm].unseen -= 1
        m.vm[vm].n_used_mmu_pages -= 1


@jit
def tell_used_pages(m: Mmu, vm: int, used: int) -> None:
    """The kernel tells n_used_mmu_pages: which pages are too many, or too few, it does not tell."""
    if m.vm[vm].n_used_mmu_pages == used:
        return
    count(m, Counter.USED_PAGES_DIFFER, 1)
    seen = m.vm[vm].n_used_mmu_pages - m.vm[vm].unseen
    m.vm[vm].kept = min(used, seen)
    m.vm[vm].unseen = used - m.vm[vm].kept
    m.vm[vm].told_birth = m.ctl.birth
    m.vm[vm].n_used_mmu_pages = used
    m.vm[vm].peak = max(m.vm[vm].peak, used)
    if used:
        m.vm[vm].has_rmaps = 1


@jit
def change_mmu_pages(m: Mmu, vm: int, t: int, goal: int) -> None:
    """kvm_mmu_change_mmu_pages(): what it zaps is in the trace, see :func:`settle_limit`."""
    m.vm[vm].n_max_mmu_pages = goal
    m.vm[vm].goal_task = t + 1


@jit
def settle_limit(m: Mmu, vm: int) -> None:
    """The zaps of change_mmu_pages are over: pages that could not be zapped raise the limit."""
    m.vm[vm].goal_task = 0
    m.vm[vm].n_max_mmu_pages = max(m.vm[vm].n_max_mmu_pages, m.vm[vm].n_used_mmu_pages)


@jit
def learn_available(m: Mmu, vm: int, more: int) -> None:
    """The kernel prints kvm_mmu_available_pages(): ``more`` than the model has, or fewer."""
    m.vm[vm].n_max_mmu_pages += more
    m.vm[vm].available_shown = 1


@jit
def learn_older_page(m: Mmu, vm: int) -> None:
    """One of the used pages is seen for the first time: as many are available as before."""
    if m.vm[vm].available_shown:
        m.vm[vm].n_max_mmu_pages += 1


@jit
def default_limit(m: Mmu, vm: int) -> int:
    """kvm_mmu_calculate_default_mmu_pages(): a fiftieth of the memslots' pages."""
    pages = 0
    for s in range(m.ctl.slot_top):
        if m.slot[s].is_live and m.slot[s].vm == vm:
            pages += m.slot[s].npages
    return max(pages // KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO, KVM_MIN_ALLOC_MMU_PAGES)
