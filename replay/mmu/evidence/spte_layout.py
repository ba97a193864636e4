"""Which layout the SPTEs of a VM have, found from the bits that leaf SPTEs and roles of the trace show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.role import ACC_READ, ACC_USER, ACC_WRITE, ACCESS_SHIFT
from replay.mmu.kernel.spte import EPT, EPT_2026, LAYOUTS, LEGACY, PT_WRITABLE_MASK, is_last_spte

if TYPE_CHECKING:
    from replay.kernel import KernelVersion

FIRST_OF_2026 = (7, 2)

# counts of one VM
EPT_LEAVES = 0
OTHER_LEAVES = 1
OLD_SIGNS = 2  # of the layout up to 7.1, should it be EPT
NEW_SIGNS = 3  # of that from 7.2 on
OLD_WRITE_PROTECTED = 4  # SPTEs that PML excepts, as the older layout has them
NEW_WRITE_PROTECTED = 5  # as the newer layout has them
SIGNS = 6

_MEMORY_TYPE = 1 << 4  # of write-back and write-protected memory; legacy paging leaves cache control to PAT
_HIGH = (1 << 63) - (1 << 54)  # used by EPT alone; 52 and 53 mark nested NPT in 5.10, 63 is NX
_OLD = 1 << 56 | 1 << 57 | 1 << 58
_NEW = 1 << 55 | 3 << 60 | 1 << 62
_NEW_USER_X = LAYOUTS[EPT_2026].user_executable
_SUPPRESS_VE = -(1 << 63)  # of each present SPTE of the newer layout; before 5.13 bit 10 meant host-writable
_OLD_AD = LAYOUTS[EPT].ad_type
_NEW_AD = LAYOUTS[EPT_2026].ad_type


@jit
def count_leaf(signs: np.ndarray, spte: int, level: int) -> None:
    """A line tells of a present SPTE at ``level``; ``signs`` is the row of its VM."""
    if level < 1 or level > 3 or not is_last_spte(spte, level) or spte & 3 == PT_WRITABLE_MASK:
        return  # no leaf, or writable and not readable: none at all
    if not spte & (_MEMORY_TYPE | _HIGH):
        signs[OTHER_LEAVES] += 1
        return
    signs[EPT_LEAVES] += 1
    if spte & _OLD:
        signs[OLD_SIGNS] += 1
    elif spte & _NEW or (spte & _NEW_USER_X and spte & _SUPPRESS_VE):
        signs[NEW_SIGNS] += 1
    signs[OLD_WRITE_PROTECTED] += spte & _OLD_AD == _OLD_AD & _OLD_AD << 1
    signs[NEW_WRITE_PROTECTED] += spte & _NEW_AD == _NEW_AD & _NEW_AD << 1


@jit
def count_role(signs: np.ndarray, role: int) -> None:
    """A line tells of a page with ``role``: R is a permission, or goes without U, in the new layout only."""
    access = role >> ACCESS_SHIFT
    signs[NEW_SIGNS] += not access & ACC_READ or access & (ACC_WRITE | ACC_USER) == ACC_WRITE


def layout_of(signs: np.ndarray, vm: int, kernel: KernelVersion | None) -> int:
    """The layout of ``vm``; ``signs`` has a row a VM.

    Where its own SPTEs leave it open, those of the other VMs decide, and then the kernel's version.
    """
    if signs[vm, EPT_LEAVES] <= signs[vm, OTHER_LEAVES]:
        return LEGACY
    ept = signs[signs[:, EPT_LEAVES] > signs[:, OTHER_LEAVES]].sum(axis=0)
    for counts in (signs[vm], ept):
        if counts[OLD_SIGNS] != counts[NEW_SIGNS]:
            return EPT if counts[OLD_SIGNS] > counts[NEW_SIGNS] else EPT_2026
    return EPT_2026 if kernel and kernel.series >= FIRST_OF_2026 else EPT


def has_pml_sptes(signs: np.ndarray, vm: int, layout: int) -> bool:
    """SPTEs of a nested MMU are marked as those that only write protection logs: the VM uses PML."""
    column = {EPT: OLD_WRITE_PROTECTED, EPT_2026: NEW_WRITE_PROTECTED}.get(layout)
    return column is not None and bool(signs[vm, column])
