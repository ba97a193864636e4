"""Attempts: each is a row of the tables of outcomes, and counted in its window."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.role import ROLE_MASK
from replay.mmu.results.census import census_attempt
from replay.mmu.split.window import count, new_outcome
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu
from replay.schema import Outcome


@jit
def begin_attempt(m: Mmu, w: int, sptep: int, spte: int) -> int:
    """The outcome row of an attempt at the huge SPTE ``sptep`` that has the value ``spte``."""
    win = m.window[w]
    sp = sptep // 512
    o = new_outcome(m, w, 0)
    m.attempt[o].gfn = win.gfn
    m.attempt[o].level = win.level
    m.attempt[o].spte = spte
    m.attempt[o].role = m.sp[sp].key & ROLE_MASK
    if m.sp[sp].frame:
        m.attempt[o].sptep = (m.sp[sp].frame << 12) + 8 * (sptep % 512)
    m.attempt[o].retries = win.retries
    win.child = -1
    census_attempt(m, w, sptep, spte, o)
    return o


@jit
def end_attempt(m: Mmu, w: int, o: int, outcome: int, errno: int) -> None:
    """Attempt ``o`` of window ``w`` ends with ``outcome`` (schema.Outcome) and ``errno``, 0 or positive."""
    win = m.window[w]
    m.attempt[o].outcome = outcome
    m.attempt[o].errno = -errno
    if outcome == Outcome.RETRY:
        win.retried += 1
        win.retries += 1
        count(m, Counter.RETRIES, 1)
        return
    level_counter = win.level - 2
    win.attempts += 1
    win.retries = 0
    count(m, Counter.ATTEMPTS_2M + level_counter, 1)
    if outcome == Outcome.SPLIT:
        win.drop_idle = 0
        win.split += 1
        count(m, Counter.SPLIT_2M + level_counter, 1)
    else:
        win.skipped[outcome - 1] += 1
