"""A writer of trace.dat files, versions 6 and 7: what the tests read where there is no recording of it.

Layout: trace-cmd.dat.v6(5), trace-cmd.dat.v7(5); pages: struct buffer_data_page and
struct ring_buffer_event of kernel/trace/ring_buffer.c.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import zstandard

from replay.trace.dat.container import read_container
from replay.trace.dat.cursor import FileBytes

MAGIC = b"\x17\x08\x44tracing"
PAGE = 4096
MISSED, MISSED_STORED = 1 << 31, 1 << 30


def number(value: int, size: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def sized(size: int, data: bytes) -> bytes:
    return number(len(data), size) + data


def packed(algorithm: str, data: bytes) -> bytes:
    return zlib.compress(data) if algorithm == "zlib" else zstandard.compress(data)


@dataclass(frozen=True)
class Buffer:
    """The pages of each CPU of one instance; the name of the first instance is empty."""

    cpus: dict[int, bytes]
    name: str = ""
    clock: str = "local"
    page_size: int = PAGE


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    formats: Sequence[tuple[str, str]]
    buffers: Sequence[Buffer]
    comms: str = "77 CPU 0/KVM\n78 CPU 1/KVM\n"
    options: Sequence[tuple[int, bytes]] = ()
    long_size: int = 8
    version: str = "7"
    byte_order: int = 0
    header_event: str = "\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n"
    printk: str = field(default="")

    def with_buffers(self, *buffers: Buffer) -> Contents:
        return replace(self, buffers=buffers)

    def head(self) -> bytes:
        return MAGIC + self.version.encode() + bytes([0, self.byte_order, 8]) + number(PAGE, 4)

    def header_info(self) -> bytes:
        size = self.long_size
        fields = (("u64 timestamp", 0, 8), ("local_t commit", 8, size), ("int overwrite", 8, 1))
        page = "".join(f"\tfield: {name};\toffset:{at};\tsize:{n};\tsigned:1;\n" for name, at, n in fields)
        page += f"\tfield: char data;\toffset:{8 + size};\tsize:{PAGE - 8 - size};\tsigned:1;\n"
        event = self.header_event.encode()
        return b"header_page\0" + sized(8, page.encode()) + b"header_event\0" + sized(8, event)

    def ftrace_formats(self) -> bytes:
        texts = [text.encode() for system, text in self.formats if system == "ftrace"]
        return number(len(texts), 4) + b"".join(sized(8, text) for text in texts)

    def event_formats(self) -> bytes:
        systems: dict[str, list[bytes]] = {}
        for system, text in self.formats:
            if system != "ftrace":
                systems.setdefault(system, []).append(sized(8, text.encode()))
        return number(len(systems), 4) + b"".join(
            system.encode() + b"\0" + number(len(texts), 4) + b"".join(texts)
            for system, texts in systems.items()
        )


def contents_of(path: Path) -> Contents:
    """What a recording holds, to be written in another form."""
    with path.open("rb") as opened:
        data = FileBytes.whole(str(path), opened.fileno())
        file = read_container(str(path), data, tolerate_truncation=False)
        cpus = {cpu.cpu: cpu.pages() for cpu in file.cpus}
    comms = "".join(f"{pid} {comm}\n" for pid, comm in file.comms.items())
    uname = f"Linux host {file.kernel} x86_64\0".encode()
    return Contents(file.formats, [Buffer(cpus)], comms, [(5, uname)])


def option(kind: int, data: bytes) -> bytes:
    return number(kind, 2) + sized(4, data)


def version_6(contents: Contents) -> bytes:
    """A file of version 6; instances other than the first follow the first one's list of CPUs."""
    contents = replace(contents, version="6")
    first, *others = contents.buffers
    head = [contents.head(), contents.header_info(), contents.ftrace_formats(), contents.event_formats()]
    head += [sized(4, b"kallsyms"), sized(4, contents.printk.encode()), sized(8, contents.comms.encode())]
    head.append(number(1 + max(first.cpus, default=0), 4))
    options = b"".join(option(*known) for known in contents.options) + option(4, b"[local] global\0")
    tails = [_list_size(first) + 8 + len(clocks(first)), *(10 + _list_size(other) for other in others)]

    def whole(places: list[int], data: int) -> tuple[bytes, list[int], int]:
        buffers = b"".join(
            option(3, number(place, 8) + other.name.encode() + b"\0")
            for place, other in zip(places, others, strict=True)
        )
        output = b"".join(head) + b"options  \0" + options + buffers + number(0, 2) + b"flyrecord\0"
        start, found = len(output), []
        at = -(-(start + sum(tails)) // PAGE) * PAGE
        for n, buffer in enumerate(contents.buffers):
            if n:
                found.append(len(output))
                output += b"flyrecord\0"
            for cpu in range(1 + max(first.cpus, default=0)):
                pages = buffer.cpus.get(cpu, b"")
                output += number(at, 8) + number(len(pages), 8)
                at += len(pages)
            if n == 0:
                output += sized(8, clocks(first))
        output = output.ljust(-(-len(output) // PAGE) * PAGE, b"\0")
        for buffer in contents.buffers:
            output += b"".join(buffer.cpus.get(cpu, b"") for cpu in range(1 + max(first.cpus, default=0)))
        return output, found, at

    _, places, data = whole([0] * len(others), 0)
    return whole(places, data)[0]


def clocks(buffer: Buffer) -> bytes:
    return f"local global [{buffer.clock}]\0".encode()


def _list_size(buffer: Buffer) -> int:
    return 16 * (1 + max(buffer.cpus, default=0))


def version_7(contents: Contents, algorithm: str = "none") -> bytes:
    """A file of version 7, all its sections compressed by ``algorithm``: none, zlib or zstd."""
    is_packed = algorithm != "none"
    output = bytearray(contents.head() + algorithm.encode() + b"\0" + b"1.0\0" + number(0, 8))
    options_at = len(output) - 8

    def section(kind: int, data: bytes, may_pack: bool = True) -> int:
        place = len(output)
        if may_pack and is_packed:
            small = packed(algorithm, data)
            data = number(len(small), 4) + number(len(data), 4) + small
        output.extend(number(kind, 2) + number(may_pack and is_packed, 2) + number(0, 4) + sized(8, data))
        return place

    sections = {
        16: contents.header_info(),
        17: contents.ftrace_formats(),
        18: contents.event_formats(),
        19: sized(4, b"kallsyms"),
        20: sized(4, contents.printk.encode()),
        21: sized(8, contents.comms.encode()),
    }
    options = b"".join(option(kind, number(section(kind, data), 8)) for kind, data in sections.items())
    options += b"".join(option(*known) for known in contents.options)
    first = len(output)
    output[options_at : options_at + 8] = number(first, 8)
    section(0, options + option(0, bytes(8)), may_pack=False)
    next_at = len(output) - 8  # of the data of DONE
    buffers = b""
    for buffer in contents.buffers:
        place = len(output)
        output.extend(number(3, 2) + number(is_packed, 2) + number(0, 4) + number(0, 8))
        cpus = b""
        for cpu, pages in buffer.cpus.items():
            output.extend(bytes(-len(output) % PAGE))
            start = len(output)
            if is_packed:
                output.extend(_chunks(algorithm, pages))
            else:
                output.extend(pages)
            size = len(output) - start - (4 if is_packed else 0)
            cpus += number(cpu, 4) + number(start, 8) + number(size if pages else 0, 8)
        names = buffer.name.encode() + b"\0" + buffer.clock.encode() + b"\0"
        counts = number(buffer.page_size, 4) + number(len(buffer.cpus), 4)
        buffers += option(3, number(place, 8) + names + counts + cpus)
        output[place + 8 : place + 16] = number(len(output) - place - 16, 8)
    output[next_at : next_at + 8] = number(len(output), 8)
    section(0, buffers + option(0, bytes(8)), may_pack=False)
    return bytes(output)


def _chunks(algorithm: str, pages: bytes) -> bytes:
    parts = [pages[start : start + 3 * PAGE] for start in range(0, len(pages), 3 * PAGE)]
    small = [(packed(algorithm, part), part) for part in parts]
    return number(len(parts), 4) + b"".join(
        number(len(data), 4) + number(len(part), 4) + data for data, part in small
    )


# -- pages ---------------------------------------------------------------------------------------------


def record(data: bytes, delta: int = 0) -> bytes:
    """An event as the ring buffer holds it, ``delta`` ns behind the one before."""
    data = data.ljust(-(-len(data) // 4) * 4, b"\0")
    if len(data) <= 28 * 4:
        return number(delta << 5 | len(data) // 4, 4) + data
    return number(delta << 5, 4) + number(len(data) + 4, 4) + data


def time_extend(delta: int) -> bytes:
    return number((delta & (1 << 27) - 1) << 5 | 30, 4) + number(delta >> 27, 4)


def time_stamp(clock: int) -> bytes:
    return number((clock & (1 << 27) - 1) << 5 | 31, 4) + number(clock >> 27, 4)


def discarded(size: int, delta: int) -> bytes:
    return number(delta << 5 | 29, 4) + number(size, 4) + bytes(size - 4)


def page(clock: int, records: Iterable[bytes], lost: int | None = None, long_size: int = 8) -> bytes:
    """A page whose first record counts from ``clock``; ``lost`` events are missing before it, -1 unknown."""
    data = b"".join(records)
    commit = len(data)
    if lost is not None:
        commit |= MISSED
        if lost > 0:
            commit |= MISSED_STORED
            data += number(lost, long_size)
    return (number(clock, 8) + number(commit, long_size) + data).ljust(PAGE, b"\0")


# -- formats and records --------------------------------------------------------------------------------

COMMON = (
    "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
    "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
    "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
    "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
)
TYPES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "s8": 1, "s16": 2, "s32": 4, "s64": 8}


@dataclass(frozen=True)
class Event:
    """An event: its number, and its fields as ``type name`` in order, without gaps behind byte 8."""

    name: str
    id: int
    fields: str = ""
    print_format: str = '""'

    def format(self) -> str:
        lines, at = [], 8
        for field_text in filter(None, self.fields.split(", ")):
            kind, name = field_text.split(" ")
            signed = int(kind.startswith("s"))
            lines.append(f"\tfield:{kind} {name};\toffset:{at};\tsize:{TYPES[kind]};\tsigned:{signed};\n")
            at += TYPES[kind]
        body = COMMON + "".join(lines)
        return f"name: {self.name}\nID: {self.id}\nformat:\n{body}\nprint fmt: {self.print_format}\n"

    def data(self, *values: int, pid: int = 77) -> bytes:
        """The data of a record."""
        sizes = [TYPES[text.split(" ")[0]] for text in filter(None, self.fields.split(", "))]
        fields = b"".join(number(value, size) for value, size in zip(values, sizes, strict=True))
        return number(self.id, 2) + bytes(2) + number(pid, 4) + fields


PRINT = (
    f"name: print\nID: 5\nformat:\n{COMMON}\tfield:unsigned long ip;\toffset:8;\tsize:8;\tsigned:0;\n"
    '\tfield:char buf[];\toffset:16;\tsize:0;\tsigned:0;\n\nprint fmt: "%ps: %s", (void *)REC->ip, REC->buf\n'
)


def marker(text: str, pid: int = 77) -> bytes:
    """The data of a record ``print``, as a write to trace_marker leaves it."""
    return number(5, 2) + bytes(2) + number(pid, 4) + bytes(8) + text.encode() + b"\n\0"
