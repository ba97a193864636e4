"""One page fault of one task: the guest walk, the goal, and the shadow pages met on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from .parse import ACC_WRITE
from .spte import GuestFormat
from .state import ADDRESS_MASK, ShadowPage

PFERR_WRITE, PFERR_FETCH = 1 << 1, 1 << 4
QUALIFIED_FETCH = 1 << 2
"""Of the exit qualification of an EPT violation, whose write bit is that of an error code."""


@dataclass
class Walk:
    """kvm_mmu_pagetable_walk and its elements by level."""

    address: int
    write: bool
    format: GuestFormat
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
        access = self.format.all
        for at, gpte in self.gptes.items():
            if at > level and not (self.is_pae() and at == 3):
                access &= self.format.access(gpte)
        return access

    def leaf_access(self) -> int:
        """AND of all elements; a read leaves a clean leaf write-protected (protect_clean_gpte)."""
        access, dirty = self.access_above(0), self.format.dirty
        if dirty and not self.write and not self.gptes[self.leaf] & dirty:
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
    fetch: bool = False
    walk: Walk | None = None
    gfn: int | None = None
    pages: dict[int, ShadowPage] = field(default_factory=dict)
    installed: bool = False
