"""Markers that QEMU writes itself: its trace events by the ftrace backend (accel/kvm/trace-events).

``EVENT ARGUMENTS`` in trace_marker.  ``kvm_set_user_memory`` is the same in all releases but for two
additions, ``AddrSpace#`` in front and the guest_memfd before ``ret``; ``kvm_clear_dirty_log`` never changed.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.schema import Flag, Kind
from replay.trace.scan.lex import (
    BLANK,
    WORD_MASKS,
    load64,
    read_decimal,
    read_hex,
    skip_blanks,
    token_end,
    words_of,
)
from replay.trace.scan.payload import ADDR, CODE, END, FLAGS, GFN, LEVEL, NUM

MEMSLOT, CLEAR_DIRTY_LOG = int(Kind.MARK_MEMSLOT), int(Kind.MARK_CLEAR_DIRTY_LOG)
NOT_OURS, BROKEN, FAILED = 0, -1, -2
"""What ``read_vmm_marker`` returns beside kinds; FAILED: the call did nothing."""

_SET = words_of("kvm_set_user_memory ")[0]
_CLEAR = words_of("kvm_clear_dirty_log ")[0]
_ADDR_SPACE, _SLOT, _FLAGS_IS, _GPA, _SIZE, _UA, _RET = (
    words_of(text)[0] for text in ("AddrSpace#", "Slot#", "flags=", "gpa=", "size=", "ua=", "ret=")
)
_CLEAR_SLOT, _CLEAR_START, _CLEAR_SIZE = (words_of(text)[0] for text in ("slot#", "start", "size"))
_VMM = np.uint64(int(Flag.VMM))
_ALL_ONES = np.uint64(2**64 - 1)
_ZERO, _PAGE_SHIFT, _SPACE_SHIFT = np.uint64(0), np.uint64(12), np.uint64(16)
_SLOT_IDS = np.uint64(0xFFFF)
_FOUND_ALL = 0x3F  # the six keys that every release prints


@jit
def _begins(buf, at, words, length):
    """True if ``buf`` has at ``at`` the text of ``length`` bytes whose words are ``words``."""
    for n in range(len(words)):
        rest = length - 8 * n
        mask = WORD_MASKS[rest] if rest < 8 else _ALL_ONES
        if load64(buf, at + 8 * n) & mask != words[n]:
            return False
    return True


@jit
def _number(buf, at):
    """(value, index behind it or -1) of a decimal number, which may be negative, or one with 0x."""
    if buf[at] == 48 and buf[at + 1] == 120:
        return read_hex(buf, at)
    value, end = read_decimal(buf, at)
    return np.uint64(value), end


@jit
def _read_set_user_memory(buf, at, fields):
    """The arguments of kvm_set_user_memory: MEMSLOT, FAILED or BROKEN."""
    found = 0
    space, result = _ZERO, np.int64(0)
    while buf[at] > BLANK:
        end = token_end(buf, at)
        target, skip, bit = -1, 0, 0
        if _begins(buf, at, _SLOT, 5):
            target, skip, bit = NUM, 5, 1
        elif _begins(buf, at, _FLAGS_IS, 6):
            target, skip, bit = CODE, 6, 2
        elif _begins(buf, at, _GPA, 4):
            target, skip, bit = GFN, 4, 4
        elif _begins(buf, at, _SIZE, 5):
            target, skip, bit = END, 5, 8
        elif _begins(buf, at, _UA, 3):
            target, skip, bit = ADDR, 3, 16
        elif _begins(buf, at, _RET, 4):
            value, stop = read_decimal(buf, at + 4)
            if stop != end:
                return BROKEN
            result = value
            found |= 32
        elif _begins(buf, at, _ADDR_SPACE, 10):
            space, stop = _number(buf, at + 10)
            if stop != end:
                return BROKEN
        if target >= 0:
            number, stop = _number(buf, at + skip)
            if stop != end:
                return BROKEN
            fields[target] = number
            found |= bit
        at = skip_blanks(buf, end)
    if found != _FOUND_ALL:
        return BROKEN
    if result < 0:
        return FAILED
    fields[NUM] |= space << _SPACE_SHIFT
    fields[LEVEL] = (fields[NUM] >> _SPACE_SHIFT) & _SLOT_IDS
    fields[GFN] >>= _PAGE_SHIFT
    fields[END] = fields[GFN] + (fields[END] >> _PAGE_SHIFT)
    fields[FLAGS] = _VMM
    return MEMSLOT


@jit
def _read_clear_dirty_log(buf, at, fields):
    """The arguments of kvm_clear_dirty_log, whose values follow their names: CLEAR_DIRTY_LOG or BROKEN."""
    if not _begins(buf, at, _CLEAR_SLOT, 5):
        return BROKEN
    fields[NUM], at = _number(buf, at + 5)
    if at < 0 or buf[at] != BLANK or not _begins(buf, at + 1, _CLEAR_START, 5):
        return BROKEN
    fields[GFN], at = _number(buf, skip_blanks(buf, at + 6))
    if at < 0 or buf[at] != BLANK or not _begins(buf, at + 1, _CLEAR_SIZE, 4):
        return BROKEN
    size, at = _number(buf, skip_blanks(buf, at + 5))
    if at < 0 or buf[at] > BLANK:
        return BROKEN
    fields[END] = fields[GFN] + size
    fields[CODE] = _ALL_ONES
    fields[FLAGS] = _VMM
    return CLEAR_DIRTY_LOG


@jit
def read_vmm_marker(buf, at, fields):
    """The text of a marker at ``at`` into ``fields``, which are zeros: its kind, NOT_OURS, BROKEN or FAILED.

    Both events give the number of a slot with its address space in the upper half.
    """
    if _begins(buf, at, _SET, 20):
        return np.int64(_read_set_user_memory(buf, skip_blanks(buf, at + 20), fields))
    if _begins(buf, at, _CLEAR, 20):
        return np.int64(_read_clear_dirty_log(buf, skip_blanks(buf, at + 20), fields))
    return np.int64(NOT_OURS)
