"""Faults on the TDP MMU under another policy: what one recording predicts is what the other recorded.

The same guest ran with and without eager page splitting; of each recording, its own text is counted.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard

from replay.report.console import console
from replay.report.side_by_side import print_side_by_side
from replay.run import Request, run_trace
from tests.tdp_faults import recorded_faults
from tests.test_spaces import CREATE, FLAGS, ROOT, SPTE, TABLE, clear, mapped, region, run

RECORDED = Path(__file__).parents[1] / "traces" / "recorded"
SPLIT, NOT_SPLIT = "linux-6.1/A-tdp-2m-on", "linux-6.1/A-tdp-2m-nosplit"
NAMES = sorted(str(path.relative_to(RECORDED))[: -len(".txt.zst")] for path in RECORDED.glob("*/A-tdp-*.zst"))
GFN = 0x40000
WORDS = ("avoided", "write_protected", "nonpresent", "lazy_splits")


@cache
def document(name: str, policy: str) -> dict[str, Any]:
    trace = str(RECORDED / f"{name}.txt.zst")
    return run_trace(trace, Request(policy=policy, expect="recorded")).document


@cache
def recorded(name: str) -> dict[str, int]:
    with zstandard.open(RECORDED / f"{name}.txt.zst", "rt") as lines:
        return recorded_faults(lines)


# -- recordings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_own_policy_takes_the_recorded_faults(name: str) -> None:
    policy = "off" if name == NOT_SPLIT else "linux-6.0"
    assert document(name, policy)["tdp"]["faults"] == recorded(name)


def test_off_predicts_the_faults_of_the_twin() -> None:
    """Before 6.2 a fault zaps the huge page: 64 do, and each other page that is written faults by itself."""
    assert recorded(NOT_SPLIT) == {"avoided": 0, "write_protected": 0, "nonpresent": 598, "lazy_splits": 64}
    assert document(SPLIT, "off:fault_split=zap")["tdp"]["faults"] == recorded(NOT_SPLIT)
    assert document(SPLIT, "off")["tdp"]["huge_sptes"] == 0  # each was written


def test_splits_predict_the_faults_of_the_twin() -> None:
    assert recorded(SPLIT) == {"avoided": 0, "write_protected": 662, "nonpresent": 0, "lazy_splits": 0}
    assert document(NOT_SPLIT, "linux-6.0")["tdp"]["faults"] == recorded(SPLIT)
    # both rounds of logging: the huge pages are there again for the second
    assert document(NOT_SPLIT, "linux-6.0")["tdp"]["split"] == 128


def test_since_6_2_a_fault_splits_the_whole_page() -> None:
    assert document("linux-6.18.15/A-tdp-2m", "off")["tdp"]["faults"] == {
        "avoided": 0,
        "write_protected": 598,
        "nonpresent": 0,
        "lazy_splits": 64,
    }


def test_the_shadow_mmu_has_figures_of_its_own() -> None:
    assert not any(document(SPLIT, "off")["faults"].values())
    nested = document("linux-6.1/C1-nested-2m", "off")
    assert nested["faults"]["lazy_splits"] == 64
    assert not any(nested["tdp"]["faults"].values())


def test_terminal_shows_them() -> None:
    text = io.StringIO()
    out = console(text)
    print_side_by_side(out, [document(NOT_SPLIT, policy) for policy in ("off", "linux-6.0")])
    rows = [line.split() for line in text.getvalue().splitlines() if line.startswith("TDP MMU: faults")]
    title = ["TDP", "MMU:", "faults", "that", "split", "a", "huge", "page"]
    assert [*title, "64", "0"] in rows
    assert sorted(row[-2:] for row in rows) == [["0", "662"], ["598", "0"], ["64", "0"]]


# -- by hand -------------------------------------------------------------------------------------------

READ, WRITE = 0x100000005, 0x100000007
BEGIN = ["tracing_mark_write: replay: vm_create vm=guest pid=157", ROOT, *region(0, 0, CREATE)]
MAPPED = [*BEGIN, *mapped(0, GFN)]
ON, OFF = region(0, 1, FLAGS), region(0, 0, FLAGS)
PROTECTED = SPTE & ~2
INITIALLY_SET = ["tracing_mark_write: replay: manual_dirty_log_protect2 arg=3"]


def changed(gfn: int, level: int, old: int, new: int) -> str:
    return f"kvm_tdp_mmu_spte_changed: as id 0 gfn {gfn:x} level {level} old_spte {old:x} new_spte {new:x}"


def protect() -> list[str]:
    return [changed(GFN, 2, SPTE, PROTECTED)]


def fault(gfn: int, code: int, *changes: str) -> list[str]:
    begun = f"kvm_page_fault: vcpu 0 rip 0x1 address {gfn << 12:#018x} error_code {code:#x}"
    requested = f"kvm_mmu_spte_requested: gfn {gfn:x} pfn {small(gfn) >> 12:x} level 1"
    done = f"kvm_mmu_set_spte: gfn {gfn:x} spte {small(gfn):x} (rwxu) level 1 at {TABLE & ~0xFFF:x}"
    return [begun, requested, *changes, done]


def small(gfn: int) -> int:
    return (SPTE & ~0x80) + (gfn - GFN << 12)


def zapping(gfn: int) -> list[str]:
    """The first write below a huge page, as kernels before 6.2 handle it."""
    zap, link = changed(GFN, 2, PROTECTED, 0x5A0), changed(GFN, 2, 0, TABLE + 0x2000)
    return fault(gfn, WRITE, zap, link, changed(gfn, 1, 0, small(gfn)))


def missing(gfn: int, code: int = WRITE) -> list[str]:
    return fault(gfn, code, changed(gfn, 1, 0, small(gfn)))


def faults(tmp_path: Path, events: list[str], policy: str = "linux-6.0") -> tuple[int, ...]:
    counted = run(tmp_path, events, policy=policy, expect="none").document["tdp"]["faults"]
    assert tuple(counted) == WORDS
    return tuple(counted.values())


def test_reads_of_pages_that_a_fault_left_out_are_avoided(tmp_path: Path) -> None:
    events = [*MAPPED, *ON, *protect(), *zapping(GFN + 5), *missing(GFN + 6, READ), *missing(GFN + 7)]
    assert faults(tmp_path, events) == (1, 2, 0, 0)
    assert faults(tmp_path, events, "off") == (0, 0, 2, 1)
    # the recorded faults show how this kernel does it; asked for the other way, reads are no faults
    assert faults(tmp_path, events, "off:fault_split=split") == (1, 1, 0, 1)


def test_only_the_first_fault_of_a_page_counts(tmp_path: Path) -> None:
    values = f"old {small(GFN + 5) & ~2:#x} new {small(GFN + 5):x} spurious 0 fixed 1"
    again = f"fast_page_fault: vcpu 0 gva {GFN + 5 << 12:x} error_code P|W|U sptep 0000000054 {values}"
    events = [*MAPPED, *ON, *protect(), *zapping(GFN + 5), again, again]
    assert faults(tmp_path, events) == (0, 1, 0, 0)
    assert faults(tmp_path, events, "off") == (0, 0, 0, 1)


def test_nothing_counts_once_logging_is_off(tmp_path: Path) -> None:
    events = [*MAPPED, *ON, *protect(), *zapping(GFN + 5), *OFF, *missing(GFN + 6)]
    assert faults(tmp_path, events) == (0, 1, 0, 0)
    assert faults(tmp_path, events, "off") == (0, 0, 0, 1)


def test_pages_that_the_host_takes_away_fault_under_any_policy(tmp_path: Path) -> None:
    gone = [*zapping(GFN + 5), *missing(GFN + 6), changed(GFN + 6, 1, small(GFN + 6), 0), *missing(GFN + 6)]
    assert faults(tmp_path, [*MAPPED, *ON, *protect(), *gone]) == (0, 2, 0, 0)
    # the whole huge page, so that nothing is left of what the split had made
    whole = [changed(GFN, 2, PROTECTED, 0), changed(GFN, 2, 0, TABLE + 0x2000), *missing(GFN + 6)]
    assert faults(tmp_path, [*MAPPED, *ON, *protect(), *whole]) == (0, 0, 0, 0)


def test_pages_whose_word_is_not_cleared_yet_do_not_fault(tmp_path: Path) -> None:
    """Initially all set: the huge page is protected with the first word, of its split only that word is."""
    cleared = [*clear(GFN), "tracing_mark_write: lab: done"]
    events = [*INITIALLY_SET, *MAPPED, *ON, *cleared, *protect(), *zapping(GFN + 5), *missing(GFN + 64)]
    assert faults(tmp_path, events) == (1, 1, 0, 0)
    assert faults(tmp_path, events, "off") == (0, 0, 1, 1)


def test_a_page_split_for_another_reason_is_not_followed(tmp_path: Path) -> None:
    """A huge page that may be written is not split for dirty logging, but for an executable page."""
    split = fault(
        GFN + 5, WRITE, changed(GFN, 2, SPTE, TABLE + 0x2000), changed(GFN + 5, 1, 0, small(GFN + 5))
    )
    assert faults(tmp_path, [*MAPPED, *split, *missing(GFN + 6)], "off") == (0, 0, 0, 1)


GIB = [
    f"kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 4 old_spte 0 new_spte {TABLE:x}",
    changed(GFN, 3, 0, 0x1400008E7),
]
"""A 1G page."""


def gib_protected() -> list[str]:
    return [changed(GFN, 3, 0x1400008E7, 0x1400008E5)]


def test_a_1g_page_is_split_at_both_levels(tmp_path: Path) -> None:
    first = fault(
        GFN + 5,
        WRITE,
        changed(GFN, 3, 0x1400008E5, 0x5A0),
        changed(GFN, 3, 0, TABLE + 0x1000),
        changed(GFN, 2, 0, TABLE + 0x2000),
        changed(GFN + 5, 1, 0, small(GFN + 5)),
    )
    whole = [*region(0, 0, CREATE, size=0x40000000), *GIB, *region(0, 1, FLAGS, size=0x40000000)]
    events = [*BEGIN[:2], *whole, *gib_protected(), *first]
    assert faults(tmp_path, events) == (0, 1, 0, 0)
    result = run(tmp_path, events, expect="none").document["tdp"]
    assert (result["split"], result["huge_sptes"]) == (513, 0)
