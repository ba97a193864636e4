"""Eager page splitting of the shadow MMU, as a walk that stops at everything a trace can show.

Mirrors kvm_rmap_try_split_huge_pages() of v2 20/26 and kvm_shadow_mmu_try_split_huge_pages() of
6.0 onward, which differ in knobs only: all 1G heads of the range, then all 2M heads; each head is
walked from its start again after every split and lock drop.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.attempt import (
    EXISTING_CHILD,
    NO_FREE_PAGES,
    NO_MEMORY,
    RETRY,
    SPLIT,
    begin_attempt,
    end_attempt,
)
from replay.mmu.kinds import V2_ALLOC_FAILED, V2_FINAL_FLUSH, V2_PREPARE, V2_RESTART, V2_TRY_SPLIT_END
from replay.mmu.layout import FLAG_INVALID, FLAG_UNSYNC, SP32_FLAGS, SP_KEY, VM_CACHES, VM_RAW_ROLES
from replay.mmu.mmu_pages import available_pages
from replay.mmu.prepare_split import (
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
from replay.mmu.rmap import pte_list_get, rmap_head
from replay.mmu.role import GUEST_MODE
from replay.mmu.room import has_room_for_next
from replay.mmu.shadow_page import get_spte
from replay.mmu.slot_rmap_walk import END_OF_HEAD, enter_next_head, leave_head, restart_head
from replay.mmu.split_huge_page import CACHES_MERGED, split_huge_page
from replay.mmu.spte import is_last_spte
from replay.mmu.state import Mmu
from replay.mmu.truth import simulated_flush, simulated_line
from replay.mmu.window import (
    C_ENV_DROPS,
    C_RETRIES_CACHE,
    C_RETRIES_RESCHED,
    CAUSE_WINDOW_END,
    WIN_ALIGNED,
    WIN_DROPPED,
    WIN_END,
    WIN_ENV_FAIL_KERNEL,
    WIN_ENV_FAIL_NOWAIT,
    WIN_FLUSH,
    WIN_GFN,
    WIN_IN_HEAD,
    WIN_LEVEL,
    WIN_OWED,
    WIN_POSITION,
    WIN_RESTARTED,
    WIN_SKIP_INVALID,
    WIN_SKIP_NOT_NESTED,
    WIN_SKIP_UNSYNC,
    WIN_SPARE,
    WIN_START,
    WIN_VM,
    WIN_WALK_DONE,
    count,
)
from replay.policy import AllocFailure, KnobCodes, Unsync
from replay.schema import EAGAIN, ENOMEM, ENOSPC, EOPNOTSUPP

UNSYNC_SKIP = int(Unsync.SKIP)
ALLOC_UNCHECKED = int(AllocFailure.UNCHECKED)

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
    level = win[WIN_LEVEL]
    if not is_last_spte(get_spte(m, sp, sptep % 512), level):
        return False
    if m.sp32[sp, SP32_FLAGS] & FLAG_INVALID:
        win[WIN_SKIP_INVALID] += 1
        return False
    if k.unsync == UNSYNC_SKIP and m.sp32[sp, SP32_FLAGS] & FLAG_UNSYNC:
        win[WIN_SKIP_UNSYNC] += 1
        return False
    if k.nested_only and m.vm[win[WIN_VM], VM_RAW_ROLES] and not m.sp[sp, SP_KEY] & GUEST_MODE:
        win[WIN_SKIP_NOT_NESTED] += 1
        return False
    return True


@jit
def try_split(m: Mmu, w: int, sptep: int, k: KnobCodes, resched: tuple[int, int]) -> int:
    """One attempt at the huge SPTE ``sptep``: STOP_ATTEMPT, or STOP_DROPPED where the drop is silent."""
    win = m.window[w]
    vm = win[WIN_VM]
    spte = get_spte(m, sptep // 512, sptep % 512)
    available = available_pages(m, vm)
    simulated_line(m, w, V2_PREPARE, win[WIN_GFN], win[WIN_LEVEL], available, 0)
    if available <= k.min_free_pages:
        o = begin_attempt(m, w, sptep, spte)
        end_attempt(m, w, o, NO_FREE_PAGES, ENOSPC)
        win[WIN_POSITION] = END_OF_HEAD
        return STOP_ATTEMPT
    dropping = need_resched(m, w, resched[0], resched[1])
    if k.split_caches == CACHES_MERGED:
        if m.vm[vm, VM_CACHES] and win[WIN_ALIGNED]:
            bound_split_caches(m, vm, dropping, k)
        short = caches_short(m, vm, k)
        if short or dropping:
            o = begin_attempt(m, w, sptep, spte)
            topup_split_caches(m, vm, k)
            if not short:
                count(m, C_ENV_DROPS, 1)
            if win[WIN_ENV_FAIL_KERNEL]:
                win[WIN_ENV_FAIL_KERNEL] = 0
                end_attempt(m, w, o, NO_MEMORY, ENOMEM)
                win[WIN_POSITION] = END_OF_HEAD
                return STOP_ATTEMPT
            count(m, C_RETRIES_CACHE if short else C_RETRIES_RESCHED, 1)
            end_attempt(m, w, o, RETRY, EAGAIN)
            restart_head(m, w)
            return STOP_ATTEMPT
    else:
        failed = win[WIN_ENV_FAIL_NOWAIT] != 0
        win[WIN_ENV_FAIL_NOWAIT] = 0
        if failed:
            take_spare(m, w, k)
            win[WIN_SPARE] = 0  # *spp is NULL, which v2 does not notice
            simulated_line(m, w, V2_ALLOC_FAILED, win[WIN_GFN], 0, 1, 0)
        if dropping or (failed and k.alloc_failure != ALLOC_UNCHECKED):
            drop_lock(m, w, sptep, spte)
            return STOP_DROPPED
        if not failed:
            take_spare(m, w, k)
    o = begin_attempt(m, w, sptep, spte)
    if split_huge_page(m, w, sptep, o, k):
        end_attempt(m, w, o, SPLIT, 0)
        restart_head(m, w)
        win[WIN_RESTARTED] = 1
    else:
        end_attempt(m, w, o, EXISTING_CHILD, EOPNOTSUPP)
        win[WIN_POSITION] += 1
    return STOP_ATTEMPT


@jit
def end_walk(m: Mmu, w: int) -> None:
    """The last head was left: the flush that is still owed, for the whole slot."""
    win = m.window[w]
    owed = win[WIN_FLUSH]
    if owed:
        simulated_slot_flush(m, w, V2_FINAL_FLUSH)
        simulated_flush(m, w, CAUSE_WINDOW_END, win[WIN_START], win[WIN_END])
        win[WIN_FLUSH] = 0
        win[WIN_OWED] = 0
    simulated_line(m, w, V2_TRY_SPLIT_END, win[WIN_START], 0, win[WIN_END], owed)
    win[WIN_WALK_DONE] = 1


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
        if win[WIN_WALK_DONE]:
            return STOP_DONE
        if win[WIN_RESTARTED]:
            # printed after the line of the split, at which the walk has stopped
            win[WIN_RESTARTED] = 0
            simulated_line(m, w, V2_RESTART, win[WIN_GFN], win[WIN_LEVEL], RESTART_SPLIT, 0)
        if win[WIN_DROPPED] and after_lock_drop(m, w, k):
            return STOP_ATTEMPT
        if not win[WIN_IN_HEAD] and not enter_next_head(m, w):
            end_walk(m, w)
            return STOP_DONE
        sptep = -1
        if win[WIN_POSITION] != END_OF_HEAD:
            sptep = pte_list_get(
                m, rmap_head(m, win[WIN_VM], win[WIN_GFN], win[WIN_LEVEL]), win[WIN_POSITION]
            )
        if sptep < 0:
            if leave_head(m, w):
                return STOP_YIELDED
        elif should_split(m, w, sptep, k):
            return STOP_PEEKED if peek else try_split(m, w, sptep, k, resched)
        else:
            win[WIN_POSITION] += 1
