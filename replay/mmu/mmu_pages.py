"""How many shadow pages a VM has and may have: n_used_mmu_pages and n_max_mmu_pages (mmu.c)."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.layout import VM_MAX, VM_PEAK, VM_USED
from replay.mmu.state import Mmu


@jit
def available_pages(m: Mmu, vm: int) -> int:
    """kvm_mmu_available_pages()."""
    return max(m.vm[vm, VM_MAX] - m.vm[vm, VM_USED], 0)


@jit
def add_used_pages(m: Mmu, vm: int, n: int) -> None:
    m.vm[vm, VM_USED] += n
    m.vm[vm, VM_PEAK] = max(m.vm[vm, VM_PEAK], m.vm[vm, VM_USED])
