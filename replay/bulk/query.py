"""SQL over a dataset."""

from __future__ import annotations

import json
import math
import re
from datetime import date, time, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from replay.bulk.part import is_part
from replay.bulk.storage import Storage
from replay.errors import InputError, UsageError
from replay.output import replacing
from replay.printable import printable_lines
from replay.schema import BULK_TABLES
from replay.trace.files import MANIFEST

if TYPE_CHECKING:
    import polars as pl


_READS_FILES = re.compile(r"""\b(?:read|scan)_\w+["`\]]?\s*(?:\(|/\*|--|\#)""", re.IGNORECASE)
"""A table function of polars' SQL that reads a file; comments may come before its parenthesis."""


def query(url: str, sql: str) -> pl.DataFrame:
    """The answer to ``sql`` in polars' SQL; the tables are ``BULK_TABLES``, with a column ``policy``.

    Raises ``InputError`` if there is no dataset, ``UsageError`` if something is wrong with the query.
    """
    import polars as pl

    if found := _READS_FILES.search(sql):
        name = re.match(r"\w+", found[0])
        assert name is not None
        raise UsageError(f"query: {name[0]} reads other files: a query can read only the dataset")
    storage = Storage(url)
    if not storage.exists(MANIFEST):
        raise InputError(url, 0, f"not a dataset of replay bulk: there is no {MANIFEST} in it")
    root = storage.root if storage.local else url.rstrip("/")
    tables = {
        table: pl.scan_parquet(
            [f"{root}/{name}" for name in parts],
            glob=False,
            hive_partitioning=True,
            hive_schema={"policy": pl.String},
        )
        for table in BULK_TABLES
        if (parts := [name for name in storage.names(table) if is_part(name)])
    }
    if not tables:
        raise InputError(url, 0, "the dataset has no rows yet")
    try:
        with pl.SQLContext(tables) as context:
            return context.execute(sql, eager=True)
    except pl.exceptions.PolarsError as error:
        reason, _, _ = str(error).partition("; valid columns")
        raise UsageError(f"query: {reason}") from error


def json_rows(answer: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of an answer for JSON; a number that is not finite is null."""
    return [{name: _plain(value) for name, value in row.items()} for row in answer.to_dicts()]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def write_parquet(answer: pl.DataFrame, path: Path) -> None:
    """Write a Parquet file, whole or not at all.  Raises ``OutputError``."""
    with replacing(path) as temporary:
        answer.write_parquet(temporary)


def write_csv(answer: pl.DataFrame, file: IO[str]) -> None:
    """Write CSV; the entries of a list are joined by ``; ``, and deeper structures are JSON."""
    import polars as pl

    lists = [name for name, kind in answer.schema.items() if _is_flat_list(kind)]
    deep = [name for name, kind in answer.schema.items() if _is_deep(kind) and name not in lists]
    rows = json_rows(answer.select(deep))
    as_text = [
        pl.Series(name, [None if row[name] is None else _word(row[name]) for row in rows], pl.String)
        for name in deep
    ]
    flat = answer.with_columns(pl.col(lists).cast(pl.List(pl.String)).list.join("; "), *as_text)
    text = flat.write_csv()
    file.write(printable_lines(text) if file.isatty() else text)


def _is_flat_list(kind: pl.DataType) -> bool:
    import polars as pl

    return isinstance(kind, pl.List) and not _is_deep(kind.inner)


def _is_deep(kind: Any) -> bool:
    """Whether CSV has no form for the type."""
    import polars as pl

    return kind.is_nested() or kind in (pl.Binary, pl.Object, pl.Duration)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
