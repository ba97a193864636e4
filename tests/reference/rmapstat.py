"""debugfs mmu_rmaps_stat: how many rmap heads hold how many SPTEs."""

from __future__ import annotations

from .parse import Event
from .state import MAX_HUGEPAGE_LEVEL, Vm, align, pages_per

COLUMNS = 11


def histogram(vm: Vm, with_ffs: bool) -> list[list[int]]:
    """Heads by level and column; up to 6.12 the column is ffs(count), later fls(count)."""
    rows = []
    for level in range(1, MAX_HUGEPAGE_LEVEL + 1):
        row = [0] * COLUMNS
        for slot in vm.slots.values():
            row[0] += (align(slot.end - 1, level) - align(slot.base, level)) // pages_per(level) + 1
            for head in vm.heads_in(slot, level):
                count = len(vm.rmap.at(level, head))
                row[0] -= 1
                row[(count & -count).bit_length() if with_ffs else count.bit_length()] += 1
        rows.append(row)
    return rows


def parse_histogram(lines: list[str]) -> list[list[int]]:
    return [[int(word) for word in line.split(":")[1].split()] for line in lines if line.startswith("Level=")]


class Snapshot:
    """A pending comparison: the task reads the histogram between its marker and its own next line, others
    may act before.
    """

    def __init__(self, event: Event, label: str, lines: list[str], with_ffs: bool) -> None:
        self.event, self.label, self.with_ffs = event, label, with_ffs
        self.recorded = parse_histogram(lines)
        self.heads = sum(sum(row[1:]) for row in self.recorded)

    def equals(self, vm: Vm) -> bool:
        return len(vm.rmap.heads) == self.heads and histogram(vm, self.with_ffs) == self.recorded

    def difference(self, vm: Vm) -> str:
        now = histogram(vm, self.with_ffs)
        return f"line {self.event.line}: rmaps {self.label} recorded {self.recorded} predicted {now}"
