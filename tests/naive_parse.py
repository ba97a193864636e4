"""A slow parser of ftrace lines by regular expressions, written apart from the product's: the tests' oracle.

``parse`` returns one dict a row with the columns that are not zero, and the line counts.
"""

from __future__ import annotations

import re
from typing import Any

Row = dict[str, Any]

HEADER = re.compile(
    r"^\s*(?P<comm>.*?)\s*-(?P<pid>\d+)\s+(?:\(\s*(?P<tgid>\d+|-+)\)\s+)?\[(?P<cpu>\d+)\] "
    r"(?:[dDbX.]\S{3,4})?\s*(?P<whole>\d+)(?:\.(?P<part>\d{1,9}))?: (?P<body>.*)$"
)
LOST = re.compile(r"^\s*CPU:(\d+) \[LOST (?:(\d+) )?EVENTS\]$")
ENTRIES = re.compile(r"entries-in-buffer/entries-written: (\d+)/(\d+)")
X = r"([0-9a-fA-F]{1,16})"
XX = r"(?:0x)?([0-9a-fA-F]{1,16})"
D = r"(-?\d{1,20})"
TAIL = r"(?:[\s\0].*|,(?!\d).*)?$"

PAGE = re.compile(
    r"sp (?:gen (?P<gen>[0-9a-f]+) )?gfn (?P<gfn>[0-9a-f]+) l?(?P<level>\d+)(?P<gpte> [48]-byte| pae)? "
    r"q(?P<quadrant>[0-3])(?P<direct> direct)? (?P<access>[rwux-]{3,4})(?P<invalid> invalid)? (?P<nx>!?)nxe "
    r"(?:(?P<ad>!?)ad )?root (?P<root>-?\d+) (?P<sync>sync|unsync)(?: (?P<created>new|existing))?" + TAIL
)

FORMS: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "kvm_mmu_pagetable_walk": (1, rf"addr {XX} pferr {XX}", ("addr", "code")),
    "kvm_mmu_paging_element": (2, rf"pte {XX} level {D}", ("spte", "level:d")),
    "kvm_mmu_set_accessed_bit": (3, rf"gpa {XX}", ("addr",)),
    "kvm_mmu_set_dirty_bit": (4, rf"gpa {XX}", ("addr",)),
    "kvm_mmu_walker_error": (5, rf"pferr {XX}", ("code",)),
    "handle_mmio_page_fault": (11, rf"addr:{XX} gfn {XX} access {XX}", ("addr", "gfn", "code")),
    "mark_mmio_spte": (10, rf"sptep:{XX} gfn {XX} access {XX} gen {XX}", ("sptep", "gfn", "code", "num")),
    "kvm_mmu_zap_all_fast": (13, rf"kvm-mmu-valid-gen {XX} used_pages {XX}", ("code", "num")),
    "kvm_mmu_spte_requested": (16, rf"gfn {XX} pfn {XX} level {D}", ("gfn", "num", "level:d")),
    "kvm_mmu_set_spte": (
        15,
        rf"gfn {XX} spte {XX} \(\S* level {D} at {XX}",
        ("gfn", "spte", "level:d", "sptep"),
    ),
    "kvm_tdp_mmu_spte_changed": (
        17,
        rf"as id {D} gfn {XX} level {D} old_spte {XX} new_spte {XX}",
        ("num:d", "gfn", "level:d", "old_spte", "spte"),
    ),
    "kvm_mmu_split_huge_page": (
        18,
        rf"gfn {XX} spte {XX} level {D} errno {D}",
        ("gfn", "spte", "level:d", "num:d"),
    ),
    "kvm_unmap_hva_range": (21, rf"mmu notifier unmap range: {XX} -- {XX}", ("addr", "end")),
}
PAGE_EVENTS = {
    "kvm_mmu_get_page": 6,
    "kvm_mmu_sync_page": 7,
    "kvm_mmu_unsync_page": 8,
    "kvm_mmu_prepare_zap_page": 9,
}
ERROR_BITS = {"P": 1, "W": 2, "U": 4, "RSVD": 8, "F": 16, "PK": 32, "SS": 64, "SGX": 1 << 15}
FAULT = re.compile(rf"(?:vcpu {D} rip \S+ )?address {XX} error_code {XX}{TAIL}")
FAST = re.compile(
    rf"vcpu {D} gva {XX} error_code (\S*) sptep (\S+) old {XX} new {XX} spurious {D} fixed {D}{TAIL}"
)
CHECK = re.compile(rf"spte {XX} kvm_gen {XX} spte-gen {XX} valid {D}{TAIL}")

# name: kind, {key: column}; "size" ends are counted from gfn
PROBES: dict[str, tuple[int, dict[str, str]]] = {
    "set_region": (30, {"slot": "num", "flags": "code", "gpa": "gfn", "size": "end", "uaddr": "addr"}),
    "commit_region": (31, {"change": "num"}),
    "slot_try_split": (32, {"target_level": "level"}),
    "slot_try_split_ret": (33, {}),
    "try_split": (34, {"start": "gfn", "end": "end", "target_level": "level"}),
    "shadow_try_split": (36, {"start": "gfn", "end": "end", "target_level": "level"}),
    "tdp_try_split": (37, {"start": "gfn", "end": "end", "target_level": "level"}),
    "change_mmu_pages": (38, {"goal": "num"}),
    "flush_remote_tlbs": (39, {}),
    "flush_remote_tlbs_addr": (40, {"start_gfn": "gfn", "pages": "end"}),
    "flush_remote_tlbs_range": (41, {"start_gfn": "gfn", "pages": "end"}),
    "flush_remote_tlbs_memslot": (42, {}),
    "slot_remove_write_access": (43, {"start_level": "level"}),
    "topup_cache": (44, {"capacity": "num", "min": "code"}),
    "zap_collapsible": (45, {}),
    "recover_huge": (46, {}),
    "slot_leaf_clear_dirty": (47, {}),
    "v2_lock_dropped": (60, {"gfn": "gfn", "level": "level", "reason": "code", "flush": "num"}),
    "v2_range_yield": (61, {"gfn": "gfn", "level": "level", "flush": "num"}),
    "v2_alloc_failed": (62, {"gfn": "gfn", "locked": "num"}),
    "v2_split_nonpresent": (63, {"gfn": "gfn", "level": "level", "huge_gfn": "addr"}),
    "v2_split_done": (64, {"huge_gfn": "gfn", "huge_level": "level", "present": "num", "nonpresent": "code"}),
    "v2_alias_sp": (65, {"gfn": "gfn", "level": "level", "role": "code", "huge_sptep": "sptep"}),
    "v2_sp_leaked": (66, {"gfn": "gfn", "level": "level"}),
    "v2_sp_freed_unused": (67, {}),
    "v2_drop_flush": (68, {"base_gfn": "gfn", "npages": "end"}),
    "v2_final_flush": (69, {"base_gfn": "gfn", "npages": "end"}),
    "v2_prepare": (70, {"gfn": "gfn", "level": "level", "available": "num"}),
    "v2_try_split_begin": (71, {"start": "gfn", "end": "end", "target_level": "level"}),
    "v2_try_split_end": (72, {"start": "gfn", "end": "end", "flush": "num"}),
    "v2_level_begin": (73, {"level": "level", "flush": "num"}),
    "v2_restart": (74, {"gfn": "gfn", "level": "level", "why": "code"}),
}
COUNTED = {30, 40, 41, 68, 69, 91, 93}
MARKS: dict[str, tuple[int, dict[str, str]]] = {
    "vm_create": (90, {"pid": "num"}),
    "memslot": (
        91,
        {"id": "num", "base_gfn": "gfn", "npages": "end", "flags": "code", "hva": "addr", "as": "level"},
    ),
    "manual_dirty_log_protect2": (92, {"arg": "num"}),
    "clear_dirty_log": (93, {"slot": "num", "first_page": "gfn", "num_pages": "end", "mask": "code"}),
    "get_dirty_log": (94, {"slot": "num"}),
    "nr_mmu_pages": (95, {"n": "num"}),
    "resched": (96, {}),
}
OPTIONAL = {"uaddr", "start_gfn", "pages", "start_level", "capacity", "min", "pid", "hva", "as", "mask"}
UNSIGNED = (1 << 64) - 1


# what mailers and terminals put among words
STRANGE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u2060\ufeff"))
STRANGE |= dict.fromkeys(range(0x202A, 0x202F)) | dict.fromkeys(range(0x2000, 0x200B), " ")
STRANGE |= dict.fromkeys([0xA0, 0x202F, 0x205F, 0x3000], " ")
ESCAPE = re.compile(r"(?:\x1b|\^\[|ESC|#033|\\033)\[[0-?]*[ -/]*[@-~]?")


class Malformed(Exception):
    """A line of a known event that does not parse."""


def _pairs(text: str, keys: dict[str, str], kind: int, strict: bool) -> Row:
    row: Row = {"kind": kind}
    seen = set()
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals:
            if strict:
                raise Malformed
            continue
        if key in keys:
            if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}|-?\d{1,20}", value):
                raise Malformed
            number = (int(value, 0) if "x" in value else int(value)) & UNSIGNED
            if keys[key] == "level" and number > 255:
                raise Malformed
            row[keys[key]] = number
            seen.add(key)
    if set(keys) - seen - OPTIONAL:
        raise Malformed
    if kind == 91:  # the address space is the upper half of a slot's number
        row["num"] |= row.get("level", 0) << 16
    if kind == 30:
        row["gfn"] >>= 12
        row["end"] >>= 12
    if kind in COUNTED:
        row["end"] = (row.get("end", 0) + row.get("gfn", 0)) & UNSIGNED
    return row


def _page(name: str, text: str) -> Row:
    found = PAGE.match(text)
    if not found or (name == "kvm_mmu_get_page") > bool(found["created"]):
        raise Malformed
    access = found["access"]
    role = int(found["level"]) | int(found["quadrant"]) << 5
    role |= (found["gpte"] not in (" 8-byte", " pae")) << 4
    role |= bool(found["direct"]) << 7
    role |= ("r" in access or len(access) == 3) << 8
    role |= ("w" in access) << 9 | ("u" in access) << 10 | ("x" in access) << 11
    role |= bool(found["invalid"]) << 12 | (not found["nx"]) << 13 | (found["ad"] == "!") << 16
    role |= (int(found["gen"] or "0", 16) & 1) << 21
    return {
        "kind": PAGE_EVENTS[name],
        "gfn": int(found["gfn"], 16),
        "level": int(found["level"]),
        "role": role,
        "num": int(found["root"]),
        "flags": (name == "kvm_mmu_get_page" and found["created"] == "new")
        | (found["sync"] == "unsync") << 1,
    }


def _fast_page_fault(text: str) -> Row:
    found = FAST.match(text)
    if not found:
        raise Malformed
    vcpu, gva, words, sptep, old, new, spurious, fixed = found.groups()
    code = 0
    for word in filter(None, words.split("|")):
        if word.startswith("0x"):
            code |= int(word, 16)
        elif word in ERROR_BITS:
            code |= ERROR_BITS[word]
        else:
            raise Malformed
    pointer = re.fullmatch(XX, sptep)
    return {
        "kind": 12,
        "num": int(vcpu),
        "addr": int(gva, 16),
        "code": code,
        "sptep": int(pointer[1], 16) if pointer else 0,
        "old_spte": int(old, 16),
        "spte": int(new, 16),
        "flags": 4 * bool(int(spurious)) | 8 * bool(int(fixed)),
    }


def _event(name: str, text: str) -> Row | None:
    if name in FORMS:
        kind, form, columns = FORMS[name]
        found = re.match(form + TAIL, text)
        if not found:
            raise Malformed
        row: Row = {"kind": kind}
        for column, value in zip(columns, found.groups(), strict=True):
            column, _, decimal = column.partition(":")
            row[column] = int(value, 10 if decimal else 16)
        if "level" in row and row["level"] < 1:
            raise Malformed
        return row
    if name in PAGE_EVENTS:
        return _page(name, text)
    if name == "fast_page_fault":
        return _fast_page_fault(text)
    if name == "kvm_page_fault":
        found = FAULT.match(text)
        if not found:
            raise Malformed
        vcpu, address, code = found.groups()
        return {"kind": 20, "num": int(vcpu or -1), "addr": int(address, 16), "code": int(code, 16)}
    if name == "check_mmio_spte":
        found = CHECK.match(text)
        if not found:
            raise Malformed
        spte, kvm_gen, spte_gen, valid = found.groups()
        return {
            "kind": 14,
            "spte": int(spte, 16),
            "num": int(kvm_gen, 16),
            "code": int(spte_gen, 16),
            "flags": 16 * bool(int(valid)),
        }
    if name in PROBES:
        if not (place := re.match(r"\(.*?\)", text)):
            raise Malformed
        kind, keys = PROBES[name]
        return _pairs(text[place.end() :], keys, kind, strict=False)
    return None


def _marker(text: str) -> Row:
    if not text.lstrip(" \t").startswith("replay:"):
        return {"kind": 99, "text": text}
    text = text.lstrip(" \t")[len("replay:") :].lstrip(" ")
    word, _, rest = text.partition(" ")
    if word == "scenario":
        return {"kind": 97, "text": text}
    if word not in MARKS:
        return {"kind": 98, "text": text}
    kind, keys = MARKS[word]
    row = _pairs(rest, keys, kind, strict=True) | {"text": text}
    return {"code": UNSIGNED} | row if kind == 93 else row


def parse(text: str) -> tuple[list[Row], dict[str, int]]:
    """(rows, {"lines", "ignored", "malformed", "lost"}) of a trace with the usual headers."""
    text = ESCAPE.sub("", text).translate(STRANGE)
    rows: list[Row] = []
    counts = {"lines": 0, "ignored": 0, "malformed": 0, "lost": 0}
    time = 0
    for number, line in enumerate(text.split("\n")[: -1 if text.endswith("\n") else None], 1):
        line = line.removesuffix("\r")
        counts["lines"] += 1
        if lost := LOST.match(line):
            row = {"kind": 110, "line": number, "num": int(lost[2] or -1), "cpu": int(lost[1])}
            rows.append(row | {"ts_ns": time, "pid": -1, "tgid": -1})
            counts["lost"] += int(lost[2] or 1)
            continue
        if entries := ENTRIES.search(line):
            counts["lost"] += int(entries[2]) - int(entries[1])
        header = None if line.startswith("#") else HEADER.match(line)
        if not header:
            counts["ignored"] += 1
            continue
        part = header["part"]
        time = int(header["whole"]) * (10**9 if part else 1) + int((part or "").ljust(9, "0"))
        name, colon, payload = header["body"].partition(":")
        payload = payload.removeprefix(" ")
        try:
            if name == "tracing_mark_write":
                row = _marker(payload)
            else:
                row = _event(name, payload.strip(" ")) if colon else None
        except Malformed:
            counts["malformed"] += 1
            continue
        if row is None:
            counts["ignored"] += 1
            continue
        tgid = header["tgid"] or "-"
        value = row.get("num", 0) & UNSIGNED
        row["num"] = value - (value >> 63 << 64)  # the column is signed
        row |= {"line": number, "ts_ns": time, "cpu": int(header["cpu"]), "pid": int(header["pid"])}
        rows.append(row | {"tgid": -1 if tgid.startswith("-") else int(tgid), "comm": header["comm"]})
    return rows, counts
