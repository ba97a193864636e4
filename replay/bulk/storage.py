"""Where a dataset is stored: a directory, or an URL of fsspec.

Files appear whole or not at all: they are written under a temporary name and renamed.  The rows of
a trace are *staged* first, in one file for all tables and policies, from which the dataset's own
files are made.  A staged file holds Arrow streams, four a policy, in the order of ``BULK_TABLES``;
the metadata of the first one says under which key it was made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import posixpath
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs

from replay.errors import OutputError, UsageError
from replay.regular import check_regular
from replay.schema import BULK_TABLES

if TYPE_CHECKING:
    from replay.bulk.rows import Tables

STAGING = ".staging"
LOCK = ".lock"
_KEY, _POLICY = b"replay.key", b"replay.policy"
_BATCH_ROWS = 1 << 16


class Storage:
    """The files of a dataset, named relative to its root with ``/``.  Methods raise ``OutputError``."""

    def __init__(self, url: str) -> None:
        self.url = url
        scheme, separator, rest = url.partition("://")
        self.local = not separator or scheme in ("file", "local")
        if self.local:
            self.root = os.path.abspath(rest if separator else url)
            self.fs: Any = pafs.LocalFileSystem()
            return
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise UsageError(f"{url}: needs fsspec: pip install 'kvm-replay[dask]'") from error
        try:
            self._fsspec, self.root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{url}: {error}") from error
        self.fs = pafs.PyFileSystem(pafs.FSSpecHandler(self._fsspec))

    def path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    @contextmanager
    def errors(self, name: str = "") -> Iterator[None]:
        """Turns errors of the file system into ``OutputError``."""
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OutputError(posixpath.join(self.url, name), reason) from error

    def make_directory(self, name: str = "") -> None:
        with self.errors(name):
            self.fs.create_dir(self.path(name), recursive=True)

    def names(self, directory: str) -> dict[str, int]:
        """The files below a directory and their sizes; empty if it does not exist."""
        selector = pafs.FileSelector(self.path(directory), allow_not_found=True, recursive=True)
        with self.errors(directory):
            found = self.fs.get_file_info(selector)
        root = self.path("").rstrip("/") + "/"
        files = [info for info in found if info.type == pafs.FileType.File]
        return {info.path.removeprefix(root): info.size for info in sorted(files, key=lambda i: i.path)}

    def others(self, directory: str) -> list[str]:
        """The entries of a directory that are not files."""
        selector = pafs.FileSelector(self.path(directory), allow_not_found=True)
        with self.errors(directory):
            found = self.fs.get_file_info(selector)
        return [info.base_name for info in found if info.type != pafs.FileType.File]

    def exists(self, name: str) -> bool:
        with self.errors(name):
            return bool(self.fs.get_file_info(self.path(name)).type == pafs.FileType.File)

    @contextmanager
    def replacing(self, name: str) -> Iterator[Any]:
        """A file to write to; it gets its name if the block ends without an error."""
        temporary = self.path(f"{STAGING}/tmp-{uuid.uuid4().hex}")
        with self.errors(name):
            try:
                with self.fs.open_output_stream(temporary) as file:
                    yield file
                self.fs.move(temporary, self.path(name))
            except BaseException:
                with contextlib.suppress(OSError):
                    self.fs.delete_file(temporary)
                raise

    @contextmanager
    def reading(self, name: str) -> Iterator[Any]:
        with self.errors(name):
            if self.local:
                try:
                    check_regular(self.path(name))
                except OSError as error:
                    place = posixpath.join(self.url, name)
                    raise OutputError(place, error.strerror or str(error)) from error
            with self.fs.open_input_file(self.path(name)) as file:
                yield file

    def remove(self, name: str) -> None:
        """Remove a file.  A directory in its place belongs to somebody else and is kept."""
        with self.errors(name), contextlib.suppress(FileNotFoundError, IsADirectoryError):
            self.fs.delete_file(self.path(name))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Reserves the dataset for one run.  Raises ``UsageError`` if another run has it.

        A local lock ends with its process, however that ends; elsewhere it is a file that names its owner.
        """
        owner = f"{socket.gethostname()}, process {os.getpid()}"
        if not self.local:
            with self._lock_file(owner):
                yield
            return
        with self.errors(LOCK), open(self.path(LOCK), "a+", encoding="utf-8") as file:
            self._flock(file)
            file.truncate(0)
            file.write(owner)
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def _flock(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read() or "another process"
            raise UsageError(f"{self.url}: in use by another bulk run ({owner})") from None

    @contextmanager
    def _lock_file(self, owner: str) -> Iterator[None]:
        with self.errors(LOCK):
            try:
                with self._fsspec.open(self.path(LOCK), "xb") as file:
                    file.write(owner.encode())
            except FileExistsError:
                held_by = self._fsspec.cat_file(self.path(LOCK)).decode(errors="replace")
                raise UsageError(
                    f"{self.url}: in use by another bulk run ({held_by}); if that has ended, remove {LOCK}"
                ) from None
        try:
            yield
        finally:
            self.remove(LOCK)


def write_staged(storage: Storage, key: str, path: str, runs: Iterable[tuple[str, Tables]]) -> int:
    """Stage the rows of the trace ``path``, tables by policy: the bytes written."""
    name = f"{STAGING}/{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.arrow"
    with storage.replacing(name) as file:
        for policy, tables in runs:
            metadata = {_KEY: key, _POLICY: policy}
            for table in (tables[name] for name in BULK_TABLES):
                schema = table.schema.with_metadata(metadata)
                with pa.ipc.new_stream(file, schema) as writer:
                    writer.write_table(table.replace_schema_metadata(metadata), _BATCH_ROWS)
        return int(file.tell())


def read_staged(storage: Storage, key: str, name: str) -> Iterator[tuple[str, Tables]]:
    """The tables of a staged file by policy.

    Nothing where the file was made under another key.  Raises ``pa.ArrowException`` where it is damaged.
    """
    with storage.reading(name) as file:
        size = file.size()
        while file.tell() < size:
            policy = ""
            tables = {}
            for table in BULK_TABLES:
                reader = pa.ipc.open_stream(file)
                metadata = reader.schema.metadata or {}
                if metadata.get(_KEY) != key.encode():
                    return
                policy = metadata[_POLICY].decode()
                tables[table] = reader.read_all().replace_schema_metadata(None)
            yield policy, tables
