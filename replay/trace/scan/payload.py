"""The text behind an event's name, for events of trace systems ``kvmmmu`` and ``kvm``.

``FORMATS`` holds the kernel's own print formats, one line a variant; a small table of steps is made
from them when this module is imported, and ``read_payload`` is the one jitted interpreter of it.
Texts: arch/x86/kvm/mmu/mmutrace.h and include/trace/events/kvm.h, Linux 3.11 to 7.x.
"""

from __future__ import annotations

import re

import numpy as np

from replay.jit import jit
from replay.schema import ROLE_QUADRANT_SHIFT, Flag, Kind, Role
from replay.trace.scan.lex import (
    BLANK,
    ESC,
    WORD_MASKS,
    byte_at,
    head64,
    load64,
    read_decimal,
    read_hex,
    skip_blanks,
    text_differs,
    token_end,
    words_of,
)

WIDE = ("gfn", "addr", "spte", "old_spte", "sptep", "end", "code", "num")
"""The 64-bit payload columns in the order of the rows of the scanner's ``wide`` array."""
GFN, ADDR, SPTE, OLD_SPTE, SPTEP, END, CODE, NUM, LEVEL, FLAGS, ROLE = range(11)
FIELDS = 11
"""Places of the array that the readers of control lines fill: those of ``WIDE``, then the narrow columns."""

FORMATS: dict[Kind, tuple[str, ...]] = {
    Kind.PAGETABLE_WALK: ("addr {addr:x} pferr {code:x}",),
    Kind.PAGING_ELEMENT: ("pte {spte:x} level {level}",),
    Kind.SET_ACCESSED_BIT: ("gpa {addr:x}",),
    Kind.SET_DIRTY_BIT: ("gpa {addr:x}",),
    Kind.WALKER_ERROR: ("pferr {code:x}",),
    Kind.GET_PAGE: ("{page}",),
    Kind.SYNC_PAGE: ("{page}",),
    Kind.UNSYNC_PAGE: ("{page}",),
    Kind.PREPARE_ZAP_PAGE: ("{page}",),
    Kind.MARK_MMIO_SPTE: ("sptep:{sptep:p} gfn {gfn:x} access {code:x} gen {num:x}",),
    Kind.HANDLE_MMIO_PAGE_FAULT: ("addr:{addr:x} gfn {gfn:x} access {code:x}",),
    Kind.FAST_PAGE_FAULT: (
        "vcpu {num:d} gva {addr:x} error_code {code:f} sptep {sptep:p} old {old_spte:x} new {spte:x} "
        "spurious {SPURIOUS} fixed {FIXED}",
    ),
    Kind.ZAP_ALL_FAST: ("kvm-mmu-valid-gen {code:x} used_pages {num:x}",),
    Kind.CHECK_MMIO_SPTE: ("spte {spte:x} kvm_gen {num:x} spte-gen {code:x} valid {VALID}",),
    Kind.SET_SPTE: ("gfn {gfn:x} spte {spte:x} ({skip} level {level} at {sptep:x}",),
    Kind.SPTE_REQUESTED: ("gfn {gfn:x} pfn {num:x} level {level}",),
    Kind.TDP_MMU_SPTE_CHANGED: (
        "as id {num:d} gfn {gfn:x} level {level} old_spte {old_spte:x} new_spte {spte:x}",
    ),
    Kind.SPLIT_HUGE_PAGE: ("gfn {gfn:x} spte {spte:x} level {level} errno {num:d}",),
    Kind.PAGE_FAULT: (
        "vcpu {num:d} rip {skip} address {addr:x} error_code {code:x}",
        "{num:none}address {addr:x} error_code {code:x}",
    ),
    Kind.UNMAP_HVA_RANGE: ("mmu notifier unmap range: {addr:x} -- {end:x}",),
}

(
    STEP_END,
    STEP_HEX,
    STEP_DECIMAL,
    STEP_LEVEL,
    STEP_FLAG,
    STEP_POINTER,
    STEP_ERROR_CODE,
    STEP_SKIP,
    STEP_TEXT,
    STEP_NONE,
    STEP_PAGE,
) = range(11)
_STEP_TEXT_LENGTH = 16
STEP_PLACES = 8
_NEXT_STEP, _STEP_FIELD, _STEP_LENGTH, _STEP_TEXT = (np.uint64(place) for place in (STEP_PLACES, 1, 2, 4))
_STEP_OF_SPEC = {
    "x": STEP_HEX,
    "d": STEP_DECIMAL,
    "p": STEP_POINTER,
    "f": STEP_ERROR_CODE,
    "none": STEP_NONE,
}


def _field_step(field: str) -> tuple[int, int]:
    name, _, spec = field.partition(":")
    if spec:
        return _STEP_OF_SPEC[spec], WIDE.index(name)
    if name in ("level", "skip", "page"):
        return {"level": STEP_LEVEL, "skip": STEP_SKIP, "page": STEP_PAGE}[name], 0
    return STEP_FLAG, int(Flag[name])


def _compile_formats() -> tuple[np.ndarray, np.ndarray]:
    """(steps uint64[n * 8], where the first of each kind begins uint64[256, 3]).

    A step is what it does, its field or flag, the length of the text before it, one place free; then that
    text as two words, and their masks.
    The second start is that of the variant whose text begins with the third, a letter; 0 none.
    """
    steps: list[tuple[int, int, int]] = []
    texts: list[str] = []
    starts = np.zeros((256, 3), np.uint64)
    for kind, variants in FORMATS.items():
        for number, form in enumerate(variants):
            starts[kind, number] = STEP_PLACES * len(steps)
            if number:
                starts[kind, 2] = ord(form.partition("}")[2][0])
            for literal, field in re.findall(r"([^{]*)\{([^}]*)\}", form):
                while len(literal) > _STEP_TEXT_LENGTH:
                    texts.append(literal[:_STEP_TEXT_LENGTH])
                    steps.append((STEP_TEXT, 0, _STEP_TEXT_LENGTH))
                    literal = literal[_STEP_TEXT_LENGTH:]
                texts.append(literal)
                steps.append((*_field_step(field), len(literal)))
            texts.append("")
            steps.append((STEP_END, 0, 0))
    rows = np.zeros((len(steps), STEP_PLACES), np.uint64)
    for row, step, text in zip(rows, steps, texts, strict=True):
        words, masks = words_of(text)
        row[:3] = step
        row[4 : 4 + len(words)] = words
        row[6 : 6 + len(masks)] = masks
    return rows.ravel(), starts


_STEPS, _STARTS = _compile_formats()

MARKS = 12
MARK_STEP, MARK_COLUMN, MARK_START, MARK_END = range(4)
"""What ``read_payload`` notes of a number or word: the step that read it, its column, where it begins and
where it ends."""

# the words of ``pferr`` and of ``error_code``: kvm_mmu_trace_pferr_flags
_ERROR_BITS = {"P": 0, "W": 1, "U": 2, "RSVD": 3, "F": 4, "PK": 5, "SS": 6, "SGX": 15}
_ERROR_WORDS = np.array([words_of(word)[0][0] for word in _ERROR_BITS], np.uint64)
_ERROR_VALUES = np.array([1 << bit for bit in _ERROR_BITS.values()], np.uint64)

# the places of the words between the level and the root count of a PAGE text, as bits in their order
_IN_GPTE, _IN_QUADRANT, _IN_DIRECT, _IN_ACCESS, _IN_INVALID, _IN_NXE, _IN_AD = (1 << n for n in range(7))
_IN_EVERY_ROLE = _IN_QUADRANT | _IN_ACCESS | _IN_NXE
# those words that are always the same: their place, and what they mean
_ROLE_BITS = {
    "4-byte": (_IN_GPTE, Role.HAS_4_BYTE_GPTE),
    "8-byte": (_IN_GPTE, 0),
    "pae": (_IN_GPTE, 0),
    "direct": (_IN_DIRECT, Role.DIRECT),
    "invalid": (_IN_INVALID, Role.INVALID),
    "nxe": (_IN_NXE, Role.EFER_NX),
    "!nxe": (_IN_NXE, 0),
    "ad": (_IN_AD, 0),
    "!ad": (_IN_AD, Role.AD_DISABLED),
}
_ROLE_WORDS = np.array([words_of(word)[0][0] for word in _ROLE_BITS], np.uint64)
_ROLE_PLACES = np.array([place for place, _ in _ROLE_BITS.values()], np.int64)
_ROLE_VALUES = np.array([int(bit) for _, bit in _ROLE_BITS.values()], np.uint64)


def _word(text: str) -> np.uint64:
    return np.uint64(words_of(text)[0][0])


_SP_BLANK, _GEN_BLANK, _GFN_BLANK, _ROLE_BLANK = map(_word, ("sp ", "gen ", "gfn ", "role "))
_ROOT = _word("root")
_SYNC, _UNSYNC, _NEW, _EXISTING = map(_word, ("sync", "unsync", "new", "existing"))

_IS_ACCESS = np.uint64(1)  # no access bit: marks what may stand in an access text
_ACCESS_LETTERS = np.zeros(256, np.uint64)
_ACCESS_BITS = {"r": Role.ACC_READ, "w": Role.ACC_WRITE, "u": Role.ACC_USER, "x": Role.ACC_EXEC}
for _letter, _bit in _ACCESS_BITS.items():
    _ACCESS_LETTERS[ord(_letter)] = _bit
_ACCESS_LETTERS[ord("-")] = _IS_ACCESS

_ACC_READ, _ACCESS, _LEVEL = np.uint64(Role.ACC_READ), np.uint64(Role.ACCESS), np.uint64(Role.LEVEL)
_HAS_4_BYTE_GPTE, _GEN_BIT = np.uint64(Role.HAS_4_BYTE_GPTE), np.uint64(Role.GEN)
_QUADRANT_SHIFT = np.uint64(ROLE_QUADRANT_SHIFT)
_CREATED, _UNSYNC_FLAG = int(Flag.CREATED), int(Flag.UNSYNC)
_ZERO, _ONE, _MINUS_ONE = np.uint64(0), np.uint64(1), np.uint64(2**64 - 1)
_GET_PAGE = int(Kind.GET_PAGE)
_COMMA = 44


@jit
def note(marks, step, column, start, end):
    """Add a row to ``marks`` int64[MARKS, 4] if there is room; the first says how many follow."""
    n = marks[0, 0] + 1
    if n < len(marks):
        marks[0, 0] = n
        marks[n, MARK_STEP], marks[n, MARK_COLUMN] = step, column
        marks[n, MARK_START], marks[n, MARK_END] = start, end


@jit
def ends_payload(buf, at):
    """A payload may end before the byte at ``at``: a blank, or the comma of what a patched kernel adds.

    A digit after the comma is of the same number, written with separators; ESC begins a terminal's colour.
    """
    byte = byte_at(buf, at)
    if byte == _COMMA:
        return not 48 <= byte_at(buf, at + 1) <= 57
    return byte <= BLANK and byte != ESC


@jit
def _token_word(buf, at, end):
    """The token ``buf[at:end]`` as one word; 0 if it is longer than 8 bytes."""
    return head64(buf, at, end - at) if end - at <= 8 else _ZERO


@jit
def _word_end(buf, at):
    """As ``token_end``, of a token that a comma may follow."""
    while byte_at(buf, at) > BLANK and byte_at(buf, at) != _COMMA:
        at += 1
    return at


@jit
def _read_role(buf, at):
    """(role, index of ``root``) of the words behind a PAGE text's level; index -1 if they make no role.

    ``[N-byte|pae ]qQ[ direct] ACCESS[ invalid] [!]nxe [[!]ad ]``, in this order: a word that was cut in two
    or that nobody knows would mean another page.
    """
    role = _ZERO
    seen = np.int64(0)
    while True:
        at = skip_blanks(buf, at)
        end = token_end(buf, at)
        word = _token_word(buf, at, end)
        if word == _ROOT or word == _ZERO:
            break
        access, place = _ZERO, np.int64(0)
        if 3 <= end - at <= 4:
            access = _ACC_READ if end - at == 3 else _IS_ACCESS
            for n in range(at, end):
                letter = _ACCESS_LETTERS[byte_at(buf, n)]
                access = access | letter if letter != _ZERO and access != _ZERO else _ZERO
        if access != _ZERO:
            role |= access & _ACCESS
            place = np.int64(_IN_ACCESS)
        elif byte_at(buf, at) == 113 and 48 <= byte_at(buf, at + 1) <= 51 and end == at + 2:
            role |= np.uint64(byte_at(buf, at + 1) - 48) << _QUADRANT_SHIFT
            place = np.int64(_IN_QUADRANT)
        else:
            for n in range(len(_ROLE_WORDS)):
                if word == _ROLE_WORDS[n]:
                    role |= _ROLE_VALUES[n]
                    place = _ROLE_PLACES[n]
        if place <= seen:  # not above all before it
            return role, np.int64(-1)
        seen |= place
        at = end
    if seen & _IN_GPTE == 0:  # before 5.1 only 8-byte entries were marked, by "pae"
        role |= _HAS_4_BYTE_GPTE
    is_whole = word == _ROOT and seen & _IN_EVERY_ROLE == _IN_EVERY_ROLE
    return role, (at if is_whole else np.int64(-1))


@jit
def _read_page(buf, at, is_get_page, row, rows, marks):
    """KVM_MMU_PAGE_PRINTK of mmutrace.h: index behind it, -1 if the text is something else.

    ``sp [gen G ]gfn X [l]L ROLE root R sync|unsync[ new|existing]``; other forms of text come with the words
    of ``replay.trace.roles``: ``role WORD`` for level and role.
    """
    if load64(buf, at) & WORD_MASKS[3] != _SP_BLANK:
        return -1
    at += 3
    role = _ZERO
    if load64(buf, at) & WORD_MASKS[4] == _GEN_BLANK:
        generation, at = read_hex(buf, at + 4)  # hex before 5.5, decimal since: the lowest bit is the same
        if at < 0 or byte_at(buf, at) != BLANK:
            return -1
        if generation & _ONE:
            role = _GEN_BIT
        at += 1
    if load64(buf, at) & WORD_MASKS[4] != _GFN_BLANK:
        return -1
    start = at + 4
    rows.wide[GFN, row], at = read_hex(buf, start)
    note(marks, np.int64(STEP_HEX), np.int64(GFN), start, at)
    if at < 0 or byte_at(buf, at) != BLANK:
        return -1
    at += 1
    if load64(buf, at) & WORD_MASKS[5] == _ROLE_BLANK:
        word, at = read_hex(buf, at + 5)
        level = np.int64(word & _LEVEL)
        role |= word
        if at >= 0:
            at = skip_blanks(buf, at)
    else:
        at += byte_at(buf, at) == 108  # "l" before the level, since 5.1
        start = at
        level, at = read_decimal(buf, start)
        if at < 0 or byte_at(buf, at) != BLANK:
            return -1
        note(marks, np.int64(STEP_LEVEL), np.int64(0), start, at)
        word, at = _read_role(buf, at)
        role |= word | (np.uint64(level) & _LEVEL)
    if at < 0 or not 1 <= level <= 15:
        return -1
    rows.level[row], rows.role[row] = level, np.uint32(role)
    start = skip_blanks(buf, at + 4)
    root_count, at = read_decimal(buf, start)
    if at < 0:
        return -1
    note(marks, np.int64(STEP_DECIMAL), np.int64(NUM), start, at)
    rows.wide[NUM, row] = np.uint64(root_count)
    at = skip_blanks(buf, at)
    end = _word_end(buf, at)
    word = _token_word(buf, at, end)
    if word != _SYNC and word != _UNSYNC:
        return -1
    flags = _UNSYNC_FLAG if word == _UNSYNC else 0
    if is_get_page:
        at = skip_blanks(buf, end)
        end = _word_end(buf, at)
        word = _token_word(buf, at, end)
        if word == _NEW:
            flags |= _CREATED
        elif word != _EXISTING:
            return -1
    rows.flags[row] = flags
    return end


@jit
def read_error_code(buf, at):
    """(code, index behind it) of flags, ``P|W|U|0x100000000`` or nothing; index -1 if one is unknown."""
    code = _ZERO
    while byte_at(buf, at) > BLANK:
        end = at
        while byte_at(buf, end) > BLANK and byte_at(buf, end) != 124:
            end += 1
        if byte_at(buf, at) == 48:
            number, number_end = read_hex(buf, at)
            if number_end != end:
                return code, np.int64(-1)
            code |= number
        else:
            word = _token_word(buf, at, end)
            bit = _ZERO
            for n in range(len(_ERROR_WORDS)):
                if word == _ERROR_WORDS[n]:
                    bit = _ERROR_VALUES[n]
            if bit == _ZERO:
                return code, np.int64(-1)
            code |= bit
        at = end + 1 if byte_at(buf, end) == 124 else end
    return code, at


@jit
def read_payload(buf, at, kind, row, rows, marks):
    """Parse the text at ``at`` of an event of ``kind``: index behind it, -1 if it is malformed.

    Fills the payload columns of row ``row``, which are zeros before, by the steps of the kind's format, and
    ``marks`` int64[MARKS, 4] with where their numbers stand.
    """
    marks[0, 0] = 0
    step = _STARTS[kind, 0]
    if byte_at(buf, at) == _STARTS[kind, 2]:
        step = _STARTS[kind, 1]
    while True:
        if text_differs(buf, at, _STEPS, np.int64(step + _STEP_TEXT)):
            return np.int64(-1)
        what, where = _STEPS[step], _STEPS[step + _STEP_FIELD]
        at += np.int64(_STEPS[step + _STEP_LENGTH])
        start = at
        if what == STEP_HEX:
            rows.wide[where, row], at = read_hex(buf, at)
        elif what == STEP_LEVEL:
            value, at = read_decimal(buf, at)
            if not 1 <= value <= 15:
                at = -1
            rows.level[row] = value
        elif what == STEP_END:
            return at if ends_payload(buf, at) else np.int64(-1)
        elif what == STEP_DECIMAL:
            value, at = read_decimal(buf, at)
            rows.wide[where, row] = np.uint64(value)
        elif what == STEP_FLAG:
            value, at = read_decimal(buf, at)
            if value != 0:
                rows.flags[row] |= where
        elif what == STEP_POINTER:
            number, at = read_hex(buf, at)
            if at >= 0 and byte_at(buf, at) <= BLANK:
                rows.wide[where, row] = number
                what = np.uint64(STEP_HEX)
            else:  # a word such as (null)
                at = token_end(buf, start)
        elif what == STEP_ERROR_CODE:
            rows.wide[CODE, row], at = read_error_code(buf, at)
        elif what == STEP_SKIP:
            at = token_end(buf, at)
        elif what == STEP_NONE:
            rows.wide[where, row] = _MINUS_ONE
        elif what == STEP_PAGE:
            at = _read_page(buf, at, kind == _GET_PAGE, row, rows, marks)
        if at < 0:
            return np.int64(-1)
        if what == STEP_HEX or what == STEP_LEVEL or what == STEP_DECIMAL or what == STEP_SKIP:
            note(marks, np.int64(what), np.int64(where), start, at)
        step += _NEXT_STEP
