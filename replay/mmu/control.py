"""Windows: what opens them, the parts they have, and what follows the split when they are closed."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu import spaces
from replay.mmu.align import finish, finish_shadow
from replay.mmu.dirty_log import need_bitmap, protect_cleared, walks_shadow_mmu
from replay.mmu.kinds import V2_TRY_SPLIT_BEGIN
from replay.mmu.layout import (
    CTL_HAS_RECORDED,
    CTL_RUN,
    PROBES_PROTECT,
    PROBES_RETURN,
    SLOT_BASE,
    SLOT_NPAGES,
    VM_HAS_RMAPS,
    VM_HAS_TDP,
    VM_PROBES,
    VM_WINDOW,
)
from replay.mmu.room import NO_ROOM, OK
from replay.mmu.slot_passes import protect_slot, uses_pml
from replay.mmu.state import Mmu
from replay.mmu.truth import compare_lines, drop_simulated, simulated_line
from replay.mmu.window import (
    PHASE_CLOSED,
    PHASE_SHADOW,
    PHASE_TDP,
    WIN_ALIGNED,
    WIN_BY_PROBE,
    WIN_CAUSE,
    WIN_CUT,
    WIN_DOUBTED,
    WIN_END,
    WIN_FIRST_PAGE,
    WIN_FIRST_WORD,
    WIN_LAST_PAGE,
    WIN_MASK,
    WIN_OPEN_ENDED,
    WIN_PHASE,
    WIN_SLOT,
    WIN_SPACE,
    WIN_START,
    WIN_TDP_GFN,
    WIN_VM,
    WIN_WALK_DONE,
    WIN_WORDS,
    knows_all,
    open_window,
)
from replay.policy import KnobCodes
from replay.schema import WindowCause

MEMSLOT_FLAGS = int(WindowCause.MEMSLOT_FLAGS)
CLEAR_DIRTY_LOG = int(WindowCause.CLEAR_DIRTY_LOG)
RECORDED = int(WindowCause.RECORDED)
END_OF_TRACE = int(WindowCause.END)
AT_TIME = int(WindowCause.TIME)


@jit
def has_rmaps(m: Mmu, vm: int) -> bool:
    """kvm_memslots_have_rmaps(): a shadow root was made, or there is no TDP MMU."""
    return not m.vm[vm, VM_HAS_TDP] or m.vm[vm, VM_HAS_RMAPS] != 0


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
    m.window[w, WIN_BY_PROBE] = by_probe and m.vm[vm, VM_PROBES] & PROBES_RETURN != 0
    m.window[w, WIN_ALIGNED] = m.ctl[CTL_HAS_RECORDED] if cause < END_OF_TRACE else 0
    if not walks_shadow_mmu(m, vm, k) or m.window[w, WIN_SPACE]:
        m.window[w, WIN_WALK_DONE] = 1
    if by_probe and has_rmaps(m, vm):
        simulated_line(m, w, V2_TRY_SPLIT_BEGIN, start, target, end, 0)
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
def begin_range_window(m: Mmu, vm: int, pid: int, start: int, end: int, target: int, k: KnobCodes) -> int:
    """The window of a range whose part begins, where no line shows who asked for it."""
    s = spaces.any_slot_of_range(m, vm, start, end)
    w = begin_window(m, vm, pid, CLEAR_DIRTY_LOG, s, start, end, target, False, k)
    m.window[w, WIN_OPEN_ENDED] = 1
    spaces.leave_undecided(m, w)
    return w


@jit
def shadow_part_begins(m: Mmu, w: int, start: int, end: int) -> None:
    """shadow_try_split or v2_try_split_begin."""
    m.window[w, WIN_START] = start
    m.window[w, WIN_END] = end
    m.window[w, WIN_PHASE] = PHASE_SHADOW


@jit
def tdp_part_begins(m: Mmu, w: int, by_probe: bool, k: KnobCodes) -> int:
    """The TDP MMU's turn: the shadow part is over.

    Without a probe its first line shows that, which may be that of a table before the split.
    """
    win = m.window[w]
    if win[WIN_PHASE] < PHASE_TDP:
        if win[WIN_ALIGNED] and spaces.shadow_part_ends(m, w, k) == NO_ROOM:
            return NO_ROOM
        if win[WIN_ALIGNED] and not win[WIN_WORDS] and finish_shadow(m, w, k) == NO_ROOM:
            return NO_ROOM
        if by_probe and not win[WIN_WORDS]:
            compare_lines(m, w, True)
        win[WIN_PHASE] = PHASE_TDP
    return OK


@jit
def close_window(m: Mmu, w: int, k: KnobCodes) -> int:
    """The end of a window: what is left of either part, the recording lacks."""
    win = m.window[w]
    vm = win[WIN_VM]
    if spaces.window_ends(m, w, k) == NO_ROOM:
        return NO_ROOM
    if win[WIN_ALIGNED] and win[WIN_CAUSE] != RECORDED and finish(m, w, k) == NO_ROOM:
        return NO_ROOM
    if win[WIN_CAUSE] == RECORDED or win[WIN_CUT]:
        drop_simulated(m, w)  # where this window ends is not known: what the walk is ahead is no difference
    compare_lines(m, w, True)
    s = win[WIN_SLOT]
    log_on = win[WIN_CAUSE] == MEMSLOT_FLAGS and s >= 0
    if (
        log_on
        and not m.vm[vm, VM_PROBES] & PROBES_PROTECT
        and protect_slot(m, vm, s, uses_pml(m, vm, k)) == NO_ROOM
    ):
        return NO_ROOM
    if win[WIN_CAUSE] == CLEAR_DIRTY_LOG and not win[WIN_WORDS]:
        protect_cleared(m, vm, s, win[WIN_START], win[WIN_END], 0, k)
    # the flush of the last split can be a line that comes after the end
    win[WIN_DOUBTED] = not knows_all(m, vm) or win[WIN_CUT] != 0
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
