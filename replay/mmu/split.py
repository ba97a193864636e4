"""Eager page splitting of the shadow MMU, as a walk that stops at everything a trace can show.

Mirrors kvm_rmap_try_split_huge_pages() of v2 20/26 and kvm_shadow_mmu_try_split_huge_pages() of
6.0 onward, which differ in knobs only: all 1G heads of the range, then all 2M heads; each head is
walked from its start again after every split and lock drop.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.census import census_attempt, census_descriptors, census_head
from replay.mmu.layout import (
    CTL_ATTEMPTS_SEEN,
    CTL_DESC_USED,
    CTL_RNG,
    FLAG_INVALID,
    FLAG_LIVE,
    FLAG_SPLIT,
    FLAG_UNSYNC,
    GIB_HEAD,
    GIB_REGION,
    REGION_HEAD,
    SP32_FLAGS,
    SP32_NEXT,
    SP_GFN,
    SP_KEY,
    SP_PAGE,
    VM_DESC,
    VM_END,
    VM_EPT,
    VM_HAS_TDP,
    VM_HEADERS,
    VM_MAX,
    VM_PAGES,
    VM_PEAK,
    VM_RESCHED,
    VM_USED,
)
from replay.mmu.rmap import pte_list_get, rmap_head
from replay.mmu.role import ACC_EXEC, GEN, GUEST_MODE, ROLE_MASK, child_key, key_access, key_level, key_vm
from replay.mmu.room import has_room_for_next
from replay.mmu.shadow_page import (
    alloc_shadow_page,
    drop_spte,
    fill_uniform,
    find_shadow_page,
    free_shadow_page,
    get_spte,
    install_leaf,
    link_shadow_page,
    set_spte,
    sptep_access,
    sptep_gfn,
    unlink_shadow_page,
)
from replay.mmu.spte import LEFT_NONPRESENT, is_last_spte, is_shadow_present_pte, make_huge_page_split_spte
from replay.mmu.state import Mmu, find_gib, mix, page_bucket
from replay.mmu.window import (
    ANY_PLACE,
    ATTEMPT_CREATED,
    ATTEMPT_FLUSHED,
    C_ATTEMPTS_2M,
    C_ENV_DROPS,
    C_ENV_YIELDS,
    C_INSTALLED,
    C_NONPRESENT,
    C_PAGES_CREATED,
    C_PAGES_LEAKED,
    C_PAGES_REUSED,
    C_PARTIAL,
    C_RETRIES,
    C_RETRIES_CACHE,
    C_RETRIES_RESCHED,
    C_REUSED,
    C_SPLIT_2M,
    CAUSE_LINK,
    CAUSE_LOCK_DROP,
    CAUSE_WINDOW_END,
    CAUSE_YIELD,
    CAUSE_ZAP,
    OUT16_ERRNO,
    OUT16_FLAGS,
    OUT16_INSTALLED,
    OUT16_LEVEL,
    OUT16_NONPRESENT,
    OUT16_OUTCOME,
    OUT16_REUSED,
    OUT32_RETRIES,
    OUT32_ROLE,
    OUT_GFN,
    OUT_SPTE,
    OUT_SPTEP,
    WIN_ATTEMPTS,
    WIN_CHILD,
    WIN_CHILD_GFN,
    WIN_CHILD_ROLE,
    WIN_DROP_FLUSHED,
    WIN_DROP_IDLE,
    WIN_DROPPED,
    WIN_END,
    WIN_ENV_DROP,
    WIN_ENV_FAIL_KERNEL,
    WIN_ENV_FAIL_NOWAIT,
    WIN_ENV_YIELD,
    WIN_FLUSH,
    WIN_FLUSHES_LOST,
    WIN_FREED,
    WIN_GFN,
    WIN_GOT_PAGE,
    WIN_HEAD_FLUSH,
    WIN_IN_HEAD,
    WIN_LEAKED,
    WIN_LEVEL,
    WIN_OWED,
    WIN_POSITION,
    WIN_RETRIED,
    WIN_RETRIES,
    WIN_SKIP_INVALID,
    WIN_SKIP_NOT_NESTED,
    WIN_SKIP_UNSYNC,
    WIN_SKIPPED,
    WIN_SNAP_SPTE,
    WIN_SNAP_SPTEP,
    WIN_SPARE,
    WIN_SPLIT,
    WIN_START,
    WIN_TARGET,
    WIN_VM,
    WIN_WALK_DONE,
    WIN_ZAPPED,
    count,
    new_outcome,
    place,
    record_flush,
)
from replay.policy import (
    AllocFailure,
    ExistingChild,
    Flush,
    KnobCodes,
    OccupiedRmap,
    SparePage,
    SplitCaches,
    Unsync,
)
from replay.schema import EAGAIN, ENOMEM, ENOSPC, EOPNOTSUPP, Outcome

SPLIT = int(Outcome.SPLIT)
NO_FREE_PAGES = int(Outcome.NO_FREE_PAGES)
NO_MEMORY = int(Outcome.NO_MEMORY)
EXISTING_CHILD = int(Outcome.EXISTING_CHILD)
STALE_PARENT = int(Outcome.STALE_PARENT)
RETRY = int(Outcome.RETRY)
SKIP_UNSYNC = int(Outcome.UNSYNC) - 1
SKIP_INVALID = int(Outcome.INVALID) - 1
SKIP_NOT_NESTED = int(Outcome.NOT_NESTED) - 1
UNSYNC_SKIP = int(Unsync.SKIP)
CHILD_SKIP = int(ExistingChild.SKIP)
RMAP_LEAVE = int(OccupiedRmap.LEAVE_NONPRESENT)
FLUSH_DEFERRED = int(Flush.DEFERRED_IF_PARTIAL)
FLUSH_ALWAYS = int(Flush.ON_LINK_ALWAYS)
SPARE_LEAK = int(SparePage.LEAK)
CACHES_MERGED = int(SplitCaches.MERGED)
ALLOC_UNCHECKED = int(AllocFailure.UNCHECKED)

# what stopped the walk
STOP_DONE = 0
STOP_ATTEMPT = 1
STOP_DROPPED = 2
STOP_YIELDED = 3
STOP_NO_ROOM = 4
STOP_PEEKED = 5


@jit
def available_pages(m: Mmu, vm: int) -> int:
    """kvm_mmu_available_pages()."""
    return max(m.vm[vm, VM_MAX] - m.vm[vm, VM_USED], 0)


@jit
def add_used_pages(m: Mmu, vm: int, n: int) -> None:
    m.vm[vm, VM_USED] += n
    m.vm[vm, VM_PEAK] = max(m.vm[vm, VM_PEAK], m.vm[vm, VM_USED])


@jit
def next_head(m: Mmu, vm: int, level: int, gfn: int, last: int) -> int:
    """First gfn >= ``gfn`` and <= ``last`` whose head at ``level`` is not empty, else -1."""
    last = min(last, m.vm[vm, VM_END] - 1)
    while gfn <= last:
        g = find_gib(m, vm, gfn, False)
        if g >= 0 and level == 3:
            if m.gib[g, GIB_HEAD]:
                return gfn
        elif g >= 0:
            first = m.gib[g, GIB_REGION]
            for i in range((gfn >> 9) & 511, 512):
                if m.region[first + i, REGION_HEAD]:
                    gfn = (gfn >> 18 << 18) + (i << 9)
                    return gfn if gfn <= last else -1
        gfn = ((gfn >> 18) + 1) << 18
    return -1


@jit
def enter_next_head(m: Mmu, w: int) -> bool:
    """Move on to the next rmap head that slot_handle_level_range() visits; False after the last.

    The first head of each level is visited even if it is empty, or behind the end of the range.
    """
    win = m.window[w]
    vm = win[WIN_VM]
    while win[WIN_LEVEL] > win[WIN_TARGET]:
        shift = 9 * (win[WIN_LEVEL] - 1)
        if win[WIN_GFN] < 0:
            gfn = win[WIN_START] >> shift << shift
        else:
            gfn = next_head(
                m, vm, win[WIN_LEVEL], win[WIN_GFN] + (1 << shift), (win[WIN_END] - 1) >> shift << shift
            )
        if gfn >= 0:
            win[WIN_GFN] = gfn
            win[WIN_IN_HEAD] = 1
            win[WIN_POSITION] = 0
            win[WIN_SPARE] = 0
            win[WIN_HEAD_FLUSH] = 0
            win[WIN_RETRIES] = 0
            win[WIN_DROP_IDLE] = 0
            census_head(m, w)
            return True
        win[WIN_LEVEL] -= 1
        win[WIN_GFN] = -1
    return False


@jit
def restart_head(m: Mmu, w: int) -> None:
    win = m.window[w]
    win[WIN_POSITION] = 0
    win[WIN_SKIP_UNSYNC] = 0
    win[WIN_SKIP_INVALID] = 0
    win[WIN_SKIP_NOT_NESTED] = 0


@jit
def leave_head(m: Mmu, w: int) -> bool:
    """The end of one head's function and what slot_handle_level_range() does after it; True if it yields."""
    win = m.window[w]
    win[WIN_SKIPPED + SKIP_UNSYNC] += win[WIN_SKIP_UNSYNC]
    win[WIN_SKIPPED + SKIP_INVALID] += win[WIN_SKIP_INVALID]
    win[WIN_SKIPPED + SKIP_NOT_NESTED] += win[WIN_SKIP_NOT_NESTED]
    restart_head(m, w)
    if win[WIN_SPARE]:
        win[WIN_FREED] += 1
        win[WIN_SPARE] = 0
    win[WIN_FLUSH] |= win[WIN_HEAD_FLUSH]
    win[WIN_OWED] |= win[WIN_HEAD_FLUSH]
    win[WIN_HEAD_FLUSH] = 0
    win[WIN_IN_HEAD] = 0
    if win[WIN_ENV_YIELD] != place(win[WIN_GFN], win[WIN_LEVEL]) + 1:
        return False
    win[WIN_ENV_YIELD] = 0
    count(m, C_ENV_YIELDS, 1)
    if win[WIN_FLUSH]:
        # the range that is flushed ends with the first gfn of the last head
        record_flush(m, w, CAUSE_YIELD, win[WIN_START], win[WIN_GFN] + 1)
        win[WIN_FLUSH] = 0
        win[WIN_OWED] = 0
    return True


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
    if k.nested_only and not (m.sp[sp, SP_KEY] & GUEST_MODE or m.vm[win[WIN_VM], VM_HAS_TDP]):
        win[WIN_SKIP_NOT_NESTED] += 1
        return False
    return True


@jit
def begin_attempt(m: Mmu, w: int, sptep: int, spte: int) -> int:
    """The outcome row of an attempt at the huge SPTE ``sptep`` that has the value ``spte``."""
    win = m.window[w]
    sp = sptep // 512
    o = new_outcome(m, w, 0)
    m.out[o, OUT_GFN] = win[WIN_GFN]
    m.out16[o, OUT16_LEVEL] = win[WIN_LEVEL]
    m.out[o, OUT_SPTE] = spte
    m.out32[o, OUT32_ROLE] = m.sp[sp, SP_KEY] & ROLE_MASK
    if m.sp[sp, SP_PAGE]:
        m.out[o, OUT_SPTEP] = (m.sp[sp, SP_PAGE] << 12) + 8 * (sptep % 512)
    m.out32[o, OUT32_RETRIES] = win[WIN_RETRIES]
    win[WIN_CHILD] = -1
    win[WIN_GOT_PAGE] = 0
    census_attempt(m, w, sptep, spte, o)
    return o


@jit
def end_attempt(m: Mmu, w: int, o: int, outcome: int, errno: int) -> None:
    win = m.window[w]
    m.out16[o, OUT16_OUTCOME] = outcome
    m.out16[o, OUT16_ERRNO] = -errno
    if outcome == RETRY:
        win[WIN_RETRIED] += 1
        win[WIN_RETRIES] += 1
        count(m, C_RETRIES, 1)
        return
    level_counter = win[WIN_LEVEL] - 2
    win[WIN_ATTEMPTS] += 1
    win[WIN_RETRIES] = 0
    count(m, C_ATTEMPTS_2M + level_counter, 1)
    if outcome == SPLIT:
        win[WIN_DROP_IDLE] = 0
        win[WIN_SPLIT] += 1
        count(m, C_SPLIT_2M + level_counter, 1)
    else:
        win[WIN_SKIPPED + outcome - 1] += 1


@jit
def zap_unsync_of_gfn(m: Mmu, w: int, gfn: int, key: int, order: int) -> None:
    """What kvm_mmu_find_shadow_page() zaps on its way above the 4K level: unsync pages of the gfn."""
    win = m.window[w]
    zapped = False
    i = int(m.hash[page_bucket(gfn, key, m.hash.shape[0])])
    while i:
        following = m.sp32[i, SP32_NEXT]
        if m.sp[i, SP_GFN] == gfn and m.sp[i, SP_KEY] == key and m.sp32[i, SP32_FLAGS] & FLAG_LIVE:
            break  # the page that is looked for; those behind it are not looked at
        if (
            m.sp[i, SP_GFN] == gfn
            and m.sp32[i, SP32_FLAGS] & (FLAG_LIVE | FLAG_UNSYNC) == FLAG_LIVE | FLAG_UNSYNC
            and not (m.sp[i, SP_KEY] ^ key) & GEN
        ):
            unlink_shadow_page(m, i, order)
            free_shadow_page(m, i)
            add_used_pages(m, win[WIN_VM], -1)
            win[WIN_ZAPPED] += 1
            zapped = True
        i = following
    if zapped:
        record_flush(m, w, CAUSE_ZAP, win[WIN_START], win[WIN_END])


@jit
def fill_child(m: Mmu, child: int, huge_spte: int, o: int, k: KnobCodes) -> bool:
    """Populate the 512 SPTEs of ``child`` from ``huge_spte``; True if a present non-leaf SPTE was met."""
    key = m.sp[child, SP_KEY]
    level = key_level(key)
    if fill_uniform(m, child, huge_spte):
        m.out16[o, OUT16_INSTALLED] = 512
        return False
    vm = key_vm(key)
    exec_allowed = key_access(key) & ACC_EXEC != 0
    ept = m.vm[vm, VM_EPT] != 0
    nonleaf = False
    for index in range(512):
        spte = get_spte(m, child, index)
        if is_shadow_present_pte(spte):
            nonleaf |= not is_last_spte(spte, level)
            m.out16[o, OUT16_REUSED] += 1
            continue
        gfn = m.sp[child, SP_GFN] + (index << (9 * (level - 1)))
        if k.occupied_rmap == RMAP_LEAVE and rmap_head(m, vm, gfn, level):
            m.out16[o, OUT16_NONPRESENT] += 1
            set_spte(m, child, index, LEFT_NONPRESENT)
            continue
        spte = make_huge_page_split_spte(huge_spte, index, level, exec_allowed, ept)
        install_leaf(m, child, index, gfn, spte, key_access(key), k.rmap_order)
        m.out16[o, OUT16_INSTALLED] += 1
    return nonleaf


@jit
def split_huge_page(m: Mmu, w: int, sptep: int, o: int, k: KnobCodes) -> bool:
    """kvm_mmu_split_huge_page() / shadow_mmu_split_huge_page(); False if the child exists and is refused."""
    win = m.window[w]
    vm = win[WIN_VM]
    sp = sptep // 512
    index = sptep % 512
    gfn = sptep_gfn(m, sp, index)
    huge_spte = get_spte(m, sp, index)
    key = child_key(m.sp[sp, SP_KEY], index, True, sptep_access(m, sp, index))
    win[WIN_CHILD_GFN] = gfn
    win[WIN_CHILD_ROLE] = key & ROLE_MASK
    if key_level(key) > 1:
        zap_unsync_of_gfn(m, w, gfn, key, k.rmap_order)
    child = find_shadow_page(m, gfn, key)
    if child >= 0 and k.existing_child == CHILD_SKIP:
        return False
    if child < 0:
        child = alloc_shadow_page(m, gfn, key, FLAG_SPLIT)
        add_used_pages(m, vm, 1)
        m.out16[o, OUT16_FLAGS] |= ATTEMPT_CREATED
        count(m, C_PAGES_CREATED, 1)
        win[WIN_SPARE] = 0
        if k.split_caches == CACHES_MERGED:
            m.vm[vm, VM_HEADERS] -= 1
            m.vm[vm, VM_PAGES] -= 1
    else:
        count(m, C_PAGES_REUSED, 1)
    win[WIN_CHILD] = child
    descriptors = m.ctl[CTL_DESC_USED]
    nonleaf = fill_child(m, child, huge_spte, o, k)
    used = m.ctl[CTL_DESC_USED] - descriptors
    drop_spte(m, sp, index, k.rmap_order)
    descriptors = m.ctl[CTL_DESC_USED]
    link_shadow_page(m, sp, index, child, k.rmap_order)
    used += m.ctl[CTL_DESC_USED] - descriptors
    census_descriptors(m, o, used)
    if k.split_caches == CACHES_MERGED:
        m.vm[vm, VM_DESC] -= used
    flush_after_split(m, w, o, nonleaf, k)
    return True


@jit
def flush_after_split(m: Mmu, w: int, o: int, nonleaf: bool, k: KnobCodes) -> None:
    win = m.window[w]
    count(m, C_INSTALLED, np.int64(m.out16[o, OUT16_INSTALLED]))
    count(m, C_NONPRESENT, np.int64(m.out16[o, OUT16_NONPRESENT]))
    count(m, C_REUSED, np.int64(m.out16[o, OUT16_REUSED]))
    partial = m.out16[o, OUT16_NONPRESENT] > 0
    if partial:
        count(m, C_PARTIAL, 1)
    if k.flush == FLUSH_DEFERRED:
        if partial:
            m.out16[o, OUT16_FLAGS] |= ATTEMPT_FLUSHED
            win[WIN_HEAD_FLUSH] = 1
    elif k.flush == FLUSH_ALWAYS or nonleaf or partial:
        m.out16[o, OUT16_FLAGS] |= ATTEMPT_FLUSHED
        gfn = m.out[o, OUT_GFN]
        record_flush(m, w, CAUSE_LINK, gfn, gfn + (1 << (9 * (win[WIN_LEVEL] - 1))))


@jit
def take_spare(m: Mmu, w: int, k: KnobCodes) -> None:
    """*spp = alloc(...): a page that was there already is lost under spare_page=leak."""
    win = m.window[w]
    if win[WIN_SPARE] and k.spare_page == SPARE_LEAK:
        win[WIN_LEAKED] += 1
        count(m, C_PAGES_LEAKED, 1)
    win[WIN_SPARE] = 1


@jit
def drop_lock(m: Mmu, w: int, sptep: int, spte: int) -> None:
    """The drop_lock label of prepare_to_split_huge_page(): the flush owed by this head comes first."""
    win = m.window[w]
    win[WIN_DROP_FLUSHED] = win[WIN_HEAD_FLUSH]
    if win[WIN_HEAD_FLUSH]:
        record_flush(m, w, CAUSE_LOCK_DROP, win[WIN_START], win[WIN_END])
        win[WIN_HEAD_FLUSH] = 0
        win[WIN_OWED] = 0  # the whole slot was flushed
    elif win[WIN_OWED]:
        win[WIN_FLUSHES_LOST] += 1  # the debt of an earlier head is not paid here
    win[WIN_DROPPED] = 1
    win[WIN_DROP_IDLE] = 1
    win[WIN_SNAP_SPTEP] = sptep
    win[WIN_SNAP_SPTE] = spte
    win[WIN_RETRIES] += 1
    count(m, C_RETRIES, 1)
    count(m, C_RETRIES_RESCHED, 1)
    count(m, C_ENV_DROPS, 1)


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
def after_lock_drop(m: Mmu, w: int, k: KnobCodes) -> bool:
    """The blocking allocation of prepare; True if it failed, which ends the head with -ENOMEM."""
    win = m.window[w]
    win[WIN_DROPPED] = 0
    take_spare(m, w, k)
    if not win[WIN_ENV_FAIL_KERNEL]:
        restart_head(m, w)
        return False
    win[WIN_ENV_FAIL_KERNEL] = 0
    win[WIN_SPARE] = 0
    o = begin_attempt(m, w, win[WIN_SNAP_SPTEP], win[WIN_SNAP_SPTE])
    end_attempt(m, w, o, NO_MEMORY, ENOMEM)
    win[WIN_POSITION] = END_OF_HEAD
    return True


END_OF_HEAD = 1 << 40


@jit
def caches_short(m: Mmu, vm: int, k: KnobCodes) -> bool:
    """need_topup_split_caches_or_resched() without the resched part."""
    return m.vm[vm, VM_DESC] < k.desc_min or m.vm[vm, VM_HEADERS] < 1 or m.vm[vm, VM_PAGES] < 1


@jit
def topup_split_caches(m: Mmu, vm: int, k: KnobCodes) -> None:
    if m.vm[vm, VM_DESC] < k.desc_min:
        m.vm[vm, VM_DESC] = k.desc_capacity
    if m.vm[vm, VM_HEADERS] < 1:
        m.vm[vm, VM_HEADERS] = k.page_capacity
    if m.vm[vm, VM_PAGES] < 1:
        m.vm[vm, VM_PAGES] = k.page_capacity


@jit
def try_split(m: Mmu, w: int, sptep: int, k: KnobCodes, resched: tuple[int, int]) -> int:
    """One attempt at the huge SPTE ``sptep``: STOP_ATTEMPT, or STOP_DROPPED where the drop is silent."""
    win = m.window[w]
    vm = win[WIN_VM]
    spte = get_spte(m, sptep // 512, sptep % 512)
    if available_pages(m, vm) <= k.min_free_pages:
        o = begin_attempt(m, w, sptep, spte)
        end_attempt(m, w, o, NO_FREE_PAGES, ENOSPC)
        win[WIN_POSITION] = END_OF_HEAD
        return STOP_ATTEMPT
    dropping = need_resched(m, w, resched[0], resched[1])
    if k.split_caches == CACHES_MERGED:
        short = caches_short(m, vm, k)
        if short or dropping:
            o = begin_attempt(m, w, sptep, spte)
            topup_split_caches(m, vm, k)
            count(m, C_RETRIES_CACHE if short else C_RETRIES_RESCHED, 1)
            if not short:
                count(m, C_ENV_DROPS, 1)
            if win[WIN_ENV_FAIL_KERNEL]:
                win[WIN_ENV_FAIL_KERNEL] = 0
                end_attempt(m, w, o, NO_MEMORY, ENOMEM)
                win[WIN_POSITION] = END_OF_HEAD
                return STOP_ATTEMPT
            end_attempt(m, w, o, RETRY, EAGAIN)
            restart_head(m, w)
            return STOP_ATTEMPT
    else:
        failed = win[WIN_ENV_FAIL_NOWAIT] != 0
        win[WIN_ENV_FAIL_NOWAIT] = 0
        if dropping or (failed and k.alloc_failure != ALLOC_UNCHECKED):
            drop_lock(m, w, sptep, spte)
            return STOP_DROPPED
        take_spare(m, w, k)
        if failed:
            win[WIN_SPARE] = 0  # *spp is NULL and v2 does not notice
    o = begin_attempt(m, w, sptep, spte)
    if split_huge_page(m, w, sptep, o, k):
        end_attempt(m, w, o, SPLIT, 0)
        restart_head(m, w)
    else:
        end_attempt(m, w, o, EXISTING_CHILD, EOPNOTSUPP)
        win[WIN_POSITION] += 1
    return STOP_ATTEMPT


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
        if win[WIN_DROPPED] and after_lock_drop(m, w, k):
            return STOP_ATTEMPT
        if not win[WIN_IN_HEAD] and not enter_next_head(m, w):
            if win[WIN_FLUSH]:
                record_flush(m, w, CAUSE_WINDOW_END, win[WIN_START], win[WIN_END])
                win[WIN_FLUSH] = 0
                win[WIN_OWED] = 0
            win[WIN_WALK_DONE] = 1
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
