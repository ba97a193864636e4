"""A trace as mailers, terminals and other systems hand it on is read as the kernel printed it."""

# ruff: noqa: E501 (trace lines are long)

from __future__ import annotations

import base64
import gzip
import html
import quopri
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replay.errors import TraceError
from replay.schema import Kind
from replay.trace.reader import Trace, read_trace

ROLE = "8-byte q0 direct wux nxe ad root 0 sync"
EVENTS = [
    "tracing_mark_write: replay: vm_create vm=guest pid=4301",
    "tracing_mark_write: replay: memslot id=1 base_gfn=0x7c400 npages=0x800 flags=0x0",
    "tracing_mark_write: a word of the user",
    "kvm_page_fault: vcpu 0 rip 0xffffffff8100beef address 0x000000007c400123 error_code 0x182",
    f"kvm_mmu_get_page: sp gen 0 gfn 7c400 l2 {ROLE} new",
    "kvm_mmu_spte_requested: gfn 7c400 pfn 17c400 level 2",
    "kvm_tdp_mmu_spte_changed: as id 0 gfn 7c400 level 2 old_spte 0 new_spte 60000017c400bf7",
    "kvm_mmu_set_spte: gfn 7c400 spte 60000017c400bf7 (rwxu) level 2 at 104a2e010",
    "fast_page_fault: vcpu 0 gva 7c400ff8 error_code W sptep 00000000fd98c937 old 0x6100001 new 6100003 spurious 0 fixed 1",
    "set_region: (__kvm_set_memory_region+0x0/0x4e0 [kvm]) slot=0 flags=0x1 gpa=0x7c400000 size=0x800000 uaddr=0x7f9c1fc00000",
    "kvm_mmu_split_huge_page: gfn 7c400 spte 60000017c400bf7 level 2 errno -28",
    f"kvm_mmu_prepare_zap_page: sp gen 1 gfn 7c400 l1 {ROLE}",
    "kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0xffffffff8100beef",
]
LINES = [
    f" CPU 0/KVM-4310    [002] d..1. {812 + number / 1e4:12.6f}: {event}"
    for number, event in enumerate(EVENTS)
]
TEXT = "".join(f"{line}\n" for line in LINES)
WRAPPABLE = TEXT.replace(f"{LINES[2]}\n", "")
"""Nobody can tell where the words of a user end."""
QUOTED_PRINTABLE = b"Subject: splits\nContent-Transfer-Encoding: quoted-printable\n\n"


def rows(trace: Trace) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name != "line"} for row in trace.table().to_pylist()
    ]


def read(tmp_path: Path, text: str | bytes, **options: Any) -> Trace:
    path = tmp_path / "trace"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_trace(str(path), **options)


def assert_reads_as_printed(tmp_path: Path, text: str | bytes, printed: str = TEXT, **options: Any) -> Trace:
    trace = read(tmp_path, text, **options)
    assert trace.malformed == []
    assert rows(trace) == rows(read(tmp_path, printed))
    return trace


def wrapped(width: int, end: str = "") -> str:
    parts = (
        textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        for line in WRAPPABLE.splitlines()
    )
    return "".join(f"{end}\n".join(part) + "\n" for part in parts)


def colours(begin: str, end: str) -> Callable[[str], str]:
    return lambda text: re.sub(r"(kvm_mmu_\w+|set_region|gfn|replay)", rf"{begin}\1{end}", text)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(" ", "\u00a0"),
        lambda text: text.replace("  ", "\u00a0 "),
        lambda text: re.sub(": (?!a word)", ":\u00a0 ", text),
        lambda text: text.replace(": ", ": \u200b"),
        lambda text: text.replace("_", "_\u00ad"),
        lambda text: text.replace(" ", "\u3000"),
        lambda text: "\ufeff" + text,
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: re.sub(" +", "\t", text),
        colours("\x1b[01;31m\x1b[K", "\x1b[m\x1b[K"),  # grep --color=always
        colours("\x1b[38;2;200;0;0m", "\x1b[39;49m"),
        colours("\x1b[38:5:12m", "\x1b[0m"),
        colours("\x1b]8;;https://example.org\x1b\\\\", "\x1b]8;;\x07"),
        colours("\x1b(B\x1b[m", "\x1b(B"),
        colours("^[[01;31m^[[K", "^[[m^[[K"),  # cat -v
        colours("ESC[01;31m", "ESC[m"),  # less
        colours("#033[1m", "#033[0m"),  # syslog
        lambda text: "".join(f"\x1b[32m{line}\x1b[0m\n" for line in text.splitlines()),
        lambda text: re.sub(r"(\[002\])", "\x1b[35m\\1\x1b[0m", text),
        lambda text: re.sub(r"(\d+\.\d{6})", "\x1b[35m\\1\x1b[0m", text),
    ],
)  # fmt: skip
def test_colours_and_strange_blanks(tmp_path: Path, change: Callable[[str], str]) -> None:
    assert_reads_as_printed(tmp_path, change(TEXT))


def test_colours_and_strange_blanks_are_of_any_format(tmp_path: Path) -> None:
    for text in (TEXT.replace(" ", "\u00a0"), colours("\x1b[1m", "\x1b[m")(TEXT)):
        assert_reads_as_printed(tmp_path, text, file_format="ftrace")


def test_a_colour_amid_a_number_is_no_end_of_it(tmp_path: Path) -> None:
    assert_reads_as_printed(
        tmp_path, TEXT.replace("0x182", "0x1\x1b[31m82\x1b[m").replace("-28", "-\x1b[1m28")
    )
    raw = "".join(
        f" vmm-4301 [002] {812 + number}.000001: kvm_mmu_set_spte: {text}\n"
        for number, text in enumerate(["gfn=7c400 spte=17c400bf7 level=1 sptep=104a2e010 r=1 x=1 u=1"] * 2)
    )
    coloured = raw.replace("sptep=", "\x1b[31msptep\x1b[m=", 1)
    assert rows(read(tmp_path, coloured)) == rows(read(tmp_path, raw))
    trace = read(tmp_path, TEXT.replace("flags=0x0", "flags=0x0 \x1b[31mhva\x1b[m=0x1000"))
    assert trace.table()["addr"].to_pylist()[1] == 0x1000


def test_colours_that_begin_late_are_met_by_sections_too(tmp_path: Path) -> None:
    text = TEXT * 60 + colours("\x1b[1m", "\x1b[m")(TEXT) * 60
    trace = read(tmp_path, text, chunk_bytes=4096, threads=2)
    assert rows(trace) == rows(read(tmp_path, TEXT * 120))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk_bytes", [300, 1 << 20])
def test_strange_words_of_prose_change_nothing(tmp_path: Path, chunk_bytes: int, threads: int) -> None:
    prose = "Hello\u00a0world \x1b[31mred\x1b[m ESC[ x ^[[ y\n\tindented\n"
    trace = read(tmp_path, prose + TEXT + prose, chunk_bytes=chunk_bytes, threads=threads)
    assert (rows(trace), trace.malformed) == (rows(read(tmp_path, TEXT)), [])


@pytest.mark.parametrize(
    "mail",
    [
        lambda body: QUOTED_PRINTABLE + quopri.encodestring(body),
        lambda body: (QUOTED_PRINTABLE + quopri.encodestring(body)).replace(b"\n", b"\r\n"),
        lambda body: quopri.encodestring(body),  # without the header
        lambda body: QUOTED_PRINTABLE + quopri.encodestring(b"> " + body.replace(b"\n", b"\n> ")),
        lambda body: QUOTED_PRINTABLE + quopri.encodestring(body.replace(b"  ", "\u00a0 ".encode())),
        lambda body: QUOTED_PRINTABLE.lower() + quopri.encodestring(body).rstrip(b"\n"),
        lambda body: b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(body) + b"\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk_bytes", [500, 1 << 20])
def test_encodings_of_mail(tmp_path: Path, mail: Callable[[bytes], bytes], chunk_bytes: int) -> None:
    encoded = mail(TEXT.encode())
    assert_reads_as_printed(tmp_path, encoded, chunk_bytes=chunk_bytes)
    assert_reads_as_printed(tmp_path, gzip.compress(encoded), chunk_bytes=chunk_bytes)


def test_lines_of_a_mail_keep_their_numbers(tmp_path: Path) -> None:
    head = " CPU 0/KVM-4310    [002] ..... 812.000101: kvm_mmu_"
    text = QUOTED_PRINTABLE.decode() + (
        f"{head}get_page: sp gen 0 gfn 7c400 l1 8-byte q0 d=\nirect wux nxe ad root 0 sync new\n"
        f"{head}set_spte: gfn 7c400 spte 6000001=\n7c4=\n00bf7 (rwxu) level 2 at 104a2e010\n"
        f"{head}split_huge_page: gfn 7c4=3\n"
    )
    trace = read(tmp_path, text)
    table = trace.table()
    assert table["line"].to_pylist() == [4, 6]
    assert (table["role"].to_pylist()[0], table["spte"].to_pylist()[1]) == (0x2F81, 0x60000017C400BF7)
    assert (trace.lines, [line for line, _ in trace.malformed]) == (9, [9])


def test_each_part_of_a_mail_has_its_encoding(tmp_path: Path) -> None:
    """Only where a part is quoted-printable, "=10" is a character: elsewhere it is a value."""
    marker = LINES[0].replace("4301", "10")
    pixel = base64.encodebytes(bytes(range(200)) * 3).decode()
    text = (
        'Content-Type: multipart/mixed; boundary="b1"\n\n--b1\n'
        "Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\n"
        f"{quopri.encodestring(marker.encode()).decode()}\n"
        "--b1\nContent-Type: text/plain; charset=us-ascii\nContent-Transfer-Encoding: 7bit\n\n"
        f"{marker}\nends in =\n{marker}\n"
        f"--b1\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\n{pixel}"
        "--b1\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n\n"
        f"{base64.encodebytes(marker.encode()).decode()}--b1--\n"
        f"From nobody\nSubject: the next\n\n{marker}\n"
    )
    trace = read(tmp_path, text)
    assert trace.table()["num"].to_pylist() == [10] * 5
    assert trace.malformed == []


def test_a_marker_that_ends_in_an_equals_sign_is_no_mail(tmp_path: Path) -> None:
    text = TEXT.replace("a word of the user", "S|123|width=")
    assert read(tmp_path, text).texts[2] == "S|123|width="


@pytest.mark.parametrize(
    "codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"]
)  # fmt: skip
def test_units_of_several_bytes(tmp_path: Path, codec: str) -> None:
    """PowerShell writes the output of a command as UTF-16."""
    trace = assert_reads_as_printed(tmp_path, TEXT.replace("\n", "\r\n").encode(codec), chunk_bytes=999)
    assert trace.lines == len(LINES)


@pytest.mark.parametrize("width", range(44, 100, 4))
@pytest.mark.parametrize("end", ["", " ", "\r"])  # " ": format=flowed
def test_lines_that_a_mailer_wrapped_anywhere(tmp_path: Path, width: int, end: str) -> None:
    assert_reads_as_printed(tmp_path, wrapped(width, end), WRAPPABLE)


def test_wrapped_and_quoted(tmp_path: Path) -> None:
    quoted = "".join(f"> {line}\n" for line in wrapped(64).splitlines())
    assert_reads_as_printed(tmp_path, quoted, WRAPPABLE)


def test_a_word_that_was_cut_in_two_is_malformed(tmp_path: Path) -> None:
    trace = read(tmp_path, TEXT.replace("q0 direct", "q0 di\nrect"))
    assert [line for line, _ in trace.malformed] == [5, 13]
    assert trace.events == len(LINES) - 3


OTHER_TEXTS = {
    "a histogram": "# event histogram\n#\n# trigger info: hist:keys=level:vals=hitcount [active]\n#\n\n"
    "{ level:          1 } hitcount:       2031\n\nTotals:\n    Hits: 2031\n",
    "counts of perf stat": "\n Performance counter stats for 'system wide':\n\n"
    "            12,345      kvmmmu:kvm_mmu_set_spte\n\n       5.003120177 seconds time elapsed\n",
    "counts of perf stat: ": "#           time             counts unit events\n"
    "     1.001042501              5,512      kvmmmu:kvm_mmu_set_spte\n",
    "output of bpftrace": "Attaching 2 probes...\n^C\n\n@[kvm_mmu_set_spte]: 4413\nkvm_mmu_set_spte: 12\n",
    "output of bpftrace: ": "@level: \n[1]      2031 |@@@@@@@@@@@@@|\n[2, 4)     17 |             |\n",
    "output of perf trace": "     0.000 CPU 0/KVM/4310 kvmmmu:kvm_mmu_set_spte(gfn: 509952, spte: 43, level: 2)\n",
    "output of perf trace: ": "     0.012 ( 0.004 ms): qemu/4301 ioctl(fd: 12, cmd: 0x4020ae46)       = 0\n",
    "statistics of perf kvm": "\nAnalyze events for all VMs, all VCPUs:\n\n  VM-EXIT    Samples  Samples%\n",
    "counts of kvm_stat": "kvm statistics - summary\n\n Event         Total %Total CurAvg/s\n",
}


@pytest.mark.parametrize("what", OTHER_TEXTS)
def test_what_is_no_trace_of_events_is_named(tmp_path: Path, what: str) -> None:
    with pytest.raises(TraceError, match=f"not a trace of events: {what}"):
        read(tmp_path, OTHER_TEXTS[what])
    trace = read(tmp_path, OTHER_TEXTS[what] + TEXT)  # all in one mail
    assert trace.events == len(LINES) - 1


# -- what searching and archiving leaves in front of lines ------------------------------------------------


def each(change: Callable[[int, str], str], lines: list[str] = LINES) -> str:
    return "".join(change(number, line) + "\n" for number, line in enumerate(lines, 1))


QUOTED_IN_MAIL = (
    "Content-Transfer-Encoding: quoted-printable\n\n" + quopri.encodestring(TEXT.encode()).decode()
)
PRINTED_BY = {
    "grep -n": each(lambda number, line: f"{number}:{line}"),
    "grep -H": each(lambda _, line: f"logs/trace.txt:{line}"),
    "grep -Hn": each(lambda number, line: f"trace.txt:{number}:{line}"),
    "grep -Hn -A": each(
        lambda number, line: f"a/b{':-'[number % 2]}{number}{':-'[number % 2]}{line}"
    ).replace("a/b", "logs/trace.txt"),
    "grep --color -Hn": each(
        lambda number, line: f"\x1b[35mt.txt\x1b[m\x1b[36m:\x1b[m\x1b[32m{number}\x1b[m\x1b[36m:\x1b[m{line}"
    ),
    "grep, quoted": each(lambda number, line: f"> t.txt:{number}:{line}"),
    "cat -n": each(lambda number, line: f"{number:6}\t{line}"),
    "diff": each(lambda _, line: f"+{line}"),
    "ISO times": each(lambda number, line: f"2024-01-01T00:00:{number:02}.000Z {line}"),
    "HTML": html.escape(TEXT),
    "HTML, quoted": each(lambda _, line: f"&gt; {html.escape(line)}"),
    "HTML, blanks": TEXT.replace("  ", "&nbsp; "),
    "CR": TEXT.replace("\n", "\r"),
    "CR CR LF": TEXT.replace("\n", "\r\r\n"),
    "form feeds before lines": TEXT.replace("\n", "\n\f"),
    "form feeds after lines": TEXT.replace("\n", "\f\n"),
    "quoted-printable, quoted": "".join(f"> {line}\n" for line in QUOTED_IN_MAIL.splitlines()),
    "cut at 50": "".join(
        f"{part}\n" for line in WRAPPABLE.splitlines() for part in re.findall(".{1,50}", line)
    ),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk_bytes", [300, 1 << 20])
@pytest.mark.parametrize("how", PRINTED_BY)
def test_what_other_programs_print(tmp_path: Path, how: str, chunk_bytes: int, threads: int) -> None:
    printed = WRAPPABLE if how.startswith("cut") else TEXT
    assert_reads_as_printed(
        tmp_path, PRINTED_BY[how].encode(), printed, chunk_bytes=chunk_bytes, threads=threads
    )


def test_a_task_that_archives_escape(tmp_path: Path) -> None:
    escaped = read(tmp_path, each(lambda _, line: line.replace("CPU 0/KVM", "&lt;...&gt;")))
    assert rows(escaped) == rows(read(tmp_path, TEXT.replace("CPU 0/KVM", "<...>")))


def test_what_looks_like_a_prefix_and_is_a_task(tmp_path: Path) -> None:
    for comm in ("kworker/1:2", "12:x", "a.b:c", "+x", "1-2"):
        trace = read(tmp_path, TEXT.replace(" CPU 0/KVM", f" {comm}"))
        assert {row["comm"] for row in trace.table().to_pylist()} == {comm}


def test_no_event_is_lost_silently_wherever_a_line_is_cut(tmp_path: Path) -> None:
    expected = {row["ts_ns"]: row for row in rows(read(tmp_path, WRAPPABLE))}
    for width in range(46, 110):
        text = "".join(f"{line[:width]}\n{line[width:]}\n" for line in WRAPPABLE.splitlines())
        trace = read(tmp_path, text)
        assert trace.events + trace.malformed_lines >= len(expected), width
        for row in rows(trace):
            if row["kind"] < Kind.MARK_VM_CREATE:  # the words of markers may be any
                assert row == expected[row["ts_ns"]], (width, row)


def test_a_name_that_is_cut_off_is_malformed(tmp_path: Path) -> None:
    name = " vmm-1 [000] d..1. 812.000900: kvm_mmu_set_sp\n"
    assert [line for line, _ in read(tmp_path, TEXT + name).malformed] == [14]
    word = " vmm-1 [000] d..1. 812.000900: tracing_mark_write: replay: memsl\n"
    assert [line for line, _ in read(tmp_path, TEXT + word).malformed] == [14]
    other = " vmm-1 [000] d..1. 812.000900: sched_swi\n"
    assert read(tmp_path, TEXT + other).malformed == []


@pytest.mark.parametrize("chunk_bytes", [200, 1000, 5000, 1 << 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_format_is_that_of_the_same_beginning_always(
    tmp_path: Path, chunk_bytes: int, threads: int
) -> None:
    perf = "  CPU 0/KVM  4310 [002]   812.1:  kvmmmu:kvm_mmu_set_spte: gfn 1 spte 2 (rwx) level 1 at 10\n"
    text = TEXT * 3 + perf.replace("812.1", "812.100000") + TEXT
    trace = read(tmp_path, text, chunk_bytes=chunk_bytes, threads=threads)
    assert trace.format == "perf-script"
    late = read(tmp_path, TEXT * 40 + perf, chunk_bytes=chunk_bytes, threads=threads)
    assert late.format == "ftrace"
