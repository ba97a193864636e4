"""Windows: one eager split of a slot or range, as rows that can be suspended and resumed.

A window is opened by a probe, a marker or a recorded outcome (control.py), walked by split.py (shadow
MMU) and tdp.py, and closed by the task that opened it.  While the lock is dropped other tasks' events
act on the state in the middle of a window, so all that the walk knows lives in its row of ``Mmu.window``.
"""

from __future__ import annotations

import numpy as np

from replay.jit import clear, jit
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import CacheKnown, ProbeSet
from replay.schema import WindowCause

ANY_PLACE = 1 << 62
"""Of ``env_drop``: the next attempt."""


@jit
def count(m: Mmu, counter: int, n: int) -> None:
    """Add ``n`` to a member of Counter."""
    m.counter[counter] += n


@jit
def note_older(m: Mmu, vm: int, counter: int) -> None:
    """Count a sign of state that is older than the trace; after a difference it may come of that instead."""
    m.counter[counter] += 1
    if m.vm[vm].older == 0 and not m.vm[vm].differs:
        m.vm[vm].older = m.ctl.line


@jit
def note_root(m: Mmu, vm: int) -> None:
    """A root is made: if that is the first that is seen of a VM, all of its state is in the trace."""
    if not m.vm[vm].begun:
        m.vm[vm].begun = 1
        m.vm[vm].born = 1
        if m.vm[vm].probes & ProbeSet.REGION and spaces_of_slots(m, vm) == 0:
            m.vm[vm].caches = CacheKnown.UNKNOWN  # its slots are older, and so is it


@jit
def note_begun_before(m: Mmu, vm: int) -> None:
    """An event shows that ``vm`` began before the trace, unless its beginning was seen."""
    if not m.vm[vm].begun:
        m.vm[vm].begun = 1
        m.vm[vm].caches = CacheKnown.UNKNOWN


@jit
def knows_all(m: Mmu, vm: int) -> bool:
    """Whether all state of ``vm`` is known: it began in the trace, and nothing is in doubt up to here."""
    known = m.vm[vm].born != 0 and m.vm[vm].older == 0
    return known and m.ctl.line < m.vm[vm].doubt_line


@jit
def note_difference(m: Mmu, w: int) -> bool:
    """A line of window ``w`` differs; False if it may rest on state that is older than the trace."""
    vm = m.window[w].vm
    if not knows_all(m, vm):
        note_unproven(m, vm)
        return False
    note_proven(m, w)
    return True


@jit
def note_unproven(m: Mmu, vm: int) -> None:
    """The line being replayed shows a difference that proves nothing."""
    if m.vm[vm].unproven == 0:
        m.vm[vm].unproven = m.ctl.line
    m.vm[vm].last_unproven = m.ctl.line


@jit
def note_proven(m: Mmu, w: int) -> None:
    """The line being replayed shows that window ``w`` is not as simulated."""
    m.vm[m.window[w].vm].differs = 1
    if m.window[w].different_line == 0:
        m.window[w].different_line = m.ctl.line


@jit
def note_tdp_difference(m: Mmu, w: int) -> bool:
    """As :func:`note_difference`, of an attempt of the TDP MMU that was foreseen.

    A line of the trace showed its huge SPTE, however late the trace begins; but for that the window has
    to be one of the address space that it is taken for.
    """
    vm = m.window[w].vm
    doubtful = m.ctl.line >= m.vm[vm].doubt_line
    if doubtful or not knows_space(m, w):
        return note_difference(m, w)
    note_proven(m, w)
    return True


@jit
def knows_space(m: Mmu, w: int) -> bool:
    """Whether no slot that is older than the trace can be the one that window ``w`` is of."""
    win = m.window[w]
    if win.slot < 0 or win.space < 0:
        return False
    if win.cause == WindowCause.MEMSLOT_FLAGS:
        return True  # its own line names the slot
    return spaces_of_slots(m, win.vm) == 3


@jit
def spaces_of_slots(m: Mmu, vm: int) -> int:
    """A bit for each address space of which ``vm`` has memslots that are known."""
    spaces = 0
    for s in range(m.ctl.slot_top):
        if m.slot[s].is_live and m.slot[s].vm == vm:
            spaces |= 1 << (m.slot[s].id >> 16)
    return spaces


@jit
def open_window(m: Mmu, vm: int, pid: int, cause: int, slot: int, start: int, end: int, target: int) -> int:
    """A new window of ``vm`` over gfns [start, end); its number."""
    w = m.ctl.window_top
    m.ctl.window_top += 1
    win = m.window[w]
    clear(win)
    win.vm = vm
    win.task = pid
    win.cause = cause
    win.slot = slot
    win.space = m.slot[slot].id >> 16 if slot >= 0 else 0
    win.start = start
    win.end = end
    win.target = target
    win.ts = m.ctl.ts
    win.line = m.ctl.line
    win.level = 3
    win.gfn = -1
    m.vm[vm].window = w
    return w


@jit
def place(gfn: int, level: int) -> int:
    """Where a walk stands, in the order of the walk: all 1G heads come before all 2M heads."""
    return ((3 - level) << 48) + (gfn >> (9 * (level - 1)) << (9 * (level - 1)))


@jit
def place_of(m: Mmu, o: int) -> int:
    """The place of attempt ``o``."""
    return place(m.attempt[o].gfn, np.int64(m.attempt[o].level))


@jit
def record_flush(m: Mmu, w: int, cause: int, start: int, end: int) -> None:
    """One TLB flush of window ``w`` over gfns [start, end)."""
    f = m.ctl.flush_top
    m.ctl.flush_top += 1
    flush = m.flush[f]
    flush.window = w
    flush.vm = m.window[w].vm
    flush.ts = m.ctl.ts
    flush.line = m.ctl.line
    flush.cause = cause
    flush.start = start
    flush.end = end
    m.window[w].flushes[cause] += 1


@jit
def new_outcome(m: Mmu, w: int, flags: int) -> int:
    """A new row of the tables of attempts for window ``w``, its figures zero and its match unchecked."""
    o = m.ctl.attempt_top
    m.ctl.attempt_top += 1
    attempt = m.attempt[o]
    attempt.sptep = -1
    attempt.window = w
    attempt.source = source_of_event(m)
    attempt.attempt_flags = flags
    return o


@jit
def new_source(m: Mmu) -> int:
    """A new row of ``m.source`` for the event being replayed."""
    s = m.ctl.source_top
    m.ctl.source_top += 1
    m.source[s].ts = m.ctl.ts
    m.source[s].line = m.ctl.line
    return s


@jit
def source_of_event(m: Mmu) -> int:
    """The row of ``m.source`` for attempts that the event being replayed causes."""
    s = m.ctl.source_top - 1
    if s < 0 or m.source[s].line != m.ctl.line or m.source[s].ts != m.ctl.ts:
        return new_source(m)
    return new_source(m) if m.source[s].recorded else s
