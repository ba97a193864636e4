"""What a split leaves behind: child tables, rmaps, flushes."""

from __future__ import annotations

import pytest

from replay.mmu import layout, rmap, shadow_page, split, state, window
from replay.mmu.role import ACC_ALL, ACC_EXEC, DIRECT, child_key, make_key
from replay.mmu.spte import LEFT_NONPRESENT, is_shadow_present_pte
from replay.schema import Outcome
from tests.mmu.splits import ALL, GFN, HUGE, NEVER, V2, flushes, huge_page, knobs, opened, run
from tests.mmu.test_rmap import entries


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


def test_every_split_of_2026_flushes(m: state.Mmu) -> None:
    m.vm[0, layout.VM_HAS_TDP] = 1
    for number in (1, 2):
        huge_page(m, number, GFN + 512 * (number - 1))
    w = opened(m)
    run(m, w, knobs("linux-2026"))
    assert flushes(m, w) == {"LINK": 2}


def test_look_up_of_a_2m_child_zaps_unsync_pages_of_its_gfn(m: state.Mmu) -> None:
    huge_page(m, 1, level=3)
    unsync = make_key(ALL | 1, 0, 0)
    shadow_page.alloc_shadow_page(m, GFN, unsync, layout.FLAG_UNSYNC)
    m.vm[0, layout.VM_USED] = 2
    w = opened(m, 1 << 18)
    assert split.advance(m, w, V2, NEVER, False) == split.STOP_ATTEMPT
    assert shadow_page.find_shadow_page(m, GFN, unsync) == -1
    assert (m.vm[0, layout.VM_USED], flushes(m, w)) == (2, {"ZAP": 1})


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
