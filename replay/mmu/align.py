"""Recorded lines of a window, lined up with the walk one by one.

Recorded outcomes are never an input of the walk: a recorded line only makes it go on to its next
attempt, so that events of other tasks act on the state at the right moment, and is then compared.
What the kernel could not foresee (lock drops, yields, failed allocations) is told to the walk.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.dirty_log import next_word
from replay.mmu.judge import (
    MATCHED,
    UNKNOWN,
    judge,
    missing,
    pending_is_unexpected,
    tdp_pending_is_unexpected,
    unexpected,
)
from replay.mmu.kinds import GET_PAGE, V2_LOCK_DROPPED, V2_RANGE_YIELD
from replay.mmu.layout import (
    CTL_OUT_TOP,
    CTL_TS,
    FLAG_LIVE,
    FLAG_RECORDED,
    PROBES_FAST_FAULT,
    SLOT_BASE,
    SP32_FLAGS,
    VM_HAS_TDP,
    VM_LAYOUT,
    VM_PROBES,
    VM_TRUTHS,
)
from replay.mmu.learn import adopt_huge, learn_role, undo_split
from replay.mmu.prepare_split import after_lock_drop, drop_lock
from replay.mmu.rmap import pte_list_get, rmap_head
from replay.mmu.role import LEVEL
from replay.mmu.room import NO_ROOM, OK, has_room, has_room_for_next
from replay.mmu.shadow_page import get_spte
from replay.mmu.slot_rmap_walk import END_OF_HEAD
from replay.mmu.split import STOP_ATTEMPT, STOP_DONE, STOP_DROPPED, STOP_NO_ROOM, STOP_YIELDED, advance
from replay.mmu.spte import PT_WRITABLE_MASK, sptes_agree, with_accessed_dirty_of
from replay.mmu.state import Mmu
from replay.mmu.tdp import next_split, predict_split
from replay.mmu.truth import SHOW_LOCK_DROPS, compare_lines, recorded_line, recorded_role
from replay.mmu.window import (
    ATTEMPT_RESTORED,
    ATTEMPT_TDP,
    C_ENV_ALLOC,
    C_EXPECTED,
    OUT16_ERRNO,
    OUT16_FLAGS,
    OUT16_LEVEL,
    OUT16_MATCH,
    OUT_GFN,
    OUT_SPTE,
    WIN_CHILD,
    WIN_ENV_DROP,
    WIN_ENV_FAIL_KERNEL,
    WIN_ENV_YIELD,
    WIN_FIRST_WORD,
    WIN_GFN,
    WIN_HAS_V2_PROBES,
    WIN_IN_HEAD,
    WIN_LEVEL,
    WIN_PENDING,
    WIN_POSITION,
    WIN_REPEATED,
    WIN_RESTORED,
    WIN_RETRY_PLACE,
    WIN_RETRY_TS,
    WIN_SLOT,
    WIN_TDP_GFN,
    WIN_TDP_PENDING,
    WIN_VM,
    WIN_WORD,
    WIN_WORDS,
    count,
    knows_all,
    place,
    place_of,
)
from replay.policy import KnobCodes
from replay.schema import EAGAIN, EBUSY, ENOMEM, EOPNOTSUPP

NO_RESCHED = (0, -1)


@jit
def step(m: Mmu, w: int, k: KnobCodes) -> int:
    """Walk on as :func:`advance` does, over all ranges of the window."""
    while True:
        stop = advance(m, w, k, NO_RESCHED, False)
        if stop != STOP_DONE or not m.window[w, WIN_WORDS]:
            return stop
        if finish_tdp(m, w, k) == NO_ROOM:
            return STOP_NO_ROOM
        if not next_word(m, w, k):
            return STOP_DONE


@jit
def next_attempt(m: Mmu, w: int, k: KnobCodes) -> int:
    """Make the walk's next attempt pending, unless one is: STOP_ATTEMPT, STOP_DONE or STOP_NO_ROOM."""
    while not m.window[w, WIN_PENDING]:
        stop = step(m, w, k)
        if stop == STOP_DONE or stop == STOP_NO_ROOM:
            return stop
        if stop == STOP_ATTEMPT:
            m.window[w, WIN_PENDING] = m.ctl[CTL_OUT_TOP]
    return STOP_ATTEMPT


@jit
def reach(m: Mmu, w: int, k: KnobCodes, target: int) -> int:
    """Go on until the pending attempt is at or behind ``target``; the recording lacks those before."""
    while True:
        stop = next_attempt(m, w, k)
        if stop != STOP_ATTEMPT:
            return stop
        o = m.window[w, WIN_PENDING] - 1
        if place_of(m, o) >= target:
            return stop
        pending_is_unexpected(m, w)


@jit
def split_line(m: Mmu, w: int, k: KnobCodes, gfn: int, spte: int, level: int, errno: int) -> int:
    """kvm_mmu_split_huge_page of the window's shadow part."""
    if level < 2 or level > 3:
        missing(m, w, 0, gfn, spte, level, errno)
        count(m, C_EXPECTED, 1)
        return OK
    where = place(gfn, level)
    known = knows_all(m, m.window[w, WIN_VM])
    if not known and not has_room_for_next(m):
        return NO_ROOM  # for what the line may show to be older than the trace
    pending = m.window[w, WIN_PENDING] != 0
    if errno == -EAGAIN and k.lock_drop_traced and not pending and not is_repeated_retry(m, w, where):
        m.window[w, WIN_ENV_DROP] = where + 1
    repeats = errno == -EOPNOTSUPP and not pending and begin_head_anew(m, w, k, where, spte)
    if errno == -ENOMEM and not m.window[w, WIN_HAS_V2_PROBES] and not pending:
        # no probe tells of it, so the line itself does: the blocking allocation failed
        m.window[w, WIN_ENV_DROP] = where + 1
        m.window[w, WIN_ENV_FAIL_KERNEL] = 1
    stop = reach(m, w, k, where)
    if stop == STOP_NO_ROOM:
        return NO_ROOM
    m.window[w, WIN_ENV_DROP] = 0
    if errno == -EAGAIN:
        note_retry(m, w, where)
    if errno == -ENOMEM and not m.window[w, WIN_HAS_V2_PROBES]:
        m.window[w, WIN_ENV_FAIL_KERNEL] = 0
        count(m, C_ENV_ALLOC, 1)
    count(m, C_EXPECTED, 1)
    o = m.window[w, WIN_PENDING] - 1
    if stop == STOP_DONE or place_of(m, o) != where:
        missing(m, w, 0, gfn, spte, level, errno)
        if not known:
            adopt_huge(m, w, gfn, spte, level, errno, recorded_role(m, w, gfn), k)
        return OK
    judge(m, o, gfn, spte, level, errno)
    if repeats and m.out16[o, OUT16_MATCH] == MATCHED:
        m.out16[o, OUT16_MATCH] = UNKNOWN  # a line that is there twice looks the same
        m.window[w, WIN_REPEATED] += 1
    compare_lines(m, w, True)
    if not known and errno and not m.out16[o, OUT16_ERRNO]:
        undo_split(m, w, o, spte, errno, k)
    child = m.window[w, WIN_CHILD]
    if errno == 0 and child >= 0 and m.sp32[child, SP32_FLAGS] & FLAG_LIVE:
        m.sp32[child, SP32_FLAGS] |= FLAG_RECORDED
    m.window[w, WIN_PENDING] = 0
    peek_next(m, w, k)
    return OK


@jit
def begin_head_anew(m: Mmu, w: int, k: KnobCodes, where: int, spte: int) -> bool:
    """A refused SPTE is attempted once more: v2 dropped the lock in between.

    Without probes that leaves no line.  The walk goes back to the last SPTE before its place that fits.
    """
    win = m.window[w]
    vm = win[WIN_VM]
    if k.lock_drop_traced or m.vm[vm, VM_TRUTHS] & SHOW_LOCK_DROPS or not win[WIN_IN_HEAD]:
        return False
    position = win[WIN_POSITION]
    if place(win[WIN_GFN], win[WIN_LEVEL]) != where or position == END_OF_HEAD:
        return False
    if win[WIN_WORD] < win[WIN_WORDS]:
        following = m.slot[win[WIN_SLOT], SLOT_BASE] + ((win[WIN_FIRST_WORD] + win[WIN_WORD]) << 6)
        if place(following, win[WIN_LEVEL]) == where:
            return False  # the next range of KVM_CLEAR_DIRTY_LOG comes to this head again
    head = rmap_head(m, vm, win[WIN_GFN], win[WIN_LEVEL])
    layout = m.vm[vm, VM_LAYOUT]
    sptep = pte_list_get(m, head, position)
    if sptep >= 0 and sptes_agree(get_spte(m, sptep // 512, sptep % 512), spte, layout):
        return False
    for before in range(position - 1, -1, -1):
        sptep = pte_list_get(m, head, before)
        if sptep < 0 or not sptes_agree(get_spte(m, sptep // 512, sptep % 512), spte, layout):
            continue
        drop_lock(m, w, sptep, get_spte(m, sptep // 512, sptep % 512))
        after_lock_drop(m, w, k)
        win[WIN_POSITION] = before
        return True
    return False


@jit
def is_repeated_retry(m: Mmu, w: int, where: int) -> bool:
    """Whether a recorded -EAGAIN line at ``where`` is the one before it once more.

    The kernel drops the lock after each of them, which takes time.
    """
    win = m.window[w]
    return win[WIN_RETRY_PLACE] == where + 1 and m.ctl[CTL_TS] <= win[WIN_RETRY_TS]


@jit
def note_retry(m: Mmu, w: int, where: int) -> None:
    """A recorded -EAGAIN line at ``where`` was compared."""
    m.window[w, WIN_RETRY_PLACE] = where + 1
    m.window[w, WIN_RETRY_TS] = m.ctl[CTL_TS]


@jit
def get_page_line(m: Mmu, w: int, k: KnobCodes, gfn: int, role: int, flags: int, root_count: int) -> int:
    """kvm_mmu_get_page of the window's shadow part: the child table of the attempt under way."""
    level = (role & LEVEL) + 1
    if 2 <= level <= 3 and reach(m, w, k, place(gfn, level)) == STOP_NO_ROOM:
        return NO_ROOM
    recorded_line(m, w, GET_PAGE, gfn, root_count, role, flags)
    learn_role(m, w, gfn, role)
    return OK


@jit
def go_on_to(m: Mmu, w: int, k: KnobCodes, target: int, wanted: int) -> int:
    """Go on until the environment's ``wanted`` stop, but not behind ``target``: what stopped the walk."""
    while True:
        o = m.window[w, WIN_PENDING] - 1
        if o >= 0 and place_of(m, o) > target:
            return STOP_ATTEMPT
        pending_is_unexpected(m, w)
        stop = step(m, w, k)
        if stop == wanted or stop == STOP_DONE or stop == STOP_NO_ROOM:
            return stop
        if stop == STOP_ATTEMPT:
            m.window[w, WIN_PENDING] = m.ctl[CTL_OUT_TOP]


@jit
def lock_dropped(m: Mmu, w: int, k: KnobCodes, gfn: int, level: int, flushed: int) -> int:
    """v2_lock_dropped: the environment drops the lock at this attempt."""
    if level < 2 or level > 3:
        recorded_line(m, w, V2_LOCK_DROPPED, gfn, level, flushed, 0)
        return OK
    target = place(gfn, level)
    m.window[w, WIN_ENV_DROP] = target + 1
    stop = go_on_to(m, w, k, target, STOP_DROPPED)
    if stop == STOP_NO_ROOM:
        return NO_ROOM
    recorded_line(m, w, V2_LOCK_DROPPED, gfn, level, flushed, 0)
    m.window[w, WIN_ENV_DROP] = 0
    return OK


@jit
def range_yield(m: Mmu, w: int, k: KnobCodes, gfn: int, level: int, flushed: int) -> int:
    """v2_range_yield: the environment makes the walk yield after this head."""
    if level < 2 or level > 3:
        recorded_line(m, w, V2_RANGE_YIELD, gfn, level, flushed, 0)
        return OK
    target = place(gfn, level)
    m.window[w, WIN_ENV_YIELD] = target + 1
    stop = go_on_to(m, w, k, target, STOP_YIELDED)
    if stop == STOP_NO_ROOM:
        return NO_ROOM
    recorded_line(m, w, V2_RANGE_YIELD, gfn, level, flushed, 0)
    m.window[w, WIN_ENV_YIELD] = 0
    return OK


@jit
def peek_next(m: Mmu, w: int, k: KnobCodes) -> None:
    """Go up to the next attempt now: if the lock is dropped there, its line comes after others act."""
    if k.lock_drop_traced and not m.window[w, WIN_PENDING]:
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
            m.window[w, WIN_PENDING] = m.ctl[CTL_OUT_TOP]


@jit
def finish(m: Mmu, w: int, k: KnobCodes) -> int:
    """The window is over: both parts of the range it is in, and the ranges behind it."""
    while True:
        if finish_shadow(m, w, k) == NO_ROOM or finish_tdp(m, w, k) == NO_ROOM:
            return NO_ROOM
        if not m.window[w, WIN_WORDS] or not next_word(m, w, k):
            return OK


# -- the TDP part --------------------------------------------------------------------------------------------


@jit
def tdp_attempt(m: Mmu, w: int, k: KnobCodes, errno: int) -> int:
    """The next attempt of the TDP part, in this range or one behind it: its row, -1 none, -2 no room."""
    while True:
        o = predict_split(m, w, errno)
        if o >= 0 or not m.window[w, WIN_WORDS]:
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
    if not knows_all(m, m.window[w, WIN_VM]) and not m.window[w, WIN_WORDS]:
        result = reach_tdp(m, w, gfn, level)
        if result != STOP_ATTEMPT:
            return NO_ROOM if result == STOP_NO_ROOM else OK
    o = tdp_attempt(m, w, k, 0)
    if o == -2:
        return NO_ROOM
    if o >= 0:
        vm = m.window[w, WIN_VM]
        spte = with_accessed_dirty_of(m.out[o, OUT_SPTE], old, m.vm[vm, VM_LAYOUT])
        if spte | PT_WRITABLE_MASK == old and spte != old and not m.vm[vm, VM_PROBES] & PROBES_FAST_FAULT:
            # fast_page_fault() is the only way to it that has no change line
            spte = old
            m.out16[o, OUT16_FLAGS] |= ATTEMPT_RESTORED
        m.out[o, OUT_SPTE] = spte
    m.window[w, WIN_TDP_PENDING] = o + 1
    return OK


@jit
def tdp_split_line(m: Mmu, w: int, k: KnobCodes, gfn: int, spte: int, level: int, errno: int) -> int:
    """kvm_mmu_split_huge_page of the window's TDP part; -EBUSY and -ENOMEM are the environment's."""
    o = m.window[w, WIN_TDP_PENDING] - 1
    if o < 0 and (errno == -EBUSY or errno == -ENOMEM):
        o = tdp_attempt(m, w, k, -errno)
        if o == -2:
            return NO_ROOM
    count(m, C_EXPECTED, 1)
    if o < 0:
        missing(m, w, ATTEMPT_TDP, gfn, spte, level, errno)
        return OK
    m.window[w, WIN_TDP_PENDING] = 0
    if errno == -EBUSY:
        m.out[o, OUT_SPTE] = spte  # the value that lost the race is the environment's, too
    judge(m, o, gfn, spte, level, errno)
    if m.out16[o, OUT16_FLAGS] & ATTEMPT_RESTORED and m.out16[o, OUT16_MATCH] == MATCHED:
        m.out16[o, OUT16_MATCH] = UNKNOWN
        m.window[w, WIN_RESTORED] += 1
    compare_lines(m, w, True)
    return OK


@jit
def finish_tdp(m: Mmu, w: int, k: KnobCodes) -> int:
    """The TDP part of the window's range is over: huge pages left are splits that the recording lacks."""
    tdp_pending_is_unexpected(m, w)
    if not k.enabled or not m.vm[m.window[w, WIN_VM], VM_HAS_TDP]:
        return OK
    while has_room(m):
        o = predict_split(m, w, 0)
        if o < 0:
            return OK
        unexpected(m, w, o)
        m.window[w, WIN_TDP_GFN] = m.out[o, OUT_GFN] + (1 << (9 * (np.int64(m.out16[o, OUT16_LEVEL]) - 1)))
    return NO_ROOM
