"""The fault a task is in: guest walks and the chain of shadow pages."""

from __future__ import annotations

import pytest

from replay.mmu.events import fault
from replay.mmu.kernel import shadow_page
from replay.mmu.kernel.rmap import ORDER_APPEND
from replay.mmu.kernel.role import ACC_ALL, ACC_EXEC, ACC_USER, ACC_WRITE, ACCESS_SHIFT, make_key
from replay.mmu.kernel.spte import LEGACY, NX
from replay.mmu.state import mmu
from replay.mmu.state.records import PageFlag
from replay.schema import Role

PID = 77
ALL = ACC_ALL << ACCESS_SHIFT
TABLE = 0x67
ADDR = 0x40003000


@pytest.fixture
def t(m: mmu.Mmu) -> int:
    return int(mmu.find_task(m, PID))


def begin(m: mmu.Mmu, t: int, elements: list[tuple[int, int]], addr: int = ADDR, code: int = 6) -> None:
    fault.begin_walk(m, t, addr, code)
    for pte, level in elements:
        fault.add_element(m, t, pte, level)


FOUR_LEVELS = [(0x201000 | TABLE, 4), (0x202000 | TABLE, 3), (0x203000 | TABLE, 2), (0x50003000 | TABLE, 1)]


def test_leaf_of_a_walk(m: mmu.Mmu, t: int) -> None:
    begin(m, t, FOUR_LEVELS)
    assert fault.leaf_gfn(m, t) == 0x50003
    begin(m, t, [*FOUR_LEVELS[:2], (0x50000000 | TABLE | 0x80, 2)])
    assert fault.leaf_gfn(m, t) == 0x50003
    begin(m, t, [FOUR_LEVELS[0], (0x40000000 | TABLE | 0x80, 3)], addr=0x7FE03000)
    assert fault.leaf_gfn(m, t) == 0x7FE03


def test_leaf_of_a_4_mib_page(m: mmu.Mmu, t: int) -> None:
    begin(m, t, [(0x50000000 | TABLE | 0x80, 2)], addr=0x40203000)
    assert fault.leaf_gfn(m, t) == 0x50203


def test_restarted_walk_forgets_what_it_read(m: mmu.Mmu, t: int) -> None:
    begin(m, t, FOUR_LEVELS)
    for pte, level in [(0x201000 | TABLE, 4), (0x40000000 | TABLE | 0x80, 3)]:
        fault.add_element(m, t, pte, level)
    assert fault.leaf_gfn(m, t) == 0x40003


@pytest.mark.parametrize(
    ("level", "clear", "nx", "lost"),
    [
        (4, 2, False, ACC_WRITE),
        (2, 4, False, ACC_USER),
        (1, 0, True, ACC_EXEC),
        (3, 6, True, ACC_WRITE | ACC_USER | ACC_EXEC),
    ],
)
def test_access_is_what_every_level_grants(
    m: mmu.Mmu, t: int, level: int, clear: int, nx: bool, lost: int
) -> None:
    elements = [
        ((pte & ~clear | (int(NX[LEGACY]) if nx else 0), at) if at == level else (pte, at))
        for pte, at in FOUR_LEVELS
    ]
    begin(m, t, elements)
    assert fault.walk_access(m, t, 1, 0) == ACC_ALL & ~lost
    assert fault.walk_access(m, t, level + 1, 0) == ACC_ALL


def test_pdpte_of_pae_grants_everything(m: mmu.Mmu, t: int) -> None:
    begin(m, t, [(0x201001, 3), *FOUR_LEVELS[2:]])
    assert fault.walk_access(m, t, 1, 0) == ACC_ALL
    assert fault.root_level(m, t) == 2


def test_read_through_a_clean_leaf_is_write_protected(m: mmu.Mmu, t: int) -> None:
    clean = [*FOUR_LEVELS[:3], (0x50003027, 1)]
    begin(m, t, clean, code=4)
    assert fault.leaf_access(m, t, 0) == ACC_ALL & ~ACC_WRITE
    begin(m, t, clean, code=6)
    assert fault.leaf_access(m, t, 0) == ACC_ALL
    begin(m, t, FOUR_LEVELS, code=4)
    assert fault.leaf_access(m, t, 0) == ACC_ALL


def indirect(m: mmu.Mmu, gfn: int, level: int, variant: int = 0) -> int:
    flags = PageFlag.ROOT if level == 4 else 0
    return int(shadow_page.alloc_shadow_page(m, gfn, make_key(ALL | level, variant, 0), flags))


def test_chain_follows_links_and_identity(m: mmu.Mmu, t: int) -> None:
    root, upper, middle, leaf = (indirect(m, 0x200 + i, 4 - i) for i in range(4))
    m.task[t].root = root
    shadow_page.link_shadow_page(m, root, 0, upper, ORDER_APPEND)
    begin(m, t, FOUR_LEVELS)
    assert [fault.chain(m, t, 0, level) for level in (4, 3, 2, 1)] == [root, upper, middle, leaf]
    assert fault.chain(m, t, 0, 5) == -1


def test_direct_page_below_a_guest_leaf(m: mmu.Mmu, t: int) -> None:
    root, upper, middle = (indirect(m, 0x200 + i, 4 - i) for i in range(3))
    direct = shadow_page.alloc_shadow_page(m, 0x50000, make_key(Role.DIRECT | ALL | 1, 0, 0), 0)
    m.task[t].root = root
    begin(m, t, [*FOUR_LEVELS[:2], (0x50000000 | TABLE | 0x80, 2)])
    assert [fault.chain(m, t, 0, level) for level in (3, 2, 1)] == [upper, middle, direct]


def test_switch_to_a_root_that_leads_to_the_table_read(m: mmu.Mmu, t: int) -> None:
    roots = [indirect(m, gfn, 4) for gfn in (0x200, 0x300)]
    child = indirect(m, 0x201, 3)
    shadow_page.link_shadow_page(m, roots[1], 0, child, ORDER_APPEND)
    for i, root in enumerate(roots):
        m.sp[root].page_flags |= PageFlag.ROOT
        m.vm[0].roots[i] = root + 1
    m.task[t].root = roots[0]
    begin(m, t, FOUR_LEVELS)
    assert fault.chain(m, t, 0, 4) == roots[1]
    assert m.task[t].root == roots[1]


def test_walk_of_the_emulator_is_dropped(m: mmu.Mmu, t: int) -> None:
    begin(m, t, FOUR_LEVELS)
    fault.spte_requested(m, t, 0x99999)
    assert m.task[t].walk_top == 0
    begin(m, t, FOUR_LEVELS)
    fault.spte_requested(m, t, 0x50003)
    assert (m.task[t].walk_top, m.task[t].req_gfn) == (4, 0x50003)


def test_request_that_prints_the_frame_of_the_address(m: mmu.Mmu, t: int) -> None:
    begin(m, t, FOUR_LEVELS)
    fault.spte_requested(m, t, ADDR >> 12)
    assert (m.task[t].walk_top, m.task[t].req_gfn) == (4, 0x50003)


def test_page_is_got_in_a_fault_only_after_a_walk_or_a_request(m: mmu.Mmu, t: int) -> None:
    assert not fault.in_fault(m, t)
    fault.begin_fault(m, t)
    assert not fault.in_fault(m, t)
    begin(m, t, FOUR_LEVELS)
    assert fault.in_fault(m, t)
    fault.spte_requested(m, t, 0x50003)
    assert fault.in_fault(m, t)
    fault.finish_fault(m, t)
    assert not fault.in_fault(m, t)
