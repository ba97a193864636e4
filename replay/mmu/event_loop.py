"""The event loop: each recorded event is handed to the function of its tracepoint, probe or marker."""

from __future__ import annotations

import numpy as np

from replay.jit import by_reference, jit, kernel
from replay.mmu.events import windows
from replay.mmu.events.probes import marker_event, probe_event, v2_event
from replay.mmu.events.tracepoints import kvmmmu_event, page_fault, unmap_hva_range
from replay.mmu.kernel.dirty_log import next_word
from replay.mmu.kernel.mmu_pages import settle_limit
from replay.mmu.recorded.outcomes import tdp_pending_is_unexpected
from replay.mmu.split.walk import STOP_DONE, STOP_NO_ROOM, advance
from replay.mmu.split.window import count, note_begun_before
from replay.mmu.state.counters import Counter
from replay.mmu.state.growth import NO_ROOM, OK, has_room, has_room_for_next
from replay.mmu.state.mmu import Mmu, find_task
from replay.mmu.tdp import tables
from replay.policy import KnobCodes
from replay.schema import LAST_KVMMMU, Columns, Kind, WindowCause

# what replay_rows returns
ROWS_DONE = 0
ROWS_GROW = 1
AGAIN = 3  # of replay_row: a window was opened before the event


@jit
def belongs_to_window(kind: int) -> bool:
    """Events that the window's own task leaves while it splits."""
    return (
        kind == Kind.GET_PAGE
        or kind == Kind.SPLIT_HUGE_PAGE
        or kind == Kind.TDP_MMU_SPTE_CHANGED
        or kind == Kind.PREPARE_ZAP_PAGE
        or kind == Kind.SYNC_PAGE
        or kind == Kind.TOPUP_CACHE
        or (Kind.FLUSH_REMOTE_TLBS <= kind <= Kind.FLUSH_REMOTE_TLBS_MEMSLOT)
        or (Kind.SLOT_TRY_SPLIT <= kind <= Kind.TDP_TRY_SPLIT)
        or (Kind.V2_LOCK_DROPPED <= kind <= Kind.V2_RESTART)
    )


@jit
def holds_slots_lock(kind: int) -> bool:
    """Probes of functions that run under slots_lock: a window of another task, under it too, is over.

    set_region is none: some kernels take the lock in the function that has the probe.
    """
    return (
        kind == Kind.COMMIT_REGION
        or kind == Kind.ZAP_COLLAPSIBLE
        or kind == Kind.RECOVER_HUGE
        or kind == Kind.SLOT_TRY_SPLIT
        or (Kind.TRY_SPLIT <= kind <= Kind.TDP_TRY_SPLIT and kind != Kind.TRY_SPLIT_RET)
        or kind == Kind.V2_TRY_SPLIT_BEGIN
    )


@jit
def run_through(m: Mmu, k: KnobCodes, resched: tuple[int, int]) -> bool:
    """Walk a window that has nothing to be compared with to its end; False if rows run out first."""
    w = m.ctl.run - 1
    vm = m.window[w].vm
    while True:
        stop = advance(m, w, k, resched, False)
        if stop == STOP_NO_ROOM:
            return False
        if stop != STOP_DONE:
            continue
        if k.enabled and m.vm[vm].has_tdp and not tables.split_all(m, w):
            return False
        if not m.window[w].words or not next_word(m, w, k):
            break
    closed_later = m.window[w].by_probe or m.window[w].open_ended
    if not closed_later and windows.close_window(m, w, k) == NO_ROOM:
        return False
    m.ctl.run = 0
    return True


@jit
def split_all_memory(m: Mmu, vm: int, pid: int, cause: int, k: KnobCodes) -> None:
    """What if dirty logging had been switched on now, for all memory?"""
    m.vm[vm].split_due = 0
    windows.begin_window(m, vm, pid, cause, -1, 0, 1 << 40, 1, False, k)


@jit
def finish_trace(m: Mmu, k: KnobCodes, resched: tuple[int, int], cause: int) -> int:
    """Close what is open and split what is due: ROWS_DONE, or ROWS_GROW."""
    for vm in range(m.vm.shape[0]):
        if m.ctl.run and not run_through(m, k, resched):
            return ROWS_GROW
        w = m.vm[vm].window
        if w >= 0:
            if m.window[w].by_probe:
                count(m, Counter.WINDOWS_CUT_SHORT, 1)
                m.window[w].by_probe = 0
            m.window[w].cut = 1
            if windows.close_window(m, w, k) == NO_ROOM:
                return ROWS_GROW
        if m.vm[vm].split_due:
            if not has_room(m):
                return ROWS_GROW
            split_all_memory(m, vm, -1, cause, k)
    if m.ctl.run and not run_through(m, k, resched):
        return ROWS_GROW
    count(m, Counter.TDP_HUGE_SPTES, tables.count_huge(m))
    return ROWS_DONE


@jit
def replay_row(m: Mmu, c: Columns, i: int, k: KnobCodes) -> int:
    """One event: OK, or NO_ROOM if it must be handled again."""
    vm = np.int64(c.vm[i])
    if vm < 0:
        return OK
    kind = c.kind[i]
    m.ctl.ts = c.ts_ns[i]
    m.ctl.line = c.line[i]
    pid = np.int64(c.pid[i])
    t = find_task(m, pid)
    if m.vm[vm].split_due and c.ts_ns[i] >= m.ctl.split_time:
        split_all_memory(m, vm, pid, WindowCause.TIME, k)
        return AGAIN
    if m.vm[vm].goal_task == t + 1 and kind != Kind.PREPARE_ZAP_PAGE and kind != Kind.SYNC_PAGE:
        settle_limit(m, vm)
    w = m.vm[vm].window
    own = w >= 0 and m.window[w].task == pid
    if (w >= 0 and not own and holds_slots_lock(kind)) or (
        own and not m.window[w].by_probe and not belongs_to_window(kind)
    ):
        if windows.close_window(m, w, k) == NO_ROOM:
            return NO_ROOM
        w = -1
        own = False
    if own and kind != Kind.SPLIT_HUGE_PAGE:
        tdp_pending_is_unexpected(m, w)  # the line of a split follows its change at once
    if kind <= LAST_KVMMMU:
        return kvmmmu_event(m, c, i, t, vm, w, own, k)
    if kind == Kind.PAGE_FAULT:
        page_fault(m, t, vm, np.int64(c.addr[i]), np.int64(c.code[i]), k.rmap_order)
        return OK
    if kind == Kind.UNMAP_HVA_RANGE:
        return unmap_hva_range(m, vm, np.int64(c.addr[i]), np.int64(c.end[i]), k.rmap_order)
    if kind < Kind.V2_LOCK_DROPPED:
        return probe_event(m, c, i, t, vm, w, own, k)
    if kind <= Kind.V2_RESTART:
        if kind == Kind.V2_TRY_SPLIT_BEGIN and w < 0 and m.vm[vm].by_control:
            level = min(max(np.int64(c.level[i]), 1), 3)
            w = windows.begin_range_window(m, vm, pid, np.int64(c.gfn[i]), np.int64(c.end[i]), level, k)
            own = True
        if not own:
            note_begun_before(m, vm)  # the window that it is of began before the trace
        if not own or not m.window[w].aligned:
            return OK
        return v2_event(m, c, i, w, k)
    return marker_event(m, c, i, t, vm, k)


@kernel
def replay_rows(m: Mmu, c: Columns, stop: int, k: KnobCodes, resched: tuple[int, int], end_cause: int) -> int:
    """Events from ``m.ctl.row`` to ``stop``: ROWS_DONE, or ROWS_GROW: call again with more room.

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
    while m.ctl.row < stop:
        if not has_room_for_next(m):
            return ROWS_GROW
        if m.ctl.run:
            if not run_through(m, k, resched):
                return ROWS_GROW
            continue
        result = replay_row(m, c, m.ctl.row, k)
        if result == NO_ROOM:
            return ROWS_GROW
        if result == OK:
            m.ctl.row += 1
    if m.ctl.run and not run_through(m, k, resched):
        return ROWS_GROW
    return ROWS_DONE
