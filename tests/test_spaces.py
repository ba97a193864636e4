"""Address spaces: windows of SMM's slots, and those of ranges that slots of both hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replay.run import Request, run_trace
from tests.test_cli import EVENTS, ROLE, SPLIT_LINE, trace_text

CREATE, FLAGS = 0, 3
SMM = 65536
SPTE, TABLE = 0x10C600EE7, 0x11E778827


def region(slot: int, flags: int, change: int, gpa: int = 0x40000000, size: int = 0x800000) -> list[str]:
    return [
        f"set_region: (f) slot={slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} uaddr=0x7f0000000000",
        f"commit_region: (f) change={change}",
    ]


def clear(gfn: int, *lines: str, tdp: bool = True) -> list[str]:
    """The probes of one range of KVM_CLEAR_DIRTY_LOG, with what its parts leave."""
    bounds = f"start={gfn:#x} end={gfn + 64:#x} target_level=1"
    shadow = [line for line in lines if "tdp_mmu" not in line and not line.startswith("TDP ")]
    rest = [line.removeprefix("TDP ") for line in lines if line not in shadow]
    parts = [f"shadow_try_split: (f) {bounds}", *shadow]
    return [*parts, f"tdp_try_split: (f) {bounds}", *rest] if tdp else parts


def mapped(space: int, gfn: int) -> list[str]:
    """A huge page that the TDP MMU maps in an address space."""
    link = "kvm_tdp_mmu_spte_changed: as id {} gfn {:x} level {} old_spte 0 new_spte {:x}"
    return [
        link.format(space, 0, 4, TABLE),
        link.format(space, 0x40000, 3, TABLE + 0x1000),
        link.format(space, gfn, 2, SPTE),
    ]


def split(space: int, gfn: int) -> list[str]:
    return [
        f"TDP kvm_mmu_get_page: sp gen 0 gfn {gfn:x} l1 {ROLE}",
        f"kvm_tdp_mmu_spte_changed: as id {space} gfn {gfn:x} level 2 old_spte {SPTE:x} new_spte {TABLE:x}",
        f"TDP kvm_mmu_split_huge_page: gfn {gfn:x} spte {SPTE:x} level 2 errno 0",
    ]


def run(tmp_path: Path, events: list[str], **options: Any) -> Any:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(events))
    return run_trace(str(path), Request(policy=options.pop("policy", "linux-6.0"), **options))


ROOT = f"kvm_mmu_get_page: sp gen 0 gfn 0 l4 {ROLE}"
BOTH = [
    "tracing_mark_write: replay: vm_create vm=guest pid=157",
    ROOT,
    *region(0, 0, CREATE),
    *region(SMM, 0, CREATE),
]
LOG = [*region(0, 1, FLAGS), *region(SMM, 1, FLAGS)]


def slots(result: Any) -> list[int]:
    return [window["slot"] for window in result.document["windows"]]


def test_lines_of_the_tdp_mmu_tell_the_space(tmp_path: Path) -> None:
    huge = [*mapped(0, 0x40000), *mapped(1, 0x40200)]
    found = run(
        tmp_path,
        [*BOTH, *huge, *LOG, *clear(0x40000, *split(0, 0x40000)), *clear(0x40200, *split(1, 0x40200))],
    )
    assert slots(found) == [0, SMM]
    assert (found.comparison.matched, found.comparison.verdict) == (2, "match")


@pytest.mark.parametrize("first", [0, 1])
def test_the_same_range_of_both(tmp_path: Path, first: int) -> None:
    """What the other space has to be split is not missing from the window of this one."""
    huge = [*mapped(0, 0x40000), *mapped(1, 0x40000)]
    windows = [clear(0x40000, *split(space, 0x40000)) for space in (first, 1 - first)]
    found = run(tmp_path, [*BOTH, *huge, *LOG, *windows[0], *windows[1]])
    assert slots(found) == [SMM * first, SMM * (1 - first)]
    assert (found.comparison.matched, found.comparison.verdict) == (2, "match")


def test_a_window_without_lines_is_that_of_smm(tmp_path: Path) -> None:
    empty, full = clear(0x40000), clear(0x40000, *split(0, 0x40000))
    for windows, expected in (([*empty, *full], [SMM, 0]), ([*full, *empty], [0, 0])):
        found = run(tmp_path, [*BOTH, *mapped(0, 0x40000), *LOG, *windows])
        assert slots(found) == expected
        assert (found.comparison.matched, found.comparison.verdict) == (1, "match")


def test_but_not_twice(tmp_path: Path) -> None:
    """One of two windows of a range is the normal space's: it lacks the split."""
    windows = clear(0x40000) * 2 + clear(0x40200, *split(0, 0x40200))
    found = run(tmp_path, [*BOTH, *mapped(0, 0x40000), mapped(0, 0x40200)[-1], *LOG, *windows])
    assert slots(found)[:2] == [SMM, 0]
    assert found.comparison.verdict == "mismatch"


def test_a_range_that_one_slot_alone_holds_lacks_its_split(tmp_path: Path) -> None:
    only = [
        *BOTH[:2],
        *region(0, 0, CREATE),
        *mapped(0, 0x40000),
        mapped(0, 0x40200)[-1],
        *region(0, 1, FLAGS),
    ]
    found = run(tmp_path, [*only, *clear(0x40000), *clear(0x40200, *split(0, 0x40200))])
    assert found.comparison.verdict == "mismatch"


def test_rmaps_of_smm_slots_are_empty(tmp_path: Path) -> None:
    """Markers name the slot: that of SMM has nothing to split, and the normal one still has."""
    events = [event for event in EVENTS if "memslot" not in event]
    places = [
        f"tracing_mark_write: replay: memslot id={slot} base_gfn=0x40000 npages=0x8000 flags="
        for slot in (1, SMM)
    ]
    logged = [
        *events[:1],
        *(place + "0x0" for place in places),
        *events[1:-2],
        places[1] + "0x1",
        places[0] + "0x1",
    ]
    found = run(tmp_path, [*logged, *events[-2:]], policy="v2")
    attempts = [(window["slot"], window["attempts"]) for window in found.document["windows"]]
    assert (attempts, ROLE in events[-2], events[-1]) == ([(SMM, 0), (1, 1)], True, SPLIT_LINE)
