"""Reverse maps against plain lists of lists."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.mmu.kernel import rmap
from replay.mmu.kernel.rmap import ORDER_APPEND, ORDER_HEAD
from replay.mmu.state import mmu, records
from tests.mmu.conftest import make_mmu

ORDERS = (ORDER_APPEND, ORDER_HEAD)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
GFN = 0x40000


class NaiveList:
    """Descriptors as lists, first one first; ``is_chain`` is false for a single inline entry."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.descs: list[list[int]] = []
        self.is_chain = False

    def add(self, sptep: int) -> None:
        self.is_chain = bool(self.descs)
        candidates = self.descs[:1] if self.order == ORDER_HEAD else self.descs
        for desc in candidates:
            if len(desc) < records.PTE_LIST_EXT:
                desc.append(sptep)
                return
        self.descs.insert(0 if self.order == ORDER_HEAD else len(self.descs), [sptep])

    def remove(self, sptep: int) -> None:
        for desc in self.descs:
            if sptep in desc:
                donor = self.descs[0] if self.order == ORDER_HEAD else desc
                desc[desc.index(sptep)] = donor[-1]
                donor.pop()
                if not donor:
                    self.descs.remove(donor)
                break
        self.is_chain = self.is_chain and bool(self.descs)

    def entries(self) -> list[int]:
        return [sptep for desc in self.descs for sptep in desc]


def entries(m: mmu.Mmu, head: int) -> list[int]:
    found = [int(rmap.pte_list_get(m, head, i)) for i in range(int(rmap.pte_list_count(m, head)))]
    assert rmap.pte_list_get(m, head, len(found)) == -1
    return found


@pytest.mark.parametrize("order", ORDERS)
@QUICK
@given(operations=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), max_size=150))
def test_order_of_a_list(order: int, operations: list[tuple[int, int]]) -> None:
    m, naive, head = make_mmu(), NaiveList(order), 0
    for remove, number in operations:
        present = naive.entries()
        if remove == 0 and present:
            sptep = present[number % len(present)]
            head = rmap.pte_list_remove(m, head, sptep, order)
            naive.remove(sptep)
        elif number not in present:
            head = rmap.pte_list_add(m, head, number, order)
            naive.add(number)
        assert entries(m, head) == naive.entries()
        assert m.ctl.desc_used == (len(naive.descs) if naive.is_chain else 0)
    assert (head == 0) == (naive.entries() == [])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [2, 13, 14, 15, 28, 29, 43])
def test_hole_in_a_long_list(order: int, length: int) -> None:
    """Up to 6.3 the last entry of its own descriptor fills it, since 6.4 the last of the head's."""
    m = make_mmu()
    for position in range(length):
        naive, head = NaiveList(order), 0
        for number in range(length):
            head = rmap.pte_list_add(m, head, number, order)
            naive.add(number)
        before = naive.entries()
        for sptep in (before[position], before[position - 1]):
            head = rmap.pte_list_remove(m, head, sptep, order)
            naive.remove(sptep)
            assert entries(m, head) == naive.entries()
            assert m.ctl.desc_used == (len(naive.descs) if naive.is_chain else 0)
        head = rmap.pte_list_add(m, head, length, order)
        naive.add(length)
        assert entries(m, head) == naive.entries()
        for sptep in naive.entries():
            head = rmap.pte_list_remove(m, head, sptep, order)
        assert (head, m.ctl.desc_used) == (0, 0)
    assert m.ctl.desc_top <= 1 + length // records.PTE_LIST_EXT  # freed ones are used again


@pytest.mark.parametrize("order", ORDERS)
def test_removing_what_is_not_there_changes_nothing(m: mmu.Mmu, order: int) -> None:
    one = rmap.pte_list_add(m, 0, 7, order)
    two = rmap.pte_list_add(m, one, 8, order)
    assert rmap.pte_list_remove(m, 0, 9, order) == 0
    assert rmap.pte_list_remove(m, one, 9, order) == one
    assert rmap.pte_list_remove(m, two, 9, order) == two
    assert entries(m, two) == [7, 8]


@QUICK
@given(
    places=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from((GFN, GFN + 1, GFN + 511, GFN + 512, GFN + (1 << 18))),
            st.integers(1, 3),
        ),
        max_size=40,
    )
)
def test_heads_by_vm_gfn_and_level(places: list[tuple[int, int, int]]) -> None:
    m = make_mmu()
    naive: dict[tuple[int, int, int], list[int]] = {}
    for sptep, (vm, gfn, level) in enumerate(places):
        rmap.rmap_add(m, vm, gfn, level, sptep, ORDER_APPEND)
        naive.setdefault((vm, gfn >> 9 * (level - 1), level), []).append(sptep)
    for vm, gfn, level in places:
        expected = naive[vm, gfn >> 9 * (level - 1), level]
        assert entries(m, rmap.rmap_head(m, vm, gfn, level)) == expected
    for vm, gfn, level in places:
        key = (vm, gfn >> 9 * (level - 1), level)
        for sptep in naive.pop(key, []):
            rmap.rmap_remove(m, vm, gfn, level, sptep, ORDER_APPEND)
        assert rmap.rmap_head(m, vm, gfn, level) == 0
    assert m.ctl.desc_used == 0


def test_nothing_is_made_by_looking(m: mmu.Mmu) -> None:
    assert [rmap.rmap_head(m, 0, GFN, level) for level in (1, 2, 3)] == [0, 0, 0]
    assert m.ctl.gib_top == 0


def test_uniform_region_answers_like_a_spelled_out_one(m: mmu.Mmu) -> None:
    r = mmu.find_region(m, 0, GFN, True)
    assert rmap.rmap_region_is_empty(m, r)
    rmap.rmap_region_set_uniform(m, r, 5)
    assert not rmap.rmap_region_is_empty(m, r)
    compact = [rmap.rmap_head(m, 0, GFN + i, 1) for i in range(512)]
    block = rmap.materialize_block(m, r)
    assert [rmap.rmap_head(m, 0, GFN + i, 1) for i in range(512)] == compact
    assert rmap.materialize_block(m, r) == block
    assert [entries(m, head) for head in compact] == [[5 * 512 + i] for i in range(512)]


@pytest.mark.parametrize("order", ORDERS)
def test_change_of_one_head_leaves_the_others_of_a_uniform_region(m: mmu.Mmu, order: int) -> None:
    r = mmu.find_region(m, 0, GFN, True)
    rmap.rmap_region_set_uniform(m, r, 5)
    rmap.rmap_add(m, 0, GFN + 3, 1, 9000, order)
    rmap.rmap_remove(m, 0, GFN + 4, 1, 5 * 512 + 4, order)
    found = [entries(m, rmap.rmap_head(m, 0, GFN + i, 1)) for i in range(512)]
    assert found[3] == [5 * 512 + 3, 9000]
    assert found[4] == []
    assert [found[i] for i in range(512) if i not in (3, 4)] == [
        [5 * 512 + i] for i in range(512) if i not in (3, 4)
    ]


def test_region_whose_last_entry_went_is_empty_again(m: mmu.Mmu) -> None:
    rmap.rmap_add(m, 0, GFN + 3, 1, 9000, ORDER_APPEND)
    r = mmu.find_region(m, 0, GFN, False)
    assert not rmap.rmap_region_is_empty(m, r)
    rmap.rmap_remove(m, 0, GFN + 3, 1, 9000, ORDER_APPEND)
    assert rmap.rmap_region_is_empty(m, r)
    block = m.region[r].block
    rmap.rmap_region_set_uniform(m, r, 5)
    assert mmu.alloc_block(m) == block
