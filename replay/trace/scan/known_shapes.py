"""Events whose text has a shape that was met before: checked as a whole and read at known places.

A *shape* is an event's name and text up to where its payload ends, with all that it says but its numbers:
their places, how many digits they have, and every byte around them.  Nearly all lines of a trace have one
of some dozens of shapes.  ``read_payload`` reads a line step by step, and what it notes makes a shape; lines
of that shape are then compared with it, 64 bytes at a time, and their numbers read one beside the other.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.schema import Kind
from replay.trace.scan.lex import (
    BLOCK,
    byte_at,
    hex_digits,
    keep_apart,
    load64,
    low_bytes,
    newlines,
    out_of_range,
)
from replay.trace.scan.payload import (
    FIELDS,
    FLAGS,
    LEVEL,
    MARK_COLUMN,
    MARK_END,
    MARK_START,
    MARK_STEP,
    ROLE,
    STEP_DECIMAL,
    STEP_HEX,
    STEP_LEVEL,
    WIDE,
)
from replay.trace.scan.rows import clear_row

MAX_SHAPES, PLACES = 512, 1024
MAX_TRIED = 8
"""So many shapes of one place are tried, the last learned first."""
SHAPE_BLOCKS = 3
RANGES = 2 * BLOCK * SHAPE_BLOCKS
"""Of each block of a text: the least that its bytes may be, then by how much they may exceed it."""

# places of a row of ``shapes``.  Row 0 counts the shapes in NEXT, and FOLLOWER is that of the line before.
# NEXT: another shape of the same place, 0 none; BLOCKS of text; SIZE of the text; LEVEL_AT: where its level
# stands, 0 nowhere; VARIES: some constant is not 0; FOLLOWER: what came behind this shape the last time
NEXT, BLOCKS, KIND, SIZE, LEVEL_AT, VARIES, FOLLOWER = range(7)
FIRST_NUMBER, MAX_NUMBERS = 7, 8
"""The numbers, up to a 0: where one begins, its digits << 8, its column << 16, and IS_DECIMAL."""
FIRST_CONSTANT = FIRST_NUMBER + MAX_NUMBERS + 1
"""What the columns are in every line, as places of ``fields`` of control lines: 0 for numbers and levels."""
SHAPE = FIRST_CONSTANT + FIELDS
IS_DECIMAL = 1 << 24
"""A number of several decimal digits."""


_SHIFT, _ONE, _ZERO = np.uint64(32), np.uint64(1), np.uint64(0)
_NIBBLE, _NIBBLE_BITS, _TEN = np.uint64(15), np.uint64(4), np.uint64(10)
_MIX, _MIX_NAME = np.uint64(0xD6E8FEB86659FD93), np.uint64(0x9E3779B97F4A7C15)
_0, _1, _9, _F, _X, _FIRST_OF_WORD = map(ord, "019fx!")
_IS_PAGE = np.zeros(256, np.bool_)
_IS_PAGE[[Kind.GET_PAGE, Kind.SYNC_PAGE, Kind.UNSYNC_PAGE, Kind.PREPARE_ZAP_PAGE]] = True


@jit
def _place_of(buf, at):
    """A number below PLACES that the blanks of the text at ``at`` and a part of its name tell."""
    ends, more_ends = newlines(buf, at), newlines(buf, at + BLOCK)
    blanks = low_bytes(buf, at) & (ends ^ (ends - _ONE))
    more = low_bytes(buf, at + BLOCK) & (more_ends ^ (more_ends - _ONE))
    mixed = blanks * _MIX ^ load64(buf, at + 8)
    if ends == _ZERO:
        mixed += more
    return np.int64((mixed * _MIX_NAME) >> _SHIFT) & (PLACES - 1)


@jit
def _decimal_of(value):
    """The number whose decimal digits the hex digits of ``value`` are."""
    number, scale = _ZERO, _ONE
    while value != _ZERO:
        number += (value & _NIBBLE) * scale
        scale *= _TEN
        value >>= _NIBBLE_BITS
    return number


@jit
def _has_shape(buf, at, shape, own):
    """The text at ``at`` has the ``shape`` whose row of ``ranges`` is ``own``."""
    return out_of_range(buf, at, own, 0) | out_of_range(buf, at + BLOCK, own, 2 * BLOCK) == _ZERO and (
        shape[BLOCKS] <= 2 or out_of_range(buf, at + 2 * BLOCK, own, 4 * BLOCK) == _ZERO
    )


@jit
def _find_shape(buf, at, places, shapes, ranges):
    """The number of the shape of the text at ``at``, 0 if it is not known."""
    number, tried = places[_place_of(buf, at)], 0
    while number != 0 and tried < MAX_TRIED:
        if _has_shape(buf, at, shapes[number], ranges[number]):
            return number
        number, tried = shapes[number, NEXT], tried + 1
    return np.int64(0)


@jit
def read_by_shape(buf, at, row, rows, places, shapes, ranges):
    """Read the event whose name is at ``at`` into row ``row``: (kind, index behind its text).

    The kind is 0 if it has no shape that is known.  The shape that came next the last time is tried first:
    events come in sequences, and its place need not be found then.

    ``places`` int64[PLACES]: the shape that was learned last of those that belong there, 0 none; ``shapes``
    int64[MAX_SHAPES, SHAPE] and ``ranges`` uint8[MAX_SHAPES, RANGES] describe shapes from 1 on.
    """
    before = shapes[0, FOLLOWER]
    number = shapes[before, FOLLOWER] if before != 0 else np.int64(0)
    if number == 0 or not _has_shape(buf, at, shapes[number], ranges[number]):
        number = _find_shape(buf, at, places, shapes, ranges)
        if number == 0:
            return np.int64(0), at
        if before != 0:
            shapes[before, FOLLOWER] = number
    shapes[0, FOLLOWER] = number
    shape = shapes[number]
    if shape[VARIES] != 0:
        _write_constants(shape, row, rows)
    if shape[LEVEL_AT] != 0:
        level = np.int64(byte_at(buf, at + shape[LEVEL_AT])) - _0
        rows.level[row] = level
        if _IS_PAGE[shape[KIND]]:
            rows.role[row] |= np.uint32(level)
    differ, n, number = np.int64(0), FIRST_NUMBER, shape[FIRST_NUMBER]
    while number != 0:
        value, digits = hex_digits(buf, at + (number & 255))
        differ |= digits ^ (number >> 8 & 255)
        if number >= IS_DECIMAL:
            value = _decimal_of(value)
        rows.wide[number >> 16 & 255, row] = value
        n += 1
        number = shape[n]
    if differ == 0:
        return shape[KIND], at + shape[SIZE]
    clear_row(rows, row)
    return np.int64(0), at


@jit
def _write_constants(shape, row, rows):
    """Write what is the same in all lines of a shape into row ``row``."""
    for column in range(len(WIDE)):
        if shape[FIRST_CONSTANT + column] != 0:
            rows.wide[column, row] = np.uint64(shape[FIRST_CONSTANT + column])
    rows.level[row] = np.uint8(shape[FIRST_CONSTANT + LEVEL])
    rows.flags[row] = np.uint8(shape[FIRST_CONSTANT + FLAGS])
    rows.role[row] = np.uint32(shape[FIRST_CONSTANT + ROLE])


@jit
def _new_shape(place, places, shapes):
    """The number of a new shape that belongs to ``place``; if there is no room, all others are forgotten."""
    if shapes[0, NEXT] == MAX_SHAPES - 1:
        shapes[0, NEXT] = 0
        for n in range(PLACES):
            places[n] = 0
    number = shapes[0, NEXT] + 1
    shapes[0, NEXT] = number
    shapes[number, NEXT], places[place] = places[place], number
    return number


@jit
def learn_shape(buf, at, end, kind, row, rows, marks, places, shapes, ranges):
    """Add the shape of the event whose name is at ``at`` to the tables of ``read_by_shape``.

    It has been read up to ``end``, which made ``marks`` int64[MARKS, 4] and row ``row``.
    """
    keep_apart()
    size = end + 1 - at
    if size > SHAPE_BLOCKS * BLOCK or marks[0, 0] > MAX_NUMBERS:
        return
    new = _new_shape(_place_of(buf, at), places, shapes)
    shape, own = shapes[new], ranges[new]
    for n in range(SHAPE_BLOCKS * BLOCK):
        place = 2 * n - n % BLOCK
        own[place] = byte_at(buf, at + n) if n < size else 0
        own[place + BLOCK] = 0 if n < size else 255
    for column in range(len(WIDE)):
        shape[FIRST_CONSTANT + column] = np.int64(rows.wide[column, row])
    shape[FIRST_CONSTANT + LEVEL] = rows.level[row]
    shape[FIRST_CONSTANT + FLAGS] = rows.flags[row]
    shape[FIRST_CONSTANT + ROLE] = rows.role[row]
    shape[BLOCKS], shape[KIND], shape[SIZE], shape[LEVEL_AT] = -(-size // BLOCK), kind, size - 1, 0
    n = FIRST_NUMBER
    for mark in range(1, 1 + marks[0, 0]):
        step, start, stop = marks[mark, MARK_STEP], marks[mark, MARK_START] - at, marks[mark, MARK_END] - at
        length, column = stop - start, marks[mark, MARK_COLUMN]
        least, most = 0, 0
        if step == STEP_LEVEL and length == 1:
            least, most = _1, _9
            shape[LEVEL_AT] = start
            shape[FIRST_CONSTANT + LEVEL] = 0
            if _IS_PAGE[kind]:
                shape[FIRST_CONSTANT + ROLE] -= rows.level[row]
        elif step == STEP_HEX or (step == STEP_DECIMAL and byte_at(buf, at + start) >= _0 and length < 16):
            least, most, is_long = _0, _9, IS_DECIMAL if step == STEP_DECIMAL and length > 1 else 0
            if step == STEP_HEX:
                most = _F
                if byte_at(buf, at + start + 1) == _X:
                    start, length = start + 2, length - 2
            shape[n] = start | length << 8 | column << 16 | is_long
            shape[FIRST_CONSTANT + column] = 0
            n += 1
        elif step != STEP_LEVEL and step != STEP_DECIMAL:
            least, most = _FIRST_OF_WORD, 255
        for byte in range(start, stop if most else start):
            place = 2 * byte - byte % BLOCK
            own[place], own[place + BLOCK] = least, most - least
    shape[n] = 0
    shape[VARIES] = shape[FOLLOWER] = 0
    for column in range(FIELDS):
        shape[VARIES] |= shape[FIRST_CONSTANT + column]
