"""What must be there before a split: a spare page or full caches, and nobody who waits for the lock.

v2 drops the lock in prepare_to_split_huge_page() to allocate; from 6.0 onward
need_topup_split_caches_or_resched() sends the attempt back with -EAGAIN.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.recorded.lines import ANY, simulated_flush, simulated_line
from replay.mmu.split.attempt import begin_attempt, end_attempt
from replay.mmu.split.rmap_heads import END_OF_HEAD, restart_head
from replay.mmu.split.window import ANY_PLACE, count, place
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu, mix
from replay.mmu.state.records import CacheKnown
from replay.policy import KnobCodes, SparePage
from replay.schema import ENOMEM, FlushCause, Kind, Outcome

RESTART_SPLIT, RESTART_DROPPED = 0, 1
"""Why a head is begun anew, as v2_restart prints it."""


@jit
def simulated_slot_flush(m: Mmu, w: int, kind: int) -> None:
    """The probe line of a flush of the window's whole memslot (kvm_arch_flush_remote_tlbs_memslot)."""
    s = m.window[w].slot
    if s < 0:
        simulated_line(m, w, kind, ANY, 0, ANY, 0)
        return
    base = m.slot[s].base_gfn
    simulated_line(m, w, kind, base, 0, base + m.slot[s].npages, 0)


@jit
def take_spare(m: Mmu, w: int, k: KnobCodes) -> None:
    """*spp = alloc(...): a page that was there already is lost under spare_page=leak."""
    win = m.window[w]
    if win.spare and k.spare_page == SparePage.LEAK:
        win.leaked += 1
        simulated_line(m, w, Kind.V2_SP_LEAKED, win.gfn, win.level, 0, 0)
        count(m, Counter.SHADOW_PAGES_LEAKED, 1)
    win.spare = 1


@jit
def need_resched(m: Mmu, w: int, resched_every: int, resched_seed: int) -> bool:
    """Whether the next attempt finds need_resched or a contended lock: from the environment."""
    win = m.window[w]
    if resched_every < 0:
        return False
    if win.env_drop == ANY_PLACE or win.env_drop == place(win.gfn, win.level) + 1:
        win.env_drop = 0
        return True
    if m.vm[win.vm].resched:
        m.vm[win.vm].resched = 0
        return True
    m.ctl.attempts_seen += 1
    if win.retries or win.drop_idle:
        return False  # a lock drop is no progress: v2 begins the head anew, and could do so forever
    if resched_every:
        return m.ctl.attempts_seen % resched_every == 0
    if resched_seed >= 0:
        m.ctl.rng = mix(m.ctl.rng + resched_seed + 1)
        return m.ctl.rng & 63 == 0
    return False


@jit
def drop_lock(m: Mmu, w: int, sptep: int, spte: int) -> None:
    """The drop_lock label of prepare_to_split_huge_page(): the flush owed by this head comes first."""
    win = m.window[w]
    simulated_line(m, w, Kind.V2_LOCK_DROPPED, win.gfn, win.level, win.head_flush, 0)
    if win.head_flush:
        simulated_slot_flush(m, w, Kind.V2_DROP_FLUSH)
        simulated_flush(m, w, FlushCause.LOCK_DROP, win.start, win.end)
        win.head_flush = 0
        win.owed = 0  # the whole slot was flushed
    elif win.owed:
        win.flushes_lost += 1  # the debt of an earlier head is not paid here
    win.dropped = 1
    win.drop_idle = 1
    win.snap_sptep = sptep
    win.snap_spte = spte
    win.retried += 1
    win.retries += 1
    count(m, Counter.RETRIES, 1)
    count(m, Counter.RETRIES_RESCHED, 1)
    count(m, Counter.ENV_LOCK_DROPS, 1)


@jit
def after_lock_drop(m: Mmu, w: int, k: KnobCodes) -> bool:
    """The blocking allocation of prepare; True if it failed, which ends the head with -ENOMEM."""
    win = m.window[w]
    win.dropped = 0
    take_spare(m, w, k)
    if not win.env_fail_kernel:
        simulated_line(m, w, Kind.V2_RESTART, win.gfn, win.level, RESTART_DROPPED, 0)
        restart_head(m, w)
        return False
    simulated_line(m, w, Kind.V2_ALLOC_FAILED, win.gfn, 0, 0, 0)
    win.env_fail_kernel = 0
    win.spare = 0
    o = begin_attempt(m, w, win.snap_sptep, win.snap_spte)
    end_attempt(m, w, o, Outcome.NO_MEMORY, ENOMEM)
    win.position = END_OF_HEAD
    return True


@jit
def caches_short(m: Mmu, vm: int, k: KnobCodes) -> bool:
    """need_topup_split_caches_or_resched() without the resched part."""
    return m.vm[vm].desc_cache < k.desc_min or m.vm[vm].header_cache < 1 or m.vm[vm].page_cache < 1


@jit
def bound_split_caches(m: Mmu, vm: int, filled: bool, k: KnobCodes) -> None:
    """What the split caches hold is older than the trace: at most all that they can, as once they are filled.

    They are short then only where they must be.
    """
    if filled or m.vm[vm].caches == CacheKnown.UNKNOWN:
        m.vm[vm].desc_cache = k.desc_capacity
        m.vm[vm].header_cache = m.vm[vm].page_cache = k.page_capacity
        m.vm[vm].caches = CacheKnown.BOUNDED


@jit
def topup_split_caches(m: Mmu, vm: int, k: KnobCodes) -> None:
    """topup_split_caches() of 6.0: refill each cache that holds less than its minimum."""
    if m.vm[vm].desc_cache < k.desc_min:
        m.vm[vm].desc_cache = k.desc_capacity
    if m.vm[vm].header_cache < 1:
        m.vm[vm].header_cache = k.page_capacity
    if m.vm[vm].page_cache < 1:
        m.vm[vm].page_cache = k.page_capacity
