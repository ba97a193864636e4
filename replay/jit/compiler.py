"""The passes that parts and kernels go through, a quarter of numba's."""

from __future__ import annotations

import gc
import itertools
from typing import Any

from numba import types
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.ir_utils import build_definitions
from numba.core.ssa import reconstruct_ssa
from numba.core.typed_passes import NoPythonBackend, NopythonTypeInference, PreLowerStripPhis
from numba.core.types.functions import BaseFunction
from numba.core.untyped_passes import FixupArgs, TranslateByteCode

from replay.jit.linking import KernelLibrary, PartLibrary
from replay.jit.lowering import KernelLowering, PartLowering
from replay.jit.table import RecordType, RowType, TableType

_numbers = itertools.count()
_resolve_call_type: Any = BaseFunction.get_call_type
_operator_calls: dict[Any, Any] = {}


def _is_plain(arg: Any) -> bool:
    return isinstance(
        arg, (types.Integer, types.Boolean, types.Array, types.IntEnumMember, TableType, RowType, RecordType)
    ) or (isinstance(arg, types.BaseTuple) and all(isinstance(item, types.Integer) for item in arg))


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


@register_pass(mutates_CFG=True, analysis_only=False)
class _ReconstructSSA(FunctionPass):
    """numba's pass without the lifetimes of variables, which serve reference counts."""

    _name = "kernel_ssa"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.func_ir = reconstruct_ssa(state.func_ir)
        state.func_ir._definitions = build_definitions(state.func_ir.blocks)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _StripPhis(PreLowerStripPhis):
    """As above."""

    _name = "kernel_strip_phis"

    def run_pass(self, state: Any) -> bool:
        state.func_ir = self._strip_phi_nodes(state.func_ir)
        return True


class PartCompiler(CompilerBase):
    lowering: type[Any] = PartLowering

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        # its kernel has looked whether there are new types and functions
        typingctx.refresh = targetctx.refresh = lambda: None
        try:
            library = PartLibrary(targetctx.codegen(), f"part{next(_numbers)}")
            super().__init__(typingctx, targetctx, library, *rest)
        finally:
            del typingctx.refresh, targetctx.refresh

    def define_pipelines(self) -> list[PassManager]:
        """The passes that plain code on numbers and arrays needs: a quarter of numba's."""
        passes = PassManager("kernels")
        for step in (
            TranslateByteCode,
            FixupArgs,
            _ReconstructSSA,
            NopythonTypeInference,
            _StripPhis,
            self.lowering,
            NoPythonBackend,
        ):
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]


class KernelCompiler(PartCompiler):
    lowering = KernelLowering

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        library = KernelLibrary(targetctx.codegen(), f"kernel{next(_numbers)}")
        library.enable_object_caching()
        CompilerBase.__init__(self, typingctx, targetctx, library, *rest)

    def compile_extra(self, func: Any) -> Any:
        """Compile the kernel, and its parts as they are called."""
        # millions of objects live until the end: collecting them costs a fifth of a compilation
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
