"""What the VMM does: dirty logging, deletion of memslots; and the host, which takes memory away."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import LOCKED, ZAP_ALL_FAST, print_event
from replay.synth.kvm.memory import evict, is_dirty
from replay.synth.kvm.reach import (
    CLEAR_DIRTY,
    CLEAR_WRITABLE,
    COLLAPSE,
    DROP,
    HUGEST,
    change_leaves,
    change_tdp_leaves,
)
from replay.synth.kvm.shadow_page import write_protect_gfn
from replay.synth.kvm.spte import PML
from replay.synth.kvm.state import (
    KVM_MIN_ALLOC_MMU_PAGES,
    NONE,
    SLOT_BASE,
    SLOT_DIRTY_LOG,
    SLOT_END,
    SLOT_FILLING,
    SLOT_LIVE,
    VM_ALL_SET,
    VM_GEN,
    VM_LAST_SLOT,
    VM_MAX,
    VM_OLDEST,
    VM_REQUESTED,
    VM_SLOT,
    VM_SLOT_END,
    VM_USED,
    Model,
)
from replay.synth.kvm.tdp import zap_collapsible_tables, zap_tdp_root
from replay.synth.kvm.zap import prepare_zap_page

CHUNK_PAGES = 64
PAGES_PER_SHADOW_PAGE = 50


@jit
def set_dirty_log(m: Model, vm: int, task: int, slot: int) -> None:
    """kvm_mmu_slot_apply_flags(), the slot's flag being set already."""
    first, last = m.slot[slot, SLOT_BASE], m.slot[slot, SLOT_END]
    if not m.slot[slot, SLOT_DIRTY_LOG]:
        change_leaves(m, vm, slot, first, last, 1, HUGEST, COLLAPSE)
        zap_collapsible_tables(m, vm, task, slot)
        return
    if m.vm[vm, VM_ALL_SET]:
        m.slot[slot, SLOT_FILLING] += 1
        return
    lowest = 1
    if m.layout[PML]:
        # kvm_mmu_slot_leaf_clear_dirty(): the CPU logs what it writes through 4K SPTEs
        change_leaves(m, vm, slot, first, last, 1, 1, CLEAR_DIRTY)
        change_tdp_leaves(m, vm, task, first, last, 1, HUGEST, CLEAR_DIRTY)
        lowest = 2
    change_leaves(m, vm, slot, first, last, lowest, HUGEST, CLEAR_WRITABLE)
    change_tdp_leaves(m, vm, task, first, last, lowest, HUGEST, CLEAR_WRITABLE)


@jit
def clear_dirty_log(m: Model, vm: int, task: int, slot: int, first_page: int, count: int, mask: int) -> None:
    """KVM_CLEAR_DIRTY_LOG: kvm_arch_mmu_enable_log_dirty_pt_masked() for each 64 pages."""
    base = m.slot[slot, SLOT_BASE]
    action = CLEAR_DIRTY if m.layout[PML] else CLEAR_WRITABLE
    for chunk in range(first_page, first_page + count, CHUNK_PAGES):
        low, high = NONE, NONE
        for page in range(chunk, min(chunk + CHUNK_PAGES, first_page + count)):
            if mask >> (page - chunk) & 1 and is_dirty(m, slot, page, False):
                low = page if low < 0 else low
                high = page
        if low < 0:
            continue
        if m.vm[vm, VM_ALL_SET]:
            write_protect_gfn(m, vm, task, base + low, 2)
            if base + low >> 9 != base + high >> 9:
                write_protect_gfn(m, vm, task, base + high, 2)
        for page in range(low, high + 1):
            if mask >> (page - chunk) & 1 and is_dirty(m, slot, page, True):
                gfn = base + page
                change_leaves(m, vm, NONE, gfn, gfn + 1, 1, 1, action)
                change_tdp_leaves(m, vm, task, gfn, gfn + 1, 1, 1, action)


@jit
def delete_slot(m: Model, vm: int, task: int, slot: int) -> None:
    """kvm_mmu_zap_all_fast(): every page of the old generation goes, oldest first; then the TDP MMU."""
    used = m.vm[vm, VM_USED]
    print_event(m, task, LOCKED, ZAP_ALL_FAST, m.vm[vm, VM_GEN], used, 0, 0, 0, 0, 0)
    m.vm[vm, VM_GEN] ^= 1
    while m.vm[vm, VM_OLDEST] >= 0:
        prepare_zap_page(m, task, m.vm[vm, VM_OLDEST])
    zap_tdp_root(m, vm, task)
    m.slot[slot, SLOT_LIVE] = 0
    m.vm[vm, VM_LAST_SLOT] = NONE
    # kvm_mmu_calculate_default_mmu_pages()
    total = 0
    for other in range(m.vm[vm, VM_SLOT], m.vm[vm, VM_SLOT_END]):
        if m.slot[other, SLOT_LIVE]:
            total += m.slot[other, SLOT_END] - m.slot[other, SLOT_BASE]
    m.vm[vm, VM_MAX] = max(KVM_MIN_ALLOC_MMU_PAGES, total // PAGES_PER_SHADOW_PAGE)
    if m.vm[vm, VM_REQUESTED]:
        m.vm[vm, VM_MAX] = m.vm[vm, VM_REQUESTED]


@jit
def unmap(m: Model, vm: int, task: int, slot: int, first: int, last: int) -> None:
    """kvm_unmap_gfn_range(), and the host's pages are gone."""
    change_leaves(m, vm, slot, first, last, 1, HUGEST, DROP)
    change_tdp_leaves(m, vm, task, first, last, 1, HUGEST, DROP)
    evict(m, slot, first, last)
