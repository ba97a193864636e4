"""The tracepoints: those of kvmmmu (mmutrace.h), and kvm_page_fault and kvm_unmap_hva_range of kvm."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.events import fault, guest_tables, pages, set_spte, windows
from replay.mmu.events.next_event import begins_recorded_window, is_tdp_get_page, is_tdp_zap
from replay.mmu.kernel import memslots
from replay.mmu.kernel.dirty_log import mark_page_dirty
from replay.mmu.kernel.host_pages import note_host_level
from replay.mmu.kernel.role import ACC_ALL, UNPRINTED
from replay.mmu.kernel.spte import LEGACY, PT_WRITABLE_MASK, is_last_spte, is_shadow_present_pte
from replay.mmu.recorded import split_lines
from replay.mmu.recorded.guessed import name_all
from replay.mmu.recorded.lines import TDP_GET_PAGE, recorded_line
from replay.mmu.split import address_spaces
from replay.mmu.split.window import count, knows_all, note_begun_before, note_root
from replay.mmu.state.counters import Counter
from replay.mmu.state.growth import NO_ROOM, OK
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import Phase, WriteWalk
from replay.mmu.tdp import faults, tables
from replay.policy import KnobCodes
from replay.schema import Columns, Flag, Kind, Role, WindowCause

EPT_VIOLATION_ACC_WRITE = 1 << 1
EPT_VIOLATION_ACC_INSTR = 1 << 2


@jit
def get_page_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """kvm_mmu_get_page."""
    pid = np.int64(c.pid[i])
    gfn, role, created = np.int64(c.gfn[i]), np.int64(c.role[i]), c.flags[i] & Flag.CREATED != 0
    flags, root_count = np.int64(c.flags[i]), c.num[i]
    if is_tdp_get_page(c, i, pid, m.vm[vm].has_tdp != 0):
        tdp_get_page(m, vm, gfn, role)
        if own and m.window[w].aligned and k.enabled:
            recorded_line(m, w, TDP_GET_PAGE, gfn, root_count, role & ~UNPRINTED, flags)
        return OK
    if not role & Role.DIRECT:
        known = 1 + (role & ~(Role.LEVEL | Role.QUADRANT | Role.ACCESS | Role.INVALID))
        if m.vm[vm].indirect_role == 0 and not knows_all(m, vm):
            name_all(m, vm, 0, role)
        m.vm[vm].indirect_role = known
    if not own and w < 0 and begins_recorded_window(m, c, i, vm, pid):
        w = windows.begin_window(m, vm, pid, WindowCause.RECORDED, -1, gfn, 1 << 40, 1, False, k)
        own = True
    if own and m.window[w].aligned and role & Role.DIRECT:
        address_spaces.decide(m, w, address_spaces.NORMAL)
        return split_lines.get_page_line(m, w, k, gfn, role, flags, root_count)
    pages.get_page(m, t, vm, gfn, role, created, k.rmap_order)
    return OK


@jit
def tdp_get_page(m: Mmu, vm: int, gfn: int, role: int) -> None:
    """kvm_mmu_get_page of the TDP MMU: all tables below a root have its role but for the level."""
    is_root = role & Role.LEVEL >= 4 and gfn == 0
    if is_root:
        note_root(m, vm)
    if is_root or not m.vm[vm].tdp_role:
        m.vm[vm].tdp_role = role & ~(Role.LEVEL | UNPRINTED)


@jit
def split_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """kvm_mmu_split_huge_page."""
    gfn, spte, level, errno = np.int64(c.gfn[i]), np.int64(c.spte[i]), np.int64(c.level[i]), c.num[i]
    task = m.task[t]
    tdp_before = task.tdp_level == level and task.tdp_gfn == gfn and task.tdp_old == spte
    if not own:
        if tdp_before:
            count(m, Counter.FAULT_TIME_TDP_SPLITS, 1)
            return OK
        if w >= 0 or not m.vm[vm].by_record:
            count(m, Counter.SPLITS_OUTSIDE_WINDOWS, 1)
            return OK
        pid = np.int64(c.pid[i])
        w = windows.begin_window(m, vm, pid, WindowCause.RECORDED, -1, gfn, 1 << 40, 1, False, k)
    if not m.window[w].aligned:
        return OK
    # the ranges of one KVM_CLEAR_DIRTY_LOG alternate between the MMUs
    if tdp_before or (m.window[w].phase == Phase.TDP and not m.window[w].words):
        return split_lines.tdp_split_line(m, w, k, gfn, spte, level, errno)
    address_spaces.decide(m, w, address_spaces.NORMAL)
    return split_lines.split_line(m, w, k, gfn, spte, level, errno)


@jit
def tdp_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """kvm_tdp_mmu_spte_changed."""
    gfn, level = np.int64(c.gfn[i]), np.int64(c.level[i])
    old, new = np.int64(c.old_spte[i]), np.int64(c.spte[i])
    if level < 1 or level > 5:
        return OK
    if own and level > 1 and m.window[w].aligned:
        splits = is_shadow_present_pte(old) and is_last_spte(old, level)
        if splits and is_shadow_present_pte(new) and not is_last_spte(new, level) and k.enabled:
            address_spaces.decide(m, w, c.num[i] & 1)
            if windows.tdp_part_begins(m, w, False, k) == NO_ROOM:
                return NO_ROOM
            if split_lines.tdp_split_change(m, w, k, gfn, level, old) == NO_ROOM:
                return NO_ROOM
    if level <= 3 and is_shadow_present_pte(new) and is_last_spte(new, level):
        note_host_level(m, vm, gfn, level)
        set_spte.note_nx_huge_page(m, vm, new, level, ACC_ALL)
    faults.follow_change(m, t, vm, c.num[i] & 1, gfn, level, old, new, own, k)
    tables.spte_changed(m, vm, c.num[i] & 1, gfn, level, old, new)
    task = m.task[t]
    task.tdp_old = old
    task.tdp_new = new
    task.tdp_gfn = gfn
    task.tdp_level = level
    return OK


@jit
def dirtied(m: Mmu, vm: int, gfn: int, spte: int) -> None:
    """A writable 4K SPTE marks its page dirty where a bitmap is kept."""
    if m.ctl.bitmap_top and spte & PT_WRITABLE_MASK:
        s = memslots.gfn_to_slot(m, vm, gfn)
        if s >= 0 and m.slot[s].bitmap:
            mark_page_dirty(m, s, gfn)


@jit
def set_spte_event(m: Mmu, c: Columns, i: int, t: int, vm: int, gfn: int, order: int) -> None:
    """kvm_mmu_set_spte."""
    spte, level, at = np.int64(c.spte[i]), np.int64(c.level[i]), np.int64(c.sptep[i])
    if m.vm[vm].has_tdp and set_spte.is_tdp_set_spte(m, t, gfn, spte, level, at >> 12):
        fault.finish_fault(m, t)
    else:
        set_spte.apply_set_spte(m, t, vm, gfn, spte, level, at, order)
    if level == 1:
        dirtied(m, vm, gfn, spte)


@jit
def changes_state(kind: int) -> bool:
    """Tracepoints that no VM leaves before its first root is made."""
    return (
        kind == Kind.TDP_MMU_SPTE_CHANGED
        or kind == Kind.SET_SPTE
        or kind == Kind.SPTE_REQUESTED
        or kind == Kind.PREPARE_ZAP_PAGE
        or kind == Kind.SYNC_PAGE
        or kind == Kind.UNSYNC_PAGE
        or kind == Kind.SPLIT_HUGE_PAGE
    )


@jit
def kvmmmu_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """Any tracepoint of kvmmmu."""
    kind = c.kind[i]
    gfn = np.int64(c.gfn[i])
    if gfn >> 40:
        count(m, Counter.UNPLACED_SPTES, 1)
        return OK
    is_table = (
        kind == Kind.GET_PAGE and c.role[i] & Role.DIRECT != 0 and gfn != 0
    )  # a VM's first direct root is of 0
    if not m.vm[vm].begun and (changes_state(kind) or is_table):
        note_begun_before(m, vm)
    m.task[t].lazy = 0
    if m.task[t].write == WriteWalk.WALKED:
        guest_tables.settle_write(m, t, vm, kind, k.rmap_order)
    if kind == Kind.TDP_MMU_SPTE_CHANGED:
        return tdp_event(m, c, i, t, vm, w, own, k)
    if kind == Kind.SET_SPTE:
        set_spte_event(m, c, i, t, vm, gfn, k.rmap_order)
    elif kind == Kind.PAGING_ELEMENT:
        fault.add_element(m, t, np.int64(c.spte[i]), np.int64(c.level[i]))
        fault.note_first_element(m, t, vm)
    elif kind == Kind.PAGETABLE_WALK:
        fault.begin_walk(m, t, np.int64(c.addr[i]), np.int64(c.code[i]))
    elif kind == Kind.SPTE_REQUESTED:
        fault.spte_requested(m, t, gfn)
        note_host_level(m, vm, gfn, np.int64(c.level[i]))
    elif kind == Kind.GET_PAGE:
        result = get_page_event(m, c, i, t, vm, w, own, k)
        if result != OK:
            return result
    elif kind == Kind.SPLIT_HUGE_PAGE:
        result = split_event(m, c, i, t, vm, w, own, k)
        if result != OK:
            return result
    elif kind == Kind.PREPARE_ZAP_PAGE:
        if not is_tdp_zap(m, t, c, i, np.int64(c.pid[i]), m.vm[vm].has_tdp != 0):
            unsync = c.flags[i] & Flag.UNSYNC != 0
            if own and unsync and m.window[w].zapped > 0:
                m.window[w].zapped -= 1  # the walk's own look-up zapped it already
            else:
                pages.prepare_zap_page(m, vm, gfn, np.int64(c.role[i]), c.num[i], unsync, k.rmap_order)
    elif kind == Kind.SYNC_PAGE or kind == Kind.UNSYNC_PAGE:
        if kind == Kind.SYNC_PAGE and not own:
            guest_tables.note_root_of_sync(m, t, vm, gfn, np.int64(c.role[i]))
        pages.set_unsync(m, t, vm, gfn, np.int64(c.role[i]), kind == Kind.UNSYNC_PAGE)
    elif kind == Kind.FAST_PAGE_FAULT:
        if c.flags[i] & Flag.FIXED:
            fault_gfn = np.int64(c.addr[i] >> np.uint64(12))
            old, new = np.int64(c.old_spte[i]), np.int64(c.spte[i])
            dirtied(m, vm, fault_gfn, new)
            if m.vm[vm].has_tdp:
                faults.note_fault(m, t, vm, 0, fault_gfn, new, k)
            if not m.vm[vm].has_tdp or not tables.fast_fix(m, vm, fault_gfn, old, new):
                set_spte.fast_page_fault(m, vm, fault_gfn, old, new)
    elif kind == Kind.ZAP_ALL_FAST:
        pages.zap_all_fast(m, vm, np.int64(c.code[i]), c.num[i])
    m.task[t].tdp_level = 0
    m.task[t].last_kind = kind
    m.task[t].last_gfn = gfn
    return OK


@jit
def page_fault(m: Mmu, t: int, vm: int, addr: int, code: int, order: int) -> None:
    """kvm_page_fault: an EPT violation prints its exit qualification, where others have an error code."""
    if m.task[t].write == WriteWalk.WALKED:
        guest_tables.settle_write(m, t, vm, Kind.PAGE_FAULT, order)
    m.task[t].write = WriteWalk.OF_FAULT
    m.task[t].fault_addr = addr
    if m.vm[vm].layout != LEGACY:
        fetch = fault.PFERR_FETCH if code & EPT_VIOLATION_ACC_INSTR else 0
        code = fetch | (fault.PFERR_WRITE if code & EPT_VIOLATION_ACC_WRITE else 0)
    m.task[t].fault_code = code
    fault.begin_fault(m, t)


@jit
def unmap_hva_range(m: Mmu, vm: int, start: int, end: int, order: int) -> int:
    """kvm_unmap_hva_range: the gfns of every slot whose host range meets [start, end)."""
    for s in range(m.ctl.slot_top):
        if not m.slot[s].is_live or m.slot[s].vm != vm or m.slot[s].hva == 0:
            continue
        hva = m.slot[s].hva
        first = max(start, hva)
        last = min(end, hva + (m.slot[s].npages << 12))
        if first < last:
            base = m.slot[s].base_gfn
            if not set_spte.unmap_gfn_range(
                m, vm, base + ((first - hva) >> 12), base + ((last - 1 - hva) >> 12) + 1, order
            ):
                return NO_ROOM
    return OK
