"""An event in a line of text: its name, its payload or the text of a marker, into the row at hand."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.schema import Kind
from replay.trace.scan.control_lines import HAS_COUNTED_END, read_control
from replay.trace.scan.header import SEEN_AT, SEEN_LENGTH, SLOTS
from replay.trace.scan.known_shapes import learn_shape, read_by_shape
from replay.trace.scan.lex import (
    ADD,
    BLANK,
    COLON,
    ESC,
    LOOK_UP,
    PADDING,
    RETURN,
    WORD_MASKS,
    byte_at,
    head64,
    intern,
    keep_apart,
    line_end,
    load64,
    name_end,
    read_decimal,
    same_bytes,
    skip_blanks,
    slot_of,
    token_end,
    words_of,
)
from replay.trace.scan.payload import FIELDS, NUM, read_payload
from replay.trace.scan.raw_fields import is_raw, read_raw
from replay.trace.scan.rows import clear_row, write_fields
from replay.trace.scan.state import INCOMPLETE, MAX_NAME, OTHER, PRINT, PRINTK
from replay.trace.text.decorations import SPELLED_ESC, STRANGE
from replay.trace.text.vmm_events import BROKEN, FAILED, read_vmm_marker

_MARK_TEXT, _MARK_UNKNOWN, _SCENARIO = int(Kind.MARK_TEXT), int(Kind.MARK_UNKNOWN), int(Kind.MARK_SCENARIO)
_FIRST_CONTROL = int(Kind.SET_REGION)
_ZERO, _MINUS_ONE = np.uint64(0), np.uint64(2**64 - 1)
_REPLAY, _CPU = words_of("replay:")[0][0], words_of("CPU:")[0][0]
_IP, _BUF, _LOST_WORD = (words_of(text)[0][0] for text in ("ip=", "buf=", "[LOST"))
_PERF_RECORD, _ORD_LOST = words_of("PERF_RECORD_LOST")[0]
_SEEN_NUMBER, _SEEN_GROUP = 2, 3
_STRANGE, _SPELLED_ESC = (
    np.array([int.from_bytes(text, "little") for text in texts], np.uint64)
    for texts in (STRANGE, SPELLED_ESC)
)
_STRANGE_LENGTHS, _SPELLED_LENGTHS = (np.array(list(map(len, texts))) for texts in (STRANGE, SPELLED_ESC))
_FIRST_LEAD = min(text[0] for text in STRANGE)
_LOW_BITS, _HIGH_BITS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_ESCAPES, _BRACKETS = np.uint64(ESC) * _LOW_BITS, np.uint64(91) * _LOW_BITS
_OPEN, _UPPER_E, _UPPER_L, _UPPER_V = 91, 69, 76, 86
_FORM_FEED = 12

# what the readers of a line return beside kinds
IGNORED_LINE, MALFORMED_LINE, NO_ROOM, NO_BASE, DECORATED = 0, -10, -11, -12, -13


@jit
def _find_name(buf, at, names, arena):
    """The name at ``at`` without its group ``kvmmmu:``: (number or -1, start, end or -1 without colon)."""
    while True:
        end = name_end(buf, at)
        if buf[end] != COLON or end == at:
            return np.int64(-1), at, np.int64(-1)
        if buf[end + 1] <= BLANK:
            return intern(buf, at, end, LOOK_UP, names, arena), at, end
        at = end + 1


@jit
def _look_up_name(buf, at, names, arena, seen):
    """As ``_find_name``; ``seen`` int64[SLOTS, SEEN] knows some of the last names by their second word."""
    slot = slot_of(buf, at + 8, SLOTS)
    length = seen[slot, SEEN_LENGTH]
    if seen[slot, SEEN_AT] >= 0 and same_bytes(buf, seen[slot, SEEN_AT], at, length):
        return seen[slot, _SEEN_NUMBER], at + seen[slot, _SEEN_GROUP], at + length - 2
    number, name, end = _find_name(buf, at, names, arena)
    if number >= 0 and 8 <= end + 2 - at < PADDING:
        seen[slot, SEEN_AT], seen[slot, SEEN_LENGTH] = at, end + 2 - at
        seen[slot, _SEEN_NUMBER], seen[slot, _SEEN_GROUP] = number, name - at
    return number, name, end


@jit
def find_event(buf, at, end, names, arena, kinds):
    """Index of the first word of ``buf[at:end]`` that names one of our events or tells of lost ones; -1."""
    keep_apart()
    at = skip_blanks(buf, at)
    while at < end:
        word = load64(buf, at)
        if word == _PERF_RECORD:  # perf's own records say something of the machine, but for those lost
            return at if load64(buf, at + 8) == _ORD_LOST else np.int64(-1)
        if word & WORD_MASKS[5] == _LOST_WORD:
            return at
        number, _, _ = _find_name(buf, at, names, arena)
        if number >= 0 and kinds[number, 0] != OTHER:
            return at
        word_end = token_end(buf, at)
        at = skip_blanks(buf, word_end if word_end > at else at + 1)
    return -1


@jit
def _begins_name(buf, start, end, names, arena, kinds):
    """``buf[start:end]`` is the beginning of a name of ours, or a whole one: its line has been cut off."""
    length = end - start
    for row in range(1, len(names)):
        number = names[row, 0] - 1
        if number >= 0 and names[row, 3] >= length and kinds[number, 0] != OTHER:
            name, n = names[row, 2], 0
            while n < length:
                if head64(arena, name + n, length - n) != head64(buf, start + n, length - n):
                    break
                n += 8
            if n >= length:
                return True
    return False


@jit
def read_marker(buf, at, names, names_arena, kinds, texts, texts_arena, fields, marks):
    """A marker's text at ``at``: (kind, MALFORMED_LINE or NO_ROOM; number of the text)."""
    keep_apart()
    end = line_end(buf, at)
    while end > at and (buf[end - 1] == RETURN or buf[end - 1] == _FORM_FEED or buf[end - 1] == 0):
        end -= 1
    kind = np.int64(_MARK_TEXT)
    if load64(buf, at) & WORD_MASKS[7] == _REPLAY:
        at = skip_blanks(buf, at + 7)
        word_end = token_end(buf, at)
        word = intern(buf, at - 1, word_end, LOOK_UP, names, names_arena)
        kind = kinds[word, 0] if word >= 0 else np.int64(_MARK_UNKNOWN)
        if word < 0 and word_end >= end and _begins_name(buf, at - 1, word_end, names, names_arena, kinds):
            return np.int64(MALFORMED_LINE), np.int64(-1)
        has_pairs = kind != _MARK_UNKNOWN and kind != _SCENARIO
        if has_pairs and read_control(buf, word_end, kind, fields, marks) < 0:
            return np.int64(MALFORMED_LINE), np.int64(-1)
    else:
        read = read_vmm_marker(buf, at, fields)
        if read == BROKEN:
            return np.int64(MALFORMED_LINE), np.int64(-1)
        if read > 0:
            kind = read
        elif read == FAILED:
            clear_fields(fields)
    text = intern(buf, at, end if end > at else at, ADD, texts, texts_arena)
    return (kind if text >= 0 else np.int64(NO_ROOM)), text


@jit
def _read_fields(buf, at, text, kind, row, rows, scanner):
    """Read the text at ``text`` of the event whose name is at ``at`` into row ``row``, and learn its shape.

    Returns the index behind it, -1 if it is malformed.
    """
    keep_apart()
    fields, marks = scanner.fields, scanner.marks
    has_shape = False
    clear_fields(fields)
    if kind >= _FIRST_CONTROL:
        end = read_control(buf, text, kind, fields, marks)
        has_shape = not HAS_COUNTED_END[kind]
    elif is_raw(buf, text):
        end = read_raw(buf, text, kind, scanner.state.base == 16, fields)
    else:
        end = read_payload(buf, text, kind, row, rows, marks)
        has_shape = True
    write_fields(row, rows, fields)
    if end < 0:
        clear_row(rows, row)
    elif has_shape and buf[end] <= BLANK:
        learn_shape(buf, at, end, kind, row, rows, marks, scanner.places, scanner.shapes, scanner.ranges)
    return np.int64(end)


@jit
def is_decorated(buf, start, end):
    """``buf[start:end]`` has what is no part of a trace: as ``replay.trace.decorations``."""
    for block in range(start, end, 8):
        word = load64(buf, block)
        escape, bracket = word ^ _ESCAPES, word ^ _BRACKETS
        marks = ((escape - _LOW_BITS) & ~escape) | ((bracket - _LOW_BITS) & ~bracket) | word
        if marks & _HIGH_BITS != _ZERO:  # as in few words of 8 bytes
            for at in range(block, min(block + 8, end)):
                if _is_decoration(buf, start, at):
                    return True
    return False


@jit
def _is_decoration(buf, start, at):
    """One of what ``is_decorated`` looks for is at ``at``, or has its bracket there."""
    byte = byte_at(buf, at)
    if byte == _OPEN:
        for n in range(len(_SPELLED_ESC)):
            length = _SPELLED_LENGTHS[n]
            if at - start >= length and head64(buf, at - length, length) == _SPELLED_ESC[n]:
                return True
    elif byte >= _FIRST_LEAD:
        for n in range(len(_STRANGE)):
            if head64(buf, at, _STRANGE_LENGTHS[n]) == _STRANGE[n]:
                return True
    return byte == ESC


@jit
def _without_name(buf, at, names, arena, kinds):
    """What the line is whose text at ``at`` does not begin with an event's name."""
    keep_apart()
    end = line_end(buf, at)
    if (
        find_event(buf, at, end, names, arena, kinds) >= 0
    ):  # of another form: something stands before the name
        return np.int64(MALFORMED_LINE)
    word = name_end(buf, at)
    is_alone = word > at and buf[word] != COLON and skip_blanks(buf, word) >= end - (buf[end - 1] == RETURN)
    if is_alone and _begins_name(buf, at, word, names, arena, kinds):
        return np.int64(MALFORMED_LINE)
    return np.int64(DECORATED if is_decorated(buf, at, end) else IGNORED_LINE)


@jit
def read_event(buf, at, rows, scanner):
    """The event whose name is at ``at``: (kind or a word below 1 that says why there is none; text number).

    The payload stands in row ``state.rows`` then, that of a marker in ``fields``.
    """
    names, names_arena = scanner.names
    kinds, state, seen = scanner.kinds, scanner.state, scanner.seen_names
    row = np.uint64(state.rows)
    places, shapes, ranges = scanner.places, scanner.shapes, scanner.ranges
    known, text = read_by_shape(buf, at, row, rows, places, shapes, ranges)
    if known > 0:
        state.done = text
        return known, np.int64(-1)
    start = skip_blanks(buf, at) if buf[at] == BLANK else at  # perf script pads names
    number, name, end = _look_up_name(buf, start, names, names_arena, seen)
    if end < 0:  # a line of another form may have something before the name
        return _without_name(buf, at, names, names_arena, kinds), np.int64(-1)
    text = skip_blanks(buf, end + 1)
    kind = kinds[number, 0] if number >= 0 else np.int64(OTHER)
    if kind == OTHER:
        if load64(buf, text) & WORD_MASKS[7] != _REPLAY:
            if number < 0 and is_decorated(buf, name, end):
                return np.int64(DECORATED), np.int64(-1)
            if number < 0 and end - name <= MAX_NAME:
                number = intern(buf, name, end, ADD, names, names_arena)
            if number >= 0:
                kinds[number, 1] += 1
            return np.int64(IGNORED_LINE), np.int64(-1)
        # else trace_printk: the name is the calling function's
    elif kind == INCOMPLETE:
        kinds[number, 1] += 1
        return np.int64(IGNORED_LINE), np.int64(-1)
    elif kind == PRINT or kind == PRINTK:
        place = token_end(buf, text)
        if buf[place - 1] == COLON:
            text = place + 1 if buf[place] == BLANK else place
        elif load64(buf, text) & WORD_MASKS[3] == _IP and load64(buf, place + 1) & WORD_MASKS[4] == _BUF:
            text = place + 5  # raw fields
        if kind == PRINTK and load64(buf, text) & WORD_MASKS[7] != _REPLAY:
            kinds[number, 1] += 1
            return np.int64(IGNORED_LINE), np.int64(-1)
    elif kind == _MARK_TEXT:
        if load64(buf, text) & WORD_MASKS[7] != _REPLAY:
            text = end + 2 if buf[end + 1] == BLANK else end + 1  # further blanks belong to the text
    elif kind < _FIRST_CONTROL and state.base == 0 and is_raw(buf, text):
        return np.int64(NO_BASE), np.int64(-1)
    else:
        text = _read_fields(buf, at, text, kind, row, rows, scanner)
        if text < 0:
            return np.int64(MALFORMED_LINE), np.int64(-1)
        state.done = text
        return kind, np.int64(-1)
    if is_decorated(buf, text, line_end(buf, text)):
        return np.int64(DECORATED), np.int64(-1)
    texts, texts_arena = scanner.texts
    fields, marks = scanner.fields, scanner.marks
    clear_fields(fields)
    return read_marker(buf, text, names, names_arena, kinds, texts, texts_arena, fields, marks)


@jit
def is_cut_header(buf, at):
    """The line before the one at ``at`` ends in a time and its colon: what follows that is on this one."""
    end = at - 2
    while end > 0 and (buf[end] == BLANK or buf[end] == RETURN):
        end -= 1
    return end > 0 and buf[end] == COLON and 48 <= buf[end - 1] <= 57


@jit
def read_lost(buf, at, fields, state):
    """True if the line is ``CPU:n [LOST m EVENTS]``, or ``CPU:n [m EVENTS DROPPED]`` of trace-cmd."""
    at = skip_blanks(buf, at)
    if load64(buf, at) & WORD_MASKS[4] != _CPU:
        return False
    cpu, at = read_decimal(buf, at + 4)
    if at < 0 or buf[skip_blanks(buf, at)] != _OPEN:
        return False
    at = skip_blanks(buf, at) + 1
    if buf[at] == _UPPER_L:
        at = skip_blanks(buf, token_end(buf, at))
    lost, end = read_decimal(buf, at)
    if end >= 0:
        at = skip_blanks(buf, end)
    if buf[at] != _UPPER_E or buf[at + 1] != _UPPER_V:
        return False
    fields[NUM] = np.uint64(lost) if end >= 0 else _MINUS_ONE
    state.cpu = cpu
    state.lost += lost if end >= 0 else 1
    return True


@jit
def clear_fields(fields):
    """Set all fields of a payload to 0."""
    for column in range(FIELDS):
        fields[column] = _ZERO
