"""What must hold in any trace of a real KVM, checked on the text alone, without the model that wrote it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

LINE = re.compile(
    r"(?P<comm>.{16})-(?P<pid>\d+) *\((?P<tgid>[ \d]{7})\) \[\d{3}\] (?P<flags>[.dN][.N]\.[.12]\.) "
    r"(?P<time>[ \d]{5}\.\d{6}): (?P<event>\w+): (?P<text>.*)"
)
PAGE = re.compile(
    r"sp gen (?P<gen>[01]) gfn (?P<gfn>[0-9a-f]+) l(?P<level>[1-4]) 8-byte q0(?P<direct>| direct) "
    r"(?P<access>[r-]?[w-][u-][x-])(?P<invalid>| invalid) (?P<bits>nxe ad|!nxe !?ad) root (?P<roots>\d+) "
    r"(?P<sync>sync|unsync)(?P<word>| new| existing)"
)
SET_SPTE = re.compile(
    r"gfn (?P<gfn>[0-9a-f]+) spte (?P<spte>[0-9a-f]+) \((?P<rwxu>[r-][w-][x-][u-])\) "
    r"level (?P<level>\d) at (?P<at>[0-9a-f]+)"
)
REQUESTED = re.compile(r"gfn ([0-9a-f]+) pfn ([0-9a-f]+) level (\d)(?: access [0-9a-f])?")
CHANGED = re.compile(r"as id 0 gfn ([0-9a-f]+) level (\d) old_spte ([0-9a-f]+) new_spte ([0-9a-f]+)")
ELEMENT = re.compile(r"pte ([0-9a-f]+) level (\d)")
PFN_MASK = (1 << 52) - (1 << 12)
EPT_WRITE_BACK = 0x70


@dataclass(frozen=True)
class Bits:
    """Where an SPTE has what kvm_mmu_set_spte prints as letters; ``new`` is the form of 7.2."""

    accessed: int = 0x20
    user: int = 1 << 2
    execute: int = 0
    no_execute: int = 1 << 63
    ept: bool = False
    new: bool = False

    def letters(self, spte: int) -> str:
        executable = spte & self.execute == self.execute and not spte & self.no_execute
        readable = not self.ept or self.new or spte & 1
        return "".join(
            letter if good else "-"
            for letter, good in zip("rwxu", (readable, spte & 2, executable, spte & self.user), strict=True)
        )


LAYOUTS = {
    "": Bits(),
    "2022": Bits(0x100, 1, 4, 0, True),
    "2026": Bits(0x100, 1 << 10, 4, 0, True, True),
}


def pages(level: int) -> int:
    return 1 << (9 * (level - 1))


@dataclass
class VmCheck:
    """What the lines of one tgid have said so far."""

    has_tdp: bool
    bits: Bits
    live: Counter[str] = field(default_factory=Counter)  # pages as printed
    direct_root: bool = False  # tdp_mmu=N: the VM's pages and nested ones (guest_mode) may print the same
    tdp_live: set[str] = field(default_factory=set)  # the same of the TDP MMU, whose pages are unique too
    before: str = ""  # the event before this one
    tables: dict[int, tuple[int, int | None]] = field(default_factory=dict)  # level, first gfn if direct
    fault_address: int = 0
    elements: list[tuple[int, int]] = field(default_factory=list)
    requested: tuple[int, int, int] | None = None
    first: tuple[int, int] | None = None  # table and index of the fault's first SPTE
    got: dict[int, tuple[bool, int]] = field(default_factory=dict)  # by level: direct, gfn
    unnamed: Counter[int] = field(default_factory=Counter)  # new pages by level whose table no line named yet


def check_trace(text: str, layout: str = "") -> list[str]:
    """Every violation found, as ``line number: what``; ``layout`` is that of Intel's SPTEs."""
    found: list[str] = []
    lines = text.splitlines()
    written = re.fullmatch(r"# entries-in-buffer/entries-written: (\d+)/(\d+)   #P:\d+", lines[2])
    if not written or int(written.group(1)) != len(lines) - 12 or written.group(1) != written.group(2):
        found.append("3: the header counts other lines")
    parsed = []
    for number, line in enumerate(lines[12:], 13):
        match = LINE.fullmatch(line)
        if match is None:
            found.append(f"{number}: {line!r}")
        else:
            parsed.append((number, match))
    times = [float(match["time"]) for _, match in parsed]
    found += [f"{parsed[i][0]}: time goes back" for i in range(1, len(times)) if times[i] <= times[i - 1]]
    tdp = {match["tgid"] for _, match in parsed if match["event"] == "kvm_tdp_mmu_spte_changed"}
    vms: dict[str, VmCheck] = {}
    for position, (number, match) in enumerate(parsed):
        vm = vms.setdefault(match["tgid"], VmCheck(match["tgid"] in tdp, LAYOUTS[layout]))
        following = parsed[position + 1][1] if position + 1 < len(parsed) else None
        for message in _check_event(vm, match["event"], match["text"], following):
            found.append(f"{number}: {message}: {match['text']}")
        vm.before = match["event"]
    return found


def _check_event(vm: VmCheck, event: str, text: str, following: re.Match[str] | None) -> list[str]:
    if event == "kvm_page_fault":
        vm.fault_address = int(text.split("address ")[1].split()[0], 16)
        vm.elements, vm.requested, vm.first, vm.got = [], None, None, {}
    elif event == "kvm_mmu_paging_element":
        element = ELEMENT.fullmatch(text)
        vm.elements.append((int(element[1], 16), int(element[2])))
        if [level for _, level in vm.elements] != list(range(4, 4 - len(vm.elements), -1)):
            return ["levels do not descend from 4"]
    elif event == "kvm_mmu_set_dirty_bit":
        return _check_dirty_bit(vm, int(text.split()[1], 16))
    elif event in ("kvm_mmu_get_page", "kvm_mmu_prepare_zap_page"):
        return _check_page(vm, event, text, following)
    elif event == "kvm_mmu_spte_requested":
        vm.requested = tuple(int(value, 16) for value in REQUESTED.fullmatch(text).groups())
        gfn = vm.fault_address >> 12
        if vm.elements:
            pte, level = vm.elements[-1]
            gfn = ((pte & PFN_MASK) >> 12) + gfn % pages(level)
        if vm.requested[0] != gfn:
            return ["the walk leads elsewhere"]
    elif event == "kvm_mmu_set_spte":
        return _check_spte(vm, text)
    elif event == "kvm_mmu_zap_all_fast" and int(text.split()[-1], 16) != vm.live.total():
        return [f"{vm.live.total()} pages live"]
    return []


def _check_dirty_bit(vm: VmCheck, gpa: int) -> list[str]:
    (table, _), (leaf, level) = vm.elements[-2:]
    index = vm.fault_address >> (12 + 9 * (level - 1)) & 511
    wrong = ["not the leaf of the walk"] if gpa != (table & PFN_MASK) + 8 * index else []
    return wrong + (["the leaf is dirty"] if leaf & (0x200 if vm.bits.ept else 0x40) else [])


def _check_page(vm: VmCheck, event: str, text: str, following: re.Match[str] | None) -> list[str]:
    page = PAGE.fullmatch(text)
    if page is None:
        return ["not a page"]
    gfn, level, direct = int(page["gfn"], 16), int(page["level"]), bool(page["direct"])
    key = f"{page['gen']} {gfn:x} {level} {direct} {page['access']} {page['bits']}"
    if event == "kvm_mmu_get_page":
        vm.got[level] = (direct, gfn)
        vm.unnamed[level] += page["word"] == " new"
        linked = following is not None and following["event"] == "kvm_tdp_mmu_spte_changed"
        linked = linked and CHANGED.fullmatch(following["text"])[2] == str(level + 1)
        if direct and vm.has_tdp and (level == 4 or linked):
            wrong = [] if page["word"] == " new" else ["the TDP MMU has new pages only"]
            wrong += ["an equal TDP page lives"] if key in vm.tdp_live and level < 4 else []
            vm.tdp_live.add(key)
            return wrong
        if page["word"] == " new":
            vm.direct_root |= direct and level == 4
            vm.live[key] += 1
            return ["an equal page lives"] if vm.live[key] > 1 + (direct and vm.direct_root) else []
        return [] if vm.live[key] else ["no such page lives"]
    if direct and vm.has_tdp and _is_tdp_zap(vm, following):
        was = key in vm.tdp_live
        vm.tdp_live.discard(key)
        return [] if was else ["no such TDP page lives"]
    if page["invalid"]:
        key = f"root {key}"
    vm.live[key] -= 1
    if int(page["roots"]):
        vm.live[f"root {key}"] += 1
    return [] if vm.live[key] >= 0 else ["no such page lives"]


def _is_tdp_zap(vm: VmCheck, following: re.Match[str] | None) -> bool:
    """Since 7.2 a table of the TDP MMU is printed before its entries, else after its parent's."""
    if vm.bits.new:
        return following is not None and following["event"] == "kvm_tdp_mmu_spte_changed"
    return vm.before == "kvm_tdp_mmu_spte_changed"


def _check_spte(vm: VmCheck, text: str) -> list[str]:
    match = SET_SPTE.fullmatch(text)
    if match is None or vm.requested is None:
        return ["not an SPTE of a fault"]
    gfn, spte, level, at = (int(match[name], 16) for name in ("gfn", "spte", "level", "at"))
    table, index = at & ~0xFFF, (at & 0xFFF) // 8
    wrong = []
    if match["rwxu"] != vm.bits.letters(spte) or bool(spte & 0x80) != (level > 1) or not spte & 0x800:
        wrong.append("letters or bits do not fit the value")
    if vm.bits.ept and (spte & EPT_WRITE_BACK != EPT_WRITE_BACK or bool(spte >> 63) != vm.bits.new):
        wrong.append("not an SPTE of this EPT")
    if gfn % pages(level) or ((spte & PFN_MASK) >> 12) % pages(level):
        wrong.append("not aligned to its level")
    if vm.first is None:
        requested_gfn, requested_pfn, requested_level = vm.requested
        vm.first = (table, index)
        if level != requested_level or gfn != requested_gfn & -pages(level):
            wrong.append("not what was requested")
        if (spte & PFN_MASK) >> 12 != requested_pfn & -pages(level):
            wrong.append("another pfn was requested")
        if index != vm.fault_address >> (12 + 9 * (level - 1)) & 511:
            wrong.append("index of another address")
        if level in vm.got:
            direct, base = vm.got[level]
            if table not in vm.tables:
                vm.tables[table] = (level, base if direct else None)
                vm.unnamed[level] -= 1
            if not direct and base != (vm.elements[3 - level][0] & PFN_MASK) >> 12:
                wrong.append("page of another guest table")
    elif table != vm.first[0] or index // 8 != vm.first[1] // 8 or spte & vm.bits.accessed:
        wrong.append("not a prefetch of this fault")
    if table not in vm.tables and vm.unnamed[level] > 0:
        # the fault that got the page went on below it
        vm.tables[table] = (level, None)
        vm.unnamed[level] -= 1
    known_level, base = vm.tables.get(table, (None, None))
    if known_level != level:
        wrong.append("table of no known page, or of another level")
    if base is not None and gfn != base + index * pages(level):
        wrong.append("index does not fit the gfn of its direct page")
    return wrong
