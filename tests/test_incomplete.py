"""tools/incomplete.py: recordings that lack kinds of events, or begin late, are never called wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from replay.mmu.engine import trace_facts
from replay.mmu.lacking import lacking
from replay.run import Request, run_trace
from replay.schema import Kind
from replay.trace.reader import read_trace
from tests.test_cli import trace_text
from tests.test_spaces import FLAGS, mapped, region, split

PROJECT = Path(__file__).parents[1]
RECORDED = PROJECT / "traces" / "recorded"
DOCUMENTED = (
    "linux-6.1/C4-enospc",
    "linux-6.1.192/V-clear-1g",
    "intel-6.1.176/E7-ept-slotmove",
    "v2/C4-enospc",
    "v2/V-clear-1g-alias-spin",
)
TITLE = "| left out |"
CUT = {
    "linux-6.1/C1-nested-la57": 5,
    "linux-6.1/C4-enospc": 5,
    "linux-7.3.4/C1-nested-2m": 5,
    "intel-6.1.176/E7-ept-slotmove": 5,
    "intel-7.3.4/C6-ept-perm": 5,
    "v2/C1-nested-2m-enomem": 20,
    "v2/C4-enospc": 5,
    "v2/V-1g-alias-same": 9,
    "v2/V-clear-1g": 20,
}
"""Recordings, and at how many places each is cut."""
ONE_WINDOW = ("v2/V-1g-alias-same",)
"""Every cut is in the only window: what is left of it is of no window that is known."""


@pytest.fixture(scope="module")
def incomplete() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "tools"))
        return importlib.import_module("incomplete")


def trace(name: str) -> Path:
    return RECORDED / f"{name}.txt.zst"


def table(text: str) -> list[str]:
    """The lines of the table that begins with ``TITLE``."""
    lines = text.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(TITLE))
    end = next((n for n in range(begin, len(lines)) if not lines[n].startswith("|")), len(lines))
    return lines[begin:end]


def test_the_table_of_missing_kinds_is_what_the_command_prints() -> None:
    command = [sys.executable, PROJECT / "tools" / "incomplete.py", *(trace(name) for name in DOCUMENTED)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    assert (result.returncode, result.stderr) == (0, "")
    printed = table(result.stdout)
    assert printed == table((PROJECT / "docs" / "traces.md").read_text())
    assert len(printed) > 50
    assert "mismatch" not in result.stdout


@pytest.mark.parametrize("name", CUT)
def test_a_recording_without_its_beginning_is_never_called_wrong(
    incomplete: ModuleType, name: str, tmp_path: Path
) -> None:
    recorded = incomplete.Recorded(trace(name))
    total = incomplete.Tally()
    for events, tally in incomplete.run_cuts(recorded, CUT[name], tmp_path / "trace.txt"):
        assert not tally.verdicts["mismatch"], f"without the first {events} events"
        assert not tally.unaccounted, f"without the first {events} events"
        total += tally
    assert sum(total.verdicts.values()) == CUT[name]
    assert total.compared <= total.recorded
    assert bool(total.compared) == (name not in ONE_WINDOW)


def test_what_is_left_out(incomplete: ModuleType, tmp_path: Path) -> None:
    text = tmp_path / "trace.txt"
    page = "kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new"
    fault = "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000001000 error_code 0x14"
    lines = [
        "# tracer: nop",
        *(f"  vmm-1  [000] ..... 1.{n:06}: {page if n % 2 else fault}" for n in range(6)),
    ]
    text.write_text("".join(f"{line}\n" for line in lines))
    recorded = incomplete.Recorded(text)
    kinds = {kind.name: kind for kind in recorded.kinds}
    assert set(kinds) == {"GET_PAGE", "PAGE_FAULT"}
    without = recorded.without({kinds["PAGE_FAULT"]}).decode().splitlines()
    assert without == [lines[0], *(line for line in lines[1:] if "get_page" in line)]
    assert list(recorded.cuts(2)) == [2, 4]
    assert recorded.cut(4).decode().splitlines() == [lines[0], *lines[5:]]
    names = {missing.name: missing.kinds for missing in recorded.missing()}
    assert names["kvm_page_fault"] == names["only the events kvm_mmu_*"] == {kinds["PAGE_FAULT"]}
    assert "no probe" not in names


# -- kinds that other lines show to be missing ---------------------------------------------------------

WRITE_TO_WHAT_IS_MAPPED = "kvm_page_fault: vcpu 0 rip 0x1 address 0x{:016x} error_code 0x{:x}"
REQUESTED = "kvm_mmu_spte_requested: gfn 40000 pfn 15800 level 1"
FAST = (
    "fast_page_fault: vcpu 0 gva 40000000 error_code P|W sptep 0 "
    "old 0x15800e65 new 0x15800e67 spurious 0 fixed 1"
)


@pytest.mark.parametrize(
    ("lines", "is_missing"),
    [
        ([WRITE_TO_WHAT_IS_MAPPED.format(0x40000000, 0x100000007), REQUESTED], True),
        ([WRITE_TO_WHAT_IS_MAPPED.format(0x40000000, 0x18A), REQUESTED], True),
        ([WRITE_TO_WHAT_IS_MAPPED.format(0x40000000, 0x100000007), FAST, REQUESTED], False),
        ([WRITE_TO_WHAT_IS_MAPPED.format(0x40000000, 0x100000006), REQUESTED], False),
        ([WRITE_TO_WHAT_IS_MAPPED.format(0x40000000, 0x182), REQUESTED], False),
        (
            [
                WRITE_TO_WHAT_IS_MAPPED.format(0x40000000, 0x100000007),
                "kvm_mmu_pagetable_walk: addr 40000000 pferr 6 W|U",
                REQUESTED,
            ],
            False,
        ),
    ],
)
def test_a_write_fault_shows_that_fast_page_fault_is_missing(
    lines: list[str], is_missing: bool, tmp_path: Path
) -> None:
    """It is tried first, wherever a write meets what is mapped in a direct MMU."""
    path = tmp_path / "t.txt"
    path.write_text(trace_text(lines))
    assert (Kind.FAST_PAGE_FAULT in lacking(trace_facts(read_trace(str(path))), 0)) == is_missing


@pytest.mark.parametrize("apart", [False, True])
def test_splits_apart_show_that_probes_of_ranges_are_missing(apart: bool, tmp_path: Path) -> None:
    """A VMM's thread that clears the log splits long after the slot was changed."""
    pause = ["slot_remove_write_access: (f) start_level=2"]
    split_lines = [line.removeprefix("TDP ") for line in split(0, 0x40000)]
    path = tmp_path / "t.txt"
    path.write_text(
        trace_text([*mapped(0, 0x40000), *region(0, 1, FLAGS), *(pause if apart else []), *split_lines])
    )
    assert (Kind.TDP_TRY_SPLIT in lacking(trace_facts(read_trace(str(path))), 0)) == apart
    run = run_trace(str(path), Request(policy="linux-6.0", expect="recorded"))
    assert run.comparison.verdict == ("unchecked" if apart else "match")
