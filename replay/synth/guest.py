"""Guest page tables: what a guest (or L1, for L2) has written into its memory before it is traced.

Tables are given their frames in the order in which walks first meet them, from one range of
frames a VM; every entry is present, accessed and dirty, as if the guest had used it before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from replay.synth.scenario import Mapping, Root
from replay.synth.toml import PAGE_SHIFT, pages

PT_WRITABLE, PT_USER, PT_PAGE_SIZE, PT_NX = 1 << 1, 1 << 2, 1 << 7, 1 << 63
PT_TABLE = 0x67  # present, writable, user, accessed, dirty
ACC_EXEC, ACC_WRITE, ACC_USER, ACC_ALL = 1, 2, 4, 7
ROOT_LEVEL = 4


class Walk(NamedTuple):
    """What a walk of the guest page tables reads."""

    upper: tuple[str, ...]  # events of the elements above the leaf, from the top
    leaf: int  # guest pte at leaf_level
    tables: tuple[int, ...]  # gfn of the table at levels 4, 3, .. down to the leaf's
    leaf_level: int
    gfn: int  # of the address itself
    access: int  # AND over the elements


def paging_element(pte: int, level: int) -> str:
    """The event of one guest page table entry read."""
    return f"kvm_mmu_paging_element: pte {pte:x} level {level}"


class GuestTables:
    """The page tables below one root of a guest."""

    def __init__(self, root: Root, allocate: Callable[[], int]) -> None:
        self.root = root
        self.allocate = allocate
        self.gfns: dict[tuple[int, int], int] = {}
        self.paths: dict[tuple[int, int], tuple[tuple[int, ...], tuple[str, ...]]] = {}

    def table(self, level: int, addr: int) -> int:
        """Frame of the table at ``level`` that translates ``addr``."""
        key = (level, addr >> (PAGE_SHIFT + 9 * level))
        gfn = self.gfns.get(key)
        if gfn is None:
            gfn = self.gfns[key] = self.allocate()
        return gfn

    def mapping(self, addr: int) -> Mapping | None:
        """The mapping that covers ``addr``."""
        for mapping in self.root.mappings:
            if mapping.addr <= addr < mapping.addr + mapping.size:
                return mapping
        return None

    def leaf(self, mapping: Mapping, addr: int) -> int:
        """The leaf entry for ``addr``."""
        offset = (addr - mapping.addr) >> PAGE_SHIFT
        gfn = mapping.gfn + offset - offset % pages(mapping.level)
        pte = gfn << PAGE_SHIFT | PT_TABLE & ~(PT_WRITABLE | PT_USER)
        if mapping.access & ACC_WRITE:
            pte |= PT_WRITABLE
        if self.root.user or self.root.kind == "nested":
            pte |= PT_USER
        if not mapping.access & ACC_EXEC:
            pte |= PT_NX
        if mapping.level > 1:
            pte |= PT_PAGE_SIZE
        return pte

    def access(self, mapping: Mapping) -> int:
        """Access that the whole walk grants: upper entries grant everything."""
        user = self.root.user or self.root.kind == "nested"
        return mapping.access if user else mapping.access & ~ACC_USER

    def walk(self, addr: int) -> Walk | None:
        """Walk the tables for ``addr``; None where nothing is mapped."""
        mapping = self.mapping(addr)
        if mapping is None:
            return None
        tables, upper = self.path(mapping.level, addr)
        gfn = mapping.gfn + ((addr - mapping.addr) >> PAGE_SHIFT)
        return Walk(upper, self.leaf(mapping, addr), tables, mapping.level, gfn, self.access(mapping))

    def path(self, leaf_level: int, addr: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The tables above a leaf for ``addr`` and the events of the entries from one to the next."""
        key = (leaf_level, addr >> (PAGE_SHIFT + 9 * leaf_level))
        path = self.paths.get(key)
        if path is None:
            tables = tuple(self.table(level, addr) for level in range(ROOT_LEVEL, leaf_level - 1, -1))
            entries = ((gfn << PAGE_SHIFT | PT_TABLE, ROOT_LEVEL - i) for i, gfn in enumerate(tables[1:]))
            upper = tuple(paging_element(pte, level) for pte, level in entries)
            path = self.paths[key] = (tables, upper)
        return path
