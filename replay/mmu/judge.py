"""What was recorded beside what was simulated: attempts and split lines."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.aging import follow_aging
from replay.mmu.layout import VM_LAYOUT
from replay.mmu.spte import sptes_agree
from replay.mmu.state import Mmu
from replay.mmu.window import (
    ATTEMPT_TDP,
    OUT16_ERRNO,
    OUT16_FLAGS,
    OUT16_LEVEL,
    OUT16_MATCH,
    OUT16_OUTCOME,
    OUT32_SOURCE,
    OUT32_WINDOW,
    OUT_GFN,
    OUT_SPTE,
    SOURCE_ERRNO,
    SOURCE_GFN,
    SOURCE_LEVEL,
    SOURCE_MMU,
    SOURCE_RECORDED,
    SOURCE_SPTE,
    WIN_CUT,
    WIN_PENDING,
    WIN_TDP_PENDING,
    WIN_VM,
    new_outcome,
    new_source,
    note_difference,
    note_tdp_difference,
)
from replay.schema import Match

MATCHED = int(Match.MATCHED)
MISMATCHED = int(Match.MISMATCHED)
MISSING = int(Match.MISSING)
UNEXPECTED = int(Match.UNEXPECTED)
UNKNOWN = int(Match.UNKNOWN)


@jit
def note_record(m: Mmu, o: int, gfn: int, spte: int, level: int, errno: int) -> None:
    """Put the recorded split line beside the outcome ``o``."""
    s = new_source(m)
    m.out32[o, OUT32_SOURCE] = s
    source = m.source[s]
    source[SOURCE_RECORDED] = 1
    source[SOURCE_MMU] = m.out16[o, OUT16_FLAGS] & ATTEMPT_TDP
    source[SOURCE_GFN] = gfn
    source[SOURCE_SPTE] = spte
    source[SOURCE_LEVEL] = level
    source[SOURCE_ERRNO] = errno


@jit
def difference(m: Mmu, w: int, o: int, match: int) -> int:
    """``match`` of attempt ``o``, or UNKNOWN where state older than the trace may make the difference."""
    if m.out16[o, OUT16_FLAGS] & ATTEMPT_TDP:
        return match if note_tdp_difference(m, w) else UNKNOWN
    return match if note_difference(m, w) else UNKNOWN


@jit
def recorded_spte_agrees(m: Mmu, o: int, spte: int, errno: int) -> bool:
    """Whether the SPTE of attempt ``o`` is the recorded one, but for what changes without a line.

    Of a split in the TDP MMU the change line before it told the whole value.
    """
    if m.out[o, OUT_SPTE] == spte:
        return True
    if m.out16[o, OUT16_FLAGS] & ATTEMPT_TDP and errno == 0:
        return False
    vm = m.window[m.out32[o, OUT32_WINDOW], WIN_VM]
    return sptes_agree(m.out[o, OUT_SPTE], spte, m.vm[vm, VM_LAYOUT])


@jit
def judge(m: Mmu, o: int, gfn: int, spte: int, level: int, errno: int) -> None:
    """Compare attempt ``o`` with the recorded line of its place."""
    note_record(m, o, gfn, spte, level, errno)
    equal = (
        m.out[o, OUT_GFN] == gfn
        and recorded_spte_agrees(m, o, spte, errno)
        and m.out16[o, OUT16_LEVEL] == level
        and m.out16[o, OUT16_ERRNO] == errno
    )
    m.out16[o, OUT16_MATCH] = (
        MATCHED if equal else difference(m, np.int64(m.out32[o, OUT32_WINDOW]), o, MISMATCHED)
    )
    if equal:
        follow_aging(m, o, spte)


@jit
def missing(m: Mmu, w: int, flags: int, gfn: int, spte: int, level: int, errno: int) -> None:
    """A recorded split line that the simulation has no attempt for."""
    o = new_outcome(m, w, flags)
    m.out16[o, OUT16_OUTCOME] = -1
    note_record(m, o, gfn, spte, level, errno)
    m.out16[o, OUT16_MATCH] = MISSING if note_difference(m, w) else UNKNOWN


@jit
def unexpected(m: Mmu, w: int, o: int) -> None:
    """Attempt ``o`` has no recorded line; nor has it an unrecorded one if the trace ends in the window."""
    if not m.window[w, WIN_CUT]:
        m.out16[o, OUT16_MATCH] = difference(m, w, o, UNEXPECTED)


@jit
def pending_is_unexpected(m: Mmu, w: int) -> None:
    """The attempt under way has no recorded split line."""
    if m.window[w, WIN_PENDING]:
        unexpected(m, w, m.window[w, WIN_PENDING] - 1)
        m.window[w, WIN_PENDING] = 0


@jit
def tdp_pending_is_unexpected(m: Mmu, w: int) -> None:
    if m.window[w, WIN_TDP_PENDING]:
        unexpected(m, w, m.window[w, WIN_TDP_PENDING] - 1)
        m.window[w, WIN_TDP_PENDING] = 0
