"""SPTE bits and the values that splitting writes (arch/x86/kvm/mmu/spte.c, 5.18 to 7.x).

SPTEs are int64 here: bit 63 makes them negative, nothing else changes.
"""

from __future__ import annotations

from replay.jit import jit

PT_WRITABLE_MASK = 1 << 1
PT_ACCESSED_MASK = 1 << 5
PT_DIRTY_MASK = 1 << 6
PT_PAGE_SIZE_MASK = 1 << 7
SPTE_MMU_PRESENT_MASK = 1 << 11
PT64_NX_MASK = -(1 << 63)
DEFAULT_SPTE_MMU_WRITABLE = 1 << 10
EPT_SPTE_HOST_WRITABLE = 1 << 57
EPT_SPTE_MMU_WRITABLE = 1 << 58
VMX_EPT_EXECUTABLE_MASK = 1 << 2
PFN_MASK = (1 << 52) - (1 << 12)

LEFT_NONPRESENT = 1 << 60
"""Value of a non-present SPTE that a split did not fill; a zapped SPTE is 0."""

NONLEAF_BITS = SPTE_MMU_PRESENT_MASK | 0x27


@jit
def is_shadow_present_pte(spte: int) -> bool:
    return (spte & SPTE_MMU_PRESENT_MASK) != 0


@jit
def is_last_spte(spte: int, level: int) -> bool:
    """A present SPTE that maps memory rather than a lower table."""
    return level == 1 or (spte & PT_PAGE_SIZE_MASK) != 0


@jit
def make_nonleaf_spte(child: int) -> int:
    """The simulated SPTE that points to shadow page ``child``."""
    return (child << 12) | NONLEAF_BITS


@jit
def spte_child(spte: int) -> int:
    """The shadow page that a non-leaf SPTE of :func:`make_nonleaf_spte` points to."""
    return (spte & PFN_MASK) >> 12


@jit
def make_huge_page_split_spte(
    huge_spte: int, index: int, child_level: int, exec_allowed: bool, ept: bool
) -> int:
    """SPTE ``index`` (0..511) of the table that replaces ``huge_spte``, at ``child_level``.

    Mirrors make_huge_page_split_spte(): a 4K child of a page that the guest may execute is made
    executable, which changes something only where the NX huge page mitigation took X away.
    """
    child = huge_spte + (index << (12 + 9 * (child_level - 1)))
    if child_level == 1:
        child &= ~PT_PAGE_SIZE_MASK
        if exec_allowed:
            if ept:
                child |= VMX_EPT_EXECUTABLE_MASK
            else:
                child &= ~PT64_NX_MASK
    return child


@jit
def spte_write_protect(spte: int, pt_protect: bool, ept: bool) -> int:
    """spte_write_protect(): clear W, and with ``pt_protect`` the MMU-writable bit too."""
    spte &= ~PT_WRITABLE_MASK
    if pt_protect:
        spte &= ~(EPT_SPTE_MMU_WRITABLE if ept else DEFAULT_SPTE_MMU_WRITABLE)
    return spte
