"""Which heads of a range are visited."""

from __future__ import annotations

from replay.mmu import state
from replay.schema import Outcome
from tests.mmu.splits import GFN, huge_page, opened, run


def test_range_visits_its_first_head_even_if_it_is_empty(m: state.Mmu) -> None:
    huge_page(m, 1)
    assert run(m, opened(m, 0)) == [(GFN, Outcome.SPLIT, 0)]


def test_range_ends_with_its_last_page(m: state.Mmu) -> None:
    for number in range(3):
        huge_page(m, number, GFN + 512 * number)
    assert [gfn for gfn, _, _ in run(m, opened(m, 513))] == [GFN, GFN + 512]
