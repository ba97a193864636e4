"""Shadow pages: hash and page frames, and the compact form of a table against the spelled-out one."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.mmu.events import pages
from replay.mmu.kernel import rmap, shadow_page, spte
from replay.mmu.kernel.rmap import ORDER_APPEND
from replay.mmu.kernel.role import ACC_ALL, ACC_EXEC, ACCESS_SHIFT, make_key
from replay.mmu.state import mmu, records
from replay.mmu.state.records import PageFlag
from replay.schema import Role
from tests.mmu.conftest import make_mmu
from tests.mmu.kernel.test_rmap import entries

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
GFN = 0x40000
HUGE = -(1 << 63) | 0x140000EE7
ALL = ACC_ALL << ACCESS_SHIFT
ROLES = [Role.DIRECT | ALL | level for level in (1, 2)] + [ALL | 1]


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


def table(m: mmu.Mmu, gfn: int = GFN, access: int = ACC_ALL) -> int:
    """A direct 4K table."""
    key = make_key(Role.DIRECT | access << ACCESS_SHIFT | 1, 0, 0)
    return int(shadow_page.alloc_shadow_page(m, gfn, key, 0))


def spell_out(m: mmu.Mmu, sp: int) -> None:
    """What fill_uniform stands for, one SPTE at a time."""
    for index in range(512):
        value = spte.make_huge_page_split_spte(HUGE, index, 1, ACC_ALL, spte.LEGACY)
        shadow_page.install_leaf(m, sp, index, GFN + index, value, ACC_ALL, ORDER_APPEND)


def seen(m: mmu.Mmu, sp: int) -> tuple[list[int], list[list[int]]]:
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
    assert compact.ctl.spt_top == compact.ctl.block_top == 0
    spell_out(spelled, sp)
    assert seen(compact, sp) == seen(spelled, sp)
    for what, index in changes:
        for m in (compact, spelled):
            r = mmu.find_region(m, 0, GFN, False)
            if what == "drop":
                shadow_page.drop_spte(m, sp, index, ORDER_APPEND)
            elif what == "set":
                if shadow_page.get_spte(m, sp, index):
                    shadow_page.set_spte(m, sp, index, 0x777000E67)
            elif what == "protect gfn":
                pages.write_protect_gfn(m, 0, GFN + index, 1)
            elif what == "protect region":
                pages.protect_region(m, r, spte.WRITE_PROTECTED, spte.LEGACY)
            elif what == "second":
                rmap.rmap_remove(m, 0, GFN + index, 1, 99 * 512, ORDER_APPEND)
            else:
                rmap.materialize_block(m, r)
        assert seen(compact, sp) == seen(spelled, sp)
    for m in (compact, spelled):
        shadow_page.zap_children(m, sp, ORDER_APPEND)
    assert seen(compact, sp) == seen(spelled, sp) == ([0] * 512, [[]] * 512)


def test_write_protection_of_a_compact_table_keeps_it_compact(m: mmu.Mmu) -> None:
    sp = table(m)
    shadow_page.fill_uniform(m, sp, HUGE)
    region = mmu.find_region(m, 0, GFN, False)
    pages.protect_region(m, region, spte.WRITE_PROTECTED, spte.LEGACY)
    assert m.sp[sp].spt == records.UNIFORM
    assert all(not shadow_page.get_spte(m, sp, index) & spte.PT_WRITABLE_MASK for index in range(512))


def test_uniform_filling_is_refused_where_it_would_lie(m: mmu.Mmu) -> None:
    other = table(m, GFN + 512)
    rmap.rmap_add(m, 0, GFN + 7, 1, other * 512, ORDER_APPEND)
    occupied = table(m)
    assert not shadow_page.fill_uniform(m, occupied, HUGE)
    rmap.rmap_remove(m, 0, GFN + 7, 1, other * 512, ORDER_APPEND)
    assert shadow_page.fill_uniform(m, occupied, HUGE)
    filled = table(m, GFN + 1024)
    shadow_page.set_spte(m, filled, 0, 0x1000E67)
    assert not shadow_page.fill_uniform(m, filled, HUGE)
    upper = shadow_page.alloc_shadow_page(m, 1 << 18, make_key(Role.DIRECT | ALL | 2, 0, 0), 0)
    assert not shadow_page.fill_uniform(m, upper, HUGE)


def test_link_drops_the_huge_spte_and_knows_its_parents(m: mmu.Mmu) -> None:
    parents = [
        shadow_page.alloc_shadow_page(m, 1 << 18, make_key(Role.DIRECT | ALL | 2, variant, 0), 0)
        for variant in (0, 1)
    ]
    child = table(m, 1 << 18)
    for parent in parents:
        shadow_page.install_leaf(m, parent, 0, 1 << 18, HUGE, ACC_ALL, ORDER_APPEND)
    for parent in parents:
        shadow_page.link_shadow_page(m, parent, 0, child, ORDER_APPEND)
        shadow_page.link_shadow_page(m, parent, 0, child, ORDER_APPEND)
    assert rmap.rmap_head(m, 0, 1 << 18, 2) == 0
    assert entries(m, m.sp[child].parent_ptes) == [parent * 512 for parent in parents]
    shadow_page.unlink_parents(m, child, ORDER_APPEND)
    assert [shadow_page.get_spte(m, parent, 0) for parent in parents] == [0, 0]
    assert m.sp[child].parent_ptes == 0


def test_translation_of_an_indirect_page(m: mmu.Mmu) -> None:
    sp = shadow_page.alloc_shadow_page(m, 0x201, make_key(ALL | 1, 0, 0), 0)
    assert shadow_page.sptep_gfn(m, sp, 3) == -1
    shadow_page.install_leaf(m, sp, 3, 0x41234, 0x141234E67, 5, ORDER_APPEND)
    assert shadow_page.sptep_gfn(m, sp, 3) == 0x41234
    assert shadow_page.sptep_access(m, sp, 3) == 5
    assert entries(m, rmap.rmap_head(m, 0, 0x41234, 1)) == [sp * 512 + 3]
    shadow_page.drop_spte(m, sp, 3, ORDER_APPEND)
    assert rmap.rmap_head(m, 0, 0x41234, 1) == 0


def test_freed_rows_are_used_again(m: mmu.Mmu) -> None:
    sp = table(m)
    shadow_page.set_spte(m, sp, 0, 0x1000E67)
    t = m.sp[sp].spt
    shadow_page.free_shadow_page(m, sp)
    again = table(m, GFN + 512)
    assert again == sp
    assert shadow_page.get_spte(m, again, 0) == 0
    shadow_page.set_spte(m, again, 1, 0x2000E67)
    assert m.sp[again].spt == t
    assert shadow_page.get_spte(m, again, 0) == 0


@pytest.mark.parametrize("vm", [0, 1])
def test_account_shadowed_counts_guest_tables(m: mmu.Mmu, vm: int) -> None:
    shadow_page.account_shadowed(m, vm, GFN + 5, 1)
    shadow_page.account_shadowed(m, vm, GFN + 6, 1)
    shadow_page.account_shadowed(m, vm, GFN + 5, -1)
    r, g = mmu.find_region(m, vm, GFN, False), mmu.find_gib(m, vm, GFN, False)
    assert (m.region[r].tables, m.gib[g].tables) == (1, 1)
    assert mmu.find_gib(m, 1 - vm, GFN, False) == -1


def test_zapped_root_is_not_found(m: mmu.Mmu) -> None:
    sp = table(m)
    key = m.sp[sp].key
    m.sp[sp].page_flags = PageFlag.INVALID
    assert shadow_page.find_shadow_page(m, GFN, key) == -1
    again = table(m)
    assert shadow_page.find_shadow_page(m, GFN, key) == again != sp


def test_new_page_in_a_freed_row_has_nothing_of_the_old(m: mmu.Mmu) -> None:
    old = table(m)
    shadow_page.fill_uniform(m, old, HUGE)
    shadow_page.bind_page(m, old, 0x900)
    m.sp[old].parent_ptes = 7
    m.sp[old].page_flags |= PageFlag.ALL_CLEARED
    birth = m.sp[old].birth
    shadow_page.free_shadow_page(m, old)
    assert m.sp[old].page_flags == 0
    new = shadow_page.alloc_shadow_page(m, GFN + 512, make_key(ALL | 1, 0, 0), PageFlag.ADOPTED)
    assert new == old
    columns = ["gfn", "key", "first_spte", "parent_ptes", "frame"]
    assert [m.sp[new][name] for name in columns] == [GFN + 512, make_key(ALL | 1, 0, 0), 0, 0, 0]
    assert m.sp[new].page_flags == PageFlag.LIVE | PageFlag.ADOPTED
    assert m.sp[new].birth == birth + 1
    assert shadow_page.find_bound(m, 0x900) == -1


def test_page_made_last_is_first_in_its_chain(m: mmu.Mmu) -> None:
    pages = [shadow_page.alloc_shadow_page(m, GFN, make_key(ALL | 1, variant, 0), 0) for variant in range(4)]
    i, chain = m.hash[mmu.page_bucket(GFN, make_key(ALL | 1, 0, 0), m.hash.shape[0])], []
    while i:
        chain.append(int(i))
        i = m.sp[i].next
    assert chain == pages[::-1]


def test_freed_page_gives_back_both_tables(m: mmu.Mmu) -> None:
    sp = shadow_page.alloc_shadow_page(m, 0x201, make_key(ALL | 1, 0, 0), 0)
    shadow_page.install_leaf(m, sp, 3, GFN, 0x140000E67, 5, ORDER_APPEND)
    rows = [int(m.sp[sp][column]) for column in ("spt", "shadowed_translation")]
    top = m.ctl.spt_top
    shadow_page.free_shadow_page(m, sp)
    assert sorted(int(mmu.alloc_table(m)) for _ in rows) == sorted(rows)
    assert m.ctl.spt_top == top
    assert [m.sp[sp][column] for column in ("spt", "shadowed_translation")] == [-1, -1]


def test_freed_page_without_tables_gives_back_none(m: mmu.Mmu) -> None:
    for _ in range(2):
        sp = table(m)
        shadow_page.free_shadow_page(m, sp)
    shadow_page.fill_uniform(m, table(m), HUGE)
    shadow_page.free_shadow_page(m, sp)
    assert (m.ctl.spt_free, m.ctl.spt_top) == (-1, 0)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_frames_that_share_a_bucket(m: mmu.Mmu, gone: int) -> None:
    bucket = mmu.frame_bucket(1, m.frames.shape[0])
    frames = [f for f in range(1, 200_000) if mmu.frame_bucket(f, m.frames.shape[0]) == bucket][:3]
    pages = [table(m, GFN + 512 * number) for number in range(3)]
    for sp, frame in zip(pages, frames, strict=True):
        shadow_page.bind_page(m, sp, frame)
    shadow_page.unbind_page(m, pages[gone])
    left = [-1 if number == gone else pages[number] for number in range(3)]
    assert [shadow_page.find_bound(m, frame) for frame in frames] == left
    for sp, frame in zip(pages, frames, strict=True):
        shadow_page.bind_page(m, sp, frame)
    assert [shadow_page.find_bound(m, frame) for frame in frames] == pages


def test_page_moves_to_another_frame(m: mmu.Mmu) -> None:
    one, two = table(m), table(m, GFN + 512)
    shadow_page.bind_page(m, one, 0x900)
    shadow_page.bind_page(m, one, 0x901)
    assert (shadow_page.find_bound(m, 0x900), shadow_page.find_bound(m, 0x901)) == (-1, one)
    shadow_page.bind_page(m, two, 0x901)
    assert (shadow_page.find_bound(m, 0x901), m.sp[one].frame) == (two, 0)


def test_no_page_is_in_frame_0(m: mmu.Mmu) -> None:
    sp = table(m)
    assert shadow_page.find_bound(m, 0) == -1
    shadow_page.bind_page(m, sp, 0x900)
    assert shadow_page.find_bound(m, 0x900) == sp
    shadow_page.unbind_page(m, sp)
    assert shadow_page.find_bound(m, 0) == -1


@pytest.mark.parametrize("group", range(8))
def test_write_protection_of_64_pages_at_a_time(m: mmu.Mmu, group: int) -> None:
    sp = table(m)
    shadow_page.fill_uniform(m, sp, HUGE)
    pages.protect_pages(m, 0, GFN + 64 * group, -1, spte.WRITE_PROTECTED)
    writable = [index for index in range(512) if shadow_page.get_spte(m, sp, index) & spte.PT_WRITABLE_MASK]
    assert writable == [index for index in range(512) if index // 64 != group]
    before = [shadow_page.get_spte(m, sp, index) for index in range(512)]
    shadow_page.set_spte(m, sp, 9, 0x777000E67)
    assert [shadow_page.get_spte(m, sp, index) for index in range(512)] == [
        *before[:9],
        0x777000E67,
        *before[10:],
    ]


def test_page_that_is_filled_again_is_writable_again(m: mmu.Mmu) -> None:
    sp = table(m)
    shadow_page.fill_uniform(m, sp, HUGE)
    pages.protect_pages(m, 0, GFN + 64, -1, spte.WRITE_PROTECTED)
    shadow_page.zap_children(m, sp, ORDER_APPEND)
    assert shadow_page.fill_uniform(m, sp, HUGE)
    assert all(shadow_page.get_spte(m, sp, index) & spte.PT_WRITABLE_MASK for index in range(512))
    assert m.sp[sp].page_flags & PageFlag.LIVE


@pytest.mark.parametrize("ept", [False, True])
@pytest.mark.parametrize("access", [ACC_ALL, ACC_ALL & ~ACC_EXEC])
def test_filled_table_is_executable_if_the_guest_may(m: mmu.Mmu, ept: bool, access: int) -> None:
    code = spte.EPT if ept else spte.LEGACY
    m.vm[0].layout = code
    sp = table(m, access=access)
    huge = 0x140000EF3 if ept else HUGE
    assert shadow_page.fill_uniform(m, sp, huge)
    for index in (0, 7):
        expected = spte.make_huge_page_split_spte(huge, index, 1, access, code)
        assert shadow_page.get_spte(m, sp, index) == expected
    executable = shadow_page.get_spte(m, sp, 0) & 4 != 0 if ept else shadow_page.get_spte(m, sp, 0) > 0
    assert executable == (access == ACC_ALL)


def test_access_is_the_entrys_own_where_it_was_told(m: mmu.Mmu) -> None:
    direct = table(m, access=5)
    shadow_page.set_translation(m, direct, 3, GFN + 9, 1)
    assert shadow_page.sptep_access(m, direct, 3) == 5
    assert shadow_page.sptep_gfn(m, direct, 3) == GFN + 3
    sp = shadow_page.alloc_shadow_page(m, 0x201, make_key(7 << ACCESS_SHIFT | 1, 0, 0), 0)
    assert shadow_page.sptep_access(m, sp, 3) == 7
    shadow_page.set_translation(m, sp, 3, 0, 0xD)
    assert (shadow_page.sptep_gfn(m, sp, 3), shadow_page.sptep_access(m, sp, 3)) == (0, 0xD)
    shadow_page.set_translation(m, sp, 4, GFN, 1)
    assert (shadow_page.sptep_gfn(m, sp, 3), shadow_page.sptep_gfn(m, sp, 5)) == (0, -1)


def test_gfn_of_an_entry_of_each_level(m: mmu.Mmu) -> None:
    pages = [
        shadow_page.alloc_shadow_page(m, 0, make_key(Role.DIRECT | ALL | level, 0, 0), 0)
        for level in (1, 2, 3)
    ]
    assert [shadow_page.sptep_gfn(m, sp, 5) for sp in pages] == [5, 5 << 9, 5 << 18]


def test_dropping_what_is_not_present_changes_nothing(m: mmu.Mmu) -> None:
    sp = table(m)
    rmap.rmap_add(m, 0, GFN, 1, sp * 512, ORDER_APPEND)
    shadow_page.set_spte(m, sp, 0, spte.LEFT_NONPRESENT)
    shadow_page.drop_spte(m, sp, 0, ORDER_APPEND)
    assert shadow_page.get_spte(m, sp, 0) == spte.LEFT_NONPRESENT
    assert entries(m, rmap.rmap_head(m, 0, GFN, 1)) == [sp * 512]


def test_dropped_leaf_whose_gfn_was_never_told_is_in_no_rmap(m: mmu.Mmu) -> None:
    sp = shadow_page.alloc_shadow_page(m, 0x201, make_key(ALL | 1, 0, 0), 0)
    shadow_page.set_spte(m, sp, 0, 0x140000E67)
    shadow_page.drop_spte(m, sp, 0, ORDER_APPEND)
    assert shadow_page.get_spte(m, sp, 0) == 0


def upper_table(m: mmu.Mmu, variant: int = 0) -> int:
    return int(shadow_page.alloc_shadow_page(m, 1 << 18, make_key(Role.DIRECT | ALL | 2, variant, 0), 0))


def test_link_to_another_page_takes_the_first_ones_parent(m: mmu.Mmu) -> None:
    parent, one, two = upper_table(m), table(m, 1 << 18), table(m, 1 << 18, access=1)
    for child in (one, two):
        shadow_page.link_shadow_page(m, parent, 0, child, ORDER_APPEND)
    assert (m.sp[one].parent_ptes, entries(m, m.sp[two].parent_ptes)) == (0, [parent * 512])
    assert spte.spte_child(shadow_page.get_spte(m, parent, 0)) == two


def test_link_over_a_huge_page_whose_frame_has_the_childs_number(m: mmu.Mmu) -> None:
    parent, child = upper_table(m), table(m, 1 << 18)
    shadow_page.install_leaf(m, parent, 0, 1 << 18, child << 12 | 0xEE7, ACC_ALL, ORDER_APPEND)
    shadow_page.link_shadow_page(m, parent, 0, child, ORDER_APPEND)
    assert rmap.rmap_head(m, 0, 1 << 18, 2) == 0
    assert entries(m, m.sp[child].parent_ptes) == [parent * 512]


def test_parents_that_point_elsewhere_keep_what_they_point_to(m: mmu.Mmu) -> None:
    parents, one, two = [upper_table(m, 0), upper_table(m, 1)], table(m, 1 << 18), table(m, 1 << 18, access=1)
    for parent in parents:
        shadow_page.link_shadow_page(m, parent, 5, one, ORDER_APPEND)
    shadow_page.set_spte(m, parents[0], 5, spte.make_nonleaf_spte(two))
    shadow_page.unlink_parents(m, one, ORDER_APPEND)
    assert [shadow_page.get_spte(m, parent, 5) for parent in parents] == [spte.make_nonleaf_spte(two), 0]


def test_zapped_page_is_emptied_and_out_of_the_tree(m: mmu.Mmu) -> None:
    parent, sp = upper_table(m), table(m, 1 << 18)
    shadow_page.link_shadow_page(m, parent, 0, sp, ORDER_APPEND)
    for index in (0, 511):
        shadow_page.install_leaf(m, sp, index, (1 << 18) + index, 0x140000E67, ACC_ALL, ORDER_APPEND)
    shadow_page.unlink_shadow_page(m, sp, ORDER_APPEND)
    assert [shadow_page.get_spte(m, *at) for at in ((parent, 0), (sp, 0), (sp, 511))] == [0, 0, 0]
    assert [rmap.rmap_head(m, 0, (1 << 18) + index, 1) for index in (0, 511)] == [0, 0]
    assert m.sp[sp].parent_ptes == 0


@pytest.mark.parametrize("order", [ORDER_APPEND, rmap.ORDER_HEAD])
def test_children_are_zapped_in_the_order_of_their_entries(m: mmu.Mmu, order: int) -> None:
    """Two entries of one page map one gfn, among others: what is left of the list shows which went first."""
    sp = shadow_page.alloc_shadow_page(m, 0x201, make_key(ALL | 1, 0, 0), 0)
    others = [
        shadow_page.alloc_shadow_page(m, 0x300 + number, make_key(ALL | 1, 0, 0), 0) for number in range(2)
    ]
    for page, index in ((sp, 9), (sp, 3), (others[0], 0), (others[1], 0)):
        shadow_page.install_leaf(m, page, index, GFN, 0x140000E67, ACC_ALL, order)
    shadow_page.zap_children(m, sp, order)
    assert entries(m, rmap.rmap_head(m, 0, GFN, 1)) == [others[0] * 512, others[1] * 512]


def test_zapping_an_empty_page_takes_no_table(m: mmu.Mmu) -> None:
    shadow_page.zap_children(m, table(m), ORDER_APPEND)
    assert m.ctl.spt_top == 0


def test_zapping_a_filled_page_is_as_compact(m: mmu.Mmu) -> None:
    sp = table(m)
    shadow_page.fill_uniform(m, sp, HUGE)
    shadow_page.zap_children(m, sp, ORDER_APPEND)
    assert seen(m, sp) == ([0] * 512, [[]] * 512)
    assert m.ctl.spt_top == m.ctl.block_top == 0


def test_page_prints_like_another_of_other_unprinted_bits_only(m: mmu.Mmu) -> None:
    role = ALL | 2
    sp = shadow_page.alloc_shadow_page(m, GFN, make_key(role, 3, 1), 0)
    assert shadow_page.same_print(m, sp, GFN, role, 1)
    assert not shadow_page.same_print(m, sp, GFN + 1, role, 1)
    assert not shadow_page.same_print(m, sp, GFN, role | Role.DIRECT, 1)
    assert not shadow_page.same_print(m, sp, GFN, role, 0)


def test_pages_of_two_gfns_that_share_a_bucket(m: mmu.Mmu) -> None:
    key, size = make_key(Role.DIRECT | ALL | 1, 0, 0), m.hash.shape[0]
    bucket = mmu.page_bucket(GFN, key, size)
    other = next(n << 18 for n in range(2, 1 << 20) if mmu.page_bucket(n << 18, key, size) == bucket)
    pages = [table(m, gfn) for gfn in (GFN, other)]
    assert [shadow_page.find_shadow_page(m, gfn, key) for gfn in (GFN, other)] == pages
    shadow_page.free_shadow_page(m, pages[0])
    assert [shadow_page.find_shadow_page(m, gfn, key) for gfn in (GFN, other)] == [-1, pages[1]]
