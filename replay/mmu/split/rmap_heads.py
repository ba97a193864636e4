"""The rmap heads of a range, as slot_handle_level_range() visits them (mmu.c): all of 1G, then all of 2M."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.recorded.lines import simulated_flush, simulated_line
from replay.mmu.results.census import census_head
from replay.mmu.split.window import count, place
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu, find_gib
from replay.schema import FlushCause, Kind, Outcome

SKIP_UNSYNC = int(Outcome.UNSYNC) - 1
SKIP_INVALID = int(Outcome.INVALID) - 1
SKIP_NOT_NESTED = int(Outcome.NOT_NESTED) - 1

END_OF_HEAD = 1 << 40
"""Position in a head whose function returned before the end of its list."""


@jit
def next_head(m: Mmu, vm: int, level: int, gfn: int, last: int) -> int:
    """First gfn >= ``gfn`` and <= ``last`` whose head at ``level`` is not empty, else -1."""
    last = min(last, m.vm[vm].end - 1)
    while gfn <= last:
        g = find_gib(m, vm, gfn, False)
        if g >= 0 and level == 3:
            if m.gib[g].head:
                return gfn
        elif g >= 0:
            first = m.gib[g].region
            for i in range((gfn >> 9) & 511, 512):
                if m.region[first + i].head:
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
    vm = win.vm
    while win.level > win.target:
        shift = 9 * (win.level - 1)
        if win.gfn < 0:
            gfn = win.start >> shift << shift
            simulated_line(m, w, Kind.V2_LEVEL_BEGIN, 0, win.level, win.flush, 0)
        else:
            gfn = next_head(m, vm, win.level, win.gfn + (1 << shift), (win.end - 1) >> shift << shift)
        if gfn >= 0:
            win.gfn = gfn
            win.in_head = 1
            win.position = 0
            win.spare = 0
            win.head_flush = 0
            win.retries = 0
            win.drop_idle = 0
            census_head(m, w)
            return True
        win.level -= 1
        win.gfn = -1
    return False


@jit
def restart_head(m: Mmu, w: int) -> None:
    """The walk of the rmap head begins anew, and with it the count of what it skips."""
    win = m.window[w]
    win.position = 0
    win.skip_unsync = 0
    win.skip_invalid = 0
    win.skip_not_nested = 0


@jit
def leave_head(m: Mmu, w: int) -> bool:
    """The end of one head's function and what slot_handle_level_range() does after it; True if it yields."""
    win = m.window[w]
    win.skipped[SKIP_UNSYNC] += win.skip_unsync
    win.skipped[SKIP_INVALID] += win.skip_invalid
    win.skipped[SKIP_NOT_NESTED] += win.skip_not_nested
    restart_head(m, w)
    if win.spare:
        simulated_line(m, w, Kind.V2_SP_FREED_UNUSED, 0, 0, 0, 0)
        win.spare = 0
    win.flush |= win.head_flush
    win.owed |= win.head_flush
    win.head_flush = 0
    win.in_head = 0
    if win.env_yield != place(win.gfn, win.level) + 1:
        return False
    win.env_yield = 0
    count(m, Counter.ENV_YIELDS, 1)
    # the iterator's gfn: of the first head, it is that of the range
    gfn = max(win.gfn, win.start)
    simulated_line(m, w, Kind.V2_RANGE_YIELD, gfn, win.level, win.flush, 0)
    if win.flush:
        # the range that is flushed ends with the first gfn of the last head
        simulated_flush(m, w, FlushCause.YIELD, win.start, gfn + 1)
        win.flush = 0
        win.owed = 0
    return True
