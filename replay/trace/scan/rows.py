"""The rows that jitted code fills, the memory they are in, and the columns that become of them."""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.memory import LARGE_PAGE, Arena
from replay.schema import COLUMN_TYPES, Columns, Kind
from replay.trace.scan.lex import keep_apart
from replay.trace.scan.payload import FLAGS, LEVEL, ROLE, WIDE

_LAST_KVMMMU = int(Kind.SPLIT_HUGE_PAGE)
_ZERO, _ONE = np.uint64(0), np.uint64(1)

_SHOWS_VM = np.zeros(256, np.bool_)
_SHOWS_VM[[*range(1, _LAST_KVMMMU + 1), Kind.PAGE_FAULT, Kind.SET_REGION, Kind.COMMIT_REGION]] = True
"""Kinds that only a task of a VM's process can cause."""


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


ARENA_BYTES = 1 << 30
"""Addresses that are reserved at once."""

ROW_BYTES = sum(np.dtype(kind).itemsize for kind in COLUMN_TYPES.values())
WIDEST_FIRST = sorted(COLUMN_TYPES, key=lambda name: -np.dtype(COLUMN_TYPES[name]).itemsize)
"""The columns in an order in which all are aligned."""


class RowMemory:
    """Where rows are from, for any thread: new memory, or that of a batch which is in a file by now."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._arena: Arena | None = None
        self._blocks: dict[int, tuple[Arena, np.ndarray]] = {}  # by address, those in use
        self._free: list[tuple[Arena, np.ndarray]] = []

    def rows(self, count: int) -> Rows:
        """Zeroed rows, all in one piece."""
        memory = self._memory(ROW_BYTES * count)
        at = 8 * len(WIDE) * count
        columns = {"wide": memory[:at].view(np.uint64).reshape(len(WIDE), count)}
        for name in WIDEST_FIRST:
            if name not in WIDE:
                kind = np.dtype(COLUMN_TYPES[name])
                columns[name] = memory[at : at + kind.itemsize * count].view(kind)
                at += kind.itemsize * count
        return Rows(**columns)

    def _memory(self, size: int) -> np.ndarray:
        with self._lock:
            if self._arena is None and size < LARGE_PAGE:
                return np.zeros(size, np.uint8)
            is_used = bool(self._free) and len(self._free[-1][1]) >= size
            if not is_used:
                self._release_free()
            arena, block = self._free.pop() if is_used else self._new_block(size)
            self._blocks[block.ctypes.data] = arena, block
        if is_used:
            block[:size] = 0
        return block[:size]

    def _new_block(self, size: int) -> tuple[Arena, np.ndarray]:
        size = -(-size // LARGE_PAGE) * LARGE_PAGE  # so that most fit those that need about as many rows
        block = self._arena.take(size) if self._arena else None
        if self._arena is None or block is None:
            try:
                self._arena = Arena(max(size, ARENA_BYTES))
            except MemoryError:  # a limit on the process, or a system that promises no more than it has
                self._arena = Arena(size)
            block = self._arena.take(size)
            assert block is not None
        return self._arena, block

    def give_back(self, columns: Columns) -> None:
        """Nobody needs ``columns`` any more, which were rows from here."""
        with self._lock:
            block = self._blocks.pop(columns.gfn.ctypes.data, None)
            if block is not None:
                self._free.append(block)

    def forget(self) -> None:
        """No more rows will be needed."""
        self._release_free()
        self._blocks.clear()
        self._arena = None

    def _release_free(self) -> None:
        for arena, block in self._free:
            arena.release(block)
        self._free.clear()


def columns_of(rows: Rows, count: int) -> Columns:
    """The first ``count`` of ``rows`` as columns, which take their memory over; the column vm is zeros."""
    wide = {name: rows.wide[n, :count] for n, name in enumerate(WIDE)}
    wide["num"] = wide["num"].view(np.int64)
    narrow = {name: getattr(rows, name)[:count] for name in COLUMN_TYPES if name not in wide}
    return Columns(**narrow, **wide)


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
def clear_row(rows, row):
    """Take back what was written of a payload into row ``row``."""
    for column in range(len(WIDE)):
        rows.wide[column, row] = _ZERO
    rows.level[row] = rows.flags[row] = rows.role[row] = 0


@jit
def _note_time_back(time, row, rows, state):
    """Count row ``row`` if its ``time`` is before that of the row before; either may have none."""
    keep_apart()
    before = rows.ts_ns[row - _ONE] if row > _ZERO else state.time_before
    if 0 < time < before:
        if state.times_back == 0:
            state.first_back = state.lines
        state.times_back += 1


@jit
def end_row(kind, task, cpu, time, text, row, rows, tasks, state):
    """Complete row ``row``, whose payload has been written, and go to the next."""
    own = tasks[task]
    rows.kind[row] = kind
    rows.pid[row] = own.pid
    rows.tgid[row] = own.tgid
    rows.comm[row] = own.comm
    rows.cpu[row] = cpu
    rows.ts_ns[row] = time
    rows.line[row] = state.lines
    rows.text[row] = text
    if time > state.last_time:
        state.last_time = time
    elif time < state.last_time:
        _note_time_back(time, row, rows, state)
    if 0 < time < state.first_time:
        state.first_time = time
    state.rows += 1
    if kind <= _LAST_KVMMMU:
        state.kvmmmu += 1
    if _SHOWS_VM[kind] and own.first_line == 0:
        own.first_line = state.lines
