"""What a split leaves behind: child tables, rmaps, flushes."""

from __future__ import annotations

import pytest

from replay.mmu.kernel import rmap, shadow_page
from replay.mmu.kernel.role import ACC_ALL, ACC_EXEC, child_key, make_key
from replay.mmu.kernel.spte import LEFT_NONPRESENT, is_shadow_present_pte
from replay.mmu.split import walk
from replay.mmu.state import mmu
from replay.mmu.state.counters import Counter
from replay.mmu.state.records import AttemptFlag, PageFlag
from replay.schema import Outcome, Role
from tests.mmu.kernel.test_rmap import entries
from tests.mmu.splits import ALL, GFN, HUGE, NEVER, V2, flushes, huge_page, knobs, opened, run


def counts(m: mmu.Mmu, o: int) -> list[int]:
    """SPTEs of the child that attempt ``o`` installed, left non-present, reused."""
    return [int(m.attempt[o][name]) for name in ("installed", "nonpresent", "reused")]


def test_full_split(m: mmu.Mmu) -> None:
    sptep = huge_page(m, 1)
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0)]
    child = shadow_page.find_shadow_page(m, GFN, child_key(m.sp[sptep // 512].key, 0, True, ACC_ALL))
    huge = HUGE | GFN << 12
    assert [shadow_page.get_spte(m, child, i) for i in range(512)] == [
        (huge & ~0x80) + (i << 12) for i in range(512)
    ]
    assert rmap.rmap_head(m, 0, GFN, 2) == 0
    assert entries(m, m.sp[child].parent_ptes) == [sptep]
    assert (m.vm[0].n_used_mmu_pages, flushes(m, w)) == (1, {})


def test_occupied_rmap_leaves_its_spte_nonpresent_and_owes_a_flush(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    for index in (3, 4, 500):
        rmap.rmap_add(m, 0, GFN + index, 1, 90 * 512 + index, rmap.ORDER_APPEND)
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 3)]
    child = shadow_page.find_shadow_page(m, GFN, make_key(Role.DIRECT | ALL | 1, 0, 0))
    values = [shadow_page.get_spte(m, child, i) for i in range(512)]
    assert [i for i in range(512) if values[i] == LEFT_NONPRESENT] == [3, 4, 500]
    assert not is_shadow_present_pte(LEFT_NONPRESENT)
    assert entries(m, rmap.rmap_head(m, 0, GFN + 3, 1)) == [90 * 512 + 3]
    assert flushes(m, w) == {"WINDOW_END": 1}


def test_rmaps_grow_with_patch_23(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    rmap.rmap_add(m, 0, GFN + 3, 1, 90 * 512 + 3, rmap.ORDER_APPEND)
    w = opened(m)
    assert run(m, w, knobs("v2-desc")) == [(GFN, Outcome.SPLIT, 0)]
    child = shadow_page.find_shadow_page(m, GFN, make_key(Role.DIRECT | ALL | 1, 0, 0))
    assert entries(m, rmap.rmap_head(m, 0, GFN + 3, 1)) == [90 * 512 + 3, child * 512 + 3]
    assert flushes(m, w) == {}


def test_alias_of_equal_access_meets_the_child_of_the_first(m: mmu.Mmu) -> None:
    spteps = [huge_page(m, number) for number in (1, 2)]
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0), (GFN, Outcome.EXISTING_CHILD, 0)]
    assert entries(m, rmap.rmap_head(m, 0, GFN, 2)) == [spteps[1]]


def test_alias_reuses_the_child_with_patch_24(m: mmu.Mmu) -> None:
    spteps = [huge_page(m, number) for number in (1, 2)]
    w = opened(m)
    assert run(m, w, knobs("v2-alias")) == [(GFN, Outcome.SPLIT, 0)] * 2
    child = shadow_page.find_shadow_page(m, GFN, make_key(Role.DIRECT | ALL | 1, 0, 0))
    assert entries(m, m.sp[child].parent_ptes) == spteps
    assert m.attempt[1].reused == 512
    assert flushes(m, w) == {}


@pytest.mark.parametrize(("access", "variant"), [(ACC_ALL & ~ACC_EXEC, 0), (ACC_ALL, 1)])
def test_alias_of_another_role_gets_a_child_of_its_own(m: mmu.Mmu, access: int, variant: int) -> None:
    huge_page(m, 1)
    huge_page(m, 2, access=access, variant=variant)
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0), (GFN, Outcome.SPLIT, 512)]
    assert m.counter[Counter.SHADOW_PAGES_CREATED] == 2


def test_every_split_of_2026_flushes(m: mmu.Mmu) -> None:
    m.vm[0].has_tdp = 1
    for number in (1, 2):
        huge_page(m, number, GFN + 512 * (number - 1))
    w = opened(m)
    run(m, w, knobs("linux-2026"))
    assert flushes(m, w) == {"LINK": 2}


def test_look_up_of_a_2m_child_zaps_unsync_pages_of_its_gfn(m: mmu.Mmu) -> None:
    huge_page(m, 1, level=3)
    unsync = make_key(ALL | 1, 0, 0)
    shadow_page.alloc_shadow_page(m, GFN, unsync, PageFlag.UNSYNC)
    m.vm[0].n_used_mmu_pages = 2
    w = opened(m, 1 << 18)
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_ATTEMPT
    assert shadow_page.find_shadow_page(m, GFN, unsync) == -1
    assert (m.vm[0].n_used_mmu_pages, flushes(m, w)) == (2, {"ZAP": 1})


def test_a_split_page_takes_at_most_128_bytes(m: mmu.Mmu) -> None:
    """Its shadow page, two buckets of a large hash table, its attempt: no SPTEs, heads or descriptors."""
    for number in range(40):
        huge_page(m, number + 1, GFN + 512 * number)
    tops = ("spt_top", "block_top", "desc_top")
    before = [m.ctl[name] for name in tops]
    assert len(run(m, opened(m, 512 * 40))) == 40
    assert [m.ctl[name] for name in tops] == before
    assert m.ctl.source_top == 1
    assert m.sp.itemsize + m.attempt.itemsize + 2 * m.hash.itemsize <= 128


# -- which unsync pages the look-up zaps -----------------------------------------------------------


def look_up(m: mmu.Mmu) -> tuple[int, dict[str, int]]:
    """Split the huge page of GFN: how many pages that zaps, and the flushes."""
    w = opened(m, 1 << 18)
    assert walk.advance(m, w, V2, NEVER, False) == walk.STOP_ATTEMPT
    return int(m.window[w].zapped), flushes(m, w)


@pytest.mark.parametrize(
    ("gfn", "role", "flags"),
    [
        (GFN + 1, ALL | 1, PageFlag.UNSYNC),  # of another gfn
        (GFN, ALL | 1, 0),  # in sync
        (GFN, ALL | 1 | Role.GEN, PageFlag.UNSYNC),  # obsolete: of the generation before
    ],
)
def test_other_pages_stay(m: mmu.Mmu, gfn: int, role: int, flags: int) -> None:
    huge_page(m, 1, level=3)
    key = make_key(role, 0, 0)
    sp = shadow_page.alloc_shadow_page(m, gfn, key, flags)
    assert look_up(m) == (0, {})
    assert shadow_page.find_shadow_page(m, gfn, key) == sp


def test_unsync_root_that_was_zapped_stays(m: mmu.Mmu) -> None:
    huge_page(m, 1, level=3)
    sp = shadow_page.alloc_shadow_page(m, GFN, make_key(ALL | 1, 0, 0), 0)
    m.sp[sp].page_flags = PageFlag.INVALID | PageFlag.UNSYNC
    assert look_up(m) == (0, {})
    assert m.sp[sp].page_flags == PageFlag.INVALID | PageFlag.UNSYNC


def test_every_unsync_page_before_the_one_looked_for_goes(m: mmu.Mmu) -> None:
    """The hash chain is searched from the page made last; the search ends at the page it is for."""
    huge_page(m, 1, level=3)
    unsync = [make_key(ALL | 1, variant, 0) for variant in range(4)]
    for number, key in enumerate(unsync):
        if number == 1:
            shadow_page.alloc_shadow_page(m, GFN, make_key(Role.DIRECT | ALL | 2, 0, 0), 0)
        shadow_page.alloc_shadow_page(m, GFN, key, PageFlag.UNSYNC)
    m.vm[0].n_used_mmu_pages = 9
    assert look_up(m) == (3, {"ZAP": 1})
    left = [shadow_page.find_shadow_page(m, GFN, key) >= 0 for key in unsync]
    assert left == [True, False, False, False]
    assert m.vm[0].n_used_mmu_pages == 6
    assert (m.flush[0].start, m.flush[0].end) == (GFN, GFN + (1 << 18))


def test_unsync_page_loses_its_sptes_and_its_parents(m: mmu.Mmu) -> None:
    huge_page(m, 1, level=3)
    sp = shadow_page.alloc_shadow_page(m, GFN, make_key(ALL | 1, 0, 0), PageFlag.UNSYNC)
    shadow_page.install_leaf(m, sp, 0, GFN + 9, 0x140000E67, ACC_ALL, rmap.ORDER_APPEND)
    parent = shadow_page.alloc_shadow_page(m, 0x201, make_key(ALL | 2, 0, 0), 0)
    shadow_page.link_shadow_page(m, parent, 7, sp, rmap.ORDER_APPEND)
    assert look_up(m) == (1, {"ZAP": 1})
    assert rmap.rmap_head(m, 0, GFN + 9, 1) == 0
    assert shadow_page.get_spte(m, parent, 7) == 0


def test_look_up_of_a_4k_child_zaps_nothing(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    unsync = make_key(ALL | 1, 0, 0)
    shadow_page.alloc_shadow_page(m, GFN, unsync, PageFlag.UNSYNC)
    assert look_up(m) == (0, {})
    assert shadow_page.find_shadow_page(m, GFN, unsync) >= 0


# -- flushes and counts of one split ---------------------------------------------------------------


def occupied(m: mmu.Mmu, *indices: int) -> None:
    for index in indices:
        rmap.rmap_add(m, 0, GFN + index, 1, 90 * 512 + index, rmap.ORDER_APPEND)


@pytest.mark.parametrize(
    ("flush", "leave", "expected"),
    [
        ("deferred_if_partial", True, {"WINDOW_END": 1}),
        ("deferred_if_partial", False, {}),
        ("on_link_if_nonleaf", True, {"LINK": 1}),  # the huge page is gone, and not all of it is mapped
        ("on_link_if_nonleaf", False, {}),
        ("on_link_always", True, {"LINK": 1}),
        ("on_link_always", False, {"LINK": 1}),
    ],
)
def test_partial_split_flushes_under_every_policy(
    m: mmu.Mmu, flush: str, leave: bool, expected: dict[str, int]
) -> None:
    huge_page(m, 1)
    occupied(m, 3)
    w = opened(m)
    word = "leave_nonpresent" if leave else "grow"
    run(m, w, knobs(f"v2:flush={flush},occupied_rmap={word}"))
    assert flushes(m, w) == expected
    flushed = m.attempt[0].attempt_flags & AttemptFlag.FLUSHED != 0
    assert flushed == bool(expected)


def test_flush_of_a_split_is_of_its_huge_page(m: mmu.Mmu) -> None:
    huge_page(m, 1, GFN + 512)
    run(m, opened(m), knobs("v2:flush=on_link_always"))
    assert (m.flush[0].start, m.flush[0].end) == (GFN + 512, GFN + 1024)


def child_with_table(m: mmu.Mmu) -> tuple[int, int]:
    """The 2M child that a split of the 1G page of GFN meets, and a 4K table that it points to."""
    child = shadow_page.alloc_shadow_page(m, GFN, make_key(Role.DIRECT | ALL | 2, 0, 0), 0)
    below = shadow_page.alloc_shadow_page(m, GFN + 512, make_key(Role.DIRECT | ALL | 1, 0, 0), 0)
    shadow_page.link_shadow_page(m, child, 1, below, rmap.ORDER_APPEND)
    return int(child), int(below)


@pytest.mark.parametrize(("nonleaf", "expected"), [(True, {"LINK": 1}), (False, {})])
def test_reused_child_with_a_table_below_flushes(m: mmu.Mmu, nonleaf: bool, expected: dict[str, int]) -> None:
    m.vm[0].has_tdp = 1
    huge_page(m, 1, level=3)
    if nonleaf:
        child, below = child_with_table(m)
    else:
        child, below = shadow_page.alloc_shadow_page(m, GFN, make_key(Role.DIRECT | ALL | 2, 0, 0), 0), 0
    shadow_page.install_leaf(m, child, 2, GFN + 1024, 0x180000EE5, ACC_ALL, rmap.ORDER_APPEND)
    w = opened(m, 1)
    m.window[w].target = 2
    assert run(m, w, knobs("linux-6.0"))[-1] == (GFN, Outcome.SPLIT, 0)
    assert flushes(m, w) == expected
    assert shadow_page.get_spte(m, child, 2) == 0x180000EE5  # kept as it is
    if nonleaf:
        assert entries(m, m.sp[below].parent_ptes) == [child * 512 + 1]
    o = m.ctl.attempt_top - 1
    reused = 1 + nonleaf
    assert counts(m, o) == [512 - reused, 0, reused]
    counters = (
        Counter.SPTES_INSTALLED,
        Counter.SPTES_REUSED,
        Counter.SHADOW_PAGES_REUSED,
        Counter.SHADOW_PAGES_CREATED,
    )
    assert [m.counter[c] for c in counters] == [512 - reused, reused, 1, 0]
    assert m.window[w].child == child
    values = [shadow_page.get_spte(m, child, i) for i in (0, 3, 511)]
    assert values == [(HUGE | GFN << 12) + (i << 21) for i in (0, 3, 511)]
    assert entries(m, rmap.rmap_head(m, 0, GFN + 3 * 512, 2)) == [child * 512 + 3]


def test_counts_of_a_partial_split(m: mmu.Mmu) -> None:
    huge_page(m, 1)
    huge_page(m, 2, GFN + 512)
    occupied(m, 3, 4, 500)
    w = opened(m)
    run(m, w)
    counters = (
        Counter.PARTIAL,
        Counter.SPTES_INSTALLED,
        Counter.SPTES_LEFT_NONPRESENT,
        Counter.SHADOW_PAGES_CREATED,
    )
    assert [m.counter[c] for c in counters] == [1, 1021, 3, 2]
    assert [counts(m, o) for o in (0, 1)] == [[509, 3, 0], [512, 0, 0]]
    created = AttemptFlag.CREATED
    assert m.attempt[:2].attempt_flags.tolist() == [created | AttemptFlag.FLUSHED, created]


def test_child_is_where_the_recorded_lines_look_for_it(m: mmu.Mmu) -> None:
    sptep = huge_page(m, 1)
    w = opened(m)
    walk.advance(m, w, V2, NEVER, False)
    key = make_key(Role.DIRECT | ALL | 1, 0, 0)
    child = shadow_page.find_shadow_page(m, GFN, key)
    assert m.window[w].child == child
    assert m.sp[child].page_flags == PageFlag.LIVE | PageFlag.SPLIT
    assert m.window[w].spare == 0
    assert shadow_page.get_spte(m, sptep // 512, 0) & ~0xFFF == child << 12


@pytest.mark.parametrize("order", [rmap.ORDER_APPEND, rmap.ORDER_HEAD])
def test_split_page_leaves_its_rmap_in_the_kernels_order(m: mmu.Mmu, order: int) -> None:
    """Of 16 aliases the first is split; which fills the hole depends on the kernel."""
    spteps = [huge_page(m, number, variant=number) for number in range(16)]
    head, g = 0, mmu.find_gib(m, 0, GFN, False)
    for sptep in spteps:
        head = rmap.pte_list_add(m, head, sptep, order)
    rmap.set_head_in_gib(m, g, GFN, 2, head)
    word = "append" if order == rmap.ORDER_APPEND else "head"
    before = entries(m, head)
    assert before[0] == spteps[0 if order == rmap.ORDER_APPEND else 14]
    walk.advance(m, opened(m), knobs(f"v2:rmap_order={word}"), NEVER, False)
    after = entries(m, rmap.rmap_head(m, 0, GFN, 2))
    if order == rmap.ORDER_APPEND:
        assert after == [before[13], *before[1:13], *before[14:]]
    else:
        assert after == [before[1], *before[2:]]


@pytest.mark.parametrize("access", [ACC_ALL, ACC_ALL & ~ACC_EXEC])
@pytest.mark.parametrize("in_the_way", [False, True])
def test_4k_child_of_what_the_guest_may_execute_is_executable(
    m: mmu.Mmu, access: int, in_the_way: bool
) -> None:
    sp = shadow_page.alloc_shadow_page(m, 1, make_key(ALL | 2, 0, 0), 0)
    huge = -(1 << 63) | HUGE | GFN << 12
    shadow_page.install_leaf(m, sp, 0, GFN, huge, access, rmap.ORDER_APPEND)
    if in_the_way:
        occupied(m, 3)
    run(m, opened(m))
    child = shadow_page.find_shadow_page(m, GFN, child_key(m.sp[sp].key, 0, True, access))
    assert (shadow_page.get_spte(m, child, 5) < 0) == (access != ACC_ALL)


# -- the hash chain that the look-up goes through ----------------------------------------------------


def of_the_same_bucket(m: mmu.Mmu) -> int:
    """Another gfn whose pages share a hash chain with those of GFN."""
    key, size = make_key(ALL | 1, 0, 0), m.hash.shape[0]
    bucket = mmu.page_bucket(GFN, key, size)
    return next(
        n << 18
        for n in range(2, 1 << 20)
        if (n << 18) != GFN and mmu.page_bucket(n << 18, key, size) == bucket
    )


def test_unsync_page_of_another_gfn_of_the_bucket_stays(m: mmu.Mmu) -> None:
    huge_page(m, 1, level=3)
    other, unsync = of_the_same_bucket(m), make_key(ALL | 1, 0, 0)
    sp = shadow_page.alloc_shadow_page(m, other, unsync, PageFlag.UNSYNC)
    assert look_up(m) == (0, {})
    assert shadow_page.find_shadow_page(m, other, unsync) == sp


@pytest.mark.parametrize("live", [False, True])
def test_search_does_not_end_at_a_page_that_is_not_the_one(m: mmu.Mmu, live: bool) -> None:
    """Neither at one of another gfn nor at a root that is zapped and still in use."""
    huge_page(m, 1, level=3)
    shadow_page.alloc_shadow_page(m, GFN, make_key(ALL | 1, 0, 0), PageFlag.UNSYNC)
    gfn = of_the_same_bucket(m) if live else GFN
    sp = shadow_page.alloc_shadow_page(m, gfn, make_key(Role.DIRECT | ALL | 2, 0, 0), 0)
    if not live:
        m.sp[sp].page_flags = PageFlag.INVALID
    assert look_up(m) == (1, {"ZAP": 1})
