"""What the next event of a task tells of this one: which MMU a page is of, what opens a window."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.spte import is_last_spte, is_shadow_present_pte
from replay.mmu.state.mmu import Mmu
from replay.schema import LAST_KVMMMU, Columns, Flag, Kind, Role

LOOKAHEAD = 4096
"""Rows behind an event that may be needed to tell what it belongs to."""


@jit
def next_of_task(c: Columns, i: int, pid: int) -> int:
    """Row of the next kvmmmu event of the same task, or -1 if there is none near."""
    for j in range(i + 1, min(i + LOOKAHEAD, len(c.kind))):
        if c.pid[j] == pid and c.kind[j] <= LAST_KVMMMU:
            return j
    return -1


@jit
def is_tdp_get_page(c: Columns, i: int, pid: int, has_tdp: bool) -> bool:
    """A direct page of the TDP MMU: the task links it next, or loses the race for it; or the TDP root.

    Followed by a change is not enough: an indirect page first write-protects its gfn in the TDP MMU.
    """
    role = np.int64(c.role[i])
    if not has_tdp or not role & Role.DIRECT:
        return False
    level = role & Role.LEVEL
    if level >= 4 and c.gfn[i] == 0 and c.flags[i] & Flag.CREATED:
        return True
    j = next_of_task(c, i, pid)
    if j < 0 or np.int64(c.level[j]) != level + 1 or c.gfn[j] != c.gfn[i]:
        return False
    if c.kind[j] == Kind.TDP_MMU_SPTE_CHANGED:
        spte = np.int64(c.spte[j])
        return is_shadow_present_pte(spte) and not is_last_spte(spte, level + 1)
    return c.kind[j] == Kind.SPLIT_HUGE_PAGE and c.num[j] == -16


@jit
def is_tdp_zap(m: Mmu, t: int, c: Columns, i: int, pid: int, has_tdp: bool) -> bool:
    """A table of the TDP MMU is zapped: its parent's change is the event before (up to 6.12) or after it."""
    role = np.int64(c.role[i])
    if not has_tdp or not role & Role.DIRECT:
        return False
    level = role & Role.LEVEL
    gfn = np.int64(c.gfn[i])
    task = m.task[t]
    if task.tdp_level == level + 1 and task.tdp_gfn == gfn:
        old = task.tdp_old
        if is_shadow_present_pte(old) and not is_last_spte(old, level + 1):
            return True
    j = next_of_task(c, i, pid)
    if j < 0 or c.kind[j] != Kind.TDP_MMU_SPTE_CHANGED:
        return False
    if np.int64(c.level[j]) == level + 1 and c.gfn[j] == c.gfn[i]:
        return True
    return np.int64(c.level[j]) == level and (np.int64(c.gfn[j]) ^ gfn) >> (9 * level) == 0


@jit
def begins_recorded_window(m: Mmu, c: Columns, i: int, vm: int, pid: int) -> bool:
    """A get_page line that belongs to a recorded split which no probe and no marker announced."""
    if not m.vm[vm].by_record or not np.int64(c.role[i]) & Role.DIRECT:
        return False
    j = next_of_task(c, i, pid)
    return j >= 0 and c.kind[j] == Kind.SPLIT_HUGE_PAGE and c.gfn[j] == c.gfn[i]
