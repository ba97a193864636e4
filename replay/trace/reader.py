"""``read_trace``: a trace of any form, as counts about it and batches of columns."""

from __future__ import annotations

from replay.errors import TraceError
from replay.trace.formats import check_format, is_of_format
from replay.trace.parser import BATCH_ROWS, ByteSource, Parser, Progress
from replay.trace.source import Source
from replay.trace.table.batch_store import BatchStore
from replay.trace.table.event_table import read_table, write_table
from replay.trace.text.encodings import decoded
from replay.trace.text.perf_data import PerfScript
from replay.trace.text.sections import thread_count
from replay.trace.text.text_parser import CHUNK_BYTES, TextParser
from replay.trace.trace import Trace

__all__ = ["Trace", "read_trace", "write_table"]

_OF_FILES = ("parquet", "arrow", "perf.data")
"""Formats that are opened by the path."""
MEMORY_BYTES = 128 << 20
"""Columns kept in memory; a trace that needs more continues in a temporary file."""


def read_trace(
    path: str,
    *,
    file_format: str | None = None,
    strict: bool = False,
    tolerate_truncation: bool = False,
    progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    batch_rows: int = BATCH_ROWS,
    memory_bytes: int = MEMORY_BYTES,
    threads: int | None = None,
) -> Trace:
    """Read a trace: text in any of its forms, trace.dat, perf.data, or a table of ``replay parse``.

    ``path`` may be "-" for standard input.  ``file_format``, one of ``replay.trace.formats.FORMATS``,
    says what it is where its content does not tell.  ``strict`` makes the first malformed line an error;
    ``tolerate_truncation`` takes what there is of a compressed file that was cut off.  ``threads`` scan at
    once, as many as there are cores if it is None.
    Raises TraceError where the input is no trace or cannot be read, MalformedLine under ``strict``.
    """
    path = str(path)
    check_format(file_format)
    opened = Source(path)
    source: ByteSource = opened
    store = BatchStore(memory_bytes)
    try:
        if not is_of_format(file_format, source.format):
            raise TraceError(path, 0, f"--format {file_format}, but this is {source.format}")
        if source.format in _OF_FILES and source.size is None and path != "-":
            raise TraceError(path, 0, f"{source.format} cannot be read from a pipe: give the path of a file")
        if source.format in ("parquet", "arrow"):
            return read_table(path, source.format)
        if source.format == "perf.data":
            source.close()
            source = PerfScript(path)
        elif source.format == "text":
            source = decoded(opened)
        parser_class: type[Parser] = TextParser
        if source.format == "trace.dat":
            from replay.trace.dat.reader import DatParser

            parser_class = DatParser
        parser = parser_class(source, file_format, strict, tolerate_truncation, progress, batch_rows, store)
        return parser.parse(chunk_bytes, threads or thread_count())
    finally:
        store.finish()
        source.close()
