"""Memslots: set, changed and deleted by probes and markers, as __kvm_set_memory_region() does."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.dirty_log import fill_bitmap
from replay.mmu.host_pages import save_host_levels
from replay.mmu.layout import (
    CTL_SLOT_TOP,
    PROBES_COLLAPSE,
    PROBES_LIMIT,
    SLOT_BASE,
    SLOT_BITMAP,
    SLOT_DIRTY_LOG,
    SLOT_FLAGS,
    SLOT_HVA,
    SLOT_ID,
    SLOT_LIVE,
    SLOT_NPAGES,
    SLOT_READONLY,
    SLOT_VM,
    TASK_REGION,
    TASK_REGION_BASE,
    TASK_REGION_FLAGS,
    TASK_REGION_HVA,
    TASK_REGION_NPAGES,
    TASK_SLOT,
    VM_MAX_KNOWN,
    VM_PROBES,
)
from replay.mmu.mmu_pages import change_mmu_pages, default_limit
from replay.mmu.room import NO_ROOM, OK
from replay.mmu.slot_passes import zap_collapsible
from replay.mmu.state import Mmu

KVM_MR_CREATE = 0
KVM_MR_DELETE = 1
KVM_MR_MOVE = 2
LOG_ON = 2  # of commit_region, beside OK and NO_ROOM: dirty logging was switched on


@jit
def find_slot(m: Mmu, vm: int, slot_id: int) -> int:
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if m.slot[s, SLOT_LIVE] and m.slot[s, SLOT_VM] == vm and m.slot[s, SLOT_ID] == slot_id:
            return s
    return -1


@jit
def gfn_to_slot(m: Mmu, vm: int, gfn: int) -> int:
    """gfn_to_memslot(): in the normal address space, not that of SMM."""
    for s in range(m.ctl[CTL_SLOT_TOP]):
        page = gfn - m.slot[s, SLOT_BASE]
        own = m.slot[s, SLOT_LIVE] and m.slot[s, SLOT_VM] == vm and m.slot[s, SLOT_ID] >> 16 == 0
        if own and 0 <= page < m.slot[s, SLOT_NPAGES]:
            return s
    return -1


@jit
def set_slot(m: Mmu, vm: int, t: int, slot_id: int, base: int, npages: int, flags: int, hva: int) -> int:
    """A slot is set, changed or (npages 0) deleted; its row, -1 after deletion."""
    s = find_slot(m, vm, slot_id)
    resized = s < 0 or m.slot[s, SLOT_NPAGES] != npages
    logged = s >= 0 and m.slot[s, SLOT_FLAGS] & SLOT_DIRTY_LOG != 0
    if npages == 0:
        if s >= 0:
            m.slot[s, SLOT_LIVE] = 0
        s = -1
    else:
        if s < 0:
            s = free_slot_row(m)
        m.slot[s, SLOT_VM] = vm
        m.slot[s, SLOT_ID] = slot_id
        m.slot[s, SLOT_BASE] = base
        m.slot[s, SLOT_NPAGES] = npages
        m.slot[s, SLOT_FLAGS] = flags
        m.slot[s, SLOT_HVA] = hva
        if resized:
            m.slot[s, SLOT_BITMAP] = 0
        m.slot[s, SLOT_LIVE] = 1
    if s >= 0 and flags & SLOT_DIRTY_LOG and not logged and m.slot[s, SLOT_BITMAP]:
        fill_bitmap(m, s)
    if resized and not m.vm[vm, VM_MAX_KNOWN] and not m.vm[vm, VM_PROBES] & PROBES_LIMIT:
        change_mmu_pages(m, vm, t, default_limit(m, vm))
    return s


@jit
def free_slot_row(m: Mmu) -> int:
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if not m.slot[s, SLOT_LIVE]:
            return s
    m.ctl[CTL_SLOT_TOP] += 1
    return m.ctl[CTL_SLOT_TOP] - 1


@jit
def set_region(m: Mmu, t: int, slot_id: int, base: int, npages: int, flags: int, hva: int) -> None:
    """set_region: the call is entered; commit_region tells whether it took effect."""
    task = m.task[t]
    task[TASK_REGION] = slot_id + 1
    task[TASK_REGION_BASE] = base
    task[TASK_REGION_NPAGES] = npages
    task[TASK_REGION_FLAGS] = flags
    task[TASK_REGION_HVA] = hva


@jit
def commit_region(m: Mmu, t: int, vm: int, change: int, order: int) -> int:
    """commit_region: LOG_ON if dirty logging was switched on for a slot in place, OK or NO_ROOM."""
    task = m.task[t]
    if task[TASK_REGION] == 0:
        return OK
    slot_id = task[TASK_REGION] - 1
    npages = 0 if change == KVM_MR_DELETE else task[TASK_REGION_NPAGES]
    s = find_slot(m, vm, slot_id)
    old_flags = m.slot[s, SLOT_FLAGS] if s >= 0 else 0
    in_place = change > KVM_MR_MOVE
    if (
        in_place
        and log_switched_off(old_flags, task[TASK_REGION_FLAGS])
        and not m.vm[vm, VM_PROBES] & PROBES_COLLAPSE
    ) and zap_collapsible(m, vm, s, order) == NO_ROOM:
        return NO_ROOM
    base, hva = task[TASK_REGION_BASE], task[TASK_REGION_HVA]
    if leave_memory(m, vm, s, base, npages, hva) == NO_ROOM:
        return NO_ROOM
    task[TASK_REGION] = 0
    s = set_slot(m, vm, t, slot_id, base, npages, task[TASK_REGION_FLAGS], hva)
    task[TASK_SLOT] = s + 1
    return LOG_ON if in_place and log_switched_on(old_flags, task[TASK_REGION_FLAGS]) else OK


@jit
def leave_memory(m: Mmu, vm: int, s: int, base: int, npages: int, hva: int) -> int:
    """Slot ``s`` (-1 none) goes, or to other memory: what its gfns showed of the old is kept by hva.

    OK or NO_ROOM.
    """
    if s < 0 or m.slot[s, SLOT_HVA] == 0:
        return OK
    if npages and base == m.slot[s, SLOT_BASE] and hva == m.slot[s, SLOT_HVA]:
        return OK
    return save_host_levels(m, vm, s, True)


@jit
def log_switched_off(old_flags: int, flags: int) -> bool:
    return old_flags & ~flags & SLOT_DIRTY_LOG != 0


@jit
def log_switched_on(old_flags: int, flags: int) -> bool:
    rising = flags & ~old_flags & SLOT_DIRTY_LOG
    return rising != 0 and flags & SLOT_READONLY == 0
