"""Intel VMs of the synthetic KVM: what every trace of them must keep, and one test a rule."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from replay.errors import InputError
from replay.synth import write_trace
from tests.reference.machine import Vms
from tests.reference.parse import read_events
from tests.reference.spte import EPT_2022, EPT_2026
from tests.reference.through import run_through
from tests.scenarios import Table, intel_scenarios, make_trace
from tests.synth.checker import check_trace

LAYOUTS = {"2022": EPT_2022, "2026": EPT_2026}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(table=intel_scenarios())
def test_random_traces_are_consistent(table: Table) -> None:
    """By the text alone, and as the reference model reads it up to the first window and its layout."""
    with tempfile.TemporaryDirectory() as directory:
        trace = make_trace(table, Path(directory))
        assert check_trace(trace.read_text(), table["spte_layout"]) == []
        assert all(window.understood for window in run_through(trace, "v2")[:1])
        leaves = "kvm_mmu_set_spte" in trace.read_text()
        layouts = {machine.vm.layout for machine in Vms(list(read_events(trace)), {}).machines.values()}
        assert not leaves or LAYOUTS[table["spte_layout"]] in layouts


SCENARIO = """\
name = "intel"
description = "a VM and a nested guest on Intel"
cpu = "intel"
spte_layout = "2022"
step = [
STEPS
]

[[vm]]
pid = 10

[[vm.slot]]
id = 0
base_gfn = 0
npages = 0x400

[[vm.slot]]
id = 1
base_gfn = 0x40000
npages = 0x400
backing = "2m"

[[vm.root]]
name = "l1"
kind = "tdp"

[[vm.root]]
name = "with-ad"
kind = "nested"
ad = true
map = [
    { addr = 0x40000000, gfn = 0x40000, size = 0x200000, page = "2m", dirty = false },
    { addr = 0x40200000, gfn = 0x40200, size = 0x200000, page = "2m", access = "x" },
]

[[vm.root]]
name = "without-ad"
kind = "nested"
map = [
    { addr = 0x40000000, gfn = 0x40000, size = 0x200000, page = "2m" },
    { addr = 0x40200000, gfn = 0x40200, size = 0x200000 },
]
"""
PREFIX = re.compile(r".*\d: (?=\w+: )")


def touch(root: str, access: str, start: int = 0x40000000, size: int = 0x1000) -> str:
    return f'{{ do = "touch", root = "{root}", start = {start}, size = {size}, access = "{access}" }}'


def log(on: bool) -> str:
    return f'{{ do = "dirty_log", slot = 1, on = {str(on).lower()} }}'


def played(steps: list[str], directory: Path, **changes: str) -> list[str]:
    """The lines of a trace, without what stands before the name of the event."""
    text = SCENARIO.replace("STEPS", "\n".join(f"    {step}," for step in steps))
    for key, value in changes.items():
        text = re.sub(rf"^{key} = .*\n|\Z", "", text, flags=re.MULTILINE)
        text = text.replace("step = [", f"{key} = {value}\nstep = [", 1)
    scenario, trace = directory / "scenario.toml", directory / "trace.txt"
    scenario.write_text(text)
    write_trace(scenario, trace)
    found = trace.read_text()
    assert check_trace(found, "2026" if "2026" in changes.get("spte_layout", "") else "2022") == []
    return [PREFIX.sub("", line) for line in found.splitlines() if not line.startswith("#")]


def sptes(lines: list[str], gfn: str) -> list[str]:
    """The values that kvm_mmu_set_spte lines show of a gfn."""
    return [line.split()[4] for line in lines if line.startswith(f"kvm_mmu_set_spte: gfn {gfn} ")]


@pytest.mark.parametrize(
    ("layout", "read", "written", "role"),
    [
        ("2022", "2200001400009f5", "620000140000bf7", "wux !nxe ad"),
        ("2026", "a0200001400009f5", "a0a0000140000bf7", "rw-x !nxe ad"),
    ],
)
def test_clean_leaf_is_read_only_until_it_is_written(
    layout: str, read: str, written: str, role: str, tmp_path: Path
) -> None:
    steps = [touch("with-ad", "read"), touch("with-ad", "write"), touch("with-ad", "write")]
    lines = played(steps, tmp_path, spte_layout=f'"{layout}"')
    assert sptes(lines, "40000") == [read, written]
    assert [line.split()[2] for line in lines if line.startswith("kvm_mmu_set_dirty_bit")] == ["202000"]
    below_the_root = [line for line in lines if "get_page" in line and re.search(r" l[23] .* !nxe", line)]
    assert len(below_the_root) == 2
    assert all(line.endswith(f" 8-byte q0 {role} root 0 sync new") for line in below_the_root)


def test_access_of_a_page_below_follows_the_leaf(tmp_path: Path) -> None:
    """Under dirty logging a clean leaf that is read gives a child without W, the write another child."""
    steps = [log(True), touch("with-ad", "read"), touch("with-ad", "write")]
    lines = played(steps, tmp_path)
    got = [line for line in lines if "get_page: sp gen 0 gfn 40000 l1" in line]
    assert [line.split()[10] for line in got] == ["-ux", "wux"]


def test_execute_only(tmp_path: Path) -> None:
    lines = played([touch("with-ad", "exec", 0x40200000)], tmp_path)
    assert "pte 402003b4 level 2" in "\n".join(lines)
    assert sptes(lines, "40200") == ["2200001402009f4"]
    with pytest.raises(InputError, match="forbid to read gfn 0x40200"):
        played([touch("with-ad", "read", 0x40200000)], tmp_path)


@pytest.mark.parametrize(
    ("layout", "tracked", "used"),
    [
        ("2022", "750000140201870", "610000140201877"),
        ("2026", "90f0000140201a70", "90a0000140201b77"),
    ],
)
def test_prefetched_without_a_bits_is_access_tracked(
    layout: str, tracked: str, used: str, tmp_path: Path
) -> None:
    steps = [touch("without-ad", "write", 0x40200000), touch("without-ad", "read", 0x40201000)]
    lines = played(steps, tmp_path, spte_layout=f'"{layout}"')
    assert sptes(lines, "40201") == [tracked, used]
    assert [line.split()[-1] for line in lines if line.startswith("kvm_page_fault")] == ["0x182", "0x181"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("pml", "faults"), [("true", []), ("false", ["0x1aa"])])
def test_pml_logs_what_l1_writes(pml: str, faults: list[str], layout: str, tmp_path: Path) -> None:
    """4K SPTEs of the TDP MMU lose D and stay writable with PML, else they lose W."""
    again = touch("l1", "write", 0x100000)
    on = '{ do = "dirty_log", slot = 0, on = true }'
    lines = played([again, on, again], tmp_path, pml=pml, spte_layout=f'"{layout}"')
    assert codes_after_logging(lines) == faults
    changed = next(line for line in lines[lines_to_logging(lines) :] if "spte_changed" in line)
    *_, old, _, new = changed.split()
    lost = 1 << 9 if pml == "true" else 1 << 1
    assert int(old, 16) ^ int(new, 16) == lost


@pytest.mark.parametrize("pml", ["true", "false"])
def test_what_l2_writes_is_write_protected_always(pml: str, tmp_path: Path) -> None:
    again = touch("without-ad", "write", 0x40200000)
    assert codes_after_logging(played([again, log(True), again], tmp_path, pml=pml)) == ["0x1aa"]


def lines_to_logging(lines: list[str]) -> int:
    return next(at for at, line in enumerate(lines) if "flags=0x1" in line)


def codes_after_logging(lines: list[str]) -> list[str]:
    after = lines[lines_to_logging(lines) :]
    return [line.split()[-1] for line in after if line.startswith("kvm_page_fault")]


def test_bits_set_by_pml_are_cleared_from_the_log(tmp_path: Path) -> None:
    """A CLEAR after a write that did not fault clears D again; a CLEAR of a page not written does nothing."""
    on = '{ do = "dirty_log", slot = 0, on = true }'
    clear = '{ do = "clear_dirty_log", slot = 0, first_page = 0x100, num_pages = 64 }'
    again = touch("l1", "write", 0x100000)
    lines = played([again, on, again, clear, clear], tmp_path)
    marks = [at for at, line in enumerate(lines) if "clear_dirty_log" in line]
    assert [line.split()[0] for line in lines[marks[0] + 1 : marks[1]]] == ["kvm_tdp_mmu_spte_changed:"]
    assert [line.split()[2] for line in lines[marks[1] + 1 :]] == ["scenario"]


def test_tdp_lines_come_in_the_order_of_the_kernel(tmp_path: Path) -> None:
    """Logging off: up to 7.1 the parent's change, the page, its entries, all gone; since then the page, its
    entries, and the parent, which is a huge leaf again. A fault splits since then.
    """
    steps = [touch("l1", "write"), log(True), touch("l1", "write"), log(False)]
    for layout, order, splits in (("2022", "pz", 0), ("2026", "zp", 1)):
        lines = played(steps, tmp_path, spte_layout=f'"{layout}"')
        at = next(at for at, line in enumerate(lines) if line.startswith("kvm_mmu_prepare_zap"))
        parents = [n for n, line in enumerate(lines) if "gfn 40000 level 2" in line and n > at - 2]
        assert ("zp" if parents[0] > at else "pz") == order
        assert parents[0] == (at - 1 if order == "pz" else at + 513)
        assert lines[parents[0]].split()[-1] == ("5a0" if order == "pz" else "80a0000140000ff7")
        assert sum("kvm_mmu_split_huge_page" in line for line in lines) == splits


BAD = [
    ('cpu = "intel"', "", "spte_layout", 'needs cpu = "intel"'),
    ('spte_layout = "2022"', 'spte_layout = "2024"', "spte_layout", "'2024' is none of 2022, 2026"),
    ('spte_layout = "2022"', "pml = 1", "pml", "expected bool"),
    ('kind = "tdp"', 'kind = "tdp"\nad = true', "ad = true", "needs a nested root"),
    ('kind = "tdp"', 'kind = "shadow"', 'kind = "shadow"', "leave out cpu"),
    ("ad = true\n", "", "dirty = false", "have no D bit"),
    ('access = "x"', 'access = "wx"', 'access = "wx"', "none of r, rw, rx, rwx, x"),
]


@pytest.mark.parametrize(("old", "new", "place", "message"), BAD, ids=[row[3] for row in BAD])
def test_bad_scenario(old: str, new: str, place: str, message: str, tmp_path: Path) -> None:
    scenario = tmp_path / "bad.toml"
    text = SCENARIO.replace("STEPS", f"    {touch('l1', 'read')},")
    assert old in text
    bad = text.replace(old, new, 1)
    scenario.write_text(bad)
    line = next(number for number, row in enumerate(bad.splitlines(), 1) if place in row)
    with pytest.raises(InputError, match=re.escape(f":{line}: ")) as caught:
        write_trace(scenario, tmp_path / "trace.txt")
    assert message in str(caught.value)
