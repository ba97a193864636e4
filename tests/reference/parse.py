"""Native ftrace text to events; the payload stays text until somebody asks for its fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

LINE = re.compile(
    r"^\s*(?P<comm>.+)-(?P<pid>\d+)\s+(?:\(\s*(?P<tgid>\d+|-+)\)\s+)?\[\d+\]\s+(?:[^\s:]+\s+)?"
    r"(?P<time>\d+\.\d+): (?P<name>\w+): ?(?P<text>.*)$"
)
PAGE = re.compile(
    r"sp gen (\d+) gfn ([0-9a-f]+) l(\d) (\d)-byte q(\d)( direct)? ([rwux-]{3,4})( invalid)? (!?)nxe (!?)ad"
    r" root (\d+) (sync|unsync)(?: (new|existing))?$"
)
SET_SPTE = re.compile(r"gfn ([0-9a-f]+) spte ([0-9a-f]+) \(\S+\) level (\d) at ([0-9a-f]+)")
REQUESTED = re.compile(r"gfn ([0-9a-f]+) pfn ([0-9a-f]+) level (\d)")
TDP_CHANGED = re.compile(r"as id (\d+) gfn ([0-9a-f]+) level (\d) old_spte ([0-9a-f]+) new_spte ([0-9a-f]+)")
PAGE_FAULT = re.compile(r"address (?:0x)?([0-9a-f]+) error_code (?:0x)?([0-9a-f]+)")
FAST_FAULT = re.compile(r"gva ([0-9a-f]+) .* old 0x([0-9a-f]+) new ([0-9a-f]+) spurious \d fixed 1")
HVA_RANGE = re.compile(r": 0x([0-9a-f]+) -- 0x([0-9a-f]+)")
KEY_VALUE = re.compile(r"(\w+)=(\S+)")

ACC_EXEC, ACC_WRITE, ACC_USER, ACC_READ = 1, 2, 4, 8
MMU_EVENTS = frozenset(
    (
        "kvm_mmu_pagetable_walk",
        "kvm_mmu_paging_element",
        "kvm_mmu_set_accessed_bit",
        "kvm_mmu_set_dirty_bit",
        "kvm_mmu_walker_error",
        "kvm_mmu_get_page",
        "kvm_mmu_sync_page",
        "kvm_mmu_unsync_page",
        "kvm_mmu_prepare_zap_page",
        "mark_mmio_spte",
        "handle_mmio_page_fault",
        "fast_page_fault",
        "kvm_mmu_zap_all_fast",
        "check_mmio_spte",
        "kvm_mmu_set_spte",
        "kvm_mmu_spte_requested",
        "kvm_tdp_mmu_spte_changed",
        "kvm_mmu_split_huge_page",
    )
)
Step = tuple[str | int, ...]


class Event(NamedTuple):
    """One line. `line` counts from 1; `time` is in seconds; `tgid` is 0 when the trace does not record it."""

    line: int
    pid: int
    tgid: int
    time: float
    name: str
    text: str


class Role(NamedTuple):
    """The printed part of union kvm_mmu_page_role; access holds ACC_* bits."""

    level: int
    gpte_bytes: int
    quadrant: int
    direct: bool
    access: int
    efer_nx: bool
    ad: bool


class Page(NamedTuple):
    """KVM_MMU_PAGE_PRINTK; `created` is None for every event but kvm_mmu_get_page."""

    gen: int
    gfn: int
    role: Role
    invalid: bool
    root_count: int
    unsync: bool
    created: bool | None


class SetSpte(NamedTuple):
    """kvm_mmu_set_spte; `address` is the physical address of the SPTE."""

    gfn: int
    spte: int
    level: int
    address: int


class TdpChange(NamedTuple):
    """kvm_tdp_mmu_spte_changed."""

    as_id: int
    gfn: int
    level: int
    old: int
    new: int


class Split(NamedTuple):
    """kvm_mmu_split_huge_page."""

    gfn: int
    spte: int
    level: int
    errno: int


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a native ftrace text, plain or .zst, in the order of the file."""
    with TextIOWrapper(pa.input_stream(path), encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            match = LINE.match(line)
            if match is None:
                continue
            _, pid, tgid, time, name, text = match.groups()
            known = tgid is not None and tgid[0] != "-"
            yield Event(number, int(pid), int(tgid) if known else 0, float(time), name, text)


def neighbours(events: Sequence[Event]) -> tuple[list[int], list[int]]:
    """For each event the next and the previous kvmmmu event of the same task, or -1."""
    following, preceding = [-1] * len(events), [-1] * len(events)
    last: dict[int, int] = {}
    for at, event in enumerate(events):
        preceding[at] = last.get(event.pid, -1)
        if event.name in MMU_EVENTS:
            last[event.pid] = at
    last.clear()
    for at in range(len(events) - 1, -1, -1):
        following[at] = last.get(events[at].pid, -1)
        if events[at].name in MMU_EVENTS:
            last[events[at].pid] = at
    return following, preceding


def parse_page(text: str) -> Page:
    match = PAGE.match(text)
    if match is None:
        raise ValueError(f"not a shadow page: {text}")
    gen, gfn, level, gpte, quadrant, direct, access, invalid, no_nx, no_ad, root, sync, created = (
        match.groups()
    )
    role = Role(
        int(level), int(gpte), int(quadrant), direct is not None, parse_access(access), not no_nx, not no_ad
    )
    return Page(
        int(gen),
        int(gfn, 16),
        role,
        invalid is not None,
        int(root),
        sync == "unsync",
        None if created is None else created == "new",
    )


def parse_access(text: str) -> int:
    """`wux` in any subset, or `rwux` since the read bit was added to role.access."""
    bits = {"x": ACC_EXEC, "w": ACC_WRITE, "u": ACC_USER, "r": ACC_READ}
    return sum(bits[letter] for letter in text if letter != "-")


def page_text(gen: int, gfn: int, role: Role, created: bool, with_read: bool) -> str:
    """The text of a kvm_mmu_get_page line for a page that is neither a root nor unsync."""
    letters = [("r", ACC_READ)] if with_read else []
    letters += [("w", ACC_WRITE), ("u", ACC_USER), ("x", ACC_EXEC)]
    access = "".join(letter if role.access & bit else "-" for letter, bit in letters)
    flags = f"{'' if role.efer_nx else '!'}nxe {'' if role.ad else '!'}ad"
    return (
        f"sp gen {gen} gfn {gfn:x} l{role.level} {role.gpte_bytes}-byte q{role.quadrant}"
        f"{' direct' if role.direct else ''} {access} {flags} root 0 sync {'new' if created else 'existing'}"
    )


def fields(text: str) -> dict[str, int]:
    """`key=value` pairs whose value is a decimal or 0x number; other pairs are left out."""
    found = {}
    for key, value in KEY_VALUE.findall(text):
        try:
            found[key] = int(value, 0)
        except ValueError:
            continue
    return found


def matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.search(text)
    if match is None:
        raise ValueError(f"not in the format of this event: {text}")
    return match


def parse_set_spte(text: str) -> SetSpte:
    gfn, spte, level, address = matched(SET_SPTE, text).groups()
    return SetSpte(int(gfn, 16), int(spte, 16), int(level), int(address, 16))


def parse_requested(text: str) -> tuple[int, int, int]:
    """gfn, pfn and goal level of a kvm_mmu_spte_requested."""
    gfn, pfn, level = matched(REQUESTED, text).groups()
    return int(gfn, 16), int(pfn, 16), int(level)


def parse_tdp_change(text: str) -> TdpChange:
    as_id, gfn, level, old, new = matched(TDP_CHANGED, text).groups()
    return TdpChange(int(as_id), int(gfn, 16), int(level), int(old, 16), int(new, 16))


def parse_page_fault(text: str) -> tuple[int, int]:
    """Address and error code of a kvm_page_fault."""
    address, error = matched(PAGE_FAULT, text).groups()
    return int(address, 16), int(error, 16)


def parse_hva_range(text: str) -> tuple[int, int]:
    """First host address of a kvm_unmap_hva_range or kvm_age_hva, and the one after its last."""
    start, end = matched(HVA_RANGE, text).groups()
    return int(start, 16), int(end, 16)


def parse_fast_fault(text: str) -> tuple[int, int, int] | None:
    """gfn, old and new SPTE of a fast_page_fault that fixed the SPTE, else None."""
    match = FAST_FAULT.search(text)
    return None if match is None else (int(match[1], 16) >> 12, int(match[2], 16), int(match[3], 16))


def parse_split(text: str) -> Split:
    words = text.split()
    return Split(int(words[1], 16), int(words[3], 16), int(words[5]), int(words[7]))
