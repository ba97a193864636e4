"""The arrays that the scanner fills and keeps: new ones, and copies that know more."""

from __future__ import annotations

import contextlib
from functools import cache

import numpy as np

from replay.memory import LARGE_PAGE, new_memory
from replay.schema import Columns
from replay.trace import scan as scanning
from replay.trace.dialect import (
    COMM,
    IS_NONE,
    NOBODY,
    PID,
    SEEN,
    SLOTS,
    TASK_PLACES,
    TGID,
    Task,
)
from replay.trace.lex import Strings, added, new_strings
from replay.trace.payload import FIELDS, MARKS, WIDE
from replay.trace.scan import Rows, Scanner
from replay.trace.shape import MAX_SHAPES, PLACES, RANGES, SHAPE


def new_scanner() -> Scanner:
    """A scanner that knows the names of the events, and has read nothing."""
    names, kinds = _known_names()
    tasks = np.zeros((256, TASK_PLACES), np.int64)
    state = np.zeros(scanning.STATE, np.int64)
    tasks[scanning.NO_TASK, [PID, TGID, COMM]] = -1
    state[scanning.GIVEN_UP], state[scanning.FIRST_TIME] = -1, scanning.NEVER
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
        np.zeros((scanning.MAX_MALFORMED, 3), np.int64),
    )


@cache
def _known_names() -> tuple[Strings, np.ndarray]:
    """``Scanner.names`` and ``Scanner.kinds`` before anything is read."""
    names = new_strings(scanning.MAX_NAMES, scanning.MAX_NAMES * scanning.MAX_NAME)
    kinds = np.full((scanning.MAX_NAMES, 2), scanning.OTHER, np.int64)
    for number, (name, kind) in enumerate(scanning.NAMES.items()):
        names = added(names, name.encode())
        kinds[number, 0] = kind
    return names, kinds


_ROW_TYPES = {
    "ts_ns": np.int64,
    "line": np.int64,
    "role": np.uint32,
    "pid": np.int32,
    "tgid": np.int32,
    "comm": np.int32,
    "text": np.int32,
    "vm": np.int16,
    "cpu": np.int16,
    "kind": np.uint8,
    "level": np.uint8,
    "flags": np.uint8,
}
"""Widest first, so that all are aligned."""


class RowMemory:
    """Where rows are from: new memory, or that of a batch which is in a file by now."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def rows(self, count: int) -> Rows:
        """Zeroed rows, all in one piece."""
        at = 8 * len(WIDE) * count
        size = at + sum(np.dtype(kind).itemsize for kind in _ROW_TYPES.values()) * count
        memory = self._memory(size)
        columns = {"wide": memory[:at].view(np.uint64).reshape(len(WIDE), count)}
        for name, kind in _ROW_TYPES.items():
            size = np.dtype(kind).itemsize * count
            columns[name] = memory[at : at + size].view(kind)
            at += size
        return Rows(**columns)

    def _memory(self, size: int) -> np.ndarray:
        with contextlib.suppress(IndexError):
            memory = self._free.pop()
            if len(memory) >= size:
                memory[:size] = 0
                return memory
        if size < LARGE_PAGE:
            return np.zeros(size, np.uint8)
        return new_memory(size, large_pages=True)

    def give_back(self, columns: Columns) -> None:
        """Nobody needs ``columns`` any more, which were rows from here."""
        if isinstance(columns.kind.base, np.ndarray):
            self._free.append(columns.kind.base)

    def forget(self) -> None:
        """No more rows will be needed."""
        self._free.clear()


def with_task(scanner: Scanner, number: int, task: Task, comm: int) -> Scanner:
    """``scanner`` with ``task`` as number ``number``, the next one; ``comm`` goes into its column."""
    if number == len(scanner.tasks):
        scanner = scanner._replace(tasks=np.concatenate([scanner.tasks, np.zeros_like(scanner.tasks)]))
    scanner.tasks[number, [PID, TGID, COMM]] = task.pid, task.tgid, comm
    return scanner


def with_header(scanner: Scanner, number: int, header: bytes, task: Task | None, comm: int) -> Scanner:
    """As ``with_task``, for the task that ``header`` shows, None if it is no task's."""
    scanner = with_task(scanner, number, task or NOBODY, comm)
    scanner.tasks[number, IS_NONE] = 0 if task else -1
    return scanner._replace(headers=added(scanner.headers, header))
