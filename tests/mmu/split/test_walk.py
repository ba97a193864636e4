"""The walk of an eager split over small states."""

from __future__ import annotations

import pytest

from replay.mmu.kernel import rmap
from replay.mmu.split import walk
from replay.mmu.state import growth, mmu
from replay.mmu.state.counters import Counter
from replay.mmu.state.records import PageFlag
from replay.schema import EAGAIN, ENOMEM, ENOSPC, EOPNOTSUPP, Outcome, Role
from tests.mmu.kernel.test_rmap import entries
from tests.mmu.splits import GFN, HUGE, NEVER, V2, huge_page, knobs, opened, run


def counted(m: mmu.Mmu, counter: int) -> int:
    return int(m.counter[counter])


def errnos(m: mmu.Mmu) -> list[int]:
    return [int(errno) for errno in m.attempt[: m.ctl.attempt_top].errno]


@pytest.mark.parametrize(("free", "split_pages"), [(5, 0), (6, 1), (7, 2), (8, 2)])
def test_no_free_pages(m: mmu.Mmu, free: int, split_pages: int) -> None:
    for number in (1, 2):
        huge_page(m, number, GFN + 512 * number)
    w = opened(m, 2048, free)
    outcomes = [outcome for _, outcome, _ in run(m, w)]
    assert outcomes == [Outcome.SPLIT] * split_pages + [Outcome.NO_FREE_PAGES] * (2 - split_pages)
    assert errnos(m) == [0] * split_pages + [-ENOSPC] * (2 - split_pages)


def test_attempt_that_fails_ends_its_head_only(m: mmu.Mmu) -> None:
    for number, gfn in enumerate((GFN, GFN, GFN + 512)):
        huge_page(m, number, gfn)
    w = opened(m, free=5)
    assert run(m, w) == [(GFN, Outcome.NO_FREE_PAGES, 0), (GFN + 512, Outcome.NO_FREE_PAGES, 0)]
    assert m.attempt[:2].spte.tolist() == [HUGE | GFN << 12, HUGE | (GFN + 512) << 12]


def test_refused_alias_goes_on_with_the_next(m: mmu.Mmu) -> None:
    for number in (1, 2):
        huge_page(m, number)
    huge_page(m, 3, variant=1)
    w = opened(m)
    # the list [1, 2, 3] is [3, 2] after the first split, and begins anew after the second
    assert run(m, w) == [
        (GFN, Outcome.SPLIT, 0),
        (GFN, Outcome.SPLIT, 512),
        (GFN, Outcome.EXISTING_CHILD, 0),
    ]
    assert errnos(m) == [0, 0, -EOPNOTSUPP]


def test_list_restarts_after_each_split(m: mmu.Mmu) -> None:
    spteps = [huge_page(m, number, variant=number) for number in range(3)]
    walk.advance(m, opened(m), V2, NEVER, False)
    assert entries(m, rmap.rmap_head(m, 0, GFN, 2)) == [spteps[2], spteps[1]]


def test_refused_aliases_are_tried_again_after_each_split(m: mmu.Mmu) -> None:
    for number in (1, 2):
        huge_page(m, number)
    w = opened(m)
    walk.advance(m, w, V2, NEVER, False)
    huge_page(m, 3, variant=1)
    assert [outcome for _, outcome, _ in run(m, w)] == [
        Outcome.SPLIT,
        Outcome.EXISTING_CHILD,
        Outcome.SPLIT,
        Outcome.EXISTING_CHILD,
    ]


def test_1g_page_is_split_down_to_4k(m: mmu.Mmu) -> None:
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


@pytest.mark.parametrize(
    ("policy", "raw", "guest_mode", "is_split"),
    [
        ("linux-6.0", 1, 0, False),
        ("linux-6.0", 1, Role.GUEST_MODE, True),
        ("linux-6.0", 0, 0, True),  # the printed role does not say
        ("v2", 1, 0, True),
    ],
)
def test_merged_code_leaves_what_is_not_nested(
    m: mmu.Mmu, policy: str, raw: int, guest_mode: int, is_split: bool
) -> None:
    m.vm[0].raw_roles = raw
    m.sp[huge_page(m, 1) // 512].key |= guest_mode
    w = opened(m)
    outcomes = [outcome for _, outcome, _ in run(m, w, knobs(policy)) if outcome != Outcome.RETRY]
    assert outcomes == [Outcome.SPLIT] * is_split
    assert m.window[w].skipped[Outcome.NOT_NESTED - 1] == (not is_split)


FLAGS = {PageFlag.INVALID: Outcome.INVALID, PageFlag.UNSYNC: Outcome.UNSYNC}


@pytest.mark.parametrize("flag", FLAGS)
def test_silent_skips(m: mmu.Mmu, flag: int) -> None:
    sptep = huge_page(m, 1)
    m.sp[sptep // 512].page_flags |= flag
    w = opened(m)
    assert run(m, w) == []
    assert m.window[w].skipped[FLAGS[flag] - 1] == 1


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("policy", ["v2", "linux-6.0"])
def test_silent_skip_counts_once_however_often_its_head_begins_anew(
    m: mmu.Mmu, flag: int, policy: str
) -> None:
    m.vm[0].has_tdp = 1
    spteps = [huge_page(m, number, variant=number) for number in range(3)]
    m.sp[spteps[0] // 512].page_flags |= flag
    huge_page(m, 9, GFN + 512)
    w = opened(m)
    assert [gfn for gfn, outcome, _ in run(m, w, knobs(policy)) if outcome == Outcome.SPLIT] == [
        GFN,
        GFN,
        GFN + 512,
    ]
    skipped = m.window[w].skipped.tolist()
    assert skipped == [int(place == FLAGS[flag] - 1) for place in range(7)]


def test_unsync_page_is_split_where_the_policy_says_so(m: mmu.Mmu) -> None:
    sptep = huge_page(m, 1)
    m.sp[sptep // 512].page_flags |= PageFlag.UNSYNC
    assert run(m, opened(m), knobs("v2:unsync=split")) == [(GFN, Outcome.SPLIT, 0)]


def test_what_is_not_huge_is_passed(m: mmu.Mmu) -> None:
    other = huge_page(m, 2)
    sptep = huge_page(m, 1)
    m.spt[m.sp[other // 512].spt, 0] = 0x140000E67
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0)]
    assert entries(m, rmap.rmap_head(m, 0, GFN, 2)) == [other]
    assert sptep != other


def test_peek_stops_before_the_attempt(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    w = opened(m)
    assert [walk.advance(m, w, V2, NEVER, True) for _ in range(2)] == [walk.STOP_PEEKED] * 2
    assert m.ctl.attempt_top == 0
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_ATTEMPT
    assert walk.advance(m, w, V2, NEVER, True) == walk.STOP_DONE


def test_walk_resumes_where_rows_ran_out(m: mmu.Mmu) -> None:
    for number in (1, 2):
        huge_page(m, number, GFN + 512 * number)
    w = opened(m, 2048)
    walk.advance(m, w, V2, NEVER, False)
    top = m.ctl.desc_top
    m.ctl.desc_top = m.desc.shape[0]
    m.ctl.room = 0
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_NO_ROOM
    m.ctl.desc_top = top
    assert [gfn for gfn, _, _ in run(growth.grow(m), w)] == [GFN + 512, GFN + 1024]


# -- allocations that fail ---------------------------------------------------------------------------


def test_failed_allocation_of_v2_goes_unnoticed(m: mmu.Mmu) -> None:
    """GFP_NOWAIT gives NULL, which takes the place of a spare page: nothing is left to lose."""
    for number in (1, 2):
        huge_page(m, number)
    w = opened(m)
    walk.advance(m, w, V2, NEVER, False)
    m.window[w].env_fail_nowait = 1
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_ATTEMPT
    assert m.window[w].spare == 0
    run(m, w)
    assert errnos(m) == [0, -EOPNOTSUPP]
    assert m.window[w].leaked == 0
    assert (m.window[w].env_fail_nowait, counted(m, Counter.RETRIES)) == (0, 0)


def test_failed_allocation_that_is_noticed_drops_the_lock(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    w = opened(m)
    k = knobs("v2:alloc_failure=drop_lock")
    m.window[w].env_fail_nowait = 1
    assert walk.advance(m, w, k, NEVER, False) == walk.STOP_DROPPED
    assert run(m, w, k) == [(GFN, Outcome.SPLIT, 0)]
    assert counted(m, Counter.RETRIES) == 1


@pytest.mark.parametrize("policy", ["v2", "v2:alloc_failure=drop_lock"])
def test_without_a_failure_the_lock_is_kept(m: mmu.Mmu, policy: str) -> None:
    huge_page(m, 1)
    assert walk.advance(m, opened(m), knobs(policy), NEVER, False) == walk.STOP_ATTEMPT


def test_no_memory_even_with_the_lock_dropped(m: mmu.Mmu) -> None:
    for number, gfn in enumerate((GFN, GFN, GFN + 512)):
        huge_page(m, number + 1, gfn)
    w = opened(m)
    m.vm[0].resched = m.window[w].env_fail_kernel = 1
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_DROPPED
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_ATTEMPT
    assert m.window[w].spare == 0
    assert run(m, w) == [(GFN, Outcome.NO_MEMORY, 0), (GFN + 512, Outcome.SPLIT, 0)]
    assert errnos(m) == [-ENOMEM, 0]
    assert m.attempt[0].spte == HUGE | GFN << 12
    assert m.window[w].env_fail_kernel == 0


def test_refill_of_the_caches_finds_no_memory(m: mmu.Mmu) -> None:
    m.vm[0].has_tdp = 1
    for number, gfn in enumerate((GFN, GFN, GFN + 512)):
        huge_page(m, number + 1, gfn)
    w = opened(m)
    m.window[w].env_fail_kernel = 1
    found = run(m, w, knobs("linux-6.0"))
    assert found == [(GFN, Outcome.NO_MEMORY, 0), (GFN + 512, Outcome.SPLIT, 0)]
    assert errnos(m) == [-ENOMEM, 0]
    assert m.window[w].env_fail_kernel == 0


# -- lock drops of the merged code -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("short", "resched", "cache", "drops"),
    [(True, False, 1, 0), (False, True, 0, 1), (True, True, 1, 0), (False, False, 0, 0)],
)
def test_retry_of_the_merged_code_has_one_reason(
    m: mmu.Mmu, short: bool, resched: bool, cache: int, drops: int
) -> None:
    m.vm[0].has_tdp = m.vm[0].header_cache = m.vm[0].page_cache = 1
    m.vm[0].desc_cache = 512 if short else 513
    m.vm[0].resched = resched
    huge_page(m, 1)
    w = opened(m)
    run(m, w, knobs("linux-6.0"))
    assert errnos(m) == [-EAGAIN] * (cache + drops) + [0]
    names = (Counter.RETRIES_CACHE, Counter.RETRIES_RESCHED, Counter.ENV_LOCK_DROPS)
    assert [counted(m, name) for name in names] == [cache, drops, drops]


def test_v2_has_no_caches_to_refill(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    run(m, opened(m))
    assert errnos(m) == [0]
    assert (m.vm[0].desc_cache, m.vm[0].header_cache, m.vm[0].page_cache) == (0, 0, 0)
