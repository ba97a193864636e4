"""Parsed batches: the first of them kept in memory, the others in a temporary file.

The file has no name.  Each batch lies in it as its columns do in memory, but for columns of zeros, which are
holes; a batch is mapped when it is asked for, and leaves memory with whoever asked.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, cast

import numpy as np

from replay.schema import COLUMN_TYPES, Columns
from replay.trace.scan.rows import ROW_BYTES, WIDEST_FIRST, RowMemory

_TYPES = {name: np.dtype(kind) for name, kind in COLUMN_TYPES.items()}
_SAMPLE = 1 << 12


class _Place(NamedTuple):
    """Where a batch lies in the file."""

    begin: int
    rows: int

    def columns(self) -> Iterator[tuple[str, int]]:
        """Each column, and where it begins behind ``begin``; all are aligned."""
        at = 0
        for name in WIDEST_FIRST:
            yield name, at
            at += _TYPES[name].itemsize * self.rows

    @property
    def end(self) -> int:
        """Where another batch can begin."""
        pages = -(-self.rows * ROW_BYTES // mmap.ALLOCATIONGRANULARITY)
        return self.begin + pages * mmap.ALLOCATIONGRANULARITY


class BatchStore:
    """Batches in the order of ``append``, of rows from ``memory``; ``limit`` bounds the bytes kept in memory.

    Where no file can be written all stay in memory.
    """

    def __init__(self, limit: int) -> None:
        self.memory = RowMemory()
        self._limit = limit
        self._kept_bytes = 0
        self._batches: list[Columns | _Place] = []
        self._descriptor = -1
        self._end = 0
        self._writer: ThreadPoolExecutor | None = None
        self._written: tuple[int, _Place, Future[None]] | None = None

    def append(self, batch: Columns) -> None:
        """Add a batch.  It is written meanwhile, one at a time, if it is not to stay in memory."""
        size = len(batch.kind) * ROW_BYTES
        self._batches.append(batch)
        if self._kept_bytes + size <= self._limit:
            self._kept_bytes += size
            return
        self._settle()
        if self._kept_bytes + size <= self._limit or not self._open():
            return
        assert self._writer is not None
        place = _Place(self._end, len(batch.kind))
        self._end = place.end
        write = self._writer.submit(_write, self._descriptor, batch, place)
        self._written = len(self._batches) - 1, place, write

    def finish(self) -> None:
        """Call behind the last ``append``, and where there will be none."""
        self._settle()
        self.memory.forget()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _open(self) -> bool:
        if self._writer is not None:
            return True
        try:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        except OSError:
            self._limit = sys.maxsize
            return False
        weakref.finalize(self, os.close, self._descriptor)
        self._writer = ThreadPoolExecutor(1)
        return True

    def _settle(self) -> None:
        """Let go of the batch that is being written."""
        if self._written is None:
            return
        number, place, write = self._written
        self._written = None
        try:
            write.result()
            self.memory.give_back(cast(Columns, self._batches[number]))
            self._batches[number] = place
        except OSError:
            self._limit = sys.maxsize

    def __iter__(self) -> Iterator[Columns]:
        for batch in self._batches:
            yield self._mapped(batch) if isinstance(batch, _Place) else batch

    def _mapped(self, place: _Place) -> Columns:
        """A batch of the file, writable: what is written to it stays in memory."""
        size = place.end - place.begin
        data = mmap.mmap(self._descriptor, size, access=mmap.ACCESS_COPY, offset=place.begin)
        columns = {name: np.frombuffer(data, _TYPES[name], place.rows, at) for name, at in place.columns()}
        return Columns(**columns)


def _write(descriptor: int, batch: Columns, place: _Place) -> None:
    """Write the columns of ``batch`` that are not all zeros to their place."""
    os.truncate(descriptor, place.end)
    for name, at in place.columns():
        column = getattr(batch, name)
        if not column[:_SAMPLE].any() and not column.any():
            continue
        data = memoryview(column).cast("B")
        at += place.begin
        while len(data):
            count = os.pwrite(descriptor, data, at)
            data, at = data[count:], at + count
