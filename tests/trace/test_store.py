"""Batches in memory and in the temporary file."""

from __future__ import annotations

import errno
import os
import tempfile

import numpy as np
import pytest

from replay.schema import COLUMN_TYPES, Columns
from replay.trace.scan.rows import ROW_BYTES, RowMemory, columns_of
from replay.trace.table.batch_store import BatchStore

ROWS = 1000


def batches(store: BatchStore, count: int) -> list[Columns]:
    """Batches of numbers that differ, but for two columns of zeros, of the store's memory; copies of them."""
    copies = []
    for number in range(count):
        rows = store.memory.rows(ROWS + number)
        columns = {
            **dict(zip(("gfn", "addr", "spte", "old_spte", "sptep", "end", "code"), rows.wide, strict=False)),
            "num": rows.wide[7].view(np.int64),
            **{name: getattr(rows, name) for name in rows._fields if name != "wide"},
        }
        for place, name in enumerate(COLUMN_TYPES):
            assert not columns[name].any(), "rows begin as zeros"
            if name not in ("vm", "end"):
                columns[name][:] = np.arange(ROWS + number) * (place + 1) + number
        batch = Columns(**columns)
        copies.append(Columns(*(column.copy() for column in batch)))
        store.append(batch)
    store.finish()
    return copies


def check(store: BatchStore, copies: list[Columns]) -> None:
    found = list(store)
    assert len(found) == len(copies)
    for batch, copy in zip(found, copies, strict=True):
        for name, column, expected in zip(Columns._fields, batch, copy, strict=True):
            assert column.dtype == COLUMN_TYPES[name]
            assert column.flags.aligned
            assert column.flags.writeable
            assert np.array_equal(column, expected), name


@pytest.mark.parametrize("kept", [0, 1, 3, 100])
def test_batches_come_back_as_they_were(kept: int) -> None:
    store = BatchStore(kept * (ROWS + 3) * ROW_BYTES)
    copies = batches(store, 7)
    assert sum(isinstance(batch, Columns) for batch in store._batches) == min(kept, 7)
    check(store, copies)
    next(iter(store)).vm[:] = 5
    for batch in list(store)[kept:]:
        assert not batch.vm.any(), "what is written to a batch of the file is not in the file"


def test_where_no_file_can_be_made_all_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    store = BatchStore(0)
    check(store, batches(store, 4))


def test_when_the_disk_is_full_the_rest_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = os.pwrite, [200_000]

    def pwrite(descriptor: int, data: memoryview, at: int) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "full")
        count = write(descriptor, data[: room[0]], at)
        room[0] -= count
        return count

    monkeypatch.setattr(os, "pwrite", pwrite)
    store = BatchStore(0)
    copies = batches(store, 6)
    assert [isinstance(batch, Columns) for batch in store._batches] == [False] * 2 + [True] * 4
    check(store, copies)


def test_memory_given_back_is_used_again_or_returned() -> None:
    memory = RowMemory()
    first = memory.rows(30_000)
    first.line[:], first.wide[:] = 7, 7
    memory.give_back(columns_of(first, 20_000))
    again = memory.rows(29_000)
    assert np.shares_memory(first.wide, again.wide)
    assert not again.line.any()
    assert not again.wide.any()
    again.line[:] = 7
    memory.give_back(columns_of(again, 29_000))
    larger = memory.rows(300_000)
    assert not np.shares_memory(again.wide, larger.wide)
    assert not again.line[1000:-1000].any(), "its pages have gone back to the system"
