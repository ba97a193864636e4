"""Spare pages, caches, and lock drops before a split."""

from __future__ import annotations

import pytest

from replay.mmu import layout, rmap, split, state, tables, window
from replay.schema import Outcome
from tests.mmu.splits import GFN, NEVER, V2, flushes, huge_page, knobs, opened, run


def test_lock_drop_leaks_the_spare_page_of_v2(m: state.Mmu) -> None:
    huge_page(m, 1)
    m.vm[0, layout.VM_RESCHED] = 1
    w = opened(m)
    assert split.advance(m, w, V2, NEVER, False) == split.STOP_DROPPED
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0)]
    assert (m.window[w, window.WIN_LEAKED], m.vm[0, layout.VM_RESCHED]) == (1, 0)


def partial_splits(m: state.Mmu) -> int:
    """A window over two heads with one and two huge SPTEs, each with a 4K rmap that is occupied."""
    for number, gfn in ((1, GFN), (2, GFN + 512), (3, GFN + 512)):
        huge_page(m, number, gfn, variant=number)
    for gfn in (GFN, GFN + 512):
        rmap.rmap_add(m, 0, gfn, 1, 90 * 512, rmap.ORDER_APPEND)
    return opened(m)


@pytest.mark.parametrize(("attempts", "dropped", "lost"), [(1, {}, 1), (2, {"LOCK_DROP": 1}, 0)])
def test_lock_drop_flushes_for_its_own_head_only(
    m: state.Mmu, attempts: int, dropped: dict[str, int], lost: int
) -> None:
    w = partial_splits(m)
    assert [split.advance(m, w, V2, NEVER, False) for _ in range(attempts)] == [split.STOP_ATTEMPT] * attempts
    m.vm[0, layout.VM_RESCHED] = 1
    assert split.advance(m, w, V2, NEVER, False) == split.STOP_DROPPED
    # where the head itself owes a flush it is of the whole slot, which pays for earlier heads, too
    assert (flushes(m, w), m.window[w, window.WIN_FLUSHES_LOST]) == (dropped, lost)
    run(m, w)
    assert flushes(m, w) == dropped | {"WINDOW_END": 1}


def test_merged_code_fills_its_caches_first(m: state.Mmu) -> None:
    m.vm[0, layout.VM_HAS_TDP] = 1
    huge_page(m, 1)
    w = opened(m)
    assert run(m, w, knobs("linux-6.0")) == [(GFN, Outcome.RETRY, 0), (GFN, Outcome.SPLIT, 0)]
    assert m.vm[0, layout.VM_HEADERS] == m.vm[0, layout.VM_PAGES] == 39
    assert m.vm[0, layout.VM_DESC] == 553


def test_lock_drop_at_every_attempt_comes_to_an_end(m: state.Mmu) -> None:
    """After a drop the head begins anew: aliases that cannot be split are passed before the next drop."""
    for number in (1, 2, 3):
        huge_page(m, number)
    w = opened(m)
    for _ in range(32):
        if split.advance(m, w, V2, (1, -1), False) == split.STOP_DONE:
            break
    else:
        pytest.fail("the walk does not end")
    outcomes = tables.attempts(m)["outcome"].tolist()
    assert outcomes == [Outcome.SPLIT, Outcome.EXISTING_CHILD, Outcome.EXISTING_CHILD]
    assert m.ctl[layout.CTL_COUNTERS + window.C_RETRIES] == 2
