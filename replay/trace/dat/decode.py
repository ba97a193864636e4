"""Records of trace.dat files to columns: one jitted pass over the pages of all CPUs.

Every CPU has a window into its pages; where one is used up ``decode`` stops for more.
"""

from __future__ import annotations

import numpy as np

from replay.jit import by_reference, jit, kernel
from replay.schema import Kind, Role
from replay.trace import scan
from replay.trace.control import to_frames
from replay.trace.dat.fields import (
    MALFORMED,
    OP_CONSTANT,
    OP_FLAG,
    OP_FLAG_IF,
    OP_FLAG_IF_SAME,
    OP_GEN,
    OP_LEVEL,
    OP_LOAD,
    OP_ROLE,
    ROLE_FOUR_ACCESS_BITS,
    ROLE_SET_FOR_8_BYTES,
)
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
from replay.trace.dialect import START
from replay.trace.lex import NEWLINE, PADDING, load64
from replay.trace.payload import END, FIELDS, GFN, NUM, WIDE

# why ``decode`` stopped, beside the reasons of ``scan``; ``state[START]`` is the stream, or the new pid
NEED_PAGES, IS_CORRUPT = 20, 21

_LOST_EVENTS, _FIRST_CONTROL = int(Kind.LOST_EVENTS), int(Kind.SET_REGION)
_LAST_KVMMMU = int(Kind.SPLIT_HUGE_PAGE)
_ZERO, _ONE = np.uint64(0), np.uint64(1)
_LEVEL_MASK = np.uint64(Role.LEVEL)
_LOW_BITS = np.uint64(Role.LEVEL | Role.HAS_4_BYTE_GPTE | Role.QUADRANT | Role.DIRECT)
_MIDDLE_BITS = np.uint64(0xFF << 8)
_HIGH_BITS = np.uint64(Role.AD_DISABLED | Role.GUEST_MODE | Role.PASSTHROUGH | Role.IS_MIRROR)
_SMM_BITS, _SMM = np.uint64(0xFF << 24), np.uint64(Role.SMM)
_SMEP, _GEN, _ACC_READ = np.uint64(Role.SMEP), np.uint64(Role.GEN), np.uint64(Role.ACC_READ)
_HAS_4_BYTE_GPTE = np.uint64(Role.HAS_4_BYTE_GPTE)
_FOUR_ACCESS_BITS, _SET_FOR_8_BYTES = np.uint64(ROLE_FOUR_ACCESS_BITS), np.uint64(ROLE_SET_FOR_8_BYTES)
_WRITABLE = np.uint64(2)

_NARROW_ROLES = np.zeros(256, np.uint64)
"""Bits 8 to 15 of role words with three access bits as bits of ``Role``."""
for _word in range(256):
    for _bit, _role in enumerate(
        (
            Role.ACC_EXEC,
            Role.ACC_WRITE,
            Role.ACC_USER,
            Role.INVALID,
            Role.EFER_NX,
            Role.CR0_WP,
            Role.SMEP,  # smep_andnot_wp
            Role.SMAP_ANDNOT_WP,
        )
    ):
        if _word >> _bit & 1:
            _NARROW_ROLES[_word] |= np.uint64(_role)


@jit
def _role_of(word, layout):
    """A role word, ``union kvm_mmu_page_role``, as bits of ``Role``."""
    role = word & (_LOW_BITS | _HIGH_BITS)
    if layout & _SET_FOR_8_BYTES:
        role ^= _HAS_4_BYTE_GPTE
    if layout & _FOUR_ACCESS_BITS:
        role |= word & (_MIDDLE_BITS | _SMEP)
    else:
        role |= _NARROW_ROLES[np.int64(word >> np.uint64(8)) & 255] | _ACC_READ
    if word & _SMM_BITS:
        role |= _SMM
    return role


@jit
def _read_level(level, least, largest, rows, row):
    """Write a level; false if there can be no such level."""
    rows.level[row] = np.uint8(level)
    return least <= level <= largest


@jit
def _read_columns(data, record, first, last, operations, rows, row):
    """Run the operations ``[first, last)`` on the record at ``record``; false if a value cannot be."""
    is_good = True
    for n in range(first, last):
        what, target = operations[n, 0], np.int64(operations[n, 4])
        value = load64(data, record + np.int64(operations[n, 1])) & operations[n, 2]
        value = (value ^ operations[n, 3]) - operations[n, 3]
        argument = operations[n, 5]
        if what == OP_LOAD:
            rows.wide[target, row] = value
        elif what == OP_LEVEL:
            is_good &= _read_level(value, operations[n, 4], argument, rows, row)
        elif what == OP_ROLE:
            rows.role[row] |= np.uint32(_role_of(value, argument))
            is_good &= _read_level(value & _LEVEL_MASK, _ONE, _LEVEL_MASK, rows, row)
        elif what == OP_GEN:
            if value & _ONE != _ZERO:
                rows.role[row] |= np.uint32(_GEN)
        elif what == OP_CONSTANT:
            rows.wide[target, row] = argument
        else:
            if what == OP_FLAG:
                is_set = value != _ZERO
            elif what == OP_FLAG_IF:
                is_set = value == argument
            elif what == OP_FLAG_IF_SAME:
                is_set = value == rows.wide[np.int64(argument), row]
            else:
                is_set = value != _ZERO and rows.wide[np.int64(argument), row] & _WRITABLE != _ZERO
            if is_set:
                rows.flags[row] |= np.uint8(target)
    return is_good


@jit
def _clear(rows, row):
    """Take back what was written of a record that turned out malformed."""
    rows.level[row] = rows.flags[row] = 0
    rows.role[row] = 0
    for column in range(len(WIDE)):
        rows.wide[column, row] = _ZERO


@jit
def _set_ends(kind, rows, row, fields):
    """Ranges of probes as frames, see ``to_frames``."""
    fields[GFN], fields[END] = rows.wide[GFN, row], rows.wide[END, row]
    to_frames(kind, fields)
    rows.wide[GFN, row], rows.wide[END, row] = fields[GFN], fields[END]


@jit
def _read_print(data, text, end, rows, row, scratch, scanner):
    """The marker at ``data[text:end]``, which a NUL may end: kind, MALFORMED_LINE or NO_ROOM."""
    length = 0
    while text + length < end and data[text + length] != 0:
        scratch[PADDING + length] = data[text + length]
        length += 1
    for n in range(PADDING):
        scratch[PADDING + length + n] = NEWLINE
    fields, names, texts = scanner.fields, scanner.names, scanner.texts
    for column in range(FIELDS):
        fields[column] = _ZERO
    kind, number = scan.read_marker(
        scratch, PADDING, names.table, names.arena, scanner.kinds, texts.table, texts.arena, fields
    )
    if kind > 0:
        scan.write_row(kind, number, row, rows, fields, scanner.state)
    return kind


@jit
def _read_record(streams, n, pages, layouts, event, rows, scanner):
    """Write the record at hand, of a known event, as a row: kind, IGNORED_LINE, MALFORMED_LINE or NO_ROOM."""
    kind, first = layouts.events[event, 0], layouts.events[event, 1]
    record, size, row = streams[n, STREAM_RECORD], streams[n, STREAM_SIZE], scanner.state[scan.ROWS]
    if kind == scan.OTHER:
        return np.int64(scan.IGNORED_LINE)
    if kind == MALFORMED or size < layouts.events[event, 3]:
        return np.int64(scan.MALFORMED_LINE)
    if kind == scan.PRINT:
        text = record + np.int64(layouts.operations[first, 1])
        return _read_print(pages.data, text, record + size, rows, row, pages.scratch, scanner)
    last = layouts.events[event, 2]
    if not _read_columns(pages.data, record, first, last, layouts.operations, rows, row):
        _clear(rows, row)
        return np.int64(scan.MALFORMED_LINE)
    if kind >= _FIRST_CONTROL:
        _set_ends(kind, rows, row, scanner.fields)
    return kind


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
            kind = _read_record(streams, n, pages, layouts, event, rows, scanner)
        if kind == scan.NO_ROOM:
            state[scan.STOP] = scan.TEXTS_FULL
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
                pages.counts[event] += 1
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
    """
    _decode(by_reference(pages), by_reference(layouts), by_reference(rows), by_reference(scanner))
