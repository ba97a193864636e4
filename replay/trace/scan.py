"""The byte scanner: one jitted pass from trace text to the columns of the event table.

It stops, to be called again, wherever it meets something new that Python must look at: a task, a
comment, a full table.  All of these are rare.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import by_reference, jit, kernel
from replay.schema import EVENT_NAMES, Kind
from replay.trace.control import HAS_COUNTED_END, MARK_WORDS, read_control
from replay.trace.dialect import (
    COMM,
    CPU,
    END,
    FIRST_LINE,
    HEADER_STATE,
    NEW_TASK,
    NO_HEADER,
    PID,
    SEEN_AT,
    SEEN_LENGTH,
    SLOTS,
    START,
    TASK,
    TGID,
    TIME,
    read_header,
    search_header,
)
from replay.trace.lex import (
    ADD,
    BLANK,
    COLON,
    LOOK_UP,
    NEWLINE,
    PADDING,
    RETURN,
    WORD_MASKS,
    Strings,
    byte_at,
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
from replay.trace.pages import INCOMPLETE_NAMES
from replay.trace.payload import FIELDS, FLAGS, LEVEL, NUM, ROLE, WIDE, read_payload
from replay.trace.raw import is_raw, read_raw
from replay.trace.shape import clear_row, learn_shape, read_by_shape

MAX_MALFORMED = 100
MAX_NAMES, MAX_NAME = 2048, 64
"""How many names of other events are counted by name, and their length; the rest are just ignored lines."""

# places of the array ``state`` behind those of ``replay.trace.dialect``
# (DONE: the line has been read up to there; BASE: of numbers in raw fields, 0 not known)
# (DOUBTS: ask at each so many malformed lines, by stopping, 0 never; GIVEN_UP: but not at the one that
# begins there; FIRST_TIME and LAST_TIME: the least and the largest time of a row that has one)
LINES, ROWS, KVMMMU, IGNORED, MALFORMED, LOST, STOP, DONE, DOUBTS, GIVEN_UP, BASE = range(
    HEADER_STATE, HEADER_STATE + 11
)
FIRST_TIME, LAST_TIME = HEADER_STATE + 11, HEADER_STATE + 12
STATE = HEADER_STATE + 13
NEVER = np.iinfo(np.int64).max
"""FIRST_TIME where no row has a time."""

# why ``scan`` stopped: ``state[STOP]``; ``buf[state[START]:state[END]]`` is what is new
AT_END, ROWS_FULL, TEXTS_FULL, TASK_IS_NEW, COMMENT, DOUBTFUL, BASE_IS_NEW = range(7)

NO_TASK = 0
"""Number of the task of a line that names none."""

PRINT = 200
"""Stands for the events ``print`` and ``bprint``, whose text begins with a place and a colon."""
INCOMPLETE = 201
"""Kind of the names under which lines are counted that lack what a replay needs."""
OTHER = 0
"""Kind of the names of events of other kinds."""

NAMES: dict[str, int] = {
    **{EVENT_NAMES[kind]: int(kind) for kind in Kind if kind < Kind.MARK_VM_CREATE},
    "kvm_mmu_invalidate_zap_all_pages": int(Kind.ZAP_ALL_FAST),  # its name from 3.11 to 5.0
    "tracing_mark_write": int(Kind.MARK_TEXT),
    "print": PRINT,
    "bprint": PRINT,
    **dict.fromkeys(INCOMPLETE_NAMES, INCOMPLETE),
    **{f" {word}": int(kind) for word, kind in MARK_WORDS.items()},
}
"""Kinds by name.  The words of markers stand here with the blank before them, which no event's name has."""


class Rows(NamedTuple):
    """The columns that the scanner fills, and room for the one that it does not.

    The arrays start as zeros; a payload column is written only where it is not zero, so that the memory
    of columns that a trace does not use is never touched.
    """

    kind: np.ndarray  # uint8
    pid: np.ndarray  # int32
    tgid: np.ndarray  # int32
    comm: np.ndarray  # int32
    cpu: np.ndarray  # int16
    level: np.ndarray  # uint8
    flags: np.ndarray  # uint8
    role: np.ndarray  # uint32
    ts_ns: np.ndarray  # int64
    line: np.ndarray  # int64
    text: np.ndarray  # int32, number in ``Scanner.texts``, -1 none
    vm: np.ndarray  # int16, not filled here
    wide: np.ndarray  # uint64[8, n], rows as in ``replay.trace.payload.WIDE``


class Scanner(NamedTuple):
    """What the scanner keeps from call to call."""

    headers: Strings  # what stands left of the CPU column, as printed; number n is task n
    tasks: np.ndarray  # int64[n, dialect.TASK_PLACES] of each header
    names: Strings  # of events
    kinds: np.ndarray  # int64[MAX_NAMES, 2] of each name: kind; lines of other events
    texts: Strings  # of markers
    # int64[SLOTS, SEEN]: some headers as in ``dialect.read_header``, and some names: where one stood, the
    # length up to its text, its number, and the length of its group
    seen_headers: np.ndarray
    seen_names: np.ndarray
    # of texts, as in ``replay.trace.shape``
    places: np.ndarray  # int64[PLACES]
    shapes: np.ndarray  # int64[MAX_SHAPES, SHAPE]
    ranges: np.ndarray  # uint8[MAX_SHAPES, RANGES]
    marks: np.ndarray  # int64[MARKS, 4] as in ``replay.trace.payload``
    fields: np.ndarray  # uint64[payload.FIELDS]
    state: np.ndarray  # int64[STATE]
    malformed: np.ndarray  # int64[MAX_MALFORMED, 3]: begin, end and number of the first malformed lines


_MARK_TEXT, _MARK_UNKNOWN, _SCENARIO = int(Kind.MARK_TEXT), int(Kind.MARK_UNKNOWN), int(Kind.MARK_SCENARIO)
_LOST_EVENTS, _FIRST_CONTROL = int(Kind.LOST_EVENTS), int(Kind.SET_REGION)
_FIRST_MARK = int(Kind.MARK_VM_CREATE)
_LAST_KVMMMU = int(Kind.SPLIT_HUGE_PAGE)
_ZERO, _MINUS_ONE = np.uint64(0), np.uint64(2**64 - 1)
_REPLAY, _CPU = words_of("replay:")[0][0], words_of("CPU:")[0][0]
_IP, _BUF, _LOST_WORD, _PERF_RECORD = (words_of(text)[0][0] for text in ("ip=", "buf=", "[LOST", "PERF_REC"))
_SEEN_NUMBER, _SEEN_GROUP = 2, 3
_HASH, _OPEN, _UPPER_E, _UPPER_L, _UPPER_V = 35, 91, 69, 76, 86

# what the readers of a line return beside kinds
IGNORED_LINE, MALFORMED_LINE, NO_ROOM, NO_BASE = 0, -10, -11, -12

SHOWS_VM = np.zeros(256, np.bool_)
SHOWS_VM[[*range(1, _LAST_KVMMMU + 1), Kind.PAGE_FAULT, Kind.SET_REGION, Kind.COMMIT_REGION]] = True
"""Kinds that only a task of a VM's process can cause."""


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
def read_marker(buf, at, names, names_arena, kinds, texts, texts_arena, fields, marks):
    """A marker's text at ``at``: (kind, MALFORMED_LINE or NO_ROOM; number of the text)."""
    keep_apart()
    end = line_end(buf, at)
    if buf[end - 1] == RETURN:
        end -= 1
    kind = np.int64(_MARK_TEXT)
    if load64(buf, at) & WORD_MASKS[7] == _REPLAY:
        at = skip_blanks(buf, at + 7)
        word_end = token_end(buf, at)
        word = intern(buf, at - 1, word_end, LOOK_UP, names, names_arena)
        kind = kinds[word, 0] if word >= 0 else np.int64(_MARK_UNKNOWN)
        has_pairs = kind != _MARK_UNKNOWN and kind != _SCENARIO
        if has_pairs and read_control(buf, word_end, kind, fields, marks) < 0:
            return np.int64(MALFORMED_LINE), np.int64(-1)
    text = intern(buf, at, end if end > at else at, ADD, texts, texts_arena)
    return (kind if text >= 0 else np.int64(NO_ROOM)), text


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
def _find_event(buf, at, end, names, arena, kinds):
    """Index of the first word of ``buf[at:end]`` that names one of our events or tells of lost ones; -1."""
    keep_apart()
    at = skip_blanks(buf, at)
    while at < end:
        word = load64(buf, at)
        if word == _PERF_RECORD or word & WORD_MASKS[5] == _LOST_WORD:
            return at
        number, _, _ = _find_name(buf, at, names, arena)
        if number >= 0 and kinds[number, 0] != OTHER:
            return at
        word_end = token_end(buf, at)
        at = skip_blanks(buf, word_end if word_end > at else at + 1)
    return -1


@jit
def _read_fields(buf, at, text, kind, row, rows, scanner):
    """Read the text at ``text`` of the event whose name is at ``at`` into row ``row``, and learn its shape.

    Returns the index behind it, -1 if it is malformed.
    """
    keep_apart()
    fields, marks = scanner.fields, scanner.marks
    has_shape = False
    _clear_fields(fields)
    if kind >= _FIRST_CONTROL:
        end = read_control(buf, text, kind, fields, marks)
        has_shape = not HAS_COUNTED_END[kind]
    elif is_raw(buf, text):
        end = read_raw(buf, text, kind, scanner.state[BASE] == 16, fields)
    else:
        end = read_payload(buf, text, kind, row, rows, marks)
        has_shape = True
    write_fields(row, rows, fields)
    if end < 0:
        clear_row(rows, row)
    elif has_shape:
        learn_shape(buf, at, end, kind, row, rows, marks, scanner.places, scanner.shapes, scanner.ranges)
    return np.int64(end)


@jit
def _read_event(buf, at, rows, scanner):
    """The event whose name is at ``at``: (kind or a word below 1 that says why there is none; text number).

    The payload stands in row ``state[ROWS]`` then, that of a marker in ``fields``.
    """
    names, names_arena = scanner.names
    kinds, state, seen = scanner.kinds, scanner.state, scanner.seen_names
    row = np.uint64(state[ROWS])
    places, shapes, ranges = scanner.places, scanner.shapes, scanner.ranges
    known, text = read_by_shape(buf, at, row, rows, places, shapes, ranges)
    if known > 0:
        state[DONE] = text
        return known, np.int64(-1)
    start = skip_blanks(buf, at) if buf[at] == BLANK else at  # perf script pads names
    number, name, end = _look_up_name(buf, start, names, names_arena, seen)
    if end < 0:  # a line of another form may have something before the name
        event = _find_event(buf, at, line_end(buf, at), names, names_arena, kinds)
        return np.int64(IGNORED_LINE if event < 0 else MALFORMED_LINE), np.int64(-1)
    text = skip_blanks(buf, end + 1)
    kind = kinds[number, 0] if number >= 0 else np.int64(OTHER)
    if kind == OTHER:
        if load64(buf, text) & WORD_MASKS[7] != _REPLAY:
            if number < 0 and end - name <= MAX_NAME:
                number = intern(buf, name, end, ADD, names, names_arena)
            if number >= 0:
                kinds[number, 1] += 1
            return np.int64(IGNORED_LINE), np.int64(-1)
        # else trace_printk: the name is the calling function's
    elif kind == INCOMPLETE:
        kinds[number, 1] += 1
        return np.int64(IGNORED_LINE), np.int64(-1)
    elif kind == PRINT:
        place = token_end(buf, text)
        if buf[place - 1] == COLON:
            text = place + 1 if buf[place] == BLANK else place
        elif load64(buf, text) & WORD_MASKS[3] == _IP and load64(buf, place + 1) & WORD_MASKS[4] == _BUF:
            text = place + 5  # raw fields
    elif kind == _MARK_TEXT:
        text = end + 2 if buf[end + 1] == BLANK else end + 1  # further blanks belong to the text
    elif kind < _FIRST_CONTROL and state[BASE] == 0 and is_raw(buf, text):
        return np.int64(NO_BASE), np.int64(-1)
    else:
        text = _read_fields(buf, at, text, kind, row, rows, scanner)
        if text < 0:
            return np.int64(MALFORMED_LINE), np.int64(-1)
        state[DONE] = text
        return kind, np.int64(-1)
    texts, texts_arena = scanner.texts
    fields, marks = scanner.fields, scanner.marks
    _clear_fields(fields)
    return read_marker(buf, text, names, names_arena, kinds, texts, texts_arena, fields, marks)


@jit
def _read_lost(buf, at, fields, state):
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
    state[CPU] = cpu
    state[LOST] += lost if end >= 0 else 1
    return True


@jit
def _clear_fields(fields):
    for column in range(FIELDS):
        fields[column] = _ZERO


@jit
def end_row(kind, task, cpu, time, text, row, rows, tasks, state):
    """Complete row ``row``, whose payload has been written, and go to the next."""
    own = tasks[task]
    rows.kind[row] = kind
    rows.pid[row] = own[PID]
    rows.tgid[row] = own[TGID]
    rows.comm[row] = own[COMM]
    rows.cpu[row] = cpu
    rows.ts_ns[row] = time
    rows.line[row] = state[LINES]
    rows.text[row] = text
    if time > state[LAST_TIME]:
        state[LAST_TIME] = time
    if 0 < time < state[FIRST_TIME]:
        state[FIRST_TIME] = time
    state[ROWS] += 1
    if kind <= _LAST_KVMMMU:
        state[KVMMMU] += 1
    if SHOWS_VM[kind] and own[FIRST_LINE] == 0:
        own[FIRST_LINE] = state[LINES]


@jit
def write_fields(row, rows, fields):
    """Write the payload in ``fields`` into row ``row``."""
    for column in range(len(WIDE)):
        if fields[column] != _ZERO:
            rows.wide[column, row] = fields[column]
    if fields[LEVEL] != _ZERO:
        rows.level[row] = np.uint8(fields[LEVEL])
    if fields[FLAGS] != _ZERO:
        rows.flags[row] = np.uint8(fields[FLAGS])
    if fields[ROLE] != _ZERO:
        rows.role[row] = np.uint32(fields[ROLE])


@jit
def _scan(buf, at, stop, rows, scanner):
    """As ``scan``."""
    headers, headers_arena = scanner.headers
    names, names_arena = scanner.names
    tasks, kinds = scanner.tasks, scanner.kinds
    fields, state, malformed = scanner.fields, scanner.state, scanner.malformed
    seen_headers, seen_names = scanner.seen_headers, scanner.seen_names
    for slot in range(SLOTS):  # they are known by places of ``buf``
        seen_headers[slot, SEEN_AT] = seen_names[slot, SEEN_AT] = -1
    state[STOP] = AT_END
    while at < stop:
        row = state[ROWS]
        state[DONE] = at
        if row == len(rows.kind):
            state[STOP] = ROWS_FULL
            break
        event = read_header(buf, at, headers, headers_arena, tasks, seen_headers, state)
        end = at
        if event == NO_HEADER:
            end = line_end(buf, at)
            if buf[at] == _HASH:
                state[STOP], state[START], state[END] = COMMENT, at, end
                state[IGNORED] += 1
                state[LINES] += 1
                at = end + 1
                break
            event = search_header(buf, at, end, headers, headers_arena, tasks, state)
        if event == NEW_TASK:
            state[STOP] = TASK_IS_NEW
            break
        kind, text = np.int64(IGNORED_LINE), np.int64(-1)
        if event == NO_HEADER:
            state[TASK], state[CPU] = NO_TASK, -1
            _clear_fields(fields)
            if _read_lost(buf, at, fields, state):
                kind = np.int64(_LOST_EVENTS)
            else:
                event = _find_event(buf, at, end, names, names_arena, kinds)
                if event >= 0 and event != skip_blanks(buf, at):  # a known event behind a broken header
                    event, kind = np.int64(-1), np.int64(MALFORMED_LINE)
                elif event >= 0:  # option nocontext-info, or copied without
                    state[TIME] = 0
        if event >= 0:
            kind, text = _read_event(buf, event, rows, scanner)
        if kind == NO_ROOM or kind == NO_BASE:
            state[STOP], state[START] = TEXTS_FULL if kind == NO_ROOM else BASE_IS_NEW, at
            break
        may_ask = kind == MALFORMED_LINE and state[DOUBTS] != 0 and state[GIVEN_UP] != at
        if may_ask and state[MALFORMED] % state[DOUBTS] == 0:
            state[STOP], state[START], state[END] = DOUBTFUL, at, line_end(buf, at)
            break
        state[LINES] += 1
        end = state[DONE]
        if byte_at(buf, end) != NEWLINE:
            end = line_end(buf, end)
        if kind > 0:
            if kind >= _FIRST_MARK:
                write_fields(row, rows, fields)
            end_row(kind, state[TASK], state[CPU], state[TIME], text, np.uint64(row), rows, tasks, state)
        elif kind == IGNORED_LINE:
            state[IGNORED] += 1
        else:
            if state[MALFORMED] < MAX_MALFORMED:
                number = state[MALFORMED]
                malformed[number, 0], malformed[number, 1], malformed[number, 2] = at, end, state[LINES]
            state[MALFORMED] += 1
        at = end + 1
    return at


@kernel
def scan(buf, at, stop, rows, scanner):
    """Parse the lines of ``buf[at:stop]`` into ``rows`` from row ``state[ROWS]`` on.

    ``buf`` uint8 has a newline before ``stop`` and PADDING newlines behind it.  Returns where it stopped;
    ``state[STOP]`` says why.  A comment has been passed by then, any other line that is the reason is
    yet to be parsed.
    """
    return _scan(buf, at, stop, by_reference(rows), by_reference(scanner))
