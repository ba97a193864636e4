"""Faults on the TDP MMU, counted from the text of a recording alone: none of the engine's code runs here.

Of each 4K page below a huge page that was split under dirty logging, the first fault after that counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

LINE = re.compile(r"-(\d+)\s+(?:\(.*?\) )?\[\d+\] \S+ +[\d.]+: (\w+): (.*)")
REGION = re.compile(r"slot=(\d+) flags=(\w+) gpa=(\w+) size=(\w+)")
CHANGE = re.compile(r"as id 0 gfn (\w+) level (\d) old_spte (\w+) new_spte (\w+)")
FAST = re.compile(r"gva (\w+) .* fixed 1")
PRESENT, HUGE = 1 << 11, 1 << 7


def is_huge(spte: int) -> bool:
    return spte & PRESENT != 0 and spte & HUGE != 0


class Counting:
    """What has been seen: where logging is on, where pages were split, and the faults counted."""

    def __init__(self) -> None:
        self.logged: set[int] = set()  # 2M regions
        self.split: set[int] = set()
        self.seen: set[int] = set()
        self.region: dict[str, tuple[int, ...]] = {}  # slot, flags, address and size by task, to be committed
        self.requested: dict[str, int] = {}  # gfn by task
        self.lazy: set[str] = set()  # tasks whose fault has split a page
        self.faults: Counter[str] = Counter()

    def count(self, gfn: int, what: str) -> None:
        if gfn >> 9 in self.split and gfn not in self.seen:
            self.seen.add(gfn)
            self.faults[what] += 1

    def memslot(self, slot: int, flags: int, address: int, size: int) -> None:
        if slot >> 16:
            return  # of SMM
        regions = set(range(address >> 21, (address + size - 1 >> 21) + 1))
        self.logged -= regions
        if flags & 1:
            self.logged |= regions
        else:
            self.split -= regions
            self.seen = {gfn for gfn in self.seen if gfn >> 9 not in regions}

    def change(self, task: str, gfn: int, level: int, old: int, new: int) -> None:
        requested = self.requested.get(task, -1)
        inside = requested >= 0 and (requested ^ gfn) >> 9 * (level - 1) == 0
        if level == 1 and new & PRESENT and inside:
            if task in self.lazy:
                self.count(gfn, "lazy_splits")
            else:
                self.count(gfn, "write_protected" if old & PRESENT else "nonpresent")
        elif level > 1 and is_huge(old) and not is_huge(new) and (inside or new & PRESENT):
            regions = set(range(gfn >> 9, (gfn >> 9) + (1 << 9 * (level - 2)))) & self.logged
            self.split |= regions
            if inside and regions:
                self.lazy.add(task)


def recorded_faults(lines: Iterable[str]) -> dict[str, int]:
    """The faults that the recorded kernel took, in the words of ``tdp.faults``; it avoided none of them."""
    seen = Counting()
    for line in lines:
        found = LINE.search(line)
        if found is None:
            continue
        task, name, text = found.groups()
        if name == "set_region" and (region := REGION.search(text)):
            seen.region[task] = int(region[1]), *(int(number, 16) for number in region.groups()[1:])
        elif name == "commit_region" and task in seen.region:
            seen.memslot(*seen.region.pop(task))
        elif name in ("kvm_page_fault", "kvm_mmu_set_spte"):
            seen.requested.pop(task, None)
            seen.lazy.discard(task)
        elif name == "kvm_mmu_spte_requested":
            seen.requested[task] = int(text.split()[1], 16)
        elif name == "kvm_tdp_mmu_spte_changed" and (change := CHANGE.match(text)):
            gfn, level, old, new = change.groups()
            seen.change(task, int(gfn, 16), int(level), int(old, 16), int(new, 16))
        elif name == "fast_page_fault" and (fixed := FAST.search(text)):
            seen.count(int(fixed[1], 16) >> 12, "write_protected")
    return {word: seen.faults[word] for word in ("avoided", "write_protected", "nonpresent", "lazy_splits")}
