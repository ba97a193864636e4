"""``DatParser``: a trace.dat file of trace-cmd as the ``Trace`` that its text would give."""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np

from replay.errors import MalformedLine, TraceError
from replay.trace.dat import decode as decoding
from replay.trace.dat import pages as paging
from replay.trace.dat.container import CpuData, DatFile, read_container
from replay.trace.dat.cursor import FileBytes
from replay.trace.dat.fields import compile_layouts
from replay.trace.dat.formats import parse_format
from replay.trace.dat.pages import (
    LEAST_RECORD,
    STREAM,
    STREAM_AT,
    STREAM_CPU,
    STREAM_FILLED,
    STREAM_IS_LAST,
    STREAM_LIST,
    STREAM_PAGE,
)
from replay.trace.dat.printk import printed
from replay.trace.parser import Parser
from replay.trace.scan import registers as reg
from replay.trace.scan.header import Task
from replay.trace.scan.lex import PADDING, grown
from replay.trace.scan.state import with_task
from replay.trace.source import Source
from replay.trace.trace import Trace

WINDOW_BYTES = 1 << 18
ALL_WINDOWS_BYTES = 1 << 26
"""What is held of the pages of one CPU and, where there are many, of all."""

MAX_PAGES_BYTES = 1 << 30
"""One page of all CPUs together; real ones are far below."""

_READ_BYTES = 1 << 20


class DatParser(Parser):
    """Parses a trace.dat file.  A record is a line: ``line`` of an event is its number in order of time."""

    def parse(self, chunk_bytes: int = 0, threads: int = 1) -> Trace:
        """Read the source to its end."""
        self._trace.format = "trace.dat"
        assert isinstance(self._source, Source)
        path, file = self._source.path, self._source.plain_file()
        self._is_plain = file is not None
        if file is not None:
            return self._parse(FileBytes.whole(path, file))
        with tempfile.TemporaryFile() as copy:
            self._copy_to(copy)
            return self._parse(FileBytes.whole(path, copy.fileno()))

    def _copy_to(self, copy: IO[bytes]) -> None:
        buffer = np.empty(_READ_BYTES, np.uint8)
        while count := self._read(buffer):
            copy.write(buffer[:count].data)
            self._tell(self._source.position())
        copy.flush()

    def _parse(self, data: FileBytes) -> Trace:
        self._trace.bytes = len(data)
        file = read_container(self._source.path, data, self._tolerate_truncation)
        if len(set(file.clocks)) > 1:
            clocks = " and ".join(sorted(set(file.clocks)))
            raise TraceError(file.path, 0, f"buffers of different clocks ({clocks}) have no common order")
        formats = [parsed for system, text in file.formats if (parsed := parse_format(system, text))]
        self._file = file
        self._formats = formats
        self._layouts = compile_layouts(formats)
        self._streams = [_Stream(cpu) for cpu in file.cpus if len(cpu.data)]
        self._pages = _new_pages(file, self._streams, len(formats))
        with np.errstate(over="ignore"):  # clocks wrap around, which numpy tells without compilation
            self._decode()
        self._count_ignored()
        trace = self._finish()
        trace.kernel = file.kernel or trace.kernel
        trace.lost_events = max(trace.lost_events, file.overruns)
        return trace

    def _decode(self) -> None:
        state = self._scanner.state
        while True:
            malformed = int(state.malformed)
            decoding.decode(self._pages, self._layouts, self._rows, self._scanner)
            self._take_malformed_records(malformed)
            reason = int(state.stop)
            if reason == reg.AT_END:
                return
            if reason == reg.ROWS_FULL:
                self._end_batch()
            elif reason == reg.TEXTS_FULL:
                self._scanner = self._scanner._replace(
                    texts=grown(self._scanner.texts, len(self._pages.scratch))
                )
            elif reason == reg.TASK_IS_NEW:
                self._add_pid(int(state.start))
            elif reason == decoding.NEED_PAGES:
                self._refill(int(state.start))
            elif reason == decoding.NEED_TEXT:
                self._print(int(state.start))
            else:
                cpu = int(self._pages.streams[int(state.start), STREAM_CPU])
                raise TraceError(
                    self._source.path,
                    0,
                    f"corrupt trace.dat file: a page of CPU {cpu} does not hold its events",
                )

    def _refill(self, number: int) -> None:
        """Move the rest of a stream's window to its beginning and fill it up."""
        row = self._pages.streams[number]
        stream = self._streams[number]
        at, filled = int(row[STREAM_PAGE]), int(row[STREAM_FILLED])
        window = self._pages.data[stream.begin : stream.begin + stream.size]
        held = filled - at
        window[:held] = window[at - stream.begin : filled - stream.begin].copy()
        count, is_last = stream.read(window[held:])
        row[STREAM_PAGE], row[STREAM_FILLED] = stream.begin, stream.begin + held + count
        row[STREAM_IS_LAST] = is_last
        if self._is_plain:
            unread = sum(stream.unread for stream in self._streams)
            self._tell(self._trace.bytes - unread)

    def _print(self, number: int) -> None:
        """Put the text of the ``trace_printk`` record at hand where ``decode`` looks for it."""
        at = int(self._pages.streams[number, STREAM_AT])
        record, size = int(self._pages.records[at]), int(self._pages.sizes[at])
        data = self._pages.data[record : record + size].tobytes()
        event = self._formats[int(self._layouts.of_id[int.from_bytes(data[:2], "little")])]
        is_put = event.name == "bputs"
        address = event.fields["str" if is_put else "fmt"].offset
        form = self._file.printk[int.from_bytes(data[address : address + 8], "little")]
        arguments = b"" if is_put or "buf" not in event.fields else data[event.fields["buf"].offset :]
        text = printed(form, arguments).encode()[: len(self._pages.scratch) - 2 * PADDING]
        place = slice(PADDING, 2 * PADDING + len(text))
        self._pages.scratch[place] = np.frombuffer(text + b"\n" * PADDING, np.uint8)
        self._scanner.state.done = 1

    def _add_pid(self, pid: int) -> None:
        number = len(self._tasks)
        comm = self._file.comms.get(pid, "<idle>" if pid == 0 else "<...>")
        tgid = self._file.tgids.get(pid, -1)
        self._tasks.append(Task(comm, pid, tgid, bool(self._file.tgids)))
        self._scanner = with_task(self._scanner, number, self._tasks[-1], self._comm_number(comm))
        if 2 * number >= len(self._pages.pids):
            self._pages = self._pages._replace(pids=_pid_table([task.pid for task in self._tasks]))
        else:
            _put_pid(self._pages.pids, pid, number)

    def _take_malformed_records(self, first: int) -> None:
        last = min(int(self._scanner.state.malformed), reg.MAX_MALFORMED)
        for number, _, record in self._scanner.malformed[first:last].tolist():
            name = self._formats[number].name
            if self._strict:
                raise MalformedLine(self._source.path, record, f"malformed event: {name}")
            self._trace.malformed.append((record, name))

    def _count_ignored(self) -> None:
        """Names and numbers of the records of other events."""
        names = [event.name for event in self._formats] + ["unknown"]
        self._ignored: dict[str, int] = {}
        for name, count in zip(names, self._pages.counts.tolist(), strict=True):
            if count:
                self._ignored[name] = self._ignored.get(name, 0) + count

    def _finish(self) -> Trace:
        trace = super()._finish()
        trace.ignored_events = self._ignored
        return trace


class _Stream:
    """The pages of one CPU, and the window of ``Pages.data`` that they pass through."""

    def __init__(self, cpu: CpuData) -> None:
        self.cpu = cpu
        self.begin = 0
        self.size = 0
        self.unread = len(cpu.data)  # bytes of the file
        self._chunks = cpu.chunks() if cpu.algorithm else None
        self._chunk = memoryview(b"")

    def read(self, target: np.ndarray) -> tuple[int, bool]:
        """Fill the beginning of ``target``: (bytes, true if these are the last)."""
        if self._chunks is None:
            count = self.cpu.data.read_into(target, len(self.cpu.data) - self.unread)
            self.unread -= count
            return count, self.unread == 0
        count = 0
        while True:
            if not len(self._chunk):
                chunk = next(self._chunks, None)
                if chunk is None:
                    return count, True
                self.unread -= chunk[0]
                self._chunk = chunk[1]
                continue
            part = self._chunk[: len(target) - count]
            if not len(part):
                return count, False
            target[count : count + len(part)] = np.frombuffer(part, np.uint8)
            self._chunk = self._chunk[len(part) :]
            count += len(part)


def _new_pages(file: DatFile, streams: list[_Stream], formats: int) -> paging.Pages:
    """Empty windows for ``streams``, of records in so many formats."""
    rows = np.zeros((len(streams), STREAM), np.int64)
    begin, listed = 0, 0
    if sum(stream.cpu.page_size for stream in streams) > MAX_PAGES_BYTES:
        raise TraceError(file.path, 0, f"corrupt trace.dat file: {len(streams)} CPUs with large pages")
    for stream, row in zip(streams, rows, strict=True):
        page = stream.cpu.page_size
        wanted = min(WINDOW_BYTES, ALL_WINDOWS_BYTES // len(streams))
        if not stream.cpu.algorithm:
            wanted = min(wanted, len(stream.cpu.data))
        stream.begin, stream.size = begin, max(2, -(-wanted // page)) * page
        row[[STREAM_CPU, paging.STREAM_PAGE_SIZE, paging.STREAM_WAITS]] = stream.cpu.cpu, page, 1
        row[[STREAM_PAGE, STREAM_FILLED]] = begin
        row[[paging.STREAM_PID, paging.STREAM_TASK]] = -2, -1
        row[STREAM_LIST] = listed
        begin += stream.size
        listed += page // LEAST_RECORD
    largest = max((stream.cpu.page_size for stream in streams), default=0)
    return paging.Pages(
        data=np.zeros(begin + PADDING, np.uint8),
        streams=rows,
        times=np.zeros(listed, np.int64),
        records=np.zeros(listed, np.int64),
        sizes=np.zeros(listed, np.int64),
        tree=np.full((2 << max(0, len(streams) - 1).bit_length(), 2), paging.NEVER, np.int64),
        head=np.array(file.layout, np.int64),
        clock=np.array([file.tsc_mult, file.tsc_shift, file.offset_ns], np.int64),
        pids=_pid_table([]),
        counts=np.zeros(formats + 1, np.int64),
        scratch=np.zeros(largest + 2 * PADDING, np.uint8),
        markers=np.array([at for at, text in file.printk.items() if text.startswith("replay:")], np.uint64),
    )


def _pid_table(pids: list[int]) -> np.ndarray:
    """A table for the tasks of ``pids`` and as many more; the first of them is the task of no pid."""
    table = np.zeros((max(256, 1 << (4 * len(pids)).bit_length()), 2), np.int64)
    for number, pid in enumerate(pids):
        if number:
            _put_pid(table, pid, number)
    return table


def _put_pid(table: np.ndarray, pid: int, task: int) -> None:
    place = (pid * 0x9E3779B1) & (len(table) - 1)
    while table[place, 1]:
        place = (place + 1) & (len(table) - 1)
    table[place] = pid, task + 1
