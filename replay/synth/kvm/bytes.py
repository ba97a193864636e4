"""What numba does not offer, and its equal in plain Python: bytes copied at once, or written to a file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numba import types
from numba.core import config
from numba.extending import intrinsic

EINTR = 4


def _make_intrinsics() -> tuple[Any, ...]:
    from llvmlite import ir
    from numba.core import cgutils

    from replay.jit.table import data_pointer

    byte, number, word = ir.IntType(8), ir.IntType(32), ir.IntType(64)
    pointer = byte.as_pointer()

    @intrinsic
    def copy_bytes(typing_context: Any, to: Any, at: Any, source: Any, first: Any, count: Any) -> Any:
        """``to[at : at + count] = source[first : first + count]``"""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            there = data_pointer(context, builder, signature.args[0], args[0])
            here = data_pointer(context, builder, signature.args[2], args[2])
            copy = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, word])
            there = cgutils.gep_inbounds(builder, there, args[1])
            here = cgutils.gep_inbounds(builder, here, args[3])
            builder.call(copy, [there, here, args[4], ir.Constant(ir.IntType(1), 0)])
            return context.get_dummy_value()

        return types.none(to, types.intp, source, types.intp, types.intp), generate

    @intrinsic
    def write_some(typing_context: Any, fd: Any, source: Any, first: Any, count: Any) -> Any:
        """write(2) of ``count`` bytes from ``source[first]``: how many were written, or -errno."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            here = data_pointer(context, builder, signature.args[1], args[1])
            here = cgutils.gep_inbounds(builder, here, args[2])
            kind = ir.FunctionType(word, [number, pointer, word])
            write = cgutils.get_or_insert_function(builder.module, kind, "write")
            kind = ir.FunctionType(number.as_pointer(), [])
            place = cgutils.get_or_insert_function(builder.module, kind, "__errno_location")
            written = builder.call(write, [builder.trunc(args[0], number), here, args[3]])
            error = builder.neg(builder.sext(builder.load(builder.call(place, [])), word))
            failed = builder.icmp_signed("<", written, ir.Constant(word, 0))
            return builder.select(failed, error, written)

        return types.int64(types.int64, source, types.intp, types.intp), generate

    return copy_bytes, write_some


def _copy_bytes(to: np.ndarray, at: int, source: np.ndarray, first: int, count: int) -> None:
    to[at : at + count] = source[first : first + count]


def _write_some(fd: int, source: np.ndarray, first: int, count: int) -> int:
    try:
        return os.write(int(fd), source[first : first + count].tobytes())
    except OSError as error:
        return -(error.errno or EINTR)


copy_bytes, write_some = (_copy_bytes, _write_some) if config.DISABLE_JIT else _make_intrinsics()
