"""``TextParser``: text in any of its forms, chunk by chunk, a plain file by several threads."""

from __future__ import annotations

import os
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from replay.errors import TraceError
from replay.schema import Columns
from replay.trace.formats import TEXT_FORMATS, text_format, text_kernel
from replay.trace.parser import ByteSource, Parser
from replay.trace.scan import registers as reg
from replay.trace.scan.header import NOBODY, parse_task
from replay.trace.scan.lex import NEWLINE, PADDING, grown
from replay.trace.scan.raw_fields import is_in_hex
from replay.trace.scan.scan import scan
from replay.trace.scan.state import Scanner, with_header
from replay.trace.source import PERF_DATA
from replay.trace.text.other_text import other_text
from replay.trace.text.perf_data import PerfScript
from replay.trace.text.rewrite import DECORATED, WRAPPED, Forms, has_foreign
from replay.trace.text.sections import (
    MALFORMED_TEXT,
    MAX_GIVEN_UP,
    Numbers,
    Section,
    can_join,
    fork,
    join,
    last_line_end,
    malformed_lines,
    number_comms,
    scan_section,
)
from replay.trace.text.wrapped import MAX_LINES, goes_on, is_cut_header, last_event
from replay.trace.trace import Trace

CHUNK_BYTES = 1 << 20
"""Read at once: what the processor keeps near while it is scanned."""
LONGEST_LINE = 1 << 20
"""A line of more bytes is malformed, whatever it says, and never held as a whole."""
SECTION_CHUNKS = 16
"""Chunks of a section at most."""
SAMPLE_BYTES, HEAD_BYTES = 1 << 14, 1 << 16
"""The beginning of a trace, by which its form is told, and by which it is told from what is no trace."""
EVENT_WITHIN = 4 << 20
"""A text that has no event in so many bytes is no trace, whatever follows."""
RAW_SAMPLE_BYTES = 1 << 20
"""The first raw fields, by which the base of their numbers is told."""
MAX_LINE = 1 << 14
"""A malformed line is looked at again in so many bytes."""
MAX_DOUBTS, RARE_DOUBTS = 1000, 61
"""After so many malformed lines that no other form explains, only each 61st is looked at: a form may still
begin, but a trace of nonsense takes no time.  A prime, for lines that take turns.
"""

_ENTRIES = re.compile(r"entries-in-buffer/entries-written: (\d+)/(\d+)")
_LATENCY_HEADER = re.compile(r"latency trace v\S+ on (\S+)")
# print_raw_fmt and print_hex_fmt of kernel/trace/trace.c: pid, CPU and time, and no event has fields
_RAW_OR_HEX = re.compile(rb"^(?:\d+ \d+ \d+ |(?:[0-9a-f]{8} ){2}[0-9a-f]{16} )?type: \d+$", re.MULTILINE)
_PERF_KERNEL = re.compile(r"# os release : (\S+)")


class TextParser(Parser):
    """Feeds chunks of text to the scanner, rewritten where they are of another form."""

    def __init__(self, source: ByteSource, file_format: str | None, *options: Any) -> None:
        self._forms = Forms()
        self._useless_doubts = 0
        self._buffers: list[np.ndarray] = []  # of threads
        self._ahead = b""  # read already, to be scanned
        super().__init__(source, file_format, *options)
        self._forms.used.update(TEXT_FORMATS.get(self._file_format or "", ()))

    def _begin(self) -> None:
        super()._begin()
        self._saw_header = False
        self._numbers = Numbers({}, {})
        self._scanner.state.doubts = self._file_format != "ftrace"
        self._long_lines = 0
        self._at_beginning = True  # the first lines are being scanned, and can be again

    def parse(self, chunk_bytes: int, threads: int) -> Trace:
        """Read the source to its end."""
        chunk_bytes = min(chunk_bytes, LONGEST_LINE)  # so that no section is scanned that has a longer line
        self._look_at_head()
        buf = np.empty(chunk_bytes + PADDING, np.uint8)
        held = 0  # bytes at the beginning of the buffer that are yet to be scanned
        while True:
            room = len(buf) - PADDING
            count = self._read_on(buf[held:room])
            self._trace.bytes += count
            held += count
            if count == 0:
                if held:
                    buf[held : held + PADDING] = NEWLINE
                    self._scan(buf, 0, held + (buf[held - 1] != NEWLINE))
                return self._finish()
            if held < room:
                continue
            stop = _chunk_end(buf, 0, held)
            if stop == 0 and held > LONGEST_LINE + MAX_LINE:
                stop = last_line_end(buf, 0, held)  # what is so long does not go on with the line before
                if stop == 0:
                    held = self._skip_line(buf, held)
                    continue
            if stop == 0:  # one line longer than the buffer
                buf = np.concatenate([buf, np.empty(len(buf), np.uint8)])
                continue
            rest = buf[stop:held].copy()
            buf[stop : stop + PADDING] = NEWLINE
            self._scan(buf, 0, stop)
            held = len(rest)
            buf[:held] = rest
            if self._trace.bytes >= EVENT_WITHIN:
                self._check_is_trace()
            self._tell(self._source.position())
            file = self._source.plain_file()
            if threads > 1 and file is not None:
                self._parse_sections(file, self._trace.bytes - held, chunk_bytes, threads)
                threads, held = 1, 0

    def _look_at_head(self) -> None:
        """Read the beginning of the trace, which tells its format and the kernel, whatever the chunks are."""
        head = np.empty(HEAD_BYTES, np.uint8)
        held = 0
        while held < HEAD_BYTES and (count := self._read(head[held:])):
            held += count
        self._head = self._ahead = head[:held].tobytes()
        trace, sample = self._trace, self._head[:SAMPLE_BYTES]
        trace.kernel = text_kernel(sample)
        if self._file_format:
            trace.format = self._file_format
        elif trace.format == "text":
            trace.format = text_format(sample)

    def _read_on(self, target: np.ndarray) -> int:
        """As ``_read``, after what has been read of the beginning."""
        if not self._ahead:
            return self._read(target)
        count = min(len(target), len(self._ahead))
        target[:count] = np.frombuffer(self._ahead, np.uint8, count)
        self._ahead = self._ahead[count:]
        return count

    def _skip_line(self, buf: np.ndarray, held: int) -> int:
        """Pass over the line that begins with the ``held`` bytes of ``buf``: how many there are behind it."""
        self._add_long_line(buf[:held])
        while held and not len(ends := np.flatnonzero(buf[:held] == NEWLINE)):
            held = self._read_on(buf[: len(buf) - PADDING])
            self._trace.bytes += held
            if self._trace.bytes >= EVENT_WITHIN:
                self._check_is_trace()
        if held:
            rest = buf[int(ends[0]) + 1 : held].copy()
            held = len(rest)
            buf[:held] = rest
        return held

    def _add_long_line(self, line: np.ndarray) -> None:
        """Count a line that is too long to be read, by its beginning."""
        self._at_beginning = False
        state = self._scanner.state
        state.lines += 1
        state.malformed += 1
        self._long_lines += 1
        if state.malformed <= reg.MAX_MALFORMED:
            text = line[:MALFORMED_TEXT].tobytes().decode(errors="replace").strip()
            self._add_malformed([(int(state.lines), text)])

    def _parse_sections(self, file: int, at: int, chunk_bytes: int, threads: int) -> None:
        """Parse sections of ``file`` from ``at`` on by several threads, and go to where the rest begins."""
        end = os.fstat(file).st_size
        begin, given_up = at, 0
        pending: deque[tuple[int, Future[Section | None]]] = deque()
        pool = ThreadPoolExecutor(threads)
        try:
            while given_up < MAX_GIVEN_UP and not self._forms.used:
                while len(pending) <= threads:
                    # smaller ones towards the end, so that all threads end at once
                    size = max(chunk_bytes, min(SECTION_CHUNKS * chunk_bytes, (end - begin) // (2 * threads)))
                    stop = _section_end(file, begin, min(begin + size, end))
                    if stop <= begin:
                        break
                    rows = self._rows_of(stop - begin, at)
                    known = fork(self._scanner)
                    section = pool.submit(self._section, file, begin, stop, chunk_bytes, known, rows)
                    pending.append((stop, section))
                    begin = stop
                if not pending:
                    break
                stop, scanned = pending.popleft()
                found = scanned.result()
                is_short = False
                if found is None or not self._join(found):
                    given_up += 1
                    count = self._scan_in_place(file, at, stop)
                    is_short, stop = count < stop - at, at + count
                self._trace.bytes = at = stop
                if at >= EVENT_WITHIN:
                    self._check_is_trace()
                self._tell(at)
                if is_short:  # the file has been cut off meanwhile
                    break
        except OSError as error:
            raise TraceError(self._source.path, 0, error.strerror or str(error)) from error
        finally:
            pool.shutdown(cancel_futures=True)
        self._trace.bytes = at  # what is held behind that is read again
        self._ahead = b""
        self._source.go_to(at)

    def _rows_of(self, count: int, read: int) -> int:
        """About as many rows as ``count`` bytes have, or few more, if they are as the first ``read`` were."""
        rows = self._trace.events + int(self._scanner.state.rows)
        return min(self._batch_rows, 256 + rows * (count + count // 32) // read)

    def _section(
        self, file: int, at: int, stop: int, chunk_bytes: int, scanner: Scanner, rows: int
    ) -> Section | None:
        """What a thread of the pool does, on its own: see ``scan_section``."""
        buf = self._buffers.pop() if self._buffers else np.empty(chunk_bytes + PADDING, np.uint8)
        try:
            return scan_section(file, at, stop, buf, scanner, self._comms, self._store.memory.rows, rows)
        finally:
            self._buffers.append(buf)

    def _scan_in_place(self, file: int, at: int, stop: int) -> int:
        """Scan the whole lines from ``at`` to ``stop`` of ``file``: how many bytes there were."""
        buf = np.empty(stop - at + PADDING, np.uint8)
        count = os.preadv(file, [buf[: stop - at].data], at)
        buf[count:] = NEWLINE
        if count:
            self._scan(buf, 0, count + (buf[count - 1] != NEWLINE))
        return count

    def _join(self, section: Section) -> bool:
        """Add what ``section`` found to what was read before it; False if that cannot be."""
        if not can_join(self._scanner, section):
            return False
        self._end_batch()
        known = np.arange(section.known_tasks)
        new = [self._task_numbers.get(header) or self._add_header(header) for header in section.headers]
        state = self._scanner.state
        room, lines = reg.MAX_MALFORMED - int(state.malformed), int(state.lines)
        self._scanner = join(self._scanner, section, np.append(known, new).astype(np.int32), self._numbers)
        self._add_malformed([(lines + line, text) for line, text in section.malformed[: max(0, room)]])
        for comment in section.comments:
            self._read_comment(comment.decode(errors="replace"))
        number_comms(section, self._comms)
        for columns in section.batches:
            self._add_batch(columns)
        return True

    def _scan(self, buf: np.ndarray, at: int, stop: int) -> None:
        """Scan the whole lines of ``buf[at:stop]``."""
        while (line := _long_line(buf, at, stop)) is not None:
            if at < line[0]:
                self._scan_lines(buf, at, line[0])
            self._add_long_line(buf[line[0] : line[1]])
            at = min(stop, line[1] + 1)
        if at < stop:
            self._scan_lines(buf, at, stop)

    def _scan_lines(self, buf: np.ndarray, at: int, stop: int) -> None:
        """Scan the whole lines of ``buf[at:stop]``, none of which is too long."""
        if self._forms.used:
            buf, at, stop = self._rewritten(buf, at, stop)
        first, self._scanner.state.given_up = at, -1
        while True:
            state = self._scanner.state
            malformed = int(state.malformed)
            with np.errstate(over="ignore"):  # hashes wrap around, which numpy tells without compilation
                at = scan(buf, at, stop, self._rows, self._scanner)
            self._add_malformed(malformed_lines(self._scanner, malformed, buf))
            reason = state.stop
            if reason == reg.AT_END:
                break
            if reason == reg.ROWS_FULL:
                self._end_batch()
            elif reason == reg.TEXTS_FULL:
                self._scanner = self._scanner._replace(texts=grown(self._scanner.texts, stop - first))
            elif reason == reg.COMMENT:
                self._take_comment(buf)
            elif reason == reg.BASE_IS_NEW:
                start = int(state.start)
                sample = buf[start : min(stop, start + RAW_SAMPLE_BYTES)].tobytes()
                state.base = 16 if is_in_hex(sample) else 10
            elif self._is_other_form(buf, stop):
                if self._at_beginning:
                    self._begin()
                    at = first
                buf, at, stop = self._rewritten(buf, at, stop)
                first, self._scanner.state.given_up = at, -1
            elif reason == reg.TASK_IS_NEW:
                self._add_task(buf)
            else:
                self._give_up_line()
        self._at_beginning = False

    def _rewritten(self, buf: np.ndarray, at: int, stop: int) -> tuple[np.ndarray, int, int]:
        """The lines of ``buf[at:stop]`` in a buffer of their own, as the scanner reads them."""
        text = self._forms.rewrite(buf[at:stop].tobytes())
        padded = np.frombuffer(bytearray(text + b"\n" * PADDING), np.uint8)
        return padded, 0, len(text)

    def _is_other_form(self, buf: np.ndarray, stop: int) -> bool:
        """The line at ``start``, malformed or of a new task, needs a stage that has not been used so far."""
        state = self._scanner.state
        start, end = int(state.start), int(state.end)
        if state.stop == reg.TASK_IS_NEW:
            if not has_foreign(buf[start:end].tobytes()):
                return False
            end = min(stop, start + MAX_LINE)
        text = buf[start : min(stop, start + MAX_LINE)].tobytes()
        is_native = state.doubts == 0  # as the user says
        line = text[: end - start].partition(b"\n")[0]
        if self._forms.learn(line, (DECORATED,) if is_native else None):
            return True
        if state.stop == reg.TASK_IS_NEW or is_native or WRAPPED in self._forms.used:
            return False
        before = buf[max(0, start - MAX_LINE) : max(0, start - 1)].tobytes().rpartition(b"\n")[2]
        if is_cut_header(before) or goes_on(text.split(b"\n", MAX_LINES)[:MAX_LINES]):
            self._forms.used.add(WRAPPED)
        return WRAPPED in self._forms.used

    def _give_up_line(self) -> None:
        """The line at ``start`` is malformed; after many of them few are looked at again."""
        self._useless_doubts += 1
        self._scanner.state.given_up = self._scanner.state.start
        self._scanner.state.doubts = 1 if self._useless_doubts < MAX_DOUBTS else RARE_DOUBTS

    def _has_events(self) -> bool:
        """Some line has been an event, if only a malformed one."""
        state = self._scanner.state
        malformed = state.malformed - self._long_lines  # which may be of anything
        seen = state.rows or malformed or self._trace.events
        return bool(seen or self._scanner.kinds[:, 1].any())

    def _check_is_trace(self) -> None:
        if not self._scanner.state.rows and not self._trace.events and (other := other_text(self._head)):
            raise TraceError(self._source.path, 0, f"not a trace of events: {other}")
        if self._has_events():
            return
        if _RAW_OR_HEX.search(self._head):
            raise TraceError(self._source.path, 0, "recorded with option raw or hex: record without it")
        if self._head[:8] in PERF_DATA:
            raise TraceError(self._source.path, 0, "a compressed perf.data file: decompress it first")
        if not self._saw_header and self._trace.format in ("ftrace", "text"):
            what = "a binary file" if 0 in self._head else "no line is an ftrace event or header"
            raise TraceError(self._source.path, 0, f"not a trace: {what}")

    def _add_task(self, buf: np.ndarray) -> None:
        """Add the header that the scanner met to its tables."""
        state = self._scanner.state
        start, end = int(state.start), int(state.end)
        self._add_header(buf[start:end].tobytes())

    def _add_header(self, header: bytes) -> int:
        """The number of a task that is not in the tables yet, by its header."""
        number = self._task_numbers[header] = len(self._tasks)
        task = parse_task(header.decode(errors="replace"))
        comm = self._comm_number(task.comm) if task else -1
        self._scanner = with_header(self._scanner, number, header, task, comm)
        self._tasks.append(task or NOBODY)
        return number

    def _take_comment(self, buf: np.ndarray) -> None:
        start, end = int(self._scanner.state.start), int(self._scanner.state.end)
        self._read_comment(buf[start:end].tobytes().decode(errors="replace"))

    def _read_comment(self, text: str) -> None:
        if text.startswith("# tracer:") or "TASK-PID" in text:
            self._saw_header = True
        if entries := _ENTRIES.search(text):
            self._saw_header = True
            self._trace.lost_events += max(0, int(entries[2]) - int(entries[1]))
        if text.startswith("# cmdline :"):  # perf script --header
            self._saw_header = True
        if kernel := _LATENCY_HEADER.search(text) or _PERF_KERNEL.match(text):
            self._trace.kernel = self._trace.kernel or kernel[1]

    def _add_batch(self, columns: Columns) -> None:
        super()._add_batch(columns)
        self._at_beginning = False

    def _finish(self) -> Trace:
        trace = super()._finish()
        self._check_is_trace()
        if isinstance(self._source, PerfScript):
            trace.lost_events = max(trace.lost_events, self._source.lost_events())
        return trace


def _long_line(buf: np.ndarray, at: int, stop: int) -> tuple[int, int] | None:
    """Begin and end of the first line of ``buf[at:stop]``, whole lines, that is too long; None if none is."""
    while stop - at > LONGEST_LINE:
        end = last_line_end(buf, at, at + LONGEST_LINE + 1)
        if end <= at:
            return at, at + int(np.argmax(buf[at:stop] == NEWLINE))
        at = end
    return None


def _chunk_end(buf: np.ndarray, begin: int, end: int) -> int:
    """Where the last line of ``buf[begin:end]`` ends that nothing continues, not above ``begin`` if none."""
    stop = last_line_end(buf, begin, end)
    lines = buf[max(begin, stop - MAX_LINE) : stop].tobytes()
    return stop - len(lines) + last_event(lines)  # the last may be wrapped


def _section_end(file: int, begin: int, end: int) -> int:
    """As ``_chunk_end``, in ``file``; also not above ``begin`` if the line there is very long."""
    if end <= begin:  # also where the file has been cut off meanwhile
        return begin
    first = max(begin, end - 2 * MAX_LINE)
    text = np.frombuffer(os.pread(file, end - first, first), np.uint8)
    return first + stop if (stop := _chunk_end(text, 0, len(text))) > 0 else begin
