"""Attempts: each is a row of the tables of outcomes, and counted in its window."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.census import census_attempt
from replay.mmu.layout import SP_KEY, SP_PAGE
from replay.mmu.role import ROLE_MASK
from replay.mmu.state import Mmu
from replay.mmu.window import (
    C_ATTEMPTS_2M,
    C_RETRIES,
    C_SPLIT_2M,
    OUT16_ERRNO,
    OUT16_LEVEL,
    OUT16_OUTCOME,
    OUT32_RETRIES,
    OUT32_ROLE,
    OUT_GFN,
    OUT_SPTE,
    OUT_SPTEP,
    WIN_ATTEMPTS,
    WIN_CHILD,
    WIN_DROP_IDLE,
    WIN_GFN,
    WIN_LEVEL,
    WIN_RETRIED,
    WIN_RETRIES,
    WIN_SKIPPED,
    WIN_SPLIT,
    count,
    new_outcome,
)
from replay.schema import Outcome

SPLIT = int(Outcome.SPLIT)
NO_FREE_PAGES = int(Outcome.NO_FREE_PAGES)
NO_MEMORY = int(Outcome.NO_MEMORY)
EXISTING_CHILD = int(Outcome.EXISTING_CHILD)
RETRY = int(Outcome.RETRY)


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
