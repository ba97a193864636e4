"""Control lines and checks of one recording; one Machine for each VM (tgid)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .infer import Inference, written_gfn
from .kernel import Kernel, detect
from .markers import Markers
from .parse import (
    MMU_EVENTS,
    Event,
    fields,
    neighbours,
    parse_hva_range,
    parse_set_spte,
    parse_split,
    parse_tdp_change,
)
from .rmapstat import Snapshot
from .splits import Splits, write_protect_chunk
from .spte import Layout, detect_layout
from .state import MAX_HUGEPAGE_LEVEL, Memslot, is_leaf

DELETE = 1


class Machine:
    """Applies the events of one VM, in order."""

    def __init__(
        self,
        events: Sequence[Event],
        links: tuple[list[int], list[int]],
        has_tdp: bool,
        layout: Layout,
        kernel: Kernel,
        stats: dict[str, list[str]],
    ) -> None:
        self.events, self.stats, self.kernel = events, stats, kernel
        self.inference = Inference(events, *links, has_tdp, layout)
        self.inference.lines.page_before_children = kernel.with_read
        self.vm = self.inference.vm
        self.vm.rmap.head_first = kernel.late
        self.splits = Splits(events, self.inference, kernel)
        self.markers = Markers(self.vm, self.inference, self.splits)
        self.probed = any(event.name == "set_region" for event in events)
        self.regions: dict[int, dict[str, int]] = {}
        self.snapshot: Snapshot | None = None

    def apply(self, at: int) -> None:
        """Let one event act, and look for the moment of a pending snapshot of the rmaps."""
        if self.snapshot is not None and self.snapshot.event.pid == self.events[at].pid:
            self.finish()
        self._apply(at)
        if self.snapshot is not None:
            self._check_rmaps(self.snapshot)

    def finish(self) -> None:
        if self.snapshot is not None:
            self.splits.differences.append(self.snapshot.difference(self.vm))
            self.snapshot = None

    def _apply(self, at: int) -> None:
        event = self.events[at]
        self.vm.settle_limit(event.pid, event.name == "kvm_mmu_prepare_zap_page")
        if self.splits.take(at, event):
            return
        if event.name == "tracing_mark_write":
            self._marker(at, event)
        elif event.name in MMU_EVENTS or event.name == "kvm_page_fault":
            handler = getattr(self.inference, event.name, None)
            if handler is not None:
                handler(at, event)
            if event.name == "kvm_mmu_set_spte" and self.markers.dirty:
                self._mark_dirty(event)
        else:
            self._probe(at, event)

    def _mark_dirty(self, event: Event) -> None:
        """make_spte: a writable 4K SPTE of a logged slot."""
        gfn = written_gfn(event.text)
        if gfn is not None:
            self.markers.mark_dirty(gfn)

    def _probe(self, at: int, event: Event) -> None:
        value = fields(event.text)
        name, pid = event.name, event.pid
        if name == "kvm_unmap_hva_range":
            for first, last in self._gfns(*parse_hva_range(event.text)):
                self.vm.unmap_gfns(first, last)
        elif name == "kvm_age_hva":
            self._age(*parse_hva_range(event.text))
        elif name == "set_region":
            self.regions[pid] = value
        elif name == "commit_region":
            self._commit(pid, value["change"])
        elif name == "change_mmu_pages":
            self.vm.limit = (pid, value["goal"])
        elif name in ("slot_try_split", "try_split"):
            self.splits.open(pid)
            self.regions.setdefault(pid, {}).update(
                {key: value[key] for key in ("start", "end") if key in value}
            )
        elif name in ("v2_try_split_begin", "shadow_try_split", "tdp_try_split"):
            self.splits.begin_part(at, event, value["start"], value["end"], value["target_level"])
        elif name in ("slot_try_split_ret", "try_split_ret"):
            self.splits.close(event)
            if name == "try_split_ret":
                write_protect_chunk(self.vm, self.regions[pid]["start"], self.regions[pid]["end"])
        elif name == "slot_remove_write_access":
            self._remove_write_access(pid, value["start_level"])
        elif name == "slot_leaf_clear_dirty":
            self._leaf_clear_dirty(pid)
        elif name in ("zap_collapsible", "recover_huge"):
            slot = self._slot(pid)
            if slot is not None:
                self.inference.zap_collapsible(slot.base, slot.end)

    def _gfns(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """First and last gfn of each slot that maps a part of [start, end) of the host's addresses."""
        for slot in self.vm.slots.values():
            first, last = max(start, slot.hva), min(end, slot.hva + (slot.npages << 12)) - 1
            if slot.hva and first <= last:
                yield slot.base + ((first - slot.hva) >> 12), slot.base + ((last - slot.hva) >> 12)

    def _age(self, start: int, end: int) -> None:
        """Addresses that no slot is known to map may be those of any slot."""
        known = list(self._gfns(start, end))
        self.vm.aged |= not known
        for first, last in known:
            self.vm.age_gfns(first, last)

    def _slot(self, pid: int) -> Memslot | None:
        return self.vm.slots.get(self.regions.get(pid, {}).get("slot", -1))

    def _commit(self, pid: int, change: int) -> None:
        value = self.regions.get(pid)
        if value is None:
            return
        if change == DELETE:
            self.vm.slots.pop(value["slot"], None)
        else:
            self.vm.slots[value["slot"]] = Memslot(
                value["gpa"] >> 12, value["size"] >> 12, value["flags"], value.get("uaddr", 0)
            )

    def _remove_write_access(self, pid: int, start_level: int) -> None:
        slot = self._slot(pid)
        if slot is None:
            return
        for level in range(start_level, MAX_HUGEPAGE_LEVEL + 1):
            for head in self.vm.heads_in(slot, level):
                self.vm.write_protect(level, head, pt_protect=False)

    def _leaf_clear_dirty(self, pid: int) -> None:
        """kvm_mmu_slot_leaf_clear_dirty, the 4K pass of hosts with PML."""
        slot = self._slot(pid)
        if slot is not None:
            for gfn in self.vm.heads_in(slot, 1):
                self.vm.clear_dirty(gfn)

    def _marker(self, at: int, event: Event) -> None:
        if not self.probed:
            self.markers.apply(at, event)
        words = event.text.split()
        if words[:2] == ["lab:", "stat"] and self.stats.get(words[2]):
            self.splits.total["rmaps"] += 1
            self.snapshot = Snapshot(event, words[2], self.stats[words[2]], not self.kernel.with_read)

    def _check_rmaps(self, snapshot: Snapshot) -> None:
        if snapshot.equals(self.vm):
            self.splits.matched["rmaps"] += 1
            self.snapshot = None


class Vms:
    """All VMs of a recording: a VM is a tgid."""

    def __init__(self, events: Sequence[Event], info: dict[str, Any], kernel: Kernel | None = None) -> None:
        self.events = events
        links = neighbours(events)
        tdp = {event.tgid for event in events if event.name == "kvm_tdp_mmu_spte_changed"}
        self.kernel = kernel or detect(events)
        stats = info.get("mmu_rmaps_stat", {})
        self.machines = {
            tgid: Machine(events, links, tgid in tdp, self._layout(tgid), self.kernel, stats)
            for tgid in sorted({event.tgid for event in events})
        }

    def _layout(self, tgid: int) -> Layout:
        mine = (event for event in self.events if event.tgid == tgid)
        return detect_layout((spte for event in mine for spte in leaves(event)), self.kernel.with_read)

    def run(self) -> None:
        for at, event in enumerate(self.events):
            self.machines[event.tgid].apply(at)
        for machine in self.machines.values():
            machine.finish()


def leaves(event: Event) -> list[int]:
    """The leaf SPTEs of a line, of either MMU."""
    if event.name == "kvm_mmu_set_spte":
        set_spte = parse_set_spte(event.text)
        found = [(set_spte.spte, set_spte.level)]
    elif event.name == "kvm_tdp_mmu_spte_changed":
        change = parse_tdp_change(event.text)
        found = [(change.old, change.level), (change.new, change.level)]
    elif event.name == "kvm_mmu_split_huge_page":
        split = parse_split(event.text)
        found = [(split.spte, split.level)]
    else:
        return []
    return [spte for spte, level in found if is_leaf(spte, level)]
