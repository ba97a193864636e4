"""One part of the dataset: what is known about its rows, and how its four files are written."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from replay.bulk.storage import Storage
from replay.schema import BULK_TABLES, RunError, bulk_schema

if TYPE_CHECKING:
    from replay.bulk.rows import Tables

REPLACES = b"replay.replaces"
"""Metadata of a file of ``runs``: a JSON list of the parts that its part replaces."""
PART_NAME = re.compile(r"part-\d{5,18}\.parquet")
"""Other files beside the parts are left alone."""
SMALL_PART = 1 << 22
"""Parts with fewer bytes are joined with the next one that is written."""
_ROW_GROUP = 1 << 17
_UNSETTLED = {
    error.name.lower()
    for error in (RunError.UNREADABLE, RunError.MEMORY, RunError.WORKER_DIED, RunError.INTERNAL)
}
"""Errors that may not occur again for the same content."""


def is_part(name: str) -> bool:
    """Whether the file ``name`` of a dataset belongs to a part."""
    return PART_NAME.fullmatch(name.rpartition("/")[2]) is not None


@dataclass(frozen=True)
class Row:
    """What is kept in memory of one row of ``runs``."""

    content: str | None
    file_bytes: int
    part: str
    error: str | None

    @property
    def settled(self) -> bool:
        """The same content would give this row again."""
        return self.content is not None and self.error not in _UNSETTLED


@dataclass
class Partition:
    """The rows of one policy."""

    label: str
    rows: dict[str, Row] = field(default_factory=dict)  # by path
    part_bytes: dict[str, int] = field(default_factory=dict)

    def directory(self, table: str) -> str:
        return f"{table}/policy={quote(self.label, safe='')}"

    def file(self, table: str, part: str) -> str:
        return f"{self.directory(table)}/{part}"


class PartWriter:
    """The files of one new part, each under a temporary name until ``finish``."""

    def __init__(self, storage: Storage, partition: Partition, part: str) -> None:
        self.partition = partition
        self.paths: set[str] = set()
        self.contents: set[str] = set()
        """Contents that the rows of ``runs`` refer to."""
        self.bytes = 0
        self._storage = storage
        self._part = part
        self._have = {row.content for row in partition.rows.values() if row.error is None}
        self._runs: list[pa.Table] = []
        self._waiting: dict[str, list[pa.Table]] = {table: [] for table in BULK_TABLES[1:]}
        self._waiting_rows = dict.fromkeys(self._waiting, 0)
        self._files: dict[str, Any] = {}
        self._writers: dict[str, Any] = {}

    def __enter__(self) -> PartWriter:
        with ExitStack() as stack:
            for table in self._waiting:
                self._storage.make_directory(self.partition.directory(table))
                name = self.partition.file(table, self._part)
                file = stack.enter_context(self._storage.replacing(name))
                writer = pq.ParquetWriter(file, bulk_schema(table), compression="zstd")
                self._files[table], self._writers[table] = file, stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, tables: Tables) -> None:
        """Add a staged trace; tables other than ``runs`` only if no other trace has its content."""
        runs = tables["runs"]
        content = runs["content"][0].as_py()
        self.add_runs(runs)
        if runs["error_code"][0].as_py() is None and content not in self._have:
            self._have.add(content)
            for table in self._waiting:
                self.add_rows(table, tables[table])

    def add_runs(self, runs: pa.Table) -> None:
        self._runs.append(runs)
        self.paths.update(runs["path"].to_pylist())
        good = runs.filter(pc.is_null(runs["error_code"]))
        self.contents.update(good["content"].to_pylist())

    def add_rows(self, table: str, rows: pa.Table) -> None:
        self._waiting[table].append(rows)
        self._waiting_rows[table] += rows.num_rows
        if self._waiting_rows[table] >= _ROW_GROUP:
            self._write(table)

    def _write(self, table: str) -> None:
        if self._waiting[table]:
            self._writers[table].write_table(pa.concat_tables(self._waiting[table]))
            self._waiting[table], self._waiting_rows[table] = [], 0

    def replaced(self) -> list[str]:
        """The parts to be joined with this one: those with a row of the same path, and small ones."""
        rows = self.partition.rows
        old = {rows[path].part for path in self.paths if path in rows}
        return sorted(old | {part for part, size in self.partition.part_bytes.items() if size < SMALL_PART})

    def finish(self, replaced: list[str]) -> tuple[str, dict[str, Row]]:
        """Give the files their final names, ``runs`` last; returns the part and its rows."""
        for table, writer in self._writers.items():
            self._write(table)
            writer.close()
            self.bytes += self._files[table].tell()
        self._stack.close()
        runs = pa.concat_tables(self._runs).sort_by("path")
        self._storage.make_directory(self.partition.directory("runs"))
        with self._storage.replacing(self.partition.file("runs", self._part)) as file:
            with pq.ParquetWriter(file, bulk_schema("runs"), compression="zstd") as writer:
                writer.write_table(runs)
                writer.add_key_value_metadata({REPLACES: json.dumps(replaced)})
            self.bytes += file.tell()
        columns = (runs[name].to_pylist() for name in ("path", "content", "file_bytes", "error_code"))
        return self._part, {
            path: Row(content, size, self._part, error)
            for path, content, size, error in zip(*columns, strict=True)
        }
