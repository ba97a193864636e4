"""Jitted reading of bytes: words, numbers, ends of lines, and a table of distinct strings.

Every buffer ends in at least ``PADDING`` newlines behind the text, so that no function here has
to be told where the buffer ends: numbers and words end at a newline at the latest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.trace.scan.vector import (
    BLANK,
    BLOCK,
    IS_HEX,
    NEWLINE,
    byte_at,
    differences,
    first_bit,
    hex_digits,
    keep_apart,
    load64,
    low_bytes,
    newlines,
    out_of_range,
    text_differs,
)

__all__ = [
    "BLANK",
    "BLOCK",
    "NEWLINE",
    "byte_at",
    "hex_digits",
    "keep_apart",
    "load64",
    "low_bytes",
    "newlines",
    "out_of_range",
    "text_differs",
]

PADDING = 256

RETURN, TAB, COLON, ESC = 13, 9, 58, 27

_COLONS = np.uint64(0x3A3A3A3A3A3A3A3A)
_AFTER_BLANK = np.uint64(0x2121212121212121)
_LOW_BITS = np.uint64(0x0101010101010101)
_HIGH_BITS = np.uint64(0x8080808080808080)
_SEED = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_ZERO = np.uint64(0)

# decimal digits: the first is the most significant, pairs of digits are added up, then the pairs
_DIGITS = np.uint64(0x303030303030)
_ABOVE_NINE = np.uint64(0x7676767676767676)
_ONE_BYTE, _TWO_BYTES = np.uint64(8), np.uint64(16)
_TEN = np.uint64(10)
_PAIRS = np.uint64(0x000000FF000000FF)
_HIGH_PAIRS = np.uint64(100 + (1_000_000 << 32))
_LOW_PAIRS = np.uint64(1 + (10_000 << 32))


WORD_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
"""Mask of the first n bytes of a word."""


_0X = np.uint64(0x7830)


def words_of(text: str) -> tuple[np.ndarray, np.ndarray]:
    """``text`` as the words that ``load64`` would read, and their masks: to be compared under them."""
    data = text.encode()
    count = -(-len(data) // 8)
    words = np.frombuffer(data.ljust(8 * count, b"\0"), np.uint64)
    masks = [int(WORD_MASKS[min(8, len(data) - 8 * n)]) for n in range(count)]
    return words, np.array(masks, np.uint64)


@jit
def head64(buf, at, count):
    """The first ``count`` of the 8 bytes at ``at``, all if there are more, as uint64."""
    if count >= 8:
        return load64(buf, at)
    return load64(buf, at) & WORD_MASKS[count]


@jit
def line_end(buf, at):
    """Index of the next newline."""
    while True:
        marks = newlines(buf, at)
        if marks != _ZERO:
            return at + first_bit(marks)
        at += BLOCK


@jit
def name_end(buf, at):
    """Index of the next colon, blank, line end or other control character."""
    while True:
        word = load64(buf, at)
        colon = word ^ _COLONS
        marks = (((colon - _LOW_BITS) & ~colon) | ((word - _AFTER_BLANK) & ~word)) & _HIGH_BITS
        if marks != _ZERO:
            return at + (first_bit(marks) >> 3)
        at += 8


@jit
def same_bytes(buf, one, other, count):
    """True if the ``count`` bytes, 1 at least, at both places of ``buf`` are the same."""
    while count > BLOCK:
        if differences(buf, one, other) != _ZERO:
            return False
        one, other, count = one + BLOCK, other + BLOCK, count - BLOCK
    return differences(buf, one, other) << np.uint64(64 - count) == _ZERO


@jit
def slot_of(buf, at, count):
    """A number below ``count``, a power of two, that the 8 bytes at ``at`` tell."""
    return np.int64((load64(buf, at) * _MIX) >> _SHIFT) & (count - 1)


@jit
def skip_blanks(buf, at):
    """Index of the first byte that is no blank."""
    while byte_at(buf, at) == BLANK or byte_at(buf, at) == TAB:
        at += 1
    return at


@jit
def token_end(buf, at):
    """Index of the blank or line end (or NUL, which libtraceevent leaves behind a role) after a token."""
    while True:
        marks = low_bytes(buf, at)
        if marks != _ZERO:
            return at + first_bit(marks)
        at += BLOCK


@jit
def read_hex(buf, at):
    """(value, index behind it) of a hex number with or without 0x; index -1 if there is none."""
    if load64(buf, at) & WORD_MASKS[2] == _0X:
        at += 2
    value, count = hex_digits(buf, at)
    at += count
    if count == 0 or (count == 16 and IS_HEX[byte_at(buf, at)]):
        at = -1
    return value, at


@jit
def six_digits(word):
    """The number that the first 6 bytes of ``word`` are the decimal digits of; -1 if they are none."""
    digits = (word ^ _DIGITS) << _TWO_BYTES
    if (digits | (digits + _ABOVE_NINE)) & _HIGH_BITS != _ZERO:
        return np.int64(-1)
    pairs = digits * _TEN + (digits >> _ONE_BYTE)
    high, low = (pairs & _PAIRS) * _HIGH_PAIRS, ((pairs >> _TWO_BYTES) & _PAIRS) * _LOW_PAIRS
    return np.int64((high + low) >> _SHIFT)


@jit
def read_decimal(buf, at):
    """(value, index behind it) of a decimal number, which may be negative; index -1 if there is none."""
    value = np.int64(byte_at(buf, at)) - 48
    if 0 <= value <= 9 and not 48 <= byte_at(buf, at + 1) <= 57:  # as nearly always
        return value, at + 1
    negative = byte_at(buf, at) == 45
    if negative:
        at += 1
    start = at
    value = np.int64(0)
    while 48 <= byte_at(buf, at) <= 57 and at - start < 21:
        value = value * 10 + np.int64(byte_at(buf, at) - 48)
        at += 1
    if at == start or at - start > 20:
        at = -1
    return (-value if negative else value), at


class Strings(NamedTuple):
    """Distinct byte strings, numbered from 0 in the order of first sight.

    Row 0 of ``table`` int64[2**n + 1, 4] counts: strings, bytes of ``arena`` in use.  The others are an
    open hash table: number + 1 of a string (0 free), its hash, where it begins in ``arena``, its length.
    """

    table: np.ndarray
    arena: np.ndarray  # uint8; the last 8 bytes stay free


def new_strings(count: int, arena: int) -> Strings:
    """Room for ``count`` strings (a power of two) of ``arena`` bytes together."""
    return Strings(np.zeros((2 * count + 1, 4), np.int64), np.zeros(arena, np.uint8))


def added(strings: Strings, data: bytes) -> Strings:
    """``strings`` with ``data``, which is not among them, as the last; a copy if there was no room."""
    number, used = strings.table[0, :2].tolist()
    if 4 * (number + 1) > len(strings.table) or used + len(data) + 8 > len(strings.arena):
        strings = grown(strings, len(data))
    mixed = int(_SEED) ^ len(data)
    for n in range(0, len(data), 8):
        mixed = (mixed ^ int.from_bytes(data[n : n + 8], "little")) * int(_MIX) % (1 << 64)
        mixed ^= mixed >> 32
    _put_row(strings.table, (number + 1, mixed - (mixed >> 63 << 64), used, len(data)))
    strings.arena[used : used + len(data)] = np.frombuffer(data, np.uint8)
    strings.table[0, :2] = number + 1, used + len(data)
    return strings


def _put_row(table: np.ndarray, row: tuple[int, int, int, int]) -> None:
    slot = row[1] % (len(table) - 1)
    while table[slot + 1, 0]:
        slot = (slot + 1) % (len(table) - 1)
    table[slot + 1] = row


def grown(strings: Strings, room: int) -> Strings:
    """A copy with twice the room, and room for one more string of ``room`` bytes."""
    used = strings.table[0, 1]
    size = 2 * (len(strings.table) - 1)
    larger = new_strings(size // 2, max(2 * len(strings.arena), int(used) + room + 8))
    larger.arena[:used] = strings.arena[:used]
    larger.table[0] = strings.table[0]
    rows = strings.table[1:]
    for row in rows[rows[:, 0] > 0].tolist():
        _put_row(larger.table, row)
    return larger


def contents(strings: Strings, first: int = 0) -> list[bytes]:
    """The strings, in order, from number ``first`` on."""
    rows = strings.table[1:]
    rows = rows[rows[:, 0] > first]
    rows = rows[np.argsort(rows[:, 0])]
    data = strings.arena.data
    return [data[start : start + length].tobytes() for start, length in rows[:, 2:].tolist()]


def decoded(strings: Strings) -> list[str]:
    """The strings; bytes that are no UTF-8 become U+FFFD."""
    return [text.decode(errors="replace") for text in contents(strings)]


LOOK_UP, ADD = np.int64(0), np.int64(1)
"""What ``intern`` is to do; typed, because numba compiles a function anew for each literal argument."""


@jit
def intern(buf, start, end, add, table, arena):
    """Number of the string ``buf[start:end]`` in ``Strings(table, arena)``; -1 if it is not there.

    ADD puts it there; then -1 means that there is no room for it.
    """
    length = end - start
    mixed = _SEED ^ np.uint64(length)
    at = start
    while at < end:
        mixed = (mixed ^ head64(buf, at, end - at)) * _MIX
        mixed ^= mixed >> _SHIFT
        at += 8
    mask = len(table) - 2
    row = 1 + (np.int64(mixed) & mask)
    while table[row, 0] != 0:
        if table[row, 1] == np.int64(mixed) and table[row, 3] == length:
            at, n = table[row, 2], 0
            while n < length:
                if head64(arena, at + n, length - n) != head64(buf, start + n, length - n):
                    break
                n += 8
            if n >= length:
                return table[row, 0] - 1
        row = 1 + (row & mask)
    at = table[0, 1]
    if add == LOOK_UP or 2 * table[0, 0] > mask or at + length + 8 > len(arena):
        return np.int64(-1)
    table[0, 0] += 1
    table[0, 1] += length
    table[row, 0] = table[0, 0]
    table[row, 1] = np.int64(mixed)
    table[row, 2] = at
    table[row, 3] = length
    for n in range(length):
        arena[at + n] = buf[start + n]
    return table[row, 0] - 1
