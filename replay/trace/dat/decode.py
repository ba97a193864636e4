"""Records of trace.dat files to columns: one jitted pass over the pages of all CPUs.

Every CPU has a window into its pages; where one is used up ``decode`` stops for more.
"""

from __future__ import annotations

import numpy as np

from replay.jit import by_reference, jit, kernel
from replay.schema import Kind
from replay.trace import scan
from replay.trace.dat.pages import (
    ADVANCED,
    NEEDS_PAGES,
    STREAM_CPU,
    STREAM_LOST,
    STREAM_PID,
    STREAM_RECORD,
    STREAM_SIZE,
    STREAM_TASK,
    STREAM_TIME,
    STREAM_WAITS,
    advance,
    load32,
    pop,
    push,
    sift_down,
)
from replay.trace.dat.records import WITHOUT_TEXT, read_record
from replay.trace.dialect import START
from replay.trace.payload import NUM

# why ``decode`` stopped, beside the reasons of ``scan``; ``state[START]`` is the stream, or the new pid
NEED_PAGES, IS_CORRUPT, NEED_TEXT = 20, 21, 22

_LOST_EVENTS, _LAST_KVMMMU = int(Kind.LOST_EVENTS), int(Kind.SPLIT_HUGE_PAGE)


@jit
def _find_task(streams, n, pages, layouts):
    """(pid, task) of the record at hand; task -1: the pid is new."""
    pid = np.int64(-1)
    if streams[n, STREAM_SIZE] >= layouts.pid[1]:
        pid = load32(pages.data, streams[n, STREAM_RECORD] + layouts.pid[0]) & 0x7FFFFFFF
    if pid != streams[n, STREAM_PID]:
        pids = pages.pids
        place = (pid * 0x9E3779B1) & (len(pids) - 1)
        while pids[place, 1] != 0 and pids[place, 0] != pid:
            place = (place + 1) & (len(pids) - 1)
        if pids[place, 1] == 0:
            return pid, np.int64(-1)
        streams[n, STREAM_PID], streams[n, STREAM_TASK] = pid, pids[place, 1] - 1
    return pid, streams[n, STREAM_TASK]


@jit
def _fill_heap(pages, state):
    """Advance the streams that wait; false if one cannot, ``state`` says why."""
    for n in range(len(pages.streams)):
        if pages.streams[n, STREAM_WAITS] == 0:
            continue
        status = advance(pages.data, pages.streams, n, pages.head, pages.clock)
        if status >= NEEDS_PAGES:
            state[scan.STOP], state[START] = NEED_PAGES if status == NEEDS_PAGES else IS_CORRUPT, n
            return False
        pages.streams[n, STREAM_WAITS] = 0
        if status == ADVANCED:
            push(pages.heap, pages.streams[n, STREAM_TIME], n)
    return True


@jit
def _end_row(kind, task, streams, n, rows, scanner):
    """Complete the row of a record of ``kind`` and go to the next."""
    state = scanner.state
    row = state[scan.ROWS]
    rows.kind[row] = kind
    rows.task[row] = task
    rows.cpu[row] = streams[n, STREAM_CPU]
    rows.ts_ns[row] = streams[n, STREAM_TIME]
    rows.line[row] = state[scan.LINES]
    state[scan.ROWS] = row + 1
    if kind <= _LAST_KVMMMU:
        state[scan.KVMMMU] += 1
    if scan.SHOWS_VM[kind] and scanner.tasks[task, 1] == 0:
        scanner.tasks[task, 1] = state[scan.LINES]


@jit
def _end_lost(streams, n, rows, scanner):
    """A row for the events that were lost before the record at hand."""
    state, lost = scanner.state, streams[n, STREAM_LOST]
    streams[n, STREAM_LOST] = 0
    state[scan.LOST] += lost if lost > 0 else 1
    state[scan.LINES] += 1
    rows.wide[NUM, state[scan.ROWS]] = np.uint64(lost)
    _end_row(np.int64(_LOST_EVENTS), np.int64(scan.NO_TASK), streams, n, rows, scanner)


@jit
def _end_malformed(number, scanner):
    """Count a malformed record of the format ``number``."""
    state = scanner.state
    count = state[scan.MALFORMED]
    if count < scan.MAX_MALFORMED:
        scanner.malformed[count, 0], scanner.malformed[count, 2] = number, state[scan.LINES]
    state[scan.MALFORMED] = count + 1


@jit
def _decode(pages, layouts, rows, scanner):
    """As ``decode``."""
    state, heap, streams = scanner.state, pages.heap, pages.streams
    if not _fill_heap(pages, state):
        return
    state[scan.STOP] = scan.AT_END
    while heap[0, 0] > 0:
        n = heap[1, 1]
        if state[scan.ROWS] == len(rows.kind):
            state[scan.STOP] = scan.ROWS_FULL
            return
        if streams[n, STREAM_LOST] != 0:
            _end_lost(streams, n, rows, scanner)
            continue
        event = np.int64(-1)
        if streams[n, STREAM_SIZE] >= 2:
            event = np.int64(layouts.of_id[load32(pages.data, streams[n, STREAM_RECORD]) & 0xFFFF])
        kind = np.int64(scan.IGNORED_LINE)
        if event >= 0:
            kind = read_record(streams, n, pages, layouts, event, rows, scanner)
        if kind == scan.NO_ROOM or kind == WITHOUT_TEXT:
            state[scan.STOP], state[START] = scan.TEXTS_FULL if kind == scan.NO_ROOM else NEED_TEXT, n
            return
        if kind > 0:
            pid, task = _find_task(streams, n, pages, layouts)
            if task < 0:
                state[scan.STOP], state[START] = scan.TASK_IS_NEW, pid
                return
            state[scan.LINES] += 1
            _end_row(kind, task, streams, n, rows, scanner)
        else:
            state[scan.LINES] += 1
            if kind == scan.IGNORED_LINE:
                state[scan.IGNORED] += 1
                pages.counts[event if event >= 0 else len(pages.counts) - 1] += 1
            else:
                _end_malformed(event, scanner)
        status = advance(pages.data, streams, n, pages.head, pages.clock)
        if status == ADVANCED:
            sift_down(heap, streams[n, STREAM_TIME])
            continue
        pop(heap)
        if status >= NEEDS_PAGES:
            streams[n, STREAM_WAITS] = 1
            state[scan.STOP], state[START] = NEED_PAGES if status == NEEDS_PAGES else IS_CORRUPT, n
            return


@kernel
def decode(pages, layouts, rows, scanner):
    """Decode records into ``rows`` from row ``state[ROWS]`` on until ``state[STOP]`` says why not.

    ``pages`` Pages, ``layouts`` Layouts, ``rows`` Rows, ``scanner`` Scanner, of which headers and seen are
    not used.  A record at which it stops is yet to be decoded; ``malformed`` has the number of its format.
    DONE in ``state`` says that ``scratch`` has the text that NEED_TEXT asked for.
    """
    _decode(by_reference(pages), by_reference(layouts), by_reference(rows), by_reference(scanner))
