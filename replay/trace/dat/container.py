"""The layout of a trace.dat file: where its formats, names and the events of each CPU are.

trace-cmd.dat.v6(5) and trace-cmd.dat.v7(5).  Where these differ from what trace-cmd 3.1 writes, that
counts: the size of a section is 8 bytes, BUFFER has the size of a page, and the size of a CPU's compressed
events does not count the number of chunks that stands before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from replay.errors import TraceError
from replay.trace.dat.cursor import Cursor, FileBytes, chunks, uncompressed

MAX_CPUS = 1 << 13
MAX_PAGE = 1 << 20
"""Bounds that no kernel exceeds, for the memory that a corrupt file may ask for."""

(
    _DONE,
    _DATE,
    _CPUSTAT,
    _BUFFER,
    _TRACECLOCK,
    _UNAME,
    _OFFSET,
    _CPUCOUNT,
    _TSC2NSEC,
) = (0, 1, 2, 3, 4, 5, 7, 8, 14)
_HEADER_INFO, _FTRACE_EVENTS, _EVENT_FORMATS, _PRINTK, _CMDLINES, _BUFFER_TEXT = 16, 17, 18, 20, 21, 22
_SAVED_TGIDS = 32  # of gpuvis: the text of saved_tgids
_COMPRESSED = 1

_HEADER_FIELD = re.compile(r"field:[^;]*?(\w+);\s*offset:(\d{1,6});\s*size:(\d{1,6});")
_PRINTK_LINE = re.compile(r"(0x[0-9a-f]{1,16}) : \"(.*)\"")
_OFFSET_TEXT = re.compile(r"[-+]?(?:0x[0-9a-f]{1,13}|0|[1-9]\d{0,14})")
_PID = re.compile(r"\d{1,9}")
_OVERRUN = re.compile(r"^(?:overrun|commit overrun|dropped events): (\d{1,18})", re.MULTILINE)


class PageLayout(NamedTuple):
    """The head of a ring-buffer page, bytes: where its commit word is, how long, and where events begin."""

    commit: int
    commit_size: int
    data: int


@dataclass
class CpuData:
    """The events that one CPU left in one buffer: ``data`` is pages, or chunks of them if ``algorithm``."""

    cpu: int
    page_size: int
    data: FileBytes
    algorithm: str | None
    path: str

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """The chunks uncompressed, each behind the bytes of the file that it took."""
        assert self.algorithm
        return chunks(self.path, self.algorithm, self.data)

    def pages(self) -> bytes:
        """All pages."""
        if self.algorithm:
            return b"".join(chunk for _, chunk in self.chunks())
        return bytes(self.data[:])


@dataclass
class DatFile:
    """What a trace.dat file holds beside events, and where those are."""

    path: str
    layout: PageLayout = field(default_factory=lambda: PageLayout(8, 8, 16))
    formats: list[tuple[str, str]] = field(default_factory=list)  # system, text of the format file
    comms: dict[int, str] = field(default_factory=dict)
    tgids: dict[int, int] = field(default_factory=dict)
    printk: dict[int, str] = field(default_factory=dict)  # address: format of trace_printk
    kernel: str | None = None
    offset_ns: int = 0  # to be added to times
    tsc_mult: int = 0  # time = (clock * mult) >> shift, where not 0
    tsc_shift: int = 0
    overruns: int = 0  # events that the ring buffers themselves counted as lost
    clocks: list[str] = field(default_factory=list)  # of each buffer, where told
    cpus: list[CpuData] = field(default_factory=list)  # in the order in which equal times are merged


def read_container(path: str, data: FileBytes, tolerate_truncation: bool) -> DatFile:
    """Take a whole file apart.  Raises TraceError where it is truncated, corrupt or of an unknown kind."""
    return _Reader(path, data, tolerate_truncation).read()


class _Reader:
    def __init__(self, path: str, data: FileBytes, tolerate_truncation: bool) -> None:
        self._path = path
        self._data = data
        self._tolerate_truncation = tolerate_truncation
        self._file = DatFile(path)
        self._page_size = 0
        self._algorithm = "none"
        self._sections: dict[int, int] = {}  # option that names a section: its place
        self._buffers: list[Cursor] = []  # the options BUFFER
        self._cpu_count = 0
        self._has_latency_text = False

    def read(self) -> DatFile:
        cursor = Cursor(self._path, self._data, 10)  # behind the magic
        version = cursor.string(16)
        if version not in ("6", "7"):
            raise self._error(f"trace.dat file of version {version!r}: only versions 6 and 7 are read")
        if cursor.number(1):
            raise self._error("trace.dat file of a big-endian machine: only little-endian ones are read")
        cursor.number(1)  # size of a long in user space
        self._page_size = cursor.number(4)
        if not 1 << 10 <= self._page_size <= MAX_PAGE:
            raise self._error(f"corrupt trace.dat file: pages of {self._page_size} bytes")
        if version == "6":
            self._read_version_6(cursor)
        else:
            self._read_version_7(cursor)
        if not self._file.cpus:
            if self._has_latency_text:
                raise self._error("a latency trace, recorded as text: use the output of trace-cmd report")
            raise self._error("truncated trace.dat file: it names no buffer of events")
        return self._file

    def _error(self, message: str) -> TraceError:
        return TraceError(self._path, 0, message)

    # -- version 6: one part after another -----------------------------------------------------------

    def _read_version_6(self, cursor: Cursor) -> None:
        self._read_header_info(cursor)
        self._read_ftrace_formats(cursor)
        self._read_event_formats(cursor)
        cursor.take(cursor.number(4))  # kallsyms
        self._read_printk(cursor)
        self._read_comms(cursor)
        self._cpu_count = cursor.number(4)
        has_clock = self._read_version_6_buffer(cursor)
        if has_clock:
            self._file.clocks.append(_chosen_clock(cursor.sized(8)))
        for option in self._buffers:
            place = option.number(8)
            self._read_version_6_buffer(Cursor(self._path, self._data, place))

    def _read_version_6_buffer(self, cursor: Cursor) -> bool:
        """The options and CPUs at ``cursor``; true if the trace clock's name follows."""
        has_clock = False
        kind = bytes(cursor.take(10))
        if kind.startswith(b"options"):
            while option := cursor.number(2):
                has_clock |= option == _TRACECLOCK
                self._read_option(option, Cursor(self._path, cursor.take(cursor.number(4))))
            kind = bytes(cursor.take(10))
        if kind.startswith(b"latency"):
            self._has_latency_text = True
        elif not kind.startswith(b"flyrecord"):
            raise self._error("corrupt trace.dat file: no events behind its headers")
        else:
            for cpu in range(self._checked_cpus(self._cpu_count, cursor, 16)):
                self._add_cpu(cpu, cursor.number(8), cursor.number(8), self._page_size, None)
        return has_clock

    # -- version 7: sections, found by options -------------------------------------------------------

    def _read_version_7(self, cursor: Cursor) -> None:
        self._algorithm = cursor.string()
        cursor.string()  # its version
        place = cursor.number(8)
        places: set[int] = set()
        while place:
            if place in places:
                raise self._error("corrupt trace.dat file: its options go round in a circle")
            places.add(place)
            place = self._read_options(self._section(place, _DONE))
        for option, read in (
            (_HEADER_INFO, self._read_header_info),
            (_FTRACE_EVENTS, self._read_ftrace_formats),
            (_EVENT_FORMATS, self._read_event_formats),
            (_PRINTK, self._read_printk),
            (_CMDLINES, self._read_comms),
        ):
            if option in self._sections:
                read(self._section(self._sections[option], option))
        for buffer in self._buffers:
            self._read_version_7_buffer(buffer)

    def _section(self, place: int, section: int) -> Cursor:
        """The data of the section that begins at ``place``."""
        cursor = Cursor(self._path, self._data, place)
        found, flags = cursor.number(2), cursor.number(2)
        cursor.number(4)  # its description
        size = cursor.number(8)
        if found != section:
            raise self._error("corrupt trace.dat file: a section is not where it should be")
        body = Cursor(self._path, cursor.take(size))
        if not flags & _COMPRESSED:
            return body
        packed, size = body.number(4), body.number(4)
        whole = uncompressed(self._path, self._algorithm, body.take(packed), size)
        return Cursor(self._path, memoryview(whole))

    def _read_options(self, cursor: Cursor) -> int:
        """Read options up to DONE: place of the next section of options, 0 none."""
        while True:
            option = cursor.number(2)
            data = Cursor(self._path, cursor.take(cursor.number(4)))
            if option == _DONE:
                return data.number(8)
            self._read_option(option, data)

    def _read_version_7_buffer(self, option: Cursor) -> None:
        place = option.number(8)
        option.string()  # name of the instance
        self._file.clocks.append(option.string())
        page_size, cpus = option.number(4), option.number(4)
        section = Cursor(self._path, self._data, place)
        section.number(2)
        algorithm = self._algorithm if section.number(2) & _COMPRESSED else None
        found = []
        for _ in range(self._checked_cpus(cpus, option, 20)):
            found.append((option.number(4), option.number(8), option.number(8)))
        for cpu, start, size in sorted(found):
            self._add_cpu(cpu, start, size, page_size, algorithm)

    # -- parts of both ------------------------------------------------------------------------------

    def _read_option(self, option: int, data: Cursor) -> None:
        file = self._file
        if option in (_HEADER_INFO, _FTRACE_EVENTS, _EVENT_FORMATS, _PRINTK, _CMDLINES):
            self._sections[option] = data.number(8)
        elif option == _BUFFER:
            self._buffers.append(data)
        elif option == _BUFFER_TEXT:
            self._has_latency_text = True
        elif option == _CPUCOUNT:
            self._cpu_count = data.number(4)
        elif option == _TSC2NSEC:
            file.tsc_mult, file.tsc_shift = data.number(4), data.number(4)
            if file.tsc_shift > 32:
                raise self._error(f"corrupt trace.dat file: time shift {file.tsc_shift}")
        elif option in (_DATE, _CPUSTAT, _UNAME, _OFFSET, _SAVED_TGIDS):
            self._read_text_option(option, bytes(data.data).decode(errors="replace").rstrip("\0"))

    def _read_text_option(self, option: int, text: str) -> None:
        file = self._file
        if option == _CPUSTAT:
            file.overruns += sum(map(int, _OVERRUN.findall(text)))
        elif option == _UNAME:
            words = text.split()  # system, host, release, machine
            file.kernel = words[-2] if len(words) >= 3 else None
        elif option == _SAVED_TGIDS:
            file.tgids.update(_numbered(text, int))
        else:
            if not _OFFSET_TEXT.fullmatch(text.strip()):
                raise self._error("corrupt trace.dat file: its time offset is no number")
            file.offset_ns += int(text, 0) * (1000 if option == _DATE else 1)

    def _read_header_info(self, cursor: Cursor) -> None:
        if bytes(cursor.take(12)) != b"header_page\0":
            raise self._error("corrupt trace.dat file: no header_page")
        fields = {name: (int(at), int(size)) for name, at, size in _HEADER_FIELD.findall(cursor.sized(8))}
        if bytes(cursor.take(13)) != b"header_event\0":
            raise self._error("corrupt trace.dat file: no header_event")
        if not re.search(r"type_len\s*:\s*5 bits", cursor.sized(8)):
            raise self._error("events laid out as before Linux 2.6.31 are not read")
        (commit, commit_size), (data, _) = fields.get("commit", (0, 0)), fields.get("data", (0, 0))
        if commit != 8 or commit_size not in (4, 8) or data != commit + commit_size:
            raise self._error("pages of an unknown layout (header_page)")
        self._file.layout = PageLayout(commit, commit_size, data)

    def _read_ftrace_formats(self, cursor: Cursor) -> None:
        for _ in range(cursor.number(4)):
            self._file.formats.append(("ftrace", cursor.sized(8)))

    def _read_event_formats(self, cursor: Cursor) -> None:
        for _ in range(cursor.number(4)):
            system = cursor.string()
            for _ in range(cursor.number(4)):
                self._file.formats.append((system, cursor.sized(8)))

    def _read_printk(self, cursor: Cursor) -> None:
        for address, text in _PRINTK_LINE.findall(cursor.sized(4)):
            self._file.printk[int(address, 16)] = text

    def _read_comms(self, cursor: Cursor) -> None:
        self._file.comms.update(_numbered(cursor.sized(8), str))

    def _checked_cpus(self, count: int, cursor: Cursor, size: int) -> int:
        if count > MAX_CPUS or count * size > len(cursor.data) - cursor.at:
            raise self._error(f"corrupt trace.dat file: {count} CPUs")
        return count

    def _add_cpu(self, cpu: int, start: int, size: int, page_size: int, algorithm: str | None) -> None:
        if page_size < self._file.layout.data + 8 or page_size > MAX_PAGE:
            raise self._error(f"corrupt trace.dat file: pages of {page_size} bytes")
        if cpu >= MAX_CPUS:
            raise self._error(f"corrupt trace.dat file: CPU {cpu}")
        if size and algorithm:
            size += 4
        if start + size > len(self._data) and size and not self._tolerate_truncation:
            raise self._error(
                f"truncated trace.dat file: {start + size} bytes needed, but it has {len(self._data)}"
            )
        data = self._data.part(start, start + size)
        self._file.cpus.append(CpuData(cpu, page_size, data, algorithm, self._path))


def _numbered(text: str, value: type[str] | type[int]) -> Iterator[tuple[int, str | int]]:
    """The lines ``number value`` of saved_cmdlines and saved_tgids."""
    for line in text.splitlines():
        number, _, rest = line.strip().partition(" ")
        if _PID.fullmatch(number) and (value is str or _PID.fullmatch(rest.strip())):
            yield int(number), value(rest) if value is str else int(rest)


def _chosen_clock(text: str) -> str:
    """The clock of a trace_clock file, which stands in brackets."""
    found = re.search(r"\[(\S+)\]", text)
    return found[1] if found else text.strip()
