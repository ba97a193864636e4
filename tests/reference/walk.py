"""One page fault of one task: the guest walk, the goal, and the shadow pages met on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from .parse import ACC_EXEC, ACC_USER, ACC_WRITE
from .state import ADDRESS_MASK, PT64_NX, ShadowPage

GPTE_WRITE, GPTE_USER, GPTE_DIRTY = 1 << 1, 1 << 2, 1 << 6
PFERR_WRITE = 1 << 1
ACC_ALL = ACC_EXEC | ACC_WRITE | ACC_USER


@dataclass
class Walk:
    """kvm_mmu_pagetable_walk and its elements by level."""

    address: int
    write: bool
    gptes: dict[int, int] = field(default_factory=dict)

    def add(self, gpte: int, level: int) -> None:
        """A level that is not below the last one restarts the walk."""
        if self.gptes and level >= min(self.gptes):
            self.gptes = {}
        self.gptes[level] = gpte

    @property
    def top(self) -> int:
        return max(self.gptes, default=0)

    @property
    def leaf(self) -> int:
        return min(self.gptes, default=0)

    def is_pae(self) -> bool:
        return self.top == 3

    def access_above(self, level: int) -> int:
        """Guest access of the table at `level`: AND of the elements above; a PDPTE of PAE has no
        permissions.
        """
        access = ACC_ALL
        for at, gpte in self.gptes.items():
            if at > level and not (self.is_pae() and at == 3):
                access &= gpte_access(gpte)
        return access

    def leaf_access(self) -> int:
        """AND of all elements; a read leaves a clean leaf write-protected (protect_clean_gpte)."""
        access = self.access_above(0)
        if not self.write and not self.gptes[self.leaf] & GPTE_DIRTY:
            access &= ~ACC_WRITE
        return access

    def table_gfn(self, level: int) -> int | None:
        """gfn of the guest table at `level`; None for the top table, which no element names."""
        gpte = self.gptes.get(level + 1)
        return None if gpte is None else (gpte & ADDRESS_MASK) >> 12

    def mapped_gfn(self, gpte_bytes: int) -> int:
        """gfn of the walked address."""
        leaf = self.leaf
        bits = 22 if gpte_bytes == 4 and leaf == 2 else 12 + 9 * (leaf - 1)
        mask = 0xFFFF_F000 if gpte_bytes == 4 else ADDRESS_MASK
        low = (1 << bits) - 1
        return ((self.gptes[leaf] & mask & ~low) | (self.address & low)) >> 12


@dataclass
class Fault:
    """What is known since the last kvm_page_fault of the task. `pages` are those that a get_page line
    named.
    """

    address: int = 0
    write: bool = False
    walk: Walk | None = None
    gfn: int | None = None
    pages: dict[int, ShadowPage] = field(default_factory=dict)
    installed: bool = False


def gpte_access(gpte: int) -> int:
    """FNAME(gpte_access) of a 64-bit guest PTE."""
    access = 0 if gpte & PT64_NX else ACC_EXEC
    return access | (ACC_WRITE if gpte & GPTE_WRITE else 0) | (ACC_USER if gpte & GPTE_USER else 0)
