"""The dataset: Parquet files in ``TABLE/policy=LABEL/part-N.parquet``, made from staged rows.

A part is four files of one name.  That of ``runs`` is written last and so makes the part valid; its
metadata names the parts that it replaces.  Whatever a run left half done is told by this: files of
the other tables without one of ``runs``, and parts that another one replaces, are removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from replay.bulk.manifest import SCHEMA, read_manifest, results_version
from replay.bulk.part import PART_NAME, REPLACES, Partition, PartWriter, Row
from replay.bulk.storage import STAGING, Storage, read_staged
from replay.errors import OutputError
from replay.schema import BULK_TABLES, bulk_schema
from replay.trace.files import MANIFEST

if TYPE_CHECKING:
    from replay.bulk.rows import Tables
    from replay.bulk.work import Reply

Say = Callable[[str], None]


class DamagedPart(OutputError):
    """A file of a part is missing, cut off, or cannot be decoded."""


def _silent(line: str) -> None:
    """Report nothing."""


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _number(part: str) -> int:
    return int(part.removeprefix("part-").removesuffix(".parquet"))


class Dataset:
    """An open dataset; hold ``storage.lock()`` while it is open."""

    def __init__(
        self, storage: Storage, options: Mapping[str, Any], policies: Mapping[str, Any], say: Say = _silent
    ) -> None:
        """``options`` and the knobs by label in ``policies`` must be those that the dataset was made with.

        Results of another version of the simulator are removed, and damaged parts, which ``say`` is told.
        Raises ``UsageError``.
        """
        self.storage = storage
        self._say = say
        self.discarded = 0
        version = results_version()
        self.key = hashlib.sha256(json.dumps([version, options]).encode()).hexdigest()
        known = read_manifest(storage, options, policies)
        if known and known["version"] != version:
            self._discard_all()
        self._adopted: dict[str, dict[str, str]] = defaultdict(dict)
        self._adopting = Lock()
        manifest = {"schema": SCHEMA, "version": version, "options": options}
        manifest["policies"] = (known or {}).get("policies", {}) | policies
        if manifest != known:
            with storage.replacing(MANIFEST) as file:
                file.write(json.dumps(manifest, indent=1).encode() + b"\n")
        self._taken = 0
        """The highest number of a part whose place is taken by something else."""
        self._partitions = {label: self._open(label) for label in manifest["policies"]}
        self.finish()

    def _discard_all(self) -> None:
        for table in (*BULK_TABLES, STAGING):
            for name in self.storage.names(table):
                self.discarded += table == "runs"
                self.storage.remove(name)

    def _open(self, label: str) -> Partition:
        """Read the content of a partition, and remove what an unfinished commit left in it."""
        partition = Partition(label)
        sizes = {
            table: {posixpath.basename(name): size for name, size in found.items()}
            for table in BULK_TABLES
            for found in [self.storage.names(partition.directory(table))]
        }
        for table in BULK_TABLES:
            others = filter(PART_NAME.fullmatch, self.storage.others(partition.directory(table)))
            self._taken = max([self._taken, *map(_number, others)])
        for parts in sizes.values():
            for foreign in [name for name in parts if not PART_NAME.fullmatch(name)]:
                del parts[foreign]
        replaced: set[str] = set()
        for part in list(sizes["runs"]):
            try:
                replaced.update(self._check_part(partition, part))
            except DamagedPart as damage:
                self._remove_part(partition, part)
                self._say(f"{damage}: it is removed, what it held is made anew")
                for parts in sizes.values():
                    parts.pop(part, None)
        for part in replaced & sizes["runs"].keys():
            self.storage.remove(partition.file("runs", part))
            del sizes["runs"][part]
        for table, parts in sizes.items():
            for part in parts.keys() - sizes["runs"].keys():
                self.storage.remove(partition.file(table, part))
        for part in sizes["runs"]:
            partition.part_bytes[part] = sum(sizes[table].get(part, 0) for table in BULK_TABLES)
            columns = ["path", "content", "file_bytes", "error_code"]
            for path, content, size, error in zip(
                *self._read(partition, "runs", part, columns).to_pydict().values(), strict=True
            ):
                partition.rows[path] = Row(content, size, part, error)
        return partition

    def _check_part(self, partition: Partition, part: str) -> list[str]:
        """The parts that a part replaces.  Raises ``DamagedPart`` if a file is missing or cut off."""
        replaced: list[str] = []
        for table in BULK_TABLES:
            name = partition.file(table, part)
            with self._undamaged(name), self.storage.reading(name) as file:
                found = pq.ParquetFile(file)
                if found.schema_arrow.remove_metadata() != bulk_schema(table):
                    raise ValueError("its columns are others")
                if table == "runs":
                    replaced = json.loads((found.metadata.metadata or {}).get(REPLACES, b"[]"))
                    if not isinstance(replaced, list) or not all(isinstance(old, str) for old in replaced):
                        raise ValueError("its metadata are others")
        return replaced

    @contextmanager
    def _undamaged(self, name: str) -> Iterator[None]:
        """Raises ``DamagedPart`` if the file ``name`` does not exist or cannot be decoded."""
        try:
            yield
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise DamagedPart(posixpath.join(self.storage.url, name), _reason(error)) from error
        except OutputError as error:
            cause = error.__cause__
            # pyarrow raises OSError without a number if it cannot decode a file
            is_absent = isinstance(cause, (FileNotFoundError, IsADirectoryError))
            if is_absent or getattr(cause, "errno", None) in (None, errno.EINVAL):
                raise DamagedPart(posixpath.join(self.storage.url, name), error.message) from error
            raise

    def _remove_part(self, partition: Partition, part: str) -> None:
        for table in BULK_TABLES:
            self.storage.remove(partition.file(table, part))

    def known(self, labels: Iterable[str]) -> dict[str, dict[int, frozenset[str]]]:
        """By policy and size of the file, contents that need not be replayed again."""
        found: dict[str, dict[int, set[str]]] = {label: defaultdict(set) for label in labels}
        for label, by_size in found.items():
            for row in self._partitions[label].rows.values():
                if row.settled and row.content is not None:
                    by_size[row.file_bytes].add(row.content)
        return {
            label: {size: frozenset(contents) for size, contents in by_size.items()}
            for label, by_size in found.items()
        }

    def keep(self, reply: Reply) -> None:
        """The rows of a trace exist already: make sure that one of them has its path."""
        for label in reply.kept:
            row = self._partitions[label].rows.get(reply.path)
            if reply.content is not None and (row is None or row.content != reply.content):
                with self._adopting:
                    self._adopted[label][reply.path] = reply.content

    def finish(self) -> None:
        """Commit, and remove unfinished files of earlier runs; nobody may be writing."""
        self.commit()
        for name in self.storage.names(STAGING):
            self.storage.remove(name)

    def commit(self) -> None:
        """Make parts of everything staged and kept so far; more may be staged and kept in the meantime."""
        staged = [name for name in self.storage.names(STAGING) if name.endswith(".arrow")]
        with self._adopting:
            kept, self._adopted = self._adopted, defaultdict(dict)
        if not staged and not kept:
            return
        parts = (part for each in self._partitions.values() for part in each.part_bytes)
        number = 1 + max([self._taken, *map(_number, parts)])
        with ExitStack() as stack:
            writers: dict[str, PartWriter] = {}

            def writer(label: str) -> PartWriter:
                if label not in writers:
                    part = PartWriter(self.storage, self._partitions[label], f"part-{number:05d}.parquet")
                    writers[label] = stack.enter_context(part)
                return writers[label]

            for label, adopted in kept.items():
                for runs in self._adopted_rows(self._partitions[label], adopted):
                    writer(label).add_runs(runs)
            for name in staged:
                for label, tables in self._staged(name):
                    writer(label).add(tables)
            for each in writers.values():
                self._finish(each)
        for name in staged:
            self.storage.remove(name)

    def _staged(self, name: str) -> Iterator[tuple[str, Tables]]:
        """The rows of a staged file; nothing if it is damaged or useless."""
        try:
            yield from read_staged(self.storage, self.key, name)
        except (pa.ArrowException, KeyError):
            return

    def _adopted_rows(self, partition: Partition, adopted: Mapping[str, str]) -> Iterator[pa.Table]:
        """Rows of ``runs`` for paths whose content is in the dataset under other paths."""
        sources = {row.content: (row.part, path) for path, row in partition.rows.items() if row.settled}
        by_part: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for path, content in adopted.items():
            part, source = sources[content]
            by_part[part].append((path, source))
        for part, pairs in by_part.items():
            runs = self._read(partition, "runs", part)
            places = {path: n for n, path in enumerate(runs["path"].to_pylist())}
            taken = runs.take([places[source] for _, source in pairs])
            yield taken.set_column(0, "path", pa.array([path for path, _ in pairs], pa.string()))

    def _finish(self, writer: PartWriter) -> None:
        """Close a part, join it with the remaining rows of the parts that it replaces, and remove those."""
        partition = writer.partition
        replaced = writer.replaced()
        rest = {path: row for path, row in partition.rows.items() if path not in writer.paths}
        contents = {row.content for row in rest.values() if row.error is None} | writer.contents
        for part in replaced:
            runs = self._read(partition, "runs", part)
            writer.add_runs(runs.filter(pc.is_in(runs["path"], pa.array(rest, pa.string()))))
            for table in BULK_TABLES[1:]:
                rows = self._read(partition, table, part)
                kept = pc.is_in(rows["content"], pa.array(contents, pa.string()))
                writer.add_rows(table, rows.filter(kept))
        part, rows = writer.finish(replaced)
        for old in replaced:
            for table in BULK_TABLES:
                self.storage.remove(partition.file(table, old))
            partition.part_bytes.pop(old)
        partition.rows.update(rows)
        partition.part_bytes[part] = writer.bytes

    def _read(
        self, partition: Partition, table: str, part: str, columns: list[str] | None = None
    ) -> pa.Table:
        name = partition.file(table, part)
        try:
            with self._undamaged(name), self.storage.reading(name) as file:
                return pq.read_table(file, columns=columns).replace_schema_metadata(None)
        except DamagedPart as damage:
            self._remove_part(partition, part)
            raise OutputError(
                damage.path, f"{damage.message}: it is removed, the same command makes anew what it held"
            ) from damage

    def runs(self, labels: Iterable[str], paths: Iterable[str]) -> list[dict[str, Any]]:
        """The rows of ``runs`` of some traces, with their ``policy``."""
        wanted = pa.array(paths, pa.string())
        found = []
        for partition in (self._partitions[label] for label in labels):
            for part in partition.part_bytes:
                table = self._read(partition, "runs", part)
                rows = table.filter(pc.is_in(table["path"], wanted)).to_pylist()
                found += [{"policy": partition.label, **row} for row in rows]
        return found
