"""What was recorded beside what was simulated: attempts and split lines."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.aging import follow_aging
from replay.mmu.kernel.spte import sptes_agree
from replay.mmu.split.window import new_outcome, new_source, note_difference, note_tdp_difference
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import AttemptFlag
from replay.schema import Match


@jit
def note_record(m: Mmu, o: int, gfn: int, spte: int, level: int, errno: int) -> None:
    """Put the recorded split line beside the outcome ``o``."""
    s = new_source(m)
    m.attempt[o].source = s
    source = m.source[s]
    source.recorded = 1
    source.mmu = m.attempt[o].attempt_flags & AttemptFlag.TDP
    source.gfn = gfn
    source.spte = spte
    source.level = level
    source.errno = errno


@jit
def difference(m: Mmu, w: int, o: int, match: int) -> int:
    """``match`` of attempt ``o``, or UNKNOWN where state older than the trace may make the difference."""
    if m.attempt[o].attempt_flags & AttemptFlag.TDP:
        return match if note_tdp_difference(m, w) else Match.UNKNOWN
    return match if note_difference(m, w) else Match.UNKNOWN


@jit
def recorded_spte_agrees(m: Mmu, o: int, spte: int, errno: int) -> bool:
    """Whether the SPTE of attempt ``o`` is the recorded one, but for what changes without a line.

    Of a split in the TDP MMU the change line before it told the whole value.
    """
    if m.attempt[o].spte == spte:
        return True
    if m.attempt[o].attempt_flags & AttemptFlag.TDP and errno == 0:
        return False
    vm = m.window[m.attempt[o].window].vm
    return sptes_agree(m.attempt[o].spte, spte, m.vm[vm].layout)


@jit
def judge(m: Mmu, o: int, gfn: int, spte: int, level: int, errno: int) -> None:
    """Compare attempt ``o`` with the recorded line of its place."""
    note_record(m, o, gfn, spte, level, errno)
    equal = (
        m.attempt[o].gfn == gfn
        and recorded_spte_agrees(m, o, spte, errno)
        and m.attempt[o].level == level
        and m.attempt[o].errno == errno
    )
    m.attempt[o].match = (
        Match.MATCHED if equal else difference(m, np.int64(m.attempt[o].window), o, Match.MISMATCHED)
    )
    if equal:
        follow_aging(m, o, spte)


@jit
def missing(m: Mmu, w: int, flags: int, gfn: int, spte: int, level: int, errno: int) -> None:
    """A recorded split line that the simulation has no attempt for."""
    o = new_outcome(m, w, flags)
    m.attempt[o].outcome = -1
    note_record(m, o, gfn, spte, level, errno)
    m.attempt[o].match = Match.MISSING if note_difference(m, w) else Match.UNKNOWN


@jit
def unexpected(m: Mmu, w: int, o: int) -> None:
    """Attempt ``o`` has no recorded line; nor has it an unrecorded one if the trace ends in the window."""
    if not m.window[w].cut:
        m.attempt[o].match = difference(m, w, o, Match.UNEXPECTED)


@jit
def pending_is_unexpected(m: Mmu, w: int) -> None:
    """The attempt under way has no recorded split line."""
    if m.window[w].pending:
        unexpected(m, w, m.window[w].pending - 1)
        m.window[w].pending = 0


@jit
def tdp_pending_is_unexpected(m: Mmu, w: int) -> None:
    """The attempt of the TDP MMU that waits for its recorded line will not get one."""
    if m.window[w].tdp_pending:
        unexpected(m, w, m.window[w].tdp_pending - 1)
        m.window[w].tdp_pending = 0
