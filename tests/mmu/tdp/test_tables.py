"""The TDP MMU's tables and its eager split, against the plain-Python model."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.mmu.kernel import shadow_page
from replay.mmu.results.tables import attempts
from replay.mmu.split import window
from replay.mmu.state import growth, mmu
from replay.mmu.state.counters import Counter
from replay.mmu.tdp import tables
from replay.mmu.tdp.simulated import find_simulated
from replay.schema import Outcome
from tests.mmu.conftest import make_mmu
from tests.reference.tdp import Tdp

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
GIB = 1 << 18
HUGE, SMALL, NONLEAF = 0xEE7, 0xE67, 0x827
Change = tuple[int, int, int, int]


def change(m: mmu.Mmu, gfn: int, level: int, old: int, new: int, vm: int = 0) -> None:
    tables.spte_changed(m, np.int64(vm), 0, gfn, level, old, new)


def value(m: mmu.Mmu, gfn: int, level: int, vm: int = 0) -> int:
    t = find_simulated(m, np.int64(vm), 0, level, gfn)
    if t < 0:
        t = tables.find_table(m, np.int64(vm), 0, level, gfn, False)
    return 0 if t < 0 else int(shadow_page.get_spte(m, t, gfn >> 9 * (level - 1) & 511))


class Guest:
    """Consistent changes: what is mapped, by (level, gfn), as the kernel's own tables would hold it."""

    def __init__(self) -> None:
        self.model, self.m = Tdp(), make_mmu()

    def apply(self, gfn: int, level: int, new: int) -> None:
        old = self.model.sptes.get((level, gfn), 0)
        self.model.change(level, gfn, old, new)
        change(self.m, gfn, level, old, new)

    def map(self, gfn: int, level: int) -> None:
        """Map a page where no larger and no smaller one is."""
        for upper in range(3, level, -1):
            at = gfn & -(1 << 9 * (upper - 1))
            if self.model.is_huge(upper, at):
                return
            if (upper, at) not in self.model.sptes:
                self.apply(at, upper, (at + upper) << 12 | NONLEAF)
        if (level, gfn) not in self.model.sptes:
            self.apply(gfn, level, gfn << 12 | (HUGE if level > 1 else SMALL))


places = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 3))


@QUICK
@given(mapped=st.lists(places, max_size=12), first=st.integers(0, 1600), count=st.integers(1, 1600))
def test_split_of_a_range(mapped: list[tuple[int, int, int]], first: int, count: int) -> None:
    guest = Guest()
    for region, gib, level in mapped:
        gfn = gib * GIB + region * 512
        guest.map(gfn & -(1 << 9 * (level - 1)), level)
    m = guest.m
    w = int(window.open_window(m, 0, 1, 0, -1, first, first + count, 1))
    while not tables.split_all(m, w):
        m = growth.grow(m)
    columns = attempts(m)
    found = list(zip(*(columns[name].tolist() for name in ("gfn", "spte", "level")), strict=True))
    steps: list[Any] = list(guest.model.split(first, first + count, 1))
    assert found == [step[1:4] for step in steps if step[0] == "tdp_split"]
    assert m.window[w].tdp_split == len(found)
    for gfn, _, level in found:
        below = gfn + 5 * (1 << 9 * (level - 2))
        assert value(m, below, level - 1) == guest.model.sptes[level - 1, below] or level > 2


@QUICK
@given(mapped=st.lists(places, max_size=12))
def test_huge_pages_are_counted(mapped: list[tuple[int, int, int]]) -> None:
    guest = Guest()
    for region, gib, level in mapped:
        guest.map((gib * GIB + region * 512) & -(1 << 9 * (level - 1)), level)
    huge = sum(guest.model.is_huge(level, gfn) for level, gfn in guest.model.sptes if level > 1)
    assert tables.count_huge(guest.m) == huge


def test_fault_time_split_fills_the_table(m: mmu.Mmu) -> None:
    change(m, GIB, 3, 0, GIB << 12 | HUGE)
    change(m, GIB, 3, GIB << 12 | HUGE, 0x5000 | NONLEAF)
    assert value(m, GIB + 512 * 7, 2) == (GIB + 512 * 7) << 12 | HUGE
    change(m, GIB + 512, 2, (GIB + 512) << 12 | HUGE, 0x6000 | NONLEAF)
    assert value(m, GIB + 512 + 9, 1) == (GIB + 512 + 9) << 12 | SMALL
    assert tables.count_huge(m) == 511


def test_zapped_table_holds_nothing(m: mmu.Mmu) -> None:
    change(m, 0, 2, 0, 0x5000 | NONLEAF)
    change(m, 3, 1, 0, 0x3000 | SMALL)
    assert shadow_page.find_bound(m, 5) == tables.find_table(m, np.int64(0), 0, 1, 0, False)
    change(m, 0, 2, 0x5000 | NONLEAF, 0x5A0)
    assert (value(m, 3, 1), value(m, 0, 2), shadow_page.find_bound(m, 5)) == (0, 0, -1)


def test_lines_that_swapped_on_two_cpus(m: mmu.Mmu) -> None:
    first, second, third = (GIB << 12 | bits for bits in (0xEE7, 0xEE5, 0xEA5))
    change(m, GIB, 3, 0, first)
    change(m, GIB, 3, second, third)
    change(m, GIB, 3, first, second)
    assert value(m, GIB, 3) == third
    assert m.counter[Counter.SWAPPED_TDP_CHANGES] == 1


def test_vms_have_tables_of_their_own(m: mmu.Mmu) -> None:
    change(m, GIB, 3, 0, GIB << 12 | HUGE, vm=1)
    assert (value(m, GIB, 3, 0), value(m, GIB, 3, 1)) == (0, GIB << 12 | HUGE)


def test_fast_page_fault_restores_the_leaf(m: mmu.Mmu) -> None:
    change(m, 0, 2, 0, 0xEE5)
    assert tables.fast_fix(m, np.int64(0), 5, 0xEE5, 0xEE7)
    assert value(m, 0, 2) == 0xEE7
    assert not tables.fast_fix(m, np.int64(0), 512, 0xEE5, 0xEE7)


def test_failed_split_is_the_environments_and_stays_huge(m: mmu.Mmu) -> None:
    change(m, 0, 3, 0, 0x5000 | NONLEAF)
    change(m, 0, 2, 0, HUGE)
    w = int(window.open_window(m, 0, 1, 0, -1, 0, 512, 1))
    o = tables.predict_split(m, w, 16)
    assert (m.attempt[o].outcome, m.attempt[o].errno) == (Outcome.BUSY, -16)
    again = tables.predict_split(m, w, 0)
    assert (m.attempt[again].gfn, m.attempt[again].outcome) == (0, Outcome.SPLIT)
    assert tables.predict_split(m, w, 0) == -1
