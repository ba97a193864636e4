"""Tuples by reference, and the tables in them.

numba passes a NamedTuple of arrays by value: a state of 16 arrays is 140 arguments at every call,
and each access unpacks an array anew.  That costs more to compile than all else.  A kernel takes the
tuple and hands a reference to its parts; its arrays are then *tables*: memory of numbers in one or two
dimensions and C order, read and written by indices from 0.  A negative index does not count from the end.
The elements of a structured array are *records*, see record.py.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.imputils import lower_builtin, lower_getattr, lower_getattr_generic
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
    signature,
)
from numba.extending import intrinsic, models, register_model

from replay.jit.lowering import give_up


class _ReferenceType(types.Type):
    """A pointer to a NamedTuple that outlives the call."""

    def __init__(self, target: Any) -> None:
        self.target = target
        super().__init__(f"Reference({target})")


@register_model(_ReferenceType)
class _ReferenceModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, ir.IntType(8).as_pointer())


class TableType(types.Type):
    """A pointer to an array of a NamedTuple: numbers in one or two dimensions and C order.

    Its elements are read and written by indices from 0: a negative one does not count from the end.
    numba's own arrays are unpacked at each access, at three times the code to compile.
    """

    def __init__(self, array: Any) -> None:
        self.array = array
        super().__init__(f"Table({array})")


class RowType(types.Type):
    """A pointer to the numbers of one row of a table."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(f"Row({dtype})")


class RecordType(types.Type):
    """A pointer to one element of a table of records; ``record`` is numba's type of what it holds."""

    def __init__(self, record: Any) -> None:
        self.record = record
        super().__init__(f"RecordIn({record})")


class _RowModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, dmm.lookup(fe_type.dtype).get_data_type().as_pointer())


class _CheckedRowModel(models.StructModel):
    """A row that knows its length, under ``NUMBA_BOUNDSCHECK=1``."""

    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, [("data", types.CPointer(fe_type.dtype)), ("length", types.intp)])


register_model(RowType)(_CheckedRowModel if config.BOUNDSCHECK else _RowModel)


register_model(TableType)(_ReferenceModel)
register_model(RecordType)(_ReferenceModel)


@infer_getattr
class _ReferenceAttribute(AttributeTemplate):
    key = _ReferenceType

    def generic_resolve(self, typ: Any, attr: str) -> Any:
        if attr not in typ.target.fields:
            return None
        field = typ.target[typ.target.fields.index(attr)]
        if isinstance(field, types.Record):
            return RecordType(field)
        is_table = isinstance(field, types.Array) and field.ndim <= 2 and field.layout == "C"
        return TableType(field) if is_table else field


@lower_getattr_generic(_ReferenceType)
def _load_field(context: Any, builder: Any, typ: Any, value: Any, attr: str) -> Any:
    field, member = _pointer_into(context, builder, typ.target, value, typ.target.fields.index(attr))
    found = context.typing_context.resolve_getattr(typ, attr)
    if isinstance(found, TableType):
        return field
    value = builder.load(field, typ=member)
    return builder.bitcast(value, ir.IntType(8).as_pointer()) if isinstance(found, RecordType) else value


_layouts: dict[Any, list[tuple[int, Any]]] = {}


def _pointer_into(context: Any, builder: Any, typ: Any, value: Any, index: int, axis: int = 0) -> Any:
    """Pointer to member ``index`` of what numba keeps for ``typ`` behind ``value``, with the member's type.

    It is a pointer to bytes: the text of a struct of 16 arrays would be a thousand characters, each time.
    """
    if typ not in _layouts:
        layout = context.get_value_type(typ)
        if isinstance(layout, ir.ArrayType):
            size = context.get_abi_sizeof(layout.element)
            _layouts[typ] = [(i * size, layout.element) for i in range(layout.count)]
        else:
            _layouts[typ] = [
                (layout.get_element_offset(context.target_data, i), member)
                for i, member in enumerate(layout.elements)
            ]
    offset, member = _layouts[typ][index]
    if isinstance(member, ir.ArrayType):
        member = member.element
        offset += 8 * axis
    return builder.gep(value, [ir.IntType(64)(offset)], inbounds=True), member


@infer_getattr
class _TableAttribute(AttributeTemplate):
    key = TableType

    def resolve_shape(self, typ: Any) -> Any:
        return types.UniTuple(types.intp, typ.array.ndim)


def _member(context: Any, builder: Any, table: Any, value: Any, name: str, axis: int = 0) -> Any:
    """What the array behind ``value`` has by that name: a number, or the pointer to its data."""
    index = context.data_model_manager[table.array].get_field_position(name)
    pointer, member = _pointer_into(context, builder, table.array, value, index, axis)
    return tagged(builder, builder.load(pointer, typ=member), "array")


def tagged(builder: Any, access: Any, memory: str) -> Any:
    """Tell LLVM that ``access`` is to arrays' own numbers or to elements, which never overlap."""
    module = builder.module
    root = module.add_metadata(["table"])
    kind = module.add_metadata([memory, root, ir.IntType(64)(0)])
    access.set_metadata("tbaa", module.add_metadata([kind, kind, ir.IntType(64)(0)]))
    return access


def data_pointer(context: Any, builder: Any, typ: Any, value: Any) -> Any:
    """Pointer to the first element of an array, a table or a row, for intrinsics."""
    if isinstance(typ, RowType):
        return _checked_row(context, builder, typ, value).data if config.BOUNDSCHECK else value
    if isinstance(typ, TableType):
        return _member(context, builder, typ, value, "data")
    return context.make_array(typ)(context, builder, value).data


def row_of(context: Any, builder: Any, typ: Any, pointer: Any, length: Any) -> Any:
    """The row of ``length`` numbers that begins at ``pointer``."""
    if not config.BOUNDSCHECK:
        return pointer
    row = _checked_row(context, builder, typ)
    row.data, row.length = pointer, length
    return row._getvalue()


def _checked_row(context: Any, builder: Any, typ: Any, value: Any = None) -> Any:
    return cgutils.create_struct_proxy(typ)(context, builder, value=value)


@lower_getattr(TableType, "shape")
def _load_shape(context: Any, builder: Any, typ: Any, value: Any) -> Any:
    lengths = [_member(context, builder, typ, value, "shape", axis) for axis in range(typ.array.ndim)]
    return context.make_tuple(builder, types.UniTuple(types.intp, typ.array.ndim), lengths)


@infer_global(len)
class _TableLength(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(types.intp, *args) if isinstance(args[0], TableType) else None


@lower_builtin(len, TableType)
def _load_table_length(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return _member(context, builder, signature.args[0], args[0], "shape")


def _element_type(target: Any, index: Any) -> Any:
    """What ``target[index]`` is, or None."""
    n = len(index) if isinstance(index, types.BaseTuple) else 1
    if isinstance(target, RowType):
        return target.dtype if n == 1 else None
    if not isinstance(target, TableType):
        return None
    if n < target.array.ndim:
        return RowType(target.array.dtype)
    if n > target.array.ndim:
        return None
    element = target.array.dtype
    return RecordType(element) if isinstance(element, types.Record) else element


def _number(index: Any) -> Any:
    """The type of an index: of a member of an enum, that of its number."""
    return index.dtype if isinstance(index, types.IntEnumMember) else index


@infer_global(operator.getitem)
class _GetElement(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        target, index = args
        element = _element_type(target, index)
        return None if element is None else signature(element, target, _number(index))


@infer_global(operator.setitem)
class _SetElement(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        target, index, _ = args
        element = _element_type(target, index)
        if element is None or isinstance(element, RowType):
            return None  # rows are copied by number
        return signature(types.none, target, _number(index), element)


def _pointer_to(context: Any, builder: Any, signature: Any, target: Any, index: Any) -> Any:
    """Pointer to ``target[index]``."""
    typ, index_type = signature.args[:2]
    types_of, indices = [index_type], [index]
    if isinstance(index_type, types.BaseTuple):
        types_of, indices = list(index_type), cgutils.unpack_tuple(builder, index)
    indices = [
        context.cast(builder, value, of, types.intp) for value, of in zip(indices, types_of, strict=True)
    ]
    if isinstance(typ, RowType):
        if config.BOUNDSCHECK:
            _check_bounds(builder, indices[0], _checked_row(context, builder, typ, target).length)
        return builder.gep(data_pointer(context, builder, typ, target), indices, inbounds=True)
    if config.BOUNDSCHECK:
        for axis, value in enumerate(indices):
            _check_bounds(builder, value, _member(context, builder, typ, target, "shape", axis))
    offset = indices[0]
    for axis in range(1, typ.array.ndim):
        offset = builder.mul(offset, _member(context, builder, typ, target, "shape", axis))
        if axis < len(indices):
            offset = builder.add(offset, indices[axis])
    return builder.gep(data_pointer(context, builder, typ, target), [offset], inbounds=True)


def _check_bounds(builder: Any, index: Any, length: Any) -> None:
    """End the process if ``index`` is negative or too large: jitted code has no way out for an exception."""
    with builder.if_then(builder.icmp_unsigned(">=", index, length), likely=False):
        give_up(builder, "index %ld of %ld", index, length)


@lower_builtin(operator.getitem, TableType, types.Integer)
@lower_builtin(operator.getitem, TableType, types.BaseTuple)
@lower_builtin(operator.getitem, RowType, types.Integer)
def _load_element(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = _pointer_to(context, builder, signature, *args)
    if isinstance(signature.return_type, RecordType):
        return builder.bitcast(pointer, ir.IntType(8).as_pointer())
    if isinstance(signature.return_type, RowType):
        length = None
        if config.BOUNDSCHECK:
            length = _member(context, builder, signature.args[0], args[0], "shape", 1)
        return row_of(context, builder, signature.return_type, pointer, length)
    if not isinstance(signature.return_type, types.Integer):
        return context.unpack_value(builder, signature.return_type, pointer)
    return tagged(builder, builder.load(pointer), "element")


@lower_builtin(operator.setitem, TableType, types.Integer, types.Any)
@lower_builtin(operator.setitem, TableType, types.BaseTuple, types.Any)
@lower_builtin(operator.setitem, RowType, types.Integer, types.Any)
def _store_element(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    target, index, value = args
    pointer = _pointer_to(context, builder, signature, target, index)
    if isinstance(signature.args[2], RecordType):
        size = ir.IntType(64)(signature.args[2].record.size)
        cgutils.raw_memcpy(builder, pointer, value, size, 1)
    elif isinstance(signature.args[2], types.Integer):
        tagged(builder, builder.store(value, pointer), "element")
    else:
        context.pack_value(builder, signature.args[2], value, pointer)
    return context.get_dummy_value()


if config.DISABLE_JIT:

    def by_reference(values: Any) -> Any:
        """The tuple itself."""
        return values

else:

    @intrinsic
    def by_reference(typingctx: Any, values: Any) -> Any:
        """A reference to the NamedTuple ``values``, good within the kernel's call; its fields read alike."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kept = cgutils.alloca_once_value(builder, args[0])
            return builder.bitcast(kept, ir.IntType(8).as_pointer())

        return _ReferenceType(values)(values), codegen
