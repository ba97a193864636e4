"""QEMU's trace events in trace_marker, in all forms that its releases print."""

# ruff: noqa: E501 (trace lines are long)

from __future__ import annotations

from pathlib import Path

import pytest

from replay.schema import Flag, Kind
from tests.trace.dat_files import marker, page, record
from tests.trace.test_dat_records import column
from tests.trace.test_dat_records import read as read_dat
from tests.trace.test_lines import HEAD, U64, only, payload, read

ARGUMENTS = "flags=0x1 gpa=0x7c400000 size=0x400000 ua=0x7f55a4400000"
MEMSLOT = {
    "kind": Kind.MARK_MEMSLOT, "gfn": 0x7C400, "end": 0x7C800, "code": 1, "addr": 0x7F55A4400000, "flags": Flag.VMM,
}  # fmt: skip
CLEAR = {"kind": Kind.MARK_CLEAR_DIRTY_LOG, "code": U64, "flags": Flag.VMM}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"kvm_set_user_memory Slot#1 {ARGUMENTS} ret=0", MEMSLOT | {"num": 1}),
        (f"kvm_set_user_memory Slot#65537 {ARGUMENTS} ret=0", MEMSLOT | {"num": 65537, "level": 1}),
        (f"kvm_set_user_memory AddrSpace#0 Slot#1 {ARGUMENTS} ret=0", MEMSLOT | {"num": 1}),
        (f"kvm_set_user_memory AddrSpace#1 Slot#1 {ARGUMENTS} guest_memfd=-1 guest_memfd_offset=0x0 ret=0",
         MEMSLOT | {"num": 65537, "level": 1}),
        ("kvm_set_user_memory Slot#2 flags=0x0 gpa=0x1000 size=0x0 ua=0x0 ret=0",
         {"kind": Kind.MARK_MEMSLOT, "num": 2, "gfn": 1, "end": 1, "flags": Flag.VMM}),
        ("kvm_clear_dirty_log slot#1 start 0x0 size 0x40", CLEAR | {"num": 1, "end": 0x40}),
        ("kvm_clear_dirty_log slot#65537 start 0x40000 size 0x3fc0",
         CLEAR | {"num": 65537, "gfn": 0x40000, "end": 0x43FC0}),
        (f"kvm_set_user_memory Slot#1 {ARGUMENTS} ret=-22", {"kind": Kind.MARK_TEXT}),
        ("kvm_set_user_memory_x Slot#1", {"kind": Kind.MARK_TEXT}),
        ("kvm_clear_dirty_log", {"kind": Kind.MARK_TEXT}),
        ("kvm_dirty_ring_full vcpu 1", {"kind": Kind.MARK_TEXT}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["tracing_mark_write: ", "print:                tracing_mark_write: "])
def test_text(tmp_path: Path, before: str, text: str, expected: dict[str, int]) -> None:
    assert payload(tmp_path, before + text) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"kvm_set_user_memory Slot#1 {ARGUMENTS}",
        "kvm_set_user_memory Slot#1 flags=0x1 gpa=0x7c400000 ua=0x7f55a4400000 ret=0",
        f"kvm_set_user_memory Slot#x {ARGUMENTS} ret=0",
        f"kvm_set_user_memory AddrSpace# Slot#1 {ARGUMENTS} ret=0",
        f"kvm_set_user_memory Slot#1 {ARGUMENTS} ret=0x",
        "kvm_clear_dirty_log slot#1 start 0x0",
        "kvm_clear_dirty_log slot#1 start 0x0 size 0x40;",
        "kvm_clear_dirty_log slot 1 start 0x0 size 0x40",
    ],
)
def test_broken_text_is_malformed(tmp_path: Path, text: str) -> None:
    trace = read(tmp_path, f"{HEAD}tracing_mark_write: {text}\n")
    assert (trace.events, trace.malformed_lines) == (0, 1)


def test_perf_script(tmp_path: Path) -> None:
    line = "qemu-kvm  4301/4302  [001]   812.001501:       ftrace:print: ip=0xffffffff9 buf={}\n"
    script = "qemu-kvm  4301/4302  [001]   812.001501:       ftrace:print: tracing_mark_write: {}\n"
    text = "kvm_clear_dirty_log slot#1 start 0x0 size 0x40"
    for form in (line, script):
        batch = only(read(tmp_path, form.format(text)))
        assert (batch.kind.tolist(), batch.end.tolist()) == ([Kind.MARK_CLEAR_DIRTY_LOG], [0x40])


def test_trace_dat(tmp_path: Path) -> None:
    texts = [
        f"kvm_set_user_memory Slot#1 {ARGUMENTS} ret=0\n",
        "kvm_clear_dirty_log slot#1 start 0x0 size 0x40\n",
        f"kvm_set_user_memory Slot#1 {ARGUMENTS} ret=-1\n",
        "kvm_set_user_memory Slot#1\n",
    ]
    trace = read_dat(tmp_path, {0: page(10, [record(marker(text)) for text in texts])})
    kinds = [Kind.MARK_MEMSLOT, Kind.MARK_CLEAR_DIRTY_LOG, Kind.MARK_TEXT]
    assert column(trace, "kind") == kinds
    assert column(trace, "end") == [0x7C800, 0x40, 0]
    assert column(trace, "flags") == [Flag.VMM, Flag.VMM, 0]
    assert trace.malformed_lines == 1
