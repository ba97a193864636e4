"""One record of a trace.dat file to one row of columns."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.schema import Kind, Role
from replay.trace.dat.fields import (
    EVENT_KIND,
    EVENT_LARGEST,
    EVENT_LEAST,
    EVENT_LEVEL,
    EVENT_LEVEL_MASK,
    EVENT_LOADS,
    EVENT_LOADS_END,
    EVENT_OTHERS,
    EVENT_OTHERS_END,
    EVENT_SIZE,
    MALFORMED,
    OP_CONSTANT,
    OP_FLAG,
    OP_FLAG_IF,
    OP_FLAG_IF_SAME,
    OP_GEN,
    OP_ROLE,
)
from replay.trace.scan.control_lines import to_frames
from replay.trace.scan.event import IGNORED_LINE, MALFORMED_LINE, clear_fields, read_marker
from replay.trace.scan.lex import NEWLINE, PADDING, load64
from replay.trace.scan.payload import END, GFN
from replay.trace.scan.rows import clear_row, write_fields
from replay.trace.scan.state import OTHER, PRINT

WITHOUT_TEXT = -20
"""What ``read_record`` returns, beside what the readers of lines do, where trace_printk's text is missing."""

_FIRST_CONTROL = int(Kind.SET_REGION)
_ZERO = np.uint64(0)
_LEVEL_MASK, _GEN = np.int64(Role.LEVEL), np.uint32(Role.GEN)
_WRITABLE = np.uint64(2)


@jit
def _role_of(word, tables, layout):
    """A role word as bits of ``Role``."""
    return (
        tables[layout, 0, word & 255]
        | tables[layout, 1, (word >> 8) & 255]
        | tables[layout, 2, (word >> 16) & 255]
        | tables[layout, 3, (word >> 24) & 255]
    )


@jit
def _read_others(data, record, first, last, layouts, rows, row):
    """Follow rows ``[first, last)`` of ``Layouts.others``; false if a role has no level."""
    is_good = True
    for n in range(first, last):
        what, target, argument = layouts.others[n, 0], layouts.others[n, 3], layouts.others[n, 4]
        value = np.int64(load64(data, record + layouts.others[n, 1])) & layouts.others[n, 2]
        is_set = False
        if what == OP_CONSTANT:
            rows.wide[target, row] = np.uint64(argument)
        elif what == OP_ROLE:
            rows.role[row] |= _role_of(value, layouts.roles, argument)
            rows.level[row] = np.uint8(value & _LEVEL_MASK)
            is_good = value & _LEVEL_MASK != 0
        elif what == OP_GEN:
            if value & 1 != 0:
                rows.role[row] |= _GEN
        elif what == OP_FLAG:
            is_set = value != 0
        elif what == OP_FLAG_IF:
            is_set = value == argument
        elif what == OP_FLAG_IF_SAME:
            is_set = np.uint64(value) == rows.wide[argument, row]
        else:
            is_set = value != 0 and rows.wide[argument, row] & _WRITABLE != _ZERO
        if is_set:
            rows.flags[row] |= np.uint8(target)
    return is_good


@jit
def _set_ends(kind, rows, row, fields):
    """Ranges of probes as frames, see ``to_frames``."""
    fields[GFN], fields[END] = rows.wide[GFN, row], rows.wide[END, row]
    to_frames(kind, fields)
    rows.wide[GFN, row], rows.wide[END, row] = fields[GFN], fields[END]


@jit
def _copy_text(data, text, end, scratch):
    """Copy the text ``data[text:end]``, which a NUL may end, into ``scratch``."""
    length = 0
    while text + length < end and data[text + length] != 0:
        scratch[PADDING + length] = data[text + length]
        length += 1
    for n in range(PADDING):
        scratch[PADDING + length + n] = NEWLINE


@jit
def _read_text(rows, row, scratch, scanner):
    """The marker in ``scratch``: kind, its text's number in ``start``; MALFORMED_LINE or NO_ROOM."""
    fields, marks, names, texts = scanner.fields, scanner.marks, scanner.names, scanner.texts
    clear_fields(fields)
    kind, number = read_marker(
        scratch, PADDING, names.table, names.arena, scanner.kinds, texts.table, texts.arena, fields, marks
    )
    if kind > 0:
        write_fields(row, rows, fields)
        scanner.state.start = number
    return kind


@jit
def _is_marker(address, markers):
    """Whether ``address`` is one of ``markers``."""
    n = 0
    while n < len(markers) and markers[n] != address:
        n += 1
    return n < len(markers)


@jit
def read_other(record, size, pages, layouts, event, rows, scanner):
    """As ``read_columns`` for a record of a known event that has text, or that cannot be a row."""
    kind, first = layouts.events[event, EVENT_KIND], layouts.events[event, EVENT_OTHERS]
    if kind == OTHER:
        return np.int64(IGNORED_LINE)
    if kind < PRINT or kind == MALFORMED or size < layouts.events[event, EVENT_SIZE]:
        return np.int64(MALFORMED_LINE)
    place = record + layouts.others[first, 1]
    if kind == PRINT:
        _copy_text(pages.data, place, record + size, pages.scratch)
    elif not _is_marker(load64(pages.data, place), pages.markers):
        return np.int64(IGNORED_LINE)
    elif scanner.state.done == 0:
        return np.int64(WITHOUT_TEXT)
    scanner.state.done = 0
    return _read_text(rows, scanner.state.rows, pages.scratch, scanner)


@jit
def read_columns(data, record, event, kind, layouts, rows, row, scanner):
    """Write the record at ``record``, an event of ``kind``, as a row: kind, or why there is none.

    ``event`` and ``row`` are unsigned: numba has nothing to do then for indices that count from the end.
    """
    events, loads, wide = layouts.events, layouts.loads, rows.wide
    for number in range(events[event, EVENT_LOADS], events[event, EVENT_LOADS_END]):
        n = np.uint64(number)
        value = np.int64(load64(data, record + loads[n, 0])) & loads[n, 1]
        wide[np.uint64(loads[n, 3]), row] = np.uint64((value ^ loads[n, 2]) - loads[n, 2])
    level = np.int64(load64(data, record + events[event, EVENT_LEVEL])) & events[event, EVENT_LEVEL_MASK]
    is_good = events[event, EVENT_LEAST] <= level <= events[event, EVENT_LARGEST]
    rows.level[row] = np.uint8(level)
    first, last = events[event, EVENT_OTHERS], events[event, EVENT_OTHERS_END]
    if first < last:
        is_good &= _read_others(data, record, first, last, layouts, rows, row)
    if not is_good:
        clear_row(rows, row)
        return np.int64(MALFORMED_LINE)
    if kind >= _FIRST_CONTROL:
        _set_ends(kind, rows, row, scanner.fields)
    return kind
