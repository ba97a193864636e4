"""Spare pages, caches, and lock drops before a split."""

from __future__ import annotations

import pytest

from replay.mmu.kernel import rmap, shadow_page
from replay.mmu.kernel.role import make_key
from replay.mmu.results import tables
from replay.mmu.split import prepare, walk, window
from replay.mmu.state import mmu
from replay.mmu.state.counters import Counter
from replay.mmu.state.records import PageFlag
from replay.schema import Outcome, Role
from tests.mmu.conftest import make_mmu
from tests.mmu.splits import ALL, GFN, HUGE, NEVER, V2, flushes, huge_page, knobs, opened, run


def test_lock_drop_leaks_the_spare_page_of_v2(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    m.vm[0].resched = 1
    w = opened(m)
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_DROPPED
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0)]
    assert (m.window[w].leaked, m.vm[0].resched) == (1, 0)


def partial_splits(m: mmu.Mmu) -> int:
    """A window over two heads with one and two huge SPTEs, each with a 4K rmap that is occupied."""
    for number, gfn in ((1, GFN), (2, GFN + 512), (3, GFN + 512)):
        huge_page(m, number, gfn, variant=number)
    for gfn in (GFN, GFN + 512):
        rmap.rmap_add(m, 0, gfn, 1, 90 * 512, rmap.ORDER_APPEND)
    return opened(m)


@pytest.mark.parametrize(("attempts", "dropped", "lost"), [(1, {}, 1), (2, {"LOCK_DROP": 1}, 0)])
def test_lock_drop_flushes_for_its_own_head_only(
    m: mmu.Mmu, attempts: int, dropped: dict[str, int], lost: int
) -> None:
    w = partial_splits(m)
    assert [walk.advance(m, w, V2, NEVER, False) for _ in range(attempts)] == [walk.STOP_ATTEMPT] * attempts
    m.vm[0].resched = 1
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_DROPPED
    # where the head itself owes a flush it is of the whole slot, which pays for earlier heads, too
    assert (flushes(m, w), m.window[w].flushes_lost) == (dropped, lost)
    run(m, w)
    assert flushes(m, w) == dropped | {"WINDOW_END": 1}


def test_merged_code_fills_its_caches_first(m: mmu.Mmu) -> None:
    m.vm[0].has_tdp = 1
    huge_page(m, 1)
    w = opened(m)
    assert run(m, w, knobs("linux-6.0")) == [(GFN, Outcome.RETRY, 0), (GFN, Outcome.SPLIT, 0)]
    assert m.vm[0].header_cache == m.vm[0].page_cache == 39
    assert m.vm[0].desc_cache == 553


def test_lock_drop_at_every_attempt_comes_to_an_end(m: mmu.Mmu) -> None:
    """After a drop the head begins anew: aliases that cannot be split are passed before the next drop."""
    for number in (1, 2, 3):
        huge_page(m, number)
    w = opened(m)
    for _ in range(32):
        if walk.advance(m, w, V2, (1, -1), False) == walk.STOP_DONE:
            break
    else:
        pytest.fail("the walk does not end")
    outcomes = tables.attempts(m)["outcome"].tolist()
    assert outcomes == [Outcome.SPLIT, Outcome.EXISTING_CHILD, Outcome.EXISTING_CHILD]
    assert m.counter[Counter.RETRIES] == 2


def test_spare_page_of_later_code_is_used_by_the_next_attempt(m: mmu.Mmu) -> None:
    for number in (1, 2, 3):
        huge_page(m, number)
    w = opened(m)
    run(m, w, knobs("v2:spare_page=keep"))
    assert m.window[w].leaked == 0


# -- need_resched --------------------------------------------------------------------------------------


def asked(m: mmu.Mmu, w: int, every: int, seed: int, times: int) -> list[int]:
    """At which of ``times`` attempts the lock is dropped."""
    return [at for at in range(1, times + 1) if prepare.need_resched(m, w, every, seed)]


def at_head(m: mmu.Mmu) -> int:
    """A window that stands at the 2M head of GFN."""
    w = opened(m)
    m.window[w].gfn, m.window[w].level = GFN, 2
    return w


def test_lock_is_dropped_at_every_nth_attempt(m: mmu.Mmu) -> None:
    w = at_head(m)
    assert asked(m, w, 3, -1, 9) == [3, 6, 9]
    assert asked(m, w, 0, -1, 9) == []
    assert asked(m, w, 1, -1, 3) == [1, 2, 3]


def test_seed_says_at_which_attempts(m: mmu.Mmu) -> None:
    w = at_head(m)
    found = [asked(make_mmu(), w, 0, seed, 1000) for seed in (0, 1, 1)]
    assert found[1] == found[2] != found[0]
    assert all(4 < len(drops) < 40 for drops in found)  # one in 64


@pytest.mark.parametrize("column", ["retries", "drop_idle"])
def test_attempt_after_a_drop_is_left_alone(m: mmu.Mmu, column: str) -> None:
    w = at_head(m)
    m.window[w][column] = 1
    assert asked(m, w, 1, -1, 3) == asked(m, w, 0, 0, 200) == []
    assert m.ctl.attempts_seen == 203


@pytest.mark.parametrize(
    ("where", "drops"),
    [
        (window.ANY_PLACE, True),
        (window.place(GFN, 2) + 1, True),
        (window.place(GFN, 3) + 1, False),
        (window.place(GFN + 512, 2) + 1, False),
        (0, False),
    ],
)
def test_recorded_drop_is_at_its_place(m: mmu.Mmu, where: int, drops: bool) -> None:
    w = at_head(m)
    m.window[w].env_drop = where
    assert asked(m, w, 0, -1, 2) == [1] * drops
    assert m.window[w].env_drop == (0 if drops else where)


def test_raised_need_resched_is_met_once_and_by_its_vm(m: mmu.Mmu) -> None:
    w = at_head(m)
    m.vm[1].resched = 1
    assert asked(m, w, 0, -1, 2) == []
    m.vm[0].resched = 1
    assert asked(m, w, 0, -1, 2) == [1]
    assert m.vm.resched.tolist() == [0, 1]


def test_resched_never_means_never(m: mmu.Mmu) -> None:
    w = at_head(m)
    m.vm[0].resched = m.window[w].env_drop = 1
    assert asked(m, w, -1, -1, 3) == []
    assert (m.vm[0].resched, m.ctl.attempts_seen) == (1, 0)


# -- a lock drop of v2 -----------------------------------------------------------------------------------


def test_lock_drop_is_counted_and_remembers_its_attempt(m: mmu.Mmu) -> None:
    sptep = huge_page(m, 1)
    m.vm[0].resched = 1
    w = opened(m)
    walk.advance(m, w, V2, NEVER, False)
    win = m.window[w]
    assert (win.snap_sptep, win.snap_spte) == (sptep, HUGE | GFN << 12)
    assert (win.dropped, win.retries) == (1, 1)
    names = (Counter.RETRIES, Counter.RETRIES_RESCHED, Counter.ENV_LOCK_DROPS)
    assert [m.counter[name] for name in names] == [1, 1, 1]
    run(m, w)
    assert (win.dropped, win.drop_idle, win.retries) == (0, 0, 0)
    assert m.attempt[0].retries == 1


def test_flush_of_a_lock_drop_is_of_the_whole_range(m: mmu.Mmu) -> None:
    w = partial_splits(m)
    for _ in range(2):
        walk.advance(m, w, V2, NEVER, False)
    m.vm[0].resched = 1
    walk.advance(m, w, V2, NEVER, False)
    assert (m.flush[0].start, m.flush[0].end) == (GFN, GFN + 1024)
    win = m.window[w]
    assert (win.head_flush, win.owed) == (0, 0)


def test_debt_is_lost_once_a_drop_and_never_without_one(m: mmu.Mmu) -> None:
    w = partial_splits(m)
    m.vm[0].resched = 1
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_DROPPED
    assert m.window[w].flushes_lost == 0  # nothing is owed yet
    walk.advance(m, w, V2, NEVER, False)
    m.vm[0].resched = 1
    walk.advance(m, w, V2, NEVER, False)
    assert m.window[w].flushes_lost == 1


def test_restart_after_a_drop_is_from_the_first_entry(m: mmu.Mmu) -> None:
    spteps = [huge_page(m, number, variant=number) for number in range(2)]
    m.sp[spteps[0] // 512].page_flags |= PageFlag.INVALID
    m.vm[0].resched = 1
    w = opened(m)
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_DROPPED
    m.sp[spteps[0] // 512].page_flags = PageFlag.LIVE
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0), (GFN, Outcome.SPLIT, 512)]
    assert m.window[w].skipped[Outcome.INVALID - 1] == 0


# -- caches of the merged code -----------------------------------------------------------------------------


def in_caches(m: mmu.Mmu, vm: int) -> list[int]:
    """Objects in the three caches of a VM."""
    return [int(m.vm[vm][name]) for name in ("desc_cache", "header_cache", "page_cache")]


@pytest.mark.parametrize(
    ("held", "short"),
    [
        ((513, 1, 1), False),
        ((600, 40, 40), False),
        ((512, 1, 1), True),
        ((513, 0, 1), True),
        ((513, 1, 0), True),
        ((0, 0, 0), True),
    ],
)
def test_cache_is_refilled_below_its_minimum_only(
    m: mmu.Mmu, held: tuple[int, int, int], short: bool
) -> None:
    k = knobs("linux-6.0")
    m.vm[0].desc_cache, m.vm[0].header_cache, m.vm[0].page_cache = held
    assert prepare.caches_short(m, 0, k) == short
    assert prepare.caches_short(m, 1, k)
    prepare.topup_split_caches(m, 0, k)
    full = (553, 40, 40)
    at_least = (513, 1, 1)
    expected = [full[i] if held[i] < at_least[i] else held[i] for i in range(3)]
    assert (in_caches(m, 0), in_caches(m, 1)) == (expected, [0, 0, 0])


def test_each_split_takes_a_header_and_a_page(m: mmu.Mmu) -> None:
    m.vm[0].has_tdp = 1
    for number in range(42):
        huge_page(m, number + 1, GFN + 512 * number)
    w = opened(m, 512 * 42)
    outcomes = [outcome for _, outcome, _ in run(m, w, knobs("linux-6.0"))]
    # the caches hold 40, so that the lock is dropped before the first and the forty-first
    assert [at for at, outcome in enumerate(outcomes) if outcome == Outcome.RETRY] == [0, 41]
    assert in_caches(m, 0) == [553, 38, 38]


def test_reused_child_takes_no_page_but_descriptors(m: mmu.Mmu) -> None:
    m.vm[0].has_tdp = 1
    for number in (1, 2):
        huge_page(m, number)
    run(m, opened(m), knobs("linux-6.0"))
    # parent_ptes of the child has a second entry: one descriptor; its SPTEs are there already
    assert in_caches(m, 0) == [552, 39, 39]


def test_occupied_rmaps_take_descriptors(m: mmu.Mmu) -> None:
    m.vm[0].has_tdp = 1
    for index in (3, 4):
        rmap.rmap_add(m, 0, GFN + index, 1, 90 * 512 + index, rmap.ORDER_APPEND)
    huge_page(m, 1)
    run(m, opened(m), knobs("linux-6.0"))
    assert in_caches(m, 0) == [551, 39, 39]


def test_drop_that_led_to_no_split_is_forgotten_at_the_next_head(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    huge_page(m, 2, GFN + 512)
    shadow_page.alloc_shadow_page(m, GFN, make_key(Role.DIRECT | ALL | 1, 0, 0), 0)
    w = opened(m)
    stops = [walk.advance(m, w, V2, (1, -1), False) for _ in range(5)]
    dropped, attempt = walk.STOP_DROPPED, walk.STOP_ATTEMPT
    assert stops == [dropped, attempt, dropped, attempt, walk.STOP_DONE]
    assert tables.attempts(m)["outcome"].tolist() == [Outcome.EXISTING_CHILD, Outcome.SPLIT]
