"""The walk of an eager split over small states."""

from __future__ import annotations

import pytest

from replay.mmu import layout, rmap, split, state, window
from replay.schema import Outcome
from tests.mmu.splits import GFN, NEVER, V2, huge_page, knobs, opened, run
from tests.mmu.test_rmap import entries


@pytest.mark.parametrize(("free", "split_pages"), [(5, 0), (6, 1), (7, 2), (8, 2)])
def test_no_free_pages(m: state.Mmu, free: int, split_pages: int) -> None:
    for number in (1, 2):
        huge_page(m, number, GFN + 512 * number)
    w = opened(m, 2048, free)
    outcomes = [outcome for _, outcome, _ in run(m, w)]
    assert outcomes == [Outcome.SPLIT] * split_pages + [Outcome.NO_FREE_PAGES] * (2 - split_pages)


def test_list_restarts_after_each_split(m: state.Mmu) -> None:
    spteps = [huge_page(m, number, variant=number) for number in range(3)]
    split.advance(m, opened(m), V2, NEVER, False)
    assert entries(m, rmap.rmap_head(m, 0, GFN, 2)) == [spteps[2], spteps[1]]


def test_1g_page_is_split_down_to_4k(m: state.Mmu) -> None:
    huge_page(m, 1, level=3)
    w = opened(m, 1 << 18, free=5 + 3)
    found = run(m, w)
    assert found[:4] == [
        (GFN, Outcome.SPLIT, 0),
        (GFN, Outcome.SPLIT, 0),
        (GFN + 512, Outcome.SPLIT, 0),
        (GFN + 1024, Outcome.NO_FREE_PAGES, 0),
    ]
    assert len(found) == 513


def test_merged_code_leaves_what_is_not_nested(m: state.Mmu) -> None:
    huge_page(m, 1)
    w = opened(m)
    assert run(m, w, knobs("linux-6.0")) == []
    assert m.window[w, window.WIN_SKIPPED + Outcome.NOT_NESTED - 1] == 1


@pytest.mark.parametrize("flag", [layout.FLAG_INVALID, layout.FLAG_UNSYNC])
def test_silent_skips(m: state.Mmu, flag: int) -> None:
    sptep = huge_page(m, 1)
    m.sp32[sptep // 512, layout.SP32_FLAGS] |= flag
    w = opened(m)
    assert run(m, w) == []
    word = Outcome.INVALID if flag == layout.FLAG_INVALID else Outcome.UNSYNC
    assert m.window[w, window.WIN_SKIPPED + word - 1] == 1
