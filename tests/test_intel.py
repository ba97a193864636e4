"""Hosts with EPT: both layouts of SPTEs, PML, and what it makes of faults.

What is right is read from the traces' own lines, by other means than the engine's.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard

from replay.info import info_document
from replay.kernel import KernelVersion
from replay.mmu.kernel.spte import EPT, EPT_2026, LEGACY
from replay.mmu.results.rmap_histogram import columns_by
from replay.review.runs import Runs
from replay.run import Request, run_trace
from replay.trace.reader import read_trace
from replay.verdict.golden import read_golden

TRACES = Path(__file__).parents[1] / "traces"
RECORDED = TRACES / "recorded"
BY_HAND = sorted((TRACES / "by-hand").glob("*.txt"), key=lambda path: path.name)
NESTED = sorted(
    path.relative_to(RECORDED).as_posix().removesuffix(".txt.zst") for path in RECORDED.glob("intel-*/C*.zst")
)
AGED = "n10-aged-tracked"
PAGE_FAULT = re.compile(r"kvm_page_fault: .* address 0x(\w+) error_code 0x(\w+)")
SET_SPTE = re.compile(r"kvm_mmu_set_spte: gfn (\w+) spte \w+ \((....)\) level (\d) at (\w+)")
REQUESTED = re.compile(r"kvm_mmu_spte_requested: gfn (\w+) ")
SPLIT_DONE = re.compile(r"kvm_mmu_split_huge_page: gfn (\w+) .* level 2 errno 0")
SPLIT_LINE = re.compile(r"(kvm_mmu_split_huge_page: gfn \w+ spte )(\w+)( .* errno 0)")
QUALIFIED_WRITE = 2


def recording(name: str) -> Path:
    return RECORDED / f"{name}.txt.zst"


@cache
def lines_of(name: str) -> list[str]:
    return zstandard.decompress(recording(name).read_bytes()).decode().splitlines()


def document(trace: Path, policy: str = "auto", *settings: str) -> dict[str, Any]:
    return run_trace(str(trace), Request(policy=policy, expect="recorded", settings=settings)).document


def faults_after_splits(lines: list[str]) -> dict[str, int]:
    """The first fault on each SPTE of the tables that recorded splits made, by the access that it asked for.

    A fault that had to link a table is none of them: its huge page was split, but not by this root.
    """
    regions: set[int] = set()
    met: set[str] = set()
    found = {"read": 0, "write": 0}
    qualification, requested, linked = 0, -1, False
    for line in lines:
        if split := SPLIT_DONE.search(line):
            regions.add(int(split[1], 16) >> 9)
        elif fault := PAGE_FAULT.search(line):
            qualification, requested, linked = int(fault[2], 16), -1, False
        elif asked := REQUESTED.search(line):
            requested = int(asked[1], 16)
        elif "kvm_mmu_get_page" in line:
            linked = True
        elif spte := SET_SPTE.search(line):
            gfn, at = int(spte[1], 16), spte[4]
            if spte[3] != "1" or gfn >> 9 not in regions or at in met:
                continue
            met.add(at)
            if gfn == requested and not linked:
                found["write" if qualification & QUALIFIED_WRITE else "read"] += 1
    return found


def until_logging_goes_off(lines: list[str]) -> list[str]:
    """Up to the line that turns logging off: from there on huge pages come back."""
    on = next(i for i, line in enumerate(lines) if re.search(r"memslot id=1 .*flags=0x1", line))
    off = (i for i, line in enumerate(lines) if i > on and re.search(r"memslot id=1 .*flags=0x0", line))
    return lines[: next(off, len(lines))]


# -- faults: avoided, or for write protection -----------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["intel-6.1.176/C1-ept-2m", "intel-6.1.176/C2-ept-alias", "intel-7.3.4/C1-ept-2m"]
)
@pytest.mark.parametrize("policy", ["auto", "v2", "v2-alias", "linux-6.0", "linux-2026"])
@pytest.mark.parametrize("pml", ["auto", "on", "off"])
def test_writes_after_a_split_meet_write_protection(name: str, policy: str, pml: str, tmp_path: Path) -> None:
    """PML logs L1's addresses, not L2's: the nested SPTEs lose W with it as without it."""
    lines = until_logging_goes_off(lines_of(name))
    assert "slot_leaf_clear_dirty" in "".join(lines)
    true = faults_after_splits(lines)
    assert true["read"] == 0
    assert true["write"] > 0
    trace = tmp_path / "t.txt"
    trace.write_text("\n".join(lines) + "\n")
    faults = document(trace, policy, f"pml={pml}")["faults"]
    if policy != "v2" or "C2" not in name:  # v2 leaves aliases huge
        assert (faults["avoided"], faults["write_protected"]) == (0, true["write"])
    assert faults["avoided"] == 0


def test_c1_as_a_whole() -> None:
    for name in ("intel-6.1.176/C1-ept-2m", "intel-6.1.176/C1-ept-2m-noad", "intel-7.2.12/C1-ept-2m"):
        faults = {"avoided": 0, "write_protected": 72, "nonpresent": 0, "lazy_splits": 0}
        assert document(recording(name))["faults"] == faults


@pytest.mark.parametrize(
    "dropped",
    [
        "slot_leaf_clear_dirty:",  # that the other pass begins at 2M says the same
        r"(slot_\w+|set_region|commit_region|\w+_try_split\w*|flush_remote\w*|change_mmu_pages|recover_huge):",
    ],
)
def test_write_protection_is_known_without_the_probe(dropped: str, tmp_path: Path) -> None:
    name = "intel-7.3.4/C1-ept-2m"
    kept = [line for line in lines_of(name) if not re.search(rf": {dropped}", line)]
    assert len(kept) < len(lines_of(name))
    trace = tmp_path / "t.txt"
    trace.write_text("\n".join(kept) + "\n")
    assert document(trace)["faults"] == document(recording(name))["faults"]


def test_pml_spares_the_faults_of_l1s_own_pages() -> None:
    """tdp_mmu=N, recorded without PML: what it would have saved, but of pages that the host has read-only."""
    trace = recording("intel-6.1.176/A-legacy-2m")
    lines = lines_of("intel-6.1.176/A-legacy-2m")
    huge = [
        (int(found[1], 16) >> 9, found[2])
        for line in lines
        if (found := SET_SPTE.search(line)) and found[3] == "2"
    ]
    read_only = {region for region, access in huge if "w" not in access}
    assert read_only
    assert read_only < {region for region, _ in huge}
    without, with_pml = (document(trace, "v2", f"pml={pml}")["faults"] for pml in ("off", "on"))
    assert document(trace, "v2")["faults"] == without  # its own pass began at 4K
    assert without["avoided"] == 0
    assert with_pml["avoided"] + with_pml["write_protected"] == without["write_protected"]
    assert with_pml["write_protected"] == len(read_only)  # each is broken up by its first write
    merged = {pml: document(trace, "linux-6.0", f"pml={pml}")["faults"]["avoided"] for pml in ("on", "off")}
    assert merged == {"on": 0, "off": 0}  # which splits nothing there


def test_pml_means_nothing_without_ept() -> None:
    trace = recording("v2/C1-nested-2m")
    assert document(trace, "v2", "pml=on")["faults"] == document(trace, "v2", "pml=off")["faults"]


# -- by hand: one rule each ------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", BY_HAND, ids=lambda path: path.stem)
def test_a_rule_by_hand(trace: Path) -> None:
    expected = read_golden(f"{trace}.expected.json")
    run = run_trace(str(trace), Request(policy=expected.policy))
    assert run.comparison.source == "file"
    assert run.comparison.verdict == "match", run.comparison.reasons
    if trace.name.startswith("n"):
        recorded = run_trace(str(trace), Request(policy="auto", expect="recorded")).comparison
        assert (recorded.verdict, recorded.matched) == ("match", 2)


def test_collapsing_leaves_the_split_full() -> None:
    """The pages that were mapped small while logging was on are gone when it goes on again."""
    for name in ("collapse-no-hva", "collapse-1g-host-with-table"):
        totals = document(TRACES / "by-hand" / f"{name}.txt", "v2")["totals"]
        assert totals["sptes_left_nonpresent"] == totals["partial"] == 0
        assert totals["sptes_installed"] == 512 * totals["split"]


# -- what is compared --------------------------------------------------------------------------------------


def altered(lines: list[str], bit: int) -> str:
    """The trace with one bit of the first successful split line's SPTE turned over."""
    at = next(i for i, line in enumerate(lines) if SPLIT_LINE.search(line))
    changed = SPLIT_LINE.sub(lambda found: f"{found[1]}{int(found[2], 16) ^ 1 << bit:x}{found[3]}", lines[at])
    return "\n".join([*lines[:at], changed, *lines[at + 1 :]]) + "\n"


def verdict_of(text: str, trace: Path) -> str:
    trace.write_text(text)
    return run_trace(str(trace), Request(policy="auto", expect="recorded")).comparison.verdict


@pytest.mark.parametrize("name", ["n1-rwx", "n15-73-rwx"])
def test_a_recorded_spte_may_differ_in_a_and_d_only(name: str, tmp_path: Path) -> None:
    lines = (TRACES / "by-hand" / f"{name}.txt").read_text().splitlines()
    same = {bit for bit in range(64) if verdict_of(altered(lines, bit), tmp_path / "t.txt") == "match"}
    assert same == {8, 9}


def test_a_change_line_tells_even_these_of_the_tdp_mmu(tmp_path: Path) -> None:
    lines = lines_of("intel-6.18.15/A-tdp-2m-s")
    for bit in (8, 9, 57):
        assert verdict_of(altered(lines, bit), tmp_path / "t.txt") == "mismatch"


def test_only_aging_takes_permissions_away(tmp_path: Path) -> None:
    """As aging leaves it the line is accepted, as nothing leaves it it is not."""
    text = (TRACES / "by-hand" / f"{AGED}.txt").read_text()
    assert verdict_of(text, tmp_path / "t.txt") == "match"
    # R and X are gone and not saved
    assert (
        verdict_of(text.replace("spte 75000000a6008f0", "spte 61000000a6008f0"), tmp_path / "t.txt")
        == "mismatch"
    )


# -- which layout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trace", [*map(recording, NESTED), *(path for path in BY_HAND if path.name[0] == "n")]
)
def test_the_layout_is_found(trace: Path) -> None:
    new = "intel-7" in str(trace) or "-73-" in trace.name
    (vm,) = info_document(read_trace(str(trace)))["vms"] if "two-vms" not in trace.name else [{}]
    assert vm["spte_layout"] == ("ept-7.2" if new else "ept")
    if "noad" in trace.name:
        return
    assert vm["pml"] == (trace.suffix == ".zst" or trace.name.partition("-")[0] in ("n6", "n7", "n8", "n11"))


def test_a_host_without_ept() -> None:
    (vm,) = info_document(read_trace(str(recording("v2/C1-nested-2m"))))["vms"]
    assert (vm["spte_layout"], vm["pml"]) == ("legacy", None)


def test_info_shows_the_layout() -> None:
    trace = recording("intel-7.3.4/C1-ept-2m")
    command = [sys.executable, "-m", "replay", "info", str(trace)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "SPTEs of EPT from 7.2, PML" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("word", "layout", "kernel", "expected"),
    [
        ("fls", EPT, None, "fls"),
        ("ffs", EPT_2026, None, "ffs"),
        ("auto", EPT, None, "ffs"),
        ("auto", EPT_2026, None, "fls"),
        ("auto", LEGACY, None, "fls"),
        ("auto", LEGACY, KernelVersion(7, 1, 0), "ffs"),
        ("auto", LEGACY, KernelVersion(7, 2, 0), "fls"),
    ],
)
def test_columns_of_rmap_histograms(
    word: str, layout: int, kernel: KernelVersion | None, expected: str
) -> None:
    assert columns_by(word, layout, kernel) == expected


def test_rmap_histograms_follow_the_layout() -> None:
    for name, columns in (("intel-6.1.176/C1-ept-2m", "ffs"), ("intel-7.3.4/C1-ept-2m", "fls")):
        run = run_trace(str(recording(name)), Request(policy="auto", rmap_histogram=("end",)))
        assert {entry["columns_by"] for entry in run.document["rmap_histogram"]} == {columns}


# -- review -------------------------------------------------------------------------------------------------


def permissions(trace: Path) -> dict[str, Any]:
    from replay.review.access import permissions as answer

    return dict(answer(Runs(str(trace), Request(policy="linux-6.0"))).figures)


def test_review_of_permissions_reads_the_bits_of_the_layout() -> None:
    name = "intel-7.3.4/C6-ept-perm-nxhp"
    lines = [line for line in lines_of(name) if "huge_page: " in line or "l1 8-byte q0 direct" in line]
    without_x = [
        before.endswith(" new")
        for before, line in itertools.pairwise(lines)
        if (split := SPLIT_LINE.search(line))
        and not int(split[2], 16) & 4
        and re.search(r"direct \S\S\Sx", before)
    ]
    found = permissions(recording(name))
    assert 0 < sum(without_x) < len(without_x)
    assert found["not_executable"] == len(without_x)
    # an existing child gains, too, where collapsing has emptied it
    assert 512 * sum(without_x) <= found["children_that_gain_exec"] <= 512 * len(without_x)
    assert found["not_user"] == found["access_tracked"] == 0
    plain = permissions(recording("intel-7.3.4/C1-ept-2m"))
    assert (plain["differ"], plain["access_tracked"]) == (0, 0)


def test_review_sees_access_tracked_sptes() -> None:
    assert permissions(TRACES / "by-hand" / f"{AGED}.txt")["access_tracked"] == 1


# -- golden files -------------------------------------------------------------------------------------------


def test_a_golden_file_from_before_the_knob(tmp_path: Path) -> None:
    text = (TRACES / "by-hand" / "n1-rwx.txt.expected.json").read_text()
    old = tmp_path / "old.json"
    old.write_text(text.replace(',\n "pml": "auto"', ""))
    assert "pml" not in old.read_text()
    assert read_golden(old) == read_golden(TRACES / "by-hand" / "n1-rwx.txt.expected.json")
