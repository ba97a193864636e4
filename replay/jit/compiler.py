"""The passes that parts and kernels go through, a quarter of numba's."""

from __future__ import annotations

import gc
import itertools
from typing import Any

from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import IRLegalization, NoPythonBackend, NopythonTypeInference, PreLowerStripPhis
from numba.core.types.functions import BaseFunction
from numba.core.untyped_passes import FixupArgs, IRProcessing, ReconstructSSA, TranslateByteCode

from replay.jit.library import KernelLibrary, PartLibrary
from replay.jit.lowering import KernelLowering, PartLowering
from replay.jit.table import RowType, TableType

_numbers = itertools.count()
_resolve_call_type: Any = BaseFunction.get_call_type
_operator_calls: dict[Any, Any] = {}


def _is_plain(arg: Any) -> bool:
    return isinstance(arg, (types.Integer, types.Boolean, types.Array, TableType, RowType)) or (
        isinstance(arg, types.BaseTuple) and all(isinstance(item, types.Integer) for item in arg)
    )


def _operator_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
    """The signature of a call; those of operators and built-ins on numbers and arrays are found once only."""
    module = getattr(self.typing_key, "__module__", "")
    if kws or module not in ("_operator", "builtins") or not all(map(_is_plain, args)):
        return _resolve_call_type(self, context, args, kws)
    key = (self.key, tuple(args))
    if key in _operator_calls:
        known, implementation = _operator_calls[key]
        self._impl_keys[known.args] = implementation
        return known
    signature: Any = _resolve_call_type(self, context, args, kws)
    _operator_calls[key] = signature, self._impl_keys[signature.args]
    return signature


class PartCompiler(CompilerBase):
    lowering: type[Any] = PartLowering
    code_class: type[JITCodeLibrary] = PartLibrary

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        if library is None:
            library = self.code_class(targetctx.codegen(), f"{self.code_class.__name__}{next(_numbers)}")
            if self.code_class is KernelLibrary:
                library.enable_object_caching()
        super().__init__(typingctx, targetctx, library, *rest)

    def define_pipelines(self) -> list[PassManager]:
        """The passes that plain code on numbers and arrays needs: a quarter of numba's."""
        passes = PassManager("kernels")
        for step in (
            TranslateByteCode,
            FixupArgs,
            IRProcessing,
            ReconstructSSA,
            NopythonTypeInference,
            PreLowerStripPhis,
            IRLegalization,
            self.lowering,
            NoPythonBackend,
        ):
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]

    def compile_extra(self, func: Any) -> Any:
        # a compilation makes millions of objects that live until its end: collecting them costs a fifth of it
        collecting = gc.isenabled()
        resolve = BaseFunction.get_call_type
        gc.disable()
        BaseFunction.get_call_type = _operator_call_type  # type: ignore[method-assign]
        try:
            return super().compile_extra(func)
        finally:
            BaseFunction.get_call_type = resolve  # type: ignore[method-assign]
            if collecting:
                gc.enable()


class KernelCompiler(PartCompiler):
    lowering = KernelLowering
    code_class = KernelLibrary
