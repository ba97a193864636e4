"""A run as rows of the dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from replay.errors import GoldenError, InputError, MalformedLine, ReplayError, TraceError
from replay.schema import BULK_TABLES, RunError, bulk_schema, runs_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from replay.run import Run

Tables = Mapping[str, "pa.Table"]
"""The rows of a run, by the names of ``BULK_TABLES``."""

_UNNAMED = ("trace", "totals")
"""Sections of the document whose name is not part of the column names."""
_LEFT_OUT = ("schema", "path", "notes", "rmap_histogram", "migrations")
_AS_TEXT = (
    "losses",
    "policy_knobs",
    "expected_not_compared",
    "expected_whole_from",
    "recorded_skipped",
    "divergences",
)
_NULL_SECTIONS = ("recorded", "expected_get_page", "expected_probes")
"""Sections that are null if they are empty: their columns are null, too."""
MAX_MESSAGE = 500


def run_tables(path: str, content: str, file_bytes: int, run: Run) -> dict[str, pa.Table]:
    """The rows of one run in each of ``BULK_TABLES``."""
    row = run_row(run.document) | {"kernel": run.trace.kernel}
    tables = {"runs": _runs_table(path, content, file_bytes, row)}
    for name, table in run.tables().items():
        schema = bulk_schema(name)
        columns = [_repeated(content, table.num_rows), *table.columns]
        tables[name] = _table(columns, schema)
    return tables


def error_tables(path: str, content: str | None, file_bytes: int, error: Exception) -> dict[str, pa.Table]:
    """The row of a trace that could not be replayed; the other tables are empty."""
    row = {
        "error_code": error_code(error).name.lower(),
        "error_line": (error.line or None) if isinstance(error, InputError) else None,
        "error_message": _message(error)[:MAX_MESSAGE],
    }
    return _empty() | {"runs": _runs_table(path, content, file_bytes, row)}


def run_row(document: Mapping[str, Any]) -> dict[str, Any]:
    """The ``replay.run/1`` document as a row of ``runs``."""
    row = dict(_flat(document, ""))
    row["windows"] = len(document["windows"])
    return row


def error_code(error: Exception) -> RunError:
    """The word for the error that prevented a trace from being replayed."""
    codes: Iterable[tuple[type[Exception], RunError]] = (
        (MalformedLine, RunError.MALFORMED_LINE),
        (TraceError, RunError.UNREADABLE if isinstance(error.__cause__, OSError) else RunError.TRACE),
        (GoldenError, RunError.GOLDEN),
        (ReplayError, RunError.USAGE),
        (WorkerDied, RunError.WORKER_DIED),
        (MemoryError, RunError.MEMORY),
        (OSError, RunError.UNREADABLE),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), RunError.INTERNAL)


class WorkerDied(Exception):
    """The process that replayed a trace died before it was done, more than once."""


def _message(error: Exception) -> str:
    if isinstance(error, InputError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, (ReplayError, WorkerDied)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _flat(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        name = prefix + key
        if name in _LEFT_OUT:
            continue
        if name in _AS_TEXT:
            yield name, json.dumps(value)
        elif isinstance(value, Mapping):
            yield from _flat(value, "" if name in _UNNAMED else f"{name}_")
        elif value is not None or name not in _NULL_SECTIONS:
            yield name, value


def _runs_table(path: str, content: str | None, file_bytes: int, row: Mapping[str, Any]) -> pa.Table:
    import pyarrow as pa

    row = {"path": path, "content": content, "file_bytes": file_bytes, **row}
    # in one piece: each conversion of Python values first looks for other packages
    return pa.Table.from_struct_array(pa.array([row], pa.struct(runs_schema())))


@cache
def _empty() -> dict[str, pa.Table]:
    return {name: bulk_schema(name).empty_table() for name in BULK_TABLES}


def _repeated(text: str, count: int) -> pa.Array:
    import pyarrow as pa

    return pa.repeat(pa.scalar(text, pa.string()), count)


def _table(columns: list[Any], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    cast = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.table(cast, schema=schema)
