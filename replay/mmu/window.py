"""Windows: one eager split of a slot or range, as rows that can be suspended and resumed.

A window is opened by a probe, a marker or a recorded outcome (control.py), walked by split.py (shadow
MMU) and tdp.py, and closed by the task that opened it.  While the lock is dropped other tasks' events
act on the state in the middle of a window, so all that the walk knows lives in its row of ``Mmu.window``.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.layout import (
    CACHES_UNKNOWN,
    CTL_COUNTERS,
    CTL_FLUSH_TOP,
    CTL_LINE,
    CTL_OUT_TOP,
    CTL_SLOT_TOP,
    CTL_SOURCE_TOP,
    CTL_TS,
    CTL_WINDOW_TOP,
    PROBES_REGION,
    SLOT_ID,
    SLOT_LIVE,
    SLOT_VM,
    VM_BEGUN,
    VM_BORN,
    VM_CACHES,
    VM_DIFFERS,
    VM_DOUBT_LINE,
    VM_LAST_UNPROVEN,
    VM_OLDER,
    VM_PROBES,
    VM_UNPROVEN,
    VM_WINDOW,
)
from replay.mmu.state import Mmu, clear_row
from replay.schema import WindowCause

MEMSLOT_FLAGS = int(WindowCause.MEMSLOT_FLAGS)

WIN_VM = 0
WIN_TASK = 1  # pid
WIN_CAUSE = 2  # schema.WindowCause
WIN_SLOT = 3  # row of Mmu.slot, -1 none
WIN_START = 4
WIN_END = 5  # as the kernel's walk takes it: exclusive
WIN_TARGET = 6
WIN_TS = 7
WIN_LINE = 8
WIN_PHASE = 9
WIN_ALIGNED = 10  # 1 if recorded lines drive the walk, 0 if it runs through at once
# where the walk stands
WIN_LEVEL = 11  # of the heads walked: 3, then 2
WIN_GFN = 12  # of the head, -1 before the first
WIN_IN_HEAD = 13
WIN_POSITION = 14  # next entry of the head's list
WIN_SPARE = 15  # *spp is allocated
WIN_HEAD_FLUSH = 16  # owed by this head
WIN_FLUSH = 17  # owed by earlier heads
WIN_DROPPED = 18  # the lock was dropped in prepare; the blocking allocation is to come
WIN_SNAP_SPTEP = 19  # huge SPTE of the attempt that dropped it
WIN_SNAP_SPTE = 20
WIN_RETRIES = 21
WIN_PENDING = 22  # out row + 1 of an attempt whose recorded line is still to come
WIN_SKIP_UNSYNC = 23  # silent skips of the pass over this head that is under way
WIN_SKIP_INVALID = 24
WIN_SKIP_NOT_NESTED = 25
# the environment, for the next step
WIN_ENV_DROP = 26  # place + 1 of the attempt that drops the lock, ANY_PLACE the next one
WIN_ENV_YIELD = 27  # place + 1 of the head after which the walk yields
WIN_ENV_FAIL_NOWAIT = 28
WIN_ENV_FAIL_KERNEL = 29
# the TDP part
WIN_TDP_GFN = 30  # next gfn to look at
WIN_TDP_PENDING = 31
# what came of it
WIN_ATTEMPTS = 32
WIN_SPLIT = 33
WIN_SKIPPED = 34  # 7 numbers in the order of schema.SKIP_WORDS
WIN_RETRIED = 41
WIN_FLUSHES = 42  # 5 numbers by schema.FlushCause
WIN_FLUSHES_LOST = 47
WIN_TDP_ATTEMPTS = 48
WIN_TDP_SPLIT = 49
WIN_BITS = 51  # which gfns of the word's range are cleared, counted from its first
WIN_LEAKED = 52
WIN_RESTARTED = 53  # the head is to be begun anew after a split
WIN_RETRY_PLACE = 54  # place + 1 of the last recorded -EAGAIN line
WIN_RETRY_TS = 55
WIN_HAS_V2_PROBES = 56
WIN_ZAPPED = 57  # pages that lookups of the split zapped and whose lines are still to come
WIN_WALK_DONE = 58  # the walk over the shadow MMU is at its end
WIN_BY_PROBE = 60  # a probe will tell where the window ends
# KVM_CLEAR_DIRTY_LOG by a marker: one window, one range for each 64-page word
WIN_WORDS = 61  # number of words, 0 for a window with one range
WIN_WORD = 62  # next word
WIN_FIRST_WORD = 63  # of the slot's bitmap
WIN_FIRST_PAGE = 64  # of the slot
WIN_LAST_PAGE = 65  # exclusive
WIN_MASK = 66
WIN_OWED = 67  # SPTEs that earlier heads took away may still be in TLBs
WIN_DROP_IDLE = 68  # the lock was dropped and nothing of this head has been split since
# what the attempt made last came to, for the recorded lines of its child
WIN_CHILD = 69  # the child page, -1
# lines compared in order, see truth.py
WIN_SIMULATED_LINES = 70  # first and last row of Mmu.truth + 1
WIN_RECORDED_LINES = 72
WIN_GET_PAGES = 74  # kvm_mmu_get_page lines: recorded, equal, simulated only, resting on unknown state
WIN_PROBES = 78  # probe lines: the same
WIN_TDP_GET_PAGES = 82  # kvm_mmu_get_page lines of the TDP MMU: the same
WIN_DIFFERENT_LINE = 86  # the first trace line that differs, 0 none does
WIN_OPEN_ENDED = 87  # opened by a range probe: the task's next other event closes it
WIN_CUT = 88  # the trace ends in it: what the walk is ahead has no counterpart
WIN_DOUBTED = 89  # at its end, not all of the state was known; or the trace ends in it
WIN_SPACE = 90  # address space: 0, 1 that of SMM, -1 not known yet
WIN_FLUSH_LINES = 91  # lines of kvm_flush_remote_tlbs in the shadow part: as WIN_GET_PAGES
WIN_REPEATED = 95  # split lines that a lock drop repeats which left no line itself
WIN_RESTORED = 96  # split lines whose SPTE a fault made writable without a line
WIN_COLUMNS = 97

ANY_PLACE = 1 << 62

PHASE_OPEN = 0
PHASE_SHADOW = 1
PHASE_SHADOW_DONE = 2
PHASE_TDP = 3
PHASE_CLOSED = 4

# -- attempts: columns of schema.outcome_schema(), 56 bytes a row, in one table for each width of number
# Mmu.out
OUT_GFN = 0
OUT_SPTE = 1
OUT_SPTEP = 2  # -1 unknown
OUT_COLUMNS = 3
# Mmu.out32
OUT32_WINDOW = 0
OUT32_ROLE = 1
OUT32_RETRIES = 2
OUT32_SOURCE = 3  # row of Mmu.source
OUT32_COLUMNS = 4
# Mmu.out16
OUT16_FLAGS = 0
OUT16_LEVEL = 1
OUT16_OUTCOME = 2  # schema.Outcome, -1 where only recorded
OUT16_ERRNO = 3
OUT16_INSTALLED = 4
OUT16_NONPRESENT = 5
OUT16_REUSED = 6
OUT16_MATCH = 7  # schema.Match
OUT16_COLUMNS = 8

ATTEMPT_TDP = 1  # of the TDP MMU
ATTEMPT_CREATED = 2  # it made the child page
ATTEMPT_FLUSHED = 4  # it owes or did a flush
ATTEMPT_RESTORED = 8  # the SPTE became writable again, and no line shows how

# -- trace lines that attempts stand for, Mmu.source: one for each recorded split line, one for all other
# attempts of an event
SOURCE_TS = 0
SOURCE_LINE = 1
SOURCE_RECORDED = 2  # it is a recorded split line, and the rest is what it says
SOURCE_MMU = 3
SOURCE_GFN = 4
SOURCE_SPTE = 5
SOURCE_LEVEL = 6
SOURCE_ERRNO = 7
SOURCE_COLUMNS = 8

# -- flushes, Mmu.flush ---------------------------------------------------------------------------------
FLUSH_WINDOW = 0
FLUSH_VM = 1
FLUSH_TS = 2
FLUSH_LINE = 3
FLUSH_CAUSE = 4
FLUSH_START = 5
FLUSH_END = 6
FLUSH_COLUMNS = 7

CAUSE_LOCK_DROP = 0
CAUSE_YIELD = 1
CAUSE_WINDOW_END = 2
CAUSE_LINK = 3
CAUSE_ZAP = 4

COUNTERS = (
    "attempts_2m",
    "attempts_1g",
    "split_2m",
    "split_1g",
    "partial",
    "retries",
    "retries_cache",
    "retries_resched",
    "sptes_installed",
    "sptes_left_nonpresent",
    "sptes_reused",
    "shadow_pages_created",
    "shadow_pages_reused",
    "shadow_pages_leaked",
    "tdp_attempts",
    "tdp_split",
    "tdp_failed",
    "tdp_huge_sptes",
    "expected_attempts",
    "env_lock_drops",
    "env_yields",
    "env_alloc_failures",
    "faults_avoided",
    "faults_write_protected",
    "faults_nonpresent",
    "faults_lazy_splits",
    "tdp_faults_avoided",
    "tdp_faults_write_protected",
    "tdp_faults_nonpresent",
    "tdp_faults_lazy_splits",
    # divergences
    "adopted_pages",
    "adopted_tdp_tables",
    "pages_split_already",
    "pages_not_split",
    "unknown_zaps",
    "unknown_pages_existing",
    "already_live_pages_new",
    "used_pages_differ",
    "uncounted_pages",
    "variant_moves",
    "pfn_changes",
    "unplaced_sptes",
    "fault_time_tdp_splits",
    "splits_outside_windows",
    "windows_cut_short",
    "swapped_tdp_changes",
)
FIRST_DIVERGENCE = "adopted_pages"

C_ATTEMPTS_2M = COUNTERS.index("attempts_2m")
C_SPLIT_2M = COUNTERS.index("split_2m")
C_PARTIAL = COUNTERS.index("partial")
C_RETRIES = COUNTERS.index("retries")
C_RETRIES_CACHE = COUNTERS.index("retries_cache")
C_RETRIES_RESCHED = COUNTERS.index("retries_resched")
C_INSTALLED = COUNTERS.index("sptes_installed")
C_NONPRESENT = COUNTERS.index("sptes_left_nonpresent")
C_REUSED = COUNTERS.index("sptes_reused")
C_PAGES_CREATED = COUNTERS.index("shadow_pages_created")
C_PAGES_REUSED = COUNTERS.index("shadow_pages_reused")
C_PAGES_LEAKED = COUNTERS.index("shadow_pages_leaked")
C_TDP_ATTEMPTS = COUNTERS.index("tdp_attempts")
C_TDP_SPLIT = COUNTERS.index("tdp_split")
C_TDP_FAILED = COUNTERS.index("tdp_failed")
C_TDP_HUGE = COUNTERS.index("tdp_huge_sptes")
C_EXPECTED = COUNTERS.index("expected_attempts")
C_ENV_DROPS = COUNTERS.index("env_lock_drops")
C_ENV_YIELDS = COUNTERS.index("env_yields")
C_ENV_ALLOC = COUNTERS.index("env_alloc_failures")
C_FAULTS_AVOIDED = COUNTERS.index("faults_avoided")
C_FAULTS_PROTECTED = COUNTERS.index("faults_write_protected")
C_FAULTS_NONPRESENT = COUNTERS.index("faults_nonpresent")
C_LAZY_SPLITS = COUNTERS.index("faults_lazy_splits")
C_TDP_FAULTS_AVOIDED = COUNTERS.index("tdp_faults_avoided")
C_TDP_FAULTS_PROTECTED = COUNTERS.index("tdp_faults_write_protected")
C_TDP_FAULTS_NONPRESENT = COUNTERS.index("tdp_faults_nonpresent")
C_TDP_LAZY_SPLITS = COUNTERS.index("tdp_faults_lazy_splits")
C_SPLIT_ALREADY = COUNTERS.index("pages_split_already")
C_NOT_SPLIT = COUNTERS.index("pages_not_split")
C_ADOPTED_TDP = COUNTERS.index("adopted_tdp_tables")
C_ADOPTED = COUNTERS.index("adopted_pages")
C_UNKNOWN_ZAPS = COUNTERS.index("unknown_zaps")
C_UNKNOWN_EXISTING = COUNTERS.index("unknown_pages_existing")
C_ALREADY_LIVE = COUNTERS.index("already_live_pages_new")
C_USED_DIFFER = COUNTERS.index("used_pages_differ")
C_UNCOUNTED = COUNTERS.index("uncounted_pages")
C_VARIANT_MOVES = COUNTERS.index("variant_moves")
C_PFN_CHANGES = COUNTERS.index("pfn_changes")
C_UNPLACED = COUNTERS.index("unplaced_sptes")
C_FAULT_SPLITS = COUNTERS.index("fault_time_tdp_splits")
C_STRAY_SPLITS = COUNTERS.index("splits_outside_windows")
C_CUT_SHORT = COUNTERS.index("windows_cut_short")
C_SWAPPED = COUNTERS.index("swapped_tdp_changes")


@jit
def count(m: Mmu, counter: int, n: int) -> None:
    m.ctl[CTL_COUNTERS + counter] += n


@jit
def note_older(m: Mmu, vm: int, counter: int) -> None:
    """Count a sign of state that is older than the trace; after a difference it may come of that instead."""
    m.ctl[CTL_COUNTERS + counter] += 1
    if m.vm[vm, VM_OLDER] == 0 and not m.vm[vm, VM_DIFFERS]:
        m.vm[vm, VM_OLDER] = m.ctl[CTL_LINE]


@jit
def note_root(m: Mmu, vm: int) -> None:
    """A root is made: if that is the first that is seen of a VM, all of its state is in the trace."""
    if not m.vm[vm, VM_BEGUN]:
        m.vm[vm, VM_BEGUN] = 1
        m.vm[vm, VM_BORN] = 1
        if m.vm[vm, VM_PROBES] & PROBES_REGION and spaces_of_slots(m, vm) == 0:
            m.vm[vm, VM_CACHES] = CACHES_UNKNOWN  # its slots are older, and so is it


@jit
def note_begun_before(m: Mmu, vm: int) -> None:
    """An event shows that ``vm`` began before the trace, unless its beginning was seen."""
    if not m.vm[vm, VM_BEGUN]:
        m.vm[vm, VM_BEGUN] = 1
        m.vm[vm, VM_CACHES] = CACHES_UNKNOWN


@jit
def knows_all(m: Mmu, vm: int) -> bool:
    """Whether all state of ``vm`` is known: it began in the trace, and nothing is in doubt up to here."""
    known = m.vm[vm, VM_BORN] != 0 and m.vm[vm, VM_OLDER] == 0
    return known and m.ctl[CTL_LINE] < m.vm[vm, VM_DOUBT_LINE]


@jit
def note_difference(m: Mmu, w: int) -> bool:
    """A line of window ``w`` differs; False if it may rest on state that is older than the trace."""
    vm = m.window[w, WIN_VM]
    if not knows_all(m, vm):
        note_unproven(m, vm)
        return False
    note_proven(m, w)
    return True


@jit
def note_unproven(m: Mmu, vm: int) -> None:
    """The line being replayed shows a difference that proves nothing."""
    if m.vm[vm, VM_UNPROVEN] == 0:
        m.vm[vm, VM_UNPROVEN] = m.ctl[CTL_LINE]
    m.vm[vm, VM_LAST_UNPROVEN] = m.ctl[CTL_LINE]


@jit
def note_proven(m: Mmu, w: int) -> None:
    """The line being replayed shows that window ``w`` is not as simulated."""
    m.vm[m.window[w, WIN_VM], VM_DIFFERS] = 1
    if m.window[w, WIN_DIFFERENT_LINE] == 0:
        m.window[w, WIN_DIFFERENT_LINE] = m.ctl[CTL_LINE]


@jit
def note_tdp_difference(m: Mmu, w: int) -> bool:
    """As :func:`note_difference`, of an attempt of the TDP MMU that was foreseen.

    A line of the trace showed its huge SPTE, however late the trace begins; but for that the window has
    to be one of the address space that it is taken for.
    """
    vm = m.window[w, WIN_VM]
    doubtful = m.ctl[CTL_LINE] >= m.vm[vm, VM_DOUBT_LINE]
    if doubtful or not knows_space(m, w):
        return note_difference(m, w)
    note_proven(m, w)
    return True


@jit
def knows_space(m: Mmu, w: int) -> bool:
    """Whether no slot that is older than the trace can be the one that window ``w`` is of."""
    win = m.window[w]
    if win[WIN_SLOT] < 0 or win[WIN_SPACE] < 0:
        return False
    if win[WIN_CAUSE] == MEMSLOT_FLAGS:
        return True  # its own line names the slot
    return spaces_of_slots(m, win[WIN_VM]) == 3


@jit
def spaces_of_slots(m: Mmu, vm: int) -> int:
    """A bit for each address space of which ``vm`` has memslots that are known."""
    spaces = 0
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if m.slot[s, SLOT_LIVE] and m.slot[s, SLOT_VM] == vm:
            spaces |= 1 << (m.slot[s, SLOT_ID] >> 16)
    return spaces


@jit
def open_window(m: Mmu, vm: int, pid: int, cause: int, slot: int, start: int, end: int, target: int) -> int:
    """A new window of ``vm`` over gfns [start, end); its number."""
    w = m.ctl[CTL_WINDOW_TOP]
    m.ctl[CTL_WINDOW_TOP] += 1
    clear_row(m.window[w], m.window.shape[1])
    m.window[w, WIN_VM] = vm
    m.window[w, WIN_TASK] = pid
    m.window[w, WIN_CAUSE] = cause
    m.window[w, WIN_SLOT] = slot
    m.window[w, WIN_SPACE] = m.slot[slot, SLOT_ID] >> 16 if slot >= 0 else 0
    m.window[w, WIN_START] = start
    m.window[w, WIN_END] = end
    m.window[w, WIN_TARGET] = target
    m.window[w, WIN_TS] = m.ctl[CTL_TS]
    m.window[w, WIN_LINE] = m.ctl[CTL_LINE]
    m.window[w, WIN_LEVEL] = 3
    m.window[w, WIN_GFN] = -1
    m.vm[vm, VM_WINDOW] = w
    return w


@jit
def place(gfn: int, level: int) -> int:
    """Where a walk stands, in the order of the walk: all 1G heads come before all 2M heads."""
    return ((3 - level) << 48) + (gfn >> (9 * (level - 1)) << (9 * (level - 1)))


@jit
def place_of(m: Mmu, o: int) -> int:
    """The place of attempt ``o``."""
    return place(m.out[o, OUT_GFN], np.int64(m.out16[o, OUT16_LEVEL]))


@jit
def record_flush(m: Mmu, w: int, cause: int, start: int, end: int) -> None:
    """One TLB flush of window ``w`` over gfns [start, end)."""
    f = m.ctl[CTL_FLUSH_TOP]
    m.ctl[CTL_FLUSH_TOP] += 1
    m.flush[f, FLUSH_WINDOW] = w
    m.flush[f, FLUSH_VM] = m.window[w, WIN_VM]
    m.flush[f, FLUSH_TS] = m.ctl[CTL_TS]
    m.flush[f, FLUSH_LINE] = m.ctl[CTL_LINE]
    m.flush[f, FLUSH_CAUSE] = cause
    m.flush[f, FLUSH_START] = start
    m.flush[f, FLUSH_END] = end
    m.window[w, WIN_FLUSHES + cause] += 1


@jit
def new_outcome(m: Mmu, w: int, flags: int) -> int:
    """A new row of the tables of attempts for window ``w``, its figures zero and its match unchecked."""
    o = m.ctl[CTL_OUT_TOP]
    m.ctl[CTL_OUT_TOP] += 1
    m.out[o, OUT_SPTEP] = -1
    m.out32[o, OUT32_WINDOW] = w
    m.out32[o, OUT32_SOURCE] = source_of_event(m)
    m.out16[o, OUT16_FLAGS] = flags
    return o


@jit
def new_source(m: Mmu) -> int:
    """A new row of ``m.source`` for the event being replayed."""
    s = m.ctl[CTL_SOURCE_TOP]
    m.ctl[CTL_SOURCE_TOP] += 1
    m.source[s, SOURCE_TS] = m.ctl[CTL_TS]
    m.source[s, SOURCE_LINE] = m.ctl[CTL_LINE]
    return s


@jit
def source_of_event(m: Mmu) -> int:
    """The row of ``m.source`` for attempts that the event being replayed causes."""
    s = m.ctl[CTL_SOURCE_TOP] - 1
    if s < 0 or m.source[s, SOURCE_LINE] != m.ctl[CTL_LINE] or m.source[s, SOURCE_TS] != m.ctl[CTL_TS]:
        return new_source(m)
    return new_source(m) if m.source[s, SOURCE_RECORDED] else s
