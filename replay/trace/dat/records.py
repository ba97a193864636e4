"""One record of a trace.dat file to one row of columns."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
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
    PRINTK,
    ROLE_FOUR_ACCESS_BITS,
    ROLE_SET_FOR_8_BYTES,
)
from replay.trace.dat.pages import STREAM_RECORD, STREAM_SIZE
from replay.trace.lex import NEWLINE, PADDING, load64
from replay.trace.payload import END, FIELDS, GFN, WIDE
from replay.trace.roles import NARROW_BITS

WITHOUT_TEXT = -12
"""What ``read_record`` returns, beside what the readers of lines do, where trace_printk's text is missing."""

_FIRST_CONTROL = int(Kind.SET_REGION)
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
    for _bit, _role in NARROW_BITS:
        if _word << 8 & _bit:
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
    """The marker in ``scratch``: kind, MALFORMED_LINE or NO_ROOM."""
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
def _is_marker(address, markers):
    n = 0
    while n < len(markers) and markers[n] != address:
        n += 1
    return n < len(markers)


@jit
def read_record(streams, n, pages, layouts, event, rows, scanner):
    """Write the record at hand, of a known event, as a row: kind, or why there is none."""
    kind, first = layouts.events[event, 0], layouts.events[event, 1]
    record, size, row = streams[n, STREAM_RECORD], streams[n, STREAM_SIZE], scanner.state[scan.ROWS]
    if kind == scan.OTHER:
        return np.int64(scan.IGNORED_LINE)
    if kind == MALFORMED or size < layouts.events[event, 3]:
        return np.int64(scan.MALFORMED_LINE)
    place = record + np.int64(layouts.operations[first, 1])
    if kind == PRINTK:
        if not _is_marker(load64(pages.data, place), pages.markers):
            return np.int64(scan.IGNORED_LINE)
        if scanner.state[scan.DONE] == 0:
            return np.int64(WITHOUT_TEXT)
        scanner.state[scan.DONE] = 0
        return _read_text(rows, row, pages.scratch, scanner)
    if kind == scan.PRINT:
        _copy_text(pages.data, place, record + size, pages.scratch)
        return _read_text(rows, row, pages.scratch, scanner)
    last = layouts.events[event, 2]
    if not _read_columns(pages.data, record, first, last, layouts.operations, rows, row):
        _clear(rows, row)
        return np.int64(scan.MALFORMED_LINE)
    if kind >= _FIRST_CONTROL:
        _set_ends(kind, rows, row, scanner.fields)
    return kind
