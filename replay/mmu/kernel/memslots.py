"""Memslots: set, changed and deleted by probes and markers, as __kvm_set_memory_region() does."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.dirty_log import fill_bitmap
from replay.mmu.kernel.host_pages import save_host_levels
from replay.mmu.kernel.mmu_pages import change_mmu_pages, default_limit
from replay.mmu.kernel.slot_passes import zap_collapsible
from replay.mmu.state.growth import NO_ROOM, OK
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import MemFlag, ProbeSet

KVM_MR_CREATE = 0
KVM_MR_DELETE = 1
KVM_MR_MOVE = 2
LOG_ON = 2  # of commit_region, beside OK and NO_ROOM: dirty logging was switched on


@jit
def find_slot(m: Mmu, vm: int, slot_id: int) -> int:
    """Row of the live slot with id ``slot_id``, or -1."""
    for s in range(m.ctl.slot_top):
        if m.slot[s].is_live and m.slot[s].vm == vm and m.slot[s].id == slot_id:
            return s
    return -1


@jit
def gfn_to_slot(m: Mmu, vm: int, gfn: int) -> int:
    """gfn_to_memslot(): in the normal address space, not that of SMM."""
    for s in range(m.ctl.slot_top):
        page = gfn - m.slot[s].base_gfn
        own = m.slot[s].is_live and m.slot[s].vm == vm and m.slot[s].id >> 16 == 0
        if own and 0 <= page < m.slot[s].npages:
            return s
    return -1


@jit
def set_slot(m: Mmu, vm: int, t: int, slot_id: int, base: int, npages: int, flags: int, hva: int) -> int:
    """A slot is set, changed or (npages 0) deleted; its row, -1 after deletion."""
    s = find_slot(m, vm, slot_id)
    resized = s < 0 or m.slot[s].npages != npages
    logged = s >= 0 and m.slot[s].mem_flags & MemFlag.LOG_DIRTY_PAGES != 0
    if npages == 0:
        if s >= 0:
            m.slot[s].is_live = 0
        s = -1
    else:
        if s < 0:
            s = free_slot_row(m)
        m.slot[s].vm = vm
        m.slot[s].id = slot_id
        m.slot[s].base_gfn = base
        m.slot[s].npages = npages
        m.slot[s].mem_flags = flags
        m.slot[s].hva = hva
        if resized:
            m.slot[s].bitmap = 0
        m.slot[s].is_live = 1
    if s >= 0 and flags & MemFlag.LOG_DIRTY_PAGES and not logged and m.slot[s].bitmap:
        fill_bitmap(m, s)
    if resized and not m.vm[vm].max_known and not m.vm[vm].probes & ProbeSet.LIMIT:
        change_mmu_pages(m, vm, t, default_limit(m, vm))
    return s


@jit
def free_slot_row(m: Mmu) -> int:
    """A row of ``m.slot`` that no live slot has."""
    for s in range(m.ctl.slot_top):
        if not m.slot[s].is_live:
            return s
    s = m.ctl.slot_top
    m.ctl.slot_top += 1
    return s


@jit
def set_region(m: Mmu, t: int, slot_id: int, base: int, npages: int, flags: int, hva: int) -> None:
    """set_region: the call is entered; commit_region tells whether it took effect."""
    task = m.task[t]
    task.region = slot_id + 1
    task.region_base = base
    task.region_npages = npages
    task.region_flags = flags
    task.region_hva = hva


@jit
def commit_region(m: Mmu, t: int, vm: int, change: int, order: int) -> int:
    """commit_region: LOG_ON if dirty logging was switched on for a slot in place, OK or NO_ROOM."""
    task = m.task[t]
    if task.region == 0:
        return OK
    slot_id = task.region - 1
    npages = 0 if change == KVM_MR_DELETE else task.region_npages
    s = find_slot(m, vm, slot_id)
    old_flags = m.slot[s].mem_flags if s >= 0 else 0
    in_place = change > KVM_MR_MOVE
    if (
        in_place
        and log_switched_off(old_flags, task.region_flags)
        and not m.vm[vm].probes & ProbeSet.COLLAPSE
    ) and zap_collapsible(m, vm, s, order) == NO_ROOM:
        return NO_ROOM
    base, hva = task.region_base, task.region_hva
    if leave_memory(m, vm, s, base, npages, hva) == NO_ROOM:
        return NO_ROOM
    task.region = 0
    s = set_slot(m, vm, t, slot_id, base, npages, task.region_flags, hva)
    task.slot = s + 1
    return LOG_ON if in_place and log_switched_on(old_flags, task.region_flags) else OK


@jit
def leave_memory(m: Mmu, vm: int, s: int, base: int, npages: int, hva: int) -> int:
    """Slot ``s`` (-1 none) goes, or to other memory: what its gfns showed of the old is kept by hva.

    OK or NO_ROOM.
    """
    if s < 0 or m.slot[s].hva == 0:
        return OK
    if npages and base == m.slot[s].base_gfn and hva == m.slot[s].hva:
        return OK
    return save_host_levels(m, vm, s, True)


@jit
def log_switched_off(old_flags: int, flags: int) -> bool:
    """Dirty logging of a slot was on and is no longer."""
    return old_flags & ~flags & MemFlag.LOG_DIRTY_PAGES != 0


@jit
def log_switched_on(old_flags: int, flags: int) -> bool:
    """Dirty logging of a writable slot was off and is on."""
    rising = flags & ~old_flags & MemFlag.LOG_DIRTY_PAGES
    return rising != 0 and flags & MemFlag.READONLY == 0
