"""Parts of a plain file that several threads scan at once, and what it takes to join them in order.

A section is scanned as if the trace began with it, by a scanner that knows the tasks and names met so far.
Joining it to what was read before gives what scanning it in place would have given; where that cannot be told
beforehand (other forms of text, times that only the line before tells), the section is given up, to be
scanned in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from replay.jit import new_records
from replay.schema import Columns
from replay.trace.scan import registers as reg
from replay.trace.scan.header import parse_task
from replay.trace.scan.known_shapes import NEXT
from replay.trace.scan.lex import NEWLINE, PADDING, Strings, added, contents, grown, new_strings
from replay.trace.scan.rows import Rows, columns_of
from replay.trace.scan.scan import scan
from replay.trace.scan.state import MAX_NAMES, Scanner, with_header
from replay.trace.text.rewrite import has_foreign

MAX_TEXTS = 1 << 12
"""A section with more distinct markers is scanned in place: joining costs more than it saves."""
MAX_THREADS = 8
"""One thread joins what they find, and each holds a section in memory."""
MALFORMED_TEXT = 200
"""Characters that are kept of a malformed line."""
MAX_GIVEN_UP = 3
"""After so many sections that had to be given up no more are tried."""
_NO_TIME = np.iinfo(np.int64).min


class Section(NamedTuple):
    """A scanned section."""

    column: int  # where the CPU column was thought to be at its beginning
    known_tasks: int  # tasks that the scanner knew
    known_names: int  # and names of events
    scanner: Scanner
    headers: list[bytes]  # of tasks that the scanner did not know
    comms: list[str]  # of these; number n is -2 - n in the column comm
    comments: list[bytes]
    malformed: list[tuple[int, str]]  # line in the section, text
    batches: list[Columns]  # line and text are those of the section alone


def thread_count() -> int:
    """How many sections may be scanned at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def fork(scanner: Scanner) -> Scanner:
    """A scanner that knows what ``scanner`` knows of tasks and names, and has counted nothing yet."""
    tasks, kinds, state = scanner.tasks.copy(), scanner.kinds.copy(), new_records(1, reg.REGISTERS)[0]
    tasks.first_line = kinds[:, 1] = 0
    for kept in ("column", "doubts", "base"):
        state[kept] = scanner.state[kept]
    state.time, state.given_up, state.first_time = _NO_TIME, -1, reg.NEVER
    shapes = 1 + int(scanner.shapes[0, NEXT])
    return scanner._replace(
        headers=Strings(*(array.copy() for array in scanner.headers)),
        names=Strings(*(array.copy() for array in scanner.names)),
        texts=new_strings(1024, 1 << 16),
        tasks=tasks,
        kinds=kinds,
        seen_headers=np.zeros_like(scanner.seen_headers),
        seen_names=np.zeros_like(scanner.seen_names),
        places=scanner.places.copy(),
        shapes=_first_rows(scanner.shapes, shapes),
        ranges=_first_rows(scanner.ranges, shapes),
        marks=np.zeros_like(scanner.marks),
        fields=np.zeros_like(scanner.fields),
        state=state,
        malformed=np.zeros_like(scanner.malformed),
    )


def _first_rows(table: np.ndarray, count: int) -> np.ndarray:
    """A table as large, with the first ``count`` rows of ``table``: the memory of others is never touched."""
    rows = np.zeros_like(table)
    rows[:count] = table[:count]
    return rows


def scan_section(
    file: int,
    at: int,
    stop: int,
    buf: np.ndarray,
    scanner: Scanner,
    comms: Mapping[str, int],
    new_rows: Callable[[int], Rows],
    batch_rows: int,
) -> Section | None:
    """Scan the whole lines from ``at`` to ``stop`` of ``file``; None if the section is given up.

    ``buf`` uint8, room for a chunk of them; ``scanner``, a fork; ``comms``, the numbers of those it knows;
    ``batch_rows``, about as many as the section has.
    """
    scan_of = _SectionScan(scanner, comms, new_rows, batch_rows)
    room, held = len(buf) - PADDING, 0
    while at < stop:
        count = os.preadv(file, [buf[held : min(room, held + stop - at)].data], at)
        at, held = at + count, held + count
        end = last_line_end(buf, 0, held)
        if count == 0 or end == 0:  # the file was cut off meanwhile, or has a line longer than a chunk
            return None
        rest = buf[end:held].copy()
        buf[end : end + PADDING] = NEWLINE
        if not scan_of.scan(buf, end):
            return None
        held = len(rest)
        buf[:held] = rest
    return scan_of.finish() if held == 0 else None


class _SectionScan:
    """What is found in a section, chunk by chunk."""

    def __init__(
        self,
        scanner: Scanner,
        comms: Mapping[str, int],
        new_rows: Callable[[int], Rows],
        batch_rows: int,
    ) -> None:
        self._scanner = scanner
        self._comms = comms
        self._new_rows = new_rows
        self._batch_rows = batch_rows
        self._rows = new_rows(batch_rows)
        self._own_comms: dict[str, int] = {}
        self._found = Section(
            column=int(scanner.state.column),
            known_tasks=int(scanner.headers.table[0, 0]),
            known_names=int(scanner.names.table[0, 0]),
            scanner=scanner,
            headers=[],
            comms=[],
            comments=[],
            malformed=[],
            batches=[],
        )

    def scan(self, buf: np.ndarray, stop: int) -> bool:
        """Scan the lines of ``buf[:stop]``; false if the section is to be given up."""
        state, place = self._scanner.state, 0
        while True:
            malformed = int(state.malformed)
            with np.errstate(over="ignore"):  # hashes wrap around, which numpy tells without compilation
                place = scan(buf, place, stop, self._rows, self._scanner)
            self._found.malformed.extend(malformed_lines(self._scanner, malformed, buf))
            reason = state.stop
            if reason == reg.AT_END:
                return True
            if reason == reg.ROWS_FULL:
                self._end_batch()
                self._batch_rows = min(self._batch_rows, max(256, self._batch_rows // 8))
                self._rows, state.rows = self._new_rows(self._batch_rows), 0
            elif reason == reg.TEXTS_FULL:
                self._scanner = self._scanner._replace(texts=grown(self._scanner.texts, stop))
            elif reason == reg.COMMENT or reason == reg.TASK_IS_NEW:
                text = buf[state.start : state.end].tobytes()
                if reason == reg.COMMENT:
                    self._found.comments.append(text)
                elif not self._add_task(text):
                    return False
            else:
                return False

    def _add_task(self, header: bytes) -> bool:
        if has_foreign(header):
            return False
        task = parse_task(header.decode(errors="replace"))
        comm = -1
        if task is not None:
            comm = self._comms.get(task.comm, -1)
            if comm < 0:
                comm = -2 - self._own_comms.setdefault(task.comm, len(self._own_comms))
        number = self._found.known_tasks + len(self._found.headers)
        self._scanner = with_header(self._scanner, number, header, task, comm)
        self._found.headers.append(header)
        return True

    def _end_batch(self) -> None:
        count = int(self._scanner.state.rows)
        if count:
            self._found.batches.append(columns_of(self._rows, count))
            self._scanner.state.time_before = self._rows.ts_ns[count - 1]

    def finish(self) -> Section:
        """All of it."""
        self._end_batch()
        return self._found._replace(scanner=self._scanner, comms=list(self._own_comms))


def malformed_lines(scanner: Scanner, first: int, buf: np.ndarray) -> list[tuple[int, str]]:
    """Number and text of the malformed lines of ``buf`` that ``scanner`` has kept, from ``first`` on."""
    last = min(int(scanner.state.malformed), reg.MAX_MALFORMED)
    if first >= last:  # as nearly always
        return []
    return [
        (line, buf[start:end].tobytes().decode(errors="replace").strip()[:MALFORMED_TEXT])
        for start, end, line in scanner.malformed[first:last].tolist()
    ]


def last_line_end(buf: np.ndarray, begin: int, end: int) -> int:
    """Index behind the last newline of ``buf[begin:end]``, 0 if there is none."""
    step = 1 << 12
    for start in range(end, begin, -step):
        block = buf[max(begin, start - step) : start].tobytes()
        place = block.rfind(b"\n")
        if place >= 0:
            return max(begin, start - step) + place + 1
    return 0


def can_join(scanner: Scanner, section: Section) -> bool:
    """Nothing before ``section``, all of which ``scanner`` has read, changes how its lines are read."""
    own = section.scanner
    names = int(scanner.names.table[0, 0]) + int(own.names.table[0, 0])
    return (
        section.column == scanner.state.column
        and (not section.batches or section.batches[0].ts_ns[0] != _NO_TIME)
        and own.texts.table[0, 0] <= MAX_TEXTS
        and names <= MAX_NAMES // 2
    )


class Numbers(NamedTuple):
    """Numbers of the strings of a scanner, as far as they were asked for."""

    texts: dict[bytes, int]
    names: dict[bytes, int]


def join(scanner: Scanner, section: Section, tasks: np.ndarray, numbers: Numbers) -> Scanner:
    """``scanner`` as if it had scanned ``section``; its lines and texts get the numbers of the whole trace.

    ``tasks`` int32: the number that each task of the section has in ``scanner``.  ``numbers`` are its own.
    """
    own, state = section.scanner, scanner.state
    lines = int(state.lines)
    scanner, texts = _with_strings(scanner, "texts", own.texts, 0, numbers)
    for columns in section.batches:
        np.add(columns.line, lines, out=columns.line)
        marked = np.flatnonzero(columns.text >= 0)
        columns.text[marked] = texts[columns.text[marked]]
    seen = np.flatnonzero(own.tasks[: len(tasks)].first_line)
    new = seen[scanner.tasks.first_line[tasks[seen]] == 0]
    scanner.tasks.first_line[tasks[new]] = own.tasks.first_line[new] + lines
    scanner, names = _with_strings(scanner, "names", own.names, section.known_names, numbers)
    np.add.at(scanner.kinds[:, 1], names, own.kinds[: len(names), 1])
    for counter in ("lines", "kvmmmu", "ignored", "malformed", "lost"):
        state[counter] += own.state[counter]
    _add_times_back(state, section, lines)
    state.first_time = min(state.first_time, own.state.first_time)
    state.last_time = max(state.last_time, own.state.last_time)
    state.column = own.state.column
    if own.state.time != _NO_TIME:
        state.time = own.state.time
    return scanner


def _add_times_back(state: Any, section: Section, lines: int) -> None:
    """Add the rows of ``section`` whose time is before that of the row before, the first one too."""
    own = section.scanner.state
    first_lines = [lines + int(own.first_back)] if own.times_back else []
    if section.batches:
        first = section.batches[0]
        if 0 < first.ts_ns[0] < state.time_before:
            state.times_back += 1
            first_lines.insert(0, int(first.line[0]))
        state.time_before = section.batches[-1].ts_ns[-1]
    if state.first_back == 0 and first_lines:
        state.first_back = first_lines[0]
    state.times_back += own.times_back


def number_comms(section: Section, comms: Mapping[str, int]) -> None:
    """Give the comms that only ``section`` knew their numbers in ``comms``."""
    if not section.comms:
        return
    numbers = np.array([comms[comm] for comm in section.comms], np.int32)
    for columns in section.batches:
        own = columns.comm < -1
        columns.comm[own] = numbers[-2 - columns.comm[own]]


def _with_strings(
    scanner: Scanner, name: str, strings: Strings, known_count: int, numbers: Numbers
) -> tuple[Scanner, np.ndarray]:
    """``scanner`` with ``strings`` among those called ``name``, and their numbers there, int32.

    The first ``known_count`` of ``strings`` have the same numbers in both.
    """
    if strings.table[0, 0] == known_count:
        return scanner, np.arange(known_count, dtype=np.int32)
    known: Strings = getattr(scanner, name)
    words: dict[bytes, int] = getattr(numbers, name)
    for word in contents(known, len(words)):  # what was scanned in place since then
        words[word] = len(words)
    found = list(range(known_count))
    for word in contents(strings, known_count):
        if word not in words:
            known, words[word] = added(known, word), len(words)
        found.append(words[word])
    return scanner._replace(**{name: known}), np.array(found, np.int32)
