"""The descriptions of the scenarios, checked with the plain-Python reference model of v2 20/26."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.reference.machine import Machine, Vms
from tests.reference.parse import Event, read_events
from tests.reference.split_v2 import Environment, SplitV2

SYNTHETIC = Path(__file__).parents[2] / "traces" / "synthetic"
LOG_DIRTY_PAGES = 1
ALL_ONES = (1 << 64) - 1
HUGE_2M = 2


class Windows:
    """Plays a trace through the reference model and opens the windows that its markers ask for."""

    def __init__(self, path: Path) -> None:
        self.vms = Vms(list(read_events(path)), {})
        self.slots: dict[tuple[int, int], dict[str, int]] = {}
        self.dirty: dict[tuple[int, int], int] = {}
        self.initially_all_set = self.resched = self.limited = False
        self.found: list[tuple[int, Counter[str]]] = []
        for at, event in enumerate(self.vms.events):
            machine = self.vms.machines[event.tgid]
            machine.apply(at)
            if event.text.startswith("replay: "):
                self.marker(machine, event)
        self.notes = sum((machine.inference.notes for machine in self.vms.machines.values()), Counter[str]())

    def marker(self, machine: Machine, event: Event) -> None:
        word, *pairs = event.text.split()[1:]
        split_pairs = [pair.partition("=") for pair in pairs]
        keys = {key: int(value, 0) for key, _, value in split_pairs if value[:1].isdigit()}
        if word == "memslot":
            place = (event.tgid, keys["id"])
            before = self.slots.get(place, keys)
            self.slots[place] = keys
            if not self.limited:
                npages = sum(slot["npages"] for (tgid, _), slot in self.slots.items() if tgid == event.tgid)
                machine.vm.n_max = max(64, npages // 50)
            if keys["flags"] & ~before["flags"] & LOG_DIRTY_PAGES:
                self.dirty[place] = (1 << keys["npages"]) - 1
                if not self.initially_all_set:
                    self.split(machine, event, keys["base_gfn"], keys["base_gfn"] + keys["npages"])
        elif word == "clear_dirty_log":
            self.clear(machine, event, keys)
        elif word == "nr_mmu_pages":
            machine.vm.n_max = keys["n"]
            self.limited = True
        elif word == "manual_dirty_log_protect2":
            self.initially_all_set = bool(keys["arg"] & 2)
        elif word == "resched":
            self.resched = True

    def clear(self, machine: Machine, event: Event, keys: dict[str, int]) -> None:
        place = (event.tgid, keys["slot"])
        base = self.slots[place]["base_gfn"]
        seen = len(self.found)
        for page in range(keys["first_page"], keys["first_page"] + keys["num_pages"], 64):
            bits = self.dirty[place] >> page & keys.get("mask", ALL_ONES) & ALL_ONES
            self.dirty[place] &= ~(bits << page)
            if bits:
                first, last = (bits & -bits).bit_length() - 1, bits.bit_length() - 1
                self.split(machine, event, base + page + first, base + page + last)
        merged = sum((counts for _, counts in self.found[seen:]), Counter[str]())
        self.found[seen:] = [(event.tgid, merged)]

    def split(self, machine: Machine, event: Event, start: int, end: int) -> None:
        env = Environment()
        if self.resched:
            env.drops.add((start, HUGE_2M, 1))
            self.resched = False
        split = SplitV2(machine.vm, env, False)
        counts: Counter[str] = Counter()
        for step in split.walk(start, end, 1):
            counts[f"errno {step[4]}" if step[0] == "split" else step[0]] += 1
        counts["flush"] = split.flushes
        self.found.append((event.tgid, +counts))


def play(name: str) -> Windows:
    return Windows(SYNTHETIC / f"{name}.txt")


def numbers(windows: Windows, *names: str) -> list[tuple[int, ...]]:
    return [tuple(counts[name] for name in names) for _, counts in windows.found]


EXPECTED = {
    # errno 0, -28, -95, SPTEs left non-present, leaked pages, flushes: one row a window
    "full-split": [(4, 0, 0, 0, 0, 0)],
    "rule1-no-free-pages": [(2, 2, 0, 0, 0, 0)],
    "rule2-unsync": [(3, 0, 0, 0, 0, 0)],
    "rule3-existing-child": [(3, 0, 3, 0, 0, 0)],
    "rule4-occupied-rmap": [(3, 0, 0, 16, 0, 1)],
    "recursion-1g": [(513, 0, 0, 0, 0, 0)],
    "clear-dirty-log": [(1, 0, 0, 0, 0, 0), (0,) * 6, (0,) * 6, (1, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0)],
    "resched-drop": [(3, 0, 0, 24, 1, 1)],
    "two-vms": [(2, 0, 0, 0, 0, 0)],
    "tdp-only": [(0,) * 6, (0,) * 6],
    "direct-legacy": [(3, 0, 0, 0, 0, 0)],
    "zap-unmap": [(3, 0, 0, 0, 0, 0)],
    "what-if": [],
    "intel-clean-leaf": [(6, 0, 0, 1536, 0, 1)],
    "intel-pml": [(2, 0, 0, 0, 0, 0)],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_windows_do_what_the_description_says(name: str) -> None:
    shown = ("errno 0", "errno -28", "errno -95", "nonpresent", "leaked", "flush")
    assert numbers(play(name), *shown) == EXPECTED[name]


def test_what_if_dirty_logging_were_switched_on_at_the_end() -> None:
    windows = play("what-if")
    machine = windows.vms.machines[4200]
    windows.split(machine, windows.vms.events[-1], 0x40000, 0x40400)
    assert numbers(windows, "errno 0", "nonpresent", "flush") == [(4, 1024, 1)]


def test_window_belongs_to_the_vm_that_asked() -> None:
    assert [tgid for tgid, _ in play("two-vms").found] == [4300]


FAULTS_AFTER = ["full-split", "direct-legacy", "intel-pml"]
BEFORE_THE_WINDOW = [name for name in EXPECTED if name not in FAULTS_AFTER]


@pytest.mark.parametrize("name", BEFORE_THE_WINDOW)
def test_reference_model_understands_the_trace(name: str) -> None:
    assert play(name).notes == Counter()


@pytest.mark.parametrize("name", FAULTS_AFTER)
def test_fault_after_the_window_meets_the_page_of_the_split(name: str) -> None:
    assert "new page exists" in play(name).notes
