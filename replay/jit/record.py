"""Records: the elements of a structured array, whose fields compiled code reads and writes by name.

``m.window[w]`` is a reference to one, ``win.gfn`` its field; a field of several numbers, ``task.pte``, is a
row of them.  In plain Python the same code meets objects with the
same attributes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.imputils import lower_getattr_generic, lower_setattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic

from replay.jit.table import RecordType, RowType, row_of, tagged


@infer_getattr
class _RecordAttribute(AttributeTemplate):
    key = RecordType

    def generic_resolve(self, typ: Any, attr: str) -> Any:
        if attr not in typ.record.fields:
            return None
        field = typ.record.typeof(attr)
        return RowType(field.dtype) if isinstance(field, types.NestedArray) else field


def _field_pointer(context: Any, builder: Any, record: Any, value: Any, name: str) -> Any:
    """Pointer to the number, or the first of the numbers, in field ``name``."""
    field = record.typeof(name)
    number = field.dtype if isinstance(field, types.NestedArray) else field
    pointer = builder.gep(value, [ir.IntType(64)(record.offset(name))], inbounds=True)
    return builder.bitcast(pointer, context.get_data_type(number).as_pointer())


@lower_getattr_generic(RecordType)
def _load_field(context: Any, builder: Any, typ: Any, value: Any, attr: str) -> Any:
    pointer = _field_pointer(context, builder, typ.record, value, attr)
    field = typ.record.typeof(attr)
    if isinstance(field, types.NestedArray):
        return row_of(context, builder, RowType(field.dtype), pointer, ir.IntType(64)(field.nitems))
    return tagged(builder, builder.load(pointer), "element")


@lower_setattr_generic(RecordType)
def _store_field(context: Any, builder: Any, signature: Any, args: Any, attr: str) -> None:
    target, value = args
    pointer = _field_pointer(context, builder, signature.args[0].record, target, attr)
    tagged(builder, builder.store(value, pointer), "element")


if config.DISABLE_JIT:

    def clear(record: Any) -> None:
        """Set all numbers of a record to 0."""
        record._table[record._row] = np.zeros((), record._table.dtype)

else:

    @intrinsic
    def clear(typingctx: Any, record: Any) -> Any:
        """Set all numbers of a record to 0."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte = ir.IntType(8)
            size = ir.IntType(64)(signature.args[0].record.size)
            memset = builder.module.declare_intrinsic("llvm.memset", [byte.as_pointer(), ir.IntType(64)])
            builder.call(memset, [args[0], byte(0), size, ir.IntType(1)(0)])
            return context.get_dummy_value()

        return types.none(record), codegen


class _Record:
    """A record of a table in plain Python: np.record takes thirty times as long to read a field."""

    __slots__ = ("_fields", "_row", "_table")

    def __init__(self, table: Any, fields: dict[str, np.ndarray], row: int) -> None:
        self._table = table
        self._fields = fields
        self._row = row

    def __getitem__(self, name: str) -> Any:
        return self._fields[name][self._row]

    def __setitem__(self, name: str, value: Any) -> None:
        self._fields[name][self._row] = value


def _named(name: str) -> property:
    return property(
        lambda record: record._fields[name][record._row],
        lambda record, value: record._fields[name].__setitem__(record._row, value),
    )


@cache
def _record_class(dtype: np.dtype) -> type[_Record]:
    return type("Record", (_Record,), {"__slots__": (), **{name: _named(name) for name in dtype.names or ()}})


class _PlainRecords(np.recarray):
    """A table of records for jitted functions that run as plain Python."""

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, (int, np.integer)):
            return super().__getitem__(index)
        if index < -len(self) or index >= len(self):
            raise IndexError(f"index {index} of {len(self)}")
        known = self.__dict__.get("by_name")
        if known is None:
            plain = self.view(np.ndarray)
            known = {name: plain[name] for name in plain.dtype.names or ()}
            self.__dict__["by_name"] = known
        return _record_class(self.dtype)(self, known, int(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, _Record):
            value = value._table.view(np.ndarray)[value._row]
        super().__setitem__(index, value)


RecordArray = _PlainRecords if config.DISABLE_JIT else np.recarray
"""What a table of records has to be."""


def new_records(count: int, dtype: np.dtype) -> Any:
    """``count`` records, all of their numbers 0: an np.recarray, whose fields mypy does not know."""
    return np.zeros(count, dtype).view(RecordArray)
