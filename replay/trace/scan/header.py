"""What stands before the name of an event: task, CPU and time, in the forms that tracers print.

Kernel: ``trace_print_context``, ``trace_print_lat_context`` and ``lat_print_timestamp`` of
kernel/trace/trace_output.c.  In words (``[]`` where it may be absent)::

    comm-pid [(tgid)] [CPU] [flags] seconds.fraction: name: ...    trace, trace_pipe, trace-cmd report
    comm pid[/tid] [CPU] [flags] seconds.fraction: name: ...       perf script
    comm-pid CPUflags microseconds us mark: name: ...              option latency-format
    comm pid CPU flags preempt index [us] ms.us ms (+ms.us ms): name: ...     and verbose
    name: ...                                                      option nocontext-info

A comm may hold blanks, dashes, brackets and slashes, so a header is found from its right end:
the CPU column is the first ``[`` behind which a time and a colon follow.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.trace.scan.lex import (
    BLANK,
    COLON,
    LOOK_UP,
    PADDING,
    byte_at,
    intern,
    keep_apart,
    line_end,
    load64,
    read_decimal,
    read_hex,
    same_bytes,
    six_digits,
    skip_blanks,
    slot_of,
    token_end,
)

NO_HEADER = -1
NEW_TASK = -2

TASK_COMM_LEN = 16
SLOTS = 256
# places of a row of the scanner's array ``seen``: where a header stood (-1 nowhere), its length up to the
# fraction of the time, and what ``state`` became by it
SEEN_AT, SEEN_LENGTH, SEEN_TASK, SEEN_CPU, SEEN_WHOLE = range(5)
SEEN = 5

_SIX_BYTES, _COLON_BLANK = np.uint64(48), np.uint64(0x203A)
_OPEN, _CLOSE, _DOT, _PAREN_CLOSE = 91, 93, 46, 41
_TEN_TO_THE = 10 ** np.arange(10, dtype=np.int64)

_FTRACE_TASK = re.compile(r"\s*(.*?)\s*-(\d{1,9})\s*(?:\(\s*(\d{1,9}|-+)\)\s*)?", re.DOTALL)
# trace-cmd report of several inputs: the file's name before the task's 16 columns
_FILE_TASK = re.compile(r"\s*[^\s:]+: (.{16,}-\d.*)", re.DOTALL)
_PERF_TASK = re.compile(r"\s*(.*\S)\s+(?:(\d{1,9})/)?(\d{1,9})\s*", re.DOTALL)


class Task(NamedTuple):
    """The task of a header; pid and tgid are -1 where they are not printed."""

    comm: str
    pid: int
    tgid: int
    has_tgid_column: bool


NOBODY = Task("", -1, -1, False)
"""Task of a line that names none."""


def parse_task(text: str) -> Task | None:
    """What stands left of the CPU column: ``comm-pid``, ``comm-pid (tgid)``, ``comm pid/tid`` or ``comm``."""
    if found := _FILE_TASK.fullmatch(text):
        text = found[1]
    if found := _FTRACE_TASK.fullmatch(text):
        comm, pid, tgid = found.groups()
        return Task(comm, int(pid), int(tgid) if tgid and tgid[0] != "-" else -1, tgid is not None)
    if found := _PERF_TASK.fullmatch(text):
        comm, tgid, pid = found.groups()
        return Task(comm, int(pid), int(tgid) if tgid else -1, tgid is not None)
    if len(text.strip()) < TASK_COMM_LEN:  # perf script -F without pid
        return Task(text.strip(), -1, -1, False)
    return None


@jit
def _read_fraction(buf, start, state):
    """Complete TIME by the fraction at ``start``: index behind the ``: `` after it, NO_HEADER if none."""
    fraction, at = read_decimal(buf, start)
    if at < 0 or at - start > 9 or fraction < 0 or byte_at(buf, at) != COLON or byte_at(buf, at + 1) != BLANK:
        return np.int64(NO_HEADER)
    state.time = state.whole + fraction * _TEN_TO_THE[9 - (at - start)]
    return at + 2


@jit
def _after_cpu(buf, at, state):
    """Index behind ``[CPU] flags time: `` that begins at ``at``; NO_HEADER if none.

    Fills ``cpu``, ``time``, ``whole`` (its whole seconds in ns) and ``fraction`` (its index, 0 none).
    """
    cpu, at = read_decimal(buf, at + 1)
    if at < 0 or byte_at(buf, at) != _CLOSE or byte_at(buf, at + 1) != BLANK:
        return np.int64(NO_HEADER)
    at += 2
    if not (
        byte_at(buf, at) == BLANK or 48 <= byte_at(buf, at) <= 57
    ):  # the flags column begins with d, D, b, X or a dot
        at = token_end(buf, at)
    time, at = read_decimal(buf, skip_blanks(buf, at))
    if at < 0:
        return np.int64(NO_HEADER)
    state.cpu = cpu
    if byte_at(buf, at) == _DOT:
        state.whole, state.fraction = time * 1_000_000_000, at + 1
        return _read_fraction(buf, at + 1, state)
    state.time, state.fraction = time, 0
    return at + 2 if byte_at(buf, at) == COLON and byte_at(buf, at + 1) == BLANK else np.int64(NO_HEADER)


@jit
def _find_task(buf, start, end, body, headers, arena, tasks, state):
    """``body`` if ``buf[start:end]`` is a task's header, else NO_HEADER or NEW_TASK; fills ``task``."""
    task = intern(buf, start, end, LOOK_UP, headers, arena)
    if task < 0:
        if line_end(buf, start) < end:
            return np.int64(NO_HEADER)
        state.start, state.end = start, end
        return np.int64(NEW_TASK)
    state.task = task
    return np.int64(body) if tasks[task].is_none == 0 else np.int64(NO_HEADER)


@jit
def read_header(buf, start, headers, arena, tasks, seen, state):
    """Read what stands before an event's name in the line at ``start``.

    ``headers`` and ``arena`` are the Strings of the tasks' headers as they are printed; ``tasks``
    [n] TASK tells those that are none.  Fills task, cpu and time (ns) of
    ``state``.  Returns the index of the name; NO_HEADER if the CPU column is not where it was in the
    line before, when ``search_header`` must look for it; NEW_TASK if ``buf[start:end]`` is a task's header
    that is not in ``headers`` yet.

    Few headers differ in more than the fraction of their time: ``seen`` int64[SLOTS, SEEN] knows some of
    the last ones by the bytes that hold CPU and flags.
    """
    column = start + state.column
    slot = slot_of(buf, column + 3, SLOTS)
    length = seen[slot, SEEN_LENGTH]
    if seen[slot, SEEN_AT] >= 0 and same_bytes(buf, seen[slot, SEEN_AT], start, length):
        state.task, state.cpu = seen[slot, SEEN_TASK], seen[slot, SEEN_CPU]
        state.whole = seen[slot, SEEN_WHOLE]
        word = load64(buf, start + length)
        microseconds = six_digits(word)
        if microseconds >= 0 and word >> _SIX_BYTES == _COLON_BLANK:  # as nearly always
            state.time = seen[slot, SEEN_WHOLE] + microseconds * 1000
            return start + length + 8
        body = _read_fraction(buf, start + length, state)
        if body >= 0:
            return body
    if byte_at(buf, column) != _OPEN:
        return np.int64(NO_HEADER)
    body = _after_cpu(buf, column, state)
    if body >= 0:
        body = _find_task(buf, start, column, body, headers, arena, tasks, state)
        if body >= 0 and 0 < state.fraction - start < PADDING:
            seen[slot, SEEN_AT], seen[slot, SEEN_LENGTH] = start, state.fraction - start
            seen[slot, SEEN_TASK], seen[slot, SEEN_CPU] = state.task, state.cpu
            seen[slot, SEEN_WHOLE] = state.whole
    return body


@jit
def _token_start(buf, start, end):
    """Index of the first byte of the last token of ``buf[start:end]``."""
    while end > start and buf[end - 1] == BLANK:
        end -= 1
    while end > start and buf[end - 1] != BLANK:
        end -= 1
    return end


@jit
def search_header(buf, start, end, headers, arena, tasks, state):
    """As ``read_header``, for any form of header, in the line ``buf[start:end]``."""
    keep_apart()
    for at in range(start, end):
        if byte_at(buf, at) == _OPEN:
            body = _after_cpu(buf, at, state)
            if body >= 0:
                body = _find_task(buf, start, at, body, headers, arena, tasks, state)
                if body >= 0:
                    state.column = at - start if at - start < PADDING - 16 else 0
                if body != NO_HEADER:
                    return body
            microseconds, close = read_hex(buf, at + 1)
            if close > 0 and buf[close] == _CLOSE:  # verbose: CPU flags preempt index [us]
                cpu_start = at
                for _ in range(4):
                    cpu_start = _token_start(buf, start, cpu_start)
                state.cpu, cpu_end = read_decimal(buf, cpu_start)
                state.time = np.int64(microseconds) * 1000
                while close < end and buf[close] != _PAREN_CLOSE:
                    close += 1
                if cpu_end > 0 and buf[close + 1] == COLON and buf[close + 2] == BLANK:
                    return _find_task(buf, start, cpu_start, close + 3, headers, arena, tasks, state)
        elif byte_at(buf, at) == COLON and at - start > 8 and buf[at - 2] == 115 and buf[at - 3] == 117:
            time_start = _token_start(buf, start, at - 3)  # latency: CPUflags time us mark
            microseconds, time_end = read_decimal(buf, time_start)
            cpu_start = _token_start(buf, start, time_start)
            state.cpu, cpu_end = read_decimal(buf, cpu_start)
            if time_end == at - 3 and cpu_end > 0 and byte_at(buf, at + 1) == BLANK:
                state.time = microseconds * 1000
                return _find_task(buf, start, cpu_start, at + 2, headers, arena, tasks, state)
    return np.int64(NO_HEADER)
