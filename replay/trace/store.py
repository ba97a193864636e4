"""Parsed batches: kept in memory up to a bound, beyond it in a temporary file.

The file is an anonymous Arrow IPC file, one record batch a batch, mapped back when it is read.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from replay.schema import COLUMN_TYPES, Columns

ROW_BYTES = sum(np.dtype(name).itemsize for name in COLUMN_TYPES.values())
_SPILL_SCHEMA = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMN_TYPES.items()])


class BatchStore:
    """Batches in the order of ``append``; ``limit`` bounds the bytes of columns kept in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[Columns] = []
        self._kept_bytes = 0
        self._file: BinaryIO | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._mapped: mmap.mmap | None = None

    def append(self, batch: Columns) -> None:
        """Add a batch; once the bound is reached, this and all later ones go to the file."""
        size = len(batch.kind) * ROW_BYTES
        if self._file is None and self._kept_bytes + size <= self._limit:
            self._kept.append(batch)
            self._kept_bytes += size
            return
        if self._writer is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115, closed by finish
            self._writer = pa.ipc.new_file(self._file, _SPILL_SCHEMA)
        arrays = [pa.array(column) for column in batch]
        self._writer.write_batch(pa.record_batch(arrays, schema=_SPILL_SCHEMA))

    def finish(self) -> None:
        """Call behind the last ``append``, and where there will be none: the file stays only as a mapping."""
        if self._writer is None or self._file is None or self._file.closed:
            return
        with self._file:
            self._writer.close()
            self._file.flush()
            self._mapped = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)

    def __iter__(self) -> Iterator[Columns]:
        yield from self._kept
        if self._mapped is None:
            return
        reader = pa.ipc.open_file(pa.py_buffer(self._mapped))
        for number in range(reader.num_record_batches):
            yield Columns(*(np.array(column.to_numpy()) for column in reader.get_batch(number).columns))
            if hasattr(mmap, "MADV_DONTNEED"):
                self._mapped.madvise(mmap.MADV_DONTNEED)  # what was copied need not stay in memory
