"""Events as raw fields, ``kvm_mmu_spte_requested:  gfn=10 pfn=118a71 level=1``.

``trace-cmd report -R`` prints them, and libtraceevent where it cannot parse an event's print format, behind
the words ``[FAILED TO PARSE]``.  Older versions of libtraceevent print all numbers in decimal, newer ones as
the event's print format has them, but for those that it could not parse.
"""

from __future__ import annotations

import re

import numpy as np

from replay.jit import jit
from replay.schema import Flag, Kind, Role
from replay.trace.scan.lex import (
    BLANK,
    ESC,
    WORD_MASKS,
    head64,
    load64,
    read_decimal,
    read_hex,
    skip_blanks,
    token_end,
    words_of,
)
from replay.trace.scan.payload import (
    ADDR,
    CODE,
    END,
    FLAGS,
    FORMATS,
    GFN,
    LEVEL,
    NUM,
    OLD_SPTE,
    ROLE,
    SPTE,
    SPTEP,
    WIDE,
    read_error_code,
)
from replay.trace.scan.role_words import PLUGIN_WORD, RAW_WORD

_PAGE = {"gfn": GFN, "role": ROLE, "root_count": NUM}

FIELDS: dict[Kind, dict[str, int]] = {
    Kind.PAGETABLE_WALK: {"addr": ADDR, "pferr": CODE},
    Kind.PAGING_ELEMENT: {"pte": SPTE, "level": LEVEL},
    Kind.SET_ACCESSED_BIT: {"gpa": ADDR},
    Kind.SET_DIRTY_BIT: {"gpa": ADDR},
    Kind.WALKER_ERROR: {"pferr": CODE},
    Kind.GET_PAGE: _PAGE,
    Kind.SYNC_PAGE: _PAGE,
    Kind.UNSYNC_PAGE: _PAGE,
    Kind.PREPARE_ZAP_PAGE: _PAGE,
    Kind.MARK_MMIO_SPTE: {"sptep": SPTEP, "gfn": GFN, "access": CODE, "gen?": NUM},
    Kind.HANDLE_MMIO_PAGE_FAULT: {"addr": ADDR, "gfn": GFN, "access": CODE},
    Kind.FAST_PAGE_FAULT: {
        "vcpu_id": NUM,
        "cr2_or_gpa|gva": ADDR,
        "error_code": CODE,
        "sptep": SPTEP,
        "old_spte": OLD_SPTE,
        "new_spte": SPTE,
    },
    Kind.ZAP_ALL_FAST: {"mmu_valid_gen": CODE, "mmu_used_pages": NUM},
    Kind.CHECK_MMIO_SPTE: {"kvm_gen": NUM, "spte_gen": CODE, "spte": SPTE},
    Kind.SET_SPTE: {"gfn": GFN, "spte": SPTE, "sptep": SPTEP, "level": LEVEL},
    Kind.SPTE_REQUESTED: {"gfn": GFN, "pfn": NUM, "level": LEVEL},
    Kind.TDP_MMU_SPTE_CHANGED: {
        "gfn": GFN,
        "old_spte": OLD_SPTE,
        "new_spte": SPTE,
        "level": LEVEL,
        "as_id": NUM,
    },
    Kind.SPLIT_HUGE_PAGE: {"gfn": GFN, "spte": SPTE, "level": LEVEL, "errno": NUM},
    Kind.PAGE_FAULT: {"vcpu_id?": NUM, "fault_address": ADDR, "error_code": CODE},
    Kind.UNMAP_HVA_RANGE: {"start": ADDR, "end": END},
}
"""The fields of each kind and what they fill; ``a|b`` for names a field had, ``?`` if it may be absent.

TP_STRUCT__entry of arch/x86/kvm/mmu/mmutrace.h and arch/x86/kvm/trace.h, Linux 3.11 to 7.x.
"""

(
    _HEX,  # a number that the print format has in hex
    _DECIMAL,
    _POINTER,  # always hex; 0 for words
    _ERROR_CODE,  # flags, or a number as _HEX
    _ANY,  # decimal, hex where it is seen to be
    _ROLE,
    _GEN,
    _FLAG,
    _LEVEL,
    _RET,  # enum of fast_page_fault
) = range(10)
_SPECS = {"x": _HEX, "d": _DECIMAL, "p": _POINTER, "f": _ERROR_CODE}
_PAGES = [kind for kind, fields in FIELDS.items() if fields is _PAGE]


def _spec(kind: Kind, target: int) -> int:
    """How the kernel's print format has a column of ``kind``."""
    if target in (ROLE, LEVEL):
        return _ROLE if target == ROLE else _LEVEL
    if kind in _PAGES:
        return _ANY
    found = re.search(rf"\{{{WIDE[target]}:([xdpf])\}}", FORMATS[kind][0])
    assert found, (kind, target)
    return _SPECS[found[1]]


def _keys_of(kind: Kind) -> list[tuple[str, int, int, int]]:
    """(name, number of the field or -1 if it may be absent, target, spec) of all fields of ``kind``."""
    keys = []
    for number, (names, target) in enumerate(FIELDS[kind].items()):
        bit = -1 if names.endswith("?") else number
        keys += [(name, bit, target, _spec(kind, target)) for name in names.rstrip("?").split("|")]
    if kind in _PAGES:
        keys.append(("mmu_valid_gen", -1, 0, _GEN))
        keys.append(("unsync", len(_PAGE), int(Flag.UNSYNC), _FLAG))
    if kind == Kind.GET_PAGE:
        keys.append(("created", len(_PAGE) + 1, int(Flag.CREATED), _FLAG))
    if kind == Kind.FAST_PAGE_FAULT:
        keys.append(("ret", -1, 0, _RET))
    return keys


def _compile_keys() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(words uint64[keys, 2], keys int64[keys, 3], their bounds int64[256, 2], required int64[256])."""
    words: list[np.ndarray] = []
    keys: list[tuple[int, int, int]] = []
    bounds = np.zeros((256, 2), np.int64)
    required = np.zeros(256, np.int64)
    for kind in FIELDS:
        bounds[kind, 0] = len(keys)
        for name, bit, target, spec in _keys_of(kind):
            padded = np.zeros(2, np.uint64)
            name_words, _ = words_of(name)
            padded[: len(name_words)] = name_words
            words.append(padded)
            keys.append((bit, target, spec))
            required[kind] |= 0 if bit < 0 else 1 << bit
        bounds[kind, 1] = len(keys)
    return np.array(words), np.array(keys, np.int64), bounds, required


_WORDS, _KEYS, _BOUNDS, _REQUIRED = _compile_keys()

_FAILED, _FAILED_WORDS = words_of("[FAILED ")[0][0], 3  # [FAILED TO PARSE]
_EQUALS = 61
_ZERO, _ONE, _MINUS_ONE = np.uint64(0), np.uint64(1), np.uint64(2**64 - 1)
_RAW_MARK, _ROLE_BITS = np.uint64(RAW_WORD), np.uint64(0xFFFFFFFF & ~PLUGIN_WORD)
_LEVEL_BITS, _GEN_BIT = np.uint64(Role.LEVEL), np.uint64(Role.GEN)
_VALID, _FIXED, _SPURIOUS = np.uint64(Flag.VALID), np.uint64(Flag.FIXED), np.uint64(Flag.SPURIOUS)
_CHECK_MMIO_SPTE, _FAST_PAGE_FAULT = int(Kind.CHECK_MMIO_SPTE), int(Kind.FAST_PAGE_FAULT)
_PAGE_FAULT = int(Kind.PAGE_FAULT)
_LEAST_SPURIOUS = 4  # RET_PF_SPURIOUS, which is 4 or 5

_NUMBERS = re.compile(rb"[ _](?:spte|sptep|pfn|pte|addr|gpa|address)=([0-9a-f]+)\b")
_HEX_LETTER = re.compile(rb"[a-f]")
_ENOUGH_DIGITS = 16
"""So many digits of numbers without a letter among them are not hex."""


def is_in_hex(text: bytes) -> bool:
    """The raw fields of ``text`` have numbers as the print formats have them: by the letters among these."""
    digits = b"".join(_NUMBERS.findall(text))
    return _HEX_LETTER.search(digits) is not None or len(digits) < _ENOUGH_DIGITS


@jit
def is_raw(buf, at):
    """What ``buf`` has at ``at`` are raw fields."""
    end = at
    while buf[end] > BLANK and buf[end] != _EQUALS:
        end += 1
    return (buf[end] == _EQUALS and end > at) or load64(buf, at) == _FAILED


@jit
def _read_number(buf, at, spec, in_hex):
    """(value, index behind it or -1) of the number at ``at``."""
    if spec == _ANY or spec == _ROLE or spec == _GEN:
        end = at
        while 48 <= buf[end] <= 57:
            end += 1
        in_hex = buf[end] > BLANK
    elif spec == _POINTER:
        in_hex = True
    elif spec != _HEX and spec != _ERROR_CODE:
        in_hex = False
    if in_hex or (buf[at] == 48 and buf[at + 1] == 120):
        return read_hex(buf, at)
    value, end = read_decimal(buf, at)
    return np.uint64(value), end


@jit
def _read_value(buf, at, target, spec, in_hex, fields):
    """Fill what the field with its value at ``at`` tells: index behind it, -1 if it is malformed."""
    if spec == _FLAG:  # 1, true, Y or y
        if buf[at] == 49 or buf[at] == 116 or buf[at] == 89 or buf[at] == 121:
            fields[FLAGS] |= np.uint64(target)
        return token_end(buf, at)
    if spec == _ERROR_CODE and not 48 <= buf[at] <= 57:
        fields[CODE], end = read_error_code(buf, at)
        return end
    value, end = _read_number(buf, at, spec, in_hex)
    is_number = end >= 0 and buf[end] <= BLANK
    if spec == _POINTER and not is_number:
        return token_end(buf, at)
    if not is_number:
        return np.int64(-1)
    if spec == _ROLE:
        fields[ROLE] |= _RAW_MARK | (value & _ROLE_BITS)
        fields[LEVEL] = value & _LEVEL_BITS
    elif spec == _GEN:
        if value & _ONE != _ZERO:
            fields[ROLE] |= _GEN_BIT
    else:
        fields[target] = value
    if (spec == _ROLE or spec == _LEVEL) and not 1 <= np.int64(fields[LEVEL]) <= 15:
        end = np.int64(-1)
    return end


@jit
def _derive(kind, ret, fields):
    """Fill what the kernel's text shows and the record holds otherwise."""
    if kind == _CHECK_MMIO_SPTE:
        if fields[NUM] == fields[CODE]:
            fields[FLAGS] |= _VALID
    elif kind == _FAST_PAGE_FAULT:
        # the numbers of RET_PF_FIXED and RET_PF_SPURIOUS differ by kernel: a fixed SPTE has changed
        if fields[OLD_SPTE] != fields[SPTE]:
            fields[FLAGS] |= _FIXED
        elif ret >= _LEAST_SPURIOUS:
            fields[FLAGS] |= _SPURIOUS


@jit
def read_raw(buf, at, kind, in_hex, fields):
    """Parse the raw fields at ``at`` of an event of ``kind``: index behind them, -1 if they are malformed.

    ``in_hex`` as ``is_in_hex``.  Fills ``fields`` uint64[FIELDS], which the caller has zeroed; a role as its
    word, see ``replay.trace.roles``.
    """
    if load64(buf, at) == _FAILED:
        in_hex = False
        for _ in range(_FAILED_WORDS):
            at = token_end(buf, skip_blanks(buf, at))
    if kind == _PAGE_FAULT:
        fields[NUM] = _MINUS_ONE
    seen, ret = np.int64(0), np.int64(0)
    at = skip_blanks(buf, at)
    while buf[at] > BLANK:
        end = at
        while buf[end] > BLANK and buf[end] != _EQUALS:
            end += 1
        if buf[end] != _EQUALS:
            at = skip_blanks(buf, end)
            continue
        length, value = end - at, end + 1
        end = token_end(buf, value)
        low = load64(buf, at) & WORD_MASKS[min(length, 8)]
        high = head64(buf, at + 8, length - 8) if length > 8 else _ZERO
        for key in range(_BOUNDS[kind, 0], _BOUNDS[kind, 1]):
            if _WORDS[key, 0] == low and _WORDS[key, 1] == high and length <= 16:
                if _KEYS[key, 2] == _RET:
                    ret, end = read_decimal(buf, value)
                else:
                    end = _read_value(buf, value, _KEYS[key, 1], _KEYS[key, 2], in_hex, fields)
                if _KEYS[key, 0] >= 0:
                    seen |= 1 << _KEYS[key, 0]
                break
        if end < 0:
            return np.int64(-1)
        at = skip_blanks(buf, end)
    if seen & _REQUIRED[kind] != _REQUIRED[kind] or buf[at] == ESC:  # a colour, amid the fields
        return np.int64(-1)
    _derive(kind, ret, fields)
    return at
