"""Event tables: a trace as Arrow or Parquet on disk, and back.

All that ``Trace`` tells beside its events stands in the metadata, see ``replay.trace.metadata``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from replay.arrow import Places, ReadColumns
from replay.errors import OutputError, TraceError
from replay.output import replacing
from replay.schema import COLUMN_TYPES, Columns, event_schema
from replay.trace.table.arrow_file import open_arrow
from replay.trace.table.checked import WORDS, check_columns, check_schema, column_array
from replay.trace.table.columns import Filled, ahead
from replay.trace.table.metadata import counted_facts, stored_facts, table_metadata
from replay.trace.trace import Trace


def write_table(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the events of ``trace``: Parquet for ``.parquet``, Arrow for ``.arrow`` and ``.feather``.

    Arrow is as large as the text and read as it is, Parquet is a sixth of that and decoded in part.
    The file is complete or absent, see ``output.replacing``.  Raises OutputError.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".arrow", ".feather"):
        raise OutputError(path, "the name of a table must end in .parquet, .arrow or .feather")
    schema = event_schema().with_metadata(table_metadata(trace))
    with replacing(path) as temporary, temporary.open("wb") as file:
        write = _write_parquet if path.suffix == ".parquet" else _write_arrow
        write(file, schema, trace.record_batches(schema))


_CORRUPT = (pa.ArrowException, OSError, ValueError, KeyError)
"""What reading a damaged file raises."""


def read_table(path: str, file_format: str) -> Trace:
    """The trace that ``write_table`` wrote, or another program with the same columns.

    ``file_format`` is "parquet" or "arrow".  Metadata that is missing, or does not go with the rows any more,
    is made up for.  Raises TraceError.
    """
    if path == "-":
        raise TraceError(path, 0, f"a {file_format} table cannot be read from standard input: give its path")
    try:
        opened = _open_parquet(path) if file_format == "parquet" else _open_arrow(path)
    except _CORRUPT as error:
        raise _corrupt(path, file_format, error) from error
    try:
        check_schema(opened.schema)
        facts = stored_facts(opened.schema.metadata)
    except ValueError as error:
        raise TraceError(path, 0, f"a {file_format} file, but no table of events: {error}") from error

    def columns(places: Places, needed: Collection[str], vms: int) -> Iterator[Columns]:
        try:
            for batch in opened.read(places, needed):
                check_columns(batch, needed, vms)
                yield batch
        except _CORRUPT as error:
            raise _corrupt(path, file_format, error) from error

    if facts is None or facts["events"] != opened.rows:
        facts = counted_facts(facts, columns)
    places = {name: {text: n for n, text in enumerate(facts[name + "s"])} for name in WORDS}
    vms = len(facts["vms"])
    return Trace(path, file_format, **facts, _batches=lambda needed: columns(places, needed, vms))


def _corrupt(path: str, file_format: str, error: Exception) -> TraceError:
    what = str(error).partition("\n")[0]
    return TraceError(path, 0, f"corrupt {file_format} file: {what}")


class _Opened(NamedTuple):
    schema: pa.Schema
    rows: int
    read: ReadColumns


def _open_parquet(path: str) -> _Opened:
    from replay.trace.table.parquet import open_parquet  # takes long to import

    return _Opened(*open_parquet(path))


def _open_arrow(path: str) -> _Opened:
    file = open_arrow(path)
    filled = Filled()

    def batches(places: Places, needed: Collection[str]) -> Iterator[Columns]:
        for arrays in file.batches({*needed, "line"}):
            rows = len(arrays["line"])
            columns = {name: filled.column(name, 0, rows) for name in COLUMN_TYPES if name not in arrays}
            yield Columns(
                **columns, **{name: column_array(name, array, places) for name, array in arrays.items()}
            )

    return _Opened(file.schema, file.rows, lambda places, needed: ahead(batches(places, needed)))


def _write_parquet(file: IO[bytes], schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    from replay.trace.table.parquet import write_parquet

    write_parquet(file, schema, batches)


def _write_arrow(file: IO[bytes], schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with pa.ipc.new_file(file, schema) as writer:  # not compressed, so that columns are read as they are
        for batch in batches:
            writer.write_batch(batch)
