"""One recording in all its forms gives the same rows, up to what a form drops, and the same outcomes."""

# ruff: noqa: E501 (trace lines are long)

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from replay.run import Request, run_trace
from replay.schema import Columns, Kind, Role
from replay.trace.reader import Trace, read_trace
from tests import other_forms as forms
from tests.other_forms import Line

FORMS = Path(__file__).parents[2] / "traces" / "forms"
UNPRINTED = int(Role.CR0_WP | Role.SMEP | Role.SMAP_ANDNOT_WP | Role.GUEST_MODE | Role.PASSTHROUGH)
WITHOUT_GFN = (Kind.SYNC_PAGE, Kind.UNSYNC_PAGE, Kind.PREPARE_ZAP_PAGE)
MARKERS = tuple(kind for kind in Kind if kind >= Kind.MARK_VM_CREATE)
TASK, TIME, COMM = ("pid", "tgid", "comm", "vm"), ("ts_ns",), ("comm",)
ALWAYS = ("line", "text", "tgid")
"""Columns that no form but the native one has, or that are numbered anew."""


def text_of(path: Path) -> str:
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).decode()


@functools.cache
def native(kernel: str) -> str:
    return text_of(FORMS / kernel / "trace.txt.zst")


@functools.cache
def lines(kernel: str) -> tuple[Line, ...]:
    return tuple(forms.native_lines(native(kernel)))


def rows(trace: Trace) -> dict[str, np.ndarray]:
    batches = list(trace.batches())
    return {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in Columns._fields}


def words(trace: Trace, table: dict[str, np.ndarray]) -> list[str | None]:
    return [trace.texts[number] if number >= 0 else None for number in table["text"].tolist()]


def assert_same_rows(
    expected: Trace, got: Trace, dropped: tuple[str, ...] = (), without: tuple[Kind, ...] = ()
) -> None:
    """All rows are the same, but for columns ``dropped`` and kinds ``without``; roles in the bits printed."""
    ours, theirs = rows(expected), rows(got)
    kept = ~np.isin(ours["kind"], without)
    assert kept.sum() == len(theirs["kind"])
    assert got.malformed == []
    for name in set(Columns._fields) - {*dropped, *ALWAYS}:
        left, right = ours[name][kept], theirs[name]
        if name == "role":
            left, right = left & ~np.uint32(UNPRINTED), right & ~np.uint32(UNPRINTED)
        if name == "comm":
            comms = np.array([*expected.comms, None])[left], np.array([*got.comms, None])[right]
            np.testing.assert_array_equal(*comms)
        else:
            np.testing.assert_array_equal(left, right, err_msg=name)
    texts = [text for text, is_kept in zip(words(expected, ours), kept.tolist(), strict=True) if is_kept]
    assert words(got, theirs) == texts


def outcomes(path: Path, **request: Any) -> dict[str, Any]:
    document = run_trace(str(path), Request(**request)).document
    return {
        name: document[name] for name in ("policy", "totals", "expected", "environment", "tdp", "verdict")
    } | {"divergences": document["divergences"]}


RECORDED = [
    *(("linux-6.1", name) for name in ("tc-report", "tc-report-N", "tc-report-R", "perf-script", "perf-script-F")),
    *(("linux-7.3.4", name) for name in ("tc-report", "tc-report-N", "tc-report-R", "perf-script")),
    *(
        ("linux-5.10", name)
        for name in (
            "tc-report", "tc331-report", "tc-report-N", "tc-report-R", "perf-script", "perf-script-F",
            "perf612-script",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "name"), RECORDED)
def test_recorded_forms(kernel: str, name: str) -> None:
    """What the tools printed of one recording; perf has a clock and names of its own and no marker lines."""
    trace = read_trace(str(FORMS / kernel / f"{name}.txt.zst"))
    is_perf = name.startswith("perf")
    without = WITHOUT_GFN if ("report" in name and name[-1] not in "NR") or "612" in name else ()
    reference = read_trace(str(FORMS / kernel / "trace.txt.zst"))
    assert_same_rows(
        reference,
        trace,
        (*TIME, *COMM, "vm") if is_perf else ("vm",),
        (*without, *MARKERS) if is_perf else without,
    )
    assert trace.format == ("perf-script" if is_perf else "trace-cmd")
    kinds = rows(reference)["kind"]
    losses = {f"{name}": int((kinds == kind).sum()) for kind, name in LOSS_NAMES.items()} if without else {}
    assert trace.losses == {name: count for name, count in losses.items() if count}


LOSS_NAMES = {
    Kind.SYNC_PAGE: "kvm_mmu_sync_page without gfn",
    Kind.UNSYNC_PAGE: "kvm_mmu_unsync_page without gfn",
    Kind.PREPARE_ZAP_PAGE: "kvm_mmu_prepare_zap_page without gfn",
}


@pytest.mark.parametrize(("kernel", "name"), [pair for pair in RECORDED if pair[0] != "linux-5.10"])
def test_recorded_forms_have_the_outcomes_of_native_text(kernel: str, name: str) -> None:
    reference = outcomes(FORMS / kernel / "trace.txt.zst")
    got = outcomes(FORMS / kernel / f"{name}.txt.zst")
    assert reference["verdict"] == "match"
    if name == "tc-report":  # what was zapped is not told
        reference["totals"].pop("shadow_pages_used_end")
        got["totals"].pop("shadow_pages_used_end")
    assert got == reference


def trace_cmd_with(**options: Any) -> Callable[[str], str]:
    return lambda kernel: forms.trace_cmd(lines(kernel), **options)


def perf_with(**options: Any) -> Callable[[str], str]:
    return lambda kernel: forms.perf_script(lines(kernel), **options)


def trace_cmd_of_two_files(kernel: str) -> str:
    """``trace-cmd report -i one -i two``: names in a column of their own, each behind its host."""
    prefixes = "         host-1.dat: ", "other/guest-22.dat: "
    return "".join(
        forms.trace_cmd([line], forms.unparsed(), prefix=prefixes[number % 2])
        for number, line in enumerate(lines(kernel))
    )


def trace_cmd_in_ns(kernel: str) -> str:
    return forms.trace_cmd((line._replace(time=f"{line.time}000") for line in lines(kernel)), forms.raw)


def with_stack_traces(kernel: str) -> str:
    """Options stacktrace and userstacktrace: an event of its own behind each, and lines without a header."""
    stack = " => kvm_mmu_get_page+0x1f/0x2d0 [kvm]\n => kvm_page_fault\n"
    text = ""
    for line in native(kernel).splitlines(keepends=True):
        found = forms.NATIVE.match(line)
        text += line
        if found:
            head = line[: found.start("name")]
            text += f"{head}<stack trace>\n{stack}{head}<user stack trace>\n =>  <00007f88db0a1b2c>\n"
    return text


NO_TASK = ("pid", "cpu", "comm", "vm")
SYSLOG = "Nov 22 17:00:{:02d} host kernel: [  12.{:06d}] "
DERIVED: dict[str, tuple[Callable[[str], str], tuple[str, ...], str]] = {
    "trace-cmd -N": (trace_cmd_with(payload=forms.unparsed()), (), "trace-cmd"),
    "trace-cmd, flags": (trace_cmd_with(payload=forms.unparsed(), flags=True), (), "trace-cmd"),
    "trace-cmd -R": (trace_cmd_with(payload=forms.raw), (), "trace-cmd"),
    "trace-cmd -R of old": (trace_cmd_with(payload=forms.old_raw), (), "trace-cmd"),
    "trace-cmd -l": (trace_cmd_with(payload=forms.unparsed(), latency=True), (), "trace-cmd"),
    "trace-cmd -R -l": (trace_cmd_with(payload=forms.raw, raw_latency=True), (), "trace-cmd"),
    "trace-cmd --ts-diff": (trace_cmd_with(payload=forms.unparsed(), difference=True), (), "trace-cmd"),
    "trace-cmd of files": (
        trace_cmd_with(payload=forms.unparsed(), prefix="  host-1.dat: "), (), "trace-cmd"),
    "trace-cmd of two files": (trace_cmd_of_two_files, (), "trace-cmd"),
    "trace-cmd -R -t": (trace_cmd_in_ns, (), "trace-cmd"),
    "stack traces": (with_stack_traces, (), "ftrace"),
    "perf": (perf_with(payload=forms.unparsed()), (), "perf-script"),
    "perf, tid": (perf_with(payload=forms.unparsed(), with_tid=True), (), "perf-script"),
    "perf without cpu": (perf_with(payload=forms.unparsed(), with_cpu=False), ("cpu",), "perf-script"),
    "perf -g": (perf_with(payload=forms.unparsed(), callchain=True), (), "perf-script"),
    "perf -F period": (perf_with(payload=forms.unparsed(), period=True), (), "perf-script"),
    "dmesg": (
        lambda kernel: forms.dmesg(lines(kernel), lambda n: f"[   12.{n:06d}] "), ("ts_ns",), "dmesg"),
    "dmesg of a caller": (
        lambda kernel: forms.dmesg(lines(kernel), lambda n: f"<4>[   12.{n:06d}][ T152] "),
        ("ts_ns",), "dmesg"),
    "syslog": (
        lambda kernel: forms.dmesg(lines(kernel), lambda n: SYSLOG.format(n % 60, n)), ("ts_ns",), "dmesg"),
    "mail": (lambda kernel: forms.mailed(native(kernel)), (), "ftrace"),
    "mail without quotes": (lambda kernel: forms.mailed(native(kernel), quote="", width=64), (), "ftrace"),
    "mail, twice quoted": (lambda kernel: forms.mailed(native(kernel), quote=">> > "), (), "ftrace"),
    "mail of trace-cmd": (
        lambda kernel: forms.mailed(forms.trace_cmd(lines(kernel), forms.unparsed(), flags=True), width=76),
        (), "trace-cmd"),
    "payload only": (lambda kernel: forms.payload_only(lines(kernel)), (*NO_TASK, *TIME), "ftrace"),
}  # fmt: skip
"""Text of a form by the native one, the columns that it drops, and what it is told to be."""


@pytest.mark.parametrize("form", DERIVED)
def test_derived_forms(form: str, tmp_path: Path) -> None:
    write, dropped, told = DERIVED[form]
    path = tmp_path / "trace.txt"
    path.write_text(write("linux-6.1"))
    trace = read_trace(str(path))
    assert_same_rows(read_trace(str(FORMS / "linux-6.1/trace.txt.zst")), trace, (*dropped, "vm"))
    assert trace.format == told
    assert trace.lines == path.read_text().count("\n")


@pytest.mark.parametrize("form", ["mail", "trace-cmd -R", "dmesg", "payload only"])
def test_chunks_make_no_difference(form: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(DERIVED[form][0]("linux-7.3.4"))
    whole, parts = read_trace(str(path)), read_trace(str(path), chunk_bytes=1 << 16, batch_rows=1000)
    assert_same_rows(whole, parts)
    np.testing.assert_array_equal(rows(whole)["line"], rows(parts)["line"])
    assert (whole.lines, whole.events) == (parts.lines, parts.events)


@pytest.mark.parametrize(
    "form",
    [
        "trace-cmd -R of old",
        "trace-cmd -l",
        "trace-cmd --ts-diff",
        "trace-cmd of two files",
        "trace-cmd -R -t",
        "stack traces",
        "perf without cpu",
        "perf -g",
        "dmesg",
        "mail",
        "payload only",
    ],
)
def test_derived_forms_have_the_outcomes_of_native_text(form: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(of_nested_guest(DERIVED[form][0]("linux-6.1")))
    assert outcomes(path) == outcomes(FORMS / "linux-6.1/trace.txt.zst")


def of_nested_guest(text: str) -> str:
    """Set guest_mode, which the native text does not show, in all role words: merged code asks for it."""

    def with_guest_mode(word: re.Match[str]) -> str:
        return f"role={int(word[1]) | 1 << 17}"

    return re.sub(r"role=(\d+)", with_guest_mode, text)


@pytest.mark.parametrize("layout", ["5.1", "5.18", "7.2"])
@pytest.mark.parametrize("form", ["raw", "plugin"])
def test_layouts_of_role_words(layout: str, form: str, tmp_path: Path) -> None:
    """The layout is told by the words; a fourth access bit that is clear is one that is not."""
    kernel = "linux-7.3.4" if layout == "7.2" else "linux-6.1"
    path = tmp_path / "trace.txt"
    payload = forms.unparsed(layout) if form == "raw" else forms.plugin(layout)
    path.write_text(forms.trace_cmd(lines(kernel), payload))
    reference = read_trace(str(FORMS / kernel / "trace.txt.zst"))
    assert_same_rows(reference, read_trace(str(path)), ("vm",), () if form == "raw" else WITHOUT_GFN)


def test_all_bits_of_a_role_word_are_kept(tmp_path: Path) -> None:
    line = "     vmm-7  [000]  1.000001: kvm_mmu_get_page:  mmu_valid_gen=1 gfn=16 role={} root_count=2 unsync=1 created=0\n"
    word = (
        2 | 3 << 5 | 1 << 7 | 0b101 << 8 | 1 << 13 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 24
    )
    (tmp_path / "trace.txt").write_text(line.format(word))
    table = rows(read_trace(str(tmp_path / "trace.txt")))
    expected = 2 | 3 << 5 | Role.DIRECT | Role.ACC_READ | Role.ACC_EXEC | Role.ACC_USER | Role.CR0_WP
    expected |= Role.SMAP_ANDNOT_WP | Role.AD_DISABLED | Role.GUEST_MODE | Role.PASSTHROUGH | Role.IS_MIRROR
    assert table["role"].tolist() == [int(expected | Role.SMM | Role.GEN)]
    assert (table["gfn"][0], table["num"][0], table["flags"][0], table["level"][0]) == (16, 2, 2, 2)


@pytest.mark.parametrize(
    ("kernel", "role"),
    [("5.10.0-46-amd64", 0), ("6.1.0-50-amd64", Role.HAS_4_BYTE_GPTE)],
)
def test_the_kernel_decides_what_role_words_leave_open(kernel: str, role: Role, tmp_path: Path) -> None:
    banner = f"[    0.000000] Linux version {kernel} (builder@host)\n"
    line = "     vmm-7  [000]  1.000001: kvm_mmu_get_page: mmu_valid_gen=0 gfn=16 role=17 root_count=0 unsync=0 created=0\n"
    (tmp_path / "trace.txt").write_text(banner + line)
    trace = read_trace(str(tmp_path / "trace.txt"))
    assert trace.kernel == kernel
    assert rows(trace)["role"].tolist() == [1 | int(role | Role.ACC_READ)]


def test_the_generation_that_the_plugin_drops_is_that_after_the_last_fast_zap(tmp_path: Path) -> None:
    page = "  vmm-7  [000]  1.000001: kvm_mmu_get_page:     new sp gfn 10 1 q0 direct wux !pae nxe wp root 0 sync\n"
    zap = "  vmm-7  [000]  1.000001: kvm_mmu_zap_all_fast: kvm-mmu-valid-gen {} used_pages 1\n"
    (tmp_path / "trace.txt").write_text(page + zap.format(0) + page + zap.format(1) + page)
    trace = read_trace(str(tmp_path / "trace.txt"))
    for _ in range(2):  # batches may be asked for again
        table = rows(trace)
        roles = table["role"][table["kind"] == Kind.GET_PAGE]
        assert (roles & int(Role.GEN) != 0).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CPU:1 [LOST 702 EVENTS]\n", 702),
        ("> CPU:1 [LOST 702 EVENTS]\n", 702),
        ("CPU:7 [204600 EVENTS DROPPED]\n", 204600),
        ("CPU:0 [EVENTS DROPPED]\n", 1),
        ("[   10.000001] CPU:1 [LOST 16 EVENTS]\n", 16),
        ("   vmm     152 [001]     7.864608: PERF_RECORD_LOST lost 23\n", 23),
    ],
)
def test_lost_events_in_every_form(text: str, lost: int, tmp_path: Path) -> None:
    event = "             vmm-152   [001]     8.366334: kvm_mmu_set_dirty_bit: gpa 1000\n"
    (tmp_path / "trace.txt").write_text(event + text + event)
    trace = read_trace(str(tmp_path / "trace.txt"))
    assert trace.lost_events == lost
    assert trace.kvmmmu_events == 2
    assert trace.malformed == []


@pytest.mark.parametrize("word", ["ftrace", "trace-cmd", "perf-script", "dmesg"])
def test_a_format_that_is_asked_for_is_used(word: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(forms.trace_cmd(lines("linux-5.10"), forms.plugin("5.1")))
    trace = read_trace(str(path), file_format=word)
    assert trace.format == word
    pages = sum(forms.is_page(line) for line in lines("linux-5.10"))
    assert trace.malformed_lines == (pages if word == "ftrace" else 0)


@pytest.mark.parametrize("word", ["ftrace", "trace-cmd", "perf-script", "dmesg"])
def test_native_lines_are_read_whatever_the_word_is(word: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(native("linux-6.1"))
    expected, got = read_trace(str(path)), read_trace(str(path), file_format=word)
    assert got.format == word
    assert_same_rows(expected, got)


HEAD = "  vmm-7  [000]  1.000001: "
RAW_LINES = [
    ("fast_page_fault:  vcpu_id=1 cr2_or_gpa=1000 error_code=6 sptep=0xffff8881 old_spte=61000034d4fe875 new_spte=61000034d4fe877 ret=4",
     "fast_page_fault: vcpu 1 gva 1000 error_code W|U sptep 00000000ffff8881 old 0x61000034d4fe875 new 61000034d4fe877 spurious 0 fixed 1"),
    ("fast_page_fault:  vcpu_id=1 cr2_or_gpa=1000 error_code=F sptep=0xffff8881 old_spte=61000034d4fe877 new_spte=61000034d4fe877 ret=5",
     "fast_page_fault: vcpu 1 gva 1000 error_code F sptep 00000000ffff8881 old 0x61000034d4fe877 new 61000034d4fe877 spurious 1 fixed 0"),
    ("mark_mmio_spte:  sptep=0xffff8881 gfn=fee00 access=7 gen=8",
     "mark_mmio_spte: sptep:00000000ffff8881 gfn fee00 access 7 gen 8"),
    ("handle_mmio_page_fault:  addr=fee000b0 gfn=fee00 access=7",
     "handle_mmio_page_fault: addr:fee000b0 gfn fee00 access 7"),
    ("check_mmio_spte:  kvm_gen=8 spte_gen=8 spte=fff8000000008a7",
     "check_mmio_spte: spte fff8000000008a7 kvm_gen 8 spte-gen 8 valid 1"),
    ("check_mmio_spte:  kvm_gen=8 spte_gen=9 spte=fff8000000008a7",
     "check_mmio_spte: spte fff8000000008a7 kvm_gen 8 spte-gen 9 valid 0"),
    ("kvm_unmap_hva_range:  start=0x007f88db0000 end=0x007f88dc0000",
     "kvm_unmap_hva_range: mmu notifier unmap range: 0x007f88db0000 -- 0x007f88dc0000"),
    ("kvm_page_fault:  fault_address=fee00 error_code=14", "kvm_page_fault: address fee00 error_code 14"),
    ("kvm_mmu_walker_error:  pferr=b", "kvm_mmu_walker_error: pferr b P|W|RSVD"),
    ("kvm_mmu_set_dirty_bit:  gpa=3a22e128", "kvm_mmu_set_dirty_bit: gpa 3a22e128"),
    ("set_region:  __probe_ip=ffffffffc0362ad0 slot=1 flags=0x0 gpa=0x1000 size=0x2000 uaddr=0x0",
     "set_region: (f+0x0/0x10 [kvm]) slot=1 flags=0x0 gpa=0x1000 size=0x2000 uaddr=0x0"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "native_text"), RAW_LINES)
@pytest.mark.parametrize("head", [HEAD, ""])
def test_raw_fields(raw: str, native_text: str, head: str, tmp_path: Path) -> None:
    paths = tmp_path / "raw.txt", tmp_path / "native.txt"
    for path, line in zip(paths, (raw, native_text), strict=True):
        path.write_text(head + line + "\n")
    assert_same_rows(read_trace(str(paths[1])), read_trace(str(paths[0])))


@pytest.mark.parametrize(
    "text",
    [
        "kvm_mmu_get_page: [FAILED TO PARSE] mmu_valid_gen=0 gfn=1 role=17 root_count=0 unsync=0",
        "kvm_mmu_get_page: [FAILED TO PARSE] mmu_valid_gen=0 gfn=1 role=16 root_count=0 unsync=0 created=1",
        "kvm_mmu_get_page: [FAILED TO",
        "kvm_mmu_sync_page: [FAILED TO PARSE] gfn=1 role=17 unsync=0 root_count",
        "kvm_mmu_spte_requested:  gfn=10 pfn=11g level=1",
        "kvm_mmu_spte_requested:  gfn=10 pfn=11 level=16",
        "kvm_mmu_spte_requested:  gfn=10 pfn= level=1",
        "kvm_mmu_spte_requested:  gfn=10 level=1 pfn",
        "fast_page_fault:  vcpu_id=1 cr2_or_gpa=1 error_code=Z sptep=0x1 old_spte=1 new_spte=2 ret=4",
    ],
)
def test_malformed_raw_fields(text: str, tmp_path: Path) -> None:
    other = HEAD + "kvm_mmu_spte_requested:  gfn=10 pfn=118a71 level=1\n"
    (tmp_path / "trace.txt").write_text(other + HEAD + text + "\n" + other)
    trace = read_trace(str(tmp_path / "trace.txt"))
    assert (trace.events, trace.lines) == (2, 3)
    assert [line for line, _ in trace.malformed] == [2]


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("existing sp gfn 3a22e 1/4 q3 direct --x !pge !nxe root 6 sync", 1 | 3 << 5 | Role.DIRECT | Role.ACC_EXEC),
        ("existing sp gfn 3a22e 1 q3 direct --x pae !nxe !wp root 6 sync\0",
         1 | 3 << 5 | Role.DIRECT | Role.ACC_EXEC | Role.HAS_4_BYTE_GPTE),
        ("existing sp gfn 3a22e 2 q0 -u- invalid !pae !nxe wp smep smap smm root 6 sync",
         2 | Role.ACC_EXEC | Role.ACC_USER | Role.CR0_WP | Role.EFER_NX | Role.SMAP_ANDNOT_WP | Role.SMM),
        ("existing sp gfn 3a22e WORD: 00020791", 1 | 16 | Role.DIRECT | Role.ACC_USER | Role.ACC_WRITE
         | Role.ACC_EXEC | Role.GUEST_MODE),
    ],
)  # fmt: skip
def test_plugin_texts(text: str, role: Role, tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text(f"{HEAD}kvm_mmu_get_page:     {text}\n", newline="")
    trace = read_trace(str(tmp_path / "trace.txt"))
    table = rows(trace)
    assert trace.malformed == []
    assert int(table["gfn"][0]) == 0x3A22E
    expected = int(role) if "invalid" in text else int(role | Role.ACC_READ)  # bit 11 is an access bit there
    assert int(table["role"][0]) == expected


@pytest.mark.parametrize("before", [10, 5000])
def test_a_form_that_begins_late_is_found(before: int, tmp_path: Path) -> None:
    """Behind many malformed lines few are looked at: what is lost are the first of the other form."""
    page = "kvm_mmu_get_page:     new sp gfn 10 1 q0 direct wux !pae nxe wp root 0 sync"
    lines = [HEAD + "kvm_mmu_get_page: sp of another world"] * before
    lines += [HEAD + page, HEAD + "kvm_mmu_sync_page: nonsense"] * 1000
    (tmp_path / "trace.txt").write_text("\n".join(lines) + "\n")
    trace = read_trace(str(tmp_path / "trace.txt"))
    assert trace.lines == before + 2000
    assert 950 < trace.events <= 1000


def test_lines_that_someone_has_shortened(tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text(
        "kvm_page_fault:       vcpu 1 address 0x3231000 error_code 0xf82\n"
        "kvm_mmu_set_spte:       gfn 3231 spte 6000001c6e00b77 (rwxu) level 1\n"
    )
    trace = read_trace(str(tmp_path / "trace.txt"))
    assert trace.malformed == []
    assert rows(trace)["addr"].tolist() == [0x3231000]
    assert trace.losses == {"kvm_mmu_set_spte without sptep": 1}
