"""From numba's typed code to LLVM's, for code that raises nothing and holds no references.

Half of what numba emits serves exceptions, reference counts and variables that may be undefined.
A part has none of them: it takes and returns plain values, and no status is asked for after a call.
What cannot happen (an index outside a table under ``NUMBA_BOUNDSCHECK=1``, a range with step 0)
ends the process with a line on standard error.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, itanium_mangler
from numba.core.callconv import BaseCallConv, CPUCallConv
from numba.core.compiler import _LowerResult
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.cpu import CPUContext
from numba.core.funcdesc import PythonFunctionDescriptor
from numba.core.ir import Assign, Del, SetItem
from numba.core.lowering import Lower
from numba.core.typed_passes import BaseNativeLowering


class _PartCallConv(BaseCallConv):
    """Arguments and result are passed as they are: parts raise nothing, so that there is no status."""

    def get_function_type(self, restype: Any, argtypes: Any) -> Any:
        arguments = self._get_arg_packer(argtypes).argument_types
        return ir.FunctionType(self._result_type(restype), arguments)

    def _result_type(self, restype: Any) -> Any:
        if restype == types.none:
            return ir.VoidType()
        return self.context.data_model_manager[restype].get_return_type()

    def get_arguments(self, func: Any) -> Any:
        return func.args

    def return_value(self, builder: Any, retval: Any) -> None:
        if isinstance(builder.function.function_type.return_type, ir.VoidType):
            builder.ret_void()
        else:
            builder.ret(retval)

    def call_function(self, builder: Any, callee: Any, resty: Any, argtys: Any, args: Any) -> Any:
        arguments = self._get_arg_packer(argtys).as_arguments(builder, args)
        result = builder.call(callee, arguments)
        if resty == types.none:
            return None, self.context.get_dummy_value()
        return None, self.context.get_returned_value(builder, resty, result)


def give_up(builder: Any, text: str, *numbers: Any) -> None:
    """End the process: jitted code has no way out for what cannot happen."""
    line = f"{builder.function.name}: {text}\n\0"
    message = cgutils.global_constant(builder, "message", cgutils.make_bytearray(line.encode()))
    pointer = builder.bitcast(message, ir.IntType(8).as_pointer())
    number = ir.IntType(32)
    say = ir.FunctionType(number, [number, ir.IntType(8).as_pointer()], var_arg=True)
    builder.call(
        cgutils.get_or_insert_function(builder.module, say, "dprintf"), [number(2), pointer, *numbers]
    )
    end = ir.FunctionType(ir.VoidType(), [])
    builder.call(cgutils.get_or_insert_function(builder.module, end, "abort"), [])
    builder.unreachable()


class _ForeignCallConv(CPUCallConv):
    """The convention of numba's own functions where a part calls them: what they raise ends the process."""

    def return_user_exc(self, builder: Any, *args: Any, **kwargs: Any) -> None:
        give_up(builder, "exception")

    def return_status_propagate(self, builder: Any, status: Any) -> None:
        give_up(builder, "exception")


class _PartContext(CPUContext):
    """The target of code within a part."""

    @property
    def call_conv(self) -> Any:
        return _ForeignCallConv(self)


class _Lower(Lower):
    """numba's lowering without what serves reference counts, debuggers and exceptions."""

    def lower(self) -> None:
        for block in self.blocks.values():
            block.body = [inst for inst in block.body if not isinstance(inst, Del)]
        super().lower()

    def lower_block(self, block: Any) -> None:
        for inst in block.body:
            self.loc = inst.loc
            try:
                self.lower_inst(inst)
            except Exception as error:
                error.add_note(f"lowering {inst} at {inst.loc}")
                raise

    def lower_inst(self, inst: Any) -> None:
        if isinstance(inst, Assign):
            value = self.lower_assign(self.typeof(inst.target.name), inst)
            self.storevar(value, inst.target.name)
        elif isinstance(inst, SetItem):
            self.lower_setitem(inst.target, inst.index, inst.value, self.fndesc.calltypes[inst])
        else:
            super().lower_inst(inst)

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        if name in self._singly_assigned_vars:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))

    def lower_binop(self, resty: Any, expr: Any, op: Any) -> Any:
        context, builder = self.context, self.builder
        function = context.typing_context.resolve_value_type(op)
        signature = self.fndesc.calltypes[expr]
        found = function.get_call_type(context.typing_context, signature.args, {})
        values = [
            context.cast(builder, self.loadvar(operand.name), self.typeof(operand.name), wanted)
            for operand, wanted in zip((expr.lhs, expr.rhs), signature.args, strict=True)
        ]
        result = context.get_function(function, found)(builder, values)
        return context.cast(builder, result, signature.return_type, resty)


class _PartLower(_Lower):
    def init(self) -> None:
        super().init()
        self.context.__class__ = _PartContext

    @property
    def call_conv(self) -> Any:
        return _PartCallConv(self.context)

    def setup_function(self, fndesc: Any) -> None:
        function_type = self.call_conv.get_function_type(fndesc.restype, fndesc.argtypes)
        self.function = ir.Function(self.module, function_type, fndesc.mangled_name)
        self.entry_block = self.function.append_basic_block("entry")
        self.builder = ir.IRBuilder(self.entry_block)
        self.call_helper = None

    def emit_environment_object(self) -> None:
        pass


def _call_of_part(fndesc: Any, library: Any) -> Any:
    def call(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        convention = _PartCallConv(context)
        function_type = convention.get_function_type(fndesc.restype, fndesc.argtypes)
        callee = cgutils.get_or_insert_function(builder.module, function_type, fndesc.mangled_name)
        return convention.call_function(builder, callee, fndesc.restype, fndesc.argtypes, args)[1]

    call.signature = fndesc.argtypes  # type: ignore[attr-defined]
    call.libs = (library,)  # type: ignore[attr-defined]
    return call


@register_pass(mutates_CFG=True, analysis_only=False)
class KernelLowering(BaseNativeLowering):
    _name = "kernel_lowering"

    @property
    def lowering_class(self) -> Any:
        return _Lower


@register_pass(mutates_CFG=True, analysis_only=False)
class PartLowering(LoweringPass):
    _name = "part_lowering"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        context, library = state["targetctx"], state["library"]
        fndesc = PythonFunctionDescriptor.from_specialized_function(
            state.func_ir,
            state.typemap,
            state.return_type,
            state.calltypes,
            # the types of arguments would make names of a thousand characters
            mangler=lambda name, argtypes, *, uid, abi_tags: itanium_mangler.mangle(name, (), uid=uid),
            inline=False,
            noalias=False,
            abi_tags=[],
        )
        with context.push_code_library(library):
            lower = _PartLower(context, library, fndesc, state.func_ir, metadata=state.metadata)
            lower.lower()
        entry = context.get_executable(library, fndesc, lower.env)
        context._defns[entry].append(_call_of_part(fndesc, library), fndesc.argtypes)
        state["cr"] = _LowerResult(fndesc, None, cfunc=entry, env=lower.env)
        return True
