"""The TDP MMU's one table, rebuilt from kvm_tdp_mmu_spte_changed, and its eager split."""

from __future__ import annotations

from collections.abc import Iterator

from .parse import Step
from .spte import PT_PAGE_SIZE
from .spte import SPTE_MMU_PRESENT as PRESENT
from .state import ADDRESS_MASK, MAX_HUGEPAGE_LEVEL, SPTES, align, is_leaf, pages_per


class Tdp:
    """SPTEs by (level, gfn); `tables` are the physical pages that hold TDP SPTEs."""

    def __init__(self) -> None:
        self.sptes: dict[tuple[int, int], int] = {}
        self.tables: set[int] = set()

    def change(self, level: int, gfn: int, old: int, new: int) -> None:
        """One kvm_tdp_mmu_spte_changed."""
        if old & PRESENT and not is_leaf(old, level):
            self.tables.discard(old & ADDRESS_MASK)
        if new & PRESENT:
            self.sptes[level, gfn] = new
            if not is_leaf(new, level):
                self.tables.add(new & ADDRESS_MASK)
        else:
            self.sptes.pop((level, gfn), None)

    def is_huge(self, level: int, gfn: int) -> bool:
        return is_leaf(self.sptes.get((level, gfn), 0), level)

    def fill_child(self, level: int, gfn: int) -> None:
        """tdp_mmu_split_huge_page: all 512 children are present, whatever they map."""
        huge = self.sptes[level, gfn]
        for index in range(SPTES):
            offset = index * pages_per(level - 1)
            child = huge + (offset << 12)
            self.sptes[level - 1, gfn + offset] = child & ~PT_PAGE_SIZE if level == 2 else child

    def split(self, start: int, end: int, target: int) -> Iterator[Step]:
        """kvm_tdp_mmu_try_split_huge_pages over [start, end): yields ("tdp_link", gfn, level) when an SPTE
        becomes a table, then ("tdp_split", gfn, spte, level, 0). The pre-order walk looks at an entry when
        it gets there, so changes that others make in between count.
        """
        yield from self._split_level(
            start, end, target, MAX_HUGEPAGE_LEVEL, align(start, MAX_HUGEPAGE_LEVEL), end
        )

    def _split_level(
        self, start: int, end: int, target: int, level: int, first: int, last: int
    ) -> Iterator[Step]:
        for gfn in range(first, min(end, last), pages_per(level)):
            if self.is_huge(level, gfn):
                spte = self.sptes[level, gfn]
                self.fill_child(level, gfn)
                self.sptes[level, gfn] = PRESENT
                yield ("tdp_link", gfn, level)
                yield ("tdp_split", gfn, spte, level, 0)
            if level - 1 > target:
                inside = max(gfn, align(start, level - 1))
                yield from self._split_level(start, end, target, level - 1, inside, gfn + pages_per(level))
