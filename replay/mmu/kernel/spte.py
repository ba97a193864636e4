"""SPTE bits and the values that KVM writes (arch/x86/kvm/mmu/spte.c, 5.18 to 7.x).

Three layouts exist: one for legacy paging and NPT, two for EPT.  They are data: a VM has the code of its
layout, and every function that needs a bit takes that code.  No other module knows a bit's number.

SPTEs are int64 here: bit 63 makes them negative, nothing else changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.role import ACC_EXEC, ACC_READ, ACC_USER, ACC_WRITE

# -- bits that all layouts have in common ------------------------------------------------------------

PT_WRITABLE_MASK = 1 << 1
PT_PAGE_SIZE_MASK = 1 << 7
SPTE_MMU_PRESENT_MASK = 1 << 11
PFN_MASK = (1 << 52) - (1 << 12)
SHADOW_NONPRESENT_VALUE = -(1 << 63)
"""What a non-present SPTE holds in kernels from 6.10 on."""

LEFT_NONPRESENT = 1 << 60
"""Value of a non-present SPTE that a split did not fill; a zapped SPTE is 0."""

NONLEAF_BITS = SPTE_MMU_PRESENT_MASK | 0x27

# -- layouts -----------------------------------------------------------------------------------------


class SpteLayout(NamedTuple):
    """Masks of an SPTE, and of the guest's entries that a shadow MMU reads; 0 where there is no such bit."""

    name: str
    readable: int  # without it not even a read is allowed
    executable: int  # of supervisor pages, where the two are told apart
    user_executable: int
    nx: int
    user: int
    accessed: int
    dirty: int
    mmu_writable: int
    ad_type: int  # SPTE_TDP_AD_MASK: 0 where the CPU sets A and D and may log what it writes
    ad_disabled: int
    saved: int  # bits that an access-tracked SPTE keeps ...
    saved_shift: int  # ... this much further up
    gpte_readable: int  # what makes a guest entry readable; 0: all are
    gpte_user: int


LEGACY = 0
"""Legacy paging and NPT."""
EPT = 1
"""EPT up to 7.1."""
EPT_2026 = 2
"""EPT from 7.2 on: the user has an execute permission of its own (mode-based execute control)."""

LAYOUTS = (
    SpteLayout(
        name="legacy",
        readable=1 << 0,
        executable=0,
        user_executable=0,
        nx=-(1 << 63),
        user=1 << 2,
        accessed=1 << 5,
        dirty=1 << 6,
        mmu_writable=1 << 10,
        ad_type=0,
        ad_disabled=1 << 52,
        saved=0,
        saved_shift=0,
        gpte_readable=0,
        gpte_user=1 << 2,
    ),
    SpteLayout(
        name="ept",
        readable=1 << 0,
        executable=1 << 2,
        user_executable=0,
        nx=0,
        user=0,
        accessed=1 << 8,
        dirty=1 << 9,
        mmu_writable=1 << 58,
        ad_type=3 << 52,
        ad_disabled=1 << 52,
        saved=1 << 0 | 1 << 2,
        saved_shift=54,
        gpte_readable=0,
        gpte_user=1 << 0,
    ),
    SpteLayout(
        name="ept-7.2",
        readable=1 << 0,
        executable=1 << 2,
        user_executable=1 << 10,
        nx=0,
        user=1 << 10,
        accessed=1 << 8,
        dirty=1 << 9,
        mmu_writable=1 << 55,
        ad_type=3 << 60,
        ad_disabled=1 << 60,
        saved=1 << 0 | 1 << 2 | 1 << 10,
        saved_shift=52,
        gpte_readable=1 << 0,
        gpte_user=1 << 10,
    ),
)


def _by_layout(field: str) -> np.ndarray:
    return np.array([getattr(layout, field) for layout in LAYOUTS], np.int64)


# one array a mask, for jitted code: a layout's code is the index
READABLE = _by_layout("readable")
EXECUTABLE = _by_layout("executable")
USER_EXECUTABLE = _by_layout("user_executable")
NX = _by_layout("nx")
USER = _by_layout("user")
ACCESSED = _by_layout("accessed")
DIRTY = _by_layout("dirty")
MMU_WRITABLE = _by_layout("mmu_writable")
AD_TYPE = _by_layout("ad_type")
AD_DISABLED = _by_layout("ad_disabled")
SAVED = _by_layout("saved")
SAVED_SHIFT = _by_layout("saved_shift")
GPTE_READABLE = _by_layout("gpte_readable")
GPTE_USER = _by_layout("gpte_user")
TRACKED = READABLE | PT_WRITABLE_MASK | EXECUTABLE | USER_EXECUTABLE
"""shadow_acc_track_mask: what an access-tracked SPTE lacks."""

# -- reading an SPTE ---------------------------------------------------------------------------------


@jit
def is_shadow_present_pte(spte: int) -> bool:
    """is_shadow_present_pte(): by the MMU-present bit, as since 5.13."""
    return (spte & SPTE_MMU_PRESENT_MASK) != 0


@jit
def is_last_spte(spte: int, level: int) -> bool:
    """A present SPTE that maps memory rather than a lower table."""
    return level == 1 or (spte & PT_PAGE_SIZE_MASK) != 0


@jit
def spte_pfn(spte: int) -> int:
    """The page frame that a leaf SPTE maps, or that a table lies in."""
    return (spte & PFN_MASK) >> 12


@jit
def is_executable(spte: int, layout: int) -> bool:
    """is_executable_pte()."""
    return spte & EXECUTABLE[layout] == EXECUTABLE[layout] and not spte & NX[layout]


@jit
def allows(spte: int, write: bool, fetch: bool, layout: int) -> bool:
    """Whether a leaf SPTE allows an access: a read, a write (which reads too) or a fetch."""
    if fetch:
        return is_executable(spte, layout)
    return spte & READABLE[layout] != 0 and (not write or spte & PT_WRITABLE_MASK != 0)


@jit
def spte_access(spte: int, layout: int) -> int:
    """The access that a leaf SPTE grants, in the bits of a role; reading is granted by all."""
    access = ACC_READ
    if spte & PT_WRITABLE_MASK:
        access |= ACC_WRITE
    if is_executable(spte, layout):
        access |= ACC_EXEC
    if spte & USER[layout] == USER[layout]:
        access |= ACC_USER
    return access


@jit
def spte_ad_disabled(spte: int, layout: int) -> bool:
    """The CPU sets neither A nor D, so that KVM tracks accesses by taking the permissions away."""
    return spte & AD_TYPE[layout] == AD_DISABLED[layout]


@jit
def spte_ad_need_write_protect(spte: int, layout: int) -> bool:
    """Writes through it are logged by write protection even where the CPU logs others (PML)."""
    return spte & AD_TYPE[layout] != 0


@jit
def is_access_track_spte(spte: int, layout: int) -> bool:
    """kvm_age_hva() took all permissions of the SPTE away, to notice the next access."""
    return spte_ad_disabled(spte, layout) and not spte & TRACKED[layout]


def access_tracked(sptes: np.ndarray, layouts: np.ndarray) -> np.ndarray:
    """is_access_track_spte() of a column of SPTEs, int64, beside one of their layouts."""
    disabled = sptes & AD_TYPE[layouts] == AD_DISABLED[layouts]
    return disabled & (sptes & TRACKED[layouts] == 0)


# -- changing one ------------------------------------------------------------------------------------


@jit
def mark_spte_for_access_track(spte: int, layout: int) -> int:
    """R and X are kept further up in an SPTE whose A bit the CPU does not set; W is told otherwise."""
    if not spte_ad_disabled(spte, layout) or is_access_track_spte(spte, layout):
        return spte
    spte |= (spte & SAVED[layout]) << SAVED_SHIFT[layout]
    return spte & ~(TRACKED[layout] | ACCESSED[layout])


@jit
def restore_acc_track_spte(spte: int, layout: int) -> int:
    """restore_acc_track_spte(): the SPTE as it was before access tracking."""
    saved = (spte >> SAVED_SHIFT[layout]) & SAVED[layout]
    return spte & ~(TRACKED[layout] | SAVED[layout] << SAVED_SHIFT[layout]) | saved


@jit
def make_spte_executable(spte: int, access: int, layout: int) -> int:
    """As executable as ``access`` allows; access-tracked SPTEs stay so and have the bits saved."""
    tracked = is_access_track_spte(spte, layout)
    if tracked:
        spte = restore_acc_track_spte(spte, layout)
    if access & ACC_EXEC:
        spte = spte & ~NX[layout] | EXECUTABLE[layout]
    if access & ACC_USER:
        spte |= USER_EXECUTABLE[layout]
    return mark_spte_for_access_track(spte, layout) if tracked else spte


@jit
def make_huge_page_split_spte(huge_spte: int, index: int, child_level: int, access: int, layout: int) -> int:
    """SPTE ``index`` (0..511) of the table that replaces ``huge_spte``, at ``child_level``.

    Mirrors make_huge_page_split_spte(): a 4K child of a page that the guest may execute (``access``, of
    the child's role) is made executable, which changes something only where the NX huge page mitigation
    took X away.
    """
    child = huge_spte + (index << (12 + 9 * (child_level - 1)))
    if child_level == 1:
        child = make_spte_executable(child & ~PT_PAGE_SIZE_MASK, access, layout)
    return child


WRITE_PROTECTED = ~PT_WRITABLE_MASK
"""What spte_write_protect() leaves of an SPTE."""


@jit
def pt_protected(layout: int) -> int:
    """What spte_write_protect() leaves of an SPTE with ``pt_protect``: the MMU-writable bit goes, too."""
    return ~(PT_WRITABLE_MASK | MMU_WRITABLE[layout])


@jit
def spte_clear_dirty(spte: int, nested: bool, layout: int) -> int:
    """__rmap_clear_dirty() under PML: D goes, so that the CPU logs the next write.

    It logs the address that the guest used.  In a nested MMU, which ``nested`` or the SPTE itself tells,
    that is one of L2's, so that W goes instead.
    """
    if nested or spte_ad_need_write_protect(spte, layout):
        return spte & ~PT_WRITABLE_MASK
    return spte & ~DIRTY[layout]


@jit
def hardware_access(spte: int, write: bool, layout: int) -> int:
    """The SPTE after the guest's retried access: untraced, the CPU sets A, and D on an allowed write.

    KVM itself sets both in a new SPTE of EPT.
    """
    if layout != LEGACY:
        return spte
    spte |= ACCESSED[layout]
    if write and spte & PT_WRITABLE_MASK:
        spte |= DIRTY[layout]
    return spte


@jit
def make_nonleaf_spte(child: int) -> int:
    """The simulated SPTE that points to shadow page ``child``."""
    return (child << 12) | NONLEAF_BITS


@jit
def spte_child(spte: int) -> int:
    """The shadow page that a non-leaf SPTE of :func:`make_nonleaf_spte` points to."""
    return spte_pfn(spte)


# -- what changes without a line ---------------------------------------------------------------------


@jit
def with_accessed_dirty_of(spte: int, other: int, layout: int) -> int:
    """``spte`` with the A and D bits of ``other``."""
    ad = ACCESSED[layout] | DIRTY[layout]
    return spte & ~ad | other & ad


@jit
def is_aged(simulated: int, recorded: int, layout: int) -> bool:
    """kvm_age_hva() took the permissions of the recorded SPTE away and left no line."""
    return is_access_track_spte(recorded, layout) and not is_access_track_spte(simulated, layout)


@jit
def sptes_agree(simulated: int, recorded: int, layout: int) -> bool:
    """Whether two values of one SPTE differ in nothing but what changes without a line.

    A and D are the CPU's, and aging takes permissions away.
    """
    if simulated == recorded:
        return True
    if is_aged(simulated, recorded, layout):
        simulated = mark_spte_for_access_track(simulated, layout)
    return with_accessed_dirty_of(simulated, recorded, layout) == recorded


# -- the guest's own entries -------------------------------------------------------------------------


@jit
def gpte_access(common: int, any_nx: int, layout: int) -> int:
    """FNAME(gpte_access)(): what the entries of a guest's walk allow together.

    ``common`` has the bits that all of them have, ``any_nx`` those that any has with an NX bit in it.
    """
    access = 0
    if common & GPTE_READABLE[layout] == GPTE_READABLE[layout]:
        access |= ACC_READ
    if common & PT_WRITABLE_MASK:
        access |= ACC_WRITE
    if common & GPTE_USER[layout]:
        access |= ACC_USER
    if common & EXECUTABLE[layout] == EXECUTABLE[layout] and not any_nx & NX[layout]:
        access |= ACC_EXEC
    return access


@jit
def gpte_is_clean(pte: int, layout: int) -> bool:
    """A leaf entry of the guest whose D bit is clear."""
    return not pte & DIRTY[layout]
