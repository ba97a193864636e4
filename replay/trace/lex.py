"""Jitted reading of bytes: words, numbers, ends of lines, and a table of distinct strings.

Every buffer ends in at least ``PADDING`` newlines behind the text, so that no function here has
to be told where the buffer ends: numbers and words end at a newline at the latest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import config
from numba.extending import intrinsic

from replay.jit import jit

PADDING = 256

NEWLINE, RETURN, BLANK, TAB, COLON = 10, 13, 32, 9, 58

_IS_HEX = np.zeros(256, np.bool_)
_IS_HEX[list(b"0123456789abcdefABCDEF")] = True

_NEWLINES = np.uint64(0x0A0A0A0A0A0A0A0A)
_COLONS = np.uint64(0x3A3A3A3A3A3A3A3A)
_AFTER_BLANK = np.uint64(0x2121212121212121)
_LOW_BITS = np.uint64(0x0101010101010101)
_HIGH_BITS = np.uint64(0x8080808080808080)
_SEED = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_ZERO = np.uint64(0)


def _make_intrinsics() -> tuple[Any, Any, Any]:
    """``load64``, ``first_mark`` and ``hex_digits``: instructions that numba itself does not offer."""
    from llvmlite import ir
    from numba.core import cgutils

    @intrinsic
    def load64(typing_context: Any, buf: Any, index: Any) -> Any:
        """The 8 bytes at ``buf[index]``, lowest first, as uint64."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, args[0])
            address = cgutils.gep_inbounds(builder, array.data, args[1])
            word = builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()))
            word.align = 1
            return word

        return types.uint64(buf, types.intp), generate

    @intrinsic
    def first_mark(typing_context: Any, word: Any) -> Any:
        """Number of the first byte of ``word`` whose highest bit is set; ``word`` is not 0."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            zeros = builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))
            return builder.lshr(zeros, ir.Constant(ir.IntType(64), 3))

        return types.int64(types.uint64), generate

    @intrinsic
    def hex_digits(typing_context: Any, buf: Any, index: Any) -> Any:
        """(value, count) of the hex digits at ``buf[index]``, 16 at most; no digits have no defined value."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte, word = ir.IntType(8), ir.IntType(64)
            vector, pairs = ir.VectorType(byte, 16), ir.VectorType(ir.IntType(16), 8)

            def all_of(kind: Any, value: int) -> Any:
                return ir.Constant(kind, [value] * kind.count)

            array = context.make_array(signature.args[0])(context, builder, args[0])
            address = cgutils.gep_inbounds(builder, array.data, args[1])
            text = builder.load(builder.bitcast(address, vector.as_pointer()))
            text.align = 1
            digit = builder.sub(text, all_of(vector, ord("0")))
            letter = builder.sub(builder.or_(text, all_of(vector, 32)), all_of(vector, ord("a")))
            is_digit = builder.icmp_unsigned("<", digit, all_of(vector, 10))
            is_hex = builder.or_(is_digit, builder.icmp_unsigned("<", letter, all_of(vector, 6)))
            marks = builder.zext(builder.bitcast(builder.not_(is_hex), ir.IntType(16)), word)
            stop = builder.or_(marks, ir.Constant(word, 1 << 16))
            count = builder.cttz(stop, ir.Constant(ir.IntType(1), 1))
            letter = builder.add(letter, all_of(vector, 10))
            nibbles = builder.and_(builder.select(is_digit, digit, letter), all_of(vector, 15))
            order = ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(15, -1, -1)))
            pair = builder.bitcast(builder.shuffle_vector(nibbles, nibbles, order), pairs)
            pair = builder.or_(pair, builder.lshr(pair, all_of(pairs, 4)))
            value = builder.bitcast(builder.trunc(pair, ir.VectorType(byte, 8)), word)
            excess = builder.sub(ir.Constant(word, 64), builder.shl(count, ir.Constant(word, 2)))
            value = builder.lshr(value, builder.and_(excess, ir.Constant(word, 63)))
            return context.make_tuple(builder, signature.return_type, (value, count))

        return types.Tuple((types.uint64, types.int64))(buf, types.intp), generate

    return load64, first_mark, hex_digits


def _load_bytes(buf: np.ndarray, index: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes(buf[index : index + 8]), "little"))


def _first_mark(word: np.uint64) -> int:
    return ((int(word) & -int(word)).bit_length() - 1) // 8


def _hex_digits(buf: np.ndarray, index: int) -> tuple[np.uint64, int]:
    count = 0
    while count < 16 and _IS_HEX[buf[index + count]]:
        count += 1
    return np.uint64(int(bytes(buf[index : index + count]) or b"0", 16)), count


load64, first_mark, hex_digits = (
    (_load_bytes, _first_mark, _hex_digits) if config.DISABLE_JIT else _make_intrinsics()
)

WORD_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
"""Mask of the first n bytes of a word."""


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
        word = load64(buf, at) ^ _NEWLINES
        marks = (word - _LOW_BITS) & ~word & _HIGH_BITS
        if marks != _ZERO:
            return at + first_mark(marks)
        at += 8


@jit
def name_end(buf, at):
    """Index of the next colon, blank, line end or other control character."""
    while True:
        word = load64(buf, at)
        colon = word ^ _COLONS
        marks = (((colon - _LOW_BITS) & ~colon) | ((word - _AFTER_BLANK) & ~word)) & _HIGH_BITS
        if marks != _ZERO:
            return at + first_mark(marks)
        at += 8


@jit
def same_bytes(buf, one, other, count):
    """True if the ``count`` bytes, 8 at least, at both places of ``buf`` are the same."""
    while count > 8:
        count -= 8
        if load64(buf, one + count) != load64(buf, other + count):
            return False
    return load64(buf, one) == load64(buf, other)


@jit
def slot_of(buf, at, count):
    """A number below ``count``, a power of two, that the 8 bytes at ``at`` tell."""
    return np.int64((load64(buf, at) * _MIX) >> _SHIFT) & (count - 1)


@jit
def skip_blanks(buf, at):
    """Index of the first byte that is no blank."""
    while buf[at] == BLANK or buf[at] == TAB:
        at += 1
    return at


@jit
def token_end(buf, at):
    """Index of the blank or line end (or NUL, which libtraceevent leaves behind a role) after a token."""
    while buf[at] > BLANK:
        at += 1
    return at


@jit
def read_hex(buf, at):
    """(value, index behind it) of a hex number with or without 0x; index -1 if there is none."""
    if buf[at] == 48 and buf[at + 1] == 120:
        at += 2
    value, count = hex_digits(buf, at)
    at += count
    if count == 0 or (count == 16 and _IS_HEX[buf[at]]):
        at = -1
    return value, at


@jit
def read_decimal(buf, at):
    """(value, index behind it) of a decimal number, which may be negative; index -1 if there is none."""
    negative = buf[at] == 45
    if negative:
        at += 1
    start = at
    value = np.int64(0)
    while 48 <= buf[at] <= 57 and at - start < 21:
        value = value * 10 + np.int64(buf[at] - 48)
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


def decoded(strings: Strings) -> list[str]:
    """The strings; bytes that are no UTF-8 become U+FFFD."""
    rows = strings.table[1:]
    rows = rows[rows[:, 0] > 0]
    rows = rows[np.argsort(rows[:, 0])]
    data = strings.arena.tobytes()
    return [data[start : start + length].decode(errors="replace") for start, length in rows[:, 2:].tolist()]


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
