"""Recorded lines of a window, lined up with the walk one by one.

Recorded outcomes are never an input of the walk: a recorded line only makes it go on to its next
attempt, so that events of other tasks act on the state at the right moment, and is then compared.
What the kernel could not foresee (lock drops, yields, failed allocations) is told to the walk.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.dirty_log import next_word
from replay.mmu.kernel.rmap import pte_list_get, rmap_head
from replay.mmu.kernel.shadow_page import get_spte
from replay.mmu.kernel.spte import PT_WRITABLE_MASK, sptes_agree, with_accessed_dirty_of
from replay.mmu.recorded.learn import adopt_huge, learn_role, undo_split
from replay.mmu.recorded.lines import SHOW_LOCK_DROPS, compare_lines, recorded_line, recorded_role
from replay.mmu.recorded.outcomes import (
    judge,
    missing,
    pending_is_unexpected,
    tdp_pending_is_unexpected,
    unexpected,
)
from replay.mmu.split.prepare import after_lock_drop, drop_lock
from replay.mmu.split.rmap_heads import END_OF_HEAD
from replay.mmu.split.walk import STOP_ATTEMPT, STOP_DONE, STOP_DROPPED, STOP_NO_ROOM, STOP_YIELDED, advance
from replay.mmu.split.window import count, knows_all, place, place_of
from replay.mmu.state.counters import Counter
from replay.mmu.state.growth import NO_ROOM, OK, has_room, has_room_for_next
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import AttemptFlag, PageFlag, ProbeSet
from replay.mmu.tdp.tables import next_split, predict_split
from replay.policy import KnobCodes
from replay.schema import EAGAIN, EBUSY, ENOMEM, EOPNOTSUPP, Kind, Match, Role

NO_RESCHED = (0, -1)


@jit
def step(m: Mmu, w: int, k: KnobCodes) -> int:
    """Walk on as :func:`advance` does, over all ranges of the window."""
    while True:
        stop = advance(m, w, k, NO_RESCHED, False)
        if stop != STOP_DONE or not m.window[w].words:
            return stop
        if finish_tdp(m, w, k) == NO_ROOM:
            return STOP_NO_ROOM
        if not next_word(m, w, k):
            return STOP_DONE


@jit
def next_attempt(m: Mmu, w: int, k: KnobCodes) -> int:
    """Make the walk's next attempt pending, unless one is: STOP_ATTEMPT, STOP_DONE or STOP_NO_ROOM."""
    while not m.window[w].pending:
        stop = step(m, w, k)
        if stop == STOP_DONE or stop == STOP_NO_ROOM:
            return stop
        if stop == STOP_ATTEMPT:
            m.window[w].pending = m.ctl.attempt_top
    return STOP_ATTEMPT


@jit
def reach(m: Mmu, w: int, k: KnobCodes, target: int) -> int:
    """Go on until the pending attempt is at or behind ``target``; the recording lacks those before."""
    while True:
        stop = next_attempt(m, w, k)
        if stop != STOP_ATTEMPT:
            return stop
        o = m.window[w].pending - 1
        if place_of(m, o) >= target:
            return stop
        pending_is_unexpected(m, w)


@jit
def split_line(m: Mmu, w: int, k: KnobCodes, gfn: int, spte: int, level: int, errno: int) -> int:
    """kvm_mmu_split_huge_page of the window's shadow part."""
    if level < 2 or level > 3:
        missing(m, w, 0, gfn, spte, level, errno)
        count(m, Counter.EXPECTED_ATTEMPTS, 1)
        return OK
    where = place(gfn, level)
    known = knows_all(m, m.window[w].vm)
    if not known and not has_room_for_next(m):
        return NO_ROOM  # for what the line may show to be older than the trace
    pending = m.window[w].pending != 0
    if errno == -EAGAIN and k.lock_drop_traced and not pending and not is_repeated_retry(m, w, where):
        m.window[w].env_drop = where + 1
    repeats = errno == -EOPNOTSUPP and not pending and begin_head_anew(m, w, k, where, spte)
    if errno == -ENOMEM and not m.window[w].has_v2_probes and not pending:
        # no probe tells of it, so the line itself does: the blocking allocation failed
        m.window[w].env_drop = where + 1
        m.window[w].env_fail_kernel = 1
    stop = reach(m, w, k, where)
    if stop == STOP_NO_ROOM:
        return NO_ROOM
    m.window[w].env_drop = 0
    if errno == -EAGAIN:
        note_retry(m, w, where)
    if errno == -ENOMEM and not m.window[w].has_v2_probes:
        m.window[w].env_fail_kernel = 0
        count(m, Counter.ENV_ALLOC_FAILURES, 1)
    count(m, Counter.EXPECTED_ATTEMPTS, 1)
    o = m.window[w].pending - 1
    if stop == STOP_DONE or place_of(m, o) != where:
        missing(m, w, 0, gfn, spte, level, errno)
        if not known:
            adopt_huge(m, w, gfn, spte, level, errno, recorded_role(m, w, gfn), k)
        return OK
    judge(m, o, gfn, spte, level, errno)
    if repeats and m.attempt[o].match == Match.MATCHED:
        m.attempt[o].match = Match.UNKNOWN  # a line that is there twice looks the same
        m.window[w].repeated += 1
    compare_lines(m, w, True)
    if not known and errno and not m.attempt[o].errno:
        undo_split(m, w, o, spte, errno, k)
    child = m.window[w].child
    if errno == 0 and child >= 0 and m.sp[child].page_flags & PageFlag.LIVE:
        m.sp[child].page_flags |= PageFlag.RECORDED
    m.window[w].pending = 0
    peek_next(m, w, k)
    return OK


@jit
def begin_head_anew(m: Mmu, w: int, k: KnobCodes, where: int, spte: int) -> bool:
    """A refused SPTE is attempted once more: v2 dropped the lock in between.

    Without probes that leaves no line.  The walk goes back to the last SPTE before its place that fits.
    """
    win = m.window[w]
    vm = win.vm
    if k.lock_drop_traced or m.vm[vm].truths & SHOW_LOCK_DROPS or not win.in_head:
        return False
    position = win.position
    if place(win.gfn, win.level) != where or position == END_OF_HEAD:
        return False
    if win.word < win.words:
        following = m.slot[win.slot].base_gfn + ((win.first_word + win.word) << 6)
        if place(following, win.level) == where:
            return False  # the next range of KVM_CLEAR_DIRTY_LOG comes to this head again
    head = rmap_head(m, vm, win.gfn, win.level)
    layout = m.vm[vm].layout
    sptep = pte_list_get(m, head, position)
    if sptep >= 0 and sptes_agree(get_spte(m, sptep // 512, sptep % 512), spte, layout):
        return False
    for before in range(position - 1, -1, -1):
        sptep = pte_list_get(m, head, before)
        if sptep < 0 or not sptes_agree(get_spte(m, sptep // 512, sptep % 512), spte, layout):
            continue
        drop_lock(m, w, sptep, get_spte(m, sptep // 512, sptep % 512))
        after_lock_drop(m, w, k)
        win.position = before
        return True
    return False


@jit
def is_repeated_retry(m: Mmu, w: int, where: int) -> bool:
    """Whether a recorded -EAGAIN line at ``where`` is the one before it once more.

    The kernel drops the lock after each of them, which takes time.
    """
    win = m.window[w]
    return win.retry_place == where + 1 and m.ctl.ts <= win.retry_ts


@jit
def note_retry(m: Mmu, w: int, where: int) -> None:
    """A recorded -EAGAIN line at ``where`` was compared."""
    m.window[w].retry_place = where + 1
    m.window[w].retry_ts = m.ctl.ts


@jit
def get_page_line(m: Mmu, w: int, k: KnobCodes, gfn: int, role: int, flags: int, root_count: int) -> int:
    """kvm_mmu_get_page of the window's shadow part: the child table of the attempt under way."""
    level = (role & Role.LEVEL) + 1
    if 2 <= level <= 3 and reach(m, w, k, place(gfn, level)) == STOP_NO_ROOM:
        return NO_ROOM
    recorded_line(m, w, Kind.GET_PAGE, gfn, root_count, role, flags)
    learn_role(m, w, gfn, role)
    return OK


@jit
def go_on_to(m: Mmu, w: int, k: KnobCodes, target: int, wanted: int) -> int:
    """Go on until the environment's ``wanted`` stop, but not behind ``target``: what stopped the walk."""
    while True:
        o = m.window[w].pending - 1
        if o >= 0 and place_of(m, o) > target:
            return STOP_ATTEMPT
        pending_is_unexpected(m, w)
        stop = step(m, w, k)
        if stop == wanted or stop == STOP_DONE or stop == STOP_NO_ROOM:
            return stop
        if stop == STOP_ATTEMPT:
            m.window[w].pending = m.ctl.attempt_top


@jit
def lock_dropped(m: Mmu, w: int, k: KnobCodes, gfn: int, level: int, flushed: int) -> int:
    """v2_lock_dropped: the environment drops the lock at this attempt."""
    if level < 2 or level > 3:
        recorded_line(m, w, Kind.V2_LOCK_DROPPED, gfn, level, flushed, 0)
        return OK
    target = place(gfn, level)
    m.window[w].env_drop = target + 1
    stop = go_on_to(m, w, k, target, STOP_DROPPED)
    if stop == STOP_NO_ROOM:
        return NO_ROOM
    recorded_line(m, w, Kind.V2_LOCK_DROPPED, gfn, level, flushed, 0)
    m.window[w].env_drop = 0
    return OK


@jit
def range_yield(m: Mmu, w: int, k: KnobCodes, gfn: int, level: int, flushed: int) -> int:
    """v2_range_yield: the environment makes the walk yield after this head."""
    if level < 2 or level > 3:
        recorded_line(m, w, Kind.V2_RANGE_YIELD, gfn, level, flushed, 0)
        return OK
    target = place(gfn, level)
    m.window[w].env_yield = target + 1
    stop = go_on_to(m, w, k, target, STOP_YIELDED)
    if stop == STOP_NO_ROOM:
        return NO_ROOM
    recorded_line(m, w, Kind.V2_RANGE_YIELD, gfn, level, flushed, 0)
    m.window[w].env_yield = 0
    return OK


@jit
def peek_next(m: Mmu, w: int, k: KnobCodes) -> None:
    """Go up to the next attempt now: if the lock is dropped there, its line comes after others act."""
    if k.lock_drop_traced and not m.window[w].pending:
        advance(m, w, k, NO_RESCHED, True)


@jit
def finish_shadow(m: Mmu, w: int, k: KnobCodes) -> int:
    """The shadow part of the window's range is over: what the walk still attempts, the recording lacks."""
    while True:
        pending_is_unexpected(m, w)
        stop = advance(m, w, k, NO_RESCHED, False)
        if stop == STOP_NO_ROOM:
            return NO_ROOM
        if stop == STOP_DONE:
            return OK
        if stop == STOP_ATTEMPT:
            m.window[w].pending = m.ctl.attempt_top


@jit
def finish(m: Mmu, w: int, k: KnobCodes) -> int:
    """The window is over: both parts of the range it is in, and the ranges behind it."""
    while True:
        if finish_shadow(m, w, k) == NO_ROOM or finish_tdp(m, w, k) == NO_ROOM:
            return NO_ROOM
        if not m.window[w].words or not next_word(m, w, k):
            return OK


# -- the TDP part --------------------------------------------------------------------------------------------


@jit
def tdp_attempt(m: Mmu, w: int, k: KnobCodes, errno: int) -> int:
    """The next attempt of the TDP part, in this range or one behind it: its row, -1 none, -2 no room."""
    while True:
        o = predict_split(m, w, errno)
        if o >= 0 or not m.window[w].words:
            return o
        if finish_shadow(m, w, k) == NO_ROOM:
            return -2
        if not next_word(m, w, k):
            return -1


@jit
def reach_tdp(m: Mmu, w: int, gfn: int, level: int) -> int:
    """Go on to the huge SPTE that a line splits: STOP_ATTEMPT if it is known, STOP_DONE if it is older.

    One that is older than the trace leaves what is known after it for the lines to come.
    """
    while has_room(m):
        at, level_at = next_split(m, w)
        if level_at == 0 or at > gfn or (at == gfn and level_at < level):
            return STOP_DONE
        if at == gfn and level_at == level:
            return STOP_ATTEMPT
        unexpected(m, w, predict_split(m, w, 0))
    return STOP_NO_ROOM


@jit
def tdp_split_change(m: Mmu, w: int, k: KnobCodes, gfn: int, level: int, old: int) -> int:
    """kvm_tdp_mmu_spte_changed from huge page to table by the window's task: an attempt, not yet applied.

    Of the ``old`` SPTE the A and D bits are taken, which the CPU sets without a line.
    """
    tdp_pending_is_unexpected(m, w)
    if not knows_all(m, m.window[w].vm) and not m.window[w].words:
        result = reach_tdp(m, w, gfn, level)
        if result != STOP_ATTEMPT:
            return NO_ROOM if result == STOP_NO_ROOM else OK
    o = tdp_attempt(m, w, k, 0)
    if o == -2:
        return NO_ROOM
    if o >= 0:
        vm = m.window[w].vm
        spte = with_accessed_dirty_of(m.attempt[o].spte, old, m.vm[vm].layout)
        if spte | PT_WRITABLE_MASK == old and spte != old and not m.vm[vm].probes & ProbeSet.FAST_FAULT:
            # fast_page_fault() is the only way to it that has no change line
            spte = old
            m.attempt[o].attempt_flags |= AttemptFlag.RESTORED
        m.attempt[o].spte = spte
    m.window[w].tdp_pending = o + 1
    return OK


@jit
def tdp_split_line(m: Mmu, w: int, k: KnobCodes, gfn: int, spte: int, level: int, errno: int) -> int:
    """kvm_mmu_split_huge_page of the window's TDP part; -EBUSY and -ENOMEM are the environment's."""
    o = m.window[w].tdp_pending - 1
    if o < 0 and (errno == -EBUSY or errno == -ENOMEM):
        o = tdp_attempt(m, w, k, -errno)
        if o == -2:
            return NO_ROOM
    count(m, Counter.EXPECTED_ATTEMPTS, 1)
    if o < 0:
        missing(m, w, AttemptFlag.TDP, gfn, spte, level, errno)
        return OK
    m.window[w].tdp_pending = 0
    if errno == -EBUSY:
        m.attempt[o].spte = spte  # the value that lost the race is the environment's, too
    judge(m, o, gfn, spte, level, errno)
    if m.attempt[o].attempt_flags & AttemptFlag.RESTORED and m.attempt[o].match == Match.MATCHED:
        m.attempt[o].match = Match.UNKNOWN
        m.window[w].restored += 1
    compare_lines(m, w, True)
    return OK


@jit
def finish_tdp(m: Mmu, w: int, k: KnobCodes) -> int:
    """The TDP part of the window's range is over: huge pages left are splits that the recording lacks."""
    tdp_pending_is_unexpected(m, w)
    if not k.enabled or not m.vm[m.window[w].vm].has_tdp:
        return OK
    while has_room(m):
        o = predict_split(m, w, 0)
        if o < 0:
            return OK
        unexpected(m, w, o)
        m.window[w].tdp_gfn = m.attempt[o].gfn + (1 << (9 * (np.int64(m.attempt[o].level) - 1)))
    return NO_ROOM
