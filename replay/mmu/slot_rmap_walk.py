"""The rmap heads of a range, as slot_handle_level_range() visits them (mmu.c): all of 1G, then all of 2M."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.census import census_head
from replay.mmu.kinds import V2_LEVEL_BEGIN, V2_RANGE_YIELD, V2_SP_FREED_UNUSED
from replay.mmu.layout import GIB_HEAD, GIB_REGION, REGION_HEAD, VM_END
from replay.mmu.state import Mmu, find_gib
from replay.mmu.truth import simulated_flush, simulated_line
from replay.mmu.window import (
    C_ENV_YIELDS,
    CAUSE_YIELD,
    WIN_DROP_IDLE,
    WIN_END,
    WIN_ENV_YIELD,
    WIN_FLUSH,
    WIN_GFN,
    WIN_HEAD_FLUSH,
    WIN_IN_HEAD,
    WIN_LEVEL,
    WIN_OWED,
    WIN_POSITION,
    WIN_RETRIES,
    WIN_SKIP_INVALID,
    WIN_SKIP_NOT_NESTED,
    WIN_SKIP_UNSYNC,
    WIN_SKIPPED,
    WIN_SPARE,
    WIN_START,
    WIN_TARGET,
    WIN_VM,
    count,
    place,
)
from replay.schema import Outcome

SKIP_UNSYNC = int(Outcome.UNSYNC) - 1
SKIP_INVALID = int(Outcome.INVALID) - 1
SKIP_NOT_NESTED = int(Outcome.NOT_NESTED) - 1

END_OF_HEAD = 1 << 40
"""Position in a head whose function returned before the end of its list."""


@jit
def next_head(m: Mmu, vm: int, level: int, gfn: int, last: int) -> int:
    """First gfn >= ``gfn`` and <= ``last`` whose head at ``level`` is not empty, else -1."""
    last = min(last, m.vm[vm, VM_END] - 1)
    while gfn <= last:
        g = find_gib(m, vm, gfn, False)
        if g >= 0 and level == 3:
            if m.gib[g, GIB_HEAD]:
                return gfn
        elif g >= 0:
            first = m.gib[g, GIB_REGION]
            for i in range((gfn >> 9) & 511, 512):
                if m.region[first + i, REGION_HEAD]:
                    gfn = (gfn >> 18 << 18) + (i << 9)
                    return gfn if gfn <= last else -1
        gfn = ((gfn >> 18) + 1) << 18
    return -1


@jit
def enter_next_head(m: Mmu, w: int) -> bool:
    """Move on to the next rmap head that slot_handle_level_range() visits; False after the last.

    The first head of each level is visited even if it is empty, or behind the end of the range.
    """
    win = m.window[w]
    vm = win[WIN_VM]
    while win[WIN_LEVEL] > win[WIN_TARGET]:
        shift = 9 * (win[WIN_LEVEL] - 1)
        if win[WIN_GFN] < 0:
            gfn = win[WIN_START] >> shift << shift
            simulated_line(m, w, V2_LEVEL_BEGIN, 0, win[WIN_LEVEL], win[WIN_FLUSH], 0)
        else:
            gfn = next_head(
                m, vm, win[WIN_LEVEL], win[WIN_GFN] + (1 << shift), (win[WIN_END] - 1) >> shift << shift
            )
        if gfn >= 0:
            win[WIN_GFN] = gfn
            win[WIN_IN_HEAD] = 1
            win[WIN_POSITION] = 0
            win[WIN_SPARE] = 0
            win[WIN_HEAD_FLUSH] = 0
            win[WIN_RETRIES] = 0
            win[WIN_DROP_IDLE] = 0
            census_head(m, w)
            return True
        win[WIN_LEVEL] -= 1
        win[WIN_GFN] = -1
    return False


@jit
def restart_head(m: Mmu, w: int) -> None:
    win = m.window[w]
    win[WIN_POSITION] = 0
    win[WIN_SKIP_UNSYNC] = 0
    win[WIN_SKIP_INVALID] = 0
    win[WIN_SKIP_NOT_NESTED] = 0


@jit
def leave_head(m: Mmu, w: int) -> bool:
    """The end of one head's function and what slot_handle_level_range() does after it; True if it yields."""
    win = m.window[w]
    win[WIN_SKIPPED + SKIP_UNSYNC] += win[WIN_SKIP_UNSYNC]
    win[WIN_SKIPPED + SKIP_INVALID] += win[WIN_SKIP_INVALID]
    win[WIN_SKIPPED + SKIP_NOT_NESTED] += win[WIN_SKIP_NOT_NESTED]
    restart_head(m, w)
    if win[WIN_SPARE]:
        simulated_line(m, w, V2_SP_FREED_UNUSED, 0, 0, 0, 0)
        win[WIN_SPARE] = 0
    win[WIN_FLUSH] |= win[WIN_HEAD_FLUSH]
    win[WIN_OWED] |= win[WIN_HEAD_FLUSH]
    win[WIN_HEAD_FLUSH] = 0
    win[WIN_IN_HEAD] = 0
    if win[WIN_ENV_YIELD] != place(win[WIN_GFN], win[WIN_LEVEL]) + 1:
        return False
    win[WIN_ENV_YIELD] = 0
    count(m, C_ENV_YIELDS, 1)
    # the iterator's gfn: of the first head, it is that of the range
    gfn = max(win[WIN_GFN], win[WIN_START])
    simulated_line(m, w, V2_RANGE_YIELD, gfn, win[WIN_LEVEL], win[WIN_FLUSH], 0)
    if win[WIN_FLUSH]:
        # the range that is flushed ends with the first gfn of the last head
        simulated_flush(m, w, CAUSE_YIELD, win[WIN_START], gfn + 1)
        win[WIN_FLUSH] = 0
        win[WIN_OWED] = 0
    return True
