"""What the scanner keeps from call to call: its arrays, new ones, and copies that know more."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from replay.jit import new_records
from replay.schema import EVENT_NAMES, Kind
from replay.trace.scan import registers as reg
from replay.trace.scan.control_lines import MARK_WORDS
from replay.trace.scan.header import NOBODY, SEEN, SLOTS, Task
from replay.trace.scan.known_shapes import MAX_SHAPES, PLACES, RANGES, SHAPE
from replay.trace.scan.lex import Strings, added, new_strings
from replay.trace.scan.payload import FIELDS, MARKS
from replay.trace.text.plugin_pages import INCOMPLETE_NAMES

MAX_NAMES, MAX_NAME = 2048, 64
"""How many names of other events are counted by name, and their length; the rest are just ignored lines."""

PRINT = 200
"""Stands for the event ``print``, the lines of trace_marker, whose text begins with a place and a colon."""
PRINTK = 202
"""Stands for the events of trace_printk, as ``PRINT``: they are others, but for control lines."""
INCOMPLETE = 201
"""Kind of the names under which lines are counted that lack what a replay needs."""
OTHER = 0
"""Kind of the names of events of other kinds."""

NAMES: dict[str, int] = {
    **{EVENT_NAMES[kind]: int(kind) for kind in Kind if kind < Kind.MARK_VM_CREATE},
    "kvm_mmu_invalidate_zap_all_pages": int(Kind.ZAP_ALL_FAST),  # its name from 3.11 to 5.0
    "tracing_mark_write": int(Kind.MARK_TEXT),
    "print": PRINT,
    "bprint": PRINTK,
    "bputs": PRINTK,
    **dict.fromkeys(INCOMPLETE_NAMES, INCOMPLETE),
    **{f" {word}": int(kind) for word, kind in MARK_WORDS.items()},
}
"""Kinds by name.  The words of markers stand here with the blank before them, which no event's name has."""


class Scanner(NamedTuple):
    """What the scanner keeps from call to call."""

    headers: Strings  # what stands left of the CPU column, as printed; number n is task n
    tasks: Any  # [n] registers.TASK, of each header
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
    state: Any  # registers.REGISTERS
    malformed: np.ndarray  # int64[MAX_MALFORMED, 3]: begin, end and number of the first malformed lines


def new_scanner() -> Scanner:
    """A scanner that knows the names of the events, and has read nothing."""
    names, kinds = _known_names()
    tasks, state = new_records(256, reg.TASK), new_records(1, reg.REGISTERS)[0]
    _name(tasks[reg.NO_TASK], -1, -1, -1)
    state.given_up, state.first_time = -1, reg.NEVER
    return Scanner(
        added(new_strings(256, 256 * 64), b""),  # NO_TASK
        tasks,
        Strings(names.table.copy(), names.arena.copy()),
        kinds.copy(),
        new_strings(1024, 1 << 16),
        np.zeros((SLOTS, SEEN), np.int64),
        np.zeros((SLOTS, SEEN), np.int64),
        np.zeros(PLACES, np.int64),
        np.zeros((MAX_SHAPES, SHAPE), np.int64),
        np.zeros((MAX_SHAPES, RANGES), np.uint8),
        np.zeros((MARKS, 4), np.int64),
        np.zeros(FIELDS, np.uint64),
        state,
        np.zeros((reg.MAX_MALFORMED, 3), np.int64),
    )


@cache
def _known_names() -> tuple[Strings, np.ndarray]:
    """``Scanner.names`` and ``Scanner.kinds`` before anything is read."""
    names = new_strings(MAX_NAMES, MAX_NAMES * MAX_NAME)
    kinds = np.full((MAX_NAMES, 2), OTHER, np.int64)
    for number, (name, kind) in enumerate(NAMES.items()):
        names = added(names, name.encode())
        kinds[number, 0] = kind
    return names, kinds


def _name(task: Any, pid: int, tgid: int, comm: int) -> None:
    """Set the columns of the record ``task``."""
    task.pid, task.tgid, task.comm = pid, tgid, comm


def with_task(scanner: Scanner, number: int, task: Task, comm: int) -> Scanner:
    """``scanner`` with ``task`` as number ``number``, the next one; ``comm`` goes into its column."""
    if number == len(scanner.tasks):
        tasks = new_records(2 * number, reg.TASK)
        tasks[:number] = scanner.tasks
        scanner = scanner._replace(tasks=tasks)
    _name(scanner.tasks[number], task.pid, task.tgid, comm)
    return scanner


def with_header(scanner: Scanner, number: int, header: bytes, task: Task | None, comm: int) -> Scanner:
    """As ``with_task``, for the task that ``header`` shows, None if it is no task's."""
    scanner = with_task(scanner, number, task or NOBODY, comm)
    scanner.tasks[number].is_none = 0 if task else -1
    return scanner._replace(headers=added(scanner.headers, header))
