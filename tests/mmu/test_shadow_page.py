"""Shadow pages: hash and page frames, and the compact form of a table against the spelled-out one."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.mmu import apply, layout, rmap, shadow_page, spte, state
from replay.mmu.rmap import ORDER_APPEND
from replay.mmu.role import ACC_ALL, ACCESS_SHIFT, DIRECT, make_key
from tests.mmu.conftest import make_mmu
from tests.mmu.test_rmap import entries

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
GFN = 0x40000
HUGE = -(1 << 63) | 0x140000EE7
ALL = ACC_ALL << ACCESS_SHIFT
ROLES = [DIRECT | ALL | level for level in (1, 2)] + [ALL | 1]


@QUICK
@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(("alloc", "free", "bind", "unbind")), st.integers(0, 40), st.integers(1, 12)
        ),
        max_size=80,
    )
)
def test_hash_and_page_frames(operations: list[tuple[str, int, int]]) -> None:
    m = make_mmu()
    live: dict[tuple[int, int], int] = {}
    frames: dict[int, int] = {}
    keys = [
        (GFN + 512 * (number // 6), make_key(ROLES[number % 3], number % 2, number // 3 % 2))
        for number in range(41)
    ]
    for what, number, frame in operations:
        gfn, key = keys[number]
        sp = live.get((gfn, key))
        if what == "alloc" and sp is None:
            live[gfn, key] = shadow_page.alloc_shadow_page(m, gfn, key, 0)
        elif what == "free" and sp is not None:
            shadow_page.free_shadow_page(m, sp)
            frames = {at: page for at, page in frames.items() if page != sp}
            del live[gfn, key]
        elif what == "bind" and sp is not None:
            shadow_page.bind_page(m, sp, frame)
            frames = {at: page for at, page in frames.items() if page != sp} | {frame: sp}
        elif what == "unbind" and sp is not None:
            shadow_page.unbind_page(m, sp)
            frames = {at: page for at, page in frames.items() if page != sp}
        for gfn, key in keys:
            assert shadow_page.find_shadow_page(m, gfn, key) == live.get((gfn, key), -1)
        assert [shadow_page.find_bound(m, frame) for frame in range(1, 13)] == [
            frames.get(frame, -1) for frame in range(1, 13)
        ]
    assert len(set(live.values())) == len(live)


def table(m: state.Mmu, gfn: int = GFN, access: int = ACC_ALL) -> int:
    """A direct 4K table."""
    key = make_key(DIRECT | access << ACCESS_SHIFT | 1, 0, 0)
    return int(shadow_page.alloc_shadow_page(m, gfn, key, 0))


def spell_out(m: state.Mmu, sp: int) -> None:
    """What fill_uniform stands for, one SPTE at a time."""
    for index in range(512):
        value = spte.make_huge_page_split_spte(HUGE, index, 1, True, False)
        shadow_page.install_leaf(m, sp, index, GFN + index, value, ACC_ALL, ORDER_APPEND)


def seen(m: state.Mmu, sp: int) -> tuple[list[int], list[list[int]]]:
    sptes = [int(shadow_page.get_spte(m, sp, index)) for index in range(512)]
    return sptes, [entries(m, rmap.rmap_head(m, 0, GFN + index, 1)) for index in range(512)]


CHANGES = ("drop", "set", "protect gfn", "protect region", "second", "materialize")


@QUICK
@given(changes=st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 511)), max_size=6))
def test_compact_table_equals_a_spelled_out_one(changes: list[tuple[str, int]]) -> None:
    compact, spelled = make_mmu(), make_mmu()
    sp = table(compact)
    assert table(spelled) == sp
    assert shadow_page.fill_uniform(compact, sp, HUGE)
    assert compact.ctl[layout.CTL_SPT_TOP] == compact.ctl[layout.CTL_BLOCK_TOP] == 0
    spell_out(spelled, sp)
    assert seen(compact, sp) == seen(spelled, sp)
    for what, index in changes:
        for m in (compact, spelled):
            r = state.find_region(m, 0, GFN, False)
            if what == "drop":
                shadow_page.drop_spte(m, sp, index, ORDER_APPEND)
            elif what == "set":
                if shadow_page.get_spte(m, sp, index):
                    shadow_page.set_spte(m, sp, index, 0x777000E67)
            elif what == "protect gfn":
                apply.write_protect_gfn(m, 0, GFN + index, 1, True)
            elif what == "protect region":
                apply.write_protect_region(m, r, False)
            elif what == "second":
                rmap.rmap_remove(m, 0, GFN + index, 1, 99 * 512, ORDER_APPEND)
            else:
                rmap.materialize_block(m, r)
        assert seen(compact, sp) == seen(spelled, sp)
    for m in (compact, spelled):
        shadow_page.zap_children(m, sp, ORDER_APPEND)
    assert seen(compact, sp) == seen(spelled, sp) == ([0] * 512, [[]] * 512)


def test_write_protection_of_a_compact_table_keeps_it_compact(m: state.Mmu) -> None:
    sp = table(m)
    shadow_page.fill_uniform(m, sp, HUGE)
    apply.write_protect_region(m, state.find_region(m, 0, GFN, False), False)
    assert m.sp32[sp, layout.SP32_SPT] == layout.UNIFORM
    assert all(not shadow_page.get_spte(m, sp, index) & spte.PT_WRITABLE_MASK for index in range(512))


def test_uniform_filling_is_refused_where_it_would_lie(m: state.Mmu) -> None:
    other = table(m, GFN + 512)
    rmap.rmap_add(m, 0, GFN + 7, 1, other * 512, ORDER_APPEND)
    occupied = table(m)
    assert not shadow_page.fill_uniform(m, occupied, HUGE)
    rmap.rmap_remove(m, 0, GFN + 7, 1, other * 512, ORDER_APPEND)
    assert shadow_page.fill_uniform(m, occupied, HUGE)
    filled = table(m, GFN + 1024)
    shadow_page.set_spte(m, filled, 0, 0x1000E67)
    assert not shadow_page.fill_uniform(m, filled, HUGE)
    upper = shadow_page.alloc_shadow_page(m, 1 << 18, make_key(DIRECT | ALL | 2, 0, 0), 0)
    assert not shadow_page.fill_uniform(m, upper, HUGE)


def test_link_drops_the_huge_spte_and_knows_its_parents(m: state.Mmu) -> None:
    parents = [
        shadow_page.alloc_shadow_page(m, 1 << 18, make_key(DIRECT | ALL | 2, variant, 0), 0)
        for variant in (0, 1)
    ]
    child = table(m, 1 << 18)
    for parent in parents:
        shadow_page.install_leaf(m, parent, 0, 1 << 18, HUGE, ACC_ALL, ORDER_APPEND)
    for parent in parents:
        shadow_page.link_shadow_page(m, parent, 0, child, ORDER_APPEND)
        shadow_page.link_shadow_page(m, parent, 0, child, ORDER_APPEND)
    assert rmap.rmap_head(m, 0, 1 << 18, 2) == 0
    assert entries(m, m.sp[child, layout.SP_PARENTS]) == [parent * 512 for parent in parents]
    shadow_page.unlink_parents(m, child, ORDER_APPEND)
    assert [shadow_page.get_spte(m, parent, 0) for parent in parents] == [0, 0]
    assert m.sp[child, layout.SP_PARENTS] == 0


def test_translation_of_an_indirect_page(m: state.Mmu) -> None:
    sp = shadow_page.alloc_shadow_page(m, 0x201, make_key(ALL | 1, 0, 0), 0)
    assert shadow_page.sptep_gfn(m, sp, 3) == -1
    shadow_page.install_leaf(m, sp, 3, 0x41234, 0x141234E67, 5, ORDER_APPEND)
    assert shadow_page.sptep_gfn(m, sp, 3) == 0x41234
    assert shadow_page.sptep_access(m, sp, 3) == 5
    assert entries(m, rmap.rmap_head(m, 0, 0x41234, 1)) == [sp * 512 + 3]
    shadow_page.drop_spte(m, sp, 3, ORDER_APPEND)
    assert rmap.rmap_head(m, 0, 0x41234, 1) == 0


def test_freed_rows_are_used_again(m: state.Mmu) -> None:
    sp = table(m)
    shadow_page.set_spte(m, sp, 0, 0x1000E67)
    t = m.sp32[sp, layout.SP32_SPT]
    shadow_page.free_shadow_page(m, sp)
    again = table(m, GFN + 512)
    assert again == sp
    assert shadow_page.get_spte(m, again, 0) == 0
    shadow_page.set_spte(m, again, 1, 0x2000E67)
    assert m.sp32[again, layout.SP32_SPT] == t
    assert shadow_page.get_spte(m, again, 0) == 0


@pytest.mark.parametrize("vm", [0, 1])
def test_account_shadowed_counts_guest_tables(m: state.Mmu, vm: int) -> None:
    shadow_page.account_shadowed(m, vm, GFN + 5, 1)
    shadow_page.account_shadowed(m, vm, GFN + 6, 1)
    shadow_page.account_shadowed(m, vm, GFN + 5, -1)
    r, g = state.find_region(m, vm, GFN, False), state.find_gib(m, vm, GFN, False)
    assert (m.region[r, layout.REGION_TABLES], m.gib[g, layout.GIB_TABLES]) == (1, 1)
    assert state.find_gib(m, 1 - vm, GFN, False) == -1
