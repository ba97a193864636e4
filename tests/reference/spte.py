"""The bits of an SPTE in the three layouts of x86, and how a trace shows which one a VM has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .parse import ACC_EXEC, ACC_READ, ACC_USER, ACC_WRITE

PT_WRITABLE, PT_PAGE_SIZE, SPTE_MMU_PRESENT = 1 << 1, 1 << 7, 1 << 11
PT_PRESENT, PT_USER = 1 << 0, 1 << 2
PT64_NX = 1 << 63
EPT_READ, EPT_EXEC, EPT_USER_EXEC = 1 << 0, 1 << 2, 1 << 10
EPT_WRITE_BACK = 6 << 3
GPTE_DIRTY, EPT_GPTE_DIRTY = 1 << 6, 1 << 9
ACC_ALL = ACC_EXEC | ACC_WRITE | ACC_USER


@dataclass(frozen=True)
class Layout:
    """Masks of an SPTE. `saved` are the bits that access tracking keeps, `saved_shift` higher; legacy paging
    never tracks.
    """

    name: str
    accessed: int
    dirty: int
    mmu_writable: int
    no_execute: int = 0
    execute: tuple[tuple[int, int], ...] = ()
    ad_type: int = 0
    ad_disabled: int = 0
    saved: int = 0
    saved_shift: int = 0

    @property
    def is_ept(self) -> bool:
        return bool(self.saved)

    @property
    def has_read(self) -> bool:
        """Does role.access have a read bit of its own in walks of guest EPT?"""
        return bool(self.saved & EPT_USER_EXEC)

    def compared(self, spte: int) -> int:
        """The value without what the CPU writes by itself."""
        return spte & ~(self.accessed | self.dirty)

    def needs_write_protect(self, spte: int) -> bool:
        """spte_ad_need_write_protect: PML does not log what this SPTE maps."""
        return bool(spte & self.ad_type)

    def uses_ad(self, spte: int) -> bool:
        """spte_ad_enabled."""
        return spte & self.ad_type != self.ad_disabled or not self.ad_type

    def is_tracked(self, spte: int) -> bool:
        """is_access_track_spte."""
        return self.is_ept and not self.uses_ad(spte) and not spte & (self.saved | PT_WRITABLE)

    def track(self, spte: int) -> int:
        """mark_spte_for_access_track of an SPTE without A/D bits."""
        if self.is_tracked(spte):
            return spte
        kept = (spte & self.saved) << self.saved_shift
        return spte & ~(self.saved | PT_WRITABLE | self.saved << self.saved_shift) | kept

    def restore(self, spte: int) -> int:
        """restore_acc_track_spte."""
        kept = spte >> self.saved_shift & self.saved
        return spte & ~(self.saved << self.saved_shift) | kept

    def age(self, spte: int) -> int:
        """mmu_spte_age."""
        return spte & ~self.accessed if self.uses_ad(spte) or not self.is_ept else self.track(spte)

    def can_execute(self, spte: int) -> bool:
        """May the guest fetch through this leaf?"""
        if self.is_tracked(spte):
            spte = self.restore(spte)
        return bool(spte & EPT_EXEC) if self.is_ept else not spte & PT64_NX

    def executable(self, spte: int, access: int) -> int:
        """make_spte_executable: what a role with `access` may fetch."""
        if self.is_tracked(spte):
            return self.track(self.executable(self.restore(spte), access))
        for bit, mask in self.execute:
            if access & bit:
                spte |= mask
        return spte & ~self.no_execute if access & ACC_EXEC else spte

    def used_by_cpu(self, spte: int, write: bool) -> int:
        """The access that faulted is done again and sets A and D. make_spte leaves D clear over a writable
        SPTE.
        """
        if not self.uses_ad(spte):
            return spte
        return spte | self.accessed | (self.dirty if write and spte & PT_WRITABLE else 0)


LEGACY = Layout("legacy", 1 << 5, 1 << 6, 1 << 10, no_execute=PT64_NX)
EPT_2022 = Layout(
    "ept up to 7.1", 1 << 8, 1 << 9, 1 << 58, 0, ((ACC_EXEC, EPT_EXEC),),
    3 << 52, 1 << 52, EPT_READ | EPT_EXEC, 54,
)  # fmt: skip
EPT_2026 = Layout(
    "ept since 7.2", 1 << 8, 1 << 9, 1 << 55, 0, ((ACC_EXEC, EPT_EXEC), (ACC_USER, EPT_USER_EXEC)),
    3 << 60, 1 << 60, EPT_READ | EPT_EXEC | EPT_USER_EXEC, 52,
)  # fmt: skip
ONLY_2022 = 1 << 57 | 1 << 58
ONLY_2026 = 1 << 55 | 3 << 60


def detect_layout(leaves: Iterable[int], with_read: bool) -> Layout:
    """The layout of the leaf SPTEs of a VM. Four letters of access (`with_read`) decide where bits do not."""
    ept = False
    for spte in leaves:
        if spte & ONLY_2022:
            return EPT_2022
        if spte & ONLY_2026:
            return EPT_2026
        ept = ept or spte & EPT_WRITE_BACK == EPT_WRITE_BACK
    if not ept:
        return LEGACY
    return EPT_2026 if with_read else EPT_2022


@dataclass(frozen=True)
class GuestFormat:
    """Entries of the guest's tables that a walk reads. `dirty` is 0 where a clean leaf means nothing."""

    bits: tuple[tuple[int, int], ...]
    no_execute: int
    dirty: int

    @property
    def all(self) -> int:
        """The access of an entry that permits everything."""
        return sum(bit for bit, _ in self.bits) | ACC_ALL

    def access(self, gpte: int) -> int:
        """FNAME(gpte_access) of one entry."""
        found = sum(bit for bit, mask in self.bits if gpte & mask)
        return found | (ACC_EXEC if self.no_execute and not gpte & self.no_execute else 0)


WRITE_AND_USER = ((ACC_WRITE, PT_WRITABLE), (ACC_USER, PT_USER))
LEGACY_GUEST = GuestFormat(WRITE_AND_USER, PT64_NX, GPTE_DIRTY)
EPT_BITS_2022 = ((ACC_USER, EPT_READ), (ACC_WRITE, PT_WRITABLE), (ACC_EXEC, EPT_EXEC))
EPT_BITS_2026 = (
    (ACC_READ, EPT_READ),
    (ACC_WRITE, PT_WRITABLE),
    (ACC_EXEC, EPT_EXEC),
    (ACC_USER, EPT_USER_EXEC),
)


def guest_format(layout: Layout, ad: bool) -> GuestFormat:
    """Of the walks that lead to a fault; under EPT these read L1's EPT, whose A/D bits are on if `ad`."""
    if not layout.is_ept:
        return LEGACY_GUEST
    bits = EPT_BITS_2026 if layout.has_read else EPT_BITS_2022
    return GuestFormat(bits, 0, EPT_GPTE_DIRTY if ad else 0)
