"""Event tables as Parquet: how each column is stored, and how it is read in the least processor time.

pyarrow decodes what must be decoded: no column chunk of one value, which its statistics tell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from replay.arrow import Places, ReadColumns
from replay.schema import COLUMN_TYPES, Columns
from replay.trace.table.checked import column_array
from replay.trace.table.columns import Filled, ahead

_ROW_GROUP = 1 << 16
"""Rows that are decoded at once: few enough that the same memory serves all of them, near the processor."""
_PLAIN = ("gfn", "spte")
"""Columns of many values in every kind of event: however they are encoded, to copy them takes least."""
_SPARSE = ("addr", "sptep", "end", "code", "num")
"""Columns that are 0 in most kinds of event: plain values too, but LZ4 makes them small and is fast at it."""
_RISING = ("old_spte", "ts_ns", "line")
"""Columns of values that are near the one before; the columns not named have few values: a dictionary."""


def write_parquet(file: IO[bytes], schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write ``batches`` in row groups of one size."""
    plain = dict.fromkeys(_PLAIN + _SPARSE, "PLAIN")
    delta = dict.fromkeys(_RISING, "DELTA_BINARY_PACKED")
    with pq.ParquetWriter(
        file,
        schema,
        compression={name: "none" if name in _PLAIN else "lz4" for name in COLUMN_TYPES},
        use_dictionary=[name for name in COLUMN_TYPES if name not in plain | delta],
        column_encoding=plain | delta,
    ) as writer:
        for row_group in _row_groups(batches):
            writer.write_table(row_group)


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of ``batches``, ``_ROW_GROUP`` at a time."""
    held: list[pa.RecordBatch] = []
    room = _ROW_GROUP
    for batch in batches:
        while len(batch) >= room:
            yield pa.Table.from_batches([*held, batch[:room]])
            held, batch, room = [], batch[room:], _ROW_GROUP
        if len(batch):
            held.append(batch)
            room -= len(batch)
    if held:
        yield pa.Table.from_batches(held)


def open_parquet(path: str) -> tuple[pa.Schema, int, ReadColumns]:
    """The schema of the file, its number of rows, and what reads its columns."""
    file = pq.ParquetFile(path, pre_buffer=False)

    filled = Filled()

    def batches(places: Places, needed: Collection[str]) -> Iterator[Columns]:
        for number in range(file.num_row_groups):
            yield from _read_row_group(file, number, places, needed, filled)

    return (
        file.schema_arrow,
        file.metadata.num_rows,
        lambda places, needed: ahead(batches(places, needed)),
    )


def _read_row_group(
    file: Any,
    number: int,
    places: Places,
    needed: Collection[str],
    filled: Filled,
) -> Iterator[Columns]:
    group = file.metadata.row_group(number)
    constants: dict[str, int] = {}
    found = {file.schema.column(place).path: place for place in range(group.num_columns)}
    for name in COLUMN_TYPES:
        place = found[name]
        chunk = group.column(place)
        if chunk.physical_type != file.schema.column(place).physical_type:
            raise ValueError(f"column {name} is of another type")  # at which pyarrow would end the process
        if name == "line":
            continue  # always decoded: it tells the number of rows
        if name not in needed:
            constants[name] = 0
        elif (value := _constant(chunk, COLUMN_TYPES[name], places.get(name))) is not None:
            constants[name] = value
    decoded = [name for name in COLUMN_TYPES if name not in constants]
    rows = 0
    for batch in file.iter_batches(_ROW_GROUP, row_groups=[number], columns=decoded, use_threads=False):
        arrays = {name: filled.column(name, value, len(batch)) for name, value in constants.items()}
        for name in decoded:
            arrays[name] = column_array(name, batch.column(name), places)
        if any(len(array) != len(batch) for array in arrays.values()):
            raise ValueError(f"row group {number} has columns of several lengths")
        rows += len(batch)
        yield Columns(**arrays)
    if rows != group.num_rows:
        raise ValueError(f"row group {number} has {rows} rows where its description has {group.num_rows}")


def _constant(chunk: Any, kind: str, numbers: Mapping[str, int] | None) -> int | None:
    """The one value of a column chunk if its statistics say so; of words its number, by ``numbers``."""
    statistics = chunk.statistics
    if statistics is None:
        return None
    if numbers is not None and statistics.null_count == chunk.num_values:
        return -1
    if not statistics.has_min_max or statistics.null_count:
        return None
    value = statistics.min
    if value != statistics.max:
        return None
    if numbers is not None:
        return numbers.get(value)
    bounds = np.iinfo(kind)
    return value if isinstance(value, int) and bounds.min <= value <= bounds.max else None
