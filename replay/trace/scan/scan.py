"""The byte scanner: one jitted pass from trace text to the columns of the event table.

It stops, to be called again, wherever it meets something new that Python must look at: a task, a
comment, a full table.  All of these are rare.
"""

from __future__ import annotations

import numpy as np

from replay.jit import by_reference, jit, kernel
from replay.schema import Kind
from replay.trace.scan.event import (
    DECORATED,
    IGNORED_LINE,
    MALFORMED_LINE,
    NO_BASE,
    NO_ROOM,
    clear_fields,
    find_event,
    is_cut_header,
    is_decorated,
    read_event,
    read_lost,
)
from replay.trace.scan.header import NEW_TASK, NO_HEADER, SEEN_AT, SLOTS, read_header, search_header
from replay.trace.scan.lex import NEWLINE, byte_at, line_end, skip_blanks
from replay.trace.scan.registers import (
    AT_END,
    BASE_IS_NEW,
    COMMENT,
    DOUBTFUL,
    MAX_MALFORMED,
    NO_TASK,
    ROWS_FULL,
    TASK_IS_NEW,
    TEXTS_FULL,
)
from replay.trace.scan.rows import end_row, write_fields

_LOST_EVENTS, _FIRST_MARK = int(Kind.LOST_EVENTS), int(Kind.MARK_VM_CREATE)
_HASH = 35


@jit
def _scan(buf, at, stop, rows, scanner):
    """As ``scan``."""
    headers, headers_arena = scanner.headers
    names, names_arena = scanner.names
    tasks, kinds = scanner.tasks, scanner.kinds
    fields, state, malformed = scanner.fields, scanner.state, scanner.malformed
    seen_headers, seen_names = scanner.seen_headers, scanner.seen_names
    for slot in range(SLOTS):  # they are known by places of ``buf``
        seen_headers[slot, SEEN_AT] = seen_names[slot, SEEN_AT] = -1
    state.stop = AT_END
    while at < stop:
        row = state.rows
        state.done = at
        if row == len(rows.kind):
            state.stop = ROWS_FULL
            break
        time = state.time
        event = read_header(buf, at, headers, headers_arena, tasks, seen_headers, state)
        end = at
        if event == NO_HEADER:
            state.time = time  # what was read may have been of a line behind a short one
            end = line_end(buf, at)
            if buf[at] == _HASH:
                state.stop, state.start, state.end = COMMENT, at, end
                state.ignored += 1
                state.lines += 1
                at = end + 1
                break
            event = search_header(buf, at, end, headers, headers_arena, tasks, state)
        if event == NEW_TASK:
            state.stop = TASK_IS_NEW
            break
        kind, text = np.int64(IGNORED_LINE), np.int64(-1)
        if event == NO_HEADER:
            state.task, state.cpu, state.time = NO_TASK, -1, time
            clear_fields(fields)
            if read_lost(buf, at, fields, state):
                kind = np.int64(_LOST_EVENTS)
            else:
                event = find_event(buf, at, end, names, names_arena, kinds)
                is_first = event == skip_blanks(buf, at) and not is_cut_header(buf, at)
                if event >= 0 and not is_first:  # a known event behind a broken header
                    event, kind = np.int64(-1), np.int64(MALFORMED_LINE)
                elif event >= 0:  # option nocontext-info, or copied without
                    state.time = 0
                elif is_decorated(buf, at, end):
                    kind = np.int64(DECORATED)
        if event >= 0:
            kind, text = read_event(buf, event, rows, scanner)
        if kind == NO_ROOM or kind == NO_BASE:
            state.stop, state.start = TEXTS_FULL if kind == NO_ROOM else BASE_IS_NEW, at
            break
        may_ask = kind == MALFORMED_LINE and state.doubts != 0 and state.malformed % state.doubts == 0
        if (may_ask or kind == DECORATED) and state.given_up != at:
            state.stop, state.start, state.end = DOUBTFUL, at, line_end(buf, at)
            break
        state.lines += 1
        end = state.done
        if byte_at(buf, end) != NEWLINE:
            end = line_end(buf, end)
        if kind > 0:
            if kind >= _FIRST_MARK:
                write_fields(row, rows, fields)
            end_row(kind, state.task, state.cpu, state.time, text, np.uint64(row), rows, tasks, state)
        elif kind == IGNORED_LINE:
            state.ignored += 1
        else:
            if state.malformed < MAX_MALFORMED:
                number = state.malformed
                malformed[number, 0], malformed[number, 1], malformed[number, 2] = at, end, state.lines
            state.malformed += 1
        at = end + 1
    return at


@kernel
def scan(buf, at, stop, rows, scanner):
    """Parse the lines of ``buf[at:stop]`` into ``rows`` from row ``state.rows`` on.

    ``buf`` uint8 has a newline before ``stop`` and PADDING newlines behind it.  Returns where it stopped;
    ``state.stop`` says why.  A comment has been passed by then, any other line that is the reason is
    yet to be parsed.
    """
    return _scan(buf, at, stop, by_reference(rows), by_reference(scanner))
