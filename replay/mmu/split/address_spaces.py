"""Address spaces: slots of SMM (id 65536 on, ``as id 1``) beside those of the guest's normal life.

Every slot has rmaps of its own, and those of SMM are empty as long as the shadow MMU maps nothing for SMM;
the TDP MMU has a root for each space.  A window that a probe of a range opens does not say which slot it is
of: all that hold the range are candidates, and what follows decides.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.recorded.lines import drop_simulated
from replay.mmu.split.walk import STOP_NO_ROOM, STOP_PEEKED, advance
from replay.mmu.state.growth import NO_ROOM, OK
from replay.mmu.state.mmu import Mmu
from replay.mmu.tdp.tables import next_huge
from replay.policy import KnobCodes
from replay.schema import SKIP_WORDS

NORMAL = 0
SMM = 1
UNDECIDED = -1
NO_RESCHED = (0, -1)
SKIPS = len(SKIP_WORDS)


@jit
def slot_of_range(m: Mmu, vm: int, space: int, start: int, end: int) -> int:
    """The row of the slot of ``space`` that holds gfns [start, end), at least ``start``; or -1."""
    for s in range(m.ctl.slot_top):
        first = m.slot[s].base_gfn
        if (
            m.slot[s].is_live
            and m.slot[s].vm == vm
            and m.slot[s].id >> 16 == space
            and first <= start < first + m.slot[s].npages
            and end <= first + m.slot[s].npages
        ):
            return s
    return -1


@jit
def any_slot_of_range(m: Mmu, vm: int, start: int, end: int) -> int:
    """A candidate for the window of a range: rather a slot of the normal space."""
    s = slot_of_range(m, vm, NORMAL, start, end)
    if s < 0:
        s = slot_of_range(m, vm, SMM, start, end)
    return s if s >= 0 else slot_of_range(m, vm, NORMAL, start, start)


@jit
def leave_undecided(m: Mmu, w: int) -> None:
    """Window ``w`` was opened for a range: its space is open if slots of both hold it."""
    win = m.window[w]
    start, end = win.start, win.end
    both = win.space == NORMAL and slot_of_range(m, win.vm, SMM, start, end) >= 0
    if both and win.slot >= 0 and win.aligned:
        win.space = UNDECIDED


@jit
def decide(m: Mmu, w: int, space: int) -> None:
    """A line of window ``w`` tells its address space, where the slot did not."""
    win = m.window[w]
    if win.space == space or (win.space != UNDECIDED and win.slot >= 0):
        return
    win.space = space
    if win.slot >= 0 and not win.words:
        win.slot = slot_of_range(m, win.vm, space, win.start, win.end)
    if space == SMM:
        win.walk_done = 1
        drop_simulated(m, w)
        for i in range(SKIPS):
            win.skipped[i] = 0


@jit
def shadow_part_ends(m: Mmu, w: int, k: KnobCodes) -> int:
    """The shadow part of ``w`` ends: if it left no line where the normal space has to be split, it is SMM's.

    But not twice for one range: then the normal space's own window is among them, and lacks its lines.
    """
    win = m.window[w]
    if win.space != UNDECIDED or m.vm[win.vm].smm_range == win.start + 1:
        return OK
    if win.pending:
        decide(m, w, NORMAL)
        return OK
    stop = advance(m, w, k, NO_RESCHED, True)
    if stop == STOP_NO_ROOM:
        return NO_ROOM
    if stop == STOP_PEEKED:
        take_for_smm(m, w)
    return OK


@jit
def window_ends(m: Mmu, w: int, k: KnobCodes) -> int:
    """As :func:`shadow_part_ends`, at the end of the window: the TDP part has left no line either."""
    win = m.window[w]
    vm = win.vm
    if win.space != UNDECIDED:
        return OK
    if shadow_part_ends(m, w, k) == NO_ROOM:
        return NO_ROOM
    if win.space != UNDECIDED:
        return OK
    level = 0
    if k.enabled and m.vm[vm].has_tdp and m.vm[vm].smm_range != win.start + 1:
        first = max(win.tdp_gfn, win.start >> 9 << 9)
        level = next_huge(m, vm, NORMAL, first, win.end, win.target)[1]
    if level:
        take_for_smm(m, w)
    else:
        decide(m, w, NORMAL)
    return OK


@jit
def take_for_smm(m: Mmu, w: int) -> None:
    """Window ``w`` is taken for one of the address space of SMM."""
    m.vm[m.window[w].vm].smm_range = m.window[w].start + 1
    decide(m, w, SMM)
