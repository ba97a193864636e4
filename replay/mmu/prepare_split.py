"""What must be there before a split: a spare page or full caches, and nobody who waits for the lock.

v2 drops the lock in prepare_to_split_huge_page() to allocate; from 6.0 onward
need_topup_split_caches_or_resched() sends the attempt back with -EAGAIN.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.attempt import NO_MEMORY, begin_attempt, end_attempt
from replay.mmu.kinds import V2_ALLOC_FAILED, V2_DROP_FLUSH, V2_LOCK_DROPPED, V2_RESTART, V2_SP_LEAKED
from replay.mmu.layout import (
    CACHES_BOUNDED,
    CACHES_UNKNOWN,
    CTL_ATTEMPTS_SEEN,
    CTL_RNG,
    SLOT_BASE,
    SLOT_NPAGES,
    VM_CACHES,
    VM_DESC,
    VM_HEADERS,
    VM_PAGES,
    VM_RESCHED,
)
from replay.mmu.slot_rmap_walk import END_OF_HEAD, restart_head
from replay.mmu.state import Mmu, mix
from replay.mmu.truth import ANY, simulated_flush, simulated_line
from replay.mmu.window import (
    ANY_PLACE,
    C_ENV_DROPS,
    C_PAGES_LEAKED,
    C_RETRIES,
    C_RETRIES_RESCHED,
    CAUSE_LOCK_DROP,
    WIN_DROP_IDLE,
    WIN_DROPPED,
    WIN_END,
    WIN_ENV_DROP,
    WIN_ENV_FAIL_KERNEL,
    WIN_FLUSHES_LOST,
    WIN_GFN,
    WIN_HEAD_FLUSH,
    WIN_LEAKED,
    WIN_LEVEL,
    WIN_OWED,
    WIN_POSITION,
    WIN_RETRIED,
    WIN_RETRIES,
    WIN_SLOT,
    WIN_SNAP_SPTE,
    WIN_SNAP_SPTEP,
    WIN_SPARE,
    WIN_START,
    WIN_VM,
    count,
    place,
)
from replay.policy import KnobCodes, SparePage
from replay.schema import ENOMEM

SPARE_LEAK = int(SparePage.LEAK)


RESTART_SPLIT, RESTART_DROPPED = 0, 1
"""Why a head is begun anew, as v2_restart prints it."""


@jit
def simulated_slot_flush(m: Mmu, w: int, kind: int) -> None:
    """The probe line of a flush of the window's whole memslot (kvm_arch_flush_remote_tlbs_memslot)."""
    s = m.window[w, WIN_SLOT]
    if s < 0:
        simulated_line(m, w, kind, ANY, 0, ANY, 0)
        return
    base = m.slot[s, SLOT_BASE]
    simulated_line(m, w, kind, base, 0, base + m.slot[s, SLOT_NPAGES], 0)


@jit
def take_spare(m: Mmu, w: int, k: KnobCodes) -> None:
    """*spp = alloc(...): a page that was there already is lost under spare_page=leak."""
    win = m.window[w]
    if win[WIN_SPARE] and k.spare_page == SPARE_LEAK:
        win[WIN_LEAKED] += 1
        simulated_line(m, w, V2_SP_LEAKED, win[WIN_GFN], win[WIN_LEVEL], 0, 0)
        count(m, C_PAGES_LEAKED, 1)
    win[WIN_SPARE] = 1


@jit
def need_resched(m: Mmu, w: int, resched_every: int, resched_seed: int) -> bool:
    """Whether the next attempt finds need_resched or a contended lock: from the environment."""
    win = m.window[w]
    if resched_every < 0:
        return False
    if win[WIN_ENV_DROP] == ANY_PLACE or win[WIN_ENV_DROP] == place(win[WIN_GFN], win[WIN_LEVEL]) + 1:
        win[WIN_ENV_DROP] = 0
        return True
    if m.vm[win[WIN_VM], VM_RESCHED]:
        m.vm[win[WIN_VM], VM_RESCHED] = 0
        return True
    m.ctl[CTL_ATTEMPTS_SEEN] += 1
    if win[WIN_RETRIES] or win[WIN_DROP_IDLE]:
        return False  # a lock drop is no progress: v2 begins the head anew, and could do so forever
    if resched_every:
        return m.ctl[CTL_ATTEMPTS_SEEN] % resched_every == 0
    if resched_seed >= 0:
        m.ctl[CTL_RNG] = mix(m.ctl[CTL_RNG] + resched_seed + 1)
        return m.ctl[CTL_RNG] & 63 == 0
    return False


@jit
def drop_lock(m: Mmu, w: int, sptep: int, spte: int) -> None:
    """The drop_lock label of prepare_to_split_huge_page(): the flush owed by this head comes first."""
    win = m.window[w]
    simulated_line(m, w, V2_LOCK_DROPPED, win[WIN_GFN], win[WIN_LEVEL], win[WIN_HEAD_FLUSH], 0)
    if win[WIN_HEAD_FLUSH]:
        simulated_slot_flush(m, w, V2_DROP_FLUSH)
        simulated_flush(m, w, CAUSE_LOCK_DROP, win[WIN_START], win[WIN_END])
        win[WIN_HEAD_FLUSH] = 0
        win[WIN_OWED] = 0  # the whole slot was flushed
    elif win[WIN_OWED]:
        win[WIN_FLUSHES_LOST] += 1  # the debt of an earlier head is not paid here
    win[WIN_DROPPED] = 1
    win[WIN_DROP_IDLE] = 1
    win[WIN_SNAP_SPTEP] = sptep
    win[WIN_SNAP_SPTE] = spte
    win[WIN_RETRIED] += 1
    win[WIN_RETRIES] += 1
    count(m, C_RETRIES, 1)
    count(m, C_RETRIES_RESCHED, 1)
    count(m, C_ENV_DROPS, 1)


@jit
def after_lock_drop(m: Mmu, w: int, k: KnobCodes) -> bool:
    """The blocking allocation of prepare; True if it failed, which ends the head with -ENOMEM."""
    win = m.window[w]
    win[WIN_DROPPED] = 0
    take_spare(m, w, k)
    if not win[WIN_ENV_FAIL_KERNEL]:
        simulated_line(m, w, V2_RESTART, win[WIN_GFN], win[WIN_LEVEL], RESTART_DROPPED, 0)
        restart_head(m, w)
        return False
    simulated_line(m, w, V2_ALLOC_FAILED, win[WIN_GFN], 0, 0, 0)
    win[WIN_ENV_FAIL_KERNEL] = 0
    win[WIN_SPARE] = 0
    o = begin_attempt(m, w, win[WIN_SNAP_SPTEP], win[WIN_SNAP_SPTE])
    end_attempt(m, w, o, NO_MEMORY, ENOMEM)
    win[WIN_POSITION] = END_OF_HEAD
    return True


@jit
def caches_short(m: Mmu, vm: int, k: KnobCodes) -> bool:
    """need_topup_split_caches_or_resched() without the resched part."""
    return m.vm[vm, VM_DESC] < k.desc_min or m.vm[vm, VM_HEADERS] < 1 or m.vm[vm, VM_PAGES] < 1


@jit
def bound_split_caches(m: Mmu, vm: int, filled: bool, k: KnobCodes) -> None:
    """What the split caches hold is older than the trace: at most all that they can, as once they are filled.

    They are short then only where they must be.
    """
    if filled or m.vm[vm, VM_CACHES] == CACHES_UNKNOWN:
        m.vm[vm, VM_DESC] = k.desc_capacity
        m.vm[vm, VM_HEADERS] = m.vm[vm, VM_PAGES] = k.page_capacity
        m.vm[vm, VM_CACHES] = CACHES_BOUNDED


@jit
def topup_split_caches(m: Mmu, vm: int, k: KnobCodes) -> None:
    if m.vm[vm, VM_DESC] < k.desc_min:
        m.vm[vm, VM_DESC] = k.desc_capacity
    if m.vm[vm, VM_HEADERS] < 1:
        m.vm[vm, VM_HEADERS] = k.page_capacity
    if m.vm[vm, VM_PAGES] < 1:
        m.vm[vm, VM_PAGES] = k.page_capacity
