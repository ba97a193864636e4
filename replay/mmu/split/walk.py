"""Eager page splitting of the shadow MMU, as a walk that stops at everything a trace can show.

Mirrors kvm_rmap_try_split_huge_pages() of v2 20/26 and kvm_shadow_mmu_try_split_huge_pages() of
6.0 onward, which differ in knobs only: all 1G heads of the range, then all 2M heads; each head is
walked from its start again after every split and lock drop.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.mmu_pages import available_pages
from replay.mmu.kernel.rmap import pte_list_get, rmap_head
from replay.mmu.kernel.shadow_page import get_spte
from replay.mmu.kernel.spte import is_last_spte
from replay.mmu.recorded.lines import simulated_flush, simulated_line
from replay.mmu.split.attempt import begin_attempt, end_attempt
from replay.mmu.split.huge_page import split_huge_page
from replay.mmu.split.prepare import (
    RESTART_SPLIT,
    after_lock_drop,
    bound_split_caches,
    caches_short,
    drop_lock,
    need_resched,
    simulated_slot_flush,
    take_spare,
    topup_split_caches,
)
from replay.mmu.split.rmap_heads import END_OF_HEAD, enter_next_head, leave_head, restart_head
from replay.mmu.split.window import count
from replay.mmu.state.counters import Counter
from replay.mmu.state.growth import has_room_for_next
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import PageFlag
from replay.policy import AllocFailure, KnobCodes, SplitCaches, Unsync
from replay.schema import EAGAIN, ENOMEM, ENOSPC, EOPNOTSUPP, FlushCause, Kind, Outcome, Role

# what stopped the walk
STOP_DONE = 0
STOP_ATTEMPT = 1
STOP_DROPPED = 2
STOP_YIELDED = 3
STOP_NO_ROOM = 4
STOP_PEEKED = 5


@jit
def should_split(m: Mmu, w: int, sptep: int, k: KnobCodes) -> bool:
    """should_split_huge_page(): what is skipped here leaves no trace in the kernel."""
    win = m.window[w]
    sp = sptep // 512
    level = win.level
    if not is_last_spte(get_spte(m, sp, sptep % 512), level):
        return False
    if m.sp[sp].page_flags & PageFlag.INVALID:
        win.skip_invalid += 1
        return False
    if k.unsync == Unsync.SKIP and m.sp[sp].page_flags & PageFlag.UNSYNC:
        win.skip_unsync += 1
        return False
    if k.nested_only and m.vm[win.vm].raw_roles and not m.sp[sp].key & Role.GUEST_MODE:
        win.skip_not_nested += 1
        return False
    return True


@jit
def try_split(m: Mmu, w: int, sptep: int, k: KnobCodes, resched: tuple[int, int]) -> int:
    """One attempt at the huge SPTE ``sptep``: STOP_ATTEMPT, or STOP_DROPPED where the drop is silent."""
    win = m.window[w]
    vm = win.vm
    spte = get_spte(m, sptep // 512, sptep % 512)
    available = available_pages(m, vm)
    simulated_line(m, w, Kind.V2_PREPARE, win.gfn, win.level, available, 0)
    if available <= k.min_free_pages:
        o = begin_attempt(m, w, sptep, spte)
        end_attempt(m, w, o, Outcome.NO_FREE_PAGES, ENOSPC)
        win.position = END_OF_HEAD
        return STOP_ATTEMPT
    dropping = need_resched(m, w, resched[0], resched[1])
    if k.split_caches == SplitCaches.MERGED:
        if m.vm[vm].caches and win.aligned:
            bound_split_caches(m, vm, dropping, k)
        short = caches_short(m, vm, k)
        if short or dropping:
            o = begin_attempt(m, w, sptep, spte)
            topup_split_caches(m, vm, k)
            if not short:
                count(m, Counter.ENV_LOCK_DROPS, 1)
            if win.env_fail_kernel:
                win.env_fail_kernel = 0
                end_attempt(m, w, o, Outcome.NO_MEMORY, ENOMEM)
                win.position = END_OF_HEAD
                return STOP_ATTEMPT
            count(m, Counter.RETRIES_CACHE if short else Counter.RETRIES_RESCHED, 1)
            end_attempt(m, w, o, Outcome.RETRY, EAGAIN)
            restart_head(m, w)
            return STOP_ATTEMPT
    else:
        failed = win.env_fail_nowait != 0
        win.env_fail_nowait = 0
        if failed:
            take_spare(m, w, k)
            win.spare = 0  # *spp is NULL, which v2 does not notice
            simulated_line(m, w, Kind.V2_ALLOC_FAILED, win.gfn, 0, 1, 0)
        if dropping or (failed and k.alloc_failure != AllocFailure.UNCHECKED):
            drop_lock(m, w, sptep, spte)
            return STOP_DROPPED
        if not failed:
            take_spare(m, w, k)
    o = begin_attempt(m, w, sptep, spte)
    if split_huge_page(m, w, sptep, o, k):
        end_attempt(m, w, o, Outcome.SPLIT, 0)
        restart_head(m, w)
        win.restarted = 1
    else:
        end_attempt(m, w, o, Outcome.EXISTING_CHILD, EOPNOTSUPP)
        win.position += 1
    return STOP_ATTEMPT


@jit
def end_walk(m: Mmu, w: int) -> None:
    """The last head was left: the flush that is still owed, for the whole slot."""
    win = m.window[w]
    owed = win.flush
    if owed:
        simulated_slot_flush(m, w, Kind.V2_FINAL_FLUSH)
        simulated_flush(m, w, FlushCause.WINDOW_END, win.start, win.end)
        win.flush = 0
        win.owed = 0
    simulated_line(m, w, Kind.V2_TRY_SPLIT_END, win.start, 0, win.end, owed)
    win.walk_done = 1


@jit
def advance(m: Mmu, w: int, k: KnobCodes, resched: tuple[int, int], peek: bool) -> int:
    """Walk on to the next thing that a trace can show: one of STOP_*.

    ``resched``: (drop the lock at every n-th attempt or 0, seed of random drops or -1).
    After STOP_NO_ROOM the walk goes on where it was.  With ``peek`` it stops before the next attempt.
    """
    win = m.window[w]
    while True:
        if not has_room_for_next(m):
            return STOP_NO_ROOM
        if win.walk_done:
            return STOP_DONE
        if win.restarted:
            # printed after the line of the split, at which the walk has stopped
            win.restarted = 0
            simulated_line(m, w, Kind.V2_RESTART, win.gfn, win.level, RESTART_SPLIT, 0)
        if win.dropped and after_lock_drop(m, w, k):
            return STOP_ATTEMPT
        if not win.in_head and not enter_next_head(m, w):
            end_walk(m, w)
            return STOP_DONE
        sptep = -1
        if win.position != END_OF_HEAD:
            sptep = pte_list_get(m, rmap_head(m, win.vm, win.gfn, win.level), win.position)
        if sptep < 0:
            if leave_head(m, w):
                return STOP_YIELDED
        elif should_split(m, w, sptep, k):
            return STOP_PEEKED if peek else try_split(m, w, sptep, k, resched)
        else:
            win.position += 1
