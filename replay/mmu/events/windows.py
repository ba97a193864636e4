"""Windows: what opens them, the parts they have, and what follows the split when they are closed."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.dirty_log import need_bitmap, protect_cleared, walks_shadow_mmu
from replay.mmu.kernel.slot_passes import protect_slot, uses_pml
from replay.mmu.recorded.lines import compare_lines, drop_simulated, simulated_line
from replay.mmu.recorded.split_lines import finish, finish_shadow
from replay.mmu.split import address_spaces
from replay.mmu.split.window import knows_all, open_window
from replay.mmu.state.growth import NO_ROOM, OK
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import Phase, ProbeSet
from replay.policy import KnobCodes
from replay.schema import Kind, WindowCause


@jit
def has_rmaps(m: Mmu, vm: int) -> bool:
    """kvm_memslots_have_rmaps(): a shadow root was made, or there is no TDP MMU."""
    return not m.vm[vm].has_tdp or m.vm[vm].has_rmaps != 0


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
    m.window[w].by_probe = by_probe and m.vm[vm].probes & ProbeSet.RETURN != 0
    m.window[w].aligned = m.ctl.has_recorded if cause < WindowCause.END else 0
    if not walks_shadow_mmu(m, vm, k) or m.window[w].space:
        m.window[w].walk_done = 1
    if by_probe and has_rmaps(m, vm):
        simulated_line(m, w, Kind.V2_TRY_SPLIT_BEGIN, start, target, end, 0)
    if not m.window[w].aligned:
        m.ctl.run = w + 1
    return w


@jit
def begin_slot_window(
    m: Mmu, vm: int, pid: int, cause: int, s: int, target: int, by_probe: bool, k: KnobCodes
) -> None:
    """kvm_mmu_slot_try_split_huge_pages()."""
    if s >= 0:
        base = m.slot[s].base_gfn
        begin_window(m, vm, pid, cause, s, base, base + m.slot[s].npages, target, by_probe, k)


@jit
def begin_range_window(m: Mmu, vm: int, pid: int, start: int, end: int, target: int, k: KnobCodes) -> int:
    """The window of a range whose part begins, where no line shows who asked for it."""
    s = address_spaces.any_slot_of_range(m, vm, start, end)
    w = begin_window(m, vm, pid, WindowCause.CLEAR_DIRTY_LOG, s, start, end, target, False, k)
    m.window[w].open_ended = 1
    address_spaces.leave_undecided(m, w)
    return w


@jit
def shadow_part_begins(m: Mmu, w: int, start: int, end: int) -> None:
    """shadow_try_split or v2_try_split_begin."""
    m.window[w].start = start
    m.window[w].end = end
    m.window[w].phase = Phase.SHADOW


@jit
def tdp_part_begins(m: Mmu, w: int, by_probe: bool, k: KnobCodes) -> int:
    """The TDP MMU's turn: the shadow part is over.

    Without a probe its first line shows that, which may be that of a table before the split.
    """
    win = m.window[w]
    if win.phase < Phase.TDP:
        if win.aligned and address_spaces.shadow_part_ends(m, w, k) == NO_ROOM:
            return NO_ROOM
        if win.aligned and not win.words and finish_shadow(m, w, k) == NO_ROOM:
            return NO_ROOM
        if by_probe and not win.words:
            compare_lines(m, w, True)
        win.phase = Phase.TDP
    return OK


@jit
def close_window(m: Mmu, w: int, k: KnobCodes) -> int:
    """The end of a window: what is left of either part, the recording lacks."""
    win = m.window[w]
    vm = win.vm
    if address_spaces.window_ends(m, w, k) == NO_ROOM:
        return NO_ROOM
    if win.aligned and win.cause != WindowCause.RECORDED and finish(m, w, k) == NO_ROOM:
        return NO_ROOM
    if win.cause == WindowCause.RECORDED or win.cut:
        drop_simulated(m, w)  # where this window ends is not known: what the walk is ahead is no difference
    compare_lines(m, w, True)
    s = win.slot
    log_on = win.cause == WindowCause.MEMSLOT_FLAGS and s >= 0
    if (
        log_on
        and not m.vm[vm].probes & ProbeSet.PROTECT
        and protect_slot(m, vm, s, uses_pml(m, vm, k)) == NO_ROOM
    ):
        return NO_ROOM
    if win.cause == WindowCause.CLEAR_DIRTY_LOG and not win.words:
        protect_cleared(m, vm, s, win.start, win.end, 0, k)
    # the flush of the last split can be a line that comes after the end
    win.doubted = not knows_all(m, vm) or win.cut != 0
    win.phase = Phase.CLOSED
    m.vm[vm].window = -1
    return OK


@jit
def begin_clear_window(
    m: Mmu, vm: int, pid: int, s: int, first_page: int, last_page: int, mask: int, k: KnobCodes
) -> int:
    """KVM_CLEAR_DIRTY_LOG by a marker: one range for each 64-page word; pages are counted in the slot."""
    first_page = max(first_page, 0)
    last_page = min(last_page, m.slot[s].npages)
    if first_page >= last_page:
        return OK
    if need_bitmap(m, s) == NO_ROOM:
        return NO_ROOM
    base = m.slot[s].base_gfn
    w = begin_window(
        m, vm, pid, WindowCause.CLEAR_DIRTY_LOG, s, base + first_page, base + last_page, 1, False, k
    )
    win = m.window[w]
    win.first_word = first_page >> 6
    win.words = ((last_page - 1) >> 6) - (first_page >> 6) + 1
    win.first_page = first_page
    win.last_page = last_page
    win.mask = mask
    win.walk_done = 1  # the first range is yet to be taken
    win.tdp_gfn = 1 << 41
    return OK
