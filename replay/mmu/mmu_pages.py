"""How many shadow pages a VM has and may have: n_used_mmu_pages and n_max_mmu_pages (mmu.c)."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.layout import (
    CTL_SLOT_TOP,
    SLOT_LIVE,
    SLOT_NPAGES,
    SLOT_VM,
    VM_GOAL_TASK,
    VM_MAX,
    VM_PEAK,
    VM_USED,
)
from replay.mmu.state import Mmu

KVM_MIN_ALLOC_MMU_PAGES = 64
KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO = 50


@jit
def available_pages(m: Mmu, vm: int) -> int:
    """kvm_mmu_available_pages()."""
    return max(m.vm[vm, VM_MAX] - m.vm[vm, VM_USED], 0)


@jit
def add_used_pages(m: Mmu, vm: int, n: int) -> None:
    m.vm[vm, VM_USED] += n
    m.vm[vm, VM_PEAK] = max(m.vm[vm, VM_PEAK], m.vm[vm, VM_USED])


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
def default_limit(m: Mmu, vm: int) -> int:
    """kvm_mmu_calculate_default_mmu_pages(): a fiftieth of the memslots' pages."""
    pages = 0
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if m.slot[s, SLOT_LIVE] and m.slot[s, SLOT_VM] == vm:
            pages += m.slot[s, SLOT_NPAGES]
    return max(pages // KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO, KVM_MIN_ALLOC_MMU_PAGES)
