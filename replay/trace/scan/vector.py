"""Instructions on several bytes at once that numba itself does not offer, and their equals in plain Python.

None of them looks whether the bytes are inside the buffer: see ``replay.trace.lex.PADDING``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import config
from numba.extending import intrinsic

NEWLINE, BLANK = 10, 32
BLOCK = 64
"""Bytes that are compared at once."""

IS_HEX = np.zeros(256, np.bool_)
IS_HEX[list(b"0123456789abcdefABCDEF")] = True


def _make_intrinsics() -> tuple[Any, ...]:
    """Instructions that numba itself does not offer."""
    from llvmlite import ir
    from numba.core import cgutils

    from replay.jit.table import data_pointer

    @intrinsic
    def load64(typing_context: Any, buf: Any, index: Any) -> Any:
        """The 8 bytes at ``buf[index]``, lowest first, as uint64."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = data_pointer(context, builder, signature.args[0], args[0])
            address = cgutils.gep_inbounds(builder, data, args[1])
            word = builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()))
            word.align = 1
            return word

        return types.uint64(buf, types.intp), generate

    def load_vector(context: Any, builder: Any, array_type: Any, array: Any, index: Any, size: int) -> Any:
        data = data_pointer(context, builder, array_type, array)
        address = cgutils.gep_inbounds(builder, data, index)
        vector = builder.load(builder.bitcast(address, ir.VectorType(ir.IntType(8), size).as_pointer()))
        vector.align = 1
        return vector

    def mark_bits(builder: Any, marks: Any) -> Any:
        """One bit of a uint64 for each of the ``BLOCK`` elements of a comparison's result."""
        return builder.zext(builder.bitcast(marks, ir.IntType(BLOCK)), ir.IntType(64))

    @intrinsic
    def differences(typing_context: Any, buf: Any, one: Any, other: Any) -> Any:
        """Bit n is set where byte n differs, of the ``BLOCK`` bytes at both places of ``buf``."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array_type, array = signature.args[0], args[0]
            left = load_vector(context, builder, array_type, array, args[1], BLOCK)
            right = load_vector(context, builder, array_type, array, args[2], BLOCK)
            return mark_bits(builder, builder.icmp_unsigned("!=", left, right))

        return types.uint64(buf, types.intp, types.intp), generate

    def marks_of(relation: str, byte: int) -> Any:
        """Bit n is set where byte n of the ``BLOCK`` at ``buf[index]`` has the relation to ``byte``."""

        @intrinsic
        def marks(typing_context: Any, buf: Any, index: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                text = load_vector(context, builder, signature.args[0], args[0], args[1], BLOCK)
                other = ir.Constant(text.type, [byte] * BLOCK)
                return mark_bits(builder, builder.icmp_unsigned(relation, text, other))

            return types.uint64(buf, types.intp), generate

        return marks

    @intrinsic
    def out_of_range(typing_context: Any, buf: Any, index: Any, ranges: Any, place: Any) -> Any:
        """Bit n is set where byte n of the ``BLOCK`` at ``buf[index]`` is not in its range.

        That begins with byte n at ``ranges[place]`` and is as long as byte n of the block behind that tells.
        """

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            text = load_vector(context, builder, signature.args[0], args[0], args[1], BLOCK)
            least = load_vector(context, builder, signature.args[2], args[2], args[3], BLOCK)
            behind = builder.add(args[3], ir.Constant(args[3].type, BLOCK))
            most = load_vector(context, builder, signature.args[2], args[2], behind, BLOCK)
            return mark_bits(builder, builder.icmp_unsigned(">", builder.sub(text, least), most))

        return types.uint64(buf, types.intp, ranges, types.intp), generate

    low_bytes, newlines = marks_of("<=", BLANK), marks_of("==", NEWLINE)

    @intrinsic
    def text_differs(typing_context: Any, buf: Any, index: Any, texts: Any, place: Any) -> Any:
        """True if the 16 bytes at ``buf[index]`` are not ``texts[place : place + 2]``, uint64, under the two
        masks that follow."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pair = ir.VectorType(ir.IntType(64), 2)
            text = load_vector(context, builder, signature.args[0], args[0], args[1], 16)
            data = data_pointer(context, builder, signature.args[2], args[2])
            address = builder.bitcast(cgutils.gep_inbounds(builder, data, args[3]), pair.as_pointer())
            wanted = builder.load(address)
            mask = builder.load(cgutils.gep_inbounds(builder, address, 1))
            wanted.align = mask.align = 8
            differ = builder.and_(builder.xor(builder.bitcast(text, pair), wanted), mask)
            whole = ir.IntType(128)
            return builder.icmp_unsigned("!=", builder.bitcast(differ, whole), ir.Constant(whole, 0))

        return types.boolean(buf, types.intp, texts, types.intp), generate

    @intrinsic
    def byte_at(typing_context: Any, buf: Any, index: Any) -> Any:
        """``buf[index]``, which numba would look for from the end were the index negative."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = data_pointer(context, builder, signature.args[0], args[0])
            return builder.load(cgutils.gep_inbounds(builder, data, args[1]))

        return types.uint8(buf, types.intp), generate

    @intrinsic
    def first_bit(typing_context: Any, word: Any) -> Any:
        """Number of the lowest bit that is set in ``word``, which is not 0."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

        return types.int64(types.uint64), generate

    @intrinsic
    def hex_digits(typing_context: Any, buf: Any, index: Any) -> Any:
        """(value, count) of the hex digits at ``buf[index]``, 16 at most; no digits have no defined value."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte, word = ir.IntType(8), ir.IntType(64)
            vector, pairs = ir.VectorType(byte, 16), ir.VectorType(ir.IntType(16), 8)

            def all_of(kind: Any, value: int) -> Any:
                return ir.Constant(kind, [value] * kind.count)

            text = load_vector(context, builder, signature.args[0], args[0], args[1], 16)
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

    @intrinsic
    def keep_apart(typing_context: Any) -> Any:
        """The function that calls this becomes no part of its callers: for what few lines need.

        What they all need is compiled in less time without it, and keeps more in registers.
        """

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.function.attributes.add("noinline")
            return context.get_dummy_value()

        return types.none(), generate

    return (
        keep_apart,
        load64,
        byte_at,
        differences,
        text_differs,
        out_of_range,
        newlines,
        low_bytes,
        first_bit,
        hex_digits,
    )


def _keep_apart() -> None:
    pass


def _load_bytes(buf: np.ndarray, index: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes(buf[index : index + 8]), "little"))


def _byte_at(buf: np.ndarray, index: int) -> np.uint8:
    return buf[index]


def _bits(marks: np.ndarray) -> np.uint64:
    return np.uint64(int.from_bytes(np.packbits(marks, bitorder="little").tobytes(), "little"))


def _differences(buf: np.ndarray, one: int, other: int) -> np.uint64:
    return _bits(buf[one : one + BLOCK] != buf[other : other + BLOCK])


def _text_differs(buf: np.ndarray, index: int, texts: np.ndarray, place: int) -> bool:
    words = np.frombuffer(bytes(buf[index : index + 16]), np.uint64)
    return bool(((words ^ texts[place : place + 2]) & texts[place + 2 : place + 4]).any())


def _out_of_range(buf: np.ndarray, index: int, ranges: np.ndarray, place: int) -> np.uint64:
    least, most = ranges[place : place + BLOCK], ranges[place + BLOCK : place + 2 * BLOCK]
    return _bits(buf[index : index + BLOCK] - least > most)


def _newlines(buf: np.ndarray, index: int) -> np.uint64:
    return _bits(buf[index : index + BLOCK] == NEWLINE)


def _low_bytes(buf: np.ndarray, index: int) -> np.uint64:
    return _bits(buf[index : index + BLOCK] <= BLANK)


def _first_bit(word: np.uint64) -> int:
    return (int(word) & -int(word)).bit_length() - 1


def _hex_digits(buf: np.ndarray, index: int) -> tuple[np.uint64, int]:
    count = 0
    while count < 16 and IS_HEX[buf[index + count]]:
        count += 1
    return np.uint64(int(bytes(buf[index : index + count]) or b"0", 16)), count


(
    keep_apart,
    load64,
    byte_at,
    differences,
    text_differs,
    out_of_range,
    newlines,
    low_bytes,
    first_bit,
    hex_digits,
) = (
    (
        _keep_apart,
        _load_bytes,
        _byte_at,
        _differences,
        _text_differs,
        _out_of_range,
        _newlines,
        _low_bytes,
        _first_bit,
        _hex_digits,
    )
    if config.DISABLE_JIT
    else _make_intrinsics()
)
