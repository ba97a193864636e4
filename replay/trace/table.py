"""Event tables: a trace as Arrow or Parquet on disk, and back.

All that ``Trace`` tells beside its events stands in the schema metadata under the key ``replay``, as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from replay.arrow import arrow_array
from replay.errors import OutputError, TraceError
from replay.schema import COLUMN_TYPES, Columns, event_schema

if TYPE_CHECKING:
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
    "first_ts_ns",
    "last_ts_ns",
    "vms",
    "comms",
    "texts",
    "kernel",
    "truncated",
)


def _table_schema(trace: Trace) -> pa.Schema:
    facts = {"schema": TABLE_SCHEMA, **{name: getattr(trace, name) for name in _FACTS}}
    return event_schema().with_metadata({METADATA_KEY: json.dumps(facts)})


def _record_batches(trace: Trace, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    dictionaries = {"comm": pa.array(trace.comms, pa.string()), "text": pa.array(trace.texts, pa.string())}
    for batch in trace.batches():
        arrays = []
        for name, column in zip(COLUMN_TYPES, batch, strict=True):
            if name in dictionaries:
                indices = arrow_array(column, pa.int32(), column < 0)
                arrays.append(pa.DictionaryArray.from_arrays(indices, dictionaries[name]))
            else:
                arrays.append(arrow_array(column, schema.field(name).type))
        yield pa.record_batch(arrays, schema=schema)


def trace_table(trace: Trace) -> pa.Table:
    """All events of ``trace`` as one table of ``replay.schema.event_schema()``."""
    schema = event_schema()
    return pa.Table.from_batches(_record_batches(trace, schema), schema)


def write_table(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the events of ``trace``: Parquet for ``.parquet``, Arrow for ``.arrow`` and ``.feather``.

    Arrow is as large as the text and read by mapping it, Parquet is compressed and decoded when it is read.
    The file is complete or absent: it is written beside ``path`` and renamed.  Raises OutputError.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".arrow", ".feather"):
        raise OutputError(path, "the name of a table must end in .parquet, .arrow or .feather")
    schema = _table_schema(trace)
    try:
        with _replacing(path) as file, _writer(path, file, schema) as writer:
            for batch in _record_batches(trace, schema):
                for begin in range(0, len(batch), _ROW_GROUP):
                    writer.write_batch(batch[begin : begin + _ROW_GROUP])
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


_RISING = ("gfn", "addr", "spte", "old_spte", "sptep", "num", "ts_ns", "line")
"""Columns of many values, of which each is near the one before."""
_ROW_GROUP = 1 << 17
"""Rows that are decoded at once: few enough that the same memory serves all of them, near the processor."""


def _writer(path: Path, file: IO[bytes], schema: pa.Schema) -> Any:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.ParquetWriter(
            file,
            schema,
            compression="lz4",
            use_dictionary=[name for name in COLUMN_TYPES if name not in _RISING],
            column_encoding=dict.fromkeys(_RISING, "DELTA_BINARY_PACKED"),
        )
    return pa.ipc.new_file(file, schema)  # not compressed, so that it is read by mapping it


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


def read_table(path: str, file_format: str) -> Trace:
    """The trace that ``write_table`` wrote; ``file_format`` is "parquet" or "arrow".  Raises TraceError."""
    from replay.trace.trace import Trace

    if path == "-":
        raise TraceError(path, 0, f"a {file_format} table cannot be read from standard input: give its path")
    try:
        schema, batches = _open_parquet(path) if file_format == "parquet" else _open_arrow(path)
        facts = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TraceError(path, 0, f"corrupt {file_format} file: {str(error).splitlines()[0]}") from error
    if facts.get("schema") != TABLE_SCHEMA or schema.remove_metadata() != event_schema():
        raise TraceError(path, 0, f"a {file_format} file, but no table of events ({TABLE_SCHEMA})")
    facts = {name: facts[name] for name in _FACTS if name in facts}
    facts["malformed"] = [(line, text) for line, text in facts["malformed"]]
    places = {name: {text: n for n, text in enumerate(facts[name + "s"])} for name in ("comm", "text")}

    def columns() -> Iterator[Columns]:
        try:
            for batch in batches():
                yield _columns(batch, places)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise TraceError(path, 0, f"corrupt {file_format} file: {str(error).splitlines()[0]}") from error

    return Trace(path, file_format, **facts, _batches=columns)


_Opened = tuple[pa.Schema, Callable[[], Iterator[pa.RecordBatch]]]


def _open_parquet(path: str) -> _Opened:
    import pyarrow.parquet as pq

    def batches() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path, read_dictionary=["comm", "text"]) as file:
            for number in range(file.num_row_groups):  # batches across row groups would be copied together
                yield from file.read_row_group(number, use_threads=False).to_batches()

    with pq.ParquetFile(path) as file:
        return file.schema_arrow, batches


def _open_arrow(path: str) -> _Opened:
    def batches() -> Iterator[pa.RecordBatch]:
        with open(path, "rb") as file:  # written by nobody, but private, as jitted code wants arrays writable
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)  # what was read need not stay in memory

    with pa.memory_map(path) as mapped:
        return pa.ipc.open_file(mapped).schema, batches


def _columns(batch: pa.RecordBatch, places: dict[str, dict[str, int]]) -> Columns:
    """The arrays of a record batch, writable; dictionary columns numbered as in the whole trace."""
    arrays = []
    for name, column in zip(COLUMN_TYPES, batch.columns, strict=True):
        if name not in places:
            arrays.append(_values(column, COLUMN_TYPES[name]))
        elif column.null_count == len(column):
            arrays.append(np.full(len(column), -1, np.int32))
        else:
            own = [places[name][word] for word in column.dictionary.to_pylist()]
            indices = _values(column, "int32")
            if column.null_count:
                indices = np.where(_valid(column), indices, len(own))
            arrays.append(np.array([*own, -1], np.int32)[indices])
    return Columns(*arrays)


def _values(column: pa.Array, kind: str) -> np.ndarray:
    """The memory of ``column`` (of its indices, if it has a dictionary), which nobody else has, writable.

    Arrow hands out arrays that cannot be written to, which are another type to jitted code.
    """
    buffer = column.buffers()[1]
    if buffer is None:
        return np.zeros(len(column), kind)
    memory = (ctypes.c_uint8 * buffer.size).from_address(buffer.address)
    memory.owner = buffer  # which lives as long as the array
    return np.frombuffer(memory, kind, len(column), column.offset * np.dtype(kind).itemsize)


def _valid(column: pa.Array) -> np.ndarray:
    """Where ``column``, some of whose values are null, has one; pyarrow.compute takes long to import."""
    bits = np.frombuffer(column.buffers()[0], np.uint8)
    return np.unpackbits(bits, bitorder="little")[column.offset : column.offset + len(column)] != 0
