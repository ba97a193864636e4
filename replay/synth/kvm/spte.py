"""Bits of SPTEs (spte.h), and how the model keeps those that lead to another table."""

from __future__ import annotations

from replay.jit import jit

SPTE_P, SPTE_W, SPTE_U, SPTE_A, SPTE_D, SPTE_PS = 1, 2, 4, 0x20, 0x40, 0x80
SPTE_HOST_W, SPTE_MMU_W, SPTE_MMU_PRESENT, SPTE_NX = 0x200, 0x400, 0x800, -(1 << 63)
NONLEAF = SPTE_MMU_PRESENT | SPTE_P | SPTE_W | SPTE_U | SPTE_A
REMOVED_SPTE = 0x5A0  # what the TDP MMU leaves while it replaces an entry


@jit
def pages(level: int) -> int:
    """4 KiB frames of one page of ``level`` (KVM_PAGES_PER_HPAGE)."""
    return 1 << (9 * (level - 1))


@jit
def is_leaf(spte: int) -> bool:
    return spte & 1 != 0


@jit
def is_child(spte: int) -> bool:
    return spte != 0 and spte & 1 == 0


@jit
def child_of(spte: int) -> int:
    """The shadow page below a non-leaf SPTE."""
    return (spte >> 1) - 1
