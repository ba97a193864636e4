"""SPTEs of the three layouts: values as kernels printed them, and what KVM makes of them."""

from __future__ import annotations

from functools import reduce
from operator import and_, or_

import numpy as np
import pytest

from replay.mmu.kernel.role import ACC_ALL, ACC_EXEC, ACC_READ, ACC_USER, ACC_WRITE
from replay.mmu.kernel.spte import (
    EPT,
    EPT_2026,
    LAYOUTS,
    LEGACY,
    PFN_MASK,
    WRITE_PROTECTED,
    access_tracked,
    allows,
    gpte_access,
    pt_protected,
    spte_access,
    spte_clear_dirty,
    sptes_agree,
)
from replay.mmu.kernel.spte import make_huge_page_split_spte as split
from replay.mmu.kernel.spte import mark_spte_for_access_track as tracked

BIT_63 = -(1 << 63)
READ, WRITE, FETCH = (False, False), (True, False), (False, True)


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def test_children_of_an_nx_huge_page_become_executable() -> None:
    assert split(0x6000001400008F3, 1, 1, ACC_ALL, EPT) == 0x600000140001877
    assert split(0x6000001400008F3, 1, 1, ACC_ALL & ~ACC_EXEC, EPT) == 0x600000140001873
    assert split(0x6000001400008F3, 1, 2, ACC_ALL, EPT) == 0x6000001402008F3
    assert split(BIT_63 | 0x140000EE7, 1, 1, ACC_ALL, LEGACY) == 0x140001E67
    # bit 63 is no NX bit there, and the user has a permission of its own
    huge = signed(0x90A00000074008F3)
    assert split(huge, 1, 1, ACC_READ | ACC_WRITE | ACC_EXEC, EPT_2026) == signed(0x90A0000007401877)
    assert split(huge, 1, 1, ACC_READ | ACC_WRITE | ACC_USER, EPT_2026) == signed(0x90A0000007401C73)


@pytest.mark.parametrize(
    ("value", "aged", "child", "layout"),
    [
        (0x61000000A6008F7, 0x75000000A6008F0, 0x75000000A600870, EPT),
        (signed(0x90A000000A600BF7), signed(0x90F000000A600AF0), signed(0x90F000000A600A70), EPT_2026),
    ],
)
def test_access_tracked_children_stay_so(value: int, aged: int, child: int, layout: int) -> None:
    assert tracked(value, layout) == aged
    assert tracked(aged, layout) == aged
    assert split(aged, 0, 1, ACC_ALL & ~ACC_USER, layout) == child
    assert sptes_agree(value, aged, layout)
    assert not sptes_agree(
        aged, value, layout
    )  # only a fault gives the permissions back, and it leaves a line
    assert not any(allows(aged, *how, layout) for how in (READ, WRITE, FETCH))


def test_x_is_saved_for_a_tracked_child_that_gains_it() -> None:
    nx_huge = 0x61000000A6008F3
    assert split(tracked(nx_huge, EPT), 0, 1, ACC_ALL, EPT) == 0x75000000A600870
    assert split(tracked(nx_huge, EPT), 0, 1, ACC_ALL & ~ACC_EXEC, EPT) == 0x65000000A600870


def test_sptes_whose_accessed_bit_the_cpu_sets_are_not_tracked() -> None:
    assert tracked(0x62000000A600BF7, EPT) == 0x62000000A600BF7
    assert tracked(0x140000EE7, LEGACY) == 0x140000EE7


@pytest.mark.parametrize(
    ("value", "protected", "layout"),
    [
        (0x140000EE7, 0x140000AE5, LEGACY),
        (BIT_63 | 0x140000EE7, BIT_63 | 0x140000AE5, LEGACY),
        (0x61000000A6008F7, 0x21000000A6008F5, EPT),
        (signed(0x90A000000A600BF7), signed(0x902000000A600BF5), EPT_2026),
    ],
)
def test_pt_protection_clears_the_mmu_writable_bit_of_the_layout(
    value: int, protected: int, layout: int
) -> None:
    assert value & pt_protected(layout) == protected
    assert value & WRITE_PROTECTED == value & ~2


def test_pml_clears_d_but_in_nested_mmus() -> None:
    assert spte_clear_dirty(0x600000002B00B77, False, EPT) == 0x600000002B00977
    assert spte_clear_dirty(0x620000002B00B77, False, EPT) == 0x620000002B00B75
    assert spte_clear_dirty(0x610000002B00B77, False, EPT) == 0x610000002B00B75
    assert spte_clear_dirty(0x600000002B00B77, True, EPT) == 0x600000002B00B75
    assert spte_clear_dirty(signed(0x80A0000002B00F77), False, EPT_2026) == signed(0x80A0000002B00D77)
    assert spte_clear_dirty(signed(0xA0A0000002B00B77), False, EPT_2026) == signed(0xA0A0000002B00B75)


@pytest.mark.parametrize(
    ("value", "free", "layout"),
    [
        (0x140000EE7, (5, 6), LEGACY),
        (0x62000000A600BF7, (8, 9), EPT),
        (signed(0xA0A000000A600BF7), (8, 9), EPT_2026),
    ],
)
def test_only_accessed_and_dirty_may_differ(value: int, free: tuple[int, int], layout: int) -> None:
    differ = {
        bit for bit in range(64) if not sptes_agree(value, signed((value ^ 1 << bit) % (1 << 64)), layout)
    }
    assert differ == set(range(64)) - set(free)


def test_accesses_that_an_spte_allows() -> None:
    def of(value: int, layout: int) -> tuple[bool, ...]:
        return tuple(bool(allows(value, *how, layout)) for how in (READ, WRITE, FETCH))

    assert of(0x140000EE7, LEGACY) == (True, True, True)
    assert of(BIT_63 | 0x140000EE5, LEGACY) == (True, False, False)
    assert of(0x61000000A600877, EPT) == (True, True, True)
    assert of(0x61000000A600874, EPT) == (False, False, True)
    assert of(0x61000000A600873, EPT) == (True, True, False)
    assert of(signed(0x90A0000002196A73), EPT_2026) == (True, True, False)
    assert of(signed(0x9020000007200974), EPT_2026) == (False, False, True)


def test_access_of_a_guests_entries() -> None:
    def of(*entries: int, layout: int) -> int:
        return gpte_access(reduce(and_, entries), reduce(or_, entries), layout)

    old, new = 0x400000B0, 0x420000B0
    assert of(old | 7, layout=EPT) == ACC_ALL
    assert of(old | 4, layout=EPT) == ACC_READ | ACC_EXEC
    assert of(old | 7, old | 1, layout=EPT) == ACC_READ | ACC_USER
    assert of(new | 7, layout=EPT_2026) == ACC_READ | ACC_WRITE | ACC_EXEC
    assert of(new | 7, new | 4, layout=EPT_2026) == ACC_EXEC
    assert of(new | 0x403, layout=EPT_2026) == ACC_READ | ACC_WRITE | ACC_USER
    assert of(0x67, layout=LEGACY) == ACC_ALL
    assert of(0x67, BIT_63 | 0x61, 0x67, layout=LEGACY) == ACC_READ
    assert gpte_access(BIT_63 | 0x61, 0, LEGACY) == ACC_READ | ACC_EXEC


def test_access_that_an_spte_grants() -> None:
    assert spte_access(0x140000EE7, LEGACY) == ACC_ALL
    assert spte_access(BIT_63 | 0x140000EE1, LEGACY) == ACC_READ
    assert spte_access(0x61000000A6008F3, EPT) == ACC_READ | ACC_WRITE | ACC_USER
    assert spte_access(signed(0x90A0000007400BF3), EPT_2026) == ACC_READ | ACC_WRITE
    assert spte_access(signed(0x80A0000002184FF7), EPT_2026) == ACC_ALL


def test_a_column_of_sptes_is_looked_at_as_one() -> None:
    sptes = np.array([0x75000000A6008F0, 0x61000000A6008F7, signed(0x90F000000A600AF0), 0x140000EE0])
    layouts = np.array([EPT, EPT, EPT_2026, LEGACY])
    assert access_tracked(sptes, layouts).tolist() == [True, False, True, False]


def test_the_bits_of_a_layout_do_not_overlap() -> None:
    for layout in LAYOUTS:
        kept = layout.saved << layout.saved_shift
        masks = (layout.accessed, layout.dirty, layout.mmu_writable, layout.ad_type, kept, PFN_MASK)
        assert sum(masks) == np.bitwise_or.reduce(masks)
