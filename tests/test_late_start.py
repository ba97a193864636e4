"""Traces that begin in the middle of a VM's life: lines show older state, and what follows is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replay.run import Request, run_trace
from tests.test_cli import trace_text
from tests.test_spaces import CREATE, FLAGS, SMM, clear, mapped, region, split

ROLE = "8-byte q0 direct wux nxe ad root 0 sync"
TDP_LINE = "kvm_tdp_mmu_spte_changed: as id 0 gfn 200 level 1 old_spte 0 new_spte 11604fe67"
LOG_ON = region(1, 1, FLAGS)
FIRST, SECOND = 0x40000, 0x40200
PROTECTED = 0xEE5
"""A huge SPTE after dirty logging was switched on over it."""


def run(tmp_path: Path, events: list[str], policy: str = "linux-6.0") -> Any:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(events))
    return run_trace(str(path), Request(policy=policy, expect="recorded"))


def huge(gfn: int, spte: int | None = None) -> list[str]:
    """The end of a nested fault whose root and tables are older than the trace."""
    value = spte or 0x100000EE7 + (gfn << 12)
    at = 0x12700B000 + 8 * (gfn >> 9 & 511)
    return [
        f"kvm_mmu_pagetable_walk: addr {gfn << 12:x} pferr 6 W|U",
        "kvm_mmu_paging_element: pte 202067 level 4",
        "kvm_mmu_paging_element: pte 205067 level 3",
        f"kvm_mmu_paging_element: pte {gfn << 12 | 0xE7:x} level 2",
        f"kvm_mmu_spte_requested: gfn {gfn:x} pfn {value >> 12:x} level 2",
        f"kvm_mmu_set_spte: gfn {gfn:x} spte {value:x} (rwxu) level 2 at {at:x}",
    ]


def split_line(gfn: int, errno: int, low_bits: int = 0xEE7) -> str:
    spte = 0x100000000 + (gfn << 12) + low_bits
    return f"kvm_mmu_split_huge_page: gfn {gfn:x} spte {spte:x} level 2 errno {errno}"


def page_of(gfn: int) -> str:
    return f"kvm_mmu_get_page: sp gen 0 gfn {gfn:x} l1 {ROLE} new"


def window(*lines: str) -> list[str]:
    bounds = "start=0x40000 end=0x40800 target_level=1"
    return [
        *LOG_ON,
        "slot_try_split: (f) target_level=1",
        f"shadow_try_split: (f) {bounds}",
        *lines,
        f"tdp_try_split: (f) {bounds}",
        "slot_try_split_ret: (f <- g)",
        *region(1, 0, FLAGS),
    ]


def outcomes(result: Any) -> list[tuple[int, str]]:
    rows = result.replay.outcomes.select(["gfn", "match"]).to_pylist()
    return [(row["gfn"], row["match"]) for row in rows]


def compared(result: Any) -> tuple[int | None, int | None]:
    return result.comparison.compared, result.comparison.recorded


def test_a_page_that_a_split_gets_shows_the_role_of_all(tmp_path: Path) -> None:
    """No line shows the role of older tables, until that of the first split's child does."""
    splits = [line for gfn in (FIRST, SECOND) for line in (page_of(gfn), split_line(gfn, 0))]
    found = run(tmp_path, [TDP_LINE, *huge(FIRST), *huge(SECOND), *window(*splits)])
    assert outcomes(found) == [(FIRST, "matched"), (SECOND, "matched")]
    assert (found.comparison.get_page.compared, found.comparison.get_page.recorded) == (1, 2)
    assert found.comparison.verdict == "partial"


def test_an_older_table_is_found_by_the_line_that_zaps_it(tmp_path: Path) -> None:
    """The role that its zap prints is its own, so that its huge pages are gone."""
    zap = "kvm_mmu_prepare_zap_page: sp gen 0 gfn 205 l2 8-byte q0 wux nxe ad root 0 sync"
    found = run(tmp_path, [TDP_LINE, *huge(FIRST), zap, *window()])
    assert found.replay.divergences.get("unknown_zaps", 0) == 0
    assert outcomes(found) == []


@pytest.mark.parametrize("policy", ["linux-6.0", "linux-2026"])
def test_a_split_line_shows_a_huge_page(tmp_path: Path, policy: str) -> None:
    """The first line is unknown, and shows the huge SPTE and the limit; the second is foreseen from that."""
    twice = [split_line(FIRST, -28), split_line(FIRST, -28, PROTECTED)]
    found = run(tmp_path, [TDP_LINE, *window(twice[0]), *window(twice[1])], policy)
    assert outcomes(found) == [(None, "unknown"), (FIRST, "matched")]
    assert compared(found) == (1, 2)


def test_a_refused_split_leaves_its_huge_page(tmp_path: Path) -> None:
    twice = [split_line(FIRST, -28), split_line(FIRST, -28, PROTECTED)]
    found = run(tmp_path, [TDP_LINE, *huge(FIRST), *window(twice[0]), *window(twice[1])])
    assert outcomes(found) == [(FIRST, "unknown"), (FIRST, "matched")]


def test_the_limit_is_no_longer_unknown(tmp_path: Path) -> None:
    """Once a split was refused for want of pages, others are, too."""
    refused = [split_line(gfn, -28) for gfn in (FIRST, SECOND)]
    found = run(tmp_path, [TDP_LINE, *huge(FIRST), *huge(SECOND), *window(*refused)])
    assert outcomes(found) == [(FIRST, "unknown"), (SECOND, "matched")]


def test_an_existing_child_of_an_older_split(tmp_path: Path) -> None:
    """v2 refuses where the child exists: the huge page stays, and is refused the next time."""
    twice = [split_line(FIRST, -95), split_line(FIRST, -95, PROTECTED)]
    found = run(tmp_path, [TDP_LINE, *huge(FIRST), *window(twice[0]), *window(twice[1])], "v2")
    assert outcomes(found) == [(FIRST, "unknown"), (FIRST, "matched")]


def test_available_pages_are_those_printed(tmp_path: Path) -> None:
    splits = []
    for number, gfn in enumerate((FIRST, SECOND)):
        prepare = f"v2_prepare: (f) gfn={gfn:#x} level=2 available={1000 - number}"
        splits += [prepare, page_of(gfn), split_line(gfn, 0)]
    found = run(tmp_path, [TDP_LINE, *huge(FIRST), *huge(SECOND), *v2_window(*splits)], "v2")
    probes = found.comparison.probes
    assert (probes.compared, probes.recorded, probes.matched) == (1, 2, 1)


def v2_window(*lines: str) -> list[str]:
    return [*LOG_ON, "slot_try_split: (f) target_level=1", *lines, "slot_try_split_ret: (f <- g)"]


# -- the TDP MMU ---------------------------------------------------------------------------------------

BOTH = [*region(0, 1, FLAGS), *region(SMM, 1, FLAGS)]
"""Dirty logging of both address spaces goes on, of slots that are older."""


def tdp_lines(gfn: int) -> list[str]:
    return split(0, gfn)


def test_a_huge_page_of_the_tdp_mmu_that_is_older(tmp_path: Path) -> None:
    """It is unknown; those behind it, which lines have shown, are compared."""
    known = mapped(0, SECOND)[-1]
    found = run(
        tmp_path, [known, *BOTH, *clear(FIRST, *tdp_lines(FIRST)), *clear(SECOND, *tdp_lines(SECOND))]
    )
    assert outcomes(found) == [(None, "unknown"), (SECOND, "matched")]
    line = found.comparison.compared_from
    assert found.document["expected"]["compared_from"] == line
    assert f"; from line {line:,} everything is compared" in found.comparison.reasons[-2]


def test_a_whole_slot_of_which_some_is_older(tmp_path: Path) -> None:
    """What is known of a window waits for its own line."""
    lines = [line.removeprefix("TDP ") for gfn in (FIRST, SECOND) for line in tdp_lines(gfn)]
    known = mapped(0, SECOND)[-1]
    whole = [
        *region(0, 1, FLAGS),
        "slot_try_split: (f) target_level=1",
        *lines,
        "slot_try_split_ret: (f <- g)",
    ]
    found = run(tmp_path, [known, *whole])
    assert outcomes(found) == [(None, "unknown"), (SECOND, "matched")]


@pytest.mark.parametrize(
    ("old", "new"),
    [("errno 0", "errno -12"), ("level 2 errno", "level 3 errno")],
)
def test_what_a_line_has_shown_is_no_older_state(tmp_path: Path, old: str, new: str) -> None:
    """A difference counts, however late the trace begins."""
    lines = [line.replace(old, new) if "split_huge" in line else line for line in tdp_lines(FIRST)]
    known = mapped(0, FIRST)[-1]
    found = run(tmp_path, [known, *BOTH, *clear(FIRST, *lines)])
    assert found.comparison.verdict == "mismatch"


def test_a_split_that_is_not_recorded(tmp_path: Path) -> None:
    """It counts where the window's own lines name its slot, or slots of both spaces are known."""
    known = mapped(0, FIRST)[-1]
    other = clear(SECOND, *tdp_lines(SECOND))
    whole = [*region(0, 1, FLAGS), "slot_try_split: (f) target_level=1", "slot_try_split_ret: (f <- g)"]
    assert run(tmp_path, [known, *whole, *other]).comparison.verdict == "mismatch"
    ranges = clear(FIRST) * 2
    assert run(tmp_path, [known, *BOTH, *ranges, *other]).comparison.verdict == "mismatch"
    one = run(tmp_path, [known, *region(0, 1, FLAGS), *ranges, *other])
    assert one.comparison.verdict == "unchecked"


def test_zapping_all_makes_the_state_whole(tmp_path: Path) -> None:
    zapped = "kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 1 used_pages 0"
    events = [TDP_LINE, *region(1, 0, CREATE), zapped, *huge(FIRST), *window(split_line(SECOND, 0))]
    path = tmp_path / "t.txt"
    path.write_text(trace_text(events))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "zap_all_fast" in text)
    found = run(tmp_path, events)
    assert list(found.document["expected"]["whole_from"].values()) == [line]
    whole = run(tmp_path, [event for event in events if event != zapped])
    assert whole.document["expected"]["whole_from"] == {}


TABLES = ("202 l3", "205 l2")
"""Those that a walk of ``huge`` reads."""


@pytest.mark.parametrize("older", [False, True])
def test_a_first_root_whose_memslots_are_older(older: bool, tmp_path: Path) -> None:
    """A new root follows when all was zapped: the caches of merged code may have been filled before."""
    root = "kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 wux nxe ad root 0 sync new"
    created = [] if older else region(1, 0, CREATE)
    splits = [page_of(FIRST), split_line(FIRST, 0)]
    *fault, set_spte = huge(FIRST)
    tables = [f"kvm_mmu_get_page: sp gen 0 gfn {gfn} 8-byte q0 wux nxe ad root 0 sync new" for gfn in TABLES]
    link = mapped(0, FIRST)[0]
    found = run(tmp_path, [*created, root, link, *fault, *tables, set_spte, *window(*splits)])
    assert (found.comparison.mismatched, found.comparison.unexpected) == ((0, 0) if older else (1, 1))
