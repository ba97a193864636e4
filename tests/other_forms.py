"""Native trace lines written in the other forms of trace text, as the tools' sources print them.

Written apart from the product: role words are put together here from the kernel's own text.
Sources: trace-cmd tracecmd/trace-read.c, libtraceevent plugins/plugin_kvm.c and event-parse.c, perf
builtin-script.c, the kernel's print_trace_line for ftrace_dump.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

NATIVE = re.compile(
    r"^\s*(?P<comm>.*?)-(?P<pid>\d+)\s+(?:\(\s*(?P<tgid>\d+|-+)\) )?\[(?P<cpu>\d+)\] (?P<flags>\S+)\s+"
    r"(?P<time>[\d.]+): (?P<name>\w+): (?P<text>.*)$"
)
PAGE = re.compile(
    r"sp (?:gen (?P<gen>\S+) )?gfn (?P<gfn>\S+) l?(?P<level>\d+) (?P<bytes>8|4)-byte q(?P<quadrant>\d)"
    r"(?P<direct> direct)? (?P<access>[-rwux]+)(?P<invalid> invalid)? (?P<nxe>!?)nxe (?P<ad>!?)ad"
    r" root (?P<root>\S+) (?P<unsync>un)?sync ?(?P<created>\S*)"
)
PROBE_PLACE = re.compile(r"^\(([^)]*)\) ?")

RAW_FIELDS = {
    "kvm_mmu_pagetable_walk": (r"addr (\S+) pferr (\S+)", "addr={} pferr={}"),
    "kvm_mmu_paging_element": (r"pte (\S+) level (\S+)", "pte={} level={}"),
    "kvm_mmu_set_accessed_bit": (r"gpa (\S+)", "gpa={}"),
    "kvm_mmu_set_dirty_bit": (r"gpa (\S+)", "gpa={}"),
    "kvm_mmu_walker_error": (r"pferr (\S+)", "pferr={}"),
    "kvm_mmu_set_spte": (
        r"gfn (\S+) spte (\S+) \((.)(.)(.)(.?)\) level (\S+) at (\S+)",
        "gfn={0} spte={1} sptep={7} level={6} r=1 x=1 u=1",
    ),
    "kvm_mmu_spte_requested": (r"gfn (\S+) pfn (\S+) level (\S+)", "gfn={} pfn={} level={}"),
    "kvm_tdp_mmu_spte_changed": (
        r"as id (\S+) gfn (\S+) level (\S+) old_spte (\S+) new_spte (\S+)",
        "gfn={1} old_spte={3} new_spte={4} level={2} as_id={0}",
    ),
    "kvm_mmu_split_huge_page": (
        r"gfn (\S+) spte (\S+) level (\S+) errno (\S+)",
        "gfn={} spte={} level={} errno={}",
    ),
    "kvm_mmu_zap_all_fast": (
        r"kvm-mmu-valid-gen (\S+) used_pages (\S+)",
        "mmu_valid_gen={} mmu_used_pages={}",
    ),
    "kvm_page_fault": (
        r"vcpu (\S+) rip (\S+) address (\S+) error_code (\S+)",
        "vcpu_id={} guest_rip={} fault_address={} error_code={}",
    ),
}
"""Kernel text, and ``trace-cmd report -R`` of it of newer versions: the kernel's numbers."""
OLD_RAW_BASES = {
    "kvm_mmu_pagetable_walk": "xx",
    "kvm_mmu_paging_element": "xd",
    "kvm_mmu_set_accessed_bit": "x",
    "kvm_mmu_set_dirty_bit": "x",
    "kvm_mmu_walker_error": "x",
    "kvm_mmu_set_spte": "xx....dx",
    "kvm_mmu_spte_requested": "xxd",
    "kvm_tdp_mmu_spte_changed": "dxdxx",
    "kvm_mmu_split_huge_page": "xxdd",
    "kvm_mmu_zap_all_fast": "dx",
    "kvm_page_fault": "ddxx",
}
"""Base of each number in the kernel's text; older versions print all of them in decimal."""


class Line(NamedTuple):
    comm: str
    pid: str
    tgid: str | None
    cpu: str
    flags: str
    time: str
    name: str
    text: str


Payload = Callable[[Line], str]


def native_lines(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        if not line.startswith("#"):
            found = NATIVE.match(line)
            assert found, line
            yield Line(*found.groups())


def role_word(page: re.Match[str], layout: str = "5.18") -> int:
    """The kernel's role word of a PAGE text; ``layout`` is the first kernel that has it."""
    word = int(page["level"]) | int(page["quadrant"]) << 5 | bool(page["direct"]) << 7
    is_8_bytes = page["bytes"] == "8"
    word |= (is_8_bytes if layout == "5.1" else not is_8_bytes) << 4
    wide = layout == "7.2"
    for letter, bit in (
        {"r": 8, "w": 9, "u": 10, "x": 11}.items() if wide else {"x": 8, "w": 9, "u": 10}.items()
    ):
        word |= (letter in page["access"]) << bit
    if wide and len(page["access"]) == 3:
        word |= 1 << 8
    word |= bool(page["invalid"]) << (12 if wide else 11)
    word |= (not page["nxe"]) << (13 if wide else 12)
    return word | bool(page["ad"]) << 16


def raw_page(line: Line, layout: str = "5.18", extra_bits: int = 0) -> str:
    page = PAGE.match(line.text)
    assert page, line
    word = role_word(page, layout) | extra_bits
    text = (
        f"mmu_valid_gen={page['gen'] or 0} gfn={int(page['gfn'], 16)} role={word} root_count={page['root']} "
    )
    text += f"unsync={int(bool(page['unsync']))}"
    return text + (f" created={int(page['created'] == 'new')}" if page["created"] else "")


def plugin_page(line: Line, layout: str = "5.18") -> str:
    """kvm_mmu_print_role() and its callers; 16 bits of the word, as the kernels before 5.1 had them."""
    page = PAGE.match(line.text)
    assert page, line
    word = role_word(page, layout)
    access = "".join(letter if word >> bit & 1 else "-" for letter, bit in (("w", 9), ("u", 10), ("x", 8)))

    def bang(bit: int) -> str:
        return "" if word >> bit & 1 else "!"

    text = f"{word & 15} q{word >> 5 & 3}{' direct' if word & 128 else ''} {access}"
    text += f"{' invalid' if word >> 11 & 1 else ''} {bang(4)}pae {bang(12)}nxe {bang(13)}wp"
    text += f"{' smep' if word >> 14 & 1 else ''}{' smap' if word >> 15 & 1 else ''}"
    text += f" root {page['root']} {page['unsync'] or ''}sync"
    return f"{page['created']} sp gfn {page['gfn']} {text}" if page["created"] else text


def is_page(line: Line) -> bool:
    return line.text.startswith("sp ")


def plugin(layout: str = "5.18") -> Payload:
    return lambda line: plugin_page(line, layout) if is_page(line) else no_symbols(line)


def unparsed(layout: str = "5.18", extra_bits: int = 0) -> Payload:
    def payload(line: Line) -> str:
        if is_page(line):
            return f"[FAILED TO PARSE] {raw_page(line, layout, extra_bits)}"
        return no_symbols(line)

    return payload


def raw(line: Line) -> str:
    """``trace-cmd report -R``; the blank before the fields is its own."""
    if is_page(line):
        return " " + raw_page(line)
    if line.name == "print":
        return " " + line.text.replace("tracing_mark_write: ", "ip=tracing_mark_write buf=", 1)
    if line.name in RAW_FIELDS:
        pattern, form = RAW_FIELDS[line.name]
        found = re.match(pattern, line.text)
        assert found, line
        return " " + form.format(*found.groups())
    place = PROBE_PLACE.match(line.text)
    if place and "<-" in place[1]:
        return " " + PROBE_PLACE.sub(
            "__probe_func=ffffffffc0362ad0 __probe_ret_ip=ffffffffc0362bd0 ", line.text
        )
    return " " + PROBE_PLACE.sub("__probe_ip=ffffffffc0362ad0 ", line.text)


def old_raw(line: Line) -> str:
    """As :func:`raw` of libtraceevent before 1.3: every number is decimal."""
    if is_page(line) or line.name not in RAW_FIELDS:
        return raw(line)
    pattern, form = RAW_FIELDS[line.name]
    found = re.match(pattern, line.text)
    assert found, line
    values = list(found.groups())
    for number, letter in enumerate(OLD_RAW_BASES[line.name]):
        if letter == "x" and not values[number].startswith("0x"):
            values[number] = str(int(values[number], 16))
    return " " + form.format(*values)


def no_symbols(line: Line) -> str:
    """Tools print the address of a probe where the kernel prints its symbol."""
    return PROBE_PLACE.sub("(ffffffffc0362ad0) ", line.text)


def as_tool(line: Line) -> Line:
    """trace-cmd calls markers ``print`` and keeps ``tracing_mark_write`` as their place."""
    if line.name != "tracing_mark_write":
        return line
    return line._replace(name="print", text=f"tracing_mark_write: {line.text}")


def trace_cmd(
    lines: Iterable[Line],
    payload: Payload = no_symbols,
    prefix: str = "",
    latency: bool = False,
    raw_latency: bool = False,
    flags: bool = False,
    difference: bool = False,
) -> str:
    text = "" if prefix else "cpus=2\n"
    for line in map(as_tool, lines):
        column = f"{line.name}: ".ljust(22)
        if latency:
            head = f"{line.comm[:8]:>8}-{line.pid:<5} {int(line.cpu):3d}{line.flags} {line.time:>13}: "
        elif raw_latency:
            head = f"{line.comm[:8]:>8}-{line.pid:<5} {int(line.cpu):3d}-0x0 {line.time:>13}: "
        else:
            shown = f"{line.flags} " if flags else ""
            head = f"{line.comm:>16}-{line.pid:<5} [{line.cpu}] {shown}{line.time:>12}"
            head += " (+12)     : " if difference else ": "
        text += f"{prefix}{head}{column}{payload(line)}\n"
    return text


def perf_script(
    lines: Iterable[Line],
    payload: Payload = no_symbols,
    with_tid: bool = False,
    with_cpu: bool = True,
    callchain: bool = False,
    period: bool = False,
) -> str:
    text = ""
    for line in map(as_tool, lines):
        group = "kvmmmu" if "kvm_mmu" in line.name else "ftrace" if line.name == "print" else "kvm"
        pid = f"{line.pid}/{line.pid}" if with_tid else line.pid
        cpu = f" [{line.cpu}]" if with_cpu else ""
        count = "         1 " if period else ""
        name = f"{group}:{line.name}:"
        text += f"{line.comm:>16} {pid:>7}{cpu} {line.time:>12}: {count}{name:>30} {payload(line)}\n"
        if callchain:
            text += "        ffffffffc0362ad0 kvm_mmu_get_page+0x1f ([kvm])\n"
            text += "            7f88e4000000 ioctl+0xb (/usr/lib/libc.so.6)\n\n"
    return text


def dmesg(lines: Iterable[Line], prefix: Callable[[int], str]) -> str:
    """ftrace_dump(): the latency format, each line a printk."""
    rows = ["Dumping ftrace buffer:", "---------------------------------"]
    for line in lines:
        time = round(float(line.time) * 1e6)
        head = f"{line.comm[:8]:>8}-{line.pid:<7} {int(line.cpu):3d}{line.flags} {time:4d}us : "
        rows.append(f"{head}{line.name}: {line.text}")
    rows.append("---------------------------------")
    return "".join(f"{prefix(number)}{row}\n" for number, row in enumerate(rows))


def mailed(text: str, quote: str = "> ", width: int = 72) -> str:
    """Quoted and wrapped at blanks, the first of a line's words never behind its time."""
    result = []
    for line in text.splitlines():
        found = NATIVE.match(line)
        keep = line.index(found["name"]) + len(found["name"]) + 1 if found else width
        while len(line) > width:
            at = max(line.rfind(" ", 0, width), line.find(" ", keep))
            if at <= 0 or not found:
                break
            result.append(quote + line[:at])
            line, keep = line[at + 1 :], 0
        result.append(quote + line)
    return "\n".join(result) + "\n"


def payload_only(lines: Iterable[Line]) -> str:
    return "".join(f"{line.name}: {line.text}\n" for line in lines)
