"""The one owner of jit options: what parts and kernels are, how they are compiled and where they are kept.

A *kernel* is a function that Python calls; a *part* is called by kernels and parts only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.core import config
from numba.extending import typeof_impl
from numba.np.numpy_support import from_dtype, map_layout

from replay.jit.cache import KernelCache, NoCache, announce_compile, cache_directory, compile_meanwhile
from replay.jit.compiler import KernelCompiler, PartCompiler
from replay.jit.record import RecordArray, clear, new_records
from replay.jit.table import by_reference

__all__ = [
    "KERNELS",
    "RecordArray",
    "announce_compile",
    "by_reference",
    "cache_directory",
    "clear",
    "compile_meanwhile",
    "jit",
    "kernel",
    "new_records",
]

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    # nothing is allocated, so that no array's references need be counted at every call
    "_nrt": False,
}


class _Part:
    """A function for jitted code; numba hears of it when a kernel that calls it is compiled.

    Hundreds of parts would otherwise be prepared for compilation in every process, most of which
    load their kernels.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        self.__doc__ = function.__doc__

    @cached_property
    def dispatcher(self) -> Any:
        dispatcher = numba.njit(pipeline_class=PartCompiler, no_cpython_wrapper=True, **_OPTIONS)(
            self.py_func
        )
        select = dispatcher.get_call_template

        def select_for_any_value(args: Any, kws: Any) -> Any:
            # one specialisation by types, not one more for each constant
            return select(tuple(map(_widened, args)), {name: _widened(arg) for name, arg in kws.items()})

        dispatcher.get_call_template = select_for_any_value
        return dispatcher


def _widened(typ: Any) -> Any:
    """The type of any value of its kind: of a constant, the number; of a member of an enum, too."""
    return types.unliteral(typ.dtype if isinstance(typ, types.IntEnumMember) else typ)


@typeof_impl.register(_Part)
def _type_of_part(part: _Part, context: Any) -> Any:
    return types.Dispatcher(part.dispatcher)


_type_of_any_array = typeof_impl.dispatch(np.ndarray)


@typeof_impl.register(np.ndarray)
def _type_of_array(array: Any, context: Any) -> Any:
    """numba's own asks whether an array is masked, which imports numpy.ma: a tenth of a short run."""
    if type(array) not in (np.ndarray, np.recarray) or array.dtype.kind not in "biufV":
        return _type_of_any_array(array, context)
    return types.Array(
        from_dtype(array.dtype), array.ndim, map_layout(array), readonly=not array.flags.writeable
    )


def jit(function: Function) -> Function:
    """A part of kernels: called by jitted functions only, without Python objects or allocation.

    With ``NUMBA_DISABLE_JIT=1`` the function stays plain Python.
    """
    return function if config.DISABLE_JIT else cast(Function, _Part(function))


KERNELS: list[Any] = []
"""Every kernel of the modules imported so far."""


def kernel(function: Function) -> Function:
    """A function that Python calls: compiled with all its parts on the first call, kept between runs."""
    dispatcher = numba.njit(pipeline_class=KernelCompiler, **_OPTIONS)(function)
    if not config.DISABLE_JIT:
        dispatcher._cache = NoCache() if cache_directory() is None else KernelCache(function)
        KERNELS.append(dispatcher)
    return cast(Function, dispatcher)
