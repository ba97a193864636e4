"""Changes of tables: values, types, columns and metadata that no parser wrote; or bytes of the file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from random import Random

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tools.fuzz.lines import EXTREMES, noise
from tools.fuzz.trees import change_golden

_TYPES = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float64(), pa.string())
_NOISE = 0.25


def change(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A table, in the form in which it comes, with one change."""
    if rng.random() < _NOISE:
        return noise(data, rng)
    is_parquet = data.startswith(b"PAR1")
    try:
        table = _read(data, is_parquet)
        return _write(rng.choice(_CHANGES)(table, rng), is_parquet)
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError):
        return noise(data, rng)  # damaged by a change before, or of a type that cannot take this one


def _read(data: bytes, is_parquet: bool) -> pa.Table:
    if is_parquet:
        table = pq.read_table(io.BytesIO(data))
    else:
        table = pa.ipc.open_file(io.BytesIO(data)).read_all()
    table.validate(full=True)  # what is done to a table with an index out of range ends the process
    return table


def _write(table: pa.Table, is_parquet: bool) -> bytes:
    out = io.BytesIO()
    if is_parquet:
        pq.write_table(table, out)
    else:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


def _values(table: pa.Table, rng: Random) -> pa.Table:
    """Some values of a column become an extreme, one of their neighbours, or null."""
    at = rng.randrange(table.num_columns)
    column = table.column(at)
    values = column.to_pylist()
    own = values or EXTREMES  # a table may have lost its rows before
    value = rng.choice((None, rng.choice(EXTREMES), rng.choice(EXTREMES), rng.choice(own)))
    for _ in range(rng.choice((1, 1, 5))):
        values[rng.randrange(len(values))] = value
    return table.set_column(at, table.field(at), pa.array(values, column.type))


def _cast(table: pa.Table, rng: Random) -> pa.Table:
    at = rng.randrange(table.num_columns)
    made = pc.cast(table.column(at), rng.choice(_TYPES), safe=False)
    return table.set_column(at, table.field(at).name, made)


def _without(table: pa.Table, rng: Random) -> pa.Table:
    return table.remove_column(rng.randrange(table.num_columns))


def _twice(table: pa.Table, rng: Random) -> pa.Table:
    at = rng.randrange(table.num_columns)
    return table.append_column(table.field(at), table.column(at))


def _rename(table: pa.Table, rng: Random) -> pa.Table:
    names = table.column_names
    names[rng.randrange(len(names))] = rng.choice([*names, "other"])
    return table.rename_columns(names)


def _order(table: pa.Table, rng: Random) -> pa.Table:
    names = table.column_names
    rng.shuffle(names)
    return table.select(names)


def _rows(table: pa.Table, rng: Random) -> pa.Table:
    """Rows dropped, doubled, or in another order."""
    rows = list(range(table.num_rows))
    begin = rng.randrange(len(rows))
    piece = rows[begin : begin + rng.choice((1, 3, 50))]
    kept = [row for row in rows if row not in piece]
    at = rng.randrange(len(kept) + 1)
    order = rng.choice((kept, kept[:at] + piece + kept[at:], rows[: begin + 1] + piece + rows[begin:], []))
    return table.take(pa.array(order, pa.int64()))


def _metadata(table: pa.Table, rng: Random) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    if not metadata:
        return table
    key = rng.choice(sorted(metadata))
    value = metadata.pop(key)
    chance = rng.random()
    if chance < 0.4:
        value = change_golden(value, rng, ())
    elif chance < 0.6:
        value = rng.choice((b"", b"null", b"{}", b"[]", b"-1", b"[1]", b'"x"', b"1e400", b"%d" % (1 << 70)))
    if chance < 0.9:
        metadata[key] = value
    return table.replace_schema_metadata(metadata)


_CHANGES: tuple[Callable[[pa.Table, Random], pa.Table], ...] = (
    *(_values,) * 8,
    *(_rows,) * 2,
    _cast,
    _without,
    _twice,
    _rename,
    _order,
    _metadata,
    _metadata,
)
