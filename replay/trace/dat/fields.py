"""Which field of a record fills which column, compiled for one file into tables that jitted code follows.

Fields: ``replay.trace.raw.FIELDS``, by the names that the file's own formats give them; arguments of probes:
``replay.trace.control.KEYS``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from replay.schema import Flag, Kind
from replay.trace.dat.formats import Field, Format
from replay.trace.scan.control_lines import KEYS
from replay.trace.scan.payload import CODE, LEVEL, OLD_SPTE, ROLE, SPTE
from replay.trace.scan.raw_fields import FIELDS
from replay.trace.scan.role_words import RoleLayout
from replay.trace.scan.state import NAMES, OTHER, PRINT

_FLAGS: dict[Kind, dict[str, Flag]] = {
    Kind.GET_PAGE: {"unsync": Flag.UNSYNC, "created": Flag.CREATED},
    Kind.SYNC_PAGE: {"unsync": Flag.UNSYNC},
    Kind.UNSYNC_PAGE: {"unsync": Flag.UNSYNC},
    Kind.PREPARE_ZAP_PAGE: {"unsync": Flag.UNSYNC},
}

# what fills columns beside plain numbers
(
    OP_CONSTANT,  # column target of ``WIDE`` = argument
    OP_ROLE,  # role and level from a role word; the argument is its layout
    OP_GEN,  # the generation's lowest bit into role
    OP_FLAG,  # flags |= target if the value is not 0
    OP_FLAG_IF,  # ... if the value is the argument
    OP_FLAG_IF_SAME,  # ... if the value is column argument of ``WIDE``
    OP_FLAG_IF_WRITABLE,  # ... if the value is not 0 and column argument, an SPTE, is writable
) = range(7)

# places of a row of ``Layouts.events``
(
    EVENT_KIND,
    EVENT_SIZE,  # bytes a record must have
    EVENT_LOADS,  # first of ``loads``
    EVENT_LOADS_END,
    EVENT_OTHERS,  # first of ``others``
    EVENT_OTHERS_END,
    EVENT_LEVEL,  # offset of the level, its mask (0 without level), least and largest
    EVENT_LEVEL_MASK,
    EVENT_LEAST,
    EVENT_LARGEST,
) = range(10)

MALFORMED, PRINTK = 201, 202
"""Kinds of the events whose format lacks a field that they need, and of ``bprint`` and ``bputs``."""

_PRINTK_ADDRESS = {"bprint": "fmt", "bputs": "str"}

_ROLE_LAYOUTS = [RoleLayout(*bits) for bits in product((False, True), repeat=2)]
_ACCESS_TEXTS = re.compile(r"access_str\[\] = \{([^}]*)\}")
_RET = re.compile(r"(\w+)->ret == (\w+), *\w+->ret == (\w+)")
_RET_PF = {"RET_PF_SPURIOUS": 4, "RET_PF_FIXED": 3}
"""enum of Linux 5.10 to 5.18, whose formats name the values instead of giving their numbers."""


class Layouts(NamedTuple):
    """The events of a file for jitted code.

    ``of_id`` int32[65536]: common_type to row of ``events``, -1 unknown.  ``events`` int64[n, 10]: EVENT_KIND
    and so on.  ``loads`` int64[m, 4], numbers for columns: offset, mask, sign bit (0 unsigned), column of
    ``WIDE``.  ``others`` int64[k, 5]: what, offset, mask, target, argument.  ``roles`` uint32[n, 4, 256]: for
    each layout of role words the bits of ``Role`` by a word's bytes.  ``pid`` int64[2]: offset of common_pid
    and how many bytes a record must have to hold it.
    """

    of_id: np.ndarray
    events: np.ndarray
    loads: np.ndarray
    others: np.ndarray
    roles: np.ndarray
    pid: np.ndarray


class _Compiled(NamedTuple):
    """One event: its kind, ``loads``, ``others``, the level's field or None, bytes a record must have."""

    kind: int
    loads: list[tuple[int, ...]] = []  # noqa: RUF012, never changed
    others: list[tuple[int, ...]] = []  # noqa: RUF012
    level: Field | None = None
    size: int = 0


def compile_layouts(formats: list[Format]) -> Layouts:
    """The layouts of all of ``formats``; row n of ``events`` is that of format n."""
    of_id = np.full(1 << 16, -1, np.int32)
    events = np.zeros((max(1, len(formats)), 10), np.int64)
    loads: list[tuple[int, ...]] = []
    others: list[tuple[int, ...]] = []
    for row, event in enumerate(formats):
        if event.number < len(of_id):
            of_id[event.number] = row
        own = _compile_event(event)
        ends = len(loads) + len(own.loads), len(others) + len(own.others)
        events[row, : EVENT_OTHERS_END + 1] = own.kind, own.size, len(loads), ends[0], len(others), ends[1]
        if own.level:
            # a probe may give any
            bounds = (0, 255) if own.kind in KEYS else (1, 15)
            events[row, EVENT_LEVEL:] = own.level.offset, _mask(own.level), *bounds
        loads += own.loads
        others += own.others
    pid = next(
        (event.fields["common_pid"] for event in formats if "common_pid" in event.fields),
        Field(4, 4, True, True),
    )
    return Layouts(
        of_id,
        events,
        np.array(loads or [(0,) * 4], np.int64),
        np.array(others or [(0,) * 5], np.int64),
        np.array([layout.bytewise() for layout in _ROLE_LAYOUTS], np.uint32),
        np.array([pid.offset, pid.offset + pid.size], np.int64),
    )


def _compile_event(event: Format) -> _Compiled:
    kind = NAMES.get(event.name, OTHER)
    if kind == PRINT:
        text = event.fields.get("buf")
        if event.name == "print" and text is not None:
            return _Compiled(PRINT, others=[(0, text.offset, 0, 0, 0)], size=text.offset)
    if event.system == "ftrace" and event.name in _PRINTK_ADDRESS:
        address = _find(event, _PRINTK_ADDRESS[event.name])
        if address is None:
            return _Compiled(OTHER)
        return _Compiled(PRINTK, others=[_other(0, address)], size=address.offset + address.size)
    if (kind not in FIELDS and kind not in KEYS) or kind >= Kind.MARK_VM_CREATE:
        return _Compiled(OTHER)
    kind = Kind(kind)
    loads: list[tuple[int, ...]] = []
    others: list[tuple[int, ...]] = []
    level: Field | None = None
    size = 0
    for names, target in (FIELDS.get(kind) or KEYS[kind]).items():
        found = _find(event, names)
        if found is None:
            if not names.endswith("?"):
                return _Compiled(MALFORMED)
            if kind == Kind.PAGE_FAULT:
                others.append((OP_CONSTANT, 0, 0, target, -1))
            continue
        size = max(size, found.offset + found.size)
        if target == ROLE:
            others.append(_other(OP_ROLE, found, 0, _role_layout(event.print_format)))
        elif target == LEVEL:
            level = found
        else:
            sign = 1 << (8 * found.size - 1) if found.is_signed and found.size < 8 else 0
            loads.append((found.offset, _mask(found), sign, target))
    for what, own, flag, argument in _flag_operations(kind, event):
        size = max(size, own.offset + own.size)
        others.append(_other(what, own, flag, argument))
    return _Compiled(kind, loads, others, level, size)


def _find(event: Format, names: str) -> Field | None:
    for name in names.rstrip("?").split("|"):
        found = event.fields.get(name)
        if found is not None and found.is_number:
            return found
    return None


def _mask(own: Field) -> int:
    return -1 if own.size == 8 else (1 << 8 * own.size) - 1


def _other(what: int, own: Field, target: int = 0, argument: int = 0) -> tuple[int, ...]:
    return what, own.offset, _mask(own), target, argument


def _flag_operations(kind: Kind, event: Format) -> Iterator[tuple[int, Field, int, int]]:
    """What is not just a number: (operation, field, flag, argument)."""
    for name, flag in _FLAGS.get(kind, {}).items():
        if own := _find(event, name):
            yield OP_FLAG, own, flag, 0
    if own := _find(event, "mmu_valid_gen"):
        if kind != Kind.ZAP_ALL_FAST:
            yield OP_GEN, own, 0, 0
    elif kind == Kind.CHECK_MMIO_SPTE and (own := _find(event, "kvm_gen")):
        yield OP_FLAG_IF_SAME, own, Flag.VALID, CODE
    elif kind == Kind.FAST_PAGE_FAULT and (own := _find(event, "ret")):
        values = _RET.search(event.print_format)
        for flag, name, group in ((Flag.SPURIOUS, "RET_PF_SPURIOUS", 2), (Flag.FIXED, "RET_PF_FIXED", 3)):
            value = values[group] if values else name
            yield OP_FLAG_IF, own, flag, int(value) if value.isdecimal() else _RET_PF[name]
    elif kind == Kind.FAST_PAGE_FAULT and (own := _find(event, "retry")):  # before 5.10
        yield OP_FLAG_IF_WRITABLE, own, Flag.SPURIOUS, OLD_SPTE
        yield OP_FLAG_IF_WRITABLE, own, Flag.FIXED, SPTE


def _role_layout(print_format: str) -> int:
    """Number in ``_ROLE_LAYOUTS``, told by how the recording kernel itself prints a role.

    What its version would tell is not the same: distributions backport.  Three access bits have 8 texts,
    four (2026) have 16; bit 4 is set for 4-byte guest PTEs since 5.18, for 8-byte ones before.
    """
    texts = _ACCESS_TEXTS.search(print_format)
    has_four = texts is not None and texts[1].count('"') == 32
    return _ROLE_LAYOUTS.index(RoleLayout(has_four, "has_4_byte_gpte" not in print_format))
