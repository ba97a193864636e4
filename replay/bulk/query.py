"""SQL over a dataset."""

from __future__ import annotations

import glob
import re
from typing import IO, TYPE_CHECKING

from replay.bulk.storage import Storage
from replay.errors import InputError, UsageError
from replay.printable import printable_lines
from replay.schema import BULK_TABLES
from replay.trace.files import MANIFEST

if TYPE_CHECKING:
    import polars as pl


_READS_FILES = re.compile(r"""\b(?:read|scan)_\w+["`\]]?\s*(?:\(|/\*|--|\#)""", re.IGNORECASE)
"""A function of polars' SQL that is a table made of a file; before its parenthesis there may be comments."""


def query(url: str, sql: str) -> pl.DataFrame:
    """The answer to ``sql`` in polars' SQL; tables are those of ``BULK_TABLES``, with a column ``policy``.

    Raises ``InputError`` where there is no dataset, ``UsageError`` for what is wrong with the query.
    """
    import polars as pl

    if found := _READS_FILES.search(sql):
        name = re.match(r"\w+", found[0])
        assert name is not None
        raise UsageError(f"query: {name[0]} reads other files: a query reads the dataset alone")
    storage = Storage(url)
    if not storage.exists(MANIFEST):
        raise InputError(url, 0, f"no dataset of replay bulk: it has no {MANIFEST}")
    root = glob.escape(storage.root) if storage.local else url.rstrip("/")
    tables = {
        table: pl.scan_parquet(
            f"{root}/{table}/**/*.parquet", hive_partitioning=True, hive_schema={"policy": pl.String}
        )
        for table in BULK_TABLES
        if storage.names(table)
    }
    if not tables:
        raise InputError(url, 0, "the dataset has no rows yet")
    try:
        with pl.SQLContext(tables) as context:
            return context.execute(sql, eager=True)
    except pl.exceptions.PolarsError as error:
        reason, _, _ = str(error).partition("; valid columns")
        raise UsageError(f"query: {reason}") from error


def write_csv(answer: pl.DataFrame, file: IO[str]) -> None:
    """Write CSV; the entries of a list are joined by ``; ``."""
    import polars as pl

    lists = [name for name, kind in answer.schema.items() if isinstance(kind, pl.List)]
    text = answer.with_columns(pl.col(lists).cast(pl.List(pl.String)).list.join("; ")).write_csv()
    file.write(printable_lines(text) if file.isatty() else text)
