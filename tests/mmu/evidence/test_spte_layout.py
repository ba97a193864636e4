"""The layout of SPTEs, from what a trace shows of each VM."""

from __future__ import annotations

import numpy as np
import pytest

from replay.kernel import KernelVersion
from replay.mmu.evidence.spte_layout import SIGNS, count_leaf, count_role, has_pml_sptes, layout_of
from replay.mmu.kernel.role import ACC_EXEC, ACC_READ, ACC_WRITE, ACCESS_SHIFT
from replay.mmu.kernel.spte import EPT, EPT_2026, LEGACY

OPEN = 0xA6008F5
"""A leaf of EPT whose host maps it read-only, of a VM without PML: either layout has it."""


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def signs_of(*vms: tuple[int, ...]) -> np.ndarray:
    """Signs of VMs that show these huge SPTEs."""
    signs = np.zeros((len(vms), SIGNS), np.int64)
    for vm, sptes in enumerate(vms):
        for spte in sptes:
            count_leaf(signs[vm], signed(spte), 2)
    return signs


@pytest.mark.parametrize(
    ("spte", "layout"),
    [
        (0x140000EE7, LEGACY),
        (0x8000000140000EE7, LEGACY),  # NX
        (0x20000114200CE7, LEGACY),  # nested NPT of 5.10
        (0x61000000A6008F7, EPT),
        (0x86000000FE000B77 | 0x80, EPT),  # of 6.12, where bit 63 suppresses #VE
        (0x75000000A6008F0, EPT),  # access-tracked
        (0x90A000000A600BF7, EPT_2026),
        (0x80A0000002184FF7, EPT_2026),
        (0x800000000A600DF5, EPT_2026),  # host read-only, user-executable
        (0x000000000A600DF7, EPT),  # of 5.10: bit 10 is host-writable
    ],
)
def test_one_spte(spte: int, layout: int) -> None:
    assert layout_of(signs_of((spte,)), 0, None) == layout


def test_what_is_no_leaf_shows_nothing() -> None:
    signs = np.zeros((1, SIGNS), np.int64)
    count_leaf(signs[0], 0x10002907, 2)  # a table
    count_leaf(signs[0], 0x61000000A6008F7, 4)
    count_leaf(signs[0], 0xA6008B2, 2)  # W without R: MMIO
    assert not signs.any()
    assert layout_of(signs, 0, None) == LEGACY


def test_an_open_question_goes_to_the_other_vms_then_to_the_kernel() -> None:
    old, new = 0x61000000A6008F7, 0x90A000000A600BF7
    assert layout_of(signs_of((OPEN,), (new,)), 0, KernelVersion(6, 1, 0)) == EPT_2026
    assert layout_of(signs_of((OPEN,), (old,)), 0, KernelVersion(7, 3, 0)) == EPT
    assert layout_of(signs_of((OPEN,)), 0, KernelVersion(7, 2, 0)) == EPT_2026
    assert layout_of(signs_of((OPEN,)), 0, KernelVersion(7, 1, 9)) == EPT
    assert layout_of(signs_of((OPEN,)), 0, None) == EPT


def test_an_spte_of_another_kind_does_not_outweigh_the_rest() -> None:
    old, new = 0x61000000A6008F7, 0x90A000000A600BF7
    assert layout_of(signs_of((old, new, old)), 0, None) == EPT
    assert layout_of(signs_of((old, 0x140000EE7, 0x140000EE7)), 0, None) == LEGACY


@pytest.mark.parametrize(
    ("access", "layout"),
    [
        (ACC_EXEC, EPT_2026),
        (ACC_READ | ACC_WRITE | ACC_EXEC, EPT_2026),
        (ACC_READ | ACC_EXEC, EPT),  # "--x" of three letters
    ],
)
def test_access_strings(access: int, layout: int) -> None:
    signs = signs_of((OPEN,))
    count_role(signs[0], access << ACCESS_SHIFT)
    assert layout_of(signs, 0, None) == layout


@pytest.mark.parametrize(
    ("spte", "layout", "pml"),
    [
        (0x62000000A600BF7, EPT, True),
        (0x61000000A6008F7, EPT, False),
        (0x60000000A600BF7, EPT, False),
        (0xA0A000000A600BF7, EPT_2026, True),
        (0x90A000000A600BF7, EPT_2026, False),
        (0x80A000000A600FF7, EPT_2026, False),
    ],
)
def test_pml(spte: int, layout: int, pml: bool) -> None:
    assert layout_of(signs_of((spte,)), 0, None) == layout
    assert has_pml_sptes(signs_of((spte,)), 0, layout) == pml
    assert not has_pml_sptes(signs_of((spte,)), 0, LEGACY)
