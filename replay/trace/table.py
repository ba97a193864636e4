"""Event tables: a trace as Arrow or Parquet on disk, and back.

All that ``Trace`` tells beside its events stands in the schema metadata under the key ``replay``, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from replay.arrow import Places, ReadColumns, numbered_array, numpy_array
from replay.errors import OutputError, TraceError
from replay.schema import COLUMN_TYPES, Columns, event_schema
from replay.trace.trace import Trace

METADATA_KEY = b"replay"
TABLE_SCHEMA = "replay.events/1"
_FACTS = (
    "bytes",
    "lines",
    "events",
    "kvmmmu_events",
    "ignored_lines",
    "malformed_lines",
    "malformed",
    "ignored_events",
    "lost_events",
    "losses",
    "notes",
    "first_ts_ns",
    "last_ts_ns",
    "vms",
    "comms",
    "texts",
    "kernel",
    "role_words",
    "truncated",
)


def _table_schema(trace: Trace) -> pa.Schema:
    facts = {"schema": TABLE_SCHEMA, **{name: getattr(trace, name) for name in _FACTS}}
    return event_schema().with_metadata({METADATA_KEY: json.dumps(facts)})


def write_table(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the events of ``trace``: Parquet for ``.parquet``, Arrow for ``.arrow`` and ``.feather``.

    Arrow is as large as the text and read by mapping it, Parquet is a sixth of that and decoded in part.
    The file is complete or absent: it is written beside ``path`` and renamed.  Raises OutputError.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".arrow", ".feather"):
        raise OutputError(path, "the name of a table must end in .parquet, .arrow or .feather")
    schema = _table_schema(trace)
    try:
        with _replacing(path) as file:
            write = _write_parquet if path.suffix == ".parquet" else _write_arrow
            write(file, schema, trace.record_batches(schema))
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its name when all went well, and is removed when not."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


_CORRUPT = (pa.ArrowException, OSError, ValueError, KeyError)
"""What reading a damaged file raises."""


def read_table(path: str, file_format: str) -> Trace:
    """The trace that ``write_table`` wrote; ``file_format`` is "parquet" or "arrow".  Raises TraceError."""
    if path == "-":
        raise TraceError(path, 0, f"a {file_format} table cannot be read from standard input: give its path")
    try:
        schema, batches = _open_parquet(path) if file_format == "parquet" else _open_arrow(path)
        facts = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except _CORRUPT as error:
        raise _corrupt(path, file_format, error) from error
    if facts.get("schema") != TABLE_SCHEMA or schema.remove_metadata() != event_schema():
        raise TraceError(path, 0, f"a {file_format} file, but no table of events ({TABLE_SCHEMA})")
    facts = {name: facts[name] for name in _FACTS if name in facts}
    facts["malformed"] = [(line, text) for line, text in facts["malformed"]]
    places = {name: {text: n for n, text in enumerate(facts[name + "s"])} for name in ("comm", "text")}

    def columns(needed: Collection[str]) -> Iterator[Columns]:
        try:
            yield from batches(places, needed)
        except _CORRUPT as error:
            raise _corrupt(path, file_format, error) from error

    return Trace(path, file_format, **facts, _batches=columns)


def _corrupt(path: str, file_format: str, error: Exception) -> TraceError:
    what = str(error).partition("\n")[0]
    return TraceError(path, 0, f"corrupt {file_format} file: {what}")


_Opened = tuple[pa.Schema, ReadColumns]


def _open_parquet(path: str) -> _Opened:
    from replay.trace.parquet import open_parquet  # takes long to import

    return open_parquet(path)


def _write_parquet(file: IO[bytes], schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    from replay.trace.parquet import write_parquet

    write_parquet(file, schema, batches)


def _write_arrow(file: IO[bytes], schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with pa.ipc.new_file(file, schema) as writer:  # not compressed, so that it is read by mapping it
        for batch in batches:
            writer.write_batch(batch)


def _open_arrow(path: str) -> _Opened:
    with open(path, "rb") as file:  # written by nobody, but private, as jitted code wants arrays writable
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    reader = pa.ipc.open_file(pa.py_buffer(mapped))

    def batches(places: Places, _: Collection[str]) -> Iterator[Columns]:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield Columns(
                *(
                    numbered_array(column, places[name]) if name in places else numpy_array(column, kind)
                    for (name, kind), column in zip(COLUMN_TYPES.items(), batch.columns, strict=True)
                )
            )
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)  # what was read need not stay in memory

    return reader.schema, batches
