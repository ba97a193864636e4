"""The walk of an eager split over small states."""

from __future__ import annotations

import pytest

from replay.mmu import layout, rmap, shadow_page, split, state, tables, window
from replay.mmu.role import ACC_ALL, ACC_EXEC, ACCESS_SHIFT, DIRECT, child_key, make_key
from replay.mmu.spte import LEFT_NONPRESENT, is_shadow_present_pte
from replay.policy import KnobCodes, Policy
from replay.schema import FlushCause, Outcome
from tests.mmu.test_rmap import entries

GFN = 1 << 18
HUGE = 0x140000EE7
ALL = ACC_ALL << ACCESS_SHIFT
NEVER = (0, -1)
V2 = Policy.parse("v2").codes()


def knobs(policy: str) -> KnobCodes:
    return Policy.parse(policy).codes()


def huge_page(
    m: state.Mmu, number: int, gfn: int = GFN, level: int = 2, access: int = ACC_ALL, variant: int = 0
) -> int:
    """An indirect page, ``number`` its own gfn, whose SPTE 0 maps ``gfn``; gives its sptep."""
    sp = shadow_page.alloc_shadow_page(m, number, make_key(ALL | level, variant, 0), 0)
    shadow_page.install_leaf(m, sp, 0, gfn, HUGE | gfn << 12, access, rmap.ORDER_APPEND)
    return int(sp * 512)


def opened(m: state.Mmu, npages: int = 1024, free: int = 1 << 20) -> int:
    m.vm[0, layout.VM_MAX] = m.vm[0, layout.VM_USED] + free
    return int(window.open_window(m, 0, 1, 0, -1, GFN, GFN + npages, 1))


def run(m: state.Mmu, w: int, k: KnobCodes = V2) -> list[tuple[int, int, int]]:
    """Walk to the end: (sptep's page and outcome of each attempt, what stopped the walk)."""
    while True:
        stop = split.advance(m, w, k, NEVER, False)
        assert stop != split.STOP_NO_ROOM
        if stop == split.STOP_DONE:
            break
    columns = tables.attempts(m)
    return list(zip(*(columns[name].tolist() for name in ("gfn", "outcome", "nonpresent")), strict=True))


def flushes(m: state.Mmu, w: int) -> dict[str, int]:
    counts = m.window[w, window.WIN_FLUSHES : window.WIN_FLUSHES + len(FlushCause)]
    return {cause.name: int(n) for cause, n in zip(FlushCause, counts, strict=True) if n}


def test_full_split(m: state.Mmu) -> None:
    sptep = huge_page(m, 1)
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0)]
    child = shadow_page.find_shadow_page(
        m, GFN, child_key(m.sp[sptep // 512, layout.SP_KEY], 0, True, ACC_ALL)
    )
    huge = HUGE | GFN << 12
    assert [shadow_page.get_spte(m, child, i) for i in range(512)] == [
        (huge & ~0x80) + (i << 12) for i in range(512)
    ]
    assert rmap.rmap_head(m, 0, GFN, 2) == 0
    assert entries(m, m.sp[child, layout.SP_PARENTS]) == [sptep]
    assert (m.vm[0, layout.VM_USED], flushes(m, w)) == (1, {})


def test_occupied_rmap_leaves_its_spte_nonpresent_and_owes_a_flush(m: state.Mmu) -> None:
    huge_page(m, 1)
    for index in (3, 4, 500):
        rmap.rmap_add(m, 0, GFN + index, 1, 90 * 512 + index, rmap.ORDER_APPEND)
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 3)]
    child = shadow_page.find_shadow_page(m, GFN, make_key(DIRECT | ALL | 1, 0, 0))
    values = [shadow_page.get_spte(m, child, i) for i in range(512)]
    assert [i for i in range(512) if values[i] == LEFT_NONPRESENT] == [3, 4, 500]
    assert not is_shadow_present_pte(LEFT_NONPRESENT)
    assert entries(m, rmap.rmap_head(m, 0, GFN + 3, 1)) == [90 * 512 + 3]
    assert flushes(m, w) == {"WINDOW_END": 1}


def test_rmaps_grow_with_patch_23(m: state.Mmu) -> None:
    huge_page(m, 1)
    rmap.rmap_add(m, 0, GFN + 3, 1, 90 * 512 + 3, rmap.ORDER_APPEND)
    w = opened(m)
    assert run(m, w, knobs("v2-desc")) == [(GFN, Outcome.SPLIT, 0)]
    child = shadow_page.find_shadow_page(m, GFN, make_key(DIRECT | ALL | 1, 0, 0))
    assert entries(m, rmap.rmap_head(m, 0, GFN + 3, 1)) == [90 * 512 + 3, child * 512 + 3]
    assert flushes(m, w) == {}


def test_alias_of_equal_access_meets_the_child_of_the_first(m: state.Mmu) -> None:
    spteps = [huge_page(m, number) for number in (1, 2)]
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0), (GFN, Outcome.EXISTING_CHILD, 0)]
    assert entries(m, rmap.rmap_head(m, 0, GFN, 2)) == [spteps[1]]


def test_alias_reuses_the_child_with_patch_24(m: state.Mmu) -> None:
    spteps = [huge_page(m, number) for number in (1, 2)]
    w = opened(m)
    assert run(m, w, knobs("v2-alias")) == [(GFN, Outcome.SPLIT, 0)] * 2
    child = shadow_page.find_shadow_page(m, GFN, make_key(DIRECT | ALL | 1, 0, 0))
    assert entries(m, m.sp[child, layout.SP_PARENTS]) == spteps
    assert m.out16[1, window.OUT16_REUSED] == 512
    assert flushes(m, w) == {}


@pytest.mark.parametrize(("access", "variant"), [(ACC_ALL & ~ACC_EXEC, 0), (ACC_ALL, 1)])
def test_alias_of_another_role_gets_a_child_of_its_own(m: state.Mmu, access: int, variant: int) -> None:
    huge_page(m, 1)
    huge_page(m, 2, access=access, variant=variant)
    w = opened(m)
    assert run(m, w) == [(GFN, Outcome.SPLIT, 0), (GFN, Outcome.SPLIT, 512)]
    assert m.ctl[layout.CTL_COUNTERS + window.C_PAGES_CREATED] == 2


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


def test_merged_code_leaves_what_is_not_nested(m: state.Mmu) -> None:
    huge_page(m, 1)
    w = opened(m)
    assert run(m, w, knobs("linux-6.0")) == []
    assert m.window[w, window.WIN_SKIPPED + Outcome.NOT_NESTED - 1] == 1


def test_every_split_of_2026_flushes(m: state.Mmu) -> None:
    m.vm[0, layout.VM_HAS_TDP] = 1
    for number in (1, 2):
        huge_page(m, number, GFN + 512 * (number - 1))
    w = opened(m)
    run(m, w, knobs("linux-2026"))
    assert flushes(m, w) == {"LINK": 2}


@pytest.mark.parametrize("flag", [layout.FLAG_INVALID, layout.FLAG_UNSYNC])
def test_silent_skips(m: state.Mmu, flag: int) -> None:
    sptep = huge_page(m, 1)
    m.sp32[sptep // 512, layout.SP32_FLAGS] |= flag
    w = opened(m)
    assert run(m, w) == []
    word = Outcome.INVALID if flag == layout.FLAG_INVALID else Outcome.UNSYNC
    assert m.window[w, window.WIN_SKIPPED + word - 1] == 1


def test_look_up_of_a_2m_child_zaps_unsync_pages_of_its_gfn(m: state.Mmu) -> None:
    huge_page(m, 1, level=3)
    unsync = make_key(ALL | 1, 0, 0)
    shadow_page.alloc_shadow_page(m, GFN, unsync, layout.FLAG_UNSYNC)
    m.vm[0, layout.VM_USED] = 2
    w = opened(m, 1 << 18)
    assert split.advance(m, w, V2, NEVER, False) == split.STOP_ATTEMPT
    assert shadow_page.find_shadow_page(m, GFN, unsync) == -1
    assert (m.vm[0, layout.VM_USED], flushes(m, w)) == (2, {"ZAP": 1})


def test_range_visits_its_first_head_even_if_it_is_empty(m: state.Mmu) -> None:
    huge_page(m, 1)
    assert run(m, opened(m, 0)) == [(GFN, Outcome.SPLIT, 0)]


def test_range_ends_with_its_last_page(m: state.Mmu) -> None:
    for number in range(3):
        huge_page(m, number, GFN + 512 * number)
    assert [gfn for gfn, _, _ in run(m, opened(m, 513))] == [GFN, GFN + 512]


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


def test_a_split_page_takes_at_most_128_bytes(m: state.Mmu) -> None:
    """Its shadow page, two buckets of a large hash table, its attempt: no SPTEs, heads or descriptors."""
    for number in range(40):
        huge_page(m, number + 1, GFN + 512 * number)
    tops = (layout.CTL_SPT_TOP, layout.CTL_BLOCK_TOP, layout.CTL_DESC_TOP)
    before = m.ctl[list(tops)].tolist()
    assert len(run(m, opened(m, 512 * 40))) == 40
    assert m.ctl[list(tops)].tolist() == before
    assert m.ctl[layout.CTL_SOURCE_TOP] == 1
    rows = (m.sp, m.sp32, m.out, m.out32, m.out16)
    assert sum(table.shape[1] * table.itemsize for table in rows) + 2 * m.hash.itemsize <= 128
