"""Address spaces: slots of SMM (id 65536 on, ``as id 1``) beside those of the guest's normal life.

Every slot has rmaps of its own, and those of SMM are empty as long as the shadow MMU maps nothing for SMM;
the TDP MMU has a root for each space.  A window that a probe of a range opens does not say which slot it is
of: all that hold the range are candidates, and what follows decides.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.layout import (
    CTL_SLOT_TOP,
    SLOT_BASE,
    SLOT_ID,
    SLOT_LIVE,
    SLOT_NPAGES,
    SLOT_VM,
    VM_HAS_TDP,
    VM_SMM_RANGE,
)
from replay.mmu.room import NO_ROOM, OK
from replay.mmu.split import STOP_NO_ROOM, STOP_PEEKED, advance
from replay.mmu.state import Mmu
from replay.mmu.tdp import next_huge
from replay.mmu.truth import drop_simulated
from replay.mmu.window import (
    WIN_ALIGNED,
    WIN_END,
    WIN_PENDING,
    WIN_SKIPPED,
    WIN_SLOT,
    WIN_SPACE,
    WIN_START,
    WIN_TARGET,
    WIN_TDP_GFN,
    WIN_VM,
    WIN_WALK_DONE,
    WIN_WORDS,
)
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
    for s in range(m.ctl[CTL_SLOT_TOP]):
        first = m.slot[s, SLOT_BASE]
        if (
            m.slot[s, SLOT_LIVE]
            and m.slot[s, SLOT_VM] == vm
            and m.slot[s, SLOT_ID] >> 16 == space
            and first <= start < first + m.slot[s, SLOT_NPAGES]
            and end <= first + m.slot[s, SLOT_NPAGES]
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
    start, end = win[WIN_START], win[WIN_END]
    both = win[WIN_SPACE] == NORMAL and slot_of_range(m, win[WIN_VM], SMM, start, end) >= 0
    if both and win[WIN_SLOT] >= 0 and win[WIN_ALIGNED]:
        win[WIN_SPACE] = UNDECIDED


@jit
def decide(m: Mmu, w: int, space: int) -> None:
    """A line of window ``w`` tells its address space, where the slot did not."""
    win = m.window[w]
    if win[WIN_SPACE] == space or (win[WIN_SPACE] != UNDECIDED and win[WIN_SLOT] >= 0):
        return
    win[WIN_SPACE] = space
    if win[WIN_SLOT] >= 0 and not win[WIN_WORDS]:
        win[WIN_SLOT] = slot_of_range(m, win[WIN_VM], space, win[WIN_START], win[WIN_END])
    if space == SMM:
        win[WIN_WALK_DONE] = 1
        drop_simulated(m, w)
        for i in range(SKIPS):
            win[WIN_SKIPPED + i] = 0


@jit
def shadow_part_ends(m: Mmu, w: int, k: KnobCodes) -> int:
    """The shadow part of ``w`` ends: if it left no line where the normal space has to be split, it is SMM's.

    But not twice for one range: then the normal space's own window is among them, and lacks its lines.
    """
    win = m.window[w]
    if win[WIN_SPACE] != UNDECIDED or m.vm[win[WIN_VM], VM_SMM_RANGE] == win[WIN_START] + 1:
        return OK
    if win[WIN_PENDING]:
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
    vm = win[WIN_VM]
    if win[WIN_SPACE] != UNDECIDED:
        return OK
    if shadow_part_ends(m, w, k) == NO_ROOM:
        return NO_ROOM
    if win[WIN_SPACE] != UNDECIDED:
        return OK
    level = 0
    if k.enabled and m.vm[vm, VM_HAS_TDP] and m.vm[vm, VM_SMM_RANGE] != win[WIN_START] + 1:
        first = max(win[WIN_TDP_GFN], win[WIN_START] >> 9 << 9)
        level = next_huge(m, vm, NORMAL, first, win[WIN_END], win[WIN_TARGET])[1]
    if level:
        take_for_smm(m, w)
    else:
        decide(m, w, NORMAL)
    return OK


@jit
def take_for_smm(m: Mmu, w: int) -> None:
    m.vm[m.window[w, WIN_VM], VM_SMM_RANGE] = m.window[w, WIN_START] + 1
    decide(m, w, SMM)
