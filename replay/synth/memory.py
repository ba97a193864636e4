"""Host memory behind the guests: frames for guest memory and page tables, live memslots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.synth.scenario import Slot
from replay.synth.toml import pages

if TYPE_CHECKING:
    from replay.synth.kvm import ShadowPage

DATA_PFN, TABLE_PFN = 0x100000, 0x20000
"""Where the frames for guest memory and for page tables begin."""


class Host:
    """Physical memory of the host: frames for guest memory and for page tables."""

    def __init__(self) -> None:
        self.next_data = DATA_PFN
        self.next_table = TABLE_PFN

    def table(self) -> int:
        """Frame of a new shadow page's table."""
        self.next_table += 1
        return self.next_table - 1

    def data(self, gfn: int, npages: int) -> int:
        """Contiguous frames, aligned as ``gfn`` is within a 1 GiB page."""
        start = self.next_data + (gfn - self.next_data) % pages(3)
        self.next_data = start + npages
        return start


class MemSlot:
    """A live memslot: its host frames, which of them are resident, its dirty bitmap."""

    def __init__(self, slot: Slot, host: Host) -> None:
        self.slot = slot
        self.base_gfn, self.end = slot.base_gfn, slot.end
        self.host = host
        self.shift = 9 * (slot.backing - 1)
        self.pfn_base = host.data(slot.base_gfn, slot.npages)
        self.resident: set[int] = set()  # host pages, as gfn >> shift
        self.moved: dict[int, int] = {}  # host pages that came back elsewhere: first pfn
        self.rmaps: tuple[dict[int, list[tuple[ShadowPage, int]]], ...] = ({}, {}, {}, {})  # by level, gfn
        self.dirty_log = False
        self.dirty = 0  # bit n: page n of the slot is dirty

    def pfn(self, gfn: int) -> int:
        """The frame behind ``gfn``; makes its host page resident."""
        page = gfn >> self.shift
        self.resident.add(page)
        if page in self.moved:
            return self.moved[page] + (gfn & ((1 << self.shift) - 1))
        return self.pfn_base + gfn - self.base_gfn

    def evict(self, gfn: int) -> None:
        """The host takes the page away; the next fault gets other frames."""
        page = gfn >> self.shift
        if page in self.resident:
            self.resident.remove(page)
            self.moved[page] = self.host.data(page << self.shift, 1 << self.shift)

    def flags(self) -> int:
        """KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY."""
        return self.dirty_log | self.slot.readonly << 1
