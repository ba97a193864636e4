"""How large the host maps a page, and how large KVM may map it (kvm_mmu_max_mapping_level)."""

from __future__ import annotations

from .parse import ACC_EXEC
from .state import LOG_DIRTY, MAX_HUGEPAGE_LEVEL, Memslot, Vm, align, pages_per

Frame = tuple[bool, int]


class HostPages:
    """Page sizes that the trace showed. They belong to the host address, where that is told: a page keeps
    its size under another gfn.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.huge: dict[int, set[Frame]] = {level: set() for level in range(2, MAX_HUGEPAGE_LEVEL + 1)}
        self.fetched: set[Frame] = set()
        self.small: set[Frame] = set()
        self.nx_huge_pages = False

    def saw(self, gfn: int, level: int) -> None:
        """`gfn` was, or could have been, mapped at `level`."""
        for huge in range(2, level + 1):
            self.huge[huge].add(self._frame(gfn, huge))

    def saw_small(self, gfn: int, pfn: int, fetch: bool) -> None:
        """A fault asked for 4K although the guest maps more. With nx_huge_pages every fetch does; where the
        frame lies in its huge page as the gfn does, the host may still map it huge.
        """
        slot, frame = self.vm.slot_of(gfn), self._frame(gfn, 2)
        if fetch:
            if not (pfn ^ gfn) & (pages_per(2) - 1):
                self.fetched.add(frame)
        elif slot is not None and not slot.flags & LOG_DIRTY and self._permits(slot, gfn, 2):
            self.small.add(frame)

    def saw_leaf(self, spte: int, level: int, access: int) -> None:
        """A huge leaf that the guest may fetch from and that is not executable shows nx_huge_pages."""
        if level > 1 and access & ACC_EXEC and not self.vm.layout.can_execute(spte):
            self.nx_huge_pages = True

    def _frame(self, gfn: int, level: int) -> Frame:
        slot = self.vm.slot_of(gfn)
        if slot is None or not slot.hva:
            return False, align(gfn, level)
        return True, align((slot.hva >> 12) + gfn - slot.base, level)

    def max_mapping_level(self, gfn: int) -> int:
        """The host's level of `gfn`, where lpage_info of its slot permits it."""
        slot = self.vm.slot_of(gfn)
        for level in range(MAX_HUGEPAGE_LEVEL, 1, -1):
            if slot is not None and self._permits(slot, gfn, level) and self._is_huge(gfn, level):
                return level
        return 1

    def _is_huge(self, gfn: int, level: int) -> bool:
        if any(self._frame(gfn, huge) in self.huge[huge] for huge in range(level, MAX_HUGEPAGE_LEVEL + 1)):
            return True
        hidden = self.fetched - self.small if self.nx_huge_pages and level == 2 else set()
        return self._frame(gfn, level) in hidden

    def _permits(self, slot: Memslot, gfn: int, level: int) -> bool:
        """Not disallow_lpage: the region lies in the slot, is aligned in both address spaces, and holds no
        guest table that is shadowed.
        """
        region = align(gfn, level)
        if region < slot.base or region + pages_per(level) > slot.end:
            return False
        if slot.hva and (slot.base ^ slot.hva >> 12) & (pages_per(level) - 1):
            return False
        return not self.vm.shadowed[level, region]
