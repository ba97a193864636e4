"""Single lines: headers, payloads, control lines, oddities; against values written out here."""

# ruff: noqa: E501 (trace lines are long)

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from replay.errors import MalformedLine
from replay.schema import Columns, Flag, Kind, Role
from replay.trace.reader import Trace, read_trace
from replay.trace.scan.known_shapes import MAX_SHAPES

U64 = 2**64 - 1
HEAD = "       CPU 0/KVM-4242    (   4200) [003] d..1.   100.000010: "


def read(tmp_path: Path, text: str | bytes, **options: object) -> Trace:
    path = tmp_path / "trace.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_trace(str(path), **options)  # type: ignore[arg-type]


def only(trace: Trace) -> Columns:
    batches = list(trace.batches())
    assert len(batches) == 1
    return batches[0]


def row(tmp_path: Path, line: str) -> dict[str, int]:
    """The columns of the only event of ``line`` that are not zero."""
    trace = read(tmp_path, line + "\n")
    assert (trace.events, trace.malformed_lines) == (1, 0), trace.malformed
    batch = only(trace)
    return {name: int(column[0]) for name, column in zip(Columns._fields, batch, strict=True) if column[0]}


def payload(tmp_path: Path, text: str) -> dict[str, int]:
    """The payload columns of the event ``text``."""
    common = ("vm", "pid", "tgid", "cpu", "ts_ns", "line", "comm", "text")
    return {name: value for name, value in row(tmp_path, HEAD + text).items() if name not in common}


BODY = "kvm_mmu_set_dirty_bit: gpa 1000"


@pytest.mark.parametrize(
    ("header", "comm", "pid", "tgid", "cpu", "ts_ns"),
    [
        ("             vmm-160     (    160) [001] .....    17.831058: ", "vmm", 160, 160, 1, 17831058000),
        ("             vmm-160     (-------) [001] d..1.    17.831058: ", "vmm", 160, -1, 1, 17831058000),
        ("             vmm-160     [001] dNh2    17.831058: ", "vmm", 160, -1, 1, 17831058000),
        ("             vmm-160     [001] .l.1.    17.831058: ", "vmm", 160, -1, 1, 17831058000),
        ("             vmm-160     (    160) [001]     17.831058: ", "vmm", 160, 160, 1, 17831058000),
        (" qemu-system-x86-31218 [000] 159269.806546: ", "qemu-system-x86", 31218, -1, 0, 159269806546000),
        (" qemu-system-x86-1695082 [012] ...1. 722267.552895: ", "qemu-system-x86", 1695082, -1, 12, 722267552895000),
        ("             vmm-160     [001] .....    17.831058123: ", "vmm", 160, -1, 1, 17831058123),
        ("             vmm-160     [001] .....   123456789012: ", "vmm", 160, -1, 1, 123456789012),
        ("       CPU 0/KVM-157     (    154) [000] .....    17.000001: ", "CPU 0/KVM", 157, 154, 0, 17000001000),
        ("           <...>-2677  [101]   840.863656: ", "<...>", 2677, -1, 101, 840863656000),
        ("          <idle>-0       [000] d.h..   840.863656: ", "<idle>", 0, -1, 0, 840863656000),
        (" kworker/u8:1-ev-77      [000] .....   840.863656: ", "kworker/u8:1-ev", 77, -1, 0, 840863656000),
        ("   a [001] b-12-77       [000] .....   840.863656: ", "a [001] b-12", 77, -1, 0, 840863656000),
        ("        a: 1.5: -77      [000] .....   840.863656: ", "a: 1.5:", 77, -1, 0, 840863656000),
        ("         x(y) (z)-77      (     70) [002] .....   840.863656: ", "x(y) (z)", 77, 70, 2, 840863656000),
        ("                -77      [000] .....   840.863656: ", "", 77, -1, 0, 840863656000),
        ("CPU 1/KVM  4242/4250  [003]   100.000020: ", "CPU 1/KVM", 4250, 4242, 3, 100000020000),
        ("     vmm-152       1..... 2784225us#: ", "vmm", 152, -1, 1, 2784225000),
        ("CPU 0/KV-157      10d..1. 4337942us : ", "CPU 0/KV", 157, -1, 10, 4337942000),
        ("     vmm-511       0d... 3952278us!: ", "vmm", 511, -1, 0, 3952278000),
        (
            "             vmm     152   1 0 00000000 0000001f [0000001f] 0.031ms (+0.100ms): ",
            "vmm", 152, -1, 1, 31000,
        ),
        ("", None, -1, -1, -1, 0),
    ],
)  # fmt: skip
def test_header_forms(
    tmp_path: Path, header: str, comm: str | None, pid: int, tgid: int, cpu: int, ts_ns: int
) -> None:
    trace = read(tmp_path, header + BODY + "\n")
    assert (trace.events, trace.malformed) == (1, [])
    batch = only(trace)
    found = trace.comms[batch.comm[0]] if batch.comm[0] >= 0 else None
    assert (found, batch.pid[0], batch.tgid[0], batch.cpu[0]) == (comm, pid, tgid, cpu)
    assert batch.ts_ns[0] == ts_ns
    assert (batch.kind[0], batch.addr[0]) == (Kind.SET_DIRTY_BIT, 0x1000)


WUX = Role.ACC_READ | Role.ACC_WRITE | Role.ACC_USER | Role.ACC_EXEC
SP = "sp gen 0 gfn 12200 l1 8-byte q0 direct wux nxe ad root 0 sync"


@pytest.mark.parametrize(
    ("text", "role", "flags", "num"),
    [
        (SP, 1 | Role.DIRECT | WUX | Role.EFER_NX, 0, 0),
        ("sp gen 1 gfn 12200 l2 8-byte q0 wux nxe ad root 3 unsync",
         2 | WUX | Role.EFER_NX | Role.GEN, Flag.UNSYNC, 3),
        ("sp gen 1f gfn 12200 1 pae q0 direct wux !nxe root 0 sync", 1 | Role.DIRECT | WUX | Role.GEN, 0, 0),
        ("sp gfn 12200 1 q3 --x nxe root 6 sync",
         1 | Role.HAS_4_BYTE_GPTE | 3 << 5 | Role.ACC_READ | Role.ACC_EXEC | Role.EFER_NX, 0, 6),
        ("sp gfn 12200 l3 4-byte q2 -u- !nxe !ad root 0 sync",
         3 | Role.HAS_4_BYTE_GPTE | 2 << 5 | Role.ACC_READ | Role.ACC_USER | Role.AD_DISABLED, 0, 0),
        ("sp gen 0 gfn 12200 l4 8-byte q0 direct --- invalid nxe ad root 1 sync",
         4 | Role.DIRECT | Role.ACC_READ | Role.INVALID | Role.EFER_NX, 0, 1),
        ("sp gen 0 gfn 12200 l1 8-byte q1 direct rwu- nxe ad root 0 sync",
         1 | 1 << 5 | Role.DIRECT | Role.ACC_READ | Role.ACC_WRITE | Role.ACC_USER | Role.EFER_NX, 0, 0),
        ("sp gen 0 gfn 12200 l1 8-byte q0 --ux nxe ad root 0 sync",
         1 | Role.ACC_USER | Role.ACC_EXEC | Role.EFER_NX, 0, 0),
        ("sp gen 0 gfn 12200 l1 8-byte q0 ---- nxe ad root 0 sync", 1 | Role.EFER_NX, 0, 0),
        ("sp gen 0 gfn 12200 l1 8-byte q0 direct wux nxe ad root 0 sync later words",
         1 | Role.DIRECT | WUX | Role.EFER_NX, 0, 0),
    ],
)  # fmt: skip
def test_page_text_of_every_kernel(tmp_path: Path, text: str, role: int, flags: int, num: int) -> None:
    expected = {"kind": Kind.PREPARE_ZAP_PAGE, "gfn": 0x12200, "level": role & 15, "role": int(role)}
    expected |= {"flags": int(flags)} if flags else {}
    expected |= {"num": num} if num else {}
    assert payload(tmp_path, f"kvm_mmu_prepare_zap_page: {text}") == expected


@pytest.mark.parametrize(
    "role",
    [
        "8-byte q0 d irect wux nxe ad",  # cut in two by a mailer
        "8-by te q0 direct wux nxe ad",
        "8-byte q0 direct wux n xe ad",
        "8-byte q0 direct wux nx",
        "8-byte q0 direct wux ad",  # every kernel prints nxe or !nxe
        "8-byte q0 direct nxe ad",
        "8-byte direct wux nxe ad",
        "8-byte q0 direct wux nxe ad mirror",
        "8-byte q0 Direct wux nxe ad",
        "16-byte q0 direct wux nxe ad",
        "8-byte q4 direct wux nxe ad",
        "8-byte q0 direct direct wux nxe ad",
        "8-byte q0 wux direct nxe ad",
        "q0 8-byte direct wux nxe ad",
        "8-byte 4-byte q0 direct wux nxe ad",
        "8-byte q0 direct wux nxe !nxe ad",
    ],
)
def test_role_words_that_no_kernel_prints(tmp_path: Path, role: str) -> None:
    """Such a line is malformed: without the word it would be another page."""
    good = "sp gen 0 gfn 12200 l1 8-byte q0 direct wux nxe ad root 0 sync"
    bad = f"sp gen 0 gfn 12200 l1 {role} root 0 sync"
    lines = [f"{HEAD}kvm_mmu_prepare_zap_page: {text}\n" for text in (good, bad, good)]
    trace = read(tmp_path, "".join(lines))
    assert (trace.events, [number for number, _ in trace.malformed]) == (2, [2])


@pytest.mark.parametrize(
    "event",
    [
        "kvm_mmu_spte_requested: gfn 12200 pfn 9a000 level 1",
        "kvm_page_fault: vcpu 0 rip 0xffffffff81001000 address 0x0000000012200000 error_code 0x6",
        "kvm_mmu_set_spte: gfn 12200 spte 9a000e67 (rwxu) level 1 at 2717a010",
        "kvm_mmu_split_huge_page: gfn 12200 spte 9a000e67 level 2 errno -28",
        "fast_page_fault: vcpu 0 gva 7f01 error_code W sptep 00000000abcd1234 old 0xb new c spurious 0 fixed 1",
        f"kvm_mmu_prepare_zap_page: {SP}",
        f"kvm_mmu_get_page: {SP} new",
    ],
)
def test_what_a_patched_kernel_adds_after_a_comma(tmp_path: Path, event: str) -> None:
    plain = payload(tmp_path, event)
    assert payload(tmp_path, f"{event}, seq = 0x80001f2a, root = fresh") == plain
    assert payload(tmp_path, f"{event},seq=1") == plain
    # after a shape of the text has been learned
    lines = [f"{HEAD}{event}{tail}\n" for tail in ("", ", access 7", ",x", "", ", access 7", ",234", ";")]
    trace = read(tmp_path, "".join(lines))
    assert [number for number, _ in trace.malformed] == [6, 7]  # ",234" is of the number
    assert only(trace).line.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "record",
    [
        "PERF_RECORD_MMAP2 4310/4310: [0x55d3c0a00000(0x1c000) @ 0 fe:01 131 77]: r-xp /usr/bin/vmm",
        "PERF_RECORD_COMM: CPU 0/KVM:4301/4310",
        "PERF_RECORD_COMM exec: kvm_mmu_set_spte: 4301/4310",
        "PERF_RECORD_FORK(4301:4311):(4301:4301)",
        "PERF_RECORD_SWITCH_CPU_WIDE IN           prev pid/tid: 4301/4310",
    ],
)
def test_records_of_perf_itself(tmp_path: Path, record: str) -> None:
    head = "       CPU 0/KVM  4310 [001]   812.001600: "
    text = f"{head}{record}\n{head}kvmmmu:{BODY}\n"
    trace = read(tmp_path, text)
    assert (trace.events, trace.kvmmmu_events, trace.malformed_lines, trace.lost_events) == (1, 1, 0, 0)
    lost = read(tmp_path, text + f"{head}PERF_RECORD_LOST lost 7\n{head}PERF_RECORD_LOST_SAMPLES lost 3\n")
    assert (lost.events, lost.malformed_lines, lost.lost_events) == (3, 0, 10)


def test_lines_of_trace_printk_are_others(tmp_path: Path) -> None:
    """As in trace.dat, but for those that are control lines."""
    head = "             vmm-4301  [002]   812.001401: "
    texts = ("bprint:               do_something: step=pre q=7", "bputs:                0xffffffff: done")
    marker = "print:                tracing_mark_write: a word"
    control = ("bprint:               f: replay: resched", "bputs:                f: replay: resched")
    trace = read(tmp_path, "".join(f"{head}{text}\n" for text in (*texts, marker, *control)))
    assert only(trace).kind.tolist() == [Kind.MARK_TEXT, Kind.MARK_RESCHED, Kind.MARK_RESCHED]
    assert trace.ignored_events == {"bprint": 1, "bputs": 1}
    assert trace.texts == ["a word", "resched"]


@pytest.mark.parametrize(
    ("name", "end", "kind", "flags"),
    [
        ("kvm_mmu_get_page", "sync new", Kind.GET_PAGE, Flag.CREATED),
        ("kvm_mmu_get_page", "unsync existing", Kind.GET_PAGE, Flag.UNSYNC),
        ("kvm_mmu_sync_page", "unsync", Kind.SYNC_PAGE, Flag.UNSYNC),
        ("kvmmmu:kvm_mmu_unsync_page", "sync", Kind.UNSYNC_PAGE, 0),
    ],
)
def test_page_events(tmp_path: Path, name: str, end: str, kind: Kind, flags: int) -> None:
    found = payload(tmp_path, f"{name}: {SP.removesuffix('sync')}{end}")
    assert found["kind"] == kind
    assert found.get("flags", 0) == flags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kvm_mmu_pagetable_walk: addr ffffffff810551b8 pferr 10 F",
         {"kind": 1, "addr": 0xFFFFFFFF810551B8, "code": 0x10}),
        ("kvm_mmu_pagetable_walk: addr fffffe0000201040 pferr 0 ", {"kind": 1, "addr": 0xFFFFFE0000201040}),
        ("kvm_mmu_paging_element: pte 2929067 level 4", {"kind": 2, "spte": 0x2929067, "level": 4}),
        ("kvm_mmu_set_accessed_bit: gpa 3a22e128", {"kind": 3, "addr": 0x3A22E128}),
        ("kvm_mmu_walker_error: pferr 3 P|W", {"kind": 5, "code": 3}),
        ("mark_mmio_spte: sptep:000000009203b09c gfn fee00 access 7 gen 8",
         {"kind": 10, "sptep": 0x9203B09C, "gfn": 0xFEE00, "code": 7, "num": 8}),
        ("mark_mmio_spte: sptep:0xffff8c854c1c5000 gfn fee00 access 7 gen 8",
         {"kind": 10, "sptep": 0xFFFF8C854C1C5000, "gfn": 0xFEE00, "code": 7, "num": 8}),
        ("mark_mmio_spte: sptep:(____ptrval____) gfn fee00 access 7 gen 8",
         {"kind": 10, "gfn": 0xFEE00, "code": 7, "num": 8}),
        ("handle_mmio_page_fault: addr:fee000b0 gfn fee00 access 7",
         {"kind": 11, "addr": 0xFEE000B0, "gfn": 0xFEE00, "code": 7}),
        ("fast_page_fault: vcpu 4 gva 20fe612 error_code P|W|F sptep 00000000fd98c937 old 0x61000034d4fe877 "
         "new 61000034d4fe879 spurious 1 fixed 0",
         {"kind": 12, "num": 4, "addr": 0x20FE612, "code": 0x13, "sptep": 0xFD98C937,
          "old_spte": 0x61000034D4FE877, "spte": 0x61000034D4FE879, "flags": Flag.SPURIOUS}),
        ("fast_page_fault: vcpu 0 gva 20fe612 error_code  sptep 0000000000000001 old 0x1 new 2 "
         "spurious 0 fixed 1",
         {"kind": 12, "addr": 0x20FE612, "sptep": 1, "old_spte": 1, "spte": 2, "flags": Flag.FIXED}),
        ("fast_page_fault: vcpu 0 gva 20fe612 error_code P|W|U|0x100000000 sptep 0000000000000001 old 0x1 new 2 "
         "spurious 0 fixed 0",
         {"kind": 12, "addr": 0x20FE612, "code": 0x100000007, "sptep": 1, "old_spte": 1, "spte": 2}),
        ("kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 1 used_pages 1a2b", {"kind": 13, "code": 1, "num": 0x1A2B}),
        ("kvm_mmu_invalidate_zap_all_pages: kvm-mmu-valid-gen 1f used_pages 2",
         {"kind": 13, "code": 0x1F, "num": 2}),
        ("check_mmio_spte: spte fff8000000008a7 kvm_gen 8 spte-gen 9 valid 1",
         {"kind": 14, "spte": 0xFFF8000000008A7, "num": 8, "code": 9, "flags": Flag.VALID}),
        ("kvm_mmu_set_spte: gfn 800 spte 100b4a00ea7 (rwxu) level 2 at 10052fa5020",
         {"kind": 15, "gfn": 0x800, "spte": 0x100B4A00EA7, "level": 2, "sptep": 0x10052FA5020}),
        ("kvm_mmu_set_spte: gfn 800 spte 100b4a00ea7 (r-x) level 1 at 10052fa5020",
         {"kind": 15, "gfn": 0x800, "spte": 0x100B4A00EA7, "level": 1, "sptep": 0x10052FA5020}),
        ("kvm_mmu_spte_requested: gfn 84d pfn 100b4a4d level 2",
         {"kind": 16, "gfn": 0x84D, "num": 0x100B4A4D, "level": 2}),
        ("kvm_mmu_spte_requested: gfn 84d pfn 100b4a4d level 2 access f",
         {"kind": 16, "gfn": 0x84D, "num": 0x100B4A4D, "level": 2}),
        ("kvm_tdp_mmu_spte_changed: as id 1 gfn 40000 level 2 old_spte 8000000000000000 new_spte 80000001000005a0",
         {"kind": 17, "num": 1, "gfn": 0x40000, "level": 2, "old_spte": 1 << 63, "spte": 0x80000001000005A0}),
        ("kvm_mmu_split_huge_page: gfn 12400 spte 8000000114a00ee7 level 3 errno -95",
         {"kind": 18, "gfn": 0x12400, "spte": 0x8000000114A00EE7, "level": 3, "num": -95}),
        ("kvm_page_fault: vcpu 1 rip 0xffffffff81001000 address 0x0000000012345678 error_code 0x200000006",
         {"kind": 20, "num": 1, "addr": 0x12345678, "code": 0x200000006}),
        ("kvm_page_fault: address 84d000 error_code 4", {"kind": 20, "num": -1, "addr": 0x84D000, "code": 4}),
        ("kvm_unmap_hva_range: mmu notifier unmap range: 0x00007f7c9fc00000 -- 0x00007f7c9fe00000",
         {"kind": 21, "addr": 0x7F7C9FC00000, "end": 0x7F7C9FE00000}),
    ],
)  # fmt: skip
def test_payloads(tmp_path: Path, text: str, expected: dict[str, int]) -> None:
    assert payload(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("set_region: (__kvm_set_memory_region+0x0/0x4e0 [kvm]) slot=1 flags=0x1 gpa=0x40000000 size=0x8000000 "
         "uaddr=0x7f9c17a00000",
         {"kind": Kind.SET_REGION, "num": 1, "code": 1, "gfn": 0x40000, "end": 0x48000, "addr": 0x7F9C17A00000}),
        ("kvmlab:set_region: (ffffffffc03d7d40) size=0 note=x gpa=8192 uaddr=18446744073709551615 flags=0 slot=2",
         {"kind": Kind.SET_REGION, "num": 2, "gfn": 2, "end": 2, "addr": U64}),
        ("commit_region: (kvm_arch_commit_memory_region+0x0/0x220 [kvm]) change=3", {"kind": 31, "num": 3}),
        ("slot_try_split: (kvm_mmu_slot_try_split_huge_pages+0x4/0xa0 [kvm]) target_level=1",
         {"kind": 32, "level": 1}),
        ("slot_try_split_ret: (kvm_mmu_slot_apply_flags+0x1/0x2 [kvm] <- kvm_mmu_slot_try_split_huge_pages)",
         {"kind": 33}),
        ("shadow_try_split: (f+0x0/0x0 [kvm]) start=0x40000 end=262208 target_level=1",
         {"kind": 36, "gfn": 0x40000, "end": 0x40040, "level": 1}),
        ("change_mmu_pages: (kvm_mmu_change_mmu_pages+0x0/0x50 [kvm]) goal=491", {"kind": 38, "num": 491}),
        ("flush_remote_tlbs: (kvm_flush_remote_tlbs+0x0/0x50 [kvm])", {"kind": 39}),
        ("flush_remote_tlbs_range: (f+0x0/0x0) start_gfn=0x40000 pages=512",
         {"kind": 41, "gfn": 0x40000, "end": 0x40200}),
        ("flush_remote_tlbs_addr: (f+0x0/0x0)", {"kind": 40}),
        ("topup_cache: (f+0x0/0x0) capacity=40 min=14 what=(fault)", {"kind": 44, "num": 40, "code": 14}),
        ("v2_lock_dropped: (f+0x0/0x0) gfn=0x40000 level=2 reason=1 flush=1",
         {"kind": 60, "gfn": 0x40000, "level": 2, "code": 1, "num": 1}),
        ("v2_split_done: (f+0x0/0x0) huge_gfn=0x40000 huge_level=2 present=512 nonpresent=3",
         {"kind": 64, "gfn": 0x40000, "level": 2, "num": 512, "code": 3}),
        ("v2_alias_sp: (f+0x0/0x0) gfn=0x1 level=1 role=0x3781 huge_sptep=0xffff8a59a3f5e008",
         {"kind": 65, "gfn": 1, "level": 1, "code": 0x3781, "sptep": 0xFFFF8A59A3F5E008}),
        ("v2_final_flush: (f+0x0/0x0) base_gfn=0x40000 npages=0x4000",
         {"kind": 69, "gfn": 0x40000, "end": 0x44000}),
        ("change_mmu_pages: (f) goal=-1", {"kind": 38, "num": -1}),
    ],
)  # fmt: skip
def test_kprobes(tmp_path: Path, text: str, expected: dict[str, int]) -> None:
    assert payload(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vm_create vm=alpha pid=160", {"kind": 90, "num": 160}),
        ("vm_create", {"kind": 90}),
        ("memslot id=1 base_gfn=0x40000 npages=0x8000 flags=0x1 hva=0x7f0000000000 as=1 vm=alpha",
         {"kind": 91, "num": 1 << 16 | 1, "gfn": 0x40000, "end": 0x48000, "code": 1, "addr": 0x7F0000000000,
          "level": 1}),
        ("memslot npages=0 flags=0 base_gfn=16 id=1 colour=red", {"kind": 91, "num": 1, "gfn": 16, "end": 16}),
        ("manual_dirty_log_protect2 arg=3", {"kind": 92, "num": 3}),
        ("clear_dirty_log slot=1 first_page=64 num_pages=128", {
            "kind": 93, "num": 1, "gfn": 64, "end": 192, "code": U64}),
        ("clear_dirty_log slot=1 first_page=0 num_pages=64 mask=0x1",
         {"kind": 93, "num": 1, "end": 64, "code": 1}),
        ("get_dirty_log slot=2", {"kind": 94, "num": 2}),
        ("nr_mmu_pages n=80", {"kind": 95, "num": 80}),
        ("resched", {"kind": 96}),
        ("scenario C1 begin", {"kind": 97}),
        ("what_is_this x y=z", {"kind": 98}),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "before", ["tracing_mark_write: replay: ", "print:                tracing_mark_write: replay: ",
               "bprint: 0xffffffff9c7c248d: replay: ", "some_function: replay: "],
)  # fmt: skip
def test_markers(tmp_path: Path, before: str, text: str, expected: dict[str, int]) -> None:
    assert payload(tmp_path, before + text) == expected
    assert read_trace(str(tmp_path / "trace.txt")).texts == [text]


def test_other_marker_text_is_kept_as_it_is(tmp_path: Path) -> None:
    trace = read(tmp_path, f"{HEAD}tracing_mark_write:   lab: replay: é=1 \r\n{HEAD}tracing_mark_write: \n")
    assert only(trace).kind.tolist() == [Kind.MARK_TEXT] * 2
    assert [trace.texts[n] for n in only(trace).text] == ["  lab: replay: é=1 ", ""]


MALFORMED = [
    "kvm_mmu_get_page: sp gen 0 gfn 12200 l1 8-byte q0 direct wux nxe ad root 0 sync",
    "kvm_mmu_get_page: 1 q0 direct wux !pae nxe wp root 0 sync",
    "kvm_mmu_sync_page: sp gen 0 gfn 12200 l1 8-byte direct wux nxe ad root 0 sync",
    "kvm_mmu_sync_page: sp gen 0 gfn 12200 l1 8-byte q0 direct nxe ad root 0 sync",
    "kvm_mmu_sync_page: sp gen 0 gfn 12200 l0 8-byte q0 direct wux nxe ad root 0 sync",
    "kvm_mmu_sync_page: sp gen 0 gfn 12200 l1 8-byte q0 direct wux nxe ad root x sync",
    "kvm_mmu_sync_page: sp gen 0 gfn 12200 l1 8-byte q0 direct wux nxe ad root 0 sy",
    "kvm_mmu_split_huge_page: gfn 12400 spte 600 level 2 errno",
    "kvm_mmu_split_huge_page: gfn 12400 spte 600 level 2 errno x",
    "kvm_mmu_split_huge_page: gfn 12400 spte 60z level 2 errno 0",
    "kvm_mmu_split_huge_page: gfn 12400 spte 6 level 2 errno 0x",
    "kvm_mmu_split_huge_page: gfn 12345678123456789 spte 6 level 2 errno 0",
    "kvm_mmu_set_dirty_bit:",
    "kvm_page_fault: vcpu 1 rip 0x1 adress 0x1 error_code 0x6",
    "fast_page_fault: vcpu 0 gva 2 error_code Q sptep 1 old 0x1 new 2 spurious 0 fixed 0",
    "set_region: slot=1 flags=0 gpa=0 size=0",
    "set_region: (f+0x0/0x0) slot=1 flags=0 gpa=0",
    "set_region: (f+0x0/0x0) slot=1 flags=0 gpa=0x size=0",
    "change_mmu_pages: (f+0x0/0x0) goal=(fault)",
    "change_mmu_pages: (f+0x0/0x0",
    "tracing_mark_write: replay: memslot id=1 npages=8 flags=0",
    "tracing_mark_write: replay: memslot id=1 base_gfn=zz npages=8 flags=0",
    "tracing_mark_write: replay: nr_mmu_pages 80",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_lines_are_counted_and_leave_nothing(tmp_path: Path, text: str) -> None:
    line = HEAD + text
    trace = read(tmp_path, f"\n{line}\n{HEAD}resched_not_ours: 1\n{HEAD}flush_remote_tlbs: (f)\n")
    assert (trace.lines, trace.events, trace.ignored_lines, trace.malformed_lines) == (4, 1, 2, 1)
    assert trace.malformed == [(2, line.strip())]
    batch = only(trace)
    columns = ("gfn", "addr", "spte", "old_spte", "sptep", "end", "code", "num", "level", "flags", "role")
    assert all(getattr(batch, name)[0] == 0 for name in columns)
    with pytest.raises(MalformedLine, match=r"trace\.txt:2: malformed event"):
        read(tmp_path, f"\n{line}\n", strict=True)


def test_a_known_event_behind_a_broken_header_is_malformed(tmp_path: Path) -> None:
    broken = HEAD.replace("100.0", "1x0.0") + BODY
    trace = read(tmp_path, f"{HEAD}{BODY}\n{broken}\n => kvm_mmu_get_page+0x1/0x2\n")
    assert (trace.events, trace.malformed, trace.ignored_lines) == (1, [(2, broken.strip())], 1)


def test_only_the_first_hundred_malformed_lines_are_kept(tmp_path: Path) -> None:
    trace = read(tmp_path, f"{HEAD}kvm_mmu_walker_error: {'x' * 300}\n" * 120, chunk_bytes=2000)
    assert (trace.malformed_lines, len(trace.malformed)) == (120, 100)
    assert trace.malformed[99][0] == 100
    assert len(trace.malformed[0][1]) == 200


def test_lost_events(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        "# tracer: nop\n# entries-in-buffer/entries-written: 10/25   #P:2\n"
        f"{HEAD}{BODY}\nCPU:1 [LOST 702 EVENTS]\nCPU:12 [LOST EVENTS]\nCPU:3 [7 EVENTS DROPPED]\n"
        "CPU:3 [EVENTS DROPPED]\nCPU 0 is empty\n",
    )
    batch = only(trace)
    assert batch.kind[1:].tolist() == [Kind.LOST_EVENTS] * 4
    assert batch.num[1:].tolist() == [702, -1, 7, -1]
    assert batch.cpu[1:].tolist() == [1, 12, 3, 3]
    assert batch.ts_ns[1:].tolist() == [100000010000] * 4
    assert trace.lost_events == 15 + 702 + 1 + 7 + 1
    assert trace.ignored_lines == 3


def test_a_line_cut_off_has_no_time_of_the_lines_behind_it(tmp_path: Path) -> None:
    """Where its CPU column would be is in another line."""
    lost = "CPU:1 [LOST 7 EVENTS]"
    broken = " " * 10 + HEAD[HEAD.index("[") :].replace("000010", "000099") + BODY
    cut = "x" * (HEAD.index("[") - len(lost) - 12)
    batch = only(read(tmp_path, f"{HEAD}{BODY}\n{cut}\n{lost}\n{broken}\n"))
    assert batch.ts_ns[batch.kind == Kind.LOST_EVENTS].tolist() == [100_000_010_000]


def test_counts_and_times(tmp_path: Path) -> None:
    later = HEAD.replace("100.000010", "200.5")
    trace = read(
        tmp_path,
        f"{later}{BODY}\n{HEAD}kvm_exit: vcpu 0 reason npf\n{HEAD}kvm_exit: vcpu 1\n{HEAD}kvm:kvm_entry: vcpu 0\n"
        f"{HEAD}func <-parent\n<stack trace>\n => func\n\n{HEAD}flush_remote_tlbs: (f)\n",
    )
    assert (trace.lines, trace.events, trace.kvmmmu_events, trace.ignored_lines) == (9, 2, 1, 7)
    assert trace.ignored_events == {"kvm_exit": 2, "kvm_entry": 1}
    assert (trace.first_ts_ns, trace.last_ts_ns) == (100000010000, 200500000000)
    assert only(trace).line.tolist() == [1, 9]


@pytest.mark.parametrize(
    "text",
    [
        f"# nop latency trace v1.1.5 on 6.1.0-50-amd64\n{HEAD}{BODY}\n",
        f"{HEAD}tracing_mark_write: Linux version 6.1.0-50-amd64 (someone)\n",
    ],
)
def test_kernel_version(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).kernel == "6.1.0-50-amd64"


def test_odd_bytes_do_no_harm(tmp_path: Path) -> None:
    junk = bytes(range(256)).replace(b"\n", b"")
    text = HEAD.encode() + BODY.encode() + b"\r\n" + junk + b"\n" + HEAD.encode().replace(b"CPU", b"\xff\0U")
    trace = read(tmp_path, text + BODY.encode() + b"\r\n" + b"\0" * 300 + b"\n" + HEAD.encode()[:-3])
    assert (trace.lines, trace.events, trace.malformed_lines) == (5, 2, 0)
    assert trace.comms == ["CPU 0/KVM", "�\0U 0/KVM"]
    assert only(trace).addr.tolist() == [0x1000, 0x1000]


def test_many_tasks_names_and_texts(tmp_path: Path) -> None:
    count = 5000
    lines = [f"  t{n}-{n + 1} [000] 1.0: {BODY}\n  t-1 [000] 1.0: other_{n}: x\n" for n in range(count)]
    marks = [f"  t-1 [000] 1.0: tracing_mark_write: text {n} {'y' * 100}\n" for n in range(count)]
    trace = read(tmp_path, "".join(lines) + "".join(marks))
    batch = only(trace)
    assert [trace.comms[n] for n in batch.comm[:count]] == [f"t{n}" for n in range(count)]
    assert batch.pid[:count].tolist() == list(range(1, count + 1))
    assert [trace.texts[n] for n in batch.text[count:]] == [f"text {n} {'y' * 100}" for n in range(count)]
    assert trace.ignored_lines == count
    assert 1000 < len(trace.ignored_events) <= count


def test_more_shapes_of_lines_than_are_kept(tmp_path: Path) -> None:
    """They come in sequences and in none, and are forgotten and learned anew."""
    random = Random(3)
    numbers = [[random.getrandbits(4 * random.randint(1, 10)) for _ in range(3)] for _ in range(6000)]
    numbers += numbers[:50] * 4
    text = "".join(
        f"{HEAD}kvm_mmu_set_spte: gfn {gfn:x} spte {spte:x} (rwxu) level 1 at {at:x}\n"
        for gfn, spte, at in numbers
    )
    trace = read(tmp_path, text)
    found = [zip(*(c.tolist() for c in (b.gfn, b.spte, b.sptep)), strict=True) for b in trace.batches()]
    assert [list(row) for rows in found for row in rows] == numbers
    digits = {tuple(len(f"{number:x}") for number in row) for row in numbers}
    assert len(digits) > MAX_SHAPES
