"""What a table of events must be, whoever wrote it: jitted code takes its columns as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa

from replay.arrow import numbered_array, numpy_array
from replay.schema import COLUMN_TYPES, Columns, Kind

WORDS = ("comm", "text")
"""Columns of words: text, or a dictionary of it."""

_OTHER, _LEVEL, _PAGE, _UNKNOWN = range(4)
_PAGE_KINDS = (Kind.GET_PAGE, Kind.SYNC_PAGE, Kind.UNSYNC_PAGE, Kind.PREPARE_ZAP_PAGE)
_LEVEL_KINDS = (
    *_PAGE_KINDS,
    Kind.PAGING_ELEMENT,
    Kind.SET_SPTE,
    Kind.SPTE_REQUESTED,
    Kind.TDP_MMU_SPTE_CHANGED,
    Kind.SPLIT_HUGE_PAGE,
)
MAX_LEVEL = 15


def _classes() -> bytes:
    """By kind, what else its rows must have."""
    classes = bytearray([_UNKNOWN]) * 256
    for kind in Kind:
        classes[kind] = _PAGE if kind in _PAGE_KINDS else _LEVEL if kind in _LEVEL_KINDS else _OTHER
    return bytes(classes)


_CLASSES = _classes()


def check_schema(schema: pa.Schema) -> None:
    """Raises ``ValueError`` where a column is missing or of another type; others may stand beside them."""
    for name, kind in COLUMN_TYPES.items():
        count = len(schema.get_all_field_indices(name))
        if count != 1:
            raise ValueError(f"{'no' if count == 0 else 'more than one'} column {name!r}")
        found = schema.field(name).type
        if name in WORDS:
            if not _is_text(found.value_type if pa.types.is_dictionary(found) else found):
                raise ValueError(f"column {name!r} is {found}, not text")
        elif found != pa.type_for_alias(kind):
            raise ValueError(f"column {name!r} is {found}, not {kind}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def column_array(name: str, array: pa.Array, numbers: Mapping[str, Mapping[str, int]]) -> np.ndarray:
    """The values of a column; of words their ``numbers`` by column.

    Raises ``ValueError`` for nulls, ``KeyError`` for words that have no number.
    """
    if name not in WORDS:
        if array.null_count:
            raise ValueError(f"column {name!r} has nulls")
        return numpy_array(array, COLUMN_TYPES[name])
    if not pa.types.is_dictionary(array.type):
        array = array.cast(pa.string()).dictionary_encode()
    if array.type.index_type != pa.int32():
        array.validate(full=True)
        array = pa.DictionaryArray.from_arrays(array.indices.cast(pa.int32()), array.dictionary)
    return numbered_array(array, numbers[name])


def check_columns(columns: Columns, needed: Collection[str], vms: int) -> None:
    """Raises ``ValueError`` where a value of the ``needed`` columns is out of its range."""
    if len(columns.kind) == 0:
        return
    if "vm" in needed:
        _check_vm(columns, vms)
    if "kind" in needed:
        _check_kind(columns, needed)


def _check_vm(columns: Columns, vms: int) -> None:
    low, high = int(columns.vm.min()), int(columns.vm.max())
    if low < -1 or high >= vms:
        bad = (columns.vm < -1) | (columns.vm >= vms)
        raise _at_first(columns, bad, "vm", f"the table has {vms} VMs")


def _check_kind(columns: Columns, needed: Collection[str]) -> None:
    # of all that numpy and Python have, this looks most bytes up in a second
    classes = np.frombuffer(columns.kind.tobytes().translate(_CLASSES), np.uint8)
    if classes.max() == _UNKNOWN:
        raise _at_first(columns, classes == _UNKNOWN, "kind", "no kind of event")
    if "level" not in needed:
        return
    wrong = (classes != _OTHER) & (columns.level - np.uint8(1) >= MAX_LEVEL)
    if wrong.any():
        raise _at_first(columns, wrong, "level", f"1 to {MAX_LEVEL} are possible")
    if "role" in needed:
        wrong = (classes == _PAGE) & ((columns.role & np.uint32(MAX_LEVEL)) != columns.level)
        if wrong.any():
            raise _at_first(columns, wrong, "role", "its level is not that of the column level")


def _at_first(columns: Columns, bad: np.ndarray, name: str, why: str) -> ValueError:
    row = int(np.argmax(bad))
    value = int(getattr(columns, name)[row])
    return ValueError(f"column {name!r} is {value} in the row of line {int(columns.line[row])}: {why}")
