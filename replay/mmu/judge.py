"""What was recorded beside what was simulated: attempts and split lines, and what probes of v2 say."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.layout import SP_GFN
from replay.mmu.shadow_page import get_spte
from replay.mmu.spte import is_shadow_present_pte
from replay.mmu.state import Mmu
from replay.mmu.window import (
    ATTEMPT_TDP,
    C_TRUTH_EXPECTED,
    C_TRUTH_MATCHED,
    OUT16_ERRNO,
    OUT16_FLAGS,
    OUT16_INSTALLED,
    OUT16_LEVEL,
    OUT16_MATCH,
    OUT16_NONPRESENT,
    OUT16_OUTCOME,
    OUT32_SOURCE,
    OUT_GFN,
    OUT_SPTE,
    SOURCE_ERRNO,
    SOURCE_GFN,
    SOURCE_LEVEL,
    SOURCE_MMU,
    SOURCE_RECORDED,
    SOURCE_SPTE,
    WIN_CHILD,
    WIN_PENDING,
    WIN_TDP_PENDING,
    count,
    new_outcome,
    new_source,
)
from replay.schema import Match

MATCHED = int(Match.MATCHED)
MISMATCHED = int(Match.MISMATCHED)
MISSING = int(Match.MISSING)
UNEXPECTED = int(Match.UNEXPECTED)


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
def judge(m: Mmu, o: int, gfn: int, spte: int, level: int, errno: int) -> None:
    """Compare attempt ``o`` with the recorded line of its place."""
    note_record(m, o, gfn, spte, level, errno)
    equal = (
        m.out[o, OUT_GFN] == gfn
        and m.out[o, OUT_SPTE] == spte
        and m.out16[o, OUT16_LEVEL] == level
        and m.out16[o, OUT16_ERRNO] == errno
    )
    m.out16[o, OUT16_MATCH] = MATCHED if equal else MISMATCHED


@jit
def missing(m: Mmu, w: int, flags: int, gfn: int, spte: int, level: int, errno: int) -> None:
    """A recorded split line that the simulation has no attempt for."""
    o = new_outcome(m, w, flags)
    m.out16[o, OUT16_OUTCOME] = -1
    note_record(m, o, gfn, spte, level, errno)
    m.out16[o, OUT16_MATCH] = MISSING


@jit
def pending_is_unexpected(m: Mmu, w: int) -> None:
    """The attempt under way has no recorded split line."""
    if m.window[w, WIN_PENDING]:
        m.out16[m.window[w, WIN_PENDING] - 1, OUT16_MATCH] = UNEXPECTED
        m.window[w, WIN_PENDING] = 0


@jit
def tdp_pending_is_unexpected(m: Mmu, w: int) -> None:
    if m.window[w, WIN_TDP_PENDING]:
        m.out16[m.window[w, WIN_TDP_PENDING] - 1, OUT16_MATCH] = UNEXPECTED
        m.window[w, WIN_TDP_PENDING] = 0


# -- what the v2 recordings' own probes say: compared, never used ----------------------------------------


@jit
def truth(m: Mmu, agrees: bool) -> None:
    count(m, C_TRUTH_EXPECTED, 1)
    if agrees:
        count(m, C_TRUTH_MATCHED, 1)


@jit
def split_done_line(m: Mmu, w: int, gfn: int, present: int, nonpresent: int) -> None:
    """v2_split_done."""
    o = m.window[w, WIN_PENDING] - 1
    truth(
        m,
        o >= 0
        and m.out[o, OUT_GFN] == gfn
        and m.out16[o, OUT16_INSTALLED] == present
        and m.out16[o, OUT16_NONPRESENT] == nonpresent,
    )


@jit
def split_nonpresent_line(m: Mmu, w: int, gfn: int, level: int) -> None:
    """v2_split_nonpresent: the child SPTE of ``gfn`` was left non-present."""
    o = m.window[w, WIN_PENDING] - 1
    child = m.window[w, WIN_CHILD] if o >= 0 else -1
    if child < 0:
        truth(m, False)
        return
    index = (gfn - m.sp[child, SP_GFN]) >> (9 * (level - 1))
    truth(m, 0 <= index < 512 and not is_shadow_present_pte(get_spte(m, child, index)))
