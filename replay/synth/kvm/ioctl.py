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
from replay.synth.kvm.state import KVM_MIN_ALLOC_MMU_PAGES, NONE, Model
from replay.synth.kvm.tdp import zap_collapsible_tables, zap_tdp_root
from replay.synth.kvm.zap import prepare_zap_page

CHUNK_PAGES = 64
PAGES_PER_SHADOW_PAGE = 50


@jit
def set_dirty_log(m: Model, vm: int, task: int, slot: int) -> None:
    """kvm_mmu_slot_apply_flags(), the slot's flag being set already."""
    first, last = m.slot[slot].base_gfn, m.slot[slot].end
    if not m.slot[slot].dirty_log:
        change_leaves(m, vm, slot, first, last, 1, HUGEST, COLLAPSE)
        zap_collapsible_tables(m, vm, task, slot)
        return
    if m.vm[vm].all_set:
        m.slot[slot].filling += 1
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
    base = m.slot[slot].base_gfn
    action = CLEAR_DIRTY if m.layout[PML] else CLEAR_WRITABLE
    for chunk in range(first_page, first_page + count, CHUNK_PAGES):
        low, high = NONE, NONE
        for page in range(chunk, min(chunk + CHUNK_PAGES, first_page + count)):
            if mask >> (page - chunk) & 1 and is_dirty(m, slot, page, False):
                low = page if low < 0 else low
                high = page
        if low < 0:
            continue
        if m.vm[vm].all_set:
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
    used = m.vm[vm].n_used_mmu_pages
    print_event(m, task, LOCKED, ZAP_ALL_FAST, m.vm[vm].gen, used, 0, 0, 0, 0, 0)
    m.vm[vm].gen ^= 1
    while m.vm[vm].oldest >= 0:
        prepare_zap_page(m, task, m.vm[vm].oldest)
    zap_tdp_root(m, vm, task)
    m.slot[slot].is_live = 0
    m.vm[vm].last_slot = NONE
    # kvm_mmu_calculate_default_mmu_pages()
    total = 0
    for other in range(m.vm[vm].slot, m.vm[vm].slot_end):
        if m.slot[other].is_live:
            total += m.slot[other].end - m.slot[other].base_gfn
    m.vm[vm].n_max_mmu_pages = max(KVM_MIN_ALLOC_MMU_PAGES, total // PAGES_PER_SHADOW_PAGE)
    if m.vm[vm].requested:
        m.vm[vm].n_max_mmu_pages = m.vm[vm].requested


@jit
def unmap(m: Model, vm: int, task: int, slot: int, first: int, last: int) -> None:
    """kvm_unmap_gfn_range(), and the host's pages are gone."""
    change_leaves(m, vm, slot, first, last, 1, HUGEST, DROP)
    change_tdp_leaves(m, vm, task, first, last, 1, HUGEST, DROP)
    evict(m, slot, first, last)
