"""How large the host maps a page, and how large KVM may map it (kvm_mmu_max_mapping_level)."""

from __future__ import annotations

from .state import MAX_HUGEPAGE_LEVEL, Memslot, Vm, align, pages_per

Frame = tuple[bool, int]


class HostPages:
    """Page sizes that the trace showed. They belong to the host address, where that is told: a page keeps
    its size under another gfn.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.huge: dict[int, set[Frame]] = {level: set() for level in range(2, MAX_HUGEPAGE_LEVEL + 1)}

    def saw(self, gfn: int, level: int) -> None:
        """`gfn` was, or could have been, mapped at `level`."""
        for huge in range(2, level + 1):
            self.huge[huge].add(self._frame(gfn, huge))

    def _frame(self, gfn: int, level: int) -> Frame:
        slot = self.vm.slot_of(gfn)
        if slot is None or not slot.hva:
            return False, align(gfn, level)
        return True, align((slot.hva >> 12) + gfn - slot.base, level)

    def max_mapping_level(self, gfn: int) -> int:
        """The host's level of `gfn`, where lpage_info of its slot permits it."""
        slot = self.vm.slot_of(gfn)
        for level in range(MAX_HUGEPAGE_LEVEL, 1, -1):
            if (
                slot is not None
                and self._permits(slot, gfn, level)
                and any(self._frame(gfn, huge) in self.huge[huge] for huge in range(level, MAX_HUGEPAGE_LEVEL + 1))
            ):
                return level
        return 1

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
