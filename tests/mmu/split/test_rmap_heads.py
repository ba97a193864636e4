"""Which heads of a range are visited, and what is done between two of them."""

from __future__ import annotations

import pytest

from replay.mmu.kernel import rmap
from replay.mmu.split import walk, window
from replay.mmu.split.rmap_heads import next_head
from replay.mmu.split.window import place
from replay.mmu.state import mmu
from replay.mmu.state.counters import Counter
from replay.schema import Outcome
from tests.mmu.splits import GFN, NEVER, V2, flushes, huge_page, opened, run

GIB = 1 << 18
LAST = 1 << 40


def test_range_visits_its_first_head_even_if_it_is_empty(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    assert run(m, opened(m, 0)) == [(GFN, Outcome.SPLIT, 0)]


def test_range_ends_with_its_last_page(m: mmu.Mmu) -> None:
    for number in range(3):
        huge_page(m, number, GFN + 512 * number)
    assert [gfn for gfn, _, _ in run(m, opened(m, 513))] == [GFN, GFN + 512]


@pytest.mark.parametrize(("npages", "visited"), [(1536, False), (1537, True)])
def test_head_after_a_gap_is_visited_if_it_is_in_the_range(m: mmu.Mmu, npages: int, visited: bool) -> None:
    huge_page(m, 1, GFN + 1536)
    assert [gfn for gfn, _, _ in run(m, opened(m, npages))] == [GFN + 1536] * visited


def test_next_head_of_2m(m: mmu.Mmu) -> None:
    for number, gfn in enumerate((GFN, GFN + 511 * 512, GFN + 3 * GIB + 512)):
        huge_page(m, number, gfn)
    assert next_head(m, 0, 2, GFN, LAST) == GFN
    assert next_head(m, 0, 2, GFN + 512, LAST) == GFN + 511 * 512
    assert next_head(m, 0, 2, GFN + GIB, LAST) == GFN + 3 * GIB + 512
    assert next_head(m, 0, 2, GFN + 3 * GIB + 1024, LAST) == -1
    assert next_head(m, 0, 2, GFN + 512, GFN + 511 * 512) == GFN + 511 * 512
    assert next_head(m, 0, 2, GFN + 512, GFN + 510 * 512) == -1
    assert next_head(m, 0, 2, GFN + 512, GFN) == -1
    assert next_head(m, 1, 2, GFN, LAST) == -1
    assert next_head(m, 0, 3, GFN, LAST) == -1


def test_next_head_of_1g(m: mmu.Mmu) -> None:
    for number, gfn in enumerate((GFN, GFN + 3 * GIB)):
        huge_page(m, number, gfn, level=3)
    huge_page(m, 9, GFN + GIB)
    assert next_head(m, 0, 3, GFN, LAST) == GFN
    assert next_head(m, 0, 3, GFN + GIB, LAST) == GFN + 3 * GIB
    assert next_head(m, 0, 3, GFN + GIB, GFN + 2 * GIB) == -1
    assert next_head(m, 0, 3, GFN, GFN) == GFN
    assert next_head(m, 0, 2, GFN, LAST) == GFN + GIB


def test_nothing_is_looked_for_after_the_memory_that_was_mapped(m: mmu.Mmu) -> None:
    huge_page(m, 1, GFN + 512)
    m.vm[0].end = GFN + 512
    assert next_head(m, 0, 2, GFN, LAST) == -1
    m.vm[0].end = GFN + 513
    assert next_head(m, 0, 2, GFN, LAST) == GFN + 512


@pytest.mark.parametrize(
    ("target", "expected"),
    [(1, [(GFN, 3), (GFN, 2), (GFN + 512, 2)]), (2, [(GFN, 3)]), (3, [])],
)
def test_levels_above_the_target_are_walked(m: mmu.Mmu, target: int, expected: list[tuple[int, int]]) -> None:
    huge_page(m, 1, level=3)
    huge_page(m, 2, GFN + 512)
    w = opened(m)
    m.window[w].target = target
    run(m, w)
    found = [(int(m.attempt[o].gfn), int(m.attempt[o].level)) for o in range(m.ctl.attempt_top)]
    # the 1G page becomes 512 pages of 2M, of which the range holds two
    assert [head for head in found if head[1] == 3 or head[0] <= GFN + 512] == expected


def partial(m: mmu.Mmu, *gfns: int) -> int:
    """A window over 2M pages at ``gfns``, each of which owes a flush when it is split."""
    for number, gfn in enumerate(gfns):
        huge_page(m, number + 1, gfn, variant=number)
        rmap.rmap_add(m, 0, gfn + 3, 1, 90 * 512 + number, rmap.ORDER_APPEND)
    return opened(m, 2048)


def to_yield(m: mmu.Mmu, w: int, gfn: int, level: int = 2) -> list[int]:
    """What stops the walk until it ends, where it yields after the head of ``gfn``."""
    m.window[w].env_yield = place(gfn, level) + 1
    stops: list[int] = []
    while not stops or stops[-1] != walk.STOP_DONE:
        stops.append(int(walk.advance(m, w, V2, NEVER, False)))
    return stops


ATTEMPT, YIELDED, DONE = walk.STOP_ATTEMPT, walk.STOP_YIELDED, walk.STOP_DONE


def test_yield_flushes_up_to_the_first_gfn_of_the_head(m: mmu.Mmu) -> None:
    w = partial(m, GFN, GFN + 512, GFN + 1024)
    assert to_yield(m, w, GFN + 512) == [ATTEMPT, ATTEMPT, YIELDED, ATTEMPT, DONE]
    assert flushes(m, w) == {"YIELD": 1, "WINDOW_END": 1}
    ranges = [[m.flush[f].start, m.flush[f].end] for f in (0, 1)]
    assert ranges == [[GFN, GFN + 513], [GFN, GFN + 2048]]
    assert m.counter[Counter.ENV_YIELDS] == 1
    assert m.window[w].env_yield == 0


def test_yield_pays_what_is_owed(m: mmu.Mmu) -> None:
    w = partial(m, GFN)
    assert to_yield(m, w, GFN) == [ATTEMPT, YIELDED, DONE]
    assert flushes(m, w) == {"YIELD": 1}
    assert [m.window[w][column] for column in ("flush", "owed")] == [0, 0]


def test_yield_without_a_debt_flushes_nothing(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    w = opened(m)
    assert to_yield(m, w, GFN) == [ATTEMPT, YIELDED, DONE]
    assert flushes(m, w) == {}


def test_yield_at_another_head_is_for_later(m: mmu.Mmu) -> None:
    w = partial(m, GFN)
    assert to_yield(m, w, GFN + 512) == [ATTEMPT, DONE]
    assert m.window[w].env_yield == place(GFN + 512, 2) + 1


def test_walk_that_is_over_stays_over(m: mmu.Mmu) -> None:
    w = partial(m, GFN)
    run(m, w)
    assert walk.advance(m, w, V2, NEVER, False) == DONE
    assert flushes(m, w) == {"WINDOW_END": 1}
    assert (m.flush[0].start, m.flush[0].end) == (GFN, GFN + 2048)
    assert [m.window[w][column] for column in ("flush", "owed")] == [0, 0]


@pytest.mark.parametrize("aliases", [1, 2, 3])
def test_spare_page_that_is_left_at_the_end_of_its_head_is_not_lost(m: mmu.Mmu, aliases: int) -> None:
    for number in range(aliases):
        huge_page(m, number + 1)
    huge_page(m, 9, GFN + 512)
    w = opened(m)
    run(m, w)
    # the first is split, each other refused: its page is lost at the next attempt, the last one is freed
    leaked = max(aliases - 2, 0)
    assert (m.window[w].leaked, m.window[w].spare) == (leaked, 0)
    assert m.counter[Counter.SHADOW_PAGES_LEAKED] == leaked


def test_head_of_gfn_0_is_walked(m: mmu.Mmu) -> None:
    huge_page(m, 1, 0)
    m.vm[0].n_max_mmu_pages = 1 << 20
    w = int(window.open_window(m, 0, 1, 0, -1, 0, 512, 1))
    assert run(m, w) == [(0, Outcome.SPLIT, 0)]


def test_gib_in_the_first_row_of_its_table(m: mmu.Mmu) -> None:
    gib = next(n for n in range(1, 1 << 16) if mmu.mix(n << 16) & (m.gib.shape[0] - 1) == 0)
    for number, level in enumerate((2, 3)):
        huge_page(m, number, gib << 18, level)
    assert mmu.find_gib(m, 0, gib << 18, False) == 0
    assert [next_head(m, 0, level, gib << 18, LAST) for level in (2, 3)] == [gib << 18] * 2
    assert [rmap.rmap_head(m, 0, gib << 18, level) > 0 for level in (1, 2, 3)] == [False, True, True]
    rmap.rmap_remove(m, 0, gib << 18, 3, 2 * 512, rmap.ORDER_APPEND)
    assert rmap.rmap_head(m, 0, gib << 18, 3) == 0
