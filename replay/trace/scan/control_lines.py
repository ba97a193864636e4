"""Control lines: what a trace says beside the MMU's own events, as ``key=value`` pairs.

Two sources: kprobe events, ``name: (symbol+0x0/0x0 [kvm]) key=value ...``, and lines written to
trace_marker that begin with ``replay:``.  Keys stand in any order, unknown keys are skipped, values
are decimal or ``0x`` hex.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.schema import Kind
from replay.trace.scan.lex import (
    BLANK,
    ESC,
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
    GFN,
    LEVEL,
    NUM,
    SPTEP,
    STEP_DECIMAL,
    STEP_HEX,
    STEP_LEVEL,
    STEP_SKIP,
    WIDE,
    note,
)

TEXT = -1
"""Target of a key whose value is a word and stays in the column ``text``."""

KEYS: dict[Kind, dict[str, int]] = {
    Kind.SET_REGION: {"slot": NUM, "flags": CODE, "gpa": GFN, "size": END, "uaddr?": ADDR},
    Kind.COMMIT_REGION: {"change": NUM},
    Kind.SLOT_TRY_SPLIT: {"target_level": LEVEL},
    Kind.SLOT_TRY_SPLIT_RET: {},
    Kind.TRY_SPLIT: {"start": GFN, "end": END, "target_level": LEVEL},
    Kind.TRY_SPLIT_RET: {},
    Kind.SHADOW_TRY_SPLIT: {"start": GFN, "end": END, "target_level": LEVEL},
    Kind.TDP_TRY_SPLIT: {"start": GFN, "end": END, "target_level": LEVEL},
    Kind.CHANGE_MMU_PAGES: {"goal": NUM},
    Kind.FLUSH_REMOTE_TLBS: {},
    Kind.FLUSH_REMOTE_TLBS_ADDR: {"start_gfn?": GFN, "pages?": END},
    Kind.FLUSH_REMOTE_TLBS_RANGE: {"start_gfn?": GFN, "pages?": END},
    Kind.FLUSH_REMOTE_TLBS_MEMSLOT: {},
    Kind.SLOT_REMOVE_WRITE_ACCESS: {"start_level?": LEVEL},
    Kind.TOPUP_CACHE: {"capacity?": NUM, "min?": CODE},
    Kind.ZAP_COLLAPSIBLE: {},
    Kind.RECOVER_HUGE: {},
    Kind.SLOT_LEAF_CLEAR_DIRTY: {},
    Kind.V2_LOCK_DROPPED: {"gfn": GFN, "level": LEVEL, "reason": CODE, "flush": NUM},
    Kind.V2_RANGE_YIELD: {"gfn": GFN, "level": LEVEL, "flush": NUM},
    Kind.V2_ALLOC_FAILED: {"gfn": GFN, "locked": NUM},
    Kind.V2_SPLIT_NONPRESENT: {"gfn": GFN, "level": LEVEL, "huge_gfn": ADDR},
    Kind.V2_SPLIT_DONE: {"huge_gfn": GFN, "huge_level": LEVEL, "present": NUM, "nonpresent": CODE},
    Kind.V2_ALIAS_SP: {"gfn": GFN, "level": LEVEL, "role": CODE, "huge_sptep": SPTEP},
    Kind.V2_SP_LEAKED: {"gfn": GFN, "level": LEVEL},
    Kind.V2_SP_FREED_UNUSED: {},
    Kind.V2_DROP_FLUSH: {"base_gfn": GFN, "npages": END},
    Kind.V2_FINAL_FLUSH: {"base_gfn": GFN, "npages": END},
    Kind.V2_PREPARE: {"gfn": GFN, "level": LEVEL, "available": NUM},
    Kind.V2_TRY_SPLIT_BEGIN: {"start": GFN, "end": END, "target_level": LEVEL},
    Kind.V2_TRY_SPLIT_END: {"start": GFN, "end": END, "flush": NUM},
    Kind.V2_LEVEL_BEGIN: {"level": LEVEL, "flush": NUM},
    Kind.V2_RESTART: {"gfn": GFN, "level": LEVEL, "why": CODE},
    Kind.MARK_VM_CREATE: {"pid?": NUM, "vm?": TEXT},
    Kind.MARK_MEMSLOT: {
        "id": NUM,
        "base_gfn": GFN,
        "npages": END,
        "flags": CODE,
        "hva?": ADDR,
        "as?": LEVEL,
        "vm?": TEXT,
    },
    Kind.MARK_MANUAL_PROTECT: {"arg": NUM, "vm?": TEXT},
    Kind.MARK_CLEAR_DIRTY_LOG: {
        "slot": NUM,
        "first_page": GFN,
        "num_pages": END,
        "mask?": CODE,
        "vm?": TEXT,
    },
    Kind.MARK_GET_DIRTY_LOG: {"slot": NUM, "vm?": TEXT},
    Kind.MARK_NR_MMU_PAGES: {"n": NUM, "vm?": TEXT},
    Kind.MARK_RESCHED: {"vm?": TEXT},
}
"""The keys of each kind and what they fill; ``?`` behind a key that may be absent.

Probes of a trace.dat file have them as fields of their records.
"""

_COUNTED_END = (
    Kind.SET_REGION,
    Kind.FLUSH_REMOTE_TLBS_ADDR,
    Kind.FLUSH_REMOTE_TLBS_RANGE,
    Kind.V2_DROP_FLUSH,
    Kind.V2_FINAL_FLUSH,
    Kind.MARK_MEMSLOT,
    Kind.MARK_CLEAR_DIRTY_LOG,
)
"""Kinds whose text gives a number of pages where the table has the end of the range."""

MARK_WORDS: dict[str, Kind] = {
    "vm_create": Kind.MARK_VM_CREATE,
    "memslot": Kind.MARK_MEMSLOT,
    "manual_dirty_log_protect2": Kind.MARK_MANUAL_PROTECT,
    "clear_dirty_log": Kind.MARK_CLEAR_DIRTY_LOG,
    "get_dirty_log": Kind.MARK_GET_DIRTY_LOG,
    "nr_mmu_pages": Kind.MARK_NR_MMU_PAGES,
    "resched": Kind.MARK_RESCHED,
    "scenario": Kind.MARK_SCENARIO,
}

_KEY_WORDS = 2


def _compile_keys() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(words uint64[keys, 2], targets int64[keys], required keys as bits int64[256], keys of each kind)."""
    words: list[np.ndarray] = []
    targets: list[int] = []
    required = np.zeros(256, np.int64)
    bounds = np.zeros((256, 2), np.int64)
    for kind, keys in KEYS.items():
        bounds[kind, 0] = len(words)
        for number, (key, target) in enumerate(keys.items()):
            padded = np.zeros(_KEY_WORDS, np.uint64)
            key_words, _ = words_of(key.rstrip("?"))
            padded[: len(key_words)] = key_words
            words.append(padded)
            targets.append(target)
            required[kind] |= 0 if key.endswith("?") else 1 << number
        bounds[kind, 1] = len(words)
    return np.array(words), np.array(targets), required, bounds


_WORDS, _TARGETS, _REQUIRED, _BOUNDS = _compile_keys()
HAS_COUNTED_END = np.zeros(256, np.bool_)
HAS_COUNTED_END[list(_COUNTED_END)] = True
"""Kinds of which ``to_frames`` makes other numbers than those in the text, as it does of some markers."""

_RAW_PLACE = words_of("__probe_")[0][0]  # of __probe_ip=ADDRESS, in raw fields
_EQUALS, _PAREN_OPEN, _PAREN_CLOSE = 61, 40, 41
_PAGE_SHIFT, _SPACE_SHIFT = np.uint64(12), np.uint64(16)
_ZERO = np.uint64(0)
_LARGEST_LEVEL = np.uint64(255)
_ALL_ONES = np.uint64(2**64 - 1)
_SET_REGION = int(Kind.SET_REGION)
_CLEAR_DIRTY_LOG, _FIRST_MARK = int(Kind.MARK_CLEAR_DIRTY_LOG), int(Kind.MARK_VM_CREATE)
_MARK_MEMSLOT = int(Kind.MARK_MEMSLOT)


@jit
def _read_pair(buf, at, kind, fields, seen, marks):
    """The pair at ``at``: (index behind it or -1 if it is broken, ``seen`` with the bit of its key).

    A word that is no pair is broken in a marker and skipped in a kprobe's line, which may print anything.
    Where its value stands is noted in ``marks``.
    """
    end = at
    while buf[end] > BLANK and buf[end] != _EQUALS:
        end += 1
    if buf[end] != _EQUALS:
        return (-1 if kind >= _FIRST_MARK else end), seen
    length, value_at = end - at, end + 1
    if length <= 8 * _KEY_WORDS:
        low = head64(buf, at, length)
        high = head64(buf, at + 8, length - 8) if length > 8 else _ZERO
        for key in range(_BOUNDS[kind, 0], _BOUNDS[kind, 1]):
            if _WORDS[key, 0] == low and _WORDS[key, 1] == high:
                bit = 1 << (key - _BOUNDS[kind, 0])
                if seen & bit:  # the last one counts: no shape tells that
                    marks[0, 0] = len(marks)
                seen |= bit
                if _TARGETS[key] == TEXT:
                    break
                target = _TARGETS[key]
                if buf[value_at] == 48 and buf[value_at + 1] == 120:
                    value, end = read_hex(buf, value_at)
                    if target < len(WIDE):
                        note(marks, np.int64(STEP_HEX), target, value_at, end)
                else:
                    decimal, end = read_decimal(buf, value_at)
                    value = np.uint64(decimal)
                    step = STEP_LEVEL if target == LEVEL else STEP_DECIMAL
                    note(marks, np.int64(step), target, value_at, end)
                fields[target] = value
                fits = target != LEVEL or value <= _LARGEST_LEVEL
                return (end if end > 0 and buf[end] <= BLANK and fits else -1), seen
    end = token_end(buf, end)
    note(marks, np.int64(STEP_SKIP), np.int64(0), value_at, end)
    return end, seen


@jit
def to_frames(kind, fields):
    """Turn what a control line says into what the table has.

    Ranges are of gfns, with the end instead of a count; the number of a slot has its address space in the
    upper half, as KVM_SET_USER_MEMORY_REGION and the probes have it.
    """
    if kind == _MARK_MEMSLOT:
        fields[NUM] |= fields[LEVEL] << _SPACE_SHIFT
    if kind == _SET_REGION:
        fields[GFN] >>= _PAGE_SHIFT
        fields[END] >>= _PAGE_SHIFT
    if HAS_COUNTED_END[kind]:
        fields[END] += fields[GFN]


@jit
def read_control(buf, at, kind, fields, marks):
    """Parse the text of a kprobe event, or of a marker behind its word.

    Returns the index behind it, -1 if it is malformed.
    Fills ``fields`` uint64[FIELDS], which the caller has zeroed, and ``marks`` as ``read_payload`` does.
    """
    marks[0, 0] = 0
    at = skip_blanks(buf, at)
    if kind < _FIRST_MARK:
        if buf[at] == _PAREN_OPEN:
            while buf[at] >= BLANK and buf[at] != _PAREN_CLOSE:
                at += 1
            if buf[at] != _PAREN_CLOSE:
                return -1
            at = skip_blanks(buf, at + 1)
        elif load64(buf, at) != _RAW_PLACE:
            return -1
    elif kind == _CLEAR_DIRTY_LOG:
        fields[CODE] = _ALL_ONES
    seen = np.int64(0)
    while buf[at] > BLANK:
        at, seen = _read_pair(buf, at, kind, fields, seen, marks)
        if at < 0:
            return -1
        at = skip_blanks(buf, at)
    if seen & _REQUIRED[kind] != _REQUIRED[kind] or buf[at] == ESC:  # a colour, amid the pairs
        return -1
    to_frames(kind, fields)
    return at
