"""What a guest does to tables that are shadowed: emulated writes, INVLPG, and the sync of a CR3 load.

None has an event of its own.  A write shows as the emulator's walk for the written address, INVLPG as
a flush of one page, a switch to a cached root as the pages below it that are synced.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.fault import leaf_gfn, pte_gfn
from replay.mmu.events.pages import find_printed
from replay.mmu.events.roots import NOT_CACHED, cached_root, root_above, use_root
from replay.mmu.kernel.rmap import pte_list_get, rmap_head
from replay.mmu.kernel.role import QUADRANT_SHIFT, key_level, key_vm, make_key
from replay.mmu.kernel.shadow_page import drop_spte
from replay.mmu.split.window import count
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu, page_bucket
from replay.mmu.state.records import FLOOD_SHIFT, TDP_KEY, FaultState, PageFlag
from replay.schema import Kind, Role

FLOODED = 3  # writes after which detect_write_flooding() has a page zapped


@jit
def settle_write(m: Mmu, t: int, vm: int, kind: int, order: int) -> None:
    """The event that follows a walk for writing shows whether it was the emulator's: then it has written.

    A fault's own walk is followed by the look-up of its pages.
    """
    if kind == Kind.PAGING_ELEMENT:
        return
    task = m.task[t]
    task.write = 0
    if kind == Kind.SPTE_REQUESTED or kind == Kind.GET_PAGE or not task.walk_top:
        return
    track_write(m, vm, leaf_gfn(m, t), task.walk_addr & 0xFFF, order)


@jit
def track_write(m: Mmu, vm: int, gfn: int, offset: int, order: int) -> None:
    """kvm_mmu_track_write(): the SPTEs that shadow the entry at ``offset`` of table ``gfn`` are zapped."""
    i = int(m.hash[page_bucket(gfn, make_key(0, 0, vm), m.hash.shape[0])])
    while i:
        key = m.sp[i].key
        following = m.sp[i].next
        if (
            m.sp[i].gfn == gfn
            and m.sp[i].page_flags & PageFlag.LIVE
            and not key & (Role.DIRECT | TDP_KEY)
            and key_vm(key) == vm
        ):
            note_flood(m, i)
            zap_written(m, i, offset, order)
        i = following


@jit
def note_flood(m: Mmu, sp: int) -> None:
    """detect_write_flooding() counts writes to a table that no fault walks meanwhile."""
    flags = m.sp[sp].page_flags
    if key_level(m.sp[sp].key) > 1 and (flags & PageFlag.FLOOD) >> FLOOD_SHIFT < FLOODED:
        m.sp[sp].page_flags = flags + (1 << FLOOD_SHIFT)


@jit
def zap_written(m: Mmu, sp: int, offset: int, order: int) -> None:
    """get_written_sptes() and mmu_page_zap_pte(): a 4-byte entry of level 2 has two SPTEs."""
    key = m.sp[sp].key
    n = 1
    if key & Role.HAS_4_BYTE_GPTE:
        offset <<= 1
        if key_level(key) == 2:
            offset = (offset & ~7) << 1
            n = 2
        if offset >> 12 != (key & Role.QUADRANT) >> QUADRANT_SHIFT:
            return
        offset &= 0xFFF
    for index in range(offset >> 3, (offset >> 3) + n):
        drop_spte(m, sp, index, order)


@jit
def one_page_flushed(m: Mmu, t: int, vm: int, gfn: int, order: int) -> None:
    """kvm_mmu_invlpg(): the guest changed an entry of an unsync table; the SPTE that mapped ``gfn`` goes.

    A flush of one page that a fault makes is for other reasons, write protection or a changed SPTE.
    """
    task = m.task[t]
    if m.vm[vm].has_tdp or task.last_kind == Kind.GET_PAGE or task.last_kind == Kind.SPTE_REQUESTED:
        return
    if task.last_kind == Kind.SET_SPTE and task.last_gfn == gfn:
        return
    head = rmap_head(m, vm, gfn, 1)
    found = -1
    best = NOT_CACHED
    position = 0
    while True:
        sptep = pte_list_get(m, head, position)
        if sptep < 0:
            break
        position += 1
        if not m.sp[sptep // 512].page_flags & PageFlag.UNSYNC:
            continue
        place = root_above(m, t, vm, sptep // 512)
        if place != NOT_CACHED and (best == NOT_CACHED or place < best):
            best = place
            found = sptep
    if found >= 0:
        drop_spte(m, found // 512, found % 512, order)


@jit
def huge_page_flushed(m: Mmu, t: int, vm: int, gfn: int, order: int) -> None:
    """drop_large_spte(): the table of ``gfn`` that the task has just got replaces a huge page.

    The flush is that of the huge SPTE.  Where none was known in the table's place, that of a twin of its
    parent was taken for it, if there is one.
    """
    task = m.task[t]
    if task.last_kind != Kind.GET_PAGE or task.last_gfn != gfn or task.lazy == gfn + 1:
        return
    count(m, Counter.FAULTS_LAZY_SPLITS, 1)
    if task.walk_top < 3:
        return
    head = rmap_head(m, vm, gfn, 2)
    position = 0
    while True:
        sptep = pte_list_get(m, head, position)
        if sptep < 0:
            return
        if m.sp[sptep // 512].gfn == pte_gfn(task.pte[3]):
            drop_spte(m, sptep // 512, sptep % 512, order)
            return
        position += 1


@jit
def note_root_of_sync(m: Mmu, t: int, vm: int, gfn: int, role: int) -> None:
    """A page is synced outside a fault: a root above it came into use (kvm_mmu_sync_roots())."""
    task = m.task[t]
    kind = task.last_kind
    if task.fault_state == FaultState.FAULT and task.linked:
        return
    if kind == Kind.GET_PAGE or kind == Kind.SPTE_REQUESTED or kind == Kind.UNSYNC_PAGE:
        return
    sp = find_printed(m, vm, gfn, role, True, cached_root(m, t, vm, 0))
    if sp >= 0:
        place = root_above(m, t, vm, sp)
        if place > 0:
            use_root(m, t, place)
            task.fault_state = FaultState.DONE
