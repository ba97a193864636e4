"""Rules of Intel in the reference model, one small trace or value each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reference.machine import Machine, Vms
from tests.reference.parse import ACC_EXEC, ACC_USER, Event, read_events
from tests.reference.run import compare
from tests.reference.spte import EPT_2022, EPT_2026, LEGACY, Layout, detect_layout
from tests.reference.through import run_through

TRACES = Path(__file__).parent / "traces"
OLD, NEW = "old", "new"
ON = "tracing_mark_write: replay: memslot id=1 base_gfn=0x40000 npages=0x4000 flags=0x1 hva=0x7f0000000000"
PAGE = "sp gen 0 gfn {gfn} 8-byte q0{role} {nx}nxe {ad}ad root 0 sync new"


def page(gfn: str, role: str, nx: str = "!", ad: str = "!") -> str:
    return "kvm_mmu_get_page: " + PAGE.format(gfn=gfn, role=role, nx=nx, ad=ad)


def lines(layout: str, gpte: str, spte: str, code: str, walk: str, ad: str = "!") -> list[str]:
    """A VM whose own memory is mapped by the TDP MMU, and one access of a nested guest through a 2M entry."""
    all_access, table, upper = (" wux", " wux", "7") if layout == OLD else (" rwux", " rwux", "407")
    tdp = "600000002b00b77" if layout == OLD else "80a0000002b00f77"
    links = ("10000907", "10001907", "10002907")
    if layout == NEW:
        links = ("8000000010000d07", "8000000010001d07", "8000000010002d07")
    none = "0" if layout == OLD else "8000000000000000"
    direct = " direct" + all_access
    changed = "kvm_tdp_mmu_spte_changed: as id 0 gfn"
    return [
        "tracing_mark_write: replay: memslot id=0 base_gfn=0x0 npages=0x6000 flags=0x0",
        ON.replace("flags=0x1", "flags=0x0"),
        page("0 l4", direct, "", ""),
        "kvm_page_fault: vcpu 0 rip 0x100050 address 0x0000000000201000 error_code 0x182",
        "kvm_mmu_spte_requested: gfn 201 pfn 2b00 level 1",
        page("0 l3", direct, "", ""),
        f"{changed} 0 level 4 old_spte {none} new_spte {links[0]}",
        page("0 l2", direct, "", ""),
        f"{changed} 0 level 3 old_spte {none} new_spte {links[1]}",
        page("200 l1", direct, "", ""),
        f"{changed} 200 level 2 old_spte {none} new_spte {links[2]}",
        f"{changed} 201 level 1 old_spte {none} new_spte {tdp}",
        f"kvm_mmu_set_spte: gfn 201 spte {tdp} (rwxu) level 1 at 10002008",
        page("201 l4", all_access, ad=ad),
        f"kvm_page_fault: vcpu 0 rip 0x100050 address 0x0000000040000000 error_code {code}",
        f"kvm_mmu_pagetable_walk: addr 40000000 pferr {walk}",
        f"kvm_mmu_paging_element: pte 202{upper:>03} level 4",
        f"kvm_mmu_paging_element: pte 205{upper:>03} level 3",
        f"kvm_mmu_paging_element: pte {gpte} level 2",
        page("202 l3", table, ad=ad),
        page("205 l2", table, ad=ad),
        "kvm_mmu_spte_requested: gfn 40000 pfn a600 level 2",
        f"kvm_mmu_set_spte: gfn 40000 spte {spte} (rwxu) level 2 at 13dd2000",
    ]


def split(spte: str, child: str, ad: str = "!") -> list[str]:
    """The window of dirty logging, as a merged kernel shows it."""
    attempt = f"kvm_mmu_split_huge_page: gfn 40000 spte {spte} level 2 errno"
    made = page("40000 l1", f" direct {child}", ad=ad)
    return [ON, f"{attempt} -11", made, f"{attempt} 0", "tracing_mark_write: replay: get_dirty_log slot=1"]


def write(texts: list[str], path: Path) -> Path:
    start = "             vmm-200     (    200) [000] ...1.     1."
    path.write_text("".join(f"{start}{at:06}: {text}\n" for at, text in enumerate(texts)))
    return path


def machine_of(texts: list[str]) -> Machine:
    """The one VM after these lines."""
    events = [Event(at, 200, 200, at / 1e6, *text.split(": ", 1)) for at, text in enumerate(texts)]
    vms = Vms(events, {})
    vms.run()
    return vms.machines[200]


READ, WRITE = ("0x181", "4 U"), ("0x182", "2 W")
GUEST_ACCESS = {
    "rwx": (OLD, "400000b7", "61000000a6008f7", WRITE, "!", "wux"),
    "execute-only": (OLD, "400000b4", "21000000a6008f4", ("0x184", "10 F"), "!", "--x"),
    "read-only": (OLD, "400000b1", "21000000a6008f1", READ, "!", "-u-"),
    "not executable": (OLD, "400000b3", "61000000a6008f3", WRITE, "!", "wu-"),
    "nx_huge_pages": (OLD, "400000b7", "61000000a6008f3", WRITE, "!", "wux"),
    "host maps read-only": (OLD, "400000b1", "10000000a6008f1", READ, "!", "-u-"),
    "clean leaf is read": (OLD, "400001b7", "22000000a6009f5", READ, "", "-ux"),
    "dirty leaf is read": (OLD, "400003b7", "62000000a600bf7", READ, "", "wux"),
    "clean leaf is written": (OLD, "400001b7", "62000000a600bf7", WRITE, "", "wux"),
    "clean leaf without A/D": (OLD, "400001b7", "61000000a6008f7", READ, "!", "wux"),
    "new: rwx": (NEW, "400000b7", "90a000000a600bf7", WRITE, "!", "rw-x"),
    "new: user may execute": (NEW, "400004b3", "90a000000a600ff3", WRITE, "!", "rwu-"),
    "new: everything": (NEW, "400004b7", "90a000000a600ff7", WRITE, "!", "rwux"),
    "new: execute-only": (NEW, "400000b4", "902000000a6009f4", ("0x184", "10 F"), "!", "---x"),
    "new: host maps read-only": (NEW, "400000b1", "900000000a6009f1", READ, "!", "r---"),
    "new: clean leaf is read": (NEW, "400001b7", "a02000000a6009f5", READ, "", "r--x"),
}


@pytest.mark.parametrize("name", GUEST_ACCESS)
def test_child_has_the_access_of_guest_ept(name: str, tmp_path: Path) -> None:
    layout, gpte, spte, (code, walk), ad, child = GUEST_ACCESS[name]
    texts = lines(layout, gpte, spte, code, walk, ad) + split(spte, child, ad)
    _, total, matched, differences = compare(write(texts, tmp_path / "trace.txt"), {})
    assert differences == []
    assert +total == +matched == {"split": 2, "get_page": 1}


def test_another_access_differs(tmp_path: Path) -> None:
    texts = lines(OLD, "400000b7", "61000000a6008f7", *WRITE) + split("61000000a6008f7", "-ux")
    assert compare(write(texts, tmp_path / "trace.txt"), {})[3] != []


ANY = lines(OLD, "400000b7", "61000000a6008f7", *WRITE)
AGED = "kvm_age_hva: mmu notifier age hva: {:#016x} -- {:#016x}"


@pytest.mark.parametrize(
    ("shown", "agrees"),
    [
        ("61000000a600bf7", True),  # A and D are the CPU's
        ("61000000a6008f7", True),
        ("61000000a6008f5", False),
        ("61000000a7008f7", False),
        ("75000000a6008f0", False),  # nobody aged it
    ],
)
def test_values_are_compared_without_a_and_d(shown: str, agrees: bool, tmp_path: Path) -> None:
    found = compare(write(ANY + split(shown, "wux"), tmp_path / "trace.txt"), {})[3]
    assert (found == []) == agrees


@pytest.mark.parametrize(("start", "shown"), [(0x7F0000000000, "75000000a6008f0"), (0, "75000000a6008f0")])
def test_aged_without_a_bits_is_access_tracked(start: int, shown: str, tmp_path: Path) -> None:
    """By its address, or perhaps where no slot is known to have it."""
    texts = [*ANY, AGED.format(start, start + 0x200000), *split(shown, "wux")]
    assert compare(write(texts, tmp_path / "trace.txt"), {})[3] == []


def test_aged_elsewhere_stays(tmp_path: Path) -> None:
    texts = [*ANY, AGED.format(0x7F0000200000, 0x7F0000400000), *split("75000000a6008f0", "wux")]
    assert compare(write(texts, tmp_path / "trace.txt"), {})[3] != []


def test_aged_children_stay_tracked() -> None:
    """Where the role may execute, what comes back at the next access does; until then nothing is granted."""
    tracked = EPT_2022.track(0x61000000A6008F3)
    assert tracked == 0x65000000A6008F0 & ~(1 << 56) | 1 << 54
    child = EPT_2022.executable(tracked, ACC_EXEC)
    assert child & 7 == 0
    assert EPT_2022.restore(child) & 7 == 5
    new = EPT_2026.executable(EPT_2026.track(0x90A000000A6008F3), ACC_EXEC | ACC_USER)
    assert new & 0x407 == 0
    assert EPT_2026.restore(new) & 0x407 == 0x405


def test_pml_write_protects_what_it_does_not_log() -> None:
    """A 4K SPTE of a nested MMU loses W, one whose writes the CPU logs loses D."""
    assert EPT_2022.needs_write_protect(0x61000000A600877)
    assert EPT_2022.needs_write_protect(0x62000000A600B77)
    assert not EPT_2022.needs_write_protect(0x60000000A600B77)
    probes = [
        "set_region: (f) slot=1 flags=0x0 gpa=0x40000000 size=0x4000000 uaddr=0x7f0000000000",
        "commit_region: (f) change=0",
    ]
    logged = [probes[0].replace("flags=0x0", "flags=0x1"), probes[1].replace("0", "3")]
    four = [
        *(text for text in ANY[:-9] if "memslot id=1" not in text),
        "kvm_page_fault: vcpu 0 rip 0x100050 address 0x0000000040000000 error_code 0x182",
        "kvm_mmu_pagetable_walk: addr 40000000 pferr 2 W",
        "kvm_mmu_paging_element: pte 202007 level 4",
        "kvm_mmu_paging_element: pte 205007 level 3",
        "kvm_mmu_paging_element: pte 206007 level 2",
        "kvm_mmu_paging_element: pte 40000037 level 1",
        page("202 l3", " wux"),
        page("205 l2", " wux"),
        page("206 l1", " wux"),
        "kvm_mmu_spte_requested: gfn 40000 pfn a600 level 1",
        "kvm_mmu_set_spte: gfn 40000 spte 61000000a600877 (rwxu) level 1 at 13dd2000",
    ]
    for extra, expected in (([], 0x61000000A600877), (["slot_leaf_clear_dirty: (f)"], 0x61000000A600875)):
        vm = machine_of([*probes, *four, *logged, *extra]).vm
        ((sp, index),) = vm.rmap.at(1, 0x40000)
        assert sp.sptes[index] == expected


DETECTED: list[tuple[list[int], bool, Layout]] = [
    ([], False, LEGACY),
    ([0x140000EE7, 0x80000001400009A5 - (1 << 63)], False, LEGACY),
    ([0x10000000A6008F1], False, EPT_2022),  # neither writable bit: by its memory type
    ([0x10000000A6008F1, 0x600000002B00B77], False, EPT_2022),
    ([0x8000000006400DF5], True, EPT_2026),
    ([0x8000000006400DF5, 0x80A0000005400FF7], False, EPT_2026),
    ([0x22000000E4009F5], True, EPT_2022),  # bits decide before letters do
]


@pytest.mark.parametrize(("leaves", "four_letters", "layout"), DETECTED)
def test_layout_is_found_from_leaves(leaves: list[int], four_letters: bool, layout: Layout) -> None:
    assert detect_layout(leaves, four_letters) is layout


COLLAPSE = {
    "slot-without-hva": [(1, 512), (1, 512)],
    "1g-host-with-table": [(513, 262656), (1, 512)],
}
"""Attempts, all full and none with a flush, and SPTEs installed: one a window."""


@pytest.mark.parametrize("name", COLLAPSE)
def test_logging_off_zaps_what_the_host_maps_larger(name: str) -> None:
    windows = run_through(TRACES / f"collapse-{name}.txt", "v2")
    assert all(window.understood and not window.flushes for window in windows)
    attempts = [window.attempts() for window in windows]
    assert {attempt.nonpresent for found in attempts for attempt in found} == {0}
    assert [(len(found), sum(a.installed for a in found)) for found in attempts] == COLLAPSE[name]


def test_region_of_a_guest_table_is_not_collapsed() -> None:
    events = list(read_events(TRACES / "collapse-1g-host-with-table.txt"))
    machine = Vms(events, {}).machines[4200]
    for at in range(len(machine.events)):
        machine.apply(at)
    host = machine.inference.host
    assert host.max_mapping_level(0x80005) == 1
    assert host.max_mapping_level(0x80200) == 2
