"""The tracepoints: those of kvmmmu (mmutrace.h), and kvm_page_fault and kvm_unmap_hva_range of kvm."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu import align, apply, control, guest_tables, leaf, memslots, spaces, tdp, tdp_faults, walk
from replay.mmu.dirty_log import mark_page_dirty
from replay.mmu.guessed import name_all
from replay.mmu.host_pages import note_host_level
from replay.mmu.kinds import (
    CREATED,
    FAST_PAGE_FAULT,
    FIXED,
    GET_PAGE,
    PAGE_FAULT,
    PAGETABLE_WALK,
    PAGING_ELEMENT,
    PREPARE_ZAP,
    SET_SPTE,
    SPLIT_HUGE_PAGE,
    SPTE_REQUESTED,
    SYNC_PAGE,
    TDP_CHANGED,
    UNSYNC,
    UNSYNC_PAGE,
    ZAP_ALL_FAST,
)
from replay.mmu.layout import (
    CTL_BITMAP_TOP,
    CTL_SLOT_TOP,
    SLOT_BASE,
    SLOT_BITMAP,
    SLOT_HVA,
    SLOT_LIVE,
    SLOT_NPAGES,
    SLOT_VM,
    TASK_FAULT_ADDR,
    TASK_FAULT_CODE,
    TASK_LAST_GFN,
    TASK_LAST_KIND,
    TASK_LAZY,
    TASK_TDP_GFN,
    TASK_TDP_LEVEL,
    TASK_TDP_NEW,
    TASK_TDP_OLD,
    TASK_WRITE,
    VM_BEGUN,
    VM_BY_RECORD,
    VM_HAS_TDP,
    VM_INDIRECT_ROLE,
    VM_LAYOUT,
    VM_TDP_ROLE,
    WRITE_OF_FAULT,
    WRITE_WALKED,
)
from replay.mmu.lookahead import begins_recorded_window, is_tdp_get_page, is_tdp_zap
from replay.mmu.role import ACC_ALL, ACCESS, DIRECT, INVALID, LEVEL, QUADRANT, UNPRINTED
from replay.mmu.room import NO_ROOM, OK
from replay.mmu.spte import LEGACY, PT_WRITABLE_MASK, is_last_spte, is_shadow_present_pte
from replay.mmu.state import Mmu
from replay.mmu.truth import TDP_GET_PAGE, recorded_line
from replay.mmu.window import (
    C_FAULT_SPLITS,
    C_STRAY_SPLITS,
    C_UNPLACED,
    PHASE_TDP,
    WIN_ALIGNED,
    WIN_PHASE,
    WIN_WORDS,
    WIN_ZAPPED,
    count,
    knows_all,
    note_begun_before,
    note_root,
)
from replay.policy import KnobCodes
from replay.schema import Columns

EPT_VIOLATION_ACC_WRITE = 1 << 1
EPT_VIOLATION_ACC_INSTR = 1 << 2


@jit
def get_page_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """kvm_mmu_get_page."""
    pid = np.int64(c.pid[i])
    gfn, role, created = np.int64(c.gfn[i]), np.int64(c.role[i]), c.flags[i] & CREATED != 0
    flags, root_count = np.int64(c.flags[i]), c.num[i]
    if is_tdp_get_page(c, i, pid, m.vm[vm, VM_HAS_TDP] != 0):
        tdp_get_page(m, vm, gfn, role)
        if own and m.window[w, WIN_ALIGNED] and k.enabled:
            recorded_line(m, w, TDP_GET_PAGE, gfn, root_count, role & ~UNPRINTED, flags)
        return OK
    if not role & DIRECT:
        known = 1 + (role & ~(LEVEL | QUADRANT | ACCESS | INVALID))
        if m.vm[vm, VM_INDIRECT_ROLE] == 0 and not knows_all(m, vm):
            name_all(m, vm, 0, role)
        m.vm[vm, VM_INDIRECT_ROLE] = known
    if not own and w < 0 and begins_recorded_window(m, c, i, vm, pid):
        w = control.begin_window(m, vm, pid, control.RECORDED, -1, gfn, 1 << 40, 1, False, k)
        own = True
    if own and m.window[w, WIN_ALIGNED] and role & DIRECT:
        spaces.decide(m, w, spaces.NORMAL)
        return align.get_page_line(m, w, k, gfn, role, flags, root_count)
    apply.get_page(m, t, vm, gfn, role, created, k.rmap_order)
    return OK


@jit
def tdp_get_page(m: Mmu, vm: int, gfn: int, role: int) -> None:
    """kvm_mmu_get_page of the TDP MMU: all tables below a root have its role but for the level."""
    is_root = role & LEVEL >= 4 and gfn == 0
    if is_root:
        note_root(m, vm)
    if is_root or not m.vm[vm, VM_TDP_ROLE]:
        m.vm[vm, VM_TDP_ROLE] = role & ~(LEVEL | UNPRINTED)


@jit
def split_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """kvm_mmu_split_huge_page."""
    gfn, spte, level, errno = np.int64(c.gfn[i]), np.int64(c.spte[i]), np.int64(c.level[i]), c.num[i]
    task = m.task[t]
    tdp_before = task[TASK_TDP_LEVEL] == level and task[TASK_TDP_GFN] == gfn and task[TASK_TDP_OLD] == spte
    if not own:
        if tdp_before:
            count(m, C_FAULT_SPLITS, 1)
            return OK
        if w >= 0 or not m.vm[vm, VM_BY_RECORD]:
            count(m, C_STRAY_SPLITS, 1)
            return OK
        pid = np.int64(c.pid[i])
        w = control.begin_window(m, vm, pid, control.RECORDED, -1, gfn, 1 << 40, 1, False, k)
    if not m.window[w, WIN_ALIGNED]:
        return OK
    # the ranges of one KVM_CLEAR_DIRTY_LOG alternate between the MMUs
    if tdp_before or (m.window[w, WIN_PHASE] == PHASE_TDP and not m.window[w, WIN_WORDS]):
        return align.tdp_split_line(m, w, k, gfn, spte, level, errno)
    spaces.decide(m, w, spaces.NORMAL)
    return align.split_line(m, w, k, gfn, spte, level, errno)


@jit
def tdp_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """kvm_tdp_mmu_spte_changed."""
    gfn, level = np.int64(c.gfn[i]), np.int64(c.level[i])
    old, new = np.int64(c.old_spte[i]), np.int64(c.spte[i])
    if level < 1 or level > 5:
        return OK
    if own and level > 1 and m.window[w, WIN_ALIGNED]:
        splits = is_shadow_present_pte(old) and is_last_spte(old, level)
        if splits and is_shadow_present_pte(new) and not is_last_spte(new, level) and k.enabled:
            spaces.decide(m, w, c.num[i] & 1)
            if control.tdp_part_begins(m, w, False, k) == NO_ROOM:
                return NO_ROOM
            if align.tdp_split_change(m, w, k, gfn, level, old) == NO_ROOM:
                return NO_ROOM
    if level <= 3 and is_shadow_present_pte(new) and is_last_spte(new, level):
        note_host_level(m, vm, gfn, level)
        leaf.note_nx_huge_page(m, vm, new, level, ACC_ALL)
    tdp_faults.follow_change(m, t, vm, c.num[i] & 1, gfn, level, old, new, own, k)
    tdp.spte_changed(m, vm, c.num[i] & 1, gfn, level, old, new)
    task = m.task[t]
    task[TASK_TDP_OLD] = old
    task[TASK_TDP_NEW] = new
    task[TASK_TDP_GFN] = gfn
    task[TASK_TDP_LEVEL] = level
    return OK


@jit
def dirtied(m: Mmu, vm: int, gfn: int, spte: int) -> None:
    """A writable 4K SPTE marks its page dirty where a bitmap is kept."""
    if m.ctl[CTL_BITMAP_TOP] and spte & PT_WRITABLE_MASK:
        s = memslots.gfn_to_slot(m, vm, gfn)
        if s >= 0 and m.slot[s, SLOT_BITMAP]:
            mark_page_dirty(m, s, gfn)


@jit
def set_spte_event(m: Mmu, c: Columns, i: int, t: int, vm: int, gfn: int, order: int) -> None:
    """kvm_mmu_set_spte."""
    spte, level, at = np.int64(c.spte[i]), np.int64(c.level[i]), np.int64(c.sptep[i])
    if m.vm[vm, VM_HAS_TDP] and leaf.is_tdp_set_spte(m, t, gfn, spte, level, at >> 12):
        walk.finish_fault(m, t)
    else:
        leaf.apply_set_spte(m, t, vm, gfn, spte, level, at, order)
    if level == 1:
        dirtied(m, vm, gfn, spte)


@jit
def changes_state(kind: int) -> bool:
    """Tracepoints that no VM leaves before its first root is made."""
    return (
        kind == TDP_CHANGED
        or kind == SET_SPTE
        or kind == SPTE_REQUESTED
        or kind == PREPARE_ZAP
        or kind == SYNC_PAGE
        or kind == UNSYNC_PAGE
        or kind == SPLIT_HUGE_PAGE
    )


@jit
def kvmmmu_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """Any tracepoint of kvmmmu."""
    kind = c.kind[i]
    gfn = np.int64(c.gfn[i])
    if gfn >> 40:
        count(m, C_UNPLACED, 1)
        return OK
    is_table = kind == GET_PAGE and c.role[i] & DIRECT != 0 and gfn != 0  # a VM's first direct root is of 0
    if not m.vm[vm, VM_BEGUN] and (changes_state(kind) or is_table):
        note_begun_before(m, vm)
    m.task[t, TASK_LAZY] = 0
    if m.task[t, TASK_WRITE] == WRITE_WALKED:
        guest_tables.settle_write(m, t, vm, kind, k.rmap_order)
    if kind == TDP_CHANGED:
        return tdp_event(m, c, i, t, vm, w, own, k)
    if kind == SET_SPTE:
        set_spte_event(m, c, i, t, vm, gfn, k.rmap_order)
    elif kind == PAGING_ELEMENT:
        walk.add_element(m, t, np.int64(c.spte[i]), np.int64(c.level[i]))
        walk.note_first_element(m, t, vm)
    elif kind == PAGETABLE_WALK:
        walk.begin_walk(m, t, np.int64(c.addr[i]), np.int64(c.code[i]))
    elif kind == SPTE_REQUESTED:
        walk.spte_requested(m, t, gfn, np.int64(c.level[i]))
        note_host_level(m, vm, gfn, np.int64(c.level[i]))
    elif kind == GET_PAGE:
        result = get_page_event(m, c, i, t, vm, w, own, k)
        if result != OK:
            return result
    elif kind == SPLIT_HUGE_PAGE:
        result = split_event(m, c, i, t, vm, w, own, k)
        if result != OK:
            return result
    elif kind == PREPARE_ZAP:
        if not is_tdp_zap(m, t, c, i, np.int64(c.pid[i]), m.vm[vm, VM_HAS_TDP] != 0):
            unsync = c.flags[i] & UNSYNC != 0
            if own and unsync and m.window[w, WIN_ZAPPED] > 0:
                m.window[w, WIN_ZAPPED] -= 1  # the walk's own look-up zapped it already
            else:
                apply.prepare_zap_page(m, vm, gfn, np.int64(c.role[i]), c.num[i], unsync, k.rmap_order)
    elif kind == SYNC_PAGE or kind == UNSYNC_PAGE:
        if kind == SYNC_PAGE and not own:
            guest_tables.note_root_of_sync(m, t, vm, gfn, np.int64(c.role[i]))
        apply.set_unsync(m, t, vm, gfn, np.int64(c.role[i]), kind == UNSYNC_PAGE)
    elif kind == FAST_PAGE_FAULT:
        if c.flags[i] & FIXED:
            fault_gfn = np.int64(c.addr[i] >> np.uint64(12))
            old, new = np.int64(c.old_spte[i]), np.int64(c.spte[i])
            dirtied(m, vm, fault_gfn, new)
            if m.vm[vm, VM_HAS_TDP]:
                tdp_faults.note_fault(m, t, vm, 0, fault_gfn, new, k)
            if not m.vm[vm, VM_HAS_TDP] or not tdp.fast_fix(m, vm, fault_gfn, old, new):
                leaf.fast_page_fault(m, vm, fault_gfn, old, new)
    elif kind == ZAP_ALL_FAST:
        apply.zap_all_fast(m, vm, np.int64(c.code[i]), c.num[i])
    m.task[t, TASK_TDP_LEVEL] = 0
    m.task[t, TASK_LAST_KIND] = kind
    m.task[t, TASK_LAST_GFN] = gfn
    return OK


@jit
def page_fault(m: Mmu, t: int, vm: int, addr: int, code: int, order: int) -> None:
    """kvm_page_fault: an EPT violation prints its exit qualification, where others have an error code."""
    if m.task[t, TASK_WRITE] == WRITE_WALKED:
        guest_tables.settle_write(m, t, vm, PAGE_FAULT, order)
    m.task[t, TASK_WRITE] = WRITE_OF_FAULT
    m.task[t, TASK_FAULT_ADDR] = addr
    if m.vm[vm, VM_LAYOUT] != LEGACY:
        fetch = walk.PFERR_FETCH if code & EPT_VIOLATION_ACC_INSTR else 0
        code = fetch | (walk.PFERR_WRITE if code & EPT_VIOLATION_ACC_WRITE else 0)
    m.task[t, TASK_FAULT_CODE] = code
    walk.begin_fault(m, t)


@jit
def unmap_hva_range(m: Mmu, vm: int, start: int, end: int, order: int) -> int:
    """kvm_unmap_hva_range: the gfns of every slot whose host range meets [start, end)."""
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if not m.slot[s, SLOT_LIVE] or m.slot[s, SLOT_VM] != vm or m.slot[s, SLOT_HVA] == 0:
            continue
        hva = m.slot[s, SLOT_HVA]
        first = max(start, hva)
        last = min(end, hva + (m.slot[s, SLOT_NPAGES] << 12))
        if first < last:
            base = m.slot[s, SLOT_BASE]
            if not leaf.unmap_gfn_range(
                m, vm, base + ((first - hva) >> 12), base + ((last - 1 - hva) >> 12) + 1, order
            ):
                return NO_ROOM
    return OK
