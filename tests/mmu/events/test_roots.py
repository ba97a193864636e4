"""The cache of roots of a task, and what shows which of them is in use."""

from __future__ import annotations

import pytest

from replay.mmu.events import guest_tables, pages, roots
from replay.mmu.kernel import shadow_page
from replay.mmu.kernel.rmap import ORDER_APPEND
from replay.mmu.kernel.role import ACC_ALL, ACCESS_SHIFT, make_key
from replay.mmu.state import mmu, records
from replay.mmu.state.records import FaultState, PageFlag

ALL = ACC_ALL << ACCESS_SHIFT
VM = 0


@pytest.fixture
def t(m: mmu.Mmu) -> int:
    return int(mmu.find_task(m, 77))


def table(m: mmu.Mmu, gfn: int, level: int, variant: int = 0) -> int:
    flags = PageFlag.ROOT if level == 4 else 0
    return int(shadow_page.alloc_shadow_page(m, gfn, make_key(ALL | level, variant, VM), flags))


def load(m: mmu.Mmu, t: int, *tables: int) -> None:
    for root in tables:
        roots.load_root(m, t, VM, root)


def cache(m: mmu.Mmu, t: int) -> list[int]:
    return [int(roots.cached_root(m, t, VM, place)) for place in range(records.PREV_ROOTS + 1)]


def branch(m: mmu.Mmu, root: int, index: int, gfn: int, variant: int = 0) -> int:
    """A table of level 1 at the end of a chain of new ones below ``root``."""
    parent = root
    for level in (3, 2, 1):
        child = table(m, gfn + 3 - level, level, variant)
        shadow_page.link_shadow_page(m, parent, index, child, ORDER_APPEND)
        parent = child
    return parent


def test_the_last_four_roots_are_kept(m: mmu.Mmu, t: int) -> None:
    five = [table(m, 0x100 + n, 4) for n in range(5)]
    load(m, t, *five)
    assert cache(m, t) == five[:0:-1]
    assert roots.use_root(m, t, 2) == five[2]
    assert cache(m, t) == [five[2], five[4], five[3], five[1]]
    shadow_page.free_shadow_page(m, five[4])
    assert cache(m, t) == [five[2], -1, five[3], five[1]]


def test_all_are_dropped_before_a_cached_root_is_looked_up_again(m: mmu.Mmu, t: int) -> None:
    a, b, c = (table(m, 0x100 + n, 4) for n in range(3))
    load(m, t, a, b, c, a)
    assert cache(m, t) == [a, -1, -1, -1]
    load(m, t, b, table(m, 0x104, 4, variant=1))
    assert cache(m, t)[1:] == [-1, -1, -1]  # the role changed


def test_the_root_that_a_walk_reads(m: mmu.Mmu, t: int) -> None:
    a, b = table(m, 0x100, 4), table(m, 0x101, 4)
    branch(m, a, 5, 0x200)
    branch(m, b, 5, 0x210)
    load(m, t, a, b)
    assert roots.root_that_leads_to(m, t, VM, 4, 5, 0x200) == 1
    assert roots.root_that_leads_to(m, t, VM, 4, 6, 0x200) == roots.NOT_CACHED
    roots.note_root_of_walk(m, t, VM, 4, 6, 0x300)  # an empty entry says nothing
    assert cache(m, t)[:2] == [b, a]
    roots.note_root_of_walk(m, t, VM, 4, 5, 0x200)
    assert cache(m, t)[:2] == [a, b]


def test_the_root_for_which_a_page_was_got(m: mmu.Mmu, t: int) -> None:
    filled, empty = table(m, 0x100, 4), table(m, 0x101, 4)
    branch(m, filled, 300, 0x200)
    load(m, t, empty, filled)
    assert roots.root_that_lacks(m, t, VM, 4, 300, 0x200, ALL | 3, False) == 1
    load(m, t, table(m, 0x102, 4))
    # two lack it now; the one in use comes first
    assert roots.root_that_lacks(m, t, VM, 4, 300, 0x200, ALL | 3, False) == 0


def test_a_synced_page_shows_the_root(m: mmu.Mmu, t: int) -> None:
    a, b = table(m, 0x100, 4), table(m, 0x101, 4)
    leaf = branch(m, a, 5, 0x200)
    branch(m, b, 5, 0x210)
    m.sp[leaf].page_flags |= PageFlag.UNSYNC
    load(m, t, a, b)
    guest_tables.note_root_of_sync(m, t, VM, 0x202, ALL | 1)
    assert cache(m, t)[:2] == [a, b]
    # in a fault that links pages they are synced for that
    load(m, t, table(m, 0x103, 4))
    m.task[t].fault_state, m.task[t].linked = FaultState.FAULT, 1
    guest_tables.note_root_of_sync(m, t, VM, 0x202, ALL | 1)
    assert cache(m, t)[1] == a


def test_of_two_pages_that_print_alike_that_of_the_root_is_synced(m: mmu.Mmu, t: int) -> None:
    old, new = table(m, 0x100, 4), table(m, 0x100, 4, variant=1)
    leaves = [branch(m, old, 5, 0x200), branch(m, new, 5, 0x200, variant=1)]
    for leaf in leaves:
        m.sp[leaf].page_flags |= PageFlag.UNSYNC
    load(m, t, new)
    pages.set_unsync(m, t, VM, 0x202, ALL | 1, False)
    unsync = [int(m.sp[leaf].page_flags & PageFlag.UNSYNC) for leaf in leaves]
    assert unsync == [PageFlag.UNSYNC, 0]
