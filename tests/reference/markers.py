"""Control by `replay:` marker lines, for recordings without kprobes: memslots, limits, dirty logging, split
windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .infer import Inference
from .parse import Event, fields
from .splits import Splits, write_protect_chunk
from .state import LOG_DIRTY, MAX_HUGEPAGE_LEVEL, READONLY, Memslot, Vm

MIN_ALLOC_MMU_PAGES, MEMSLOT_PAGES_TO_MMU_PAGES_RATIO = 64, 50
INITIALLY_SET = 2
CHUNK = 64


@dataclass
class Markers:
    """What userspace asked for so far. `dirty` holds one bitmap per slot id, as an integer, bit n for page
    n.
    """

    vm: Vm
    inference: Inference
    splits: Splits
    requested: int = 0
    initially_set: bool = False
    dirty: dict[int, int] = field(default_factory=dict)

    def apply(self, at: int, event: Event) -> None:
        words = event.text.split()
        value = fields(event.text)
        if words[:2] == ["replay:", "memslot"]:
            self._memslot(at, event, value)
        elif words[:2] == ["replay:", "nr_mmu_pages"] and value["n"] >= MIN_ALLOC_MMU_PAGES:
            self.requested = value["n"]
            self.vm.limit = (event.pid, value["n"])
        elif words[:2] == ["replay:", "resched"]:
            self.vm.resched = True
        elif words[:2] == ["replay:", "manual_dirty_log_protect2"]:
            self.initially_set = bool(value["arg"] & INITIALLY_SET)
        elif words[:2] == ["replay:", "clear_dirty_log"] and self.initially_set:
            self._clear(at, event, value)

    def mark_dirty(self, gfn: int) -> None:
        for number, slot in self.vm.slots.items():
            if number in self.dirty and slot.base <= gfn < slot.end:
                self.dirty[number] |= 1 << (gfn - slot.base)

    def _memslot(self, at: int, event: Event, value: dict[str, int]) -> None:
        """kvm_arch_commit_memory_region."""
        slots = self.vm.slots
        number, new = (
            value["id"],
            Memslot(value["base_gfn"], value["npages"], value["flags"], value.get("hva", 0)),
        )
        old = slots.get(number)
        if old is not None and not new.hva and (new.base, new.npages) == (old.base, old.npages):
            new.hva = old.hva
        if new.npages:
            slots[number] = new
        else:
            slots.pop(number, None)
        if old is None or not new.npages:
            self.dirty.pop(number, None)
            total = sum(slot.npages for slot in slots.values())
            default = max(MIN_ALLOC_MMU_PAGES, total // MEMSLOT_PAGES_TO_MMU_PAGES_RATIO)
            self.vm.limit = (event.pid, self.requested or default)
        elif new.flags & LOG_DIRTY and not old.flags & LOG_DIRTY:
            self._start_logging(at, event, number, new)
        elif old.flags & LOG_DIRTY and not new.flags & LOG_DIRTY:
            self.dirty.pop(number, None)
            self.inference.zap_collapsible(new.base, new.end)

    def _start_logging(self, at: int, event: Event, number: int, slot: Memslot) -> None:
        if self.initially_set:
            self.dirty[number] = (1 << slot.npages) - 1
        elif not slot.flags & READONLY:
            self.splits.open_chain(at, event, self._whole_slot(slot))

    def _whole_slot(self, slot: Memslot) -> Iterator[tuple[int, int]]:
        yield slot.base, slot.end
        vm = self.vm
        for level in range(1, MAX_HUGEPAGE_LEVEL + 1):
            for head in vm.heads_in(slot, level):
                vm.write_protect(level, head, pt_protect=False)

    def _clear(self, at: int, event: Event, value: dict[str, int]) -> None:
        number = value["slot"]
        slot = self.vm.slots.get(number)
        if slot is not None and number in self.dirty:
            self.splits.open_chain(at, event, self._chunks(slot, number, value))

    def _chunks(self, slot: Memslot, number: int, value: dict[str, int]) -> Iterator[tuple[int, int]]:
        """kvm_clear_dirty_log_protect: the bits of each word that are still set; the range ends at its last
        bit.
        """
        for first in range(value["first_page"], value["first_page"] + value["num_pages"], CHUNK):
            asked = value.get("mask", (1 << CHUNK) - 1) << first
            mask = self.dirty[number] & asked
            self.dirty[number] &= ~asked
            if not mask:
                continue
            start = slot.base + (mask & -mask).bit_length() - 1
            end = slot.base + mask.bit_length() - 1
            yield start, end + self.splits.kernel.late
            write_protect_chunk(self.vm, start, end)
