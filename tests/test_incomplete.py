"""tools/incomplete.py: recordings that lack kinds of events, or begin late, are never called wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
