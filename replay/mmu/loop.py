"""The event loop: each recorded event is handed to the function of its tracepoint."""

from __future__ import annotations

import numpy as np

from replay.jit import by_reference, jit, kernel
from replay.mmu import align, apply, control, judge, leaf, memslots, mmu_pages, slot_passes, tdp, walk
from replay.mmu.dirty_log import mark_page_dirty, next_word
from replay.mmu.judge import truth
from replay.mmu.layout import (
    CTL_BITMAP_TOP,
    CTL_HAS_GET_PAGE,
    CTL_LINE,
    CTL_ROW,
    CTL_RUN,
    CTL_SLOT_TOP,
    CTL_SPLIT_TIME,
    CTL_TS,
    MAX_GIVEN,
    MAX_REQUESTED,
    PROBES_LIMIT,
    PROBES_REGION,
    PROBES_SPLIT,
    SLOT_BASE,
    SLOT_BITMAP,
    SLOT_DIRTY_LOG,
    SLOT_FLAGS,
    SLOT_HVA,
    SLOT_LIVE,
    SLOT_NPAGES,
    SLOT_VM,
    TASK_FAULT_ADDR,
    TASK_FAULT_CODE,
    TASK_SLOT,
    TASK_TDP_GFN,
    TASK_TDP_LEVEL,
    TASK_TDP_NEW,
    TASK_TDP_OLD,
    VM_BY_CONTROL,
    VM_BY_RECORD,
    VM_GOAL_TASK,
    VM_HAS_TDP,
    VM_MANUAL,
    VM_MAX_KNOWN,
    VM_PROBES,
    VM_RESCHED,
    VM_SPLIT_DUE,
    VM_WINDOW,
)
from replay.mmu.mmu_pages import available_pages
from replay.mmu.role import DIRECT, LEVEL
from replay.mmu.room import NO_ROOM, OK, has_room, has_room_for_next
from replay.mmu.split import STOP_DONE, STOP_NO_ROOM, advance
from replay.mmu.spte import PT_WRITABLE_MASK, is_last_spte, is_shadow_present_pte
from replay.mmu.state import Mmu, find_task
from replay.mmu.window import (
    C_CUT_SHORT,
    C_ENV_ALLOC,
    C_FAULT_SPLITS,
    C_STRAY_SPLITS,
    C_TDP_HUGE,
    C_UNPLACED,
    PHASE_SHADOW,
    PHASE_SHADOW_DONE,
    PHASE_TDP,
    WIN_ALIGNED,
    WIN_BY_PROBE,
    WIN_ENV_FAIL_KERNEL,
    WIN_ENV_FAIL_NOWAIT,
    WIN_FLUSHES_RECORDED,
    WIN_FREED_RECORDED,
    WIN_HAS_V2_PROBES,
    WIN_LEAKED_RECORDED,
    WIN_PHASE,
    WIN_TASK,
    WIN_VM,
    WIN_WORDS,
    WIN_ZAPPED,
    count,
)
from replay.policy import KnobCodes
from replay.schema import Columns, Flag, Kind

GET_PAGE = int(Kind.GET_PAGE)
SPLIT_HUGE_PAGE = int(Kind.SPLIT_HUGE_PAGE)
TDP_CHANGED = int(Kind.TDP_MMU_SPTE_CHANGED)
PAGETABLE_WALK = int(Kind.PAGETABLE_WALK)
PAGING_ELEMENT = int(Kind.PAGING_ELEMENT)
SYNC_PAGE = int(Kind.SYNC_PAGE)
UNSYNC_PAGE = int(Kind.UNSYNC_PAGE)
PREPARE_ZAP = int(Kind.PREPARE_ZAP_PAGE)
FAST_PAGE_FAULT = int(Kind.FAST_PAGE_FAULT)
ZAP_ALL_FAST = int(Kind.ZAP_ALL_FAST)
SET_SPTE = int(Kind.SET_SPTE)
SPTE_REQUESTED = int(Kind.SPTE_REQUESTED)
LAST_KVMMMU = SPLIT_HUGE_PAGE
PAGE_FAULT = int(Kind.PAGE_FAULT)
UNMAP_HVA_RANGE = int(Kind.UNMAP_HVA_RANGE)
SET_REGION = int(Kind.SET_REGION)
COMMIT_REGION = int(Kind.COMMIT_REGION)
SLOT_TRY_SPLIT = int(Kind.SLOT_TRY_SPLIT)
SLOT_TRY_SPLIT_RET = int(Kind.SLOT_TRY_SPLIT_RET)
TRY_SPLIT = int(Kind.TRY_SPLIT)
TRY_SPLIT_RET = int(Kind.TRY_SPLIT_RET)
SHADOW_TRY_SPLIT = int(Kind.SHADOW_TRY_SPLIT)
TDP_TRY_SPLIT = int(Kind.TDP_TRY_SPLIT)
CHANGE_MMU_PAGES = int(Kind.CHANGE_MMU_PAGES)
FLUSH_REMOTE_TLBS = int(Kind.FLUSH_REMOTE_TLBS)
FLUSH_MEMSLOT = int(Kind.FLUSH_REMOTE_TLBS_MEMSLOT)
SLOT_REMOVE_WRITE_ACCESS = int(Kind.SLOT_REMOVE_WRITE_ACCESS)
TOPUP_CACHE = int(Kind.TOPUP_CACHE)
ZAP_COLLAPSIBLE = int(Kind.ZAP_COLLAPSIBLE)
RECOVER_HUGE = int(Kind.RECOVER_HUGE)
V2_FIRST = int(Kind.V2_LOCK_DROPPED)
V2_LAST = int(Kind.V2_RESTART)
V2_LOCK_DROPPED = int(Kind.V2_LOCK_DROPPED)
V2_RANGE_YIELD = int(Kind.V2_RANGE_YIELD)
V2_ALLOC_FAILED = int(Kind.V2_ALLOC_FAILED)
V2_SPLIT_NONPRESENT = int(Kind.V2_SPLIT_NONPRESENT)
V2_SPLIT_DONE = int(Kind.V2_SPLIT_DONE)
V2_SP_LEAKED = int(Kind.V2_SP_LEAKED)
V2_SP_FREED_UNUSED = int(Kind.V2_SP_FREED_UNUSED)
V2_PREPARE = int(Kind.V2_PREPARE)
V2_TRY_SPLIT_BEGIN = int(Kind.V2_TRY_SPLIT_BEGIN)
V2_TRY_SPLIT_END = int(Kind.V2_TRY_SPLIT_END)
MARK_MEMSLOT = int(Kind.MARK_MEMSLOT)
MARK_MANUAL_PROTECT = int(Kind.MARK_MANUAL_PROTECT)
MARK_CLEAR_DIRTY_LOG = int(Kind.MARK_CLEAR_DIRTY_LOG)
MARK_NR_MMU_PAGES = int(Kind.MARK_NR_MMU_PAGES)
MARK_RESCHED = int(Kind.MARK_RESCHED)
CREATED = int(Flag.CREATED)
UNSYNC = int(Flag.UNSYNC)
FIXED = int(Flag.FIXED)

LOOKAHEAD = 4096
"""Rows behind an event that may be needed to tell what it belongs to."""

# what replay_rows returns
AGAIN = 3  # of replay_row: a window was opened before the event
ROWS_DONE = 0
ROWS_GROW = 1


@jit
def next_of_task(c: Columns, i: int, pid: int) -> int:
    """Row of the next kvmmmu event of the same task, or -1 if there is none near."""
    for j in range(i + 1, min(i + LOOKAHEAD, len(c.kind))):
        if c.pid[j] == pid and c.kind[j] <= LAST_KVMMMU:
            return j
    return -1


@jit
def is_tdp_get_page(c: Columns, i: int, pid: int, has_tdp: bool) -> bool:
    """A direct page of the TDP MMU: the task links it next, or loses the race for it; or the TDP root.

    Followed by a change is not enough: an indirect page first write-protects its gfn in the TDP MMU.
    """
    role = np.int64(c.role[i])
    if not has_tdp or not role & DIRECT:
        return False
    level = role & LEVEL
    if level >= 4 and c.gfn[i] == 0 and c.flags[i] & CREATED:
        return True
    j = next_of_task(c, i, pid)
    if j < 0 or np.int64(c.level[j]) != level + 1 or c.gfn[j] != c.gfn[i]:
        return False
    if c.kind[j] == TDP_CHANGED:
        spte = np.int64(c.spte[j])
        return is_shadow_present_pte(spte) and not is_last_spte(spte, level + 1)
    return c.kind[j] == SPLIT_HUGE_PAGE and c.num[j] == -16


@jit
def is_tdp_zap(m: Mmu, t: int, c: Columns, i: int, pid: int, has_tdp: bool) -> bool:
    """A table of the TDP MMU is zapped: its parent's change is the event before (up to 6.12) or after it."""
    role = np.int64(c.role[i])
    if not has_tdp or not role & DIRECT:
        return False
    level = role & LEVEL
    gfn = np.int64(c.gfn[i])
    task = m.task[t]
    if task[TASK_TDP_LEVEL] == level + 1 and task[TASK_TDP_GFN] == gfn:
        old = task[TASK_TDP_OLD]
        if is_shadow_present_pte(old) and not is_last_spte(old, level + 1):
            return True
    j = next_of_task(c, i, pid)
    if j < 0 or c.kind[j] != TDP_CHANGED:
        return False
    if np.int64(c.level[j]) == level + 1 and c.gfn[j] == c.gfn[i]:
        return True
    return np.int64(c.level[j]) == level and (np.int64(c.gfn[j]) ^ gfn) >> (9 * level) == 0


@jit
def begins_recorded_window(m: Mmu, c: Columns, i: int, vm: int, pid: int) -> bool:
    """A get_page line that belongs to a recorded split which no probe and no marker announced."""
    if not m.vm[vm, VM_BY_RECORD] or not np.int64(c.role[i]) & DIRECT:
        return False
    j = next_of_task(c, i, pid)
    return j >= 0 and c.kind[j] == SPLIT_HUGE_PAGE and c.gfn[j] == c.gfn[i]


@jit
def belongs_to_window(kind: int) -> bool:
    """Events that the window's own task leaves while it splits."""
    return (
        kind == GET_PAGE
        or kind == SPLIT_HUGE_PAGE
        or kind == TDP_CHANGED
        or kind == PREPARE_ZAP
        or kind == SYNC_PAGE
        or kind == TOPUP_CACHE
        or (FLUSH_REMOTE_TLBS <= kind <= FLUSH_MEMSLOT)
        or (SLOT_TRY_SPLIT <= kind <= TDP_TRY_SPLIT)
        or (V2_FIRST <= kind <= V2_LAST)
    )


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
    return align.split_line(m, w, k, gfn, spte, level, errno)


@jit
def get_page_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """kvm_mmu_get_page."""
    pid = np.int64(c.pid[i])
    gfn, role, created = np.int64(c.gfn[i]), np.int64(c.role[i]), c.flags[i] & CREATED != 0
    if is_tdp_get_page(c, i, pid, m.vm[vm, VM_HAS_TDP] != 0):
        return OK
    m.ctl[CTL_HAS_GET_PAGE] = 1
    if not own and w < 0 and begins_recorded_window(m, c, i, vm, pid):
        w = control.begin_window(m, vm, pid, control.RECORDED, -1, gfn, 1 << 40, 1, False, k)
        own = True
    if own and m.window[w, WIN_ALIGNED] and role & DIRECT:
        return align.get_page_line(m, w, k, gfn, role, created)
    apply.get_page(m, t, vm, gfn, role, created, k.rmap_order)
    return OK


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
            if control.tdp_part_begins(m, w, k) == NO_ROOM:
                return NO_ROOM
            if align.tdp_split_change(m, w, k) == NO_ROOM:
                return NO_ROOM
    if level <= 3 and is_shadow_present_pte(new) and is_last_spte(new, level):
        leaf.note_host_level(m, vm, gfn, level)
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
def kvmmmu_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    kind = c.kind[i]
    order = k.rmap_order
    gfn = np.int64(c.gfn[i])
    if gfn >> 40:
        count(m, C_UNPLACED, 1)
        return OK
    if kind == TDP_CHANGED:
        return tdp_event(m, c, i, t, vm, w, own, k)
    if kind == SET_SPTE:
        spte, level, at = np.int64(c.spte[i]), np.int64(c.level[i]), np.int64(c.sptep[i])
        if m.vm[vm, VM_HAS_TDP] and leaf.is_tdp_set_spte(m, t, gfn, spte, level, at >> 12):
            walk.finish_fault(m, t)
        else:
            leaf.apply_set_spte(m, t, vm, gfn, spte, level, at, order)
        if level == 1:
            dirtied(m, vm, gfn, spte)
    elif kind == PAGING_ELEMENT:
        walk.add_element(m, t, np.int64(c.spte[i]), np.int64(c.level[i]))
    elif kind == PAGETABLE_WALK:
        walk.begin_walk(m, t, np.int64(c.addr[i]), np.int64(c.code[i]))
    elif kind == SPTE_REQUESTED:
        walk.spte_requested(m, t, gfn, np.int64(c.level[i]))
        leaf.note_host_level(m, vm, gfn, np.int64(c.level[i]))
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
                apply.prepare_zap_page(m, vm, gfn, np.int64(c.role[i]), c.num[i], unsync, order)
    elif kind == SYNC_PAGE or kind == UNSYNC_PAGE:
        apply.set_unsync(m, vm, gfn, np.int64(c.role[i]), kind == UNSYNC_PAGE)
    elif kind == FAST_PAGE_FAULT:
        if c.flags[i] & FIXED:
            fault_gfn = np.int64(c.addr[i] >> np.uint64(12))
            old, new = np.int64(c.old_spte[i]), np.int64(c.spte[i])
            dirtied(m, vm, fault_gfn, new)
            if not m.vm[vm, VM_HAS_TDP] or not tdp.fast_fix(m, vm, fault_gfn, old, new):
                leaf.fast_page_fault(m, vm, fault_gfn, old, new)
    elif kind == ZAP_ALL_FAST:
        apply.zap_all_fast(m, vm, c.num[i])
    m.task[t, TASK_TDP_LEVEL] = 0
    return OK


@jit
def v2_event(m: Mmu, c: Columns, i: int, w: int, k: KnobCodes) -> int:
    """The probes of the seed patch: environment, and truth to compare with."""
    kind = c.kind[i]
    gfn, level = np.int64(c.gfn[i]), np.int64(c.level[i])
    win = m.window[w]
    if kind == V2_LOCK_DROPPED:
        return align.lock_dropped(m, w, k, gfn, level, c.num[i])
    if kind == V2_RANGE_YIELD:
        return align.range_yield(m, w, k, gfn, level)
    if kind == V2_TRY_SPLIT_BEGIN:
        control.shadow_part_begins(m, w, gfn, np.int64(c.end[i]))
        win[WIN_HAS_V2_PROBES] = 1
    elif kind == V2_TRY_SPLIT_END:
        if align.finish_shadow(m, w, k) == NO_ROOM:
            return NO_ROOM
        win[WIN_PHASE] = PHASE_SHADOW_DONE
    elif kind == V2_ALLOC_FAILED:
        count(m, C_ENV_ALLOC, 1)
        win[WIN_ENV_FAIL_NOWAIT if c.num[i] else WIN_ENV_FAIL_KERNEL] = 1
    elif kind == V2_SPLIT_NONPRESENT:
        judge.split_nonpresent_line(m, w, gfn, level)
    elif kind == V2_SPLIT_DONE:
        judge.split_done_line(m, w, gfn, c.num[i], np.int64(c.code[i]))
    elif kind == V2_SP_LEAKED:
        win[WIN_LEAKED_RECORDED] += 1
    elif kind == V2_SP_FREED_UNUSED:
        win[WIN_FREED_RECORDED] += 1
    elif kind == V2_PREPARE:
        truth(m, available_pages(m, win[WIN_VM]) == c.num[i])
    return OK


@jit
def probe_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """Control kprobes."""
    kind = c.kind[i]
    pid = np.int64(c.pid[i])
    gfn, end, level = np.int64(c.gfn[i]), np.int64(c.end[i]), min(max(np.int64(c.level[i]), 1), 3)
    if gfn >> 40 or end >> 40:
        count(m, C_UNPLACED, 1)
        return OK
    by_control = m.vm[vm, VM_BY_CONTROL] != 0
    if kind == FLUSH_REMOTE_TLBS:
        if own and m.window[w, WIN_PHASE] == PHASE_SHADOW:
            m.window[w, WIN_FLUSHES_RECORDED] += 1
    elif kind == SET_REGION:
        npages = end - gfn
        memslots.set_region(m, t, c.num[i], gfn, npages, np.int64(c.code[i]), np.int64(c.addr[i]))
    elif kind == COMMIT_REGION:
        result = memslots.commit_region(m, t, vm, c.num[i], k.rmap_order)
        if result == memslots.LOG_ON and by_control and not m.vm[vm, VM_PROBES] & PROBES_SPLIT:
            if not m.vm[vm, VM_MANUAL] & control.INITIALLY_SET:
                s = m.task[t, TASK_SLOT] - 1
                control.begin_slot_window(m, vm, pid, control.MEMSLOT_FLAGS, s, 1, False, k)
        elif result == NO_ROOM:
            return NO_ROOM
    elif kind == CHANGE_MMU_PAGES:
        if not m.vm[vm, VM_MAX_KNOWN]:
            mmu_pages.change_mmu_pages(m, vm, t, c.num[i])
    elif SLOT_TRY_SPLIT <= kind <= TDP_TRY_SPLIT and not by_control:
        return OK
    elif kind == SLOT_TRY_SPLIT:
        s = m.task[t, TASK_SLOT] - 1
        control.begin_slot_window(m, vm, pid, control.MEMSLOT_FLAGS, s, level, True, k)
    elif kind == TRY_SPLIT:
        s = memslots.gfn_to_slot(m, vm, gfn)
        control.begin_window(m, vm, pid, control.CLEAR_DIRTY_LOG, s, gfn, end, level, True, k)
    elif kind == SHADOW_TRY_SPLIT or kind == TDP_TRY_SPLIT:
        # where the callers are inlined, ranges of one KVM_CLEAR_DIRTY_LOG follow each other directly
        begun = PHASE_SHADOW if kind == SHADOW_TRY_SPLIT else PHASE_TDP
        if own and not m.window[w, WIN_BY_PROBE] and m.window[w, WIN_PHASE] >= begun:
            if control.close_window(m, w, k) == NO_ROOM:
                return NO_ROOM
            w = -1
        if w < 0:
            s = memslots.gfn_to_slot(m, vm, gfn)
            w = control.begin_window(m, vm, pid, control.CLEAR_DIRTY_LOG, s, gfn, end, level, False, k)
        if kind == TDP_TRY_SPLIT:
            return control.tdp_part_begins(m, w, k)
        control.shadow_part_begins(m, w, gfn, end)
        align.peek_next(m, w, k)
    elif kind == SLOT_TRY_SPLIT_RET or kind == TRY_SPLIT_RET:
        if own:
            return control.close_window(m, w, k)
    elif kind == SLOT_REMOVE_WRITE_ACCESS:
        if m.task[t, TASK_SLOT]:
            return slot_passes.write_protect_slot(m, vm, m.task[t, TASK_SLOT] - 1, max(level, 1))
    elif (kind == ZAP_COLLAPSIBLE or kind == RECOVER_HUGE) and m.task[t, TASK_SLOT]:
        return slot_passes.zap_collapsible(m, vm, m.task[t, TASK_SLOT] - 1, k.rmap_order)
    return OK


@jit
def marker_event(m: Mmu, c: Columns, i: int, t: int, vm: int, k: KnobCodes) -> int:
    """Marker lines; those that repeat what probes of this VM tell are not needed."""
    kind = c.kind[i]
    by_marker = m.vm[vm, VM_BY_CONTROL] != 0 and not m.vm[vm, VM_PROBES] & PROBES_SPLIT
    if kind == MARK_MANUAL_PROTECT:
        m.vm[vm, VM_MANUAL] = c.num[i]
    elif kind == MARK_RESCHED:
        m.vm[vm, VM_RESCHED] = 1
    elif kind == MARK_NR_MMU_PAGES:
        if not m.vm[vm, VM_PROBES] & PROBES_LIMIT and m.vm[vm, VM_MAX_KNOWN] != MAX_GIVEN:
            m.vm[vm, VM_MAX_KNOWN] = MAX_REQUESTED
            mmu_pages.change_mmu_pages(m, vm, t, c.num[i])
    elif kind == MARK_MEMSLOT and not m.vm[vm, VM_PROBES] & PROBES_REGION:
        base, flags = np.int64(c.gfn[i]), np.int64(c.code[i])
        npages = np.int64(c.end[i]) - base
        if base >> 40 or npages < 0 or npages >> 40:
            return OK
        s = memslots.find_slot(m, vm, c.num[i])
        in_place = s >= 0 and m.slot[s, SLOT_BASE] == base and m.slot[s, SLOT_NPAGES] == npages
        old = m.slot[s, SLOT_FLAGS] if s >= 0 else 0
        if (
            in_place
            and old & ~flags & SLOT_DIRTY_LOG
            and slot_passes.zap_collapsible(m, vm, s, k.rmap_order) == NO_ROOM
        ):
            return NO_ROOM
        s = memslots.set_slot(m, vm, t, c.num[i], base, npages, flags, np.int64(c.addr[i]))
        switched_on = in_place and memslots.log_switched_on(old, flags)
        if switched_on and by_marker and not m.vm[vm, VM_MANUAL] & control.INITIALLY_SET:
            pid = np.int64(c.pid[i])
            control.begin_slot_window(m, vm, pid, control.MEMSLOT_FLAGS, s, 1, False, k)
    elif kind == MARK_CLEAR_DIRTY_LOG and by_marker and m.vm[vm, VM_MANUAL] & control.INITIALLY_SET:
        s = memslots.find_slot(m, vm, c.num[i])
        if s >= 0 and m.slot[s, SLOT_FLAGS] & SLOT_DIRTY_LOG:
            first, last, mask = np.int64(c.gfn[i]), np.int64(c.end[i]), np.int64(c.code[i])
            return control.begin_clear_window(m, vm, np.int64(c.pid[i]), s, first, last, mask, k)
    return OK


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


@jit
def run_through(m: Mmu, k: KnobCodes, resched: tuple[int, int]) -> bool:
    """Walk a window that has nothing to be compared with to its end; False if rows run out first."""
    w = m.ctl[CTL_RUN] - 1
    vm = m.window[w, WIN_VM]
    while True:
        stop = advance(m, w, k, resched, False)
        if stop == STOP_NO_ROOM:
            return False
        if stop != STOP_DONE:
            continue
        if k.enabled and m.vm[vm, VM_HAS_TDP] and not tdp.split_all(m, w):
            return False
        if not m.window[w, WIN_WORDS] or not next_word(m, w, k):
            break
    if not m.window[w, WIN_BY_PROBE] and control.close_window(m, w, k) == NO_ROOM:
        return False
    m.ctl[CTL_RUN] = 0
    return True


@jit
def split_all_memory(m: Mmu, vm: int, pid: int, cause: int, k: KnobCodes) -> None:
    """What if dirty logging had been switched on now, for all memory?"""
    m.vm[vm, VM_SPLIT_DUE] = 0
    control.begin_window(m, vm, pid, cause, -1, 0, 1 << 40, 1, False, k)


@jit
def finish_trace(m: Mmu, k: KnobCodes, resched: tuple[int, int], cause: int) -> int:
    """Close what is open and split what is due: ROWS_DONE, or ROWS_GROW."""
    for vm in range(m.vm.shape[0]):
        if m.ctl[CTL_RUN] and not run_through(m, k, resched):
            return ROWS_GROW
        w = m.vm[vm, VM_WINDOW]
        if w >= 0:
            if m.window[w, WIN_BY_PROBE]:
                count(m, C_CUT_SHORT, 1)
                m.window[w, WIN_BY_PROBE] = 0
            if control.close_window(m, w, k) == NO_ROOM:
                return ROWS_GROW
        if m.vm[vm, VM_SPLIT_DUE]:
            if not has_room(m):
                return ROWS_GROW
            split_all_memory(m, vm, -1, cause, k)
    if m.ctl[CTL_RUN] and not run_through(m, k, resched):
        return ROWS_GROW
    count(m, C_TDP_HUGE, tdp.count_huge(m))
    return ROWS_DONE


@jit
def replay_row(m: Mmu, c: Columns, i: int, k: KnobCodes) -> int:
    """One event: OK, or NO_ROOM if it must be handled again."""
    vm = np.int64(c.vm[i])
    if vm < 0:
        return OK
    kind = c.kind[i]
    m.ctl[CTL_TS] = c.ts_ns[i]
    m.ctl[CTL_LINE] = c.line[i]
    pid = np.int64(c.pid[i])
    t = find_task(m, pid)
    if m.vm[vm, VM_SPLIT_DUE] and c.ts_ns[i] >= m.ctl[CTL_SPLIT_TIME]:
        split_all_memory(m, vm, pid, control.AT_TIME, k)
        return AGAIN
    if m.vm[vm, VM_GOAL_TASK] == t + 1 and kind != PREPARE_ZAP and kind != SYNC_PAGE:
        mmu_pages.settle_limit(m, vm)
    w = m.vm[vm, VM_WINDOW]
    own = w >= 0 and m.window[w, WIN_TASK] == pid
    if own and not m.window[w, WIN_BY_PROBE] and not belongs_to_window(kind):
        if control.close_window(m, w, k) == NO_ROOM:
            return NO_ROOM
        w = -1
        own = False
    if kind <= LAST_KVMMMU:
        return kvmmmu_event(m, c, i, t, vm, w, own, k)
    if kind == PAGE_FAULT:
        m.task[t, TASK_FAULT_ADDR] = np.int64(c.addr[i])
        m.task[t, TASK_FAULT_CODE] = np.int64(c.code[i])
        walk.begin_fault(m, t)
        return OK
    if kind == UNMAP_HVA_RANGE:
        return unmap_hva_range(m, vm, np.int64(c.addr[i]), np.int64(c.end[i]), k.rmap_order)
    if kind < V2_FIRST:
        return probe_event(m, c, i, t, vm, w, own, k)
    if kind <= V2_LAST:
        if not own or not m.window[w, WIN_ALIGNED]:
            return OK
        return v2_event(m, c, i, w, k)
    return marker_event(m, c, i, t, vm, k)


@kernel
def replay_rows(m: Mmu, c: Columns, stop: int, k: KnobCodes, resched: tuple[int, int], end_cause: int) -> int:
    """Events from ``m.ctl[CTL_ROW]`` to ``stop``: ROWS_DONE, or ROWS_GROW: call again with more room.

    ``end_cause`` is -1 while events follow; else the trace ends behind ``stop``, and what is still to be
    split then is split for that schema.WindowCause.
    """
    # one kernel: the walk of a window is compiled once, not once more for the end of the trace
    mmu, knobs = by_reference(m), by_reference(k)
    result = replay_rows_of(mmu, by_reference(c), stop, knobs, resched)
    if result == ROWS_DONE and end_cause >= 0:
        return finish_trace(mmu, knobs, resched, end_cause)
    return result


@jit
def replay_rows_of(m: Mmu, c: Columns, stop: int, k: KnobCodes, resched: tuple[int, int]) -> int:
    """The loop of :func:`replay_rows`."""
    while m.ctl[CTL_ROW] < stop:
        if not has_room_for_next(m):
            return ROWS_GROW
        if m.ctl[CTL_RUN]:
            if not run_through(m, k, resched):
                return ROWS_GROW
            continue
        result = replay_row(m, c, m.ctl[CTL_ROW], k)
        if result == NO_ROOM:
            return ROWS_GROW
        if result == OK:
            m.ctl[CTL_ROW] += 1
    if m.ctl[CTL_RUN] and not run_through(m, k, resched):
        return ROWS_GROW
    return ROWS_DONE
