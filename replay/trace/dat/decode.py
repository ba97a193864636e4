"""Records of trace.dat files to columns: one jitted pass over the pages of all CPUs.

Every CPU has a window into its pages; where one is used up ``decode`` stops for more.
"""

from __future__ import annotations

import numpy as np

from replay.jit import by_reference, jit, kernel
from replay.schema import Kind
from replay.trace.dat.fields import EVENT_KIND, EVENT_SIZE
from replay.trace.dat.pages import (
    AT_END,
    NEEDS_PAGES,
    NEVER,
    STREAM_AT,
    STREAM_CPU,
    STREAM_END,
    STREAM_LOST,
    STREAM_PID,
    STREAM_TASK,
    STREAM_WAITS,
    list_page,
    load32,
    set_time,
)
from replay.trace.dat.records import WITHOUT_TEXT, read_columns, read_other
from replay.trace.scan import registers as reg
from replay.trace.scan.event import IGNORED_LINE, NO_ROOM
from replay.trace.scan.payload import NUM
from replay.trace.scan.rows import end_row
from replay.trace.scan.state import PRINT

# why ``decode`` stopped, beside the reasons of ``scan``; ``state.start`` is the stream, or the new pid
NEED_PAGES, IS_CORRUPT, NEED_TEXT = 20, 21, 22

_LOST_EVENTS, _FIRST_MARK = int(Kind.LOST_EVENTS), int(Kind.MARK_VM_CREATE)


@jit
def _find_task(data, record, size, streams, n, pids, place):
    """(pid, task) of a record of stream ``n``, ``place`` is ``Layouts.pid``; task -1: the pid is new."""
    pid = np.int64(-1)
    if size >= place[1]:
        pid = load32(data, record + place[0]) & 0x7FFFFFFF
    if pid != streams[n, STREAM_PID]:
        slot = (pid * 0x9E3779B1) & (len(pids) - 1)
        while pids[slot, 1] != 0 and pids[slot, 0] != pid:
            slot = (slot + 1) & (len(pids) - 1)
        if pids[slot, 1] == 0:
            return pid, np.int64(-1)
        streams[n, STREAM_PID], streams[n, STREAM_TASK] = pid, pids[slot, 1] - 1
    return pid, streams[n, STREAM_TASK]


@jit
def _next_page(pages, n, state):
    """Go to the first record of the next pages of stream ``n``; false if it cannot, ``state`` says why."""
    streams = pages.streams
    while True:
        status = list_page(pages, n)
        if status >= NEEDS_PAGES:
            streams[n, STREAM_WAITS] = 1
            state.stop = NEED_PAGES if status == NEEDS_PAGES else IS_CORRUPT
            state.start = np.int64(n)
            return False
        if status == AT_END:
            set_time(pages.tree, n, NEVER)
            return True
        if streams[n, STREAM_AT] < streams[n, STREAM_END]:
            set_time(pages.tree, n, pages.times[streams[n, STREAM_AT]])
            return True


@jit
def _end_lost(streams, n, time, rows, tasks, state):
    """A row for the events that were lost before the record at hand."""
    lost, row = streams[n, STREAM_LOST], np.uint64(state.rows)
    streams[n, STREAM_LOST] = 0
    state.lost += lost if lost > 0 else 1
    state.lines += 1
    rows.wide[NUM, row] = np.uint64(lost)
    kind, task, cpu = np.int64(_LOST_EVENTS), np.int64(reg.NO_TASK), streams[n, STREAM_CPU]
    end_row(kind, task, cpu, time, np.int64(-1), row, rows, tasks, state)


@jit
def _end_malformed(number, scanner):
    """Count a malformed record of the format ``number``."""
    state = scanner.state
    count = state.malformed
    if count < reg.MAX_MALFORMED:
        scanner.malformed[count, 0], scanner.malformed[count, 2] = number, state.lines
    state.malformed = count + 1


@jit
def _decode(pages, layouts, rows, scanner):
    """As ``decode``.  What each record needs is taken out of the tuples once."""
    data, streams, tree, pids = pages.data, pages.streams, pages.tree, pages.pids
    times, records, sizes = pages.times, pages.records, pages.sizes
    of_id, events, pid_place = layouts.of_id, layouts.events, layouts.pid
    state, tasks = scanner.state, scanner.tasks
    last_row = len(rows.kind)
    for waiting in range(len(streams)):
        n = np.uint64(waiting)
        if streams[n, STREAM_WAITS] != 0:
            streams[n, STREAM_WAITS] = 0
            if not _next_page(pages, n, state):
                return
    state.stop = reg.AT_END
    while tree[1, 0] != NEVER:
        if state.rows == last_row:
            state.stop = reg.ROWS_FULL
            return
        time, n, row = tree[1, 0], np.uint64(tree[1, 1]), np.uint64(state.rows)
        at = np.uint64(streams[n, STREAM_AT])
        if streams[n, STREAM_LOST] != 0:
            _end_lost(streams, n, time, rows, tasks, state)
            continue
        record, size = records[at], sizes[at]
        number = np.int64(-1)
        if size >= 2:
            number = np.int64(of_id[np.uint64(load32(data, record) & 0xFFFF)])
        kind = np.int64(IGNORED_LINE)
        if number >= 0:
            event = np.uint64(number)
            kind = events[event, EVENT_KIND]
            if 0 < kind < PRINT and size >= events[event, EVENT_SIZE]:
                kind = read_columns(data, record, event, kind, layouts, rows, row, scanner)
            else:
                kind = read_other(record, size, pages, layouts, event, rows, scanner)
        if kind == NO_ROOM or kind == WITHOUT_TEXT:
            state.stop = reg.TEXTS_FULL if kind == NO_ROOM else NEED_TEXT
            state.start = np.int64(n)
            return
        if kind > 0:
            pid, task = _find_task(data, record, size, streams, n, pids, pid_place)
            if task < 0:
                state.stop, state.start = reg.TASK_IS_NEW, pid
                return
            state.lines += 1
            text = state.start if kind >= _FIRST_MARK else np.int64(-1)
            end_row(kind, task, streams[n, STREAM_CPU], time, text, row, rows, tasks, state)
        else:
            state.lines += 1
            if kind == IGNORED_LINE:
                state.ignored += 1
                pages.counts[number if number >= 0 else len(pages.counts) - 1] += 1
            else:
                _end_malformed(number, scanner)
        at += np.uint64(1)
        streams[n, STREAM_AT] = np.int64(at)
        if np.int64(at) < streams[n, STREAM_END]:
            set_time(tree, n, times[at])
        elif not _next_page(pages, n, state):
            return


@kernel
def decode(pages, layouts, rows, scanner):
    """Decode records into ``rows`` from row ``state.rows`` on until ``state.stop`` says why not.

    ``pages`` Pages, ``layouts`` Layouts, ``rows`` Rows, ``scanner`` Scanner, of which headers and seen are
    not used.  A record at which it stops is yet to be decoded; ``malformed`` has the number of its format.
    DONE in ``state`` says that ``scratch`` has the text that NEED_TEXT asked for.
    """
    _decode(by_reference(pages), by_reference(layouts), by_reference(rows), by_reference(scanner))
