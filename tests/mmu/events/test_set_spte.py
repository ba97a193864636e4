"""Leaf SPTEs that recorded lines set: which table they are of, and what they take the place of."""

from __future__ import annotations

import pytest

from replay.mmu.events import fault, set_spte
from replay.mmu.kernel import rmap, shadow_page, spte
from replay.mmu.kernel.rmap import ORDER_APPEND
from replay.mmu.kernel.role import ACC_ALL, ACC_WRITE, ACCESS_SHIFT, DIRECT_FAMILY, make_key
from replay.mmu.state import mmu, records
from replay.mmu.state.counters import Counter
from replay.mmu.state.records import FaultState, PageFlag
from replay.schema import Role
from tests.mmu.kernel.test_rmap import entries

GFN = 1 << 18
PFN = 0x140000
SMALL, HUGE = 0xE67, 0xEE7
ALL = ACC_ALL << ACCESS_SHIFT
PROTECTED = SMALL & ~spte.PT_WRITABLE_MASK
FRAME = 0x900
TABLE = 0x67
READ, WRITE, FETCH = 4, 6, 20  # codes of faults


@pytest.fixture
def t(m: mmu.Mmu) -> int:
    return int(mmu.find_task(m, 77))


def table(m: mmu.Mmu, gfn: int, level: int = 1, frame: int = 0, variant: int = 0, vm: int = 0) -> int:
    """A direct page, bound to ``frame`` if there is one."""
    sp = int(shadow_page.alloc_shadow_page(m, gfn, make_key(Role.DIRECT | ALL | level, variant, vm), 0))
    if frame:
        shadow_page.bind_page(m, sp, frame)
    return sp


def indirect(m: mmu.Mmu, gfn: int, level: int = 1, frame: int = 0, variant: int = 0) -> int:
    sp = int(shadow_page.alloc_shadow_page(m, gfn, make_key(ALL | level, variant, 0), 0))
    if frame:
        shadow_page.bind_page(m, sp, frame)
    return sp


def pte(pfn: int, bits: int = SMALL) -> int:
    return pfn << 12 | bits


def install(m: mmu.Mmu, sp: int, index: int, gfn: int, value: int) -> int:
    """Map ``gfn`` through an SPTE; gives its sptep."""
    shadow_page.install_leaf(m, sp, index, gfn, value, ACC_ALL, ORDER_APPEND)
    return sp * 512 + index


def set_by_line(
    m: mmu.Mmu, t: int, gfn: int, value: int, index: int, level: int = 1, frame: int = FRAME
) -> None:
    set_spte.apply_set_spte(m, t, 0, gfn, value, level, frame << 12 | index * 8, ORDER_APPEND)


def mapping(m: mmu.Mmu, gfn: int, level: int = 1) -> list[int]:
    return entries(m, rmap.rmap_head(m, 0, gfn, level))


def value(m: mmu.Mmu, sptep: int) -> int:
    return int(shadow_page.get_spte(m, sptep // 512, sptep % 512))


def counted(m: mmu.Mmu, counter: int) -> int:
    return int(m.counter[counter])


def host_levels(m: mmu.Mmu, gfn: int) -> tuple[int, int]:
    """Host level of the 2 MiB around ``gfn``, and of the GiB."""
    region, gib = mmu.find_region(m, 0, gfn, False), mmu.find_gib(m, 0, gfn, False)
    return int(m.region[region].host), int(m.gib[gib].host)


# -- mmu_set_spte ----------------------------------------------------------------------------------


def test_line_sets_an_spte_of_the_table_it_names(m: mmu.Mmu, t: int) -> None:
    sp = table(m, GFN, frame=FRAME)
    set_by_line(m, t, GFN + 5, pte(PFN + 5) & ~spte.SPTE_MMU_PRESENT_MASK, 5)
    assert value(m, sp * 512 + 5) == pte(PFN + 5)  # kernels before 5.13 print no MMU-present bit
    assert mapping(m, GFN + 5) == [sp * 512 + 5]
    assert m.task[t].fault_state == FaultState.DONE
    assert host_levels(m, GFN) == (1, 0)
    assert [counted(m, c) for c in (Counter.ADOPTED_PAGES, Counter.UNPLACED_SPTES)] == [0, 0]


def test_line_of_a_huge_page_sets_a_huge_spte(m: mmu.Mmu, t: int) -> None:
    sp = table(m, GFN, 2, FRAME)
    set_by_line(m, t, GFN + 1024, pte(PFN), 2, level=2)
    assert value(m, sp * 512 + 2) == pte(PFN, HUGE)
    assert mapping(m, GFN + 1024, 2) == [sp * 512 + 2]


def test_line_of_a_1g_page(m: mmu.Mmu, t: int) -> None:
    sp = table(m, 0, 3, FRAME)
    set_by_line(m, t, GFN, pte(PFN), 1, level=3)
    assert mapping(m, GFN, 3) == [sp * 512 + 1]
    assert host_levels(m, GFN) == (3, 3)


@pytest.mark.parametrize(("gfn", "level"), [(GFN + 1, 2), (GFN + 256, 2), (GFN + 512, 3)])
def test_huge_page_begins_at_a_multiple_of_its_size(m: mmu.Mmu, t: int, gfn: int, level: int) -> None:
    indirect(m, 0x201, level, FRAME)  # a guest's table takes any gfn
    set_by_line(m, t, gfn, pte(PFN), 0, level)
    assert (mapping(m, gfn, level), counted(m, Counter.UNPLACED_SPTES)) == ([], 1)


@pytest.mark.parametrize(("gfn", "level"), [(0, 0), (0, 4), (0, 5), (GFN, 4)])
def test_line_of_no_such_level_is_not_placed(m: mmu.Mmu, t: int, gfn: int, level: int) -> None:
    set_by_line(m, t, gfn, pte(PFN), 0, level)
    assert counted(m, Counter.UNPLACED_SPTES) == 1
    assert (m.ctl.sp_top, m.ctl.gib_top) == (1, 0)


def three_aliases(m: mmu.Mmu, pfns: tuple[int, int, int]) -> list[int]:
    """SPTEs of three pages that map GFN in this order, the second of them in FRAME."""
    pages = [table(m, GFN, variant=number) for number in range(3)]
    shadow_page.bind_page(m, pages[1], FRAME)
    return [install(m, sp, 0, GFN, pte(pfn)) for sp, pfn in zip(pages, pfns, strict=True)]


def test_same_page_again_changes_the_value_only(m: mmu.Mmu, t: int) -> None:
    spteps = three_aliases(m, (PFN, PFN, PFN))
    set_by_line(m, t, GFN, pte(PFN, 0xE65), 0)
    assert value(m, spteps[1]) == pte(PFN, 0xE65)
    assert mapping(m, GFN) == spteps
    assert m.task[t].fault_state == FaultState.DONE


def test_other_pfn_leaves_the_rmap_and_comes_back_last(m: mmu.Mmu, t: int) -> None:
    first, second, third = three_aliases(m, (PFN, PFN + 7, PFN))
    set_by_line(m, t, GFN, pte(PFN), 0)
    assert mapping(m, GFN) == [first, third, second]
    assert value(m, second) == pte(PFN)
    assert counted(m, Counter.PFN_CHANGES) == 0


def test_entry_of_a_guest_table_moves_to_another_gfn(m: mmu.Mmu, t: int) -> None:
    sp = indirect(m, 0x201, frame=FRAME)
    set_by_line(m, t, GFN + 5, pte(PFN), 9)
    set_by_line(m, t, GFN + 77, pte(PFN), 9)
    assert (mapping(m, GFN + 5), mapping(m, GFN + 77)) == ([], [sp * 512 + 9])
    assert shadow_page.sptep_gfn(m, sp, 9) == GFN + 77


@pytest.mark.parametrize("pfn", [PFN, None])
def test_huge_leaf_in_the_place_of_a_table_unlinks_it(m: mmu.Mmu, t: int, pfn: int | None) -> None:
    parent, child = table(m, GFN, 2, FRAME), table(m, GFN)
    shadow_page.link_shadow_page(m, parent, 0, child, ORDER_APPEND)
    set_by_line(m, t, GFN, pte(child if pfn is None else pfn, HUGE), 0, level=2)
    assert m.sp[child].parent_ptes == 0
    assert shadow_page.find_shadow_page(m, GFN, m.sp[child].key) == child
    assert mapping(m, GFN, 2) == [parent * 512]


# -- the table that a line names -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vm", "gfn", "level", "index", "flags", "expected"),
    [
        (0, GFN + 5, 1, 5, PageFlag.LIVE, True),
        (1, GFN + 5, 1, 5, PageFlag.LIVE, False),
        (0, GFN, 2, 0, PageFlag.LIVE, False),
        (0, GFN + 5, 1, 6, PageFlag.LIVE, False),
        (0, GFN + 5, 1, 5, PageFlag.INVALID, False),  # a zapped root takes no SPTE any more
    ],
)
def test_table_fits_what_is_set(
    m: mmu.Mmu, vm: int, gfn: int, level: int, index: int, flags: int, expected: bool
) -> None:
    sp = table(m, GFN)
    m.sp[sp].page_flags = flags
    assert set_spte.fits(m, sp, vm, gfn, level, index) == expected


def test_table_of_the_tdp_mmu_fits_nothing(m: mmu.Mmu) -> None:
    sp = table(m, GFN)
    m.sp[sp].key |= records.TDP_KEY
    assert not set_spte.fits(m, sp, 0, GFN, 1, 0)


def test_guest_table_fits_any_gfn(m: mmu.Mmu) -> None:
    sp = indirect(m, 0x201)
    assert set_spte.fits(m, sp, 0, GFN + 77, 1, 3)
    assert not set_spte.fits(m, sp, 0, GFN, 2, 0)


def test_table_that_was_never_named_is_adopted(m: mmu.Mmu, t: int) -> None:
    set_by_line(m, t, GFN + 5, pte(PFN), 5)
    sp = shadow_page.find_bound(m, FRAME)
    assert (m.sp[sp].gfn, m.sp[sp].page_flags) == (
        GFN,
        PageFlag.LIVE | PageFlag.ADOPTED | PageFlag.GUESSED,
    )
    assert m.sp[sp].key == make_key(Role.DIRECT | ALL | 1, DIRECT_FAMILY, 0)
    assert (counted(m, Counter.ADOPTED_PAGES), m.vm[0].n_used_mmu_pages) == (1, 1)
    assert mapping(m, GFN + 5) == [sp * 512 + 5]
    set_by_line(m, t, GFN + 6, pte(PFN), 6)
    assert counted(m, Counter.ADOPTED_PAGES) == 1


def test_adopted_table_of_huge_pages(m: mmu.Mmu, t: int) -> None:
    set_by_line(m, t, GFN + 1024, pte(PFN), 2, level=2)
    sp = shadow_page.find_bound(m, FRAME)
    assert (m.sp[sp].gfn, m.sp[sp].key) == (
        GFN,
        make_key(Role.DIRECT | ALL | 2, DIRECT_FAMILY, 0),
    )


def test_adopted_table_is_like_its_root(m: mmu.Mmu, t: int) -> None:
    m.sp[rooted(m, t)].key |= Role.EFER_NX
    set_by_line(m, t, GFN + 5, pte(PFN), 5)
    sp = shadow_page.find_bound(m, FRAME)
    assert m.sp[sp].key == make_key(Role.DIRECT | ALL | 1 | Role.EFER_NX, DIRECT_FAMILY, 0)


def test_frame_of_a_table_that_cannot_be_meant_has_become_anothers(m: mmu.Mmu, t: int) -> None:
    other = table(m, GFN, 2, FRAME)
    set_by_line(m, t, GFN + 5, pte(PFN), 5)
    sp = shadow_page.find_bound(m, FRAME)
    assert (m.sp[sp].gfn, m.sp[other].frame) == (GFN, 0)
    assert mapping(m, GFN + 5) == [sp * 512 + 5]


@pytest.mark.parametrize(
    ("gfn", "index", "level"),
    [(GFN + 5, 6, 1), (GFN + 6, 5, 1), (5, 6, 1), (0, 511, 1), (GFN + 512, 0, 2), (0, 511, 2)],
)
def test_entry_that_is_of_a_guest_table_is_not_placed(
    m: mmu.Mmu, t: int, gfn: int, index: int, level: int
) -> None:
    """A direct page begins at a multiple of what it maps."""
    set_by_line(m, t, gfn, pte(PFN), index, level)
    assert [counted(m, c) for c in (Counter.ADOPTED_PAGES, Counter.UNPLACED_SPTES)] == [0, 1]


def test_page_that_is_in_no_frame_yet_is_taken(m: mmu.Mmu, t: int) -> None:
    sp = table(m, GFN, variant=DIRECT_FAMILY)
    set_by_line(m, t, GFN + 5, pte(PFN), 5)
    assert shadow_page.find_bound(m, FRAME) == sp
    assert counted(m, Counter.ADOPTED_PAGES) == 0


def test_page_in_another_frame_was_zapped_unseen(m: mmu.Mmu, t: int) -> None:
    table(m, GFN, frame=FRAME + 1, variant=DIRECT_FAMILY)
    m.vm[0].n_used_mmu_pages = 1
    set_by_line(m, t, GFN + 5, pte(PFN), 5)
    assert shadow_page.find_bound(m, FRAME + 1) == -1
    assert m.sp[shadow_page.find_bound(m, FRAME)].gfn == GFN
    assert (counted(m, Counter.ADOPTED_PAGES), m.vm[0].n_used_mmu_pages) == (1, 1)


def direct_fault(m: mmu.Mmu, t: int, gfn: int) -> None:
    """A fault of a guest without paging, or of TDP without the TDP MMU."""
    fault.begin_fault(m, t)
    fault.spte_requested(m, t, gfn)


def rooted(m: mmu.Mmu, t: int, level: int = 2, gfn: int = GFN) -> int:
    root = table(m, gfn, level, variant=DIRECT_FAMILY)
    m.task[t].direct_root = root
    return root


def test_first_line_of_a_fault_names_the_frame_of_its_table(m: mmu.Mmu, t: int) -> None:
    root, other = rooted(m, t), table(m, GFN + 512, variant=DIRECT_FAMILY)
    shadow_page.link_shadow_page(m, root, 1, other, ORDER_APPEND)
    direct_fault(m, t, GFN + 512 + 5)
    set_by_line(m, t, GFN + 512 + 5, pte(PFN), 5)
    assert shadow_page.find_bound(m, FRAME) == other
    assert counted(m, Counter.ADOPTED_PAGES) == 0


def test_line_of_another_region_is_not_of_the_faults_table(m: mmu.Mmu, t: int) -> None:
    root, other = rooted(m, t), table(m, GFN + 512, variant=DIRECT_FAMILY)
    shadow_page.link_shadow_page(m, root, 1, other, ORDER_APPEND)
    direct_fault(m, t, GFN + 512 + 5)
    set_by_line(m, t, GFN + 5, pte(PFN), 5)
    assert m.sp[shadow_page.find_bound(m, FRAME)].gfn == GFN
    assert m.sp[other].frame == 0


def test_fault_that_is_over_names_no_table(m: mmu.Mmu, t: int) -> None:
    fault.begin_walk(m, t, 0x5000, 6)
    for number, level in ((0x201, 2), (0x202, 1)):
        fault.add_element(m, t, number << 12 | TABLE, level)
    m.task[t].root = indirect(m, 0x200, 2)
    sp = indirect(m, 0x201)
    fault.spte_requested(m, t, 0x202)
    assert set_spte.locate_table(m, t, 0, 0x202, 1, FRAME, 5, ORDER_APPEND) == sp
    fault.finish_fault(m, t)
    assert set_spte.locate_table(m, t, 0, 0x202, 1, FRAME, 5, ORDER_APPEND) == -1


def test_table_of_the_fault_that_is_in_another_frame_is_another(m: mmu.Mmu, t: int) -> None:
    root = rooted(m, t)
    bound = table(m, GFN, frame=FRAME + 1)
    shadow_page.link_shadow_page(m, root, 0, bound, ORDER_APPEND)
    direct_fault(m, t, GFN + 5)
    set_by_line(m, t, GFN + 5, pte(PFN), 5)
    assert shadow_page.find_bound(m, FRAME + 1) == bound
    assert counted(m, Counter.ADOPTED_PAGES) == 1


# -- a huge page that the recorded kernel had split ------------------------------------------------


def test_fault_below_a_huge_page_splits_it_lazily(m: mmu.Mmu, t: int) -> None:
    root = rooted(m, t)
    install(m, root, 1, GFN + 512, pte(PFN, HUGE))
    direct_fault(m, t, GFN + 512 + 5)
    set_by_line(m, t, GFN + 512 + 5, pte(PFN + 5), 5)
    sp = shadow_page.find_bound(m, FRAME)
    assert m.sp[sp].key == make_key(Role.DIRECT | ALL | 1, DIRECT_FAMILY, 0)
    assert (m.sp[sp].gfn, m.sp[sp].page_flags) == (GFN + 512, PageFlag.LIVE)
    assert [
        counted(m, c) for c in (Counter.PAGES_NOT_SPLIT, Counter.FAULTS_LAZY_SPLITS, Counter.ADOPTED_PAGES)
    ] == [1, 1, 0]
    assert (mapping(m, GFN + 512, 2), mapping(m, GFN + 512 + 5)) == ([], [sp * 512 + 5])
    assert entries(m, m.sp[sp].parent_ptes) == [root * 512 + 1]
    # the 511 others are left to faults of their own
    assert [i for i in range(512) if shadow_page.get_spte(m, sp, i)] == [5]
    assert m.task[t].chain[1] == sp
    assert m.vm[0].n_used_mmu_pages == 1


def test_lazy_split_takes_the_table_that_is_there(m: mmu.Mmu, t: int) -> None:
    root, there = rooted(m, t), table(m, GFN + 512, variant=DIRECT_FAMILY)
    install(m, root, 1, GFN + 512, pte(PFN, HUGE))
    fault.begin_fault(m, t)
    m.task[t].req_gfn = GFN + 512 + 5
    assert set_spte.split_lazily(m, t, 0, GFN + 512, 1, ORDER_APPEND) == there
    assert m.vm[0].n_used_mmu_pages == 0


def test_lazy_split_of_a_guests_huge_page_has_the_guests_access(m: mmu.Mmu, t: int) -> None:
    root, upper, middle = (indirect(m, 0x200 + number, 4 - number) for number in range(3))
    shadow_page.link_shadow_page(m, root, 0, upper, ORDER_APPEND)
    shadow_page.link_shadow_page(m, upper, 1, middle, ORDER_APPEND)
    access = ACC_ALL & ~ACC_WRITE
    shadow_page.install_leaf(m, middle, 1, GFN, pte(PFN, HUGE), access, ORDER_APPEND)
    m.task[t].root = root
    fault.begin_walk(m, t, 0x40205000, READ)
    for number, bits, level in ((0x201, TABLE, 4), (0x202, TABLE, 3), (GFN, TABLE & ~2 | 0x80, 2)):
        fault.add_element(m, t, number << 12 | bits, level)
    fault.spte_requested(m, t, GFN + 5)
    set_by_line(m, t, GFN + 5, pte(PFN + 5, PROTECTED), 5)
    sp = shadow_page.find_bound(m, FRAME)
    assert m.sp[sp].key == make_key(Role.DIRECT | access << ACCESS_SHIFT | 1, 0, 0)
    assert [counted(m, c) for c in (Counter.PAGES_NOT_SPLIT, Counter.ADOPTED_PAGES)] == [1, 0]


@pytest.mark.parametrize("case", ["nothing", "table", "other gfn", "no root", "top"])
def test_no_lazy_split_where_there_is_no_huge_page_of_the_gfn(m: mmu.Mmu, t: int, case: str) -> None:
    root = rooted(m, t)
    if case == "table":
        shadow_page.link_shadow_page(m, root, 1, table(m, GFN + 512), ORDER_APPEND)
    elif case != "nothing":
        install(m, root, 1, GFN + 512, pte(PFN, HUGE))
    if case == "no root":
        m.task[t].direct_root = -1
    direct_fault(m, t, GFN + 512 + 5)
    gfn = GFN + 1024 if case == "other gfn" else GFN if case == "top" else GFN + 512
    assert set_spte.split_lazily(m, t, 0, gfn, 3 if case == "top" else 1, ORDER_APPEND) == -1
    assert counted(m, Counter.PAGES_NOT_SPLIT) == 0


# -- lines of the TDP MMU --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gfn", "level", "new", "expected"),
    [(GFN, 1, 7, True), (GFN + 1, 1, 7, False), (GFN, 2, 7, False), (GFN, 1, 5, False)],
)
def test_line_that_repeats_the_change_before_it_is_of_the_tdp_mmu(
    m: mmu.Mmu, t: int, gfn: int, level: int, new: int, expected: bool
) -> None:
    columns = ("tdp_gfn", "tdp_level", "tdp_new")
    for column, number in zip(columns, (GFN, 1, 7), strict=True):
        m.task[t][column] = number
    assert set_spte.is_tdp_set_spte(m, t, gfn, new, level, FRAME) == expected


@pytest.mark.parametrize("tdp", [False, True])
def test_line_that_names_a_table_of_the_tdp_mmu_is_of_it(m: mmu.Mmu, t: int, tdp: bool) -> None:
    sp = table(m, GFN, frame=FRAME)
    if tdp:
        m.sp[sp].key |= records.TDP_KEY
    assert set_spte.is_tdp_set_spte(m, t, GFN, 7, 1, FRAME) == tdp
    assert not set_spte.is_tdp_set_spte(m, t, GFN, 7, 1, FRAME + 1)


# -- one gfn has one pfn ---------------------------------------------------------------------------


def test_new_pfn_of_a_4k_page_zaps_what_mapped_the_old(m: mmu.Mmu, t: int) -> None:
    small, large, larger = table(m, GFN), table(m, GFN, 2), table(m, 0, 3)
    sptep = install(m, small, 5, GFN + 5, pte(PFN + 5))
    neighbour = install(m, small, 6, GFN + 6, pte(0x777))
    install(m, large, 0, GFN, pte(PFN, HUGE))
    install(m, larger, 1, GFN, pte(PFN, HUGE))
    shadow_page.bind_page(m, table(m, GFN, variant=1), FRAME)
    set_by_line(m, t, GFN + 5, pte(PFN + 5), 5)
    assert mapping(m, GFN + 5)[0] == sptep
    assert counted(m, Counter.PFN_CHANGES) == 0
    set_by_line(m, t, GFN + 5, pte(0x555), 5)
    assert value(m, sptep) == value(m, large * 512) == value(m, larger * 512 + 1) == 0
    assert (mapping(m, GFN, 2), mapping(m, GFN, 3)) == ([], [])
    assert mapping(m, GFN + 5) == [shadow_page.find_bound(m, FRAME) * 512 + 5]
    assert mapping(m, GFN + 6) == [neighbour]
    assert counted(m, Counter.PFN_CHANGES) == 3


def test_every_spte_of_the_old_pfn_is_zapped(m: mmu.Mmu, t: int) -> None:
    old = [install(m, table(m, GFN, variant=number), 0, GFN, pte(PFN)) for number in range(1, 4)]
    sp = table(m, GFN, frame=FRAME)
    set_by_line(m, t, GFN, pte(0x555), 0)
    assert mapping(m, GFN) == [sp * 512]
    assert [value(m, sptep) for sptep in old] == [0, 0, 0]
    assert counted(m, Counter.PFN_CHANGES) == 1


def test_larger_page_keeps_small_ones_of_the_same_memory(m: mmu.Mmu, t: int) -> None:
    small, large = table(m, GFN + 512), table(m, GFN, 2, FRAME)
    kept = install(m, small, 5, GFN + 512 + 5, pte(PFN + 5))
    moved = install(m, small, 6, GFN + 512 + 6, pte(PFN + 5))
    elsewhere = install(m, table(m, GFN), 6, GFN + 6, pte(0x777))
    set_by_line(m, t, GFN + 512, pte(PFN, HUGE), 1, level=2)
    assert mapping(m, GFN + 512, 2) == [large * 512 + 1]
    assert (mapping(m, GFN + 512 + 5), mapping(m, GFN + 512 + 6)) == ([kept], [])
    assert (value(m, moved), counted(m, Counter.PFN_CHANGES)) == (0, 1)
    assert mapping(m, GFN + 6) == [elsewhere]


@pytest.mark.parametrize(("pfn", "kept"), [(PFN, 512), (0x800000, 0)])
def test_larger_page_over_a_split_one(m: mmu.Mmu, t: int, pfn: int, kept: int) -> None:
    small = table(m, GFN)
    assert shadow_page.fill_uniform(m, small, pte(PFN, HUGE))
    table(m, GFN, 2, FRAME)
    set_by_line(m, t, GFN, pte(pfn, HUGE), 0, level=2)
    assert sum(len(mapping(m, GFN + i)) for i in range(512)) == kept
    assert (m.sp[small].spt == records.UNIFORM) == (kept == 512)
    assert counted(m, Counter.PFN_CHANGES) == 512 - kept


def test_new_pfn_inside_a_1g_page(m: mmu.Mmu, t: int) -> None:
    larger = table(m, 0, 3)
    install(m, larger, 1, GFN, pte(PFN, HUGE))
    table(m, GFN, 2, FRAME)
    set_by_line(m, t, GFN + 512, pte(PFN + 512, HUGE), 1, level=2)
    assert mapping(m, GFN, 3) == [larger * 512 + 1]
    set_by_line(m, t, GFN + 512, pte(PFN + 1024, HUGE), 1, level=2)
    assert mapping(m, GFN, 3) == []
    assert counted(m, Counter.PFN_CHANGES) == 2


def test_rmap_entry_without_a_present_spte_goes_too(m: mmu.Mmu) -> None:
    rmap.rmap_add(m, 0, GFN, 1, table(m, GFN) * 512, ORDER_APPEND)
    set_spte.zap_head(m, 0, GFN, 1, ORDER_APPEND)
    assert mapping(m, GFN) == []


def test_host_level_is_the_largest_seen(m: mmu.Mmu) -> None:
    assert set_spte.note_host_level(m, 0, GFN + 5, 1) == mmu.find_gib(m, 0, GFN, False)
    assert host_levels(m, GFN) == (1, 0)
    set_spte.note_host_level(m, 0, GFN, 2)
    set_spte.note_host_level(m, 0, GFN + 5, 1)
    assert host_levels(m, GFN) == (2, 0)
    set_spte.note_host_level(m, 0, GFN + 1024, 3)
    assert (host_levels(m, GFN + 1024), host_levels(m, GFN)) == ((3, 3), (2, 3))
    set_spte.note_host_level(m, 0, GFN + 1024, 2)
    assert host_levels(m, GFN + 1024) == (3, 3)


# -- faults that a split would have avoided --------------------------------------------------------

NX = int(spte.NX[spte.LEGACY])


@pytest.mark.parametrize(
    ("code", "old", "allowed"),
    [
        (WRITE, SMALL, True),
        (WRITE, PROTECTED, False),
        (READ, PROTECTED, True),
        (READ, SMALL | NX, True),
        (FETCH, SMALL, True),
        (FETCH, PROTECTED, True),
        (FETCH, SMALL | NX, False),
    ],
)
@pytest.mark.parametrize("source", ["fault", "walk"])
def test_spte_allows_the_access_that_faulted(
    m: mmu.Mmu, t: int, source: str, code: int, old: int, allowed: bool
) -> None:
    new = SMALL
    m.vm[0].has_faults = source == "fault"
    m.task[t].walk_top = 4 if source == "walk" else 0
    shown, other = "fault_code", "walk_code"
    if source == "walk":
        shown, other = other, shown
    m.task[t][shown] = code
    m.task[t][other] = WRITE | FETCH if allowed else READ
    assert set_spte.fault_allowed(m, t, 0, old, new) == allowed


def test_walk_and_fault_differ_in_a_nested_guest(m: mmu.Mmu, t: int) -> None:
    m.vm[0].has_faults = 1
    m.task[t].walk_top = 4
    m.task[t].fault_code, m.task[t].walk_code = READ, WRITE
    assert set_spte.fault_allowed(m, t, 0, PROTECTED, SMALL)


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [(PROTECTED, SMALL, False), (SMALL, SMALL, True), (PROTECTED, PROTECTED, True), (SMALL, PROTECTED, True)],
)
def test_access_that_the_trace_does_not_show_is_known_by_what_it_made_writable(
    m: mmu.Mmu, t: int, old: int, new: int, allowed: bool
) -> None:
    m.task[t].fault_code = READ if not allowed else WRITE
    assert set_spte.fault_allowed(m, t, 0, old, new) == allowed


@pytest.mark.parametrize("executable", [False, True])
def test_ept_has_a_bit_that_allows_fetches(m: mmu.Mmu, t: int, executable: bool) -> None:
    m.vm[0].layout, m.vm[0].has_faults = spte.EPT, 1
    m.task[t].fault_code = FETCH
    x = int(spte.EXECUTABLE[spte.EPT])
    old = SMALL & ~x | (x if executable else 0)
    assert set_spte.fault_allowed(m, t, 0, old, SMALL) == executable


FAULT_COUNTERS = (Counter.FAULTS_AVOIDED, Counter.FAULTS_WRITE_PROTECTED, Counter.FAULTS_NONPRESENT)


def split_child(m: mmu.Mmu, old: int) -> int:
    """A page that a simulated split made, whose SPTE 5 is ``old``; it is in FRAME."""
    sp = table(m, GFN, frame=FRAME)
    m.sp[sp].page_flags |= PageFlag.SPLIT
    if old & spte.SPTE_MMU_PRESENT_MASK:
        install(m, sp, 5, GFN + 5, old)
    elif old:
        shadow_page.set_spte(m, sp, 5, old)
    return sp


@pytest.mark.parametrize(
    ("old", "counts"),
    [
        (pte(PFN + 5), [1, 0, 0]),
        (pte(PFN + 5, PROTECTED), [0, 1, 0]),
        (spte.LEFT_NONPRESENT, [0, 0, 1]),
        (0, [0, 0, 0]),
    ],
)
def test_first_fault_on_an_spte_of_a_split(m: mmu.Mmu, t: int, old: int, counts: list[int]) -> None:
    split_child(m, old)
    for _ in range(2):  # the second time it is not the split's any more
        direct_fault(m, t, GFN + 5)
        set_by_line(m, t, GFN + 5, pte(PFN + 5), 5)
        assert [counted(m, c) for c in FAULT_COUNTERS] == counts


def test_page_that_no_split_made_avoids_no_fault(m: mmu.Mmu, t: int) -> None:
    sp = split_child(m, pte(PFN + 5))
    m.sp[sp].page_flags = PageFlag.LIVE
    direct_fault(m, t, GFN + 5)
    set_by_line(m, t, GFN + 5, pte(PFN + 5), 5)
    assert [counted(m, c) for c in FAULT_COUNTERS] == [0, 0, 0]


@pytest.mark.parametrize("case", ["prefetched", "linked", "no fault"])
def test_line_that_stands_for_no_fault_of_its_own(m: mmu.Mmu, t: int, case: str) -> None:
    split_child(m, pte(PFN + 5))
    if case != "no fault":
        direct_fault(m, t, GFN + 6 if case == "prefetched" else GFN + 5)
    m.task[t].req_gfn = GFN + 6 if case == "prefetched" else GFN + 5
    m.task[t].linked = case == "linked"
    set_by_line(m, t, GFN + 5, pte(PFN + 5), 5)
    m.task[t].linked = 0
    direct_fault(m, t, GFN + 5)
    set_by_line(m, t, GFN + 5, pte(PFN + 5), 5)
    assert [counted(m, c) for c in FAULT_COUNTERS] == [0, 0, 0]


def test_each_spte_of_a_split_has_its_first_fault(m: mmu.Mmu, t: int) -> None:
    sp = split_child(m, pte(PFN + 5))
    other = table(m, GFN + 512, frame=FRAME + 1)
    m.sp[other].page_flags |= PageFlag.SPLIT
    install(m, sp, 6, GFN + 6, pte(PFN + 6))
    install(m, other, 5, GFN + 512 + 5, pte(PFN + 512 + 5))
    for index, frame in ((5, FRAME), (6, FRAME), (512 + 5, FRAME + 1)):
        direct_fault(m, t, GFN + index)
        set_by_line(m, t, GFN + index, pte(PFN + index), index % 512, frame=frame)
    assert counted(m, Counter.FAULTS_AVOIDED) == 3


# -- bits that the CPU sets ------------------------------------------------------------------------

A, D = int(spte.ACCESSED[spte.LEGACY]), int(spte.DIRTY[spte.LEGACY])
CLEAN = SMALL & ~(A | D)


@pytest.mark.parametrize(
    ("code", "bits", "added"),
    [(WRITE, CLEAN, A | D), (READ, CLEAN, A), (WRITE, CLEAN & ~spte.PT_WRITABLE_MASK, A)],
)
def test_retried_access_sets_a_and_d(m: mmu.Mmu, t: int, code: int, bits: int, added: int) -> None:
    sp = table(m, GFN, frame=FRAME)
    m.task[t].fault_code = code
    direct_fault(m, t, GFN + 5)
    set_by_line(m, t, GFN + 4, pte(PFN + 4, bits), 4)
    assert value(m, sp * 512 + 4) == pte(PFN + 4, bits)  # fetched with it, and not accessed
    direct_fault(m, t, GFN + 5)
    set_by_line(m, t, GFN + 5, pte(PFN + 5, bits), 5)
    assert value(m, sp * 512 + 5) == pte(PFN + 5, bits | added)


@pytest.mark.parametrize(("requested", "own"), [(GFN + 5, True), (GFN + 511, True), (GFN + 512, False)])
def test_huge_page_that_holds_the_requested_gfn_is_the_faults_own(
    m: mmu.Mmu, t: int, requested: int, own: bool
) -> None:
    sp = table(m, GFN, 2, FRAME)
    direct_fault(m, t, requested)
    set_by_line(m, t, GFN, pte(PFN, CLEAN), 0, level=2)
    assert (value(m, sp * 512) & A != 0) == own


def test_ept_without_a_and_d_in_these_bits(m: mmu.Mmu, t: int) -> None:
    sp = table(m, GFN, frame=FRAME)
    m.task[t].fault_code = WRITE
    direct_fault(m, t, GFN + 5)
    m.vm[0].layout = spte.EPT
    bits = 0x837 | int(spte.MMU_WRITABLE[spte.EPT])
    set_by_line(m, t, GFN + 5, pte(PFN + 5, bits & ~(A | D)), 5)
    assert value(m, sp * 512 + 5) == pte(PFN + 5, bits & ~(A | D))


# -- access of a guest's page ----------------------------------------------------------------------


def test_access_of_the_guests_entries_is_kept(m: mmu.Mmu, t: int) -> None:
    sp = indirect(m, 0x201, frame=FRAME)
    fault.begin_walk(m, t, 0x5000, READ)
    for number, bits, level in ((0x201, TABLE, 2), (0x202, TABLE & ~2, 1)):
        fault.add_element(m, t, number << 12 | bits, level)
    fault.spte_requested(m, t, 0x202)
    set_by_line(m, t, 0x202, pte(PFN), 5)
    assert shadow_page.sptep_access(m, sp, 5) == ACC_ALL & ~ACC_WRITE
    fault.begin_fault(m, t)
    set_by_line(m, t, 0x202, pte(PFN), 5)
    assert shadow_page.sptep_access(m, sp, 5) == ACC_ALL


@pytest.mark.parametrize(("leaf_level", "lost"), [(2, ACC_WRITE), (3, ACC_WRITE), (4, 0)])
def test_walk_that_read_no_leaf_shows_no_access(m: mmu.Mmu, t: int, leaf_level: int, lost: int) -> None:
    sp = indirect(m, 0x201, frame=FRAME)
    fault.begin_walk(m, t, 0x5000, READ)
    for level in range(4, leaf_level - 1, -1):
        fault.add_element(m, t, 0x201 << 12 | TABLE & ~2, level)
    set_by_line(m, t, 0x202, pte(PFN), 5)
    assert shadow_page.sptep_access(m, sp, 5) == ACC_ALL & ~lost


# -- fast_page_fault and mmu notifiers -------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3])
def test_fast_page_fault_fixes_the_spte_that_had_the_old_value(m: mmu.Mmu, level: int) -> None:
    bits = SMALL if level == 1 else HUGE
    old, new = pte(PFN, bits & ~2), pte(0, bits & ~0x880)
    pages = [table(m, GFN if level < 3 else 0, level, variant=number) for number in range(3)]
    index = 1 if level == 3 else 0
    spteps = [
        install(m, sp, index, GFN, value)
        for sp, value in zip(pages, (pte(PFN, bits & ~6), old, old), strict=True)
    ]
    set_spte.fast_page_fault(m, 0, GFN + (level > 1), old, new)
    # pfn and the bits that are no access stay; one SPTE is fixed
    assert [value(m, sptep) for sptep in spteps] == [pte(PFN, bits & ~6), pte(PFN, bits), old]


def test_fast_page_fault_of_another_value_fixes_nothing(m: mmu.Mmu) -> None:
    sptep = install(m, table(m, GFN), 0, GFN, pte(PFN, PROTECTED))
    set_spte.fast_page_fault(m, 0, GFN, pte(PFN), pte(PFN))
    set_spte.fast_page_fault(m, 0, GFN + 1, pte(PFN, PROTECTED), pte(PFN))
    assert value(m, sptep) == pte(PFN, PROTECTED)


def test_unmapped_range_zaps_what_maps_a_part_of_it(m: mmu.Mmu) -> None:
    small = table(m, GFN + 512)
    inside = [install(m, small, i, GFN + 512 + i, pte(PFN + i)) for i in (5, 6)]
    outside = [install(m, small, i, GFN + 512 + i, pte(PFN + i)) for i in (4, 7)]
    large = table(m, GFN, 2)
    over, beside = (install(m, large, i, GFN + 512 * i, pte(PFN, HUGE)) for i in (1, 2))
    larger = install(m, table(m, 0, 3), 1, GFN, pte(PFN, HUGE))
    assert set_spte.unmap_gfn_range(m, 0, GFN + 512 + 5, GFN + 512 + 7, ORDER_APPEND)
    assert [value(m, sptep) for sptep in (*inside, over, larger)] == [0] * 4
    assert all(value(m, sptep) for sptep in (*outside, beside))


def test_unmapped_range_over_holes_and_many_gibs(m: mmu.Mmu) -> None:
    far = 5 << 18
    pages = [table(m, gfn) for gfn in (GFN, far, far + 1024)]
    spteps = [install(m, sp, 0, int(m.sp[sp].gfn), pte(PFN)) for sp in pages]
    assert set_spte.unmap_gfn_range(m, 0, 0, GFN, ORDER_APPEND)
    assert all(value(m, sptep) for sptep in spteps)
    assert set_spte.unmap_gfn_range(m, 0, 0, far + 1024, ORDER_APPEND)
    assert [value(m, sptep) != 0 for sptep in spteps] == [False, False, True]
    assert set_spte.unmap_gfn_range(m, 0, 0, 1 << 52, ORDER_APPEND)  # no further than what was ever mapped
    assert value(m, spteps[2]) == 0


@pytest.mark.parametrize(("start", "end"), [(0, 512), (0, 511), (1, 512)])
def test_unmapped_range_over_a_split_page(m: mmu.Mmu, start: int, end: int) -> None:
    sp = table(m, GFN)
    assert shadow_page.fill_uniform(m, sp, pte(PFN, HUGE))
    blocks = m.ctl.block_top
    assert set_spte.unmap_gfn_range(m, 0, GFN + start, GFN + end, ORDER_APPEND)
    left = [i for i in range(512) if value(m, sp * 512 + i)]
    assert left == [i for i in range(512) if not start <= i < end]
    assert [i for i in range(512) if mapping(m, GFN + i)] == left
    if not left:
        assert m.ctl.block_top == blocks  # the compact form is not spelled out for it


def test_unmapping_stops_where_rows_run_out(m: mmu.Mmu) -> None:
    sptep = install(m, table(m, GFN), 0, GFN, pte(PFN))
    m.ctl.desc_top = m.desc.shape[0]
    m.ctl.room = 0
    assert not set_spte.unmap_gfn_range(m, 0, GFN, GFN + 512, ORDER_APPEND)
    assert value(m, sptep) == pte(PFN)
