"""Records of trace.dat files that no recording has: encodings of pages, role layouts, losses, instances."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from replay.errors import MalformedLine, TraceError
from replay.schema import Flag, Kind, Role
from replay.trace.reader import Trace, read_trace
from tests.trace.dat_files import (
    PRINT,
    Buffer,
    Contents,
    Event,
    discarded,
    marker,
    number,
    option,
    page,
    record,
    time_extend,
    time_stamp,
    version_6,
    version_7,
)

WALKER_ERROR = Event("kvm_mmu_walker_error", 100, "u32 pferr")
OTHER = Event("sched_switch", 101, "u32 prev_pid")
BIG = Event("kvm_mmu_set_dirty_bit", 102, "u64 gpa, " + ", ".join(f"u64 filler{n}" for n in range(20)))
BASE = (("ftrace", PRINT), ("kvmmmu", WALKER_ERROR.format()), ("sched", OTHER.format()), ("k", BIG.format()))


def error(code: int, delta: int = 0, pid: int = 77) -> bytes:
    return record(WALKER_ERROR.data(code, pid=pid), delta)


def read(
    tmp_path: Path,
    *buffers: Buffer | dict[int, bytes],
    formats: tuple[tuple[str, str], ...] = BASE,
    write: Callable[[Contents], bytes] = version_7,
    strict: bool = False,
    **more: object,
) -> Trace:
    wrapped = [known if isinstance(known, Buffer) else Buffer(known) for known in buffers]
    path = tmp_path / "trace.dat"
    path.write_bytes(write(Contents(formats, wrapped, **more)))  # type: ignore[arg-type]
    return read_trace(str(path), strict=strict)


def column(trace: Trace, name: str) -> list[object]:
    return trace.table()[name].to_pylist()


# -- pages ----------------------------------------------------------------------------------------------


def test_times(tmp_path: Path) -> None:
    far = 5 << 27
    records = [
        error(1, 3),
        time_extend(far + 7),
        error(2, 4),
        discarded(12, 100),
        error(3, 1),
        time_stamp(99 << 27 | 5),
        error(4),
        error(5, (1 << 27) - 1),
    ]
    trace = read(tmp_path, {0: page(1000, records) + page(200 << 27, [error(6)])})
    third = 1003 + far + 7 + 4 + 100 + 1
    assert column(trace, "ts_ns") == [
        1003,
        1003 + far + 11,
        third,
        99 << 27 | 5,
        (99 << 27 | 5) + (1 << 27) - 1,
        200 << 27,
    ]
    assert column(trace, "code") == [1, 2, 3, 4, 5, 6]
    assert (trace.first_ts_ns, trace.last_ts_ns) == (1003, 200 << 27)


def test_absolute_times_lack_the_highest_bits(tmp_path: Path) -> None:
    start = 3 << 59 | 17
    clock = (1 << 59) - 1 & (start + 1000)
    trace = read(tmp_path, {0: page(start, [error(1), time_stamp(clock), error(2, 2)])})
    assert column(trace, "ts_ns") == [start, start + 1002]


def test_large_records_and_padding(tmp_path: Path) -> None:
    large = record(BIG.data(0x5000, *range(20)))
    null = number(29, 4) + b"\xff" * 8  # the rest of a page
    trace = read(
        tmp_path, {0: page(10, [error(1), large, error(2), null]) + page(20, []) + page(30, [error(3)])}
    )
    assert column(trace, "kind") == [Kind.WALKER_ERROR, Kind.SET_DIRTY_BIT, *[Kind.WALKER_ERROR] * 2]
    assert column(trace, "addr") == [0, 0x5000, 0, 0]


def test_pages_of_a_32_bit_kernel(tmp_path: Path) -> None:
    pages = page(10, [error(1)], lost=3, long_size=4)
    trace = read(tmp_path, {0: pages}, long_size=4)
    assert column(trace, "kind") == [Kind.LOST_EVENTS, Kind.WALKER_ERROR]
    assert trace.lost_events == 3


@pytest.mark.parametrize("write", [version_6, version_7, lambda contents: version_7(contents, "zstd")])
@pytest.mark.parametrize("cpus", [1, 2, 7, 40])
def test_cpus_are_merged_by_time(tmp_path: Path, write: Callable[[Contents], bytes], cpus: int) -> None:
    chance = random.Random(cpus)
    pages: dict[int, bytes] = {}
    expected: list[tuple[int, int, int]] = []
    for cpu in range(cpus):
        clock, code, data = chance.randrange(50), 0, b""
        for _ in range(chance.randrange(4)):
            records = []
            start = clock
            for _ in range(chance.randrange(60)):
                delta = chance.choice((0, 0, 1, 2, 30))
                clock += delta
                code += 1
                records.append(error(code, delta))
                expected.append((clock, cpu, code))
            data += page(start, records)
            clock += 5
        pages[cpu] = data
    trace = read(tmp_path, pages, write=write)
    rows = zip(*(column(trace, name) for name in ("ts_ns", "cpu", "code")), strict=True)
    assert list(rows) == sorted(expected)
    assert column(trace, "line") == list(range(1, len(expected) + 1))


def test_cpus_need_not_be_numbered_from_0(tmp_path: Path) -> None:
    trace = read(tmp_path, {5: page(20, [error(1)]), 3: page(20, [error(2)])})
    assert column(trace, "cpu") == [3, 5]


# -- losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "num", "total"), [(12, 12, 12), (-1, -1, 1)])
def test_lost_events(tmp_path: Path, lost: int, num: int, total: int) -> None:
    pages = page(10, [error(1)]) + page(20, [error(2), error(3)], lost=lost)
    trace = read(tmp_path, {0: page(5, [error(9)]), 1: pages})
    assert column(trace, "kind")[2:4] == [Kind.LOST_EVENTS, Kind.WALKER_ERROR]
    assert (column(trace, "num")[2], column(trace, "cpu")[2], trace.lost_events) == (num, 1, total)
    assert trace.lines == trace.events == 5


def test_events_overwritten_before_the_first_page(tmp_path: Path) -> None:
    stats = (
        b"CPU: 0\nentries: 0\noverrun: 40\ncommit overrun: 2\nbytes: 7\ndropped events: 1\nread events: 9\n\0"
    )
    pages = page(20, [error(2)], lost=3)
    assert read(tmp_path, {0: pages}, options=[(2, stats)]).lost_events == 43
    assert read(tmp_path, {0: pages}, options=[(2, stats.replace(b"40", b"0"))]).lost_events == 3


# -- instances, clocks, names --------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [version_6, version_7])
def test_instances_are_merged(tmp_path: Path, write: Callable[[Contents], bytes]) -> None:
    first = Buffer({0: page(10, [error(1), error(3, 10)]), 1: b""})
    second = Buffer({0: page(15, [error(2)]), 1: page(20, [error(4)])}, "probes")
    trace = read(tmp_path, first, second, write=write)
    assert column(trace, "code") == [1, 2, 3, 4]
    assert column(trace, "cpu") == [0, 0, 0, 1]


def test_instances_of_different_clocks(tmp_path: Path) -> None:
    buffers = [Buffer({0: page(1, [error(1)])}), Buffer({0: page(1, [error(1)])}, "other", "mono")]
    with pytest.raises(TraceError, match=r"different clocks \(local and mono\)"):
        read(tmp_path, *buffers)


def test_offset_and_scale_of_times(tmp_path: Path) -> None:
    options = [(1, b"0x10\0"), (7, b"-500\0"), (14, number(3 << 20, 4) + number(20, 4) + number(0, 8))]
    clock = 7 << 40 | 1001
    trace = read(tmp_path, {0: page(clock, [error(1)])}, options=options)
    assert column(trace, "ts_ns") == [3 * clock + 16_000 - 500]


def test_tasks(tmp_path: Path) -> None:
    records = [error(1), error(2, pid=5), error(3, pid=0), error(4, pid=78), error(5)]
    trace = read(tmp_path, {0: page(10, records)})
    assert column(trace, "comm") == ["CPU 0/KVM", "<...>", "<idle>", "CPU 1/KVM", "CPU 0/KVM"]
    assert column(trace, "pid") == [77, 5, 0, 78, 77]
    assert (column(trace, "tgid"), trace.vms) == ([-1] * 5, ["vm0"])


def test_many_tasks(tmp_path: Path) -> None:
    pids = [random.Random(n).randrange(1 << 22) for n in range(3000)]
    pages = b"".join(
        page(100 * n, [error(n, 1, pid) for pid in pids[n : n + 100]]) for n in range(0, len(pids), 100)
    )
    trace = read(tmp_path, {0: pages})
    assert column(trace, "pid") == pids


def test_saved_tgids(tmp_path: Path) -> None:
    records = [error(1), error(2, pid=90), error(3, pid=91)]
    trace = read(tmp_path, {0: page(10, records)}, options=[(32, b"77 70\n90 80\n91 80\n\0")])
    assert trace.vms == ["tgid 70", "tgid 80"]
    assert column(trace, "vm") == [0, 1, 1]


# -- events --------------------------------------------------------------------------------------------------


def test_events_of_other_kinds(tmp_path: Path) -> None:
    unknown = record(Event("?", 999).data())
    trace = read(tmp_path, {0: page(10, [error(1), record(OTHER.data(4)), unknown, record(OTHER.data(4))])})
    assert (trace.lines, trace.events, trace.ignored_lines, trace.malformed_lines) == (4, 1, 3, 0)
    assert trace.ignored_events == {"sched_switch": 2, "unknown": 1}


def test_a_file_without_formats(tmp_path: Path) -> None:
    trace = read(tmp_path, {0: page(10, [record(OTHER.data(4))])}, formats=())
    assert (trace.events, trace.ignored_events) == (0, {"unknown": 1})


def test_markers(tmp_path: Path) -> None:
    texts = [
        "replay: vm_create vm=a pid=77",
        "replay: memslot id=1 base_gfn=0x40 npages=0x10 flags=1 vm=a",
        "replay: nr_mmu_pages n=64\nsecond line",
        "replay: clear_dirty_log slot=1 first_page=0 num_pages=64",
        "replay: colour blue",
        "lab: hello",
        "replay: memslot id=1",
    ]
    trace = read(tmp_path, {0: page(10, [record(marker(text)) for text in texts])})
    assert column(trace, "kind") == [
        Kind.MARK_VM_CREATE,
        Kind.MARK_MEMSLOT,
        Kind.MARK_NR_MMU_PAGES,
        Kind.MARK_CLEAR_DIRTY_LOG,
        Kind.MARK_UNKNOWN,
        Kind.MARK_TEXT,
    ]
    assert column(trace, "text")[2:] == [
        "nr_mmu_pages n=64",
        "clear_dirty_log slot=1 first_page=0 num_pages=64",
        "colour blue",
        "lab: hello",
    ]
    assert column(trace, "end") == [0, 0x50, 0, 64, 0, 0]
    assert column(trace, "code") == [0, 1, 0, 2**64 - 1, 0, 0]
    assert (trace.vms, trace.malformed) == (["a"], [(7, "print")])


def test_printed_markers(tmp_path: Path) -> None:
    bprint = Event("bprint", 6, "u64 ip, u64 fmt").format()
    bprint += "\tfield:u32 buf[];\toffset:24;\tsize:0;\tsigned:0;\n"
    bputs = Event("bputs", 14, "u64 ip, u64 str")
    printk = (
        '0xffffffff81000010 : "replay: nr_mmu_pages n=%d\\n"\n'
        '0xffffffff81000020 : "replay: memslot id=%hhu base_gfn=0x%llx npages=%u flags=%0*d vm=%s 100%%\\n"\n'
        '0xffffffff81000030 : "replay: resched\\n"\n'
        '0xffffffff81000040 : "hello %s\\n"\n'
    )

    def printing(address: int, arguments: bytes = b"") -> bytes:
        return record(number(6, 2) + bytes(2) + number(77, 4) + number(1, 8) + number(address, 8) + arguments)

    slot = number(3, 1) + bytes(3) + number(0x123456789, 8) + number(512, 4) + number(4, 4) + number(1, 4)
    records = [
        printing(0xFFFFFFFF81000010, number(64, 4)),
        printing(0xFFFFFFFF81000040, b"you\0"),
        printing(0xFFFFFFFF81000020, slot + b"guest\0"),
        record(bputs.data(1, 0xFFFFFFFF81000030)),
        record(bputs.data(1, 0xFFFFFFFF81000099)),
    ]
    formats = (("ftrace", bprint), ("ftrace", bputs.format()))
    trace = read(tmp_path, {0: page(10, records)}, formats=formats, printk=printk)
    assert trace.malformed == [(3, "bprint")]  # a percent sign is no pair
    trace = read(tmp_path, {0: page(10, records)}, formats=formats, printk=printk.replace(" 100%%", ""))
    assert column(trace, "text") == [
        "nr_mmu_pages n=64",
        "memslot id=3 base_gfn=0x123456789 npages=512 flags=0001 vm=guest",
        "resched",
    ]
    assert trace.ignored_events == {"bprint": 1, "bputs": 1}  # as of text


def test_probes(tmp_path: Path) -> None:
    region = Event("set_region", 200, "u64 __probe_ip, u32 flags, u64 gpa, u32 slot, u64 size, u64 uaddr")
    split = Event("slot_try_split", 201, "u64 __probe_ip, s32 target_level")
    back = Event("slot_try_split_ret", 202, "u64 __probe_func, u64 __probe_ret_ip")
    flush = Event("flush_remote_tlbs_range", 203, "u64 __probe_ip, u64 pages, u64 start_gfn")
    dropped = Event("v2_lock_dropped", 204, "u64 __probe_ip, u64 gfn, s32 level, u8 reason, s64 flush")
    events = (region, split, back, flush, dropped)
    records = [
        region.data(1, 3, 0x40000000, 7, 0x800000, 0x7F0000000000),
        split.data(1, 2),
        back.data(1, 2),
        flush.data(1, 512, 0x40000),
        dropped.data(1, 0x40000, 3, 255, -1),
        split.data(1, -2),
    ]
    formats = tuple(("replay", event.format()) for event in events)
    trace = read(tmp_path, {0: page(10, [record(data) for data in records])}, formats=formats)
    assert column(trace, "kind") == [Kind[event.name.upper()] for event in events]
    assert column(trace, "num") == [7, 0, 0, 0, -1]
    assert column(trace, "gfn") == [0x40000, 0, 0, 0x40000, 0x40000]
    assert column(trace, "end") == [0x40800, 0, 0, 0x40200, 0]
    assert column(trace, "code") == [3, 0, 0, 0, 255]
    assert column(trace, "level") == [0, 2, 0, 0, 3]
    assert column(trace, "addr") == [0x7F0000000000, 0, 0, 0, 0]
    assert trace.malformed == [(6, "slot_try_split")]


def test_malformed_records(tmp_path: Path) -> None:
    no_slot = Event("set_region", 200, "u64 __probe_ip, u32 flags, u64 gpa")
    path = Event("nothing", 201)
    text = (
        path.format().replace("nothing", "change_mmu_pages")
        + "\tfield:__data_loc char[] goal;\toffset:8;\tsize:4;\tsigned:0;\n"
    )
    set_spte = Event("kvm_mmu_set_spte", 202, "u64 gfn, u64 spte, u64 sptep, u8 level")
    formats = (("r", no_slot.format()), ("r", text), ("k", set_spte.format()), *BASE)
    records = [
        no_slot.data(1, 2, 3),
        path.data() + bytes(8),
        set_spte.data(1, 2, 3, 4)[:20],
        set_spte.data(1, 2, 3, 0),
        set_spte.data(1, 2, 3, 16),
        WALKER_ERROR.data(6),
        set_spte.data(1, 2, 3, 1),
    ]
    pages = page(10, [record(data) for data in records])
    trace = read(tmp_path, {0: pages}, formats=formats)
    names = ["set_region", "change_mmu_pages", *["kvm_mmu_set_spte"] * 3]
    assert trace.malformed == list(enumerate(names, 1))
    assert (trace.malformed_lines, trace.lines) == (5, 7)
    assert column(trace, "code") == [6, 0]
    assert [column(trace, name)[0] for name in ("gfn", "spte", "sptep", "level")] == [0] * 4
    assert [column(trace, name)[1] for name in ("gfn", "spte", "sptep", "level")] == [1, 2, 3, 1]
    with pytest.raises(MalformedLine, match=r":1: malformed event: set_region"):
        read(tmp_path, {0: pages}, formats=formats, strict=True)


THREE_BITS = '"---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux"'
FOUR_BITS = ", ".join(f'"{n:04b}"' for n in range(16))


def page_event(bit_4: str, texts: str) -> Event:
    print_format = f'"%s", ({{ static const char *access_str[] = {{ {texts} }}; role.{bit_4} ? 4 : 8; }})'
    fields = "u64 gfn, u32 role, u32 root_count, u8 mmu_valid_gen, u8 unsync, u8 created"
    return Event("kvm_mmu_get_page", 300, fields, print_format)


@pytest.mark.parametrize(
    ("bit_4", "texts", "word", "role"),
    [
        ("has_4_byte_gpte", THREE_BITS, 0x1, 0x1 | Role.ACC_READ),
        ("has_4_byte_gpte", THREE_BITS, 0x11, 0x1 | Role.ACC_READ | Role.HAS_4_BYTE_GPTE),
        ("gpte_is_8_bytes", THREE_BITS, 0x11, 0x1 | Role.ACC_READ),
        ("cr4_pae", THREE_BITS, 0x1, 0x1 | Role.ACC_READ | Role.HAS_4_BYTE_GPTE),
        (
            "has_4_byte_gpte",
            THREE_BITS,
            0x1E2,
            0x2 | Role.QUADRANT | Role.DIRECT | Role.ACC_READ | Role.ACC_EXEC,
        ),
        ("has_4_byte_gpte", THREE_BITS, 0x602, 0x2 | Role.ACC_READ | Role.ACC_WRITE | Role.ACC_USER),
        (
            "has_4_byte_gpte",
            THREE_BITS,
            0x3803,
            0x3 | Role.ACC_READ | Role.INVALID | Role.EFER_NX | Role.CR0_WP,
        ),
        ("has_4_byte_gpte", THREE_BITS, 0xC003, 0x3 | Role.ACC_READ | Role.SMEP | Role.SMAP_ANDNOT_WP),
        ("has_4_byte_gpte", THREE_BITS, 0x30004, 0x4 | Role.ACC_READ | Role.AD_DISABLED | Role.GUEST_MODE),
        ("has_4_byte_gpte", THREE_BITS, 0xC0004, 0x4 | Role.ACC_READ | Role.PASSTHROUGH | Role.IS_MIRROR),
        ("has_4_byte_gpte", THREE_BITS, 0x1000005, 0x5 | Role.ACC_READ | Role.SMM),
        ("has_4_byte_gpte", FOUR_BITS, 0x2, 0x2),
        ("has_4_byte_gpte", FOUR_BITS, 0x902, 0x2 | Role.ACC_READ | Role.ACC_EXEC),
        ("has_4_byte_gpte", FOUR_BITS, 0x7602, 0x2 | Role.ACC_WRITE | Role.ACC_USER | 7 << 12),
        (
            "has_4_byte_gpte",
            FOUR_BITS,
            0x138002,
            0x2 | Role.SMAP_ANDNOT_WP | Role.AD_DISABLED | Role.GUEST_MODE | Role.SMEP,
        ),
    ],
)
def test_role_words(tmp_path: Path, bit_4: str, texts: str, word: int, role: int) -> None:
    event = page_event(bit_4, texts)
    records = [event.data(0x200, word, 3, 5, 1, 0), event.data(0x200, word, 3, 4, 0, 2)]
    formats = (("kvmmmu", event.format()),)
    trace = read(tmp_path, {0: page(10, [record(data) for data in records])}, formats=formats)
    assert column(trace, "role") == [role | Role.GEN, role]
    assert column(trace, "level") == [word & 15] * 2
    assert column(trace, "flags") == [Flag.UNSYNC, Flag.CREATED]
    assert (column(trace, "gfn"), column(trace, "num")) == ([0x200] * 2, [3] * 2)


@pytest.mark.parametrize(
    ("field", "print_format", "values", "flags"),
    [
        ("s32 ret", "REC->ret == 5, REC->ret == 4", (4, 5, 3), (Flag.FIXED, Flag.SPURIOUS, 0)),
        (
            "s32 ret",
            "REC->ret == RET_PF_SPURIOUS, REC->ret == RET_PF_FIXED",
            (3, 4, 5),
            (Flag.FIXED, Flag.SPURIOUS, 0),
        ),
        ("u8 retry", "(REC->retry && is_writable_pte(REC->old_spte))", (1, 0), (Flag.FIXED, 0)),
    ],
)
def test_fast_page_fault(
    tmp_path: Path, field: str, print_format: str, values: tuple[int, ...], flags: tuple[int, ...]
) -> None:
    fields = f"s32 vcpu_id, u64 cr2_or_gpa, u32 error_code, u64 sptep, u64 old_spte, u64 new_spte, {field}"
    event = Event("fast_page_fault", 400, fields, print_format)
    records = [record(event.data(3, 0x5008, 7, 0xFFFF888012345678, 0x61, 0x63, value)) for value in values]
    trace = read(tmp_path, {0: page(10, records)}, formats=(("kvmmmu", event.format()),))
    assert column(trace, "flags") == list(flags)
    first = [column(trace, name)[0] for name in ("num", "addr", "code", "sptep", "old_spte", "spte")]
    assert first == [3, 0x5008, 7, 0xFFFF888012345678, 0x61, 0x63]


def test_fields_that_kernels_lack(tmp_path: Path) -> None:
    old = Event("kvm_page_fault", 500, "u64 fault_address, u32 error_code")
    new = Event("kvm_page_fault", 501, "u32 vcpu_id, u64 guest_rip, u64 fault_address, u64 error_code")
    mmio = Event("check_mmio_spte", 502, "u32 kvm_gen, u32 spte_gen, u64 spte")
    zap = Event("kvm_mmu_invalidate_zap_all_pages", 503, "u64 mmu_valid_gen, u32 mmu_used_pages")
    formats = tuple(("kvm", event.format()) for event in (old, new, mmio, zap))
    data = [
        old.data(0x1000, 6),
        new.data(2, 9, 0x1000, 6),
        mmio.data(4, 4, 0x99),
        mmio.data(4, 5, 0x99),
        zap.data(1, 0x30),
    ]
    trace = read(tmp_path, {0: page(10, [record(one) for one in data])}, formats=formats)
    assert column(trace, "num") == [-1, 2, 4, 4, 0x30]
    assert column(trace, "addr") == [0x1000, 0x1000, 0, 0, 0]
    assert column(trace, "code") == [6, 6, 4, 5, 1]
    assert column(trace, "flags") == [0, 0, Flag.VALID, 0, 0]


# -- files that are refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"byte_order": 1}, "big-endian"),
        ({"version": "8"}, "version '8': only versions 6 and 7"),
        ({"header_event": "\ttype : 2 bits\n"}, "before Linux 2.6.31"),
        ({"buffers": ()}, "names no buffer"),
        ({"buffers": (), "options": [(22, bytes(8) + b"\0local\0")]}, "a latency trace, recorded as text"),
        ({"options": [(1, b"soon\0")]}, "time offset is no number"),
        ({"options": [(14, number(1, 4) + number(77, 4) + bytes(8))]}, "time shift 77"),
        ({"buffers": (Buffer({0: page(1, [])}, page_size=8),)}, "pages of 8 bytes"),
        ({"buffers": (Buffer({0: page(1, [number(28, 4)])}),)}, "a page of CPU 0 does not hold its events"),
        ({"buffers": (Buffer({0: page(1, [error(1)])[:-9]}, page_size=1 << 14),)}, None),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, object], message: str | None) -> None:
    contents = replace(Contents(BASE, [Buffer({0: page(1, [error(1)])})]), **change)  # type: ignore[arg-type]
    path = tmp_path / "trace.dat"
    path.write_bytes(version_7(contents))
    if message is None:  # a last page that is cut behind its events is whole enough
        assert read_trace(str(path)).events == 1
        return
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(str(path))
    assert "\n" not in str(caught.value)


def test_options_in_a_circle(tmp_path: Path) -> None:
    data = bytearray(version_7(Contents(BASE, [Buffer({0: page(1, [error(1)])})])))
    place = data.index(b"none\0001.0\0") + 9
    first = int.from_bytes(data[place : place + 8], "little")
    done = data.index(option(0, b"")[:2] + number(8, 4), first + 16)
    while data[done + 6 : done + 14] == bytes(8):  # the DONE that has a successor
        done = data.index(number(0, 2) + number(8, 4), done + 1)
    data[done + 6 : done + 14] = number(first, 8)
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(TraceError, match="in a circle"):
        read_trace(str(tmp_path / "t"))
