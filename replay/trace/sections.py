"""Parts of a mapped trace that several threads scan at once, and what it takes to join them in order.

A section is scanned as if the trace began with it, by a scanner that knows the tasks and names met so far.
Joining it to what was read before gives what scanning it in place would have given; where that cannot be told
beforehand (other forms of text, times that only the line before tells), the section is given up, to be
scanned in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from replay.trace import scan as scanning
from replay.trace.columns import Batch, columns_of
from replay.trace.dialect import COLUMN, END, START, TIME, parse_task
from replay.trace.forms import has_prefix
from replay.trace.lex import Strings, added, contents, grown, new_strings
from replay.trace.scan import Rows, Scanner, scan
from replay.trace.scanner import with_task
from replay.trace.shape import NEXT

MAX_TEXTS = 1 << 12
"""A section with more distinct markers is scanned in place: joining costs more than it saves."""
MAX_THREADS = 8
"""One thread joins what they find, and each holds a section in memory."""
MAX_GIVEN_UP = 3
"""After so many sections that had to be given up no more are tried."""
_NO_TIME = np.iinfo(np.int64).min


class Section(NamedTuple):
    """A scanned section: ``buf[at:stop]``."""

    at: int
    stop: int
    column: int  # where the CPU column was thought to be at its beginning
    known_tasks: int  # tasks that the scanner knew
    known_names: int  # and names of events
    scanner: Scanner
    headers: list[bytes]  # of tasks that the scanner did not know
    comms: list[str]  # of these; number n is -2 - n in the column comm
    comments: list[bytes]
    batches: list[Batch]  # line and text are those of the section alone


def thread_count() -> int:
    """How many sections may be scanned at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def fork(scanner: Scanner) -> Scanner:
    """A scanner that knows what ``scanner`` knows of tasks and names, and has counted nothing yet."""
    tasks, kinds, state = scanner.tasks.copy(), scanner.kinds.copy(), np.zeros_like(scanner.state)
    tasks[:, 1] = kinds[:, 1] = 0
    state[COLUMN], state[TIME] = scanner.state[COLUMN], _NO_TIME
    state[scanning.DOUBTS], state[scanning.GIVEN_UP] = scanner.state[scanning.DOUBTS], -1
    state[scanning.BASE] = scanner.state[scanning.BASE]
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
    buf: np.ndarray,
    at: int,
    stop: int,
    scanner: Scanner,
    of_task: np.ndarray,
    comms: Mapping[str, int],
    new_rows: Callable[[int], Rows],
    batch_rows: int,
) -> Section | None:
    """Scan the whole lines of ``buf[at:stop]`` with ``scanner``, a fork; None if the section is given up.

    ``of_task`` int32[3, n] has pid, tgid and comm of the tasks that ``scanner`` knows, ``comms`` the numbers
    of comms.
    """
    state = scanner.state
    column, tasks = int(state[COLUMN]), int(scanner.headers.table[0, 0])
    names = int(scanner.names.table[0, 0])
    headers: list[bytes] = []
    own_comms: dict[str, int] = {}
    comments: list[bytes] = []
    batches: list[Batch] = []
    place = at
    rows = new_rows(batch_rows)
    while True:
        with np.errstate(over="ignore"):  # hashes wrap around, which numpy tells without compilation
            place = scan(buf, place, stop, rows, scanner)
        reason = state[scanning.STOP]
        if reason == scanning.ROWS_FULL or (reason == scanning.AT_END and state[scanning.ROWS]):
            batches.append(columns_of(rows, int(state[scanning.ROWS]), of_task))
            if reason == scanning.ROWS_FULL:
                rows, state[scanning.ROWS] = new_rows(batch_rows), 0
        if reason == scanning.AT_END:
            break
        if reason == scanning.TEXTS_FULL:
            scanner = scanner._replace(texts=grown(scanner.texts, stop - at))
        elif reason == scanning.COMMENT:
            comments.append(buf[state[START] : state[END]].tobytes())
        elif reason == scanning.TASK_IS_NEW:
            header = buf[state[START] : state[END]].tobytes()
            if has_prefix(header):
                return None
            scanner = with_task(scanner, tasks + len(headers), header)
            headers.append(header)
            values = _values_of(header, comms, own_comms)
            of_task = np.append(of_task, np.array([values], np.int32).T, axis=1)
        elif reason != scanning.ROWS_FULL:
            return None
    return Section(at, stop, column, tasks, names, scanner, headers, list(own_comms), comments, batches)


def _values_of(header: bytes, comms: Mapping[str, int], own_comms: dict[str, int]) -> tuple[int, int, int]:
    """Pid, tgid and comm of the task of ``header``; a comm that is not in ``comms`` goes to ``own_comms``."""
    task = parse_task(header.decode(errors="replace"))
    if task is None:
        return -1, -1, -1
    number = comms.get(task.comm)
    if number is None:
        number = -2 - own_comms.setdefault(task.comm, len(own_comms))
    return task.pid, task.tgid, number


def can_join(scanner: Scanner, section: Section) -> bool:
    """Nothing before ``section``, all of which ``scanner`` has read, changes how its lines are read."""
    own = section.scanner
    names = int(scanner.names.table[0, 0]) + int(own.names.table[0, 0])
    return (
        section.column == scanner.state[COLUMN]
        and (not section.batches or section.batches[0].columns.ts_ns[0] != _NO_TIME)
        and own.texts.table[0, 0] <= MAX_TEXTS
        and names <= scanning.MAX_NAMES // 2
    )


def join(scanner: Scanner, section: Section, tasks: np.ndarray) -> Scanner:
    """``scanner`` as if it had scanned ``section``; its lines and texts get the numbers of the whole trace.

    ``tasks`` int32: the number that each task of the section has in ``scanner``.
    """
    own, state = section.scanner, scanner.state
    lines = int(state[scanning.LINES])
    scanner, texts = _with_strings(scanner, "texts", own.texts, 0)
    for columns in (batch.columns for batch in section.batches):
        np.add(columns.line, lines, out=columns.line)
        if len(texts):
            columns.text[:] = np.append(texts, np.int32(-1))[columns.text]
    seen = np.flatnonzero(own.tasks[: len(tasks), 1])
    new = seen[scanner.tasks[tasks[seen], 1] == 0]
    scanner.tasks[tasks[new], 1] = own.tasks[new, 1] + lines
    scanner, names = _with_strings(scanner, "names", own.names, section.known_names)
    np.add.at(scanner.kinds[:, 1], names, own.kinds[: len(names), 1])
    at, room = int(state[scanning.MALFORMED]), len(scanner.malformed)
    kept = own.malformed[: min(int(own.state[scanning.MALFORMED]), max(0, room - at))]
    scanner.malformed[at : at + len(kept)] = kept + np.array([0, 0, lines])
    for counter in (scanning.LINES, scanning.KVMMMU, scanning.IGNORED, scanning.MALFORMED, scanning.LOST):
        state[counter] += own.state[counter]
    state[COLUMN] = own.state[COLUMN]
    if own.state[TIME] != _NO_TIME:
        state[TIME] = own.state[TIME]
    return scanner


def number_comms(section: Section, comms: Mapping[str, int]) -> None:
    """Give the comms that only ``section`` knew their numbers in ``comms``."""
    if not section.comms:
        return
    numbers = np.array([comms[comm] for comm in section.comms], np.int32)
    for columns in (batch.columns for batch in section.batches):
        own = columns.comm < -1
        columns.comm[own] = numbers[-2 - columns.comm[own]]


def _with_strings(
    scanner: Scanner, name: str, strings: Strings, known_count: int
) -> tuple[Scanner, np.ndarray]:
    """``scanner`` with ``strings`` among those called ``name``, and their numbers there, int32.

    The first ``known_count`` of ``strings`` have the same numbers in both.
    """
    if strings.table[0, 0] == known_count:
        return scanner, np.arange(known_count, dtype=np.int32)
    known: Strings = getattr(scanner, name)
    words = {word: number for number, word in enumerate(contents(known))}
    numbers = []
    for word in contents(strings):
        if word not in words:
            known, words[word] = added(known, word), len(words)
        numbers.append(words[word])
    return scanner._replace(**{name: known}), np.array(numbers, np.int32)
