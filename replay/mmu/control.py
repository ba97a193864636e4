"""Control lines: memslots, limits, dirty logging, and the windows that they open and close."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.align import finish, finish_shadow, truth
from replay.mmu.apply import write_protect_head, write_protect_region
from replay.mmu.dirty_log import fill_bitmap, need_bitmap, protect_cleared
from replay.mmu.layout import (
    CTL_HAS_RECORDED,
    CTL_RUN,
    CTL_SLOT_TOP,
    GIB_HEAD,
    GIB_HOST,
    GIB_REGION,
    GIB_TABLES,
    NO_TABLE,
    PROBES_COLLAPSE,
    PROBES_LIMIT,
    PROBES_PROTECT,
    REGION_BLOCK,
    REGION_HEAD,
    REGION_HOST,
    REGION_SP,
    REGION_TABLES,
    SLOT_BASE,
    SLOT_BITMAP,
    SLOT_DIRTY_LOG,
    SLOT_FLAGS,
    SLOT_HVA,
    SLOT_ID,
    SLOT_LIVE,
    SLOT_NPAGES,
    SLOT_READONLY,
    SLOT_VM,
    SP_KEY,
    TASK_REGION,
    TASK_REGION_BASE,
    TASK_REGION_FLAGS,
    TASK_REGION_HVA,
    TASK_REGION_NPAGES,
    TASK_SLOT,
    UNIFORM,
    VM_END,
    VM_EPT,
    VM_GOAL_TASK,
    VM_MAX,
    VM_MAX_KNOWN,
    VM_PROBES,
    VM_USED,
    VM_WINDOW,
)
from replay.mmu.rmap import head_in_gib, pte_list_get, rmap_head, rmap_remove
from replay.mmu.role import DIRECT, key_level
from replay.mmu.room import NO_ROOM, OK, has_room_for_next
from replay.mmu.shadow_page import drop_spte, zap_children
from replay.mmu.state import Mmu, find_gib
from replay.mmu.window import (
    PHASE_CLOSED,
    PHASE_SHADOW,
    PHASE_TDP,
    WIN_ALIGNED,
    WIN_BY_PROBE,
    WIN_CAUSE,
    WIN_END,
    WIN_FIRST_PAGE,
    WIN_FIRST_WORD,
    WIN_FREED,
    WIN_FREED_RECORDED,
    WIN_HAS_V2_PROBES,
    WIN_LAST_PAGE,
    WIN_LEAKED,
    WIN_LEAKED_RECORDED,
    WIN_MASK,
    WIN_PHASE,
    WIN_SLOT,
    WIN_START,
    WIN_TDP_GFN,
    WIN_VM,
    WIN_WALK_DONE,
    WIN_WORDS,
    open_window,
)
from replay.policy import ClearEnd, KnobCodes
from replay.schema import WindowCause

MEMSLOT_FLAGS = int(WindowCause.MEMSLOT_FLAGS)
CLEAR_DIRTY_LOG = int(WindowCause.CLEAR_DIRTY_LOG)
KPROBE = int(WindowCause.KPROBE)
RECORDED = int(WindowCause.RECORDED)
END_OF_TRACE = int(WindowCause.END)
AT_TIME = int(WindowCause.TIME)
CLEAR_END_INCLUSIVE = int(ClearEnd.INCLUSIVE)

KVM_MR_CREATE = 0
KVM_MR_DELETE = 1
KVM_MR_MOVE = 2
KVM_MIN_ALLOC_MMU_PAGES = 64
KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO = 50
INITIALLY_SET = 2  # KVM_DIRTY_LOG_INITIALLY_SET
LOG_ON = 2

# -- limits ------------------------------------------------------------------------------------------------


@jit
def change_mmu_pages(m: Mmu, vm: int, t: int, goal: int) -> None:
    """kvm_mmu_change_mmu_pages(): what it zaps is in the trace, see :func:`settle_limit`."""
    m.vm[vm, VM_MAX] = goal
    m.vm[vm, VM_GOAL_TASK] = t + 1


@jit
def settle_limit(m: Mmu, vm: int) -> None:
    """The zaps of change_mmu_pages are over: pages that could not be zapped raise the limit."""
    m.vm[vm, VM_GOAL_TASK] = 0
    m.vm[vm, VM_MAX] = max(m.vm[vm, VM_MAX], m.vm[vm, VM_USED])


@jit
def default_limit(m: Mmu, vm: int) -> int:
    """kvm_mmu_calculate_default_mmu_pages(): a fiftieth of the memslots' pages."""
    pages = 0
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if m.slot[s, SLOT_LIVE] and m.slot[s, SLOT_VM] == vm:
            pages += m.slot[s, SLOT_NPAGES]
    return max(pages // KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO, KVM_MIN_ALLOC_MMU_PAGES)


# -- memslots ------------------------------------------------------------------------------------------------


@jit
def find_slot(m: Mmu, vm: int, slot_id: int) -> int:
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if m.slot[s, SLOT_LIVE] and m.slot[s, SLOT_VM] == vm and m.slot[s, SLOT_ID] == slot_id:
            return s
    return -1


@jit
def gfn_to_slot(m: Mmu, vm: int, gfn: int) -> int:
    for s in range(m.ctl[CTL_SLOT_TOP]):
        page = gfn - m.slot[s, SLOT_BASE]
        if m.slot[s, SLOT_LIVE] and m.slot[s, SLOT_VM] == vm and 0 <= page < m.slot[s, SLOT_NPAGES]:
            return s
    return -1


@jit
def set_slot(m: Mmu, vm: int, t: int, slot_id: int, base: int, npages: int, flags: int, hva: int) -> int:
    """A slot is set, changed or (npages 0) deleted; its row, -1 after deletion."""
    s = find_slot(m, vm, slot_id)
    resized = s < 0 or m.slot[s, SLOT_NPAGES] != npages
    logged = s >= 0 and m.slot[s, SLOT_FLAGS] & SLOT_DIRTY_LOG != 0
    if npages == 0:
        if s >= 0:
            m.slot[s, SLOT_LIVE] = 0
        s = -1
    else:
        if s < 0:
            s = free_slot_row(m)
        m.slot[s, SLOT_VM] = vm
        m.slot[s, SLOT_ID] = slot_id
        m.slot[s, SLOT_BASE] = base
        m.slot[s, SLOT_NPAGES] = npages
        m.slot[s, SLOT_FLAGS] = flags
        m.slot[s, SLOT_HVA] = hva
        if resized:
            m.slot[s, SLOT_BITMAP] = 0
        m.slot[s, SLOT_LIVE] = 1
    if s >= 0 and flags & SLOT_DIRTY_LOG and not logged and m.slot[s, SLOT_BITMAP]:
        fill_bitmap(m, s)
    if resized and not m.vm[vm, VM_MAX_KNOWN] and not m.vm[vm, VM_PROBES] & PROBES_LIMIT:
        change_mmu_pages(m, vm, t, default_limit(m, vm))
    return s


@jit
def free_slot_row(m: Mmu) -> int:
    for s in range(m.ctl[CTL_SLOT_TOP]):
        if not m.slot[s, SLOT_LIVE]:
            return s
    m.ctl[CTL_SLOT_TOP] += 1
    return m.ctl[CTL_SLOT_TOP] - 1


@jit
def set_region(m: Mmu, t: int, slot_id: int, base: int, npages: int, flags: int, hva: int) -> None:
    """set_region: the call is entered; commit_region tells whether it took effect."""
    task = m.task[t]
    task[TASK_REGION] = slot_id + 1
    task[TASK_REGION_BASE] = base
    task[TASK_REGION_NPAGES] = npages
    task[TASK_REGION_FLAGS] = flags
    task[TASK_REGION_HVA] = hva


@jit
def commit_region(m: Mmu, t: int, vm: int, change: int, order: int) -> int:
    """commit_region: LOG_ON if dirty logging was switched on for a slot in place, OK or NO_ROOM."""
    task = m.task[t]
    if task[TASK_REGION] == 0:
        return OK
    slot_id = task[TASK_REGION] - 1
    npages = 0 if change == KVM_MR_DELETE else task[TASK_REGION_NPAGES]
    s = find_slot(m, vm, slot_id)
    old_flags = m.slot[s, SLOT_FLAGS] if s >= 0 else 0
    in_place = change > KVM_MR_MOVE
    if (
        in_place
        and log_switched_off(old_flags, task[TASK_REGION_FLAGS])
        and not m.vm[vm, VM_PROBES] & PROBES_COLLAPSE
    ) and zap_collapsible(m, vm, s, order) == NO_ROOM:
        return NO_ROOM
    task[TASK_REGION] = 0
    s = set_slot(
        m, vm, t, slot_id, task[TASK_REGION_BASE], npages, task[TASK_REGION_FLAGS], task[TASK_REGION_HVA]
    )
    task[TASK_SLOT] = s + 1
    return LOG_ON if in_place and log_switched_on(old_flags, task[TASK_REGION_FLAGS]) else OK


@jit
def log_switched_off(old_flags: int, flags: int) -> bool:
    return old_flags & ~flags & SLOT_DIRTY_LOG != 0


@jit
def log_switched_on(old_flags: int, flags: int) -> bool:
    rising = flags & ~old_flags & SLOT_DIRTY_LOG
    return rising != 0 and flags & SLOT_READONLY == 0


# -- passes over a slot ----------------------------------------------------------------------------


@jit
def write_protect_slot(m: Mmu, vm: int, s: int, start_level: int) -> int:
    """kvm_mmu_slot_remove_write_access(): every SPTE of the slot at ``start_level`` and above."""
    ept = m.vm[vm, VM_EPT] != 0
    gfn = m.slot[s, SLOT_BASE]
    end = min(gfn + m.slot[s, SLOT_NPAGES], m.vm[vm, VM_END])
    while gfn < end:
        g = find_gib(m, vm, gfn, False)
        following = min(((gfn >> 18) + 1) << 18, end)
        if g >= 0:
            write_protect_head(m, m.gib[g, GIB_HEAD], False, ept)
            for i in range((gfn >> 9) & 511, ((following - 1) >> 9 & 511) + 1):
                if not has_room_for_next(m):
                    return NO_ROOM
                r = m.gib[g, GIB_REGION] + i
                write_protect_head(m, m.region[r, REGION_HEAD], False, ept)
                if start_level == 1:
                    write_protect_region(m, r, ept)
        gfn = following
    return OK


@jit
def can_be_huge(m: Mmu, s: int, gfn: int, level: int) -> bool:
    """Whether a slot's edges let a page at ``level`` around ``gfn`` be huge, and gfn and hva are in step."""
    pages = 1 << (9 * (level - 1))
    start = gfn & -pages
    if start < m.slot[s, SLOT_BASE] or start + pages > m.slot[s, SLOT_BASE] + m.slot[s, SLOT_NPAGES]:
        return False
    return (m.slot[s, SLOT_BASE] - (m.slot[s, SLOT_HVA] >> 12)) & (pages - 1) == 0


@jit
def zap_collapsible_head(m: Mmu, vm: int, gfn: int, level: int, max_level: int, order: int) -> None:
    """kvm_mmu_zap_collapsible_spte(): SPTEs of direct pages that could be larger; a zap restarts the list."""
    position = 0
    while True:
        sptep = pte_list_get(m, rmap_head(m, vm, gfn, level), position)
        if sptep < 0:
            return
        key = m.sp[sptep // 512, SP_KEY]
        if key & DIRECT and key_level(key) < max_level:
            drop_spte(m, sptep // 512, sptep % 512, order)
            rmap_remove(m, vm, gfn, level, sptep, order)  # done already, unless the trace is damaged
            position = 0
        else:
            position += 1


@jit
def zap_collapsible(m: Mmu, vm: int, s: int, order: int) -> int:
    """kvm_mmu_zap_collapsible_sptes(), kvm_mmu_recover_huge_pages(): logging went off for slot ``s``.

    The host's page size is the largest at which it was seen to map the region.
    """
    base = m.slot[s, SLOT_BASE]
    end = min(base + m.slot[s, SLOT_NPAGES], m.vm[vm, VM_END])
    gfn = base
    while gfn < end:
        g = find_gib(m, vm, gfn, False)
        if g < 0:
            gfn = ((gfn >> 18) + 1) << 18
            continue
        r = m.gib[g, GIB_REGION] + ((gfn >> 9) & 511)
        following = min(((gfn >> 9) + 1) << 9, end)
        max_level = 1
        if m.gib[g, GIB_HOST] >= 3 and m.gib[g, GIB_TABLES] == 0 and can_be_huge(m, s, gfn, 3):
            max_level = 3
        elif m.region[r, REGION_BLOCK] == NO_TABLE:
            gfn = following
            continue
        elif m.region[r, REGION_HOST] >= 2 and m.region[r, REGION_TABLES] == 0 and can_be_huge(m, s, gfn, 2):
            max_level = 2
        if not has_room_for_next(m):
            return NO_ROOM
        if max_level > 1 and m.region[r, REGION_BLOCK] == UNIFORM and following - gfn == 512:
            zap_children(m, m.region[r, REGION_SP], order)  # one direct page maps it all
        elif max_level > 1 and m.region[r, REGION_BLOCK] != NO_TABLE:
            for at in range(gfn, following):
                if head_in_gib(m, g, at, 1):
                    zap_collapsible_head(m, vm, at, 1, max_level, order)
        if max_level > 2:
            zap_collapsible_head(m, vm, gfn, 2, max_level, order)
        gfn = following
    return OK


# -- windows ---------------------------------------------------------------------------------------


@jit
def begin_window(
    m: Mmu,
    vm: int,
    pid: int,
    cause: int,
    s: int,
    start: int,
    end: int,
    target: int,
    by_probe: bool,
    k: KnobCodes,
) -> int:
    """Open a window.

    It runs through at once unless recorded lines, or their absence, are there to compare with.
    """
    w = open_window(m, vm, pid, cause, s, start, end, target)
    m.window[w, WIN_BY_PROBE] = by_probe
    m.window[w, WIN_ALIGNED] = m.ctl[CTL_HAS_RECORDED] if cause < END_OF_TRACE else 0
    if not k.enabled:
        m.window[w, WIN_WALK_DONE] = 1
    if not m.window[w, WIN_ALIGNED]:
        m.ctl[CTL_RUN] = w + 1
    return w


@jit
def begin_slot_window(
    m: Mmu, vm: int, pid: int, cause: int, s: int, target: int, by_probe: bool, k: KnobCodes
) -> None:
    """kvm_mmu_slot_try_split_huge_pages()."""
    if s >= 0:
        base = m.slot[s, SLOT_BASE]
        begin_window(m, vm, pid, cause, s, base, base + m.slot[s, SLOT_NPAGES], target, by_probe, k)


@jit
def shadow_part_begins(m: Mmu, w: int, start: int, end: int) -> None:
    """shadow_try_split or v2_try_split_begin."""
    m.window[w, WIN_START] = start
    m.window[w, WIN_END] = end
    m.window[w, WIN_PHASE] = PHASE_SHADOW


@jit
def tdp_part_begins(m: Mmu, w: int, k: KnobCodes) -> int:
    """The TDP MMU's turn: the shadow part is over."""
    win = m.window[w]
    if win[WIN_PHASE] < PHASE_TDP:
        if win[WIN_ALIGNED] and not win[WIN_WORDS] and finish_shadow(m, w, k) == NO_ROOM:
            return NO_ROOM
        win[WIN_PHASE] = PHASE_TDP
    return OK


@jit
def close_window(m: Mmu, w: int, k: KnobCodes) -> int:
    """The end of a window: what is left of either part, the recording lacks."""
    win = m.window[w]
    vm = win[WIN_VM]
    if win[WIN_ALIGNED] and win[WIN_CAUSE] != RECORDED and finish(m, w, k) == NO_ROOM:
        return NO_ROOM
    if win[WIN_HAS_V2_PROBES]:
        truth(m, win[WIN_LEAKED] == win[WIN_LEAKED_RECORDED])
        truth(m, win[WIN_FREED] == win[WIN_FREED_RECORDED])
    s = win[WIN_SLOT]
    log_on = win[WIN_CAUSE] == MEMSLOT_FLAGS and s >= 0
    if log_on and not m.vm[vm, VM_PROBES] & PROBES_PROTECT and write_protect_slot(m, vm, s, 1) == NO_ROOM:
        return NO_ROOM
    if win[WIN_CAUSE] == CLEAR_DIRTY_LOG and not win[WIN_WORDS]:
        protect_cleared(m, vm, s, win[WIN_START], win[WIN_END], 0)
    win[WIN_PHASE] = PHASE_CLOSED
    m.vm[vm, VM_WINDOW] = -1
    return OK


@jit
def begin_clear_window(
    m: Mmu, vm: int, pid: int, s: int, first_page: int, last_page: int, mask: int, k: KnobCodes
) -> int:
    """KVM_CLEAR_DIRTY_LOG by a marker: one range for each 64-page word; pages are counted in the slot."""
    first_page = max(first_page, 0)
    last_page = min(last_page, m.slot[s, SLOT_NPAGES])
    if first_page >= last_page:
        return OK
    if need_bitmap(m, s) == NO_ROOM:
        return NO_ROOM
    base = m.slot[s, SLOT_BASE]
    w = begin_window(m, vm, pid, CLEAR_DIRTY_LOG, s, base + first_page, base + last_page, 1, False, k)
    win = m.window[w]
    win[WIN_FIRST_WORD] = first_page >> 6
    win[WIN_WORDS] = ((last_page - 1) >> 6) - (first_page >> 6) + 1
    win[WIN_FIRST_PAGE] = first_page
    win[WIN_LAST_PAGE] = last_page
    win[WIN_MASK] = mask
    win[WIN_WALK_DONE] = 1  # the first range is yet to be taken
    win[WIN_TDP_GFN] = 1 << 41
    return OK
